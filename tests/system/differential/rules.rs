//! The known differences between Prometheus 2.42 and 3.x as rules over a query's tree: what a rule refuses is never asked.
//! Each refusal says which difference it keeps out.

use std::collections::BTreeSet;

use super::facts::{Facts, INTEGERS, Kind, Names, Precision};
use super::query::{At, COMPARISONS, Expr, Many, Matching, SETS, Shift, Type, When};
use super::series::{GRID_MS, METRICS, SAMPLE_PHASE};

/// Why a query is not asked.
pub type Refused = &'static str;

/// The lookback both sides are started with. It does not divide by the grid, so that an instant selector's left edge is
/// no sample's time even where its right edge is.
pub const LOOKBACK_MS: i64 = 5 * 60_000 + 2;

/// What both sides must agree on when a query is asked then; or why it is not asked.
pub fn check(expr: &Expr, when: When) -> Result<Facts, Refused> {
    edges(expr, when, when.start_ms())?;
    let facts = facts(expr, when.is_instant())?;
    if expr.ty() == Type::Matrix && facts.kind != Kind::Float {
        return Err("2.42 shows buckets of another series where it lists samples");
    }
    if matches!(expr, Expr::Subquery { range_ms, step_ms, .. } if *range_ms <= step_ms.unwrap_or(60_000)) {
        return Err("of a subquery without a step, 2.42 lists a series without samples, or one after its end");
    }
    if facts.risks > 1 {
        return Err("of two errors either may be named");
    }
    Ok(facts)
}

/// Whether no window's left edge, which 2.42 includes and 3.x does not, falls on a sample. `at` is a time of evaluation;
/// the others differ from it by multiples of the grid.
fn edges(expr: &Expr, when: When, at: i64) -> Result<(), Refused> {
    let shifted = |shift: &Shift| {
        let at = match shift.at {
            None => at,
            Some(At::Millis(ms)) => ms,
            Some(At::Start) => when.start_ms(),
            Some(At::End) => when.end_ms(),
        };
        at - shift.offset_ms
    };
    let hits_sample = |edge: i64| edge.rem_euclid(GRID_MS) == SAMPLE_PHASE;
    match expr {
        Expr::Selector(selector) if hits_sample(shifted(&selector.shift) - LOOKBACK_MS) => {
            Err("a sample at the edge of the lookback")
        }
        Expr::Range { selector, range_ms } if hits_sample(shifted(&selector.shift) - range_ms) => {
            Err("a sample at the edge of a range")
        }
        Expr::Subquery { of, range_ms, step_ms, shift } => {
            if step_ms.is_some_and(|step| step % GRID_MS != 0) {
                return Err("a subquery's step off the grid");
            }
            if (shifted(shift) - range_ms).rem_euclid(GRID_MS) == 0 {
                return Err("a subquery's step at the edge of its range");
            }
            let begins_before = at - (shifted(shift) - range_ms);
            if (1..=step_ms.unwrap_or(60_000)).contains(&begins_before) && has_at(of) {
                return Err("2.42 forgets an inner @ where a subquery's first step is the query's");
            }
            // Its times of evaluation are multiples of its step.
            edges(of, when, 0)
        }
        _ => expr.children().into_iter().try_for_each(|child| edges(child, when, at)),
    }
}

/// Whether anything in an expression stands at a time of its own.
fn has_at(expr: &Expr) -> bool {
    let here = match expr {
        Expr::Selector(selector) | Expr::Range { selector, .. } => selector.shift.at.is_some(),
        Expr::Subquery { shift, .. } => shift.at.is_some(),
        _ => false,
    };
    here || expr.children().into_iter().any(has_at)
}

