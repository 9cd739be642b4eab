//! Random queries for property tests.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;

use crate::ast::{Duration, DurationExpr, Expr, Span, VectorSelector};

/// The same `cases` random cases every time.
pub(crate) fn seeded(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() }
}

/// `expr` without the positions of its nodes, and with the matchers of each selector sorted.
pub(crate) fn without_places(mut expr: Expr) -> Expr {
    strip(&mut expr);
    expr
}

fn strip(expr: &mut Expr) {
    let none = Span::default();
    match expr {
        Expr::Aggregate(e) => {
            e.span = none;
            strip(&mut e.expr);
            e.param.iter_mut().for_each(|param| strip(param));
        }
        Expr::Binary(e) => {
            (e.span, e.op_span) = (none, none);
            strip(&mut e.lhs);
            strip(&mut e.rhs);
        }
        Expr::Call(e) => {
            e.span = none;
            e.args.iter_mut().for_each(strip);
        }
        Expr::Matrix(e) => {
            e.span = none;
            strip_selector(&mut e.selector);
            strip_duration(Some(&mut e.range));
        }
        Expr::Subquery(e) => {
            e.span = none;
            strip(&mut e.expr);
            strip_duration(Some(&mut e.range));
            strip_duration(e.step.as_mut());
            strip_duration(e.offset.as_mut());
        }
        Expr::Number(e) => e.span = none,
        Expr::String(e) => e.span = none,
        Expr::Paren(e) => {
            e.span = none;
            strip(&mut e.expr);
        }
        Expr::Unary(e) => {
            e.span = none;
            strip(&mut e.expr);
        }
        Expr::Vector(e) => strip_selector(e),
    }
}

fn strip_selector(selector: &mut VectorSelector) {
    selector.span = Span::default();
    strip_duration(selector.offset.as_mut());
    selector.matchers.sort_by_key(ToString::to_string);
}

fn strip_duration(duration: Option<&mut Duration>) {
    if let Some(Duration::Expr(expr)) = duration {
        strip_duration_expr(expr);
    }
}

fn strip_duration_expr(expr: &mut DurationExpr) {
    match expr {
        DurationExpr::Number { span, .. } | DurationExpr::Step(span) | DurationExpr::Range(span) => {
            *span = Span::default();
        }
        DurationExpr::Unary { expr, span, .. } | DurationExpr::Paren(expr, span) => {
            *span = Span::default();
            strip_duration_expr(expr);
        }
        DurationExpr::Binary { lhs, rhs, span, .. } | DurationExpr::MinMax { lhs, rhs, span, .. } => {
            *span = Span::default();
            strip_duration_expr(lhs);
            strip_duration_expr(rhs);
        }
    }
}

/// A query that parses when everything experimental is enabled.
pub(crate) fn any_query() -> impl Strategy<Value = String> {
    prop_oneof![8 => vector(), 2 => scalar(), 1 => range_vector(vector()), 1 => string()]
}

fn words(list: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    select(list).prop_map(str::to_owned)
}

fn string() -> impl Strategy<Value = String> + Clone {
    words(&["''", "\"a\\\"b\"", "`raw\\n`", "'\\xe9\\u263a\\t'", "\"it's\"", "'é☺'", "'\\xff'"])
}

fn label() -> impl Strategy<Value = String> + Clone {
    words(&["a", "job", "by", "on", "offset", "atan2", "sum", "START", "'b.c'", "\"without\"", "'inf'", "_x1"])
}

fn labels() -> impl Strategy<Value = String> + Clone {
    (proptest::collection::vec(label(), 0..3), any::<bool>()).prop_map(|(labels, comma)| {
        let comma = if comma && !labels.is_empty() { ", " } else { "" };
        format!("({}{comma})", labels.join(","))
    })
}

fn matcher() -> impl Strategy<Value = String> + Clone {
    let name = words(&["a", "le", "by", "nan", "'x y'", "\"é\""]);
    let op = words(&["=", "!=", " =~ ", "!~"]);
    (name, op, words(&["''", "'a'", "\"b|c\"", "`\\d+.*`", "'x\\n'"])).prop_map(|(name, op, value)| name + &op + &value)
}

fn name() -> impl Strategy<Value = String> + Clone {
    words(&[
        "up", "a:b", ":c", "sum", "by", "offset", "start", "STEP", "fill", "anchored", "smoothed", "and", "or",
        "group", "min_of", "without", "x_total", "Infinite",
    ])
}

fn selector() -> impl Strategy<Value = String> + Clone {
    let braces = proptest::collection::vec(matcher(), 0..3).prop_map(|list| format!("{{{}}}", list.join(", ")));
    prop_oneof![
        3 => name(),
        2 => (name(), braces.clone()).prop_map(|(name, braces)| name + &braces),
        1 => (words(&["{'quoted name'", "{__name__=~'a.+'", "{x!=''"]), proptest::option::of(matcher()))
            .prop_map(|(first, second)| format!("{first}{}}}", second.map_or(String::new(), |m| format!(",{m}")))),
    ]
}

fn duration_number() -> impl Strategy<Value = String> + Clone {
    words(&["5m", "1h30m", "30", "1.5", "90s", "2d", "15ms", "0x10", "1e2"])
}

fn duration_expr() -> impl Strategy<Value = String> + Clone {
    let leaf = prop_oneof![4 => duration_number(), 1 => words(&["step()", "range()", "STEP( )"])];
    leaf.prop_recursive(3, 8, 2, |inner| {
        let op = words(&["+", "-", "*", " / ", "%", "^"]);
        prop_oneof![
            (inner.clone(), op, inner.clone()).prop_map(|(a, op, b)| a + &op + &b),
            inner.clone().prop_map(|a| format!("({a})")),
            (words(&["-", "+"]), inner.clone()).prop_map(|(sign, a)| sign + &a),
            (words(&["min_of", "max_of"]), inner.clone(), inner).prop_map(|(f, a, b)| format!("{f}({a}, {b})")),
        ]
    })
}

