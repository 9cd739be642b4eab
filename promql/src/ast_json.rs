//! The syntax tree as Prometheus' `parse_query` answers it.

use serde_json::{Value, json};
use skald_model::Matcher;
use std::collections::HashMap;

use crate::ast::{AtModifier, Cardinality, Duration, EdgeMode, Expr, ValueType, VectorMatching, VectorSelector};

impl Expr {
    /// The tree as JSON text. Duration expressions have no number yet: theirs are 0.
    pub fn to_json(&self) -> String {
        // Children before parents, on a stack of its own, and as text: nested values would be dropped by recursion.
        let mut order = vec![self];
        let mut waiting = vec![self];
        while let Some(expr) = waiting.pop() {
            let from = order.len();
            order.extend(expr.children());
            waiting.extend(&order[from..]);
        }
        let mut done: HashMap<*const Expr, String> = HashMap::new();
        for expr in order.into_iter().rev() {
            let text = node(expr, |child| done.remove(&std::ptr::from_ref(child)).unwrap_or_default());
            done.insert(std::ptr::from_ref(expr), text);
        }
        done.remove(&std::ptr::from_ref(self)).unwrap_or_default()
    }
}

/// One node; `child` gives what its children have become.
fn node(expr: &Expr, mut child: impl FnMut(&Expr) -> String) -> String {
    let fields = match expr {
        Expr::Aggregate(e) => vec![
            ("type", text("aggregation")),
            ("op", text(e.op.as_str())),
            ("expr", child(&e.expr)),
            ("param", e.param.as_ref().map_or_else(|| "null".to_owned(), |param| child(param))),
            ("grouping", json!(e.grouping).to_string()),
            ("without", e.without.to_string()),
        ],
        Expr::Binary(e) => vec![
            ("type", text("binaryExpr")),
            ("op", text(e.op.as_str())),
            ("lhs", child(&e.lhs)),
            ("rhs", child(&e.rhs)),
            ("matching", json!(e.matching.as_ref().map(matching)).to_string()),
            ("bool", e.return_bool.to_string()),
        ],
        Expr::Call(e) => {
            let function = json!({
                "name": e.function.name,
                "argTypes": e.function.arg_types.iter().map(|ty| type_name(*ty)).collect::<Vec<_>>(),
                "variadic": e.function.variadic,
                "returnType": type_name(e.function.return_type),
            });
            let args: Vec<String> = e.args.iter().map(child).collect();
            vec![("type", text("call")), ("func", function.to_string()), ("args", format!("[{}]", args.join(",")))]
        }
        Expr::Subquery(e) => {
            let (timestamp, start_or_end) = at(e.at);
            vec![
                ("type", text("subquery")),
                ("expr", child(&e.expr)),
                ("range", ms(Some(&e.range)).to_string()),
                ("offset", ms(e.offset.as_ref()).to_string()),
                ("step", ms(e.step.as_ref()).to_string()),
                ("timestamp", json!(timestamp).to_string()),
                ("startOrEnd", json!(start_or_end).to_string()),
            ]
        }
        Expr::Paren(e) => vec![("type", text("parenExpr")), ("expr", child(&e.expr))],
        Expr::Unary(e) => vec![
            ("type", text("unaryExpr")),
            ("op", text(if e.negative { "-" } else { "+" })),
            ("expr", child(&e.expr)),
        ],
        Expr::Matrix(e) => {
            let mut value = selector(&e.selector, "matrixSelector");
            value["range"] = json!(ms(Some(&e.range)));
            return value.to_string();
        }
        Expr::Number(e) => vec![("type", text("numberLiteral")), ("val", text(&plain(e.value)))],
        Expr::String(e) => vec![("type", text("stringLiteral")), ("val", text(&e.value))],
        Expr::Vector(e) => return selector(e, "vectorSelector").to_string(),
    };
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// A JSON string.
fn text(text: &str) -> String {
    json!(text).to_string()
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

fn selector(selector: &VectorSelector, kind: &str) -> Value {
    let matcher = |m: &Matcher| json!({"name": m.name(), "value": m.value(), "type": m.op().as_str()});
    let (timestamp, start_or_end) = at(selector.at);
    json!({
        "type": kind,
        "name": selector.name.as_deref().unwrap_or_default(),
        "offset": ms(selector.offset.as_ref()),
        "matchers": selector.matchers.iter().map(matcher).collect::<Vec<_>>(),
        "timestamp": timestamp,
        "startOrEnd": start_or_end,
        "anchored": selector.edges == EdgeMode::Anchored,
        "smoothed": selector.edges == EdgeMode::Smoothed,
    })
}

fn at(at: Option<AtModifier>) -> (Option<i64>, Option<&'static str>) {
    match at {
        None => (None, None),
        Some(AtModifier::Timestamp(ms)) => (Some(ms), None),
        Some(AtModifier::Start) => (None, Some("start")),
        Some(AtModifier::End) => (None, Some("end")),
    }
}

fn ms(duration: Option<&Duration>) -> i64 {
    match duration {
        Some(Duration::Literal(ms)) => *ms,
        Some(Duration::Expr(_)) | None => 0,
    }
}

fn type_name(ty: ValueType) -> &'static str {
    match ty {
        ValueType::Scalar => "scalar",
        ValueType::String => "string",
        ValueType::Vector => "vector",
        ValueType::Matrix => "matrix",
    }
}

/// Shortest digits without an exponent.
fn plain(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    value.to_string()
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
}
