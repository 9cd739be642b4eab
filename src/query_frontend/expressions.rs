//! `format_query`, `parse_query` and what the API says of itself.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use skald_promql::ast::Expr;
use skald_promql::parse::{GoOn, parse_expr_while};

use super::QueryFrontend;
use super::answer::{Data, Notes, Success, Whole};
use super::json::put_str;
use super::params::{Params, invalid};
use crate::error::{ErrorKind, ServiceError};
use crate::tenant::TenantId;

/// Bytes a formatted query may reach: indentation can make a small query a very large one.
const LONGEST_FORMATTED: usize = 16 << 20;

/// `/api/v1/format_query`
pub async fn format(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    let formatted = frontend
        .of_expression(request, |expr| {
            let text = expr.prettify(LONGEST_FORMATTED).ok_or_else(|| {
                let text = format!("the formatted query is longer than the limit of {LONGEST_FORMATTED} bytes");
                ServiceError::new(ErrorKind::BadData, "formatted-query-too-long", text)
            })?;
            Ok(Whole::new(move |out: &mut Vec<u8>| put_str(out, &text)))
        })
        .await;
    frontend.respond(formatted).await
}

/// `/api/v1/parse_query`
pub async fn parse(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    let tree = |expr: Expr| {
        let json = expr.to_json().to_string();
        Ok(Whole::new(move |out: &mut Vec<u8>| out.extend_from_slice(json.as_bytes())))
    };
    let tree = frontend.of_expression(request, tree).await;
    frontend.respond(tree).await
}

/// `/api/v1/status/buildinfo`: Grafana asks it what it talks to.
pub async fn build_info(State(frontend): State<Arc<QueryFrontend>>) -> Response {
    let data = serde_json::json!({
        "application": "Skald",
        "version": env!("CARGO_PKG_VERSION"),
        "revision": "",
        "branch": "",
        "buildUser": "",
        "buildDate": "",
        "goVersion": "",
    });
    let data = Whole::new(move |out: &mut Vec<u8>| out.extend_from_slice(data.to_string().as_bytes()));
    frontend.respond(Ok(Success::new(data, Notes::default()))).await
}

/// `/api/v1/rules`: Grafana asks it of every Prometheus. There are none, because nothing here evaluates rules.
pub async fn rules(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    let groups = frontend.constant(request, r#"{"groups":[]}"#);
    frontend.respond(groups).await
}

/// `/api/v1/alerts`: likewise.
pub async fn alerts(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    let alerts = frontend.constant(request, r#"{"alerts":[]}"#);
    frontend.respond(alerts).await
}

impl QueryFrontend {
    fn constant(&self, request: Request<Body>, data: &'static str) -> Result<Success, ServiceError> {
        TenantId::of_request(request.headers(), self.multitenancy_enabled)?;
        let data = Whole::new(move |out: &mut Vec<u8>| out.extend_from_slice(data.as_bytes()));
        Ok(Success::new(data, Notes::default()))
    }

    /// Parses the query on the query pool and answers with something made of it.
    async fn of_expression<D: Data>(
        &self,
        request: Request<Body>,
        answer: impl FnOnce(Expr) -> Result<D, ServiceError> + Send + 'static,
    ) -> Result<Success, ServiceError> {
        let params = Params::read(request).await?;
        let options = self.limits(&params.tenant(self.multitenancy_enabled)?).parse_options();
        let work = move |go_on: GoOn<'_>| {
            let expr = parse_expr_while(params.get("query"), &options, go_on).map_err(|e| invalid("query", e))?;
            Ok(Success::new(answer(expr)?, Notes::default()))
        };
        self.in_time(self.on_pool(work)).await?
    }
}
