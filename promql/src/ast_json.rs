//! The syntax tree as Prometheus' `parse_query` answers it.

use serde_json::{Value, json};
use skald_model::Matcher;

use crate::ast::{
    AtModifier, Cardinality, Duration, DurationExpr, EdgeMode, Expr, ValueType, VectorMatching, VectorSelector,
};
use crate::format::PlainFloat;

impl Expr {
    /// The tree as JSON text. A duration that is an expression has no length yet: its number is 0, and the expression
    /// stands beside it.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        write(self, &mut out);
        out
    }
}

/// Appends one node with all below it. Recursive: a tree has at most [`crate::parse::MAX_DEPTH`] levels.
fn write(expr: &Expr, out: &mut String) {
    write_own_fields(expr, out);
    match expr {
        Expr::Aggregate(e) => {
            write_child("expr", Some(&e.expr), out);
            write_child("param", e.param.as_deref(), out);
        }
        Expr::Binary(e) => {
            write_child("lhs", Some(&e.lhs), out);
            write_child("rhs", Some(&e.rhs), out);
        }
        Expr::Call(e) => {
            out.push_str(",\"args\":[");
            for (i, arg) in e.args.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                write(arg, out);
            }
            out.push(']');
        }
        Expr::Subquery(e) => write_child("expr", Some(&e.expr), out),
        Expr::Paren(e) => write_child("expr", Some(&e.expr), out),
        Expr::Unary(e) => write_child("expr", Some(&e.expr), out),
        Expr::Matrix(_) | Expr::Number(_) | Expr::String(_) | Expr::Vector(_) => {}
    }
    out.push('}');
}

fn write_child(name: &str, child: Option<&Expr>, out: &mut String) {
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("\":");
    match child {
        Some(child) => write(child, out),
        None => out.push_str("null"),
    }
}

/// Appends the start of a node: its fields that are not nodes.
fn write_own_fields(expr: &Expr, out: &mut String) {
    out.push_str("{\"type\":\"");
    out.push_str(kind(expr));
    out.push('"');
    let Value::Object(fields) = own_fields(expr) else { return };
    for (name, value) in fields {
        out.push_str(",\"");
        out.push_str(&name);
        out.push_str("\":");
        out.push_str(&value.to_string());
    }
}

fn kind(expr: &Expr) -> &'static str {
    match expr {
        Expr::Aggregate(_) => "aggregation",
        Expr::Binary(_) => "binaryExpr",
        Expr::Call(_) => "call",
        Expr::Subquery(_) => "subquery",
        Expr::Paren(_) => "parenExpr",
        Expr::Unary(_) => "unaryExpr",
        Expr::Matrix(_) => "matrixSelector",
        Expr::Number(_) => "numberLiteral",
        Expr::String(_) => "stringLiteral",
        Expr::Vector(_) => "vectorSelector",
    }
}

fn own_fields(expr: &Expr) -> Value {
    match expr {
        Expr::Aggregate(e) => json!({"op": e.op.as_str(), "grouping": e.grouping, "without": e.without}),
        Expr::Binary(e) => json!({
            "op": e.op.as_str(),
            "matching": e.matching.as_ref().map(matching),
            "bool": e.return_bool,
        }),
        Expr::Call(e) => json!({"func": {
            "name": e.function.name,
            "argTypes": e.function.arg_types.iter().copied().map(ValueType::as_str).collect::<Vec<_>>(),
            "variadic": e.function.variadic,
            "returnType": e.function.return_type.as_str(),
        }}),
        Expr::Subquery(e) => json!({
            "range": ms(Some(&e.range)),
            "rangeExpr": duration_of(Some(&e.range)),
            "offset": ms(e.offset.as_ref()),
            "offsetExpr": duration_of(e.offset.as_ref()),
            "step": ms(e.step.as_ref()),
            "stepExpr": duration_of(e.step.as_ref()),
            "timestamp": timestamp(e.at),
            "startOrEnd": start_or_end(e.at),
        }),
        Expr::Unary(e) => json!({"op": if e.negative { "-" } else { "+" }}),
        Expr::Matrix(e) => {
            let mut fields = selector(&e.selector);
            fields["range"] = json!(ms(Some(&e.range)));
            fields["rangeExpr"] = duration_of(Some(&e.range));
            fields
        }
        Expr::Number(e) => json!({"val": PlainFloat(e.value).to_string()}),
        Expr::String(e) => json!({"val": e.value}),
        Expr::Vector(e) => selector(e),
        Expr::Paren(_) => json!({}),
    }
}

