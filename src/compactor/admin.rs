//! The compactor's admin page: `POST /compactor/update-bucket-index`.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::{Compactor, IndexUpdate};
use crate::error::ServiceError;
use crate::http::prometheus_error;
use crate::tenant::TenantId;

/// The compactor's routes.
///
/// `POST /compactor/update-bucket-index` makes the bucket index of every tenant anew, or with `?tenant=<id>` of that one,
/// and answers when it is written. If any fails, the answer is an error that names the first one; the others are done.
pub fn routes(compactor: Arc<Compactor>) -> Router {
    Router::new().route("/compactor/update-bucket-index", post(update_bucket_index)).with_state(compactor)
}

#[derive(Deserialize)]
struct Parameters {
    tenant: Option<String>,
}

#[derive(Serialize)]
struct Answer {
    tenants: Vec<Updated>,
}

#[derive(Serialize)]
struct Updated {
    tenant: String,
    blocks: usize,
    partial_blocks: usize,
    damaged_blocks: usize,
}

impl Updated {
    fn new(tenant: &TenantId, update: &IndexUpdate) -> Self {
        Self {
            tenant: tenant.to_string(),
            blocks: update.index.blocks.len(),
            partial_blocks: update.partial.len(),
            damaged_blocks: update.damaged.len(),
        }
    }
}

async fn update_bucket_index(
    State(compactor): State<Arc<Compactor>>,
    Query(parameters): Query<Parameters>,
) -> Response {
    match update(&compactor, parameters).await {
        Ok(tenants) => Json(Answer { tenants }).into_response(),
        Err(error) => prometheus_error(&error),
    }
}

async fn update(compactor: &Compactor, parameters: Parameters) -> Result<Vec<Updated>, ServiceError> {
    let updates = match parameters.tenant {
        Some(id) => {
            let tenant = TenantId::new(&id)?;
            let result = compactor.update_tenant(&tenant).await;
            vec![(tenant, result)]
        }
        None => compactor.update_all().await?,
    };
    let update = |(tenant, result): (TenantId, Result<IndexUpdate, _>)| match result {
        Ok(update) => Ok(Updated::new(&tenant, &update)),
        Err(error) => {
            let error = ServiceError::from(error);
            Err(ServiceError { message: format!("tenant {tenant}: {}", error.message), ..error })
        }
    };
    updates.into_iter().map(update).collect()
}
