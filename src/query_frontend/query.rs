//! `query` and `query_range`.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use skald_model::Quoted;
use skald_promql::ast::{Expr, ValueType};
use skald_promql::eval::{Annotations, AnswerCharge, EvalParams, NodeCost, QueryStats, Value};
use skald_promql::plan::Plan;
use tokio::sync::Semaphore;

use super::QueryFrontend;
use super::answer::{Data, Notes, Part, Success};
use super::explain::{self, Explain};
use super::json::{put_list, put_time};
use super::params::{Params, bad_data, invalid};
use super::parts::Asked;
use super::value::ValueData;
use crate::error::{ErrorKind, ServiceError};
use crate::querier::client::QueryReply;
use crate::tenant::TenantId;

/// Warnings, and infos, that one answer carries.
const MOST_ANNOTATIONS: usize = 10;

/// `/api/v1/query`
pub async fn instant(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    frontend.respond(frontend.instant(request).await).await
}

/// `/api/v1/query_range`
pub async fn range(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    frontend.respond(frontend.range(request).await).await
}

impl QueryFrontend {
    async fn instant(&self, request: Request<Body>) -> Result<Success, ServiceError> {
        let params = Params::read(request).await?;
        let tenant = params.tenant(self.multitenancy_enabled)?;
        params.limit("limit")?;
        let time = params.time("time")?.unwrap_or_else(|| self.runtime.clock.now_ms());
        let bounds = self.bounds(&params)?;
        let expr = self.parsed(&tenant, params.get("query"), bounds.timeout).await?;
        self.run(&params, tenant, expr, bounds, (time, time, 0)).await
    }

    async fn range(&self, request: Request<Body>) -> Result<Success, ServiceError> {
        let params = Params::read(request).await?;
        let tenant = params.tenant(self.multitenancy_enabled)?;
        params.limit("limit")?;
        let start = params.required_time("start")?;
        let end = params.required_time("end")?;
        if end < start {
            return Err(invalid("end", "end timestamp must not be before start time"));
        }
        let step_ns = params.required_duration_ns("step")?;
        if step_ns <= 0 {
            let why = "zero or negative query resolution step widths are not accepted. Try a positive integer";
            return Err(invalid("step", why));
        }
        let points = (i128::from(end) - i128::from(start)) * 1_000_000 / i128::from(step_ns);
        if points > i128::from(self.config.max_points_per_series) {
            let text = format!(
                "exceeded maximum resolution of {} points per timeseries. Try decreasing the query resolution \
                 (?step=XX)",
                thousands(self.config.max_points_per_series)
            );
            return Err(ServiceError::new(ErrorKind::BadData, "too-many-points", text));
        }
        let step = step_ns / 1_000_000;
        if step == 0 {
            return Err(invalid("step", "steps below 1ms are not supported"));
        }
        let bounds = self.bounds(&params)?;
        let expr = self.parsed(&tenant, params.get("query"), bounds.timeout).await?;
        let kind = match expr.value_type() {
            ValueType::Scalar | ValueType::Vector => None,
            ValueType::String => Some("string"),
            ValueType::Matrix => Some("range vector"),
        };
        if let Some(kind) = kind {
            let why = format!("invalid expression type {kind:?} for range query, must be Scalar or instant Vector");
            return Err(invalid("query", why));
        }
        self.run(&params, tenant, expr, bounds, (start, end, step)).await
    }

    /// Read before the query is, so that of several errors the one Prometheus gives comes first.
    fn bounds(&self, params: &Params) -> Result<Bounds, ServiceError> {
        let timeout = match params.duration_ns("timeout")? {
            None => self.config.query_timeout,
            Some(ns) => Duration::from_nanos(ns.max(0) as u64).min(self.config.query_timeout),
        };
        let lookback = params
            .duration_ns("lookback_delta")
            .map_err(|e| bad_data(e.message.replacen(LOOKBACK_INVALID, "error parsing lookback delta duration", 1)))?;
        let lookback = match lookback {
            Some(ns) if ns > 0 => ns / 1_000_000,
            _ => self.config.lookback_delta.as_millis() as i64,
        };
        Ok(Bounds { begun: self.runtime.clock.monotonic(), timeout, lookback })
    }

