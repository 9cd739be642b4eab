//! Whether both sides said the same.

use std::collections::BTreeMap;

use serde_json::Value;

use super::facts::Precision;

/// One side's answer: status and parsed body.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub body: Value,
    pub text: String,
}

impl Reply {
    pub fn is_error(&self) -> bool {
        self.body["status"] != "success"
    }

    /// Whether there is something in it.
    pub fn is_empty(&self) -> bool {
        let result = &self.body["data"]["result"];
        result.as_array().is_none_or(Vec::is_empty)
    }

    /// Prometheus ran out of memory or time, or lost its way.
    pub fn is_overload(&self) -> bool {
        self.status == 503 || self.text.contains("would load too many samples")
    }
}

/// How a query's answers are compared.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub precision: Precision,
    /// Whether the order of a vector's elements is defined.
    pub ordered: bool,
    /// Whether 2.42 sorts a matrix, as 3.x always does.
    pub sorted: bool,
}

/// The first difference between the answers.
pub fn difference(old: &Reply, new: &Reply, terms: Terms) -> Option<String> {
    if old.status != new.status {
        return Some(format!("status {} and {}", old.status, new.status));
    }
    if old.is_error() {
        if old.body["errorType"] != new.body["errorType"] {
            return Some(format!("error types {} and {}", old.body["errorType"], new.body["errorType"]));
        }
        let message = |reply: &Reply| reworded(reply.body["error"].as_str().unwrap_or_default());
        let (old, new) = (message(old), message(new));
        return (old != new).then(|| format!("errors {old:?} and {new:?}"));
    }
    let (old, new) = (&old.body["data"], &new.body["data"]);
    if old["resultType"] != new["resultType"] {
        return Some(format!("result types {} and {}", old["resultType"], new["resultType"]));
    }
    let (old, new) = (&old["result"], &new["result"]);
    let kind = if old[0]["metric"].is_object() || new[0]["metric"].is_object() { "series" } else { "one" };
    if kind == "one" {
        return pairs(old, new, terms);
    }
    let by_labels = |value: &Value| -> BTreeMap<String, Value> {
        value.as_array().into_iter().flatten().map(|one| (labels(&one["metric"]), one.clone())).collect()
    };
    let (olds, news) = (by_labels(old), by_labels(new));
    if let Some(missing) = olds.keys().find(|key| !news.contains_key(*key)) {
        return Some(format!("only Prometheus has {missing}"));
    }
    if let Some(extra) = news.keys().find(|key| !olds.contains_key(*key)) {
        return Some(format!("only Skald has {extra}"));
    }
    let count = |value: &Value| value.as_array().map_or(0, Vec::len);
    if count(old) != count(new) || count(new) != news.len() {
        return Some(format!("{} and {} elements", count(old), count(new)));
    }
    for (key, old) in &olds {
        let new = &news[key];
        for field in ["value", "histogram", "values", "histograms"] {
            if let Some(what) = samples(&old[field], &new[field], field, terms) {
                return Some(format!("{key}: {what}"));
            }
        }
    }
    let is_matrix = !old[0]["value"].is_array() && !old[0]["histogram"].is_array();
    if is_matrix && !terms.sorted {
        return None;
    }
    if is_matrix {
        let order = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().map(|one| labels(&one["metric"])).collect()
        };
        return (order(old) != order(new)).then(|| "the series' order".to_owned());
    }
    if terms.ordered {
        // Equal values come as they like.
        let values = |value: &Value| -> Vec<Value> {
            value.as_array().into_iter().flatten().map(|one| one["value"][1].clone()).collect()
        };
        let (old, new) = (values(old), values(new));
        let differs = old.iter().zip(&new).any(|(old, new)| !same_number(old, new, terms.precision));
        return differs.then(|| "the elements' order".to_owned());
    }
    None
}

/// A label set with its labels in order.
fn labels(metric: &Value) -> String {
    let sorted: BTreeMap<_, _> = metric.as_object().into_iter().flatten().collect();
    format!("{sorted:?}")
}