/// Facts of an expression; `merges` is whether it is evaluated at one time only.
pub fn facts(expr: &Expr, instant: bool) -> Result<Facts, Refused> {
    match expr {
        Expr::Number(number) => Ok(number_facts(number)),
        Expr::Text(_) => Ok(Facts::scalar(Precision::Exact)),
        Expr::Selector(selector) | Expr::Range { selector, .. } => Ok(Facts::of_metrics(&selector.metrics)),
        Expr::Subquery { of, range_ms, step_ms, .. } => {
            let inner = facts(of, false)?;
            if inner.risks > 0 && *range_ms <= step_ms.unwrap_or(60_000) {
                return Err("without a step, 2.42 does not get as far as the error");
            }
            Ok(Facts { rate_agrees: inner.resampled_rate_agrees, ..inner })
        }
        Expr::Paren(of) => facts(of, instant),
        Expr::Unary { op: '+', of } => facts(of, instant),
        Expr::Unary { of, .. } => {
            let inner = facts(of, instant)?;
            if inner.kind != Kind::Float {
                return Err("2.42 leaves histograms as they are under a sign");
            }
            if inner.names == Names::Many && !instant {
                return Err("3.x joins series that a sign leaves alike and that never meet");
            }
            let risks = inner.risks + u32::from(inner.names == Names::Many);
            let names = Names::None;
            let negative_zero = !inner.is_literal || inner.nonneg;
            let plain = Facts { nonneg: false, is_classic: false, rate_agrees: false, ..inner };
            Ok(Facts { resampled_rate_agrees: false, negative_zero, names, risks, ..plain })
        }
        Expr::Call { name, args } => call(name, args, instant),
        Expr::Aggregate { op, grouping, param, of } => aggregate(op, grouping.as_ref(), param.as_deref(), of, instant),
        Expr::Binary { op, bool, matching, left, right } => {
            let (l, r) = (facts(left, instant)?, facts(right, instant)?);
            match (left.ty(), right.ty()) {
                (Type::Vector, Type::Vector) if SETS.contains(op) => Ok(set(op, &l, &r)),
                (Type::Vector, Type::Vector) => vectors(op, *bool, matching, l, r),
                (Type::Scalar, Type::Scalar) => values(op, *bool, &l, &r),
                (Type::Vector, Type::Scalar) => with_scalar(op, *bool, l, r, false),
                _ => with_scalar(op, *bool, r, l, true),
            }
        }
    }
}

fn number_facts(number: &str) -> Facts {
    let value = match number.to_ascii_lowercase().as_str() {
        "inf" => f64::INFINITY,
        "nan" => f64::NAN,
        other => match other.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).unwrap_or(0) as f64,
            None => other.parse().unwrap_or(f64::NAN),
        },
    };
    let eighths = value * 8.0 == (value * 8.0).trunc() && value.abs() < 1e6;
    Facts {
        nonneg: true,
        finite: value.is_finite(),
        negative_zero: false,
        // No sum or quotient of data comes this near to it by accident.
        distinct: number.len() > 8,
        is_literal: true,
        ..Facts::scalar(if eighths { INTEGERS } else { Precision::Exact })
    }
}

/// Names are dropped: elements that differed in them alone become alike, which is an error.
fn drop_name(facts: Facts) -> Facts {
    let risks = facts.risks + u32::from(facts.names == Names::Many);
    Facts { names: Names::None, risks, ..facts }
}

/// Functions of the value that jump: a last bit's difference would become a large one.
fn must_be_exact(facts: &Facts) -> Result<(), Refused> {
    if facts.precision.is_exact() { Ok(()) } else { Err("rounding differs, and would be enlarged") }
}

fn must_be_float(facts: &Facts) -> Result<(), Refused> {
    if facts.kind == Kind::Float { Ok(()) } else { Err("2.42 takes a histogram for the float 0 here") }
}