    async fn run(
        &self,
        params: &Params,
        tenant: TenantId,
        expr: Expr,
        Bounds { begun, timeout, lookback }: Bounds,
        (start, end, step): (i64, i64, i64),
    ) -> Result<Success, ServiceError> {
        let limit = params.limit("limit")?;
        let explain = Explain::of(params)?;
        let stats = params.get("stats");
        let query: Arc<str> = params.get("query").into();
        let eval_params = EvalParams {
            lookback_ms: lookback,
            default_subquery_step_ms: self.promql.default_subquery_step.as_millis() as i64,
            delayed_name_removal: self.limits(&tenant).promql_delayed_name_removal,
            per_step_stats: stats == "all",
            ..EvalParams::range(start, end, step)
        };
        let expr = Arc::new(expr);
        if explain == Explain::Plan {
            let plan = self.planned(&query, &expr, &eval_params, None).await?.plan;
            let reply = nothing(step == 0);
            let explained = self.explained(plan, &query, None).await?;
            return Ok(success(&query, reply, limit, None, Some(explained), (start, step)));
        }
        let asked = Arc::new(Asked {
            tenant,
            query: query.clone(),
            deadline: begun + timeout,
            explain: explain == Explain::Costs,
            at_once: Semaphore::new(self.config.max_parts_at_once),
        });
        let answered = async {
            let cuts = self.cuts(&eval_params, asked.explain);
            if cuts.len() > 1 {
                return Ok((None, self.in_parts(&asked, &expr, &eval_params, cuts).await?));
            }
            let planned = self.planned(&query, &expr, &eval_params, None).await?;
            let plan = asked.explain.then(|| planned.plan.clone());
            Ok::<_, ServiceError>((plan, self.evaluated(&asked, planned).await?))
        };
        let (plan, mut reply) = tokio::select! {
            // What is there at once needs no timer.
            biased;
            answered = answered => answered?,
            () = self.runtime.clock.sleep((begun + timeout).saturating_sub(self.runtime.clock.monotonic())) => {
                return Err(timed_out());
            }
        };
        let took = self.runtime.clock.monotonic() - begun;
        // An answer may come before anybody looks at the timer.
        if took >= timeout {
            return Err(timed_out());
        }
        reply.warnings.extend(stats_warning(stats));
        let stats = (!stats.is_empty()).then_some(took);
        let explained = match plan {
            Some(plan) => Some(self.explained(plan, &query, reply.explain.take()).await?),
            None => None,
        };
        Ok(success(&query, reply, limit, stats, explained, (start, step)))
    }

    /// The plan as the answer shows it.
    async fn explained(
        &self,
        plan: Arc<Plan>,
        query: &Arc<str>,
        costs: Option<Vec<NodeCost>>,
    ) -> Result<Vec<u8>, ServiceError> {
        let query = query.clone();
        Ok(self.runtime.query_pool.run(move || explain::render(&plan, &query, costs.as_deref())).await?)
    }
}

/// The reply to a query that is only planned.
fn nothing(instant: bool) -> QueryReply {
    QueryReply {
        value: if instant { Value::Vector(Vec::new()) } else { Value::Matrix(Vec::new()) },
        annotations: Annotations::default(),
        warnings: Vec::new(),
        stats: QueryStats::default(),
        explain: None,
        charge: None,
    }
}

const LOOKBACK_INVALID: &str = "invalid parameter \"lookback_delta\"";

/// What a request may shorten.
struct Bounds {
    /// When the query's time began.
    begun: Duration,
    timeout: Duration,
    /// Milliseconds.
    lookback: i64,
}

/// What Prometheus says of values of `stats` that it does not know and takes for `true`.
fn stats_warning(stats: &str) -> Option<String> {
    let known = matches!(stats, "" | "true" | "all");
    (!known).then(|| {
        let value = Quoted(stats);
        format!(
            "value {value} for parameter \"stats\" is deprecated and will be rejected in the next major release, use \
             \"true\" or \"all\""
        )
    })
}

