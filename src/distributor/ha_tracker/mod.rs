//! Pairs of Prometheus that scrape the same targets: of each pair one replica is elected, and only its samples are taken.
//!
//! Who is elected is gossiped between distributors ([`elections`]). A distributor that takes samples of the elected replica
//! raises its beat every `update_timeout`; one that saw no beat for `failover_timeout`, by its own monotonic clock, and gets
//! samples of another replica, elects that one in the next term. So after a failure no more than the timeout and one scrape
//! are lost; distributors that cannot hear each other each elect one, never none, and agree as soon as they can.
//!
//! Every series of a write is judged by its own labels ([`mod@dedupe`]).

mod dedupe;
mod elections;
mod page;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skald_ring::Store;

use crate::runtime::Clock;
use crate::settings::settings;
use crate::tenant::TenantId;
pub(super) use dedupe::dedupe;
pub use elections::Elections;
use elections::{Election, MAX_NAME_LENGTH, Pair};

/// How often news of other distributors are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

settings! {
    /// Of pairs of Prometheus that scrape the same, one replica is elected whose samples are taken, for tenants with
    /// `accept_ha_samples`.
    pub struct HaTrackerConfig {
        /// How often distributors tell each other that samples of an elected replica come.
        pub update_timeout: Duration = Duration::from_secs(15) => Duration::from_millis(10)..,
        /// When another replica is elected because nothing came of the elected one. Longer than `update_timeout` and the
        /// senders' scrape interval together.
        pub failover_timeout: Duration = Duration::from_secs(30) => Duration::from_millis(20)..,
    }
    check |config| if config.failover_timeout > config.update_timeout {
        Ok(())
    } else {
        Err(format!(
            "`failover_timeout` ({:?}) must be longer than `update_timeout` ({:?})",
            config.failover_timeout, config.update_timeout
        ))
    };
}

/// What becomes of samples of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is elected.
    Accept,
    /// Another one is.
    Duplicate,
    /// The tenant has too many clusters for another one.
    TooManyClusters,
    /// A name that is too long to be told to others.
    NameTooLong,
}

/// Elects a replica of each pair.
pub struct HaTracker {
    config: HaTrackerConfig,
    store: Arc<dyn Store<Elections>>,
    clock: Arc<dyn Clock>,
    /// Of each pair the term and beat that was seen last, and when it was seen first, by this process' monotonic clock.
    seen: Mutex<HashMap<Pair, (u64, u64, Duration)>>,
}

impl HaTracker {
    /// A tracker over what `store` shares with other distributors. What that knows already is adopted.
    pub fn new(config: HaTrackerConfig, store: Arc<dyn Store<Elections>>, clock: Arc<dyn Clock>) -> Self {
        let tracker = Self { config, store, clock, seen: Mutex::default() };
        tracker.look();
        tracker
    }

    /// Notices beats of other distributors, until dropped.
    pub async fn run(&self) {
        let mut changes = self.store.watch();
        loop {
            self.clock.sleep(LOOK_EVERY).await;
            if changes.has_changed().unwrap_or(false) {
                changes.borrow_and_update();
                self.look();
            }
        }
    }

    fn look(&self) {
        let now = self.clock.monotonic();
        let elections = self.store.get();
        let mut seen = self.seen.lock();
        seen.retain(|pair, _| elections.get(pair).is_some());
        for (pair, election) in elections.iter() {
            match seen.get_mut(pair) {
                Some(known) => notice(known, election, now),
                None => drop(seen.insert(pair.clone(), (election.term, election.beat, now))),
            }
        }
    }

    /// What becomes of samples that just came from `replica` of `cluster`.
    pub(super) fn check(
        &self,
        tenant: &TenantId,
        cluster: &str,
        replica: &str,
        max_clusters: Option<usize>,
    ) -> Verdict {
        if cluster.len() > MAX_NAME_LENGTH || replica.len() > MAX_NAME_LENGTH {
            return Verdict::NameTooLong;
        }
        let pair = Pair { tenant: tenant.as_str().to_owned(), cluster: cluster.to_owned() };
        let now = self.clock.monotonic();
        // Held to the end, so that of two writes at one time only one elects.
        let mut seen = self.seen.lock();
        let elections = self.store.get();
        let Some(election) = elections.get(&pair) else {
            if max_clusters.is_some_and(|most| elections.clusters_of(tenant.as_str()) >= most) {
                return Verdict::TooManyClusters;
            }
            self.tell(&mut seen, pair, 1, replica, 1, None, now);
            return Verdict::Accept;
        };
        let known = seen.entry(pair.clone()).or_insert((election.term, election.beat, now));
        notice(known, election, now);
        let silent = now.saturating_sub(known.2);
        if election.replica == replica {
            if silent >= self.config.update_timeout {
                let elected_at_ms = Some(election.elected_at_ms);
                self.tell(&mut seen, pair, election.term, replica, election.beat + 1, elected_at_ms, now);
            }
            return Verdict::Accept;
        }
        if silent <= self.config.failover_timeout {
            return Verdict::Duplicate;
        }
        tracing::info!(%tenant, cluster, replica, before = election.replica, "another replica is elected");
        self.tell(&mut seen, pair, election.term + 1, replica, 1, None, now);
        Verdict::Accept
    }

    fn tell(
        &self,
        seen: &mut HashMap<Pair, (u64, u64, Duration)>,
        pair: Pair,
        term: u64,
        replica: &str,
        beat: u64,
        elected_at_ms: Option<i64>,
        now: Duration,
    ) {
        let received_at_ms = self.clock.now_ms();
        let elected_at_ms = elected_at_ms.unwrap_or(received_at_ms);
        let election = Election { term, replica: replica.to_owned(), beat, received_at_ms, elected_at_ms };
        seen.insert(pair.clone(), (term, beat, now));
        self.store.update(&Elections::of(pair, election));
    }
}

/// A beat that was not seen before was raised about now.
fn notice(known: &mut (u64, u64, Duration), election: &Election, now: Duration) {
    if (known.0, known.1) != (election.term, election.beat) {
        *known = (election.term, election.beat, now);
    }
}

#[cfg(test)]
mod tests;