fn call(name: &str, args: &[Expr], instant: bool) -> Result<Facts, Refused> {
    let all = args.iter().map(|arg| facts(arg, instant)).collect::<Result<Vec<Facts>, Refused>>()?;
    let risks: u32 = all.iter().map(|facts| facts.risks).sum();
    let subject = args.iter().position(|arg| matches!(arg.ty(), Type::Vector | Type::Matrix));
    let over_matrix = subject.is_some_and(|at| args[at].ty() == Type::Matrix);
    let Some(at) = subject else { return Ok(without_vector(name, args, &all)) };
    let mut of = all[at].clone();
    of.risks = risks;
    let scalars: Vec<&Facts> = all.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, facts)| facts).collect();
    if scalars.iter().any(|facts| !facts.precision.is_exact()) {
        return Err("a parameter's rounding differs");
    }
    if over_matrix {
        let is_fixed = match &args[at] {
            Expr::Range { selector, .. } => selector.shift.at.is_some(),
            Expr::Subquery { shift, .. } => shift.at.is_some(),
            _ => false,
        };
        let varies = name == "predict_linear" || scalars.iter().any(|facts| !facts.is_literal);
        if is_fixed && varies && !instant {
            return Err("2.42 moves a fixed window when a parameter varies");
        }
        return over_range(name, &args[at], of, args);
    }
    let exact = |of: &Facts| must_be_exact(of);
    if !["absent", "timestamp", "sort", "sort_desc", "histogram_count", "histogram_sum", "histogram_fraction"]
        .contains(&name)
    {
        must_be_float(&of)?;
    }
    let rounded = |of: &Facts, precision| Facts { finite: false, ..of.derived(precision) };
    match name {
        "abs" => Ok(drop_name(Facts { nonneg: true, negative_zero: false, ..plain(of) })),
        "ceil" | "floor" | "round" => {
            if !of.distinct {
                exact(&of)?;
            }
            let precision = if args.len() > 1 { Precision::Exact } else { of.precision.min(Precision::Exact) };
            let negative_zero = of.negative_zero || !of.nonneg;
            // To the nearest 0 is NaN.
            let finite = of.finite && args.len() == 1;
            let nonneg = of.nonneg && args.len() == 1;
            Ok(drop_name(Facts { precision, negative_zero, finite, nonneg, distinct: false, ..plain(of) }))
        }
        "sgn" => {
            exact(&of)?;
            Ok(drop_name(Facts { precision: of.precision.min(INTEGERS), distinct: false, ..plain(of) }))
        }
        "sqrt" => Ok(drop_name(Facts {
            precision: of.precision.max(Precision::Exact),
            finite: of.finite && of.nonneg,
            nonneg: of.nonneg,
            ..plain(of)
        })),
        "deg" | "rad" => Ok(drop_name(Facts { precision: of.precision.max(Precision::Exact), ..plain(of) })),
        "exp" if of.precision <= Precision::Near => {
            Ok(drop_name(Facts { nonneg: true, negative_zero: false, ..rounded(&of, Precision::Near) }))
        }
        "ln" | "log2" | "log10" => {
            exact(&of)?;
            Ok(drop_name(rounded(&of, Precision::Near)))
        }
        "sin" | "cos" | "tan" | "asin" | "acos" | "atan" | "sinh" | "cosh" | "tanh" | "asinh" | "acosh" | "atanh" => {
            exact(&of)?;
            Ok(drop_name(rounded(&of, Precision::Rough)))
        }
        "clamp" | "clamp_min" | "clamp_max" => {
            let precision = scalars.iter().fold(of.precision, |all, facts| all.max(facts.precision));
            let finite = of.finite && scalars.iter().all(|facts| facts.finite);
            let nonneg = of.nonneg && scalars.iter().all(|facts| facts.nonneg);
            let negative_zero = of.negative_zero || scalars.iter().any(|facts| facts.negative_zero);
            Ok(drop_name(Facts { precision, finite, nonneg, negative_zero, distinct: false, ..plain(of) }))
        }
        "timestamp" => {
            if forgets_offset(&args[at]) {
                return Err("both versions forget the offset beside @, after they have fetched by it");
            }
            let facts = of.derived(Precision::Exact);
            Ok(drop_name(Facts { nonneg: true, negative_zero: false, is_time: true, ..facts }))
        }
        "days_in_month" | "day_of_month" | "day_of_week" | "day_of_year" | "hour" | "minute" | "month" | "year" => {
            exact(&of)?;
            let small = matches!(of.precision, Precision::Eighths { .. });
            if !of.finite || !(small || of.is_time) {
                return Err("Go leaves open what integer NaN and numbers too large for one become");
            }
            Ok(drop_name(Facts { nonneg: false, ..of.counts() }))
        }
        "absent" => Ok(absent(&args[at], &of)),
        "scalar" => Ok(Facts { finite: false, labels: BTreeSet::new(), names: Names::None, ..plain(of) }),
        "sort" | "sort_desc" => {
            must_be_float(&of)?;
            Ok(of)
        }
        "label_replace" | "label_join" => relabel(name, args, of),
        "histogram_count" | "histogram_sum" => {
            let negative = name == "histogram_sum";
            let facts = Facts { nonneg: !negative, negative_zero: negative, ..of.derived(of.precision) };
            Ok(drop_name(Facts { precision: of.precision.grown(4), ..facts }))
        }
        "histogram_fraction" => {
            if of.kind != Kind::Histogram {
                return Err("3.x looks into classic histograms, too");
            }
            let between_buckets =
                args[..2].iter().all(|bound| matches!(text_of(bound).as_str(), "0" | "1" | "2" | "4" | "Inf" | "-Inf"));
            if !between_buckets {
                return Err("3.x interpolates exponentially inside a bucket");
            }
            Ok(drop_name(rounded(&of, Precision::Rough)))
        }
        "histogram_quantile" => quantile_of_histogram(args, of),
        _ => Err("no rule for this function"),
    }
}