fn samples(old: &Value, new: &Value, field: &str, terms: Terms) -> Option<String> {
    if old.is_null() && new.is_null() {
        return None;
    }
    if old.is_null() || new.is_null() {
        return Some(format!("only one has {field}"));
    }
    if field == "value" || field == "histogram" {
        return pairs(old, new, terms);
    }
    let (old, new) = (old.as_array()?, new.as_array()?);
    let time = |pair: &Value| pair[0].as_f64();
    if let Some(only) = old.iter().find(|one| !new.iter().any(|other| time(one) == time(other))) {
        return Some(format!("only Prometheus has {only}"));
    }
    if let Some(only) = new.iter().find(|one| !old.iter().any(|other| time(one) == time(other))) {
        return Some(format!("only Skald has {only}"));
    }
    old.iter().zip(new).find_map(|(old, new)| pairs(old, new, terms))
}

/// A timestamp and a value.
fn pairs(old: &Value, new: &Value, terms: Terms) -> Option<String> {
    if old[0].as_f64() != new[0].as_f64() {
        return Some(format!("times {} and {}", old[0], new[0]));
    }
    let equal = if old[1].is_object() || new[1].is_object() {
        same_histogram(&old[1], &new[1], terms.precision)
    } else {
        same_number(&old[1], &new[1], terms.precision)
    };
    (!equal).then(|| format!("{old} and {new}"))
}

fn same_histogram(old: &Value, new: &Value, precision: Precision) -> bool {
    let buckets = |value: &Value| value["buckets"].as_array().cloned().unwrap_or_default();
    let (olds, news) = (buckets(old), buckets(new));
    same_number(&old["count"], &new["count"], precision)
        && same_number(&old["sum"], &new["sum"], precision)
        && olds.len() == news.len()
        && olds.iter().zip(&news).all(|(old, new)| {
            old[0] == new[0] && old[1] == new[1] && old[2] == new[2] && same_number(&old[3], &new[3], precision)
        })
}

/// Equal as text or, where rounding may differ, equal but for that. NaN and the infinities are always compared as text.
fn same_number(old: &Value, new: &Value, precision: Precision) -> bool {
    if old == new {
        return true;
    }
    let infinite = |value: &Value| value.as_str().is_some_and(|text| text.ends_with("Inf"));
    let huge =
        |value: &Value| value.as_str().and_then(|text| text.parse::<f64>().ok()).is_some_and(|n| n.abs() > 4e307);
    if precision >= Precision::Near && infinite(old) && huge(new) {
        // Go's `exp` on amd64 ends a bit below the largest number.
        return true;
    }
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<f64>().ok()).filter(|n| n.is_finite());
    let (Some(old), Some(new)) = (number(old), number(new)) else { return false };
    let apart = (old - new).abs();
    let size = old.abs().max(new.abs());
    match precision {
        Precision::Eighths { .. } | Precision::Exact => false,
        Precision::Near => apart <= 1e-12 * size,
        Precision::Rough => apart <= 1e-9 * size.max(1.0),
    }
}

/// A message without what may be named in another order.
fn reworded(message: &str) -> String {
    // 2.42 does not say so of range queries.
    let message = message.trim_start_matches("invalid parameter \"query\": ");
    // Which of several duplicates is found first depends on a hash map.
    if let Some((before, _)) = message.split_once("found duplicate series for the match group") {
        let side = if message.contains("on the left hand-side") { "left" } else { "right" };
        return format!("{before}found duplicate series on the {side}");
    }
    let mut out = String::new();
    let mut depth = 0;
    for c in message.chars() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                out.push_str("{}");
            }
            c if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out
}

/// A refusal's words without the query's own.
pub fn kind_of_refusal(reply: &Reply) -> String {
    let message = reworded(reply.body["error"].as_str().unwrap_or_default());
    let words = message.split(": ").filter(|part| !part.starts_with(|c: char| c.is_ascii_digit()));
    words.map(|part| part.split('"').step_by(2).collect::<Vec<_>>().join("…")).collect::<Vec<_>>().join(": ")
}
