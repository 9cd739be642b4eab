//! How long a call may take: the header that says so, and bodies that end when the time is over.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body, Frame, SizeHint};
use tonic::Status;

use crate::error::{ErrorKind, ServiceError};

const HEADER: &str = "grpc-timeout";

/// Until when somebody waits for a call, by this process' monotonic clock; an extension of requests. Whoever makes a call
/// names it so, and whoever serves one finds it there, so that it goes along with all that is asked because of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Duration);

/// What a call ends with that took too long.
pub fn passed(timeout: Duration) -> ServiceError {
    let text = format!("the call took longer than {}", crate::settings::format_duration(timeout));
    ServiceError::new(ErrorKind::Timeout, "call-deadline", text)
}

/// The time that a request's headers give it: up to eight digits and a unit, as gRPC has it.
pub fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(HEADER)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Gives a request so much time.
pub fn set_timeout(headers: &mut HeaderMap, timeout: Duration) {
    const MOST: u128 = 99_999_999;
    let text = match timeout.as_millis() {
        millis if millis <= MOST => format!("{}m", millis.max(1)),
        millis => format!("{}S", (millis / 1000).min(MOST)),
    };
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(HEADER, value);
    }
}

/// A streamed answer that ends when its time is over, whichever side it is on, and keeps something until then. The body
/// within is dropped at that moment, and with it the work that makes it.
pub struct Timed<B, K> {
    body: Option<B>,
    timer: Option<(BoxFuture<'static, ()>, Duration)>,
    _kept: K,
}

impl<B, K> Timed<B, K> {
    /// `body` for as long as `timer` (of so much time) runs; without one it has all the time.
    pub fn new(body: B, timer: Option<(BoxFuture<'static, ()>, Duration)>, kept: K) -> Self {
        Self { body: Some(body), timer, _kept: kept }
    }
}

impl<B, K> Body for Timed<B, K>
where
    B: Body<Data = Bytes> + Unpin,
    K: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(context) {
            if frame.is_none() {
                this.body = None;
            }
            return Poll::Ready(frame);
        }
        let Some((timer, timeout)) = &mut this.timer else { return Poll::Pending };
        if timer.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        this.body = None;
        let mut trailers = HeaderMap::new();
        // Our own status always fits into headers.
        let _ = Status::from(passed(*timeout)).add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_survive_the_header() {
        let mut headers = HeaderMap::new();
        assert_eq!(timeout_of(&headers), None);
        for millis in [1, 1500, 99_999_999] {
            set_timeout(&mut headers, Duration::from_millis(millis));
            assert_eq!(timeout_of(&headers), Some(Duration::from_millis(millis)));
        }
        set_timeout(&mut headers, Duration::from_secs(500_000));
        assert_eq!(timeout_of(&headers), Some(Duration::from_secs(500_000)));
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1x", None),
        ] {
            headers.insert(HEADER, HeaderValue::from_static(text));
            assert_eq!(timeout_of(&headers), expected, "{text}");
        }
    }
}