pub(super) fn timed_out() -> ServiceError {
    ServiceError::new(ErrorKind::Timeout, "query-timeout", "query timed out in expression evaluation")
}

/// `11000` as `11,000`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The answer to a reply. `stats` is the time the query took, when statistics were asked for.
fn success(
    query: &str,
    reply: QueryReply,
    limit: Option<usize>,
    stats: Option<Duration>,
    explain: Option<Vec<u8>>,
    (start, step): (i64, i64),
) -> Success {
    let mut notes = Notes { warnings: reply.warnings, infos: reply.annotations.infos(query, MOST_ANNOTATIONS) };
    notes.warnings.extend(reply.annotations.warnings(query, MOST_ANNOTATIONS));
    let mut value = reply.value;
    if let Some(limit) = limit {
        let cut = match &mut value {
            Value::Vector(elements) if elements.len() > limit => {
                elements.truncate(limit);
                true
            }
            Value::Matrix(series) if series.len() > limit => {
                series.truncate(limit);
                true
            }
            _ => false,
        };
        if cut {
            notes.truncated();
        }
    }
    let stats = stats.map(|took| Stats { stats: reply.stats, took, start, step });
    let value = ValueData::new(value);
    Success::new(QueryData { value, begun: false, stats, explain, _charge: reply.charge }, notes)
}

/// The data of an answer to a query.
struct QueryData {
    value: ValueData,
    begun: bool,
    stats: Option<Stats>,
    /// The plan and its costs, as JSON.
    explain: Option<Vec<u8>>,
    /// The value counts against the query's budget until it is sent.
    _charge: Option<AnswerCharge>,
}

impl Data for QueryData {
    fn cut(&mut self, room: usize) -> Part {
        let part = self.value.cut(room).ended_by(|| {
            let (stats, explain) = (self.stats.take(), self.explain.take());
            Box::new(move |out| {
                if let Some(Stats { stats, took, start, step }) = &stats {
                    put_stats(out, stats, *took, *start, *step);
                }
                if let Some(explain) = explain {
                    out.extend_from_slice(b",\"explain\":");
                    out.extend_from_slice(&explain);
                }
                out.push(b'}');
            })
        });
        if std::mem::replace(&mut self.begun, true) { part } else { part.after(|out| out.push(b'{')) }
    }

    fn bytes(&self, enough: usize) -> usize {
        let steps = self.stats.as_ref().map_or(0, |stats| stats.stats.queryable_samples_per_step.len());
        self.value.bytes(enough) + self.explain.as_ref().map_or(0, Vec::len) + 24 * steps
    }
}

/// What the `stats` parameter adds.
struct Stats {
    stats: QueryStats,
    took: Duration,
    start: i64,
    step: i64,
}

fn put_stats(out: &mut Vec<u8>, stats: &QueryStats, took: Duration, start: i64, step: i64) {
    let seconds = took.as_secs_f64();
    let _ = write!(
        out,
        ",\"stats\":{{\"timings\":{{\"evalTotalTime\":{seconds:.9},\"resultSortTime\":0,\"queryPreparationTime\":0,\
         \"innerEvalTime\":{seconds:.9},\"execQueueTime\":0,\"execTotalTime\":{seconds:.9}}},\"samples\":{{"
    );
    if !stats.queryable_samples_per_step.is_empty() {
        out.extend_from_slice(b"\"totalQueryableSamplesPerStep\":");
        put_list(out, stats.queryable_samples_per_step.iter().enumerate(), |out, (i, samples)| {
            out.push(b'[');
            put_time(out, start + i as i64 * step);
            let _ = write!(out, ",{samples}]");
        });
        out.push(b',');
    }
    let _ = write!(
        out,
        "\"totalQueryableSamples\":{},\"samplesRead\":{},\"peakSamples\":{}}}}}",
        stats.queryable_samples, stats.samples_read, stats.peak_samples
    );
}
