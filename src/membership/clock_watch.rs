//! Whether this process' wall clock can be trusted, as peers' clocks and its own jumps say.
//!
//! While it cannot, nothing is taken that is judged by it: timestamps would be refused for good, or taken from a future that is
//! none. Senders repeat what they were refused so, elsewhere or later.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use skald_ring::{ClockCheck, ClockState, InstanceId, Now};
use tokio::sync::watch;

use super::Rings;
use super::keeper;
use crate::error::{ErrorKind, ServiceError};
use crate::settings::format_duration;

/// How often the clock is judged.
const JUDGE_EVERY: Duration = Duration::from_secs(1);
/// When a sender should try again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What is wrong with the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockFault {
    /// Milliseconds the clock is ahead of where it should be.
    pub ahead_ms: i64,
    /// What is known, and what to do.
    pub text: String,
}

impl ClockFault {
    fn of(state: ClockState) -> Option<Self> {
        let duration = |ms: i64| format_duration(Duration::from_secs(ms.unsigned_abs() / 1000));
        match state {
            ClockState::Sound => None,
            ClockState::Off { peers_ahead_ms, peers } => Some(Self {
                ahead_ms: peers_ahead_ms.saturating_neg(),
                text: format!(
                    "the clock of this machine is {} {} those of {peers} other processes; set it right (NTP), then writes are \
                     taken again",
                    duration(peers_ahead_ms),
                    if peers_ahead_ms > 0 { "behind" } else { "ahead of" }
                ),
            }),
            ClockState::Jumped { by_ms } => Some(Self {
                ahead_ms: by_ms,
                text: format!(
                    "the clock of this machine jumped {} by {}; set it right (NTP): once it is, or has stood so for {}, writes are \
                     taken again",
                    if by_ms > 0 { "ahead" } else { "back" },
                    duration(by_ms),
                    format_duration(skald_ring::clock::SETTLED_AFTER)
                ),
            }),
        }
    }
}

/// Judges the clock, and tells who asks.
#[derive(Debug)]
pub struct ClockWatch {
    check: Mutex<ClockCheck>,
    fault: watch::Sender<Option<ClockFault>>,
}

impl Default for ClockWatch {
    fn default() -> Self {
        Self { check: Mutex::default(), fault: watch::Sender::new(None) }
    }
}

impl ClockWatch {
    /// What is wrong, now and later.
    pub fn watch(&self) -> watch::Receiver<Option<ClockFault>> {
        self.fault.subscribe()
    }

    /// An error for writes while the clock cannot be trusted.
    pub fn trusted(&self) -> Result<(), ServiceError> {
        match &*self.fault.borrow() {
            None => Ok(()),
            Some(fault) => Err(ServiceError::new(ErrorKind::Unavailable, "clock-not-trusted", fault.text.clone())
                .retry_after(RETRY_AFTER)),
        }
    }

    /// Judges the clock that says `now`, given how far each peer's is ahead of it; milliseconds it is off.
    fn judge(&self, peers_ahead_ms: &[i64], now: Now) -> i64 {
        let fault = ClockFault::of(self.check.lock().judge(peers_ahead_ms, now));
        let ahead_ms = fault.as_ref().map_or(0, |fault| fault.ahead_ms);
        self.fault.send_if_modified(|known| {
            match (&*known, &fault) {
                (None, Some(fault)) => tracing::error!(why = fault.text, "writes are refused"),
                (Some(_), None) => tracing::info!("the clock of this machine is right again: writes are taken"),
                _ => {}
            }
            let changed = *known != fault;
            *known = fault;
            changed
        });
        ahead_ms
    }
}

impl Rings {
    /// Judges this process' clock again and again.
    pub(super) async fn watch_clock(&self) {
        loop {
            self.judge_clock();
            self.clock.sleep(JUDGE_EVERY).await;
        }
    }

    fn judge_clock(&self) {
        let now = keeper::now(self.clock.as_ref());
        let own = &self.identity.id;
        // A process in several rings counts once.
        let mut peers: BTreeMap<InstanceId, i64> = self.ingesters.clock_offsets_ms(own, now);
        for ring in &self.instances {
            peers.extend(ring.clock_offsets_ms(own, now));
        }
        let peers: Vec<i64> = peers.into_values().collect();
        self.metrics.set_clock_offset(self.clock_watch.judge(&peers, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_refused_while_the_clock_is_off() {
        let watch = ClockWatch::default();
        let at = |seconds: u64, ahead_ms: i64| Now {
            monotonic: Duration::from_secs(seconds),
            wall_ms: 1_000_000_000 + seconds as i64 * 1000 + ahead_ms,
        };
        assert_eq!(watch.judge(&[0, 0, 300], at(0, 0)), 0);
        assert!(watch.trusted().is_ok());
        assert_eq!(watch.judge(&[-7_200_000, -7_199_000], at(1, 7_200_000)), 7_199_000);
        let error = watch.trusted().unwrap_err();
        assert_eq!((error.kind, &*error.reason), (ErrorKind::Unavailable, "clock-not-trusted"));
        assert!(error.retry_after.is_some() && error.message.contains("1h59m59s ahead of those of 2"), "{error}");
        let mut changes = watch.watch();
        changes.mark_unchanged();
        assert_eq!(watch.judge(&[100, -100], at(2, 0)), 0);
        assert!(watch.trusted().is_ok() && changes.has_changed().unwrap());
        // Without peers a jump decides, until the clock has stood there for some time.
        for second in 3..400 {
            watch.judge(&[], at(second, 0));
        }
        assert_eq!(watch.judge(&[], at(400, -90_000)), -90_000);
        let error = watch.trusted().unwrap_err();
        assert!(error.message.contains("jumped back by 1m30s"), "{error}");
        for second in 401..800 {
            watch.judge(&[], at(second, -90_000));
        }
        assert!(watch.trusted().is_ok());
    }
}
