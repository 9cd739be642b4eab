//! `format_query`, `parse_query` and what the API says of itself.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use skald_promql::ast::Expr;
use skald_promql::parse::parse_expr;

use super::QueryFrontend;
use super::answer::{Notes, respond, success_body};
use super::json::put_str;
use super::params::{Params, invalid};
use crate::error::ServiceError;

/// `/api/v1/format_query`
pub async fn format(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    let pretty = |expr: Expr| success_body(&Notes::default(), |out| put_str(out, &expr.prettify()));
    respond(frontend.expression(request).await.map(pretty))
}

/// `/api/v1/parse_query`
pub async fn parse(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    let tree = |expr: Expr| {
        success_body(&Notes::default(), |out| out.extend_from_slice(expr.to_json().to_string().as_bytes()))
    };
    respond(frontend.expression(request).await.map(tree))
}

/// `/api/v1/status/buildinfo`: Grafana asks it what it talks to.
pub async fn build_info() -> Response {
    let data = serde_json::json!({
        "application": "Skald",
        "version": env!("CARGO_PKG_VERSION"),
        "revision": "",
        "branch": "",
        "buildUser": "",
        "buildDate": "",
        "goVersion": "",
    });
    respond(Ok(success_body(&Notes::default(), |out| out.extend_from_slice(data.to_string().as_bytes()))))
}

impl QueryFrontend {
    async fn expression(&self, request: Request<Body>) -> Result<Expr, ServiceError> {
        let params = Params::read(request).await?;
        params.tenant(self.multitenancy_enabled)?;
        parse_expr(params.get("query"), &self.parse_options).map_err(|e| invalid("query", e))
    }
}