fn matching(matching: &VectorMatching) -> Value {
    json!({
        "card": match matching.cardinality {
            Cardinality::OneToOne => "one-to-one",
            Cardinality::ManyToOne => "many-to-one",
            Cardinality::OneToMany => "one-to-many",
            Cardinality::ManyToMany => "many-to-many",
        },
        "labels": matching.labels,
        "on": matching.on,
        "include": matching.include,
        "fillValues": {"lhs": matching.fill_left, "rhs": matching.fill_right},
    })
}

fn selector(selector: &VectorSelector) -> Value {
    let matcher = |m: &Matcher| json!({"name": m.name(), "value": m.value(), "type": m.op().as_str()});
    json!({
        "name": selector.name.as_deref().unwrap_or_default(),
        "offset": ms(selector.offset.as_ref()),
        "offsetExpr": duration_of(selector.offset.as_ref()),
        "matchers": selector.matchers.iter().map(matcher).collect::<Vec<_>>(),
        "timestamp": timestamp(selector.at),
        "startOrEnd": start_or_end(selector.at),
        "anchored": selector.edges == EdgeMode::Anchored,
        "smoothed": selector.edges == EdgeMode::Smoothed,
    })
}

fn timestamp(at: Option<AtModifier>) -> Option<i64> {
    match at {
        Some(AtModifier::Timestamp(ms)) => Some(ms),
        _ => None,
    }
}

fn start_or_end(at: Option<AtModifier>) -> Option<&'static str> {
    match at {
        Some(AtModifier::Start) => Some("start"),
        Some(AtModifier::End) => Some("end"),
        _ => None,
    }
}

fn ms(duration: Option<&Duration>) -> i64 {
    match duration {
        Some(Duration::Literal(ms)) => *ms,
        Some(Duration::Expr(_)) | None => 0,
    }
}

/// The expression of a duration that is one. They are few levels deep: [`crate::parse::MAX_DURATION_DEPTH`].
fn duration_of(duration: Option<&Duration>) -> Value {
    match duration {
        Some(Duration::Expr(expr)) => duration_expr(expr, false),
        Some(Duration::Literal(_)) | None => Value::Null,
    }
}

