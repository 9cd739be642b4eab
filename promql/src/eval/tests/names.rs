//! Metric names dropped at once, as the API does by default; the scripts cover the mode that puts it off.

use skald_model::{Columns, Labels};

use crate::eval::{EvalParams, QueryContext, Value, evaluate};
use crate::parse::{ParseOptions, parse_expr};
use crate::testing::{MemStorage, block_on};

/// `early` has samples in the first five minutes, `late` in the five after; `same_a` and `same_b` all the time.
fn storage() -> MemStorage {
    let series = [("early", 0..30), ("late", 60..90), ("same_a", 0..90), ("same_b", 0..90)];
    MemStorage::new(series.map(|(name, samples)| {
        let mut columns = Columns::default();
        samples.for_each(|i| columns.push_float(i * 10_000, i as f64));
        (Labels::from_pairs([("__name__", name), ("env", "x")]), columns)
    }))
}

#[track_caller]
fn check(text: &str, want: Result<&[&str], &str>) {
    let query = parse_expr(text, &ParseOptions::ALL).unwrap();
    let params = EvalParams { lookback_ms: 20_000, ..EvalParams::range(0, 890_000, 10_000) };
    let result = block_on(evaluate(&query, &params, &storage(), &QueryContext::unlimited()));
    let got = result.map_err(|e| e.to_string()).map(|output| match output.value {
        Value::Matrix(series) => series.into_iter().map(|s| s.labels.to_string()).collect::<Vec<_>>(),
        other => panic!("{text}: {other:?}"),
    });
    let want = want.map(|labels| labels.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>()).map_err(str::to_owned);
    assert_eq!(got, want, "{text}");
}

#[test]
fn equal_series_join_if_they_never_meet() {
    const DUPLICATE: Result<&[&str], &str> = Err("vector cannot contain metrics with the same labelset");
    let joined: Result<&[&str], &str> = Ok(&[r#"{env="x"}"#]);
    check(r#"abs({__name__=~"early|late"})"#, joined);
    check(r#"-{__name__=~"early|late"}"#, joined);
    check(r#"{__name__=~"early|late"} * 2"#, joined);
    check(r#"abs({__name__=~"same_."})"#, DUPLICATE);
    check(r#"sum({__name__=~"same_."} + 1)"#, DUPLICATE);
    // A function of range vectors refuses equal labels even if they never meet.
    check(r#"rate({__name__=~"early|late"}[20s])"#, DUPLICATE);
    check(r#"sum(rate({__name__=~"same_."}[20s]))"#, DUPLICATE);
}

#[test]
fn names_stay_where_values_do() {
    check("same_a > 5", Ok(&[r#"{__name__="same_a", env="x"}"#]));
    check("same_a > bool 5", Ok(&[r#"{env="x"}"#]));
    check("same_a >= on (env) same_b", Ok(&[r#"{env="x"}"#]));
    check("same_a >= same_b", Ok(&[r#"{__name__="same_a", env="x"}"#]));
    check("topk(1, same_a)", Ok(&[r#"{__name__="same_a", env="x"}"#]));
    check("last_over_time(same_a[1m])", Ok(&[r#"{__name__="same_a", env="x"}"#]));
    check("max_over_time(same_a[1m])", Ok(&[r#"{env="x"}"#]));
    check("sum by (__name__) (same_a)", Ok(&[r#"{__name__="same_a"}"#]));
    check("timestamp(same_a)", Ok(&[r#"{env="x"}"#]));
    check("+same_a", Ok(&[r#"{__name__="same_a", env="x"}"#]));
    check(r#"label_replace(rate(same_a[1m]), "old", "$1", "__name__", "(.+)")"#, Ok(&[r#"{env="x"}"#]));
    check(r#"label_replace(same_a, "__name__", "new", "", "")"#, Ok(&[r#"{__name__="new", env="x"}"#]));
}

#[test]
fn names_tell_classic_histograms_apart() {
    // What is asked about them has no name: two histograms of other names and equal labels collide.
    let bucket = |name: &str| format!(r#"label_replace({name}, "le", "+Inf", "", "")"#);
    let both = format!("histogram_quantile(0.5, {} or on (none) {})", bucket("same_a"), bucket("early"));
    check(&both, Ok(&[r#"{env="x"}"#]));
    let both = r#"histogram_quantile(0.5, label_replace({__name__=~"same_."}, "le", "+Inf", "", ""))"#;
    check(both, Err("vector cannot contain metrics with the same labelset"));
}

#[test]
fn matching_on_the_name_leaves_equal_labels() {
    const DUPLICATE: Result<&[&str], &str> = Err("vector cannot contain metrics with the same labelset");
    check("-(same_a or on (__name__) same_b)", DUPLICATE);
    check(r#"{__name__=~"same_."} + on (__name__, env) {__name__=~"same_."} + 1"#, DUPLICATE);
    check("-(same_a or on (env) same_b)", Ok(&[r#"{env="x"}"#]));
}

#[test]
fn series_that_never_meet_are_in_one_window() {
    const DUPLICATE: Result<&[&str], &str> = Err("vector cannot contain metrics with the same labelset");
    check("rate((early or late)[10m:10s])", DUPLICATE);
    check("rate((early * 2 or late * 2)[10m:10s])", Ok(&[r#"{env="x"}"#]));
}