fn bracket() -> impl Strategy<Value = String> + Clone {
    // A lone sign before a number could make it negative, which brackets refuse.
    prop_oneof![3 => duration_number(), 1 => duration_expr().prop_map(|e| format!("1m+({e})"))]
}

/// `@`, offset and edge mode, in any order.
fn modifiers(edges: bool) -> impl Strategy<Value = String> + Clone {
    let at = words(&["", "", " @ 5", "@start()", " @end()", "@ -1.5", " @ 1h"]);
    let offset = prop_oneof![
        3 => Just(String::new()),
        2 => duration_number().prop_map(|d| format!(" offset {d}")),
        1 => (words(&["", "-", "+", "- -"]), duration_number()).prop_map(|(sign, d)| format!(" offset {sign}{d}")),
        1 => (words(&["", "-"]), duration_expr()).prop_map(|(sign, d)| format!(" offset {sign}({d})")),
        1 => words(&[" offset step()", " offset -range()", " offset -min_of(step(), 1)"]),
    ];
    let edge = words(if edges { &["", "", " smoothed", " anchored"] } else { &[""] });
    let parts = (at, offset, edge).prop_map(|(a, b, c)| vec![a, b, c]);
    parts.prop_shuffle().prop_map(|parts| parts.concat())
}

fn range_vector(inner: impl Strategy<Value = String> + Clone + 'static) -> impl Strategy<Value = String> + Clone {
    let step = proptest::option::of(bracket()).prop_map(Option::unwrap_or_default);
    prop_oneof![
        (selector(), bracket(), modifiers(true)).prop_map(|(s, range, m)| format!("{s}[{range}]{m}")),
        (inner, bracket(), step, modifiers(false))
            .prop_map(|(e, range, step, m)| format!("({e})[{range} : {step}]{m}")),
    ]
}

fn number() -> impl Strategy<Value = String> + Clone {
    words(&["1", "0.5", "1e-9", "3e25", "Inf", "0x1F", "017", "1_000", "5m", "1h30m", ".5", "5.", "0"])
}

fn scalar() -> impl Strategy<Value = String> + Clone {
    let leaf = prop_oneof![4 => number(), 1 => words(&["time()", "pi()", "step()", "start( )"])];
    leaf.prop_recursive(3, 8, 2, |inner| {
        let op = words(&["+", " - ", "*", "/", "%", "^", " atan2 ", " == bool ", "<bool ", "</"]);
        prop_oneof![
            (inner.clone(), op, inner.clone()).prop_map(|(a, op, b)| a + &op + &b),
            inner.clone().prop_map(|a| format!("( {a})")),
            (words(&["-", "+"]), inner.clone()).prop_map(|(sign, a)| sign + &a),
            (inner.clone(), inner).prop_map(|(a, b)| format!("max_of({a}, {b})")),
        ]
    })
}

fn vector() -> impl Strategy<Value = String> + Clone {
    // In parentheses because an operator after some offsets would belong to the offset.
    let leaf = prop_oneof![selector(), (selector(), modifiers(true)).prop_map(|(s, m)| format!("({s}{m})"))];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let matching = (words(&["on", "ignoring"]), labels(), words(&["", "", "group_left()", "group_right (c)"]))
            .prop_map(|(kind, labels, group)| format!("{kind} {labels} {group}"));
        let matching = prop_oneof![2 => Just(String::new()), 1 => matching];
        let fill = words(&["", "", "", "fill(1)", "fill_left(-2.5)", "fill_right(5m) fill_left (1)"]);
        let set =
            (words(&["and", "OR", "unless"]), words(&["", "on(a)", "ignoring()"])).prop_map(|(a, b)| a + " " + &b);
        let grouping = prop_oneof![
            2 => Just(String::new()),
            1 => (words(&["by", "WITHOUT"]), labels()).prop_map(|(word, labels)| word + &labels)
        ];
        let op = words(&["+", "-", "*", "/", "%", "^", " atan2 ", "==", "!= bool", "<", ">=", "</", ">/"]);
        let aggregate = words(&["sum", "avg", "COUNT", "group", "stdvar"]);
        let with_param = words(&["topk", "quantile", "limitk", "limit_ratio"]);
        prop_oneof![
            (inner.clone(), op.clone(), matching, fill, inner.clone())
                .prop_map(|(a, op, m, fill, b)| format!("{a} {op} {m} {fill} {b}")),
            (inner.clone(), set, inner.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
            (inner.clone(), op.clone(), scalar()).prop_map(|(a, op, b)| format!("({a}{op} ({b}))")),
            (scalar(), op, inner.clone()).prop_map(|(a, op, b)| format!("(({a}){op} {b})")),
            inner.clone().prop_map(|a| format!("({a} )")),
            (words(&["-", "+", "- -"]), inner.clone()).prop_map(|(sign, a)| sign + &a),
            (aggregate, grouping.clone(), inner.clone()).prop_map(|(f, by, a)| format!("{f} {by} ({a})")),
            (with_param, scalar(), inner.clone(), grouping).prop_map(|(f, k, a, by)| format!("{f}({k}, {a}) {by}")),
            (words(&["abs", "sort", "absent", "ln"]), inner.clone()).prop_map(|(f, a)| format!("{f}({a})")),
            (words(&["rate", "changes", "mad_over_time"]), range_vector(inner.clone()))
                .prop_map(|(f, a)| format!("{f}({a})")),
            (inner, string(), string()).prop_map(|(a, s, t)| format!("label_join({a}, {s}, {t}, 'x', 'y')")),
        ]
    })
}
