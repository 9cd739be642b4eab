//! `GET /ingester/repair`: whether this member is repaired, and what the last comparison with each other one found.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use http::HeaderMap;
use serde_json::{Value, json};

use super::super::Ingester;
use super::Repaired;
use crate::http::TablePage;

/// Its route.
pub(in crate::ingester) fn routes() -> Router<Ingester> {
    Router::new().route("/ingester/repair", get(repair))
}

async fn repair(State(ingester): State<Ingester>, headers: HeaderMap) -> Response {
    let shared = &ingester.shared;
    let now = shared.runtime.clock.now_ms();
    let seconds_ago = |at: i64| (now - at).max(0) as f64 / 1000.0;
    let verdict = match &*shared.repair.repaired.borrow() {
        Repaired::Yes => "repaired".to_owned(),
        Repaired::No { reason } => format!("not repaired: {reason}"),
    };
    let notes = vec![format!("{}: {verdict}", shared.repair.instance.lock())];
    let reports = shared.repair.reports.lock();
    let rows = reports.iter().map(|(peer, report)| {
        let found = &report.found;
        let failures = found.failures.iter();
        let failures = failures.map(|(tenant, error)| format!("{tenant}: {}", error.message_with_id()));
        let errors = report.error.iter().map(|error| error.message_with_id()).chain(failures).collect::<Vec<_>>();
        vec![
            json!(peer),
            json!(seconds_ago(report.at_ms)),
            json!(report.whole_at_ms.map(seconds_ago)),
            json!(report.took.as_secs_f64()),
            json!(found.tenants),
            json!(found.ranges),
            json!(found.ranges_differing),
            json!(found.series_compared),
            json!(found.series_differing),
            json!(found.chunks),
            json!(found.bytes),
            json!(found.samples_imported),
            json!(found.conflicts),
            if errors.is_empty() { Value::Null } else { json!(errors.join("; ")) },
        ]
    });
    let page = TablePage {
        title: "Repair".to_owned(),
        notes,
        columns: &[
            "peer",
            "seconds_ago",
            "whole_seconds_ago",
            "seconds",
            "tenants",
            "ranges",
            "ranges_differing",
            "series_compared",
            "series_differing",
            "chunks_fetched",
            "bytes_fetched",
            "samples_imported",
            "conflicts",
            "errors",
        ],
        rows: rows.collect(),
        action: None,
    };
    page.answer(&headers)
}
