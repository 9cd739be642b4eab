//! Memory of the writes being answered, bounded for the whole instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::gauge::Gauge;

use super::config::InstanceLimits;
use crate::error::{ErrorKind, ServiceError};

/// Counts requests and their bytes, and refuses more than the instance takes.
#[derive(Debug)]
pub(super) struct InFlight {
    max_requests: u64,
    max_bytes: u64,
    requests: AtomicU64,
    bytes: AtomicU64,
    requests_gauge: Gauge,
    bytes_gauge: Gauge,
}

impl InFlight {
    pub(super) fn new(limits: &InstanceLimits, requests_gauge: Gauge, bytes_gauge: Gauge) -> Arc<Self> {
        Arc::new(Self {
            max_requests: limits.max_inflight_push_requests.unwrap_or(u64::MAX),
            max_bytes: limits.max_inflight_push_requests_bytes.map_or(u64::MAX, |size| size.as_u64()),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            requests_gauge,
            bytes_gauge,
        })
    }

    /// Begins a request.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Reservation, ServiceError> {
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        self.requests_gauge.inc();
        let reservation = Reservation { in_flight: self.clone(), bytes: 0 };
        if before >= self.max_requests {
            return Err(ServiceError::new(
                ErrorKind::Unavailable,
                "distributor-max-inflight-push-requests",
                format!("this distributor already answers {before} writes, the limit is {}", self.max_requests),
            ));
        }
        Ok(reservation)
    }
}

/// A request's part of the instance's memory; given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    in_flight: Arc<InFlight>,
    bytes: u64,
}

impl Reservation {
    /// Makes the request's part `bytes` large, if it is smaller.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), ServiceError> {
        let more = (bytes as u64).saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        let InFlight { max_bytes, bytes: all, bytes_gauge, .. } = &*self.in_flight;
        let id = "distributor-max-inflight-push-requests-bytes";
        if bytes as u64 > *max_bytes {
            let message =
                format!("the write takes {bytes} bytes of memory, this distributor has {max_bytes} for all writes");
            return Err(ServiceError::new(ErrorKind::TooLarge, id, message));
        }
        let before = all.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > *max_bytes {
            all.fetch_sub(more, Ordering::Relaxed);
            let message = format!(
                "writes in flight hold {before} bytes, {more} more would exceed this distributor's limit of {max_bytes}"
            );
            return Err(ServiceError::new(ErrorKind::Unavailable, id, message));
        }
        bytes_gauge.inc_by(more as i64);
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.in_flight.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.in_flight.bytes_gauge.dec_by(self.bytes as i64);
        self.in_flight.requests.fetch_sub(1, Ordering::Relaxed);
        self.in_flight.requests_gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ByteSize;

    #[test]
    fn what_is_reserved_is_given_back() {
        let limits = InstanceLimits {
            max_inflight_push_requests: Some(2),
            max_inflight_push_requests_bytes: Some(ByteSize::bytes(100)),
        };
        let in_flight = InFlight::new(&limits, Gauge::default(), Gauge::default());
        let mut a = in_flight.begin().unwrap();
        let mut b = in_flight.begin().unwrap();
        assert_eq!(in_flight.begin().unwrap_err().kind, ErrorKind::Unavailable);
        a.grow_to(60).unwrap();
        a.grow_to(50).unwrap();
        assert_eq!(b.grow_to(41).unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(b.grow_to(101).unwrap_err().kind, ErrorKind::TooLarge);
        b.grow_to(40).unwrap();
        drop(a);
        b.grow_to(100).unwrap();
        drop(b);
        assert_eq!((in_flight.bytes.load(Ordering::Relaxed), in_flight.requests.load(Ordering::Relaxed)), (0, 0));
        assert_eq!((in_flight.bytes_gauge.get(), in_flight.requests_gauge.get()), (0, 0));
    }
}