fn text_of(expr: &Expr) -> String {
    expr.text(super::query::Dialect::New)
}

/// A selector with both `@` and `offset`.
fn forgets_offset(of: &Expr) -> bool {
    match of {
        Expr::Paren(of) => forgets_offset(of),
        Expr::Selector(selector) => selector.shift.at.is_some() && selector.shift.offset_ms != 0,
        _ => false,
    }
}

/// Values that are no longer a series' own.
fn plain(of: Facts) -> Facts {
    Facts { rate_agrees: false, resampled_rate_agrees: false, is_classic: false, is_time: false, ..of }
}

fn without_vector(name: &str, args: &[Expr], all: &[Facts]) -> Facts {
    match name {
        "time" => Facts { nonneg: true, negative_zero: false, is_time: true, ..Facts::scalar(Precision::Exact) },
        "pi" => Facts { nonneg: true, negative_zero: false, is_literal: true, ..Facts::scalar(Precision::Exact) },
        "vector" => Facts { is_literal: false, ..all[0].clone() },
        _ => {
            debug_assert!(args.is_empty());
            Facts { nonneg: true, negative_zero: false, ..Facts::scalar(INTEGERS) }
        }
    }
}

fn absent(of: &Expr, facts: &Facts) -> Facts {
    let mut labels = BTreeSet::new();
    if let Expr::Selector(selector) | Expr::Range { selector, .. } = of {
        labels.extend(selector.matchers.iter().map(|(label, ..)| label.clone()));
    }
    Facts { labels, names: Names::None, ..facts.counts() }
}

fn relabel(name: &str, args: &[Expr], of: Facts) -> Result<Facts, Refused> {
    let Expr::Text(target) = &args[1] else { return Err("the label is no text") };
    let mut labels = of.labels.clone();
    let mut names = of.names;
    let mut risks = of.risks;
    // What was told apart by the label may become alike; other labels only add to it.
    if target == "__name__" {
        risks += u32::from(of.names == Names::Many);
        names = Names::Many;
    } else if target.is_empty() {
        risks += 1;
    } else {
        risks += u32::from(!labels.insert(target.clone()));
    }
    if name == "label_replace" && matches!(&args[4], Expr::Text(regex) if ["((", "(x"].contains(&regex.as_str())) {
        risks += 1;
    }
    Ok(Facts { labels, names, risks, ..plain(of) })
}

