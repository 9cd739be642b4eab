//! The API as clients see it, in front of a querier that finds nothing.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use skald_model::{Labels, MetricMetadata};
use skald_promql::eval::{Annotations, FragmentOutput, QueryStats, Value};
use skald_tsdb::disk::MemDisk;
use tower::ServiceExt;

use super::{Config, Limits, PromqlConfig, QueryFrontend};
use crate::error::ServiceError;
use crate::limits::{self, TenantLimits};
use crate::querier::client::{FragmentReply, QuerierClient, QueryReply, QueryRequest};
use crate::runtime::{MemNet, Pool, Rng, Runtime, SystemClock};
use crate::select::{LabelRequest, SeriesExemplars};
use crate::tenant::TenantId;

struct NoSeries;

#[async_trait]
impl QuerierClient for NoSeries {
    async fn query(&self, _: &TenantId, _: QueryRequest) -> Result<QueryReply, ServiceError> {
        Ok(QueryReply {
            value: Value::Vector(Vec::new()),
            annotations: Annotations::default(),
            warnings: Vec::new(),
            stats: QueryStats::default(),
            explain: None,
            charge: None,
        })
    }

    async fn fragment(&self, _: &TenantId, _: QueryRequest) -> Result<FragmentReply, ServiceError> {
        Ok(FragmentReply { output: FragmentOutput::default(), warnings: Vec::new() })
    }

