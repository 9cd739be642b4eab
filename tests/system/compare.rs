//! Whether two answers of the query API say the same.

use std::collections::BTreeMap;

use serde_json::Value;

/// Numbers compare with a relative tolerance of 1e-9; NaN equals NaN, and the sign of zero counts.
fn same_number(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) if a == 0.0 || b == 0.0 => a == b && a.is_sign_negative() == b.is_sign_negative(),
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()),
        _ => false,
    }
}

/// Compares two parts of an answer; text that is a number is compared as one.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => same_number(a, b),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// A vector by labels; or the values alone where their order counts.
pub fn same_data(query: &str, path: &str, expected: &Value, found: &Value) -> bool {
    let sorted = |value: &Value| -> Vec<String> {
        let mut texts: Vec<String> = value.as_array().into_iter().flatten().map(canonical).collect();
        texts.sort();
        texts
    };
    if !path.contains("/query") {
        return sorted(expected) == sorted(found);
    }
    if expected["resultType"] != found["resultType"] {
        return false;
    }
    let (expected, found) = (&expected["result"], &found["result"]);
    let by_labels = |value: &Value| -> BTreeMap<String, Value> {
        value.as_array().into_iter().flatten().map(|one| (canonical(&one["metric"]), one.clone())).collect()
    };
    let is_vector = expected.as_array().is_some_and(|all| all.iter().all(|one| one["metric"].is_object()));
    if !is_vector {
        return same(expected, found);
    }
    let (a, b) = (by_labels(expected), by_labels(found));
    let equal = a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)));
    let ordered = ["sort", "topk", "bottomk"].iter().any(|name| query.starts_with(name));
    let values = |value: &Value| -> Vec<Value> {
        value.as_array().into_iter().flatten().map(|one| one["value"][1].clone()).collect()
    };
    equal && (!ordered || same(&Value::Array(values(expected)), &Value::Array(values(found))))
}

/// An object with its keys in order.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().map(|(k, v)| (k, v.to_string())).collect();
            format!("{sorted:?}")
        }
        other => other.to_string(),
    }
}
