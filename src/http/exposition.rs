//! `/metrics` in the two text formats a scraper may ask for.

use axum::body::Body;
use axum::response::Response;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use prometheus_client::registry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of `registry`: OpenMetrics to who accepts it, else the older text format, which every tool reads.
pub fn expose(registry: &Registry, request: &HeaderMap) -> Response {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, registry).is_err() {
        tracing::error!("a metric cannot be written");
    }
    let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|v| v.contains("application/openmetrics-text"));
    let (content_type, text) = match request.get_all(ACCEPT).iter().any(accepts) {
        true => (OPEN_METRICS, text),
        false => (PROMETHEUS_TEXT, prometheus_text(&text)),
    };
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Turns OpenMetrics into the text format 0.0.4. There a counter's family is named as its samples are, with `_total`;
/// `unknown` is `untyped`; an info metric is a gauge; and units and the end mark do not exist. (Exemplars do
/// not either; our metrics have none.)
fn prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The description comes before the type, which decides the name that both carry.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, help)| help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some(help) = help.take() {
                text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Unit;

    #[test]
    fn the_older_format_has_its_own_names() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc();
        registry.register("requests", "Requests", counter);
        registry.register_with_unit("size", "Size", Unit::Bytes, Gauge::<i64>::default());
        registry.register("build", "Build", Info::new(vec![("version", "1")]));
        let text = |accept: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.extend(accept.map(|accept| (ACCEPT, HeaderValue::from_static(accept))));
            expose(&registry, &headers)
        };
        let mut open_metrics = String::new();
        prometheus_client::encoding::text::encode(&mut open_metrics, &registry).unwrap();
        assert_eq!(
            prometheus_text(&open_metrics),
            "# HELP requests_total Requests.\n# TYPE requests_total counter\nrequests_total 1\n\
             # HELP size_bytes Size.\n# TYPE size_bytes gauge\nsize_bytes 0\n\
             # HELP build_info Build.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n"
        );
        assert_eq!(text(None).headers()[CONTENT_TYPE], PROMETHEUS_TEXT);
        assert_eq!(text(Some("text/plain")).headers()[CONTENT_TYPE], PROMETHEUS_TEXT);
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(text(Some(prometheus)).headers()[CONTENT_TYPE], OPEN_METRICS);
    }
}