    async fn label_names(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<String>, ServiceError> {
        Ok(vec!["a".to_owned(), "b".to_owned()])
    }

    async fn label_values(&self, _: &TenantId, _: &str, _: LabelRequest) -> Result<Vec<String>, ServiceError> {
        Ok(Vec::new())
    }

    async fn series(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<Labels>, ServiceError> {
        Ok(Vec::new())
    }

    async fn exemplars(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        Ok(Vec::new())
    }

    async fn metadata(&self, _: &TenantId, _: Option<&str>) -> Result<Vec<MetricMetadata>, ServiceError> {
        Ok(Vec::new())
    }
}

/// A query-frontend with multitenancy, where the tenant `curious` may use all of PromQL.
fn frontend() -> Arc<QueryFrontend> {
    let runtime = Runtime {
        clock: Arc::new(SystemClock::default()),
        rng: Arc::new(Rng::seeded(1)),
        disk: Arc::new(MemDisk::default()),
        net: Arc::new(MemNet::default()),
        gossip: Arc::new(crate::runtime::SocketGossip),
        bucket: None,
        ingest_pool: Pool::inline(),
        query_pool: Pool::inline(),
        background_pool: Pool::inline(),
    };
    let everything = Limits {
        promql_experimental_functions: true,
        promql_duration_expressions: true,
        promql_extended_range_selectors: true,
        promql_binary_fill_modifiers: true,
        promql_delayed_name_removal: true,
    };
    let everything = limits::Limits { query_frontend: everything, ..limits::Limits::default() };
    let curious = TenantId::new("curious").unwrap();
    let limits = TenantLimits::default();
    limits.set_overrides(HashMap::from([(curious, Arc::new(everything))]));
    Arc::new(QueryFrontend::new(Config::default(), PromqlConfig::default(), limits, true, Arc::new(NoSeries), runtime))
}

async fn ask(tenant: &str, path: &str, params: &[(&str, &str)]) -> (StatusCode, String) {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
    let request = Request::get(format!("{path}?{query}")).header("X-Scope-OrgID", tenant).body(Body::empty()).unwrap();
    let response = frontend().router().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// The `error` of a `bad_data` answer.
#[track_caller]
fn bad_data((status, body): (StatusCode, String)) -> String {
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, body["errorType"].as_str()), (StatusCode::BAD_REQUEST, Some("bad_data")), "{body}");
    body["error"].as_str().unwrap().to_owned()
}

const NOTHING: &str = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;

#[tokio::test]
async fn tenants_have_their_own_dialects() {
    let range = [("start", "0"), ("end", "60"), ("step", "15")];
    for (query, refusal) in [
        ("mad_over_time(up[5m])", r#"1:1: parse error: function "mad_over_time" is not enabled"#),
        ("rate(up[1m] anchored)", "1:6: parse error: anchored modifier is experimental and not enabled"),
        ("rate(up[1m * 2])", "1:9: parse error: experimental duration expression is not enabled"),
        ("up + fill(0) up", "1:1: parse error: binop fill modifiers are experimental and not enabled"),
    ] {
        for (path, more) in [("/api/v1/query", &[][..]), ("/api/v1/query_range", &range[..])] {
            let params: Vec<_> = [("query", query)].iter().chain(more).copied().collect();
            let refused = bad_data(ask("plain", path, &params).await);
            assert_eq!(refused, format!("invalid parameter \"query\": {refusal}"));
            assert_eq!(ask("curious", path, &params).await, (StatusCode::OK, NOTHING.to_owned()), "{query}");
        }
        for path in ["/api/v1/format_query", "/api/v1/parse_query", "/api/v1/query_exemplars"] {
            assert!(bad_data(ask("plain", path, &[("query", query)]).await).ends_with(refusal), "{path} {query}");
            assert_eq!(ask("curious", path, &[("query", query)]).await.0, StatusCode::OK, "{path} {query}");
        }
    }
}

#[tokio::test]
async fn parameters_are_refused_in_the_words_of_prometheus() {
    let refused = async |path: &str, params: &[(&str, &str)], why: &str| {
        assert_eq!(bad_data(ask("plain", path, params).await), why, "{params:?}");
    };
    let query = "/api/v1/query";
    refused(query, &[], "invalid parameter \"query\": unknown position: parse error: no expression found in input")
        .await;
    let why = r#"invalid parameter "limit": strconv.Atoi: parsing "x": invalid syntax"#;
    refused(query, &[("limit", "x"), ("time", "x"), ("query", ")")], why).await;
    let why = r#"invalid parameter "limit": strconv.Atoi: parsing "99999999999999999999": value out of range"#;
    refused(query, &[("limit", "99999999999999999999")], why).await;
    refused(query, &[("limit", "-1")], r#"invalid parameter "limit": limit must be non-negative"#).await;
    let why = r#"invalid parameter "time": invalid time value for 'time': cannot parse "x" to a valid timestamp"#;
    refused(query, &[("time", "x"), ("timeout", "x")], why).await;
    let why = r#"invalid parameter "timeout": cannot parse "x" to a valid duration"#;
    refused(query, &[("timeout", "x"), ("lookback_delta", "x")], why).await;
    let why = r#"error parsing lookback delta duration: cannot parse "x" to a valid duration"#;
    refused(query, &[("lookback_delta", "x"), ("query", ")")], why).await;

    let range = "/api/v1/query_range";
    let why = r#"invalid parameter "start": cannot parse "" to a valid timestamp"#;
    refused(range, &[("query", "up")], why).await;
    let why = r#"invalid parameter "end": end timestamp must not be before start time"#;
    refused(range, &[("start", "2"), ("end", "1"), ("step", "x")], why).await;
    let why = "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution \
               (?step=XX)";
    refused(range, &[("start", "0"), ("end", "11001"), ("step", "1"), ("timeout", "x")], why).await;

    let why = "1:2: parse error: unexpected right parenthesis ')'";
    refused("/api/v1/labels", &[("match[]", ")")], why).await;
    refused("/api/v1/series", &[("match[]", ")")], &format!("invalid parameter \"match[]\": {why}")).await;
    refused("/api/v1/series", &[("limit", "x")], "no match[] parameter provided").await;
    refused("/api/v1/label/%ff/values", &[], r#"invalid label name: "\xff""#).await;
    let why = "end timestamp must not be before start timestamp";
    refused("/api/v1/query_exemplars", &[("start", "2"), ("end", "1")], why).await;
}

#[tokio::test]
async fn what_prometheus_allows_is_allowed() {
    let query = |name, value| async move { ask("plain", "/api/v1/query", &[("query", "up"), (name, value)]).await };
    for (name, value) in [("lookback_delta", "0"), ("lookback_delta", "-300"), ("limit", "0"), ("timeout", "1h")] {
        assert_eq!(query(name, value).await, (StatusCode::OK, NOTHING.to_owned()), "{name}={value}");
    }
    let (_, body) = query("stats", "yes").await;
    let warning = r#"value \"yes\" for parameter \"stats\" is deprecated and will be rejected in the next major release, use \"true\" or \"all\""#;
    assert!(body.contains(r#""totalQueryableSamples":0"#) && body.contains(warning), "{body}");
    assert!(!query("stats", "all").await.1.contains("warnings"));

    let backwards = [("start", "2"), ("end", "1")];
    let labels = ask("plain", "/api/v1/labels", &backwards).await;
    assert_eq!(labels, (StatusCode::OK, r#"{"status":"success","data":[]}"#.to_owned()));
    let cut = r#"{"status":"success","data":["a"],"warnings":["results truncated due to limit"]}"#;
    assert_eq!(ask("plain", "/api/v1/labels", &[("limit", "1")]).await.1, cut);
}

#[tokio::test]
async fn there_are_no_rules_and_no_alerts() {
    let rules = ask("plain", "/api/v1/rules", &[("type", "alert")]).await;
    assert_eq!(rules, (StatusCode::OK, r#"{"status":"success","data":{"groups":[]}}"#.to_owned()));
    let alerts = ask("plain", "/api/v1/alerts", &[]).await;
    assert_eq!(alerts, (StatusCode::OK, r#"{"status":"success","data":{"alerts":[]}}"#.to_owned()));
    let request = Request::get("/api/v1/rules").body(Body::empty()).unwrap();
    let response = frontend().router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}
