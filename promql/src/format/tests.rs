use proptest::prelude::*;

use crate::parse::testing::{any_query, seeded, without_places};
use crate::parse::{ParseOptions, parse_expr};

/// `query` prints as `printed`, which means the same.
#[track_caller]
fn check(query: &str, printed: &str) {
    let expr = parse_expr(query, &ParseOptions::ALL).unwrap();
    assert_eq!(expr.to_string(), printed);
    let again = parse_expr(printed, &ParseOptions::ALL).unwrap();
    assert_eq!(without_places(again), without_places(expr));
}

#[test]
fn aggregations_and_calls() {
    check("sum(x)by(a,b)", "sum by (a, b) (x)");
    check("SUM by()(x)", "sum(x)");
    check("sum without()(x)", "sum without () (x)");
    check("topk(5,x)", "topk(5, x)");
    check("sum by('a.b', \"c\", without2)(x)", "sum by (\"a.b\", c, without2) (x)");
    check("sum by('without', 'NaN', 'inf', 'ü')(x)", "sum by (\"without\", \"NaN\", \"inf\", \"ü\") (x)");
    check("time( )", "time()");
    check("label_replace(x,'a',`$1`,\"b\\n\",'(.*)')", r#"label_replace(x, "a", "$1", "b\n", "(.*)")"#);
    check("info(x, {a='b'})", r#"info(x, {a="b"})"#);
}

#[test]
fn operators() {
    check("a+on(b)group_left(c)d", "a + on (b) group_left (c) d");
    check("a-on()c", "a - on () c");
    check("a-ignoring()c", "a - c");
    check("a-ignoring()group_right c", "a - ignoring () group_right () c");
    check("a and ignoring(x)b", "a and ignoring (x) b");
    check("a>bool 1", "a > bool 1");
    check("-x^2", "-x ^ 2");
    check("+x atan2 - y", "+x atan2 -y");
    check("- 5 + -(3)", "-5 + -(3)");
    check("a </ 3 >/ b", "a </ 3 >/ b");
    check("a + fill(0) b", "a + fill (0) b");
    check("a + fill_left(-1) fill_right(2) b", "a + fill_left (-1) fill_right (2) b");
    check("a + fill_right(1e-7) fill_left(1e30) b", "a + fill_left (1e+30) fill_right (1e-07) b");
    check("a + fill_left(5) fill_right(5) b", "a + fill (5) b");
}

#[test]
fn selectors() {
    check("x{b='y',a=~'z'}", r#"x{a=~"z",b="y"}"#);
    check("{\"a.b\",c=~\"d|e\"}", r#"{__name__="a.b",c=~"d|e"}"#);
    check("{__name__=\"a\",'b b'!='\"'}", r#"{"b b"!="\"",__name__="a"}"#);
    check("rate(x{a='b'}[5m]offset 1h)", "rate(x{a=\"b\"}[5m] offset 1h)");
    check("x@10 offset -5m", "x @ 10.000 offset -5m");
    check("x offset 0", "x");
    check("x @ -1.0004", "x @ -1.000");
    check("x@start()", "x @ start()");
    check("x offset 5m smoothed @ end()", "x @ end() smoothed offset 5m");
    check("x[5m] @ 1 offset 5m anchored", "x[5m] anchored @ 1.000 offset 5m");
    check("max_over_time(rate(x[5m])[1h:30s]@end())", "max_over_time(rate(x[5m])[1h:30s] @ end())");
    check("x[90m:]", "x[1h30m:]");
    check("x[100]", "x[1m40s]");
}

#[test]
fn literals() {
    check("1e-7+1e22+5m", "0.0000001 + 10000000000000000000000 + 5m");
    check("Inf * -inf", "+Inf * -Inf");
    check("-Inf ^ 2 ^ Inf", "-Inf ^ 2 ^ +Inf");
    assert_eq!(parse_expr("nan", &ParseOptions::ALL).unwrap().to_string(), "NaN");
    check("0x10 + 010 + 1_000 - 0", "16 + 8 + 1000 - 0");
    check("-1h30m", "-1h30m");
    check(r#"'a"\'\x00é'"#, r#""a\"'\x00é""#);
}

#[test]
fn durations() {
    check("x[5m*2]", "x[5m * 2]");
    check("x[-(5+1m)%step():range()]", "x[-(5 + 1m) % step():range()]");
    check("x offset (step()*2)", "x offset (step() * 2)");
    check("x offset (5m)+3", "x offset (5m) + 3");
    check("x offset - -5m", "x offset 5m");
    check("x offset - -5m + 3", "x offset (5m + 3)");
    check("x offset +min_of(10s,-max_of(1,2^3))", "x offset min_of(10s, -max_of(1, 2 ^ 3))");
    check("x offset -(5)", "x offset -(5)");
    check("x[((5m))]", "x[(5m)]");
}

#[test]
fn long_expressions_are_broken() {
    let long = "a_metric_with_a_long_name_of_its_own";
    let pretty = |query: &str| parse_expr(query, &ParseOptions::ALL).unwrap().prettify(usize::MAX).unwrap();
    let query = format!("sum by (instance) (rate({long}_total[5m])) / on (instance) group_left () {long}_maximum");
    let broken =
        format!("  sum by (instance) (rate({long}_total[5m]))\n/ on (instance) group_left ()\n  {long}_maximum");
    assert_eq!(pretty(&query), broken);
    let nested = format!("histogram_quantile(0.9, sum by (le) (rate({long}_{long}_{long}[5m])))");
    let broken = format!(
        "histogram_quantile(\n  0.9,\n  sum by (le) (\n    rate(\n      {long}_{long}_{long}[5m]\n    )\n  )\n)"
    );
    assert_eq!(pretty(&nested), broken);
    let broken = format!("(\n    -{long}_{long}\n  +\n    {long}_{long}\n)");
    assert_eq!(pretty(&format!("( -{long}_{long}+{long}_{long} )")), broken);
    // Prometheus does not indent a subquery that fits a line.
    let subquery = format!("quantile_over_time(0.1234567890123456, {long}_{long}[1h:1m])");
    let broken = format!("quantile_over_time(\n  0.1234567890123456,\n{long}_{long}[1h:1m]\n)");
    assert_eq!(pretty(&subquery), broken);
    let subquery = format!("max_over_time(({long} + {long} + {long})[1h:1m])");
    let broken = format!("max_over_time(\n  (\n      {long} + {long}\n    +\n      {long}\n  )[1h:1m]\n)");
    assert_eq!(pretty(&subquery), broken);
    let unary = format!("-({long}_{long}_{long})");
    assert_eq!(pretty(&unary), format!("-(\n  {long}_{long}_{long}\n)"));
    assert_eq!(pretty("a + b"), "a + b");
}

proptest! {
    #![proptest_config(seeded(1000))]

    #[test]
    fn printing_keeps_the_meaning(query in any_query()) {
        let expr = parse_expr(&query, &ParseOptions::ALL).unwrap();
        for printed in [expr.to_string(), expr.prettify(usize::MAX).unwrap()] {
            let again = parse_expr(&printed, &ParseOptions::ALL).map_err(|e| {
                TestCaseError::fail(format!("{query}\nprints as\n{printed}\n{e}"))
            })?;
            prop_assert_eq!(without_places(again), without_places(expr.clone()), "{}\nprints as\n{}", query, printed);
        }
    }
}
