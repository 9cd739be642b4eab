//! The ingester's HTTP side, for operators.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::losses::COLUMNS;
use super::tenants::Tenant;
use super::{Ingester, leaving};
use crate::error::{ErrorKind, ServiceError};
use crate::http::{TablePage, prometheus_error};
use crate::tenant::TenantId;

impl Ingester {
    /// `POST /ingester/flush`, `/ingester/prepare-shutdown`, `GET /ingester/tenants`, `GET /ingester/losses` and
    /// `GET /ingester/repair`.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/ingester/flush", post(flush))
            .route(
                "/ingester/prepare-shutdown",
                get(leaving::requested).post(leaving::request).delete(leaving::take_back),
            )
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
    let failed = ingester.flush_and_ship(&wanted).await;
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

/// Whose samples are here.
async fn tenants(State(ingester): State<Ingester>, headers: HeaderMap) -> Response {
    let row = |tenant: &Arc<Tenant>| {
        let blocks = tenant.blocks();
        let allowance =
            ingester.shared.series_limits.get().and_then(|limits| limits.allowance(&tenant.id, tenant.head.as_ref()));
        let uploaded = blocks.iter().filter(|block| block.shipped().uploaded_at.is_some()).count();
        vec![
            json!(tenant.id.as_str()),
            json!(tenant.head.series_count()),
            json!(blocks.len()),
            json!(uploaded),
            json!(tenant.head.min_time()),
            json!(tenant.head.max_time()),
            json!(allowance.map_or(tenant.head.series_count() as u64, |allowance| allowance.known)),
            json!(allowance.map(|allowance| allowance.series)),
        ]
    };
    let page = TablePage {
        title: "Tenants of the ingester".to_owned(),
        notes: vec![
            "Series and times are those in memory; blocks are those kept here. Series of all groups are known of tenants that \
             have used a quarter of their limit."
                .to_owned(),
        ],
        columns: &["tenant", "series", "blocks", "uploaded_blocks", "first_ms", "last_ms", "series_of_all_groups", "series_allowed_here"],
        rows: ingester.shared.tenants.all().iter().map(row).collect(),
        action: None,
    };
    page.answer(&headers)
}