fn quantile_of_histogram(args: &[Expr], of: Facts) -> Result<Facts, Refused> {
    if of.names == Names::Many {
        return Err("2.42 tells classic histograms apart by their names");
    }
    if !of.is_classic {
        return Err(
            "not cumulative buckets, or a native histogram between whose bounds 3.x interpolates exponentially",
        );
    }
    let q = text_of(&args[0]);
    if !of.precision.is_exact() && !q.starts_with("0.") {
        return Err("the last bucket is chosen by a last bit");
    }
    let mut labels = of.labels.clone();
    labels.remove("le");
    let rough = if of.precision.is_exact() { Precision::Near } else { Precision::Rough };
    Ok(drop_name(Facts { labels, finite: false, ..of.derived(rough) }))
}

fn is_subquery(of: &Expr) -> bool {
    match of {
        Expr::Paren(of) => is_subquery(of),
        other => matches!(other, Expr::Subquery { .. }),
    }
}

fn over_range(name: &str, arg: &Expr, of: Facts, args: &[Expr]) -> Result<Facts, Refused> {
    let exact_or = |of: &Facts, precision: Precision| if of.precision.is_exact() { precision } else { of.precision };
    let is_sum = ["sum_over_time", "avg_over_time"].contains(&name);
    match name {
        "count_over_time" => return Ok(drop_name(of.counts())),
        "present_over_time" => return Ok(drop_name(of.counts())),
        "absent_over_time" => return Ok(absent(arg, &of)),
        "rate" | "increase" if of.kind != Kind::Float => {
            if of.is_gauge {
                return Err("2.42 forgets that a histogram is a gauge");
            }
            if !of.rate_agrees || !of.precision.is_exact() {
                return Err("2.42 does not look for the zero of a histogram");
            }
            let precision = Precision::Exact;
            return Ok(drop_name(Facts { precision, is_classic: false, ..plain(of) }));
        }
        "delta" if of.kind == Kind::Histogram && of.one_schema && of.is_gauge && of.precision.is_exact() => {
            return Ok(drop_name(Facts { precision: Precision::Exact, nonneg: false, ..plain(of) }));
        }
        _ => must_be_float(&of)?,
    }
    let keeps = ["min_over_time", "max_over_time", "last_over_time", "quantile_over_time"].contains(&name);
    let sums = is_sum && of.nonneg && of.precision <= Precision::Near;
    if !keeps && !sums {
        must_be_exact(&of)?;
    }
    let facts = match name {
        "last_over_time" => return Ok(of),
        "min_over_time" | "max_over_time" => plain(of),
        "quantile_over_time" => {
            let q = text_of(&args[0]);
            let inside = q.starts_with("0.");
            if of.negative_zero {
                return Err("zeros of either sign sort as they come");
            }
            Facts {
                precision: exact_or(&of, Precision::Exact),
                finite: of.finite && inside,
                nonneg: of.nonneg && inside,
                distinct: false,
                ..plain(of)
            }
        }
        "sum_over_time" => Facts { precision: of.precision.grown(11), negative_zero: false, ..plain(of) },
        "avg_over_time" => {
            if !of.nonneg || of.negative_zero {
                return Err("2.42 sums what is already divided: near 0 that differs");
            }
            Facts { precision: of.precision.max(Precision::Near), ..plain(of) }
        }
        "stddev_over_time" | "stdvar_over_time" | "deriv" | "predict_linear" | "holt_winters" => {
            if !of.finite {
                return Err("3.x ends compensation at infinities");
            }
            let fails = name == "holt_winters" && args[1..].iter().any(|factor| !text_of(factor).starts_with("0."));
            let risks = of.risks + u32::from(fails);
            // A prediction for no time is none.
            let finite = name != "predict_linear" || facts(&args[1], false).is_ok_and(|facts| facts.finite);
            // One sample does not deviate.
            let distinct = of.distinct && finite && !name.starts_with("std") && !is_subquery(arg);
            Facts { distinct, finite, risks, ..of.derived(Precision::Exact) }
        }
        "changes" | "resets" => of.counts(),
        "delta" | "idelta" | "irate" => Facts {
            finite: of.finite,
            negative_zero: of.negative_zero,
            // A subquery may meet the same sample twice.
            distinct: of.distinct && !is_subquery(arg),
            ..of.derived(Precision::Exact)
        },
        "rate" | "increase" => {
            if !of.rate_agrees {
                return Err("2.42 looks for a counter's zero before it looks how far the window's edge is");
            }
            Facts {
                finite: of.finite,
                nonneg: of.nonneg,
                negative_zero: of.negative_zero,
                is_classic: of.is_classic,
                ..of.derived(Precision::Exact)
            }
        }
        _ => return Err("no rule for this function"),
    };
    Ok(drop_name(facts))
}