fn duration_expr(expr: &DurationExpr, wrapped: bool) -> Value {
    let (op, lhs, rhs) = match expr {
        DurationExpr::Number { seconds, is_duration, .. } => {
            let number = json!({
                "type": "numberLiteral",
                "val": PlainFloat(*seconds).to_string(),
                "duration": is_duration,
            });
            if !wrapped {
                return number;
            }
            // Prometheus has no other way to put parentheses around a number.
            return json!({"type": "durationExpr", "op": "+", "lhs": null, "rhs": number, "wrapped": true});
        }
        DurationExpr::Paren(expr, _) => return duration_expr(expr, true),
        DurationExpr::Step(_) => ("step", None, None),
        DurationExpr::Range(_) => ("range", None, None),
        DurationExpr::Unary { negative, expr, .. } => (if *negative { "-" } else { "+" }, None, Some(expr)),
        DurationExpr::Binary { op, lhs, rhs, .. } => (op.as_str(), Some(lhs), Some(rhs)),
        DurationExpr::MinMax { max, lhs, rhs, .. } => (if *max { "max_of" } else { "min_of" }, Some(lhs), Some(rhs)),
    };
    json!({
        "type": "durationExpr",
        "op": op,
        "lhs": lhs.map(|e| duration_expr(e, false)),
        "rhs": rhs.map(|e| duration_expr(e, false)),
        "wrapped": wrapped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{ParseOptions, parse_expr};

    #[test]
    fn trees_look_like_prometheus_own() {
        let expr = parse_expr("sum by (a) (rate(x{b=\"c\"}[5m])) > 1", &ParseOptions::ALL).unwrap();
        let tree: Value = serde_json::from_str(&expr.to_json()).unwrap();
        assert_eq!((&tree["type"], &tree["op"]), (&json!("binaryExpr"), &json!(">")));
        assert_eq!(tree["matching"], Value::Null);
        assert_eq!(tree["rhs"], json!({"type": "numberLiteral", "val": "1"}));
        let call = &tree["lhs"]["expr"];
        assert_eq!(call["func"]["argTypes"], json!(["matrix"]));
        assert_eq!(call["args"][0]["range"], json!(300_000));
        assert_eq!(call["args"][0]["matchers"][1], json!({"name": "__name__", "value": "x", "type": "="}));
    }

    #[track_caller]
    fn check(query: &str, expected: Value) {
        let expr = parse_expr(query, &ParseOptions::ALL).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&expr.to_json()).unwrap(), expected, "{query}");
    }

    #[test]
    fn every_node_has_all_its_fields() {
        let x = json!([{"name": "__name__", "value": "x", "type": "="}]);
        let vector = json!({
            "type": "vectorSelector", "name": "x", "offset": 0, "offsetExpr": null, "matchers": x, "timestamp": null,
            "startOrEnd": null, "anchored": false, "smoothed": false,
        });
        check("x", vector.clone());
        check("(-x)", json!({"type": "parenExpr", "expr": {"type": "unaryExpr", "op": "-", "expr": vector}}));
        check("'a\\n'", json!({"type": "stringLiteral", "val": "a\n"}));
        check("-1e-7", json!({"type": "numberLiteral", "val": "-0.0000001"}));
        check(
            "x[5m] smoothed offset -1m @ 2.5",
            json!({
                "type": "matrixSelector", "name": "x", "range": 300_000, "rangeExpr": null, "offset": -60_000,
                "offsetExpr": null, "matchers": x, "timestamp": 2500, "startOrEnd": null, "anchored": false,
                "smoothed": true,
            }),
        );
        check(
            "x[5m:] @ end()",
            json!({
                "type": "subquery", "expr": vector, "range": 300_000, "rangeExpr": null, "offset": 0,
                "offsetExpr": null, "step": 0, "stepExpr": null, "timestamp": null, "startOrEnd": "end",
            }),
        );
        check(
            "topk without (a) (2, x)",
            json!({
                "type": "aggregation", "op": "topk", "expr": vector, "param": {"type": "numberLiteral", "val": "2"},
                "grouping": ["a"], "without": true,
            }),
        );
        check(
            "x + on (a) group_left (b) fill_right (2.5) x",
            json!({
                "type": "binaryExpr", "op": "+", "lhs": vector, "rhs": vector, "bool": false,
                "matching": {
                    "card": "many-to-one", "labels": ["a"], "on": true, "include": ["b"],
                    "fillValues": {"lhs": null, "rhs": 2.5},
                },
            }),
        );
        let variadic = json!({"name": "hour", "argTypes": ["vector"], "variadic": 1, "returnType": "vector"});
        check("hour()", json!({"type": "call", "func": variadic, "args": []}));
    }

    #[test]
    fn duration_expressions_stand_beside_their_number() {
        let expr = parse_expr("x[(5m):-step() * 2]", &ParseOptions::ALL).unwrap();
        let tree: Value = serde_json::from_str(&expr.to_json()).unwrap();
        assert_eq!((&tree["range"], &tree["step"]), (&json!(0), &json!(0)));
        let five = json!({"type": "numberLiteral", "val": "300", "duration": true});
        let wrapped = json!({"type": "durationExpr", "op": "+", "lhs": null, "rhs": five, "wrapped": true});
        assert_eq!(tree["rangeExpr"], wrapped);
        let step = json!({"type": "durationExpr", "op": "step", "lhs": null, "rhs": null, "wrapped": false});
        let minus = json!({"type": "durationExpr", "op": "-", "lhs": null, "rhs": step, "wrapped": false});
        let two = json!({"type": "numberLiteral", "val": "2", "duration": false});
        let times = json!({"type": "durationExpr", "op": "*", "lhs": minus, "rhs": two, "wrapped": false});
        assert_eq!(tree["stepExpr"], times);
    }
}
