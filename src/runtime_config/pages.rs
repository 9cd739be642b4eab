//! What is in force: `GET /runtime_config` for operators, `GET /api/v1/user_limits` for a tenant.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use serde_json::Value;

use super::RuntimeConfig;
use crate::error::{ErrorKind, ServiceError};
use crate::http::prometheus_error;
use crate::limits::Limits;
use crate::settings::{Comments, Shown, changed_yaml_from, entries, to_yaml};
use crate::tenant::TenantId;

/// The routes.
///
/// `GET /runtime_config` is YAML: each tenant with limits of its own, and all of these; with `?mode=diff` only those that
/// differ from `limits`. A file that is not in force is told in a comment.
///
/// `GET /api/v1/user_limits` is JSON: the limits of the tenant who asks.
pub fn routes(runtime_config: Arc<RuntimeConfig>, multitenancy_enabled: bool) -> Router {
    let state = Pages { runtime_config, multitenancy_enabled };
    Router::new()
        .route("/runtime_config", get(runtime_config_page))
        .route("/api/v1/user_limits", get(user_limits))
        .with_state(state)
}

#[derive(Clone)]
struct Pages {
    runtime_config: Arc<RuntimeConfig>,
    multitenancy_enabled: bool,
}

#[derive(Deserialize)]
struct Parameters {
    mode: Option<String>,
}

async fn runtime_config_page(State(pages): State<Pages>, Query(parameters): Query<Parameters>) -> Response {
    let diff = match parameters.mode.as_deref() {
        None => false,
        Some("diff") => true,
        Some(other) => {
            let message = format!("mode {other:?} is unknown, expected diff");
            return prometheus_error(&ServiceError::new(ErrorKind::BadData, "bad-parameter", message));
        }
    };
    let mut response = pages.runtime_config.yaml(diff).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

async fn user_limits(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    match TenantId::of_request(&headers, pages.multitenancy_enabled) {
        Ok(tenant) => Json(json(&pages.runtime_config.limits.of(&tenant))).into_response(),
        Err(error) => prometheus_error(&error),
    }
}

/// Limits under their names; numbers and switches as such, everything else as the text a file would have.
fn json(limits: &Limits) -> BTreeMap<String, Value> {
    let value = |shown| match shown {
        Shown::Bare(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        Shown::Text(text) => Value::String(text),
        Shown::List(items) => items.into(),
    };
    entries(limits).into_iter().map(|entry| (entry.path, value(entry.value))).collect()
}

impl RuntimeConfig {
    fn yaml(&self, diff: bool) -> String {
        let mut yaml = String::new();
        if let Some(error) = self.last.lock().error.clone() {
            let error = error.replace('\n', " ");
            let _ = writeln!(yaml, "# The file that is there now was not taken: {error}");
        }
        let overrides = self.limits.overrides();
        if overrides.is_empty() {
            yaml.push_str("overrides: {}\n");
            return yaml;
        }
        yaml.push_str("overrides:\n");
        let overrides: BTreeMap<&TenantId, &Arc<Limits>> = overrides.iter().collect();
        for (tenant, limits) in overrides {
            let text = match diff {
                true => changed_yaml_from(&**limits, self.limits.default_limits()),
                false => to_yaml(&**limits, Comments::None),
            };
            // JSON's quoting is also YAML's.
            let _ = writeln!(yaml, "  {}:", Value::String(tenant.as_str().to_owned()));
            for line in text.lines() {
                let _ = writeln!(yaml, "    {line}");
            }
        }
        yaml
    }
}