fn aggregate(
    op: &str,
    grouping: Option<&(bool, Vec<String>)>,
    param: Option<&Expr>,
    of: &Expr,
    instant: bool,
) -> Result<Facts, Refused> {
    let inner = facts(of, instant)?;
    let param_facts = param.map(|param| facts(param, instant)).transpose()?;
    let mut labels: BTreeSet<String> = match grouping {
        None => BTreeSet::new(),
        Some((true, by)) => by.iter().filter(|label| inner.labels.contains(*label)).cloned().collect(),
        Some((false, without)) => inner.labels.iter().filter(|label| !without.contains(label)).cloned().collect(),
    };
    let by_name = matches!(grouping, Some((true, by)) if by.iter().any(|label| label == "__name__"));
    let names = if by_name { inner.names } else { Names::None };
    let risks = inner.risks + param_facts.as_ref().map_or(0, |param| param.risks);
    if param_facts.as_ref().is_some_and(|param| !param.precision.is_exact()) {
        return Err("a parameter's rounding differs");
    }
    if op == "count" || op == "group" {
        return Ok(Facts { labels, names, risks, ..inner.counts() });
    }
    let keeps_le = match grouping {
        Some((true, by)) => by.iter().any(|label| label == "le"),
        Some((false, without)) => !without.iter().any(|label| label == "le"),
        None => false,
    };
    let is_classic = inner.is_classic && keeps_le && op == "sum";
    let result = |precision| Facts {
        labels: labels.clone(),
        names,
        risks,
        is_classic,
        nonneg: inner.nonneg,
        finite: inner.finite,
        negative_zero: inner.negative_zero,
        distinct: inner.distinct,
        ..inner.derived(precision)
    };
    if inner.negative_zero && !["count_values", "topk", "bottomk"].contains(&op) {
        return Err("2.42 keeps a group's only negative zero, and the smaller of two zeros is the first");
    }
    match op {
        "sum" => {
            let kind = inner.kind;
            let eighths = matches!(inner.precision, Precision::Eighths { .. });
            if kind != Kind::Float && !eighths && !inner.precision.is_exact() {
                return Err("rounding of histograms");
            }
            if !eighths && !inner.nonneg {
                return Err("3.x compensates sums; near 0 that differs");
            }
            if inner.precision == Precision::Rough {
                return Err("rounding was enlarged already");
            }
            let precision = if eighths { inner.precision.grown(8) } else { Precision::Near };
            let (is_gauge, one_schema) = (inner.is_gauge, inner.one_schema);
            Ok(Facts { kind, is_gauge, one_schema, ..result(precision) })
        }
        "avg" => {
            must_be_float(&inner)?;
            if !inner.nonneg || inner.precision == Precision::Rough {
                return Err("2.42's mean is incremental; near 0 that differs");
            }
            Ok(result(Precision::Near))
        }
        "min" | "max" => {
            must_be_float(&inner)?;
            Ok(result(inner.precision))
        }
        "stddev" | "stdvar" => {
            must_be_float(&inner)?;
            must_be_exact(&inner)?;
            if !inner.finite {
                return Err("3.x answers NaN when the first is infinite");
            }
            // The order of the sum is that of a hash map in 2.42.
            Ok(Facts { nonneg: true, distinct: false, ..result(Precision::Rough) })
        }
        "quantile" => {
            must_be_float(&inner)?;
            let inside = param.is_some_and(|q| text_of(q).starts_with("0."));
            let precision = inner.precision.max(Precision::Exact);
            Ok(Facts {
                finite: inner.finite && inside,
                nonneg: inner.nonneg && inside,
                distinct: false,
                ..result(precision)
            })
        }
        "topk" | "bottomk" => {
            must_be_float(&inner)?;
            if !inner.distinct || !inner.finite {
                return Err("2.42 keeps others of equal ones, and replaces NaN by NaN");
            }
            let param = param_facts.as_ref().ok_or("no parameter")?;
            if !param.finite {
                return Err("k may be NaN, which has another error");
            }
            let small = matches!(param.precision, Precision::Eighths { .. });
            if !small && !param.nonneg {
                return Err("3.x does not mind how far below 1 all of them are");
            }
            Ok(Facts { risks: risks + u32::from(!small), ..inner })
        }
        "count_values" => {
            must_be_float(&inner)?;
            must_be_exact(&inner)?;
            let mut risks = risks;
            let Some(Expr::Text(label)) = param else { return Err("the label is no text") };
            if label.is_empty() {
                risks += 1;
            } else {
                labels.insert(label.clone());
            }
            if matches!(grouping, Some((true, by)) if !by.is_empty()) && !instant {
                return Err("2.42 spoils the labels of `by` from the second step on");
            }
            Ok(Facts { labels, names, risks, ..inner.counts() })
        }
        _ => Err("no rule for this aggregation"),
    }
}

