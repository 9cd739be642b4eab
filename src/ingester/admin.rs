//! The ingester's HTTP side, for operators.

use std::fmt::Write as _;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;

use super::Ingester;
use super::flush::FlushExtent;
use super::losses::COLUMNS;
use crate::error::{ErrorKind, ServiceError};
use crate::http::prometheus_error;
use crate::tenant::TenantId;

impl Ingester {
    /// `POST /ingester/flush`, `GET /ingester/tenants`, `GET /ingester/losses` and `GET /ingester/repair`.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/ingester/flush", post(flush))
            .route("/ingester/tenants", get(tenants))
            .route("/ingester/losses", get(losses))
            .merge(super::repair::routes())
            .with_state(self)
    }
}

/// Cuts all samples in memory into blocks and uploads them; answers when that is done. `?tenant=` (repeatable) names
/// whose, the default is everybody's.
async fn flush(State(ingester): State<Ingester>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let names = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "tenant");
    let wanted: Result<Vec<TenantId>, ServiceError> = names.map(|(_, tenant)| TenantId::new(&tenant)).collect();
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return prometheus_error(&error),
    };
    let mut failed = Vec::new();
    for tenant in ingester.shared.tenants.all() {
        if !wanted.is_empty() && !wanted.contains(&tenant.id) {
            continue;
        }
        if let Err(error) = ingester.flush(&tenant, FlushExtent::Everything).await {
            ingester.shared.metrics.flush_failures.inc();
            tracing::error!(tenant = %tenant.id, %error, "head could not be flushed");
            failed.push(format!("{}: {error}", tenant.id));
        } else if !ingester.ship(&tenant).await {
            failed.push(format!("{}: not every block could be uploaded; the log tells why", tenant.id));
        }
    }
    if failed.is_empty() {
        return StatusCode::NO_CONTENT.into_response();
    }
    let text = format!("not flushed: {}; it is tried again by itself", failed.join("; "));
    prometheus_error(&ServiceError::new(ErrorKind::Unavailable, "flush-failed", text))
}

/// What the start of this process could not bring back.
async fn losses(State(ingester): State<Ingester>) -> String {
    let mut out = format!("{COLUMNS}\n");
    for loss in &ingester.shared.losses {
        let _ = writeln!(out, "{loss}");
    }
    out
}

async fn tenants(State(ingester): State<Ingester>) -> String {
    let mut out = String::from("tenant\tseries\tblocks\tuploaded\tfirst_ms\tlast_ms\n");
    for tenant in ingester.shared.tenants.all() {
        let blocks = tenant.blocks();
        let uploaded = blocks.iter().filter(|b| b.shipped().uploaded_at.is_some()).count();
        let time = |t: Option<i64>| t.map_or_else(|| "-".to_owned(), |t| t.to_string());
        let (first, last) = (time(tenant.head.min_time()), time(tenant.head.max_time()));
        let series = tenant.head.series_count();
        let _ = writeln!(out, "{}\t{series}\t{}\t{uploaded}\t{first}\t{last}", tenant.id, blocks.len());
    }
    out
}
