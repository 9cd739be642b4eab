//! `/distributor/ha_tracker`.

use http::HeaderMap;
use serde_json::json;

use super::HaTracker;
use crate::http::TablePage;

impl HaTracker {
    /// The elected replica of every pair.
    pub(in crate::distributor) fn page(&self, headers: &HeaderMap) -> axum::response::Response {
        let now = self.clock.monotonic();
        self.look();
        let elections = self.store.get();
        let seen = self.seen.lock();
        let rows = elections.iter().map(|(pair, election)| {
            let silent = seen.get(pair).map(|known| now.saturating_sub(known.2).as_secs());
            vec![
                json!(pair.tenant),
                json!(pair.cluster),
                json!(election.replica),
                json!(election.term),
                json!(election.elected_at_ms),
                json!(election.received_at_ms),
                json!(silent),
            ]
        });
        let notes = vec![format!(
            "Of each cluster of replicas, samples of the elected one are taken. Another one is elected when no beat of it came \
             for {:?}; there is a beat every {:?} while samples come.",
            self.config.failover_timeout, self.config.update_timeout
        )];
        let columns =
            &["tenant", "cluster", "replica", "term", "elected_at_ms", "received_at_ms", "seconds_since_the_last_beat"];
        let rows = rows.collect();
        drop(seen);
        TablePage { title: "HA tracker".to_owned(), notes, columns, rows, action: None }.answer(headers)
    }
}
