//! `labels`, label values, `series`, `metadata`, `query_exemplars`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use skald_model::{MetricMetadata, QuotedBytes};
use skald_promql::parse::parse_expr_while;

use super::QueryFrontend;
use super::answer::{Item, List, Notes, Success, Whole};
use super::json::{put_exemplar, put_labels, put_list, put_str};
use super::params::{Params, bad_data};
use crate::error::{ErrorKind, ServiceError};
use crate::select::{LabelRequest, SeriesExemplars};

/// `/api/v1/labels`
pub async fn names(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    frontend.respond(frontend.in_time(frontend.names(request)).await).await
}

/// `/api/v1/label/{name}/values`
pub async fn values(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    frontend.respond(frontend.in_time(frontend.values(request)).await).await
}

/// `/api/v1/series`
pub async fn series(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    frontend.respond(frontend.in_time(frontend.series(request)).await).await
}

/// `/api/v1/metadata`
pub async fn metadata(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    frontend.respond(frontend.in_time(frontend.metadata(request)).await).await
}

/// `/api/v1/query_exemplars`
pub async fn exemplars(State(frontend): State<Arc<QueryFrontend>>, request: Request<Body>) -> Response {
    frontend.respond(frontend.in_time(frontend.exemplars(request)).await).await
}

impl QueryFrontend {
    /// Waits for an answer at most as long as a query may take.
    pub(super) async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        let timeout: Duration = self.config.query_timeout;
        tokio::select! {
            answer = answer => answer,
            () = self.runtime.clock.sleep(timeout) => {
                let text = format!("the request took longer than {timeout:?}");
                Err(ServiceError::new(ErrorKind::Timeout, "query-timeout", text))
            }
        }
    }

    /// Until when a request that begins now is waited for.
    fn deadline(&self) -> Option<Duration> {
        Some(self.runtime.clock.monotonic().saturating_add(self.config.query_timeout))
    }

    async fn names(&self, request: Request<Body>) -> Result<Success, ServiceError> {
        let params = Params::read(request).await?;
        let tenant = params.tenant(self.multitenancy_enabled)?;
        let limit = params.limit("limit")?;
        let labels = LabelRequest::new(self.optional_selectors(&params).await?, params.label_range()?)
            .limited(limit)
            .until(self.deadline());
        if labels.range.is_empty() {
            return Ok(strings(Vec::new(), limit));
        }
        let names = self.querier().label_names(&tenant, labels).await?;
        Ok(strings(names, limit))
    }

    async fn values(&self, request: Request<Body>) -> Result<Success, ServiceError> {
        let name = label_name(request.uri().path());
        let params = Params::read(request).await?;
        let tenant = params.tenant(self.multitenancy_enabled)?;
        let name = name.map_err(|bytes| bad_data(format!("invalid label name: {}", QuotedBytes(&bytes))))?;
        let limit = params.limit("limit")?;
        let labels = LabelRequest::new(self.optional_selectors(&params).await?, params.label_range()?)
            .limited(limit)
            .until(self.deadline());
        if labels.range.is_empty() {
            return Ok(strings(Vec::new(), limit));
        }
        let values = self.querier().label_values(&tenant, &name, labels).await?;
        Ok(strings(values, limit))
    }

    async fn series(&self, request: Request<Body>) -> Result<Success, ServiceError> {
        let params = Params::read(request).await?;
        let tenant = params.tenant(self.multitenancy_enabled)?;
        if params.all("match[]").next().is_none() {
            return Err(bad_data("no match[] parameter provided"));
        }
        let limit = params.limit("limit")?;
        let labels = LabelRequest::new(self.selectors(&params).await?, params.label_range()?)
            .limited(limit)
            .until(self.deadline());
        let series = if labels.range.is_empty() { Vec::new() } else { self.querier().series(&tenant, labels).await? };
        let mut notes = Notes::default();
        Ok(Success::new(List::limited(series, limit, &mut notes), notes))
    }

    async fn metadata(&self, request: Request<Body>) -> Result<Success, ServiceError> {
        let params = Params::read(request).await?;
        let tenant = params.tenant(self.multitenancy_enabled)?;
        let limit = params.limit("limit")?.unwrap_or(usize::MAX);
        let per_metric = params.limit("limit_per_metric")?.unwrap_or(usize::MAX);
        let metric = Some(params.get("metric")).filter(|metric| !metric.is_empty());
        let metadata = self.querier().metadata(&tenant, metric).await?;
        let whole = Whole::new(move |out: &mut Vec<u8>| {
            let mut by_metric: BTreeMap<&str, Vec<&MetricMetadata>> = BTreeMap::new();
            for one in &metadata {
                by_metric.entry(&one.metric).or_default().push(one);
            }
            out.push(b'{');
            for (i, (metric, families)) in by_metric.iter().take(limit).enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                put_str(out, metric);
                out.push(b':');
                put_list(out, families.iter().take(per_metric), |out, family| {
                    out.extend_from_slice(b"{\"type\":");
                    put_str(out, family.metric_type.as_str());
                    out.extend_from_slice(b",\"help\":");
                    put_str(out, &family.help);
                    out.extend_from_slice(b",\"unit\":");
                    put_str(out, &family.unit);
                    out.push(b'}');
                });
            }
            out.push(b'}');
        });
        Ok(Success::new(whole, Notes::default()))
    }

    async fn exemplars(&self, request: Request<Body>) -> Result<Success, ServiceError> {
        let params = Params::read(request).await?;
        let tenant = params.tenant(self.multitenancy_enabled)?;
        let range = params.label_range()?;
        if range.is_empty() {
            return Err(bad_data("end timestamp must not be before start timestamp"));
        }
        let options = self.limits(&tenant).parse_options();
        let query = params.get("query").to_owned();
        let expr = self.on_pool(move |go_on| parse_expr_while(&query, &options, go_on)).await?.map_err(bad_data)?;
        let selectors: Vec<_> = expr.selectors().map(|selector| selector.matchers.clone()).collect();
        let series = if selectors.is_empty() {
            Vec::new()
        } else {
            self.querier().exemplars(&tenant, LabelRequest::new(selectors, range).until(self.deadline())).await?
        };
        Ok(Success::new(List::new(series), Notes::default()))
    }
}

