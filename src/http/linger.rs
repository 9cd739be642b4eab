//! Request bodies that are answered before they have arrived.
//!
//! A connection that is closed with unread bytes in it is reset, and the reset often destroys the answer on its way: the
//! sender of a body that is too large would see a broken connection instead of 413, and try again for ever.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use bytes::Bytes;
use http::Version;
use http::header::EXPECT;
use http_body_util::BodyExt;

use crate::runtime::Clock;

/// How much of a body nobody wants is read, and for how long.
const MOST_BYTES: usize = 1 << 30;
const LONGEST: Duration = Duration::from_secs(10);

/// Makes the rest of the request's body be read and thrown away once its handler no longer wants it.
pub(super) fn linger(request: Request, clock: &Arc<dyn Clock>) -> Request {
    // HTTP/2 ends a stream without ending the connection; and who asks first does not send what is refused.
    if request.version() > Version::HTTP_11 || request.headers().contains_key(EXPECT) {
        return request;
    }
    request.map(|body| if body.is_end_stream() { body } else { Body::new(Lingering::new(body, clock.clone())) })
}

struct Lingering {
    body: Body,
    clock: Arc<dyn Clock>,
    /// Whether it was read to its end, or broke.
    ended: bool,
}

impl Lingering {
    fn new(body: Body, clock: Arc<dyn Clock>) -> Self {
        Self { body, clock, ended: false }
    }
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.ended || self.body.is_end_stream() {
            return;
        }
        let (mut body, clock) = (std::mem::take(&mut self.body), self.clock.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let discard = async {
                let mut read = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    read += frame.data_ref().map_or(0, Bytes::len);
                    if read > MOST_BYTES {
                        break;
                    }
                }
            };
            tokio::select! {
                () = discard => {}
                () = clock.sleep(LONGEST) => {}
            }
        });
    }
}
