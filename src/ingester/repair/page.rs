//! `GET /ingester/repair`: whether this member is repaired, and what the last comparison with each other one found.

use std::fmt::Write as _;

use axum::Router;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use serde_json::{Value, json};

use super::super::Ingester;
use super::Repaired;

/// Its route.
pub(in crate::ingester) fn routes() -> Router<Ingester> {
    Router::new().route("/ingester/repair", get(repair))
}

async fn repair(State(ingester): State<Ingester>, headers: HeaderMap) -> Response {
    let state = describe(&ingester);
    let accepts_json = headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"));
    if accepts_json {
        return ([(CONTENT_TYPE, "application/json")], state.to_string()).into_response();
    }
    Html(page(&state)).into_response()
}

fn describe(ingester: &Ingester) -> Value {
    let shared = &ingester.shared;
    let now = shared.runtime.clock.now_ms();
    let seconds_ago = |at: i64| (now - at).max(0) as f64 / 1000.0;
    let repaired = shared.repair.repaired.borrow().clone();
    let reason = match &repaired {
        Repaired::Yes => Value::Null,
        Repaired::No { reason } => json!(reason),
    };
    let reports = shared.repair.reports.lock();
    let peers: Vec<Value> = reports
        .iter()
        .map(|(id, report)| {
            let found = &report.found;
            let failures: Vec<Value> = found
                .failures
                .iter()
                .map(|(tenant, error)| json!({"tenant": tenant.as_str(), "error": error.message_with_id()}))
                .collect();
            json!({
                "peer": id,
                "seconds_ago": seconds_ago(report.at_ms),
                "whole_seconds_ago": report.whole_at_ms.map(seconds_ago),
                "seconds": report.took.as_secs_f64(),
                "tenants": found.tenants,
                "ranges": found.ranges,
                "ranges_differing": found.ranges_differing,
                "series_compared": found.series_compared,
                "series_differing": found.series_differing,
                "chunks_fetched": found.chunks,
                "bytes_fetched": found.bytes,
                "samples_imported": found.samples_imported,
                "conflicts": found.conflicts,
                "error": report.error.as_ref().map(|error| error.message_with_id()),
                "failures": failures,
            })
        })
        .collect();
    let instance = shared.repair.instance.lock().clone();
    json!({"instance": instance, "repaired": repaired == Repaired::Yes, "reason": reason, "peers": peers})
}

const COLUMNS: [&str; 13] = [
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
    "error",
];

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => escaped(text),
        other => other.to_string(),
    }
}

fn page(state: &Value) -> String {
    let mut out = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Repair</title></head>\n<body>\n<h1>Repair</h1>\n",
    );
    let verdict = match &state["reason"] {
        Value::String(reason) => format!("not repaired: {}", escaped(reason)),
        _ => "repaired".to_owned(),
    };
    let _ = writeln!(out, "<p>{}: {verdict}</p>\n<table border=\"1\">\n<tr>", cell(&state["instance"]));
    COLUMNS.iter().for_each(|name| _ = write!(out, "<th>{}</th>", name.replace('_', " ")));
    out.push_str("</tr>\n");
    for peer in state["peers"].as_array().into_iter().flatten() {
        out.push_str("<tr>");
        COLUMNS.iter().for_each(|name| _ = write!(out, "<td>{}</td>", cell(&peer[*name])));
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n</body></html>\n");
    out
}