impl Item for SeriesExemplars {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"seriesLabels\":");
        put_labels(out, &self.labels);
        out.extend_from_slice(b",\"exemplars\":");
        put_list(out, &self.exemplars, put_exemplar);
        out.push(b'}');
    }

    fn bytes(&self) -> usize {
        let exemplars = self.exemplars.iter().map(|exemplar| 64 + exemplar.labels.bytes());
        32 + self.labels.bytes() + exemplars.sum::<usize>()
    }
}

fn strings(texts: Vec<String>, limit: Option<usize>) -> Success {
    let mut notes = Notes::default();
    Success::new(List::limited(texts, limit, &mut notes), notes)
}

/// The label name in `…/label/<name>/values`, or its bytes if they are no label name.
fn label_name(path: &str) -> Result<String, Vec<u8>> {
    let encoded = path.strip_suffix("/values").unwrap_or(path);
    let encoded = encoded.rsplit('/').next().unwrap_or_default();
    match String::from_utf8(percent_decoded(encoded)) {
        Ok(name) if !name.is_empty() => Ok(unescape_label_name(&name)),
        Ok(name) => Err(name.into_bytes()),
        Err(error) => Err(error.into_bytes()),
    }
}

/// Bytes written as `%` and two hexadecimal digits; a `%` that is followed by something else stands for itself.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escape = after.get(..2).filter(|_| *first == b'%');
        let byte = escape.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    out
}

/// A label name as a URL carries it: `U__` introduces Prometheus' escaping of names outside `[a-zA-Z0-9_]`, where `__`
/// stands for an underscore and `_1F600_` for the character of that number. A name that is not so escaped is itself.
fn unescape_label_name(name: &str) -> String {
    let unescape = || {
        let mut rest = name.strip_prefix("U__")?;
        let mut out = String::new();
        while let Some(at) = rest.find('_') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let (code, after) = rest.split_once('_')?;
            if code.is_empty() {
                out.push('_');
            } else {
                out.push(char::from_u32(u32::from_str_radix(code, 16).ok()?)?);
            }
            rest = after;
        }
        out.push_str(rest);
        Some(out)
    };
    unescape().unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_names_are_read_from_the_path() {
        let name = |path: &str| label_name(path).map_err(|bytes| QuotedBytes(&bytes).to_string());
        assert_eq!(name("/api/v1/label/job/values"), Ok("job".to_owned()));
        assert_eq!(name("/api/v1/label/a%2Fb%20c+%e2%98%ba%/values"), Ok("a/b c+☺%".to_owned()));
        assert_eq!(name("/api/v1/label/%ffx/values"), Err(r#""\xffx""#.to_owned()));
        assert_eq!(name("/api/v1/label//values"), Err(r#""""#.to_owned()));
    }

    #[test]
    fn label_names_are_unescaped() {
        for (name, expected) in [
            ("job", "job"),
            ("U__http_2e_status", "http.status"),
            ("U__a__b", "a_b"),
            ("U___1F600_", "😀"),
            ("U__broken_", "U__broken_"),
            ("http.status", "http.status"),
        ] {
            assert_eq!(unescape_label_name(name), expected);
        }
    }
}