fn set(op: &str, left: &Facts, right: &Facts) -> Facts {
    match op {
        "or" => left.or(right),
        _ => Facts { risks: left.risks + right.risks, ..left.clone() },
    }
}

/// Facts of `left op right`, as numbers.
fn values(op: &str, bool: bool, left: &Facts, right: &Facts) -> Result<Facts, Refused> {
    let risks = left.risks + right.risks;
    let both_exact = left.precision.is_exact() && right.precision.is_exact();
    let precision = left.precision.max(right.precision);
    let literal = left.is_literal && right.is_literal;
    let result = |precision| Facts { risks, is_literal: literal, ..Facts::scalar(precision) };
    if COMPARISONS.contains(&op) {
        let apart =
            |near: &Facts, other: &Facts| near.precision <= Precision::Near && other.is_literal && other.distinct;
        if !both_exact && !apart(left, right) && !apart(right, left) {
            return Err("equal on one side, nearly so on the other");
        }
        if bool {
            return Ok(Facts { nonneg: true, negative_zero: false, is_literal: false, ..result(INTEGERS) });
        }
        return Ok(Facts { risks, ..left.clone() });
    }
    let finite = left.finite && right.finite;
    let nonneg = left.nonneg && right.nonneg;
    let zeros = left.negative_zero || right.negative_zero;
    match op {
        "+" | "-" => {
            let eighths = matches!(precision, Precision::Eighths { .. });
            let sums = op == "+" && nonneg && precision == Precision::Near;
            if !both_exact && !sums {
                return Err("a difference enlarges rounding");
            }
            let precision = if eighths { precision.grown(1) } else { precision };
            let negative_zero = left.negative_zero;
            Ok(Facts { finite, nonneg: nonneg && op == "+", negative_zero, ..result(precision) })
        }
        "*" | "/" => {
            let is_product = op == "*";
            let precision = precision.max(Precision::Exact);
            let negative_zero = !nonneg || zeros;
            Ok(Facts { finite: finite && is_product, nonneg, negative_zero, ..result(precision) })
        }
        "%" if both_exact => {
            Ok(Facts { finite: false, nonneg: left.nonneg && !left.negative_zero, ..result(Precision::Exact) })
        }
        "^" if both_exact && (left.is_literal || right.is_literal) => {
            Ok(Facts { finite: false, ..result(Precision::Rough) })
        }
        "atan2" if both_exact => Ok(Facts { finite: false, ..result(Precision::Rough) }),
        _ => Err("rounding would be enlarged"),
    }
}

fn with_scalar(op: &str, bool: bool, vector: Facts, scalar: Facts, swapped: bool) -> Result<Facts, Refused> {
    must_be_float(&vector)?;
    if op == "atan2" && vector.names != Names::None {
        return Err("2.42 keeps the name under atan2");
    }
    let (left, right) = if swapped { (&scalar, &vector) } else { (&vector, &scalar) };
    let numbers = values(op, bool, left, right)?;
    let risks = vector.risks + scalar.risks;
    if COMPARISONS.contains(&op) && !bool {
        return Ok(Facts { risks, ..vector });
    }
    // Numbers that all differ still do when the same number is added to them.
    let keeps_apart = ["+", "-", "*"].contains(&op) && scalar.is_literal && scalar.finite && !bool;
    let distinct = vector.distinct && keeps_apart && scalar.distinct;
    let facts = Facts { labels: vector.labels.clone(), names: vector.names, distinct, risks, ..numbers };
    Ok(drop_name(Facts { is_literal: false, ..facts }))
}

fn vectors(op: &str, bool: bool, matching: &Matching, left: Facts, right: Facts) -> Result<Facts, Refused> {
    let histograms = left.kind == Kind::Histogram && right.kind == Kind::Histogram;
    if histograms {
        if op != "+" {
            return Err("2.42 only adds histograms");
        }
    } else {
        must_be_float(&left)?;
        must_be_float(&right)?;
    }
    let filters = COMPARISONS.contains(&op) && !bool;
    if op == "atan2" && (left.names != Names::None || right.names != Names::None) {
        return Err("2.42 keeps the name under atan2");
    }
    let numbers = if histograms {
        let precision = left.precision.max(right.precision);
        // Buckets that become one are summed in another order.
        let precision = if precision.is_exact() { precision.max(Precision::Near) } else { precision };
        Facts {
            is_gauge: left.is_gauge || right.is_gauge,
            nonneg: left.nonneg && right.nonneg,
            ..Facts::scalar(precision)
        }
    } else {
        values(op, bool, &left, &right)?
    };
    let kind = left.kind;
    let listed: BTreeSet<String> = matching.labels.iter().cloned().collect();
    let key = |side: &Facts| -> BTreeSet<String> {
        match matching.on {
            Some(true) => &side.labels & &listed,
            Some(false) => &side.labels - &listed,
            None => side.labels.clone(),
        }
    };
    // Whether a side's elements differ in what is matched.
    let on_name = matching.on == Some(true) && listed.contains("__name__");
    let unique = |side: &Facts| (side.names != Names::Many || on_name) && key(side) == side.labels;
    let mut risks = left.risks + right.risks;
    let (many, one) = match &matching.group {
        Some((Many::Right, _)) => (&right, &left),
        _ => (&left, &right),
    };
    risks += u32::from(!unique(one));
    let mut labels;
    match &matching.group {
        None => {
            if !unique(many) {
                if filters {
                    return Err("2.42 does not see several matches where the comparison fails");
                }
                risks += 1;
            }
            labels = match matching.on {
                Some(true) => listed.clone(),
                Some(false) => &left.labels - &listed,
                None => left.labels.clone(),
            };
            labels.remove("__name__");
        }
        Some((_, include)) => {
            labels = many.labels.clone();
            labels.extend(include.iter().cloned());
            let replaces = include.iter().any(|label| many.labels.contains(label));
            if many.names == Names::Many || replaces {
                if filters {
                    return Err("2.42 does not see several matches where the comparison fails");
                }
                risks += 1;
            }
        }
    }
    let names = match (&matching.group, filters) {
        (_, false) => Names::None,
        (None, true) if matching.on == Some(true) && !on_name => Names::None,
        (_, true) => many.names,
    };
    // The value that remains is the left one's, whoever the many are.
    let base = if filters { left.clone() } else { numbers };
    let distinct = filters && left.distinct && matching.group.is_none();
    Ok(Facts { kind, labels, names, risks, distinct, is_classic: false, is_literal: false, ..base })
}

/// A label some metric of the selector has, for grouping and matching.
pub fn labels_of(facts: &Facts) -> Vec<String> {
    let mut all: Vec<String> = facts.labels.iter().cloned().collect();
    if all.is_empty() {
        all.extend(METRICS[0].labels.iter().map(|label| (*label).to_owned()));
    }
    all
}
