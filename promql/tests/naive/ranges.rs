//! Functions of range vectors: one window in, one value out.

use std::rc::Rc;

use skald_model::ResetHint;
use skald_promql::ast::{Call, EdgeMode, Expr, ValueType};

use crate::edges;
use crate::evaluator::{Naive, check_unique, without_parens};
use crate::floats::{self, Kahan, least_squares, quantile};
use crate::histogram::{Hist, HistSum, total};
use crate::value::*;

/// What a function may use besides the window.
struct Args {
    name: &'static str,
    scalars: Vec<f64>,
    edges: EdgeMode,
    /// The step's own time.
    t: i64,
}

impl Naive<'_> {
    pub fn range_call(&self, call: &Call, t: i64, grid: Grid) -> Res<Vec<Elem>> {
        let key = (std::ptr::from_ref(call) as usize, grid);
        let known = self.range_calls.borrow().get(&key).cloned();
        let steps = match known {
            Some(known) => known,
            None => {
                let result = self.all_steps(call, grid).map(Rc::new);
                self.range_calls.borrow_mut().insert(key, result.clone());
                result
            }
        }?;
        let step = grid.times().position(|time| time == t).unwrap_or(0);
        Ok(steps[step].clone())
    }

    /// All steps at once: two series that become equal are refused even if they never meet.
    fn all_steps(&self, call: &Call, grid: Grid) -> Res<Vec<Vec<Elem>>> {
        let name = call.function.name;
        let is_window = |e: &&Expr| e.value_type() == ValueType::Matrix;
        let window_arg = call.args.iter().find(is_window).expect("a range vector");
        let edges = match without_parens(window_arg) {
            Expr::Matrix(matrix) => matrix.selector.edges,
            _ => EdgeMode::Plain,
        };
        let allowed: &[&str] = match edges {
            EdgeMode::Plain => &[name],
            EdgeMode::Smoothed => &["delta", "increase", "rate"],
            EdgeMode::Anchored => &["changes", "delta", "increase", "rate", "resets"],
        };
        if !allowed.contains(&name) {
            return Err(Fail::execution(format!("{edges:?} modifier can only be used with {allowed:?}")));
        }
        if name == "absent_over_time" {
            return self.absent_over_time(window_arg, grid);
        }
        let keeps_name = matches!(name, "last_over_time" | "first_over_time");
        let (mut steps, mut sources): (Vec<Vec<Elem>>, Vec<Elem>) = (Vec::new(), Vec::new());
        for t in grid.times() {
            let scalars = call.args.iter().filter(|a| a.value_type() == ValueType::Scalar);
            let scalars = scalars.map(|a| self.scalar(a, t, grid)).collect::<Res<_>>()?;
            let args = Args { name, scalars, edges, t };
            let mut elems = Vec::new();
            for window in self.windows(window_arg, t, grid)? {
                let Some(v) = of_window(&window, &args)? else { continue };
                let source = Elem { labels: window.labels, drop: window.drop, v };
                let elem = if keeps_name { source.clone() } else { self.drop_name(source.clone(), source.v.clone()) };
                if !sources.iter().any(|s| s.labels == source.labels) {
                    sources.push(source);
                }
                elems.push(elem);
            }
            steps.push(elems);
        }
        if !self.params.delayed_name_removal && !keeps_name {
            let dropped: Vec<Elem> = sources.into_iter().map(|s| self.drop_name(s, V::F(0.0))).collect();
            check_unique(&dropped)?;
        }
        Ok(steps)
    }

    fn absent_over_time(&self, arg: &Expr, grid: Grid) -> Res<Vec<Vec<Elem>>> {
        let labels = crate::calls::asked_labels(without_parens(arg));
        let step = |t| {
            let present = !self.windows(arg, t, grid)?.is_empty();
            let absent = Elem { labels: labels.clone(), drop: true, v: V::F(1.0) };
            Ok(if present { Vec::new() } else { vec![absent] })
        };
        grid.times().map(step).collect()
    }
}

fn of_window(window: &Window, args: &Args) -> Res<Option<V>> {
    let (floats, hists) = (window.floats(), window.hists());
    let values: Vec<f64> = floats.iter().map(|(_, v)| *v).collect();
    let mixed = !floats.is_empty() && !hists.is_empty();
    let seconds = |t: i64| V::F(t as f64 / 1000.0);
    let (first, last) = (&window.samples[0], &window.samples[window.samples.len() - 1]);
    let scalar = |i: usize| args.scalars[i];
    let name = args.name;
    if matches!(name, "rate" | "increase" | "delta") {
        let (counter, per_second) = (name != "delta", name == "rate");
        return Ok(match args.edges {
            EdgeMode::Plain if mixed => None,
            EdgeMode::Plain => extrapolated(window, &floats, &hists, counter, per_second),
            mode => edges::rate(window, counter, per_second, mode == EdgeMode::Smoothed),
        });
    }
    let floats_only = match name {
        "min_over_time"
        | "max_over_time"
        | "ts_of_min_over_time"
        | "ts_of_max_over_time"
        | "stddev_over_time"
        | "stdvar_over_time"
        | "quantile_over_time"
        | "mad_over_time" => 1,
        "deriv" | "predict_linear" => 2,
        _ => 0,
    };
    if floats.len() < floats_only {
        return Ok(None);
    }
    let extreme = |better: fn(f64, f64) -> bool| {
        floats.iter().fold(floats[0], |best, at| if better(at.1, best.1) || best.1.is_nan() { *at } else { best })
    };
    Ok(Some(match name {
        "count_over_time" => V::F(window.samples.len() as f64),
        "present_over_time" => V::F(1.0),
        "first_over_time" => first.v.clone(),
        "last_over_time" => last.v.clone(),
        "ts_of_first_over_time" => seconds(first.t),
        // Prometheus knows no time before the epoch here.
        "ts_of_last_over_time" => seconds(last.t.max(0)),
        "sum_over_time" | "avg_over_time" if mixed => return Ok(None),
        "sum_over_time" | "avg_over_time" if floats.is_empty() => {
            let all: Vec<&Hist> = hists.iter().map(|(_, h)| &**h).collect();
            return Ok(total(&all, name == "avg_over_time").ok().map(|sum| V::hist(sum.finish())));
        }
        "sum_over_time" => V::F(values.iter().fold(Kahan::of(-0.0), |sum, v| sum.plus(*v)).value()),
        "avg_over_time" => V::F(floats::mean(&values)),
        "min_over_time" => V::F(extreme(|a, b| a < b).1),
        "max_over_time" => V::F(extreme(|a, b| a > b).1),
        "ts_of_min_over_time" => seconds(extreme(|a, b| a <= b).0),
        "ts_of_max_over_time" => seconds(extreme(|a, b| a >= b).0),
        "stdvar_over_time" => V::F(floats::variance_over_time(&values)),
        "stddev_over_time" => V::F(floats::variance_over_time(&values).sqrt()),
        "quantile_over_time" => V::F(quantile(scalar(0), &values)),
        "mad_over_time" if values.iter().any(|v| v.is_nan()) => V::F(f64::NAN),
        "mad_over_time" => {
            let median = quantile(0.5, &values);
            V::F(quantile(0.5, &values.iter().map(|v| (v - median).abs()).collect::<Vec<_>>()))
        }
        "deriv" => V::F(least_squares(&floats, floats[0].0).0),
        "predict_linear" => {
            let (slope, intercept) = least_squares(&floats, args.t);
            V::F(slope * scalar(0) + intercept)
        }
        "double_exponential_smoothing" => return double_exponential(&values, scalar(0), scalar(1)),
        "irate" | "idelta" => return Ok(of_last_two(window, name == "irate")),
        "changes" | "resets" => {
            let samples = match args.edges {
                EdgeMode::Anchored => edges::anchored(window),
                _ => Some(window.samples.clone()),
            };
            let Some(samples) = samples else { return Ok(None) };
            let count = samples.windows(2).filter(|w| differ(&w[0].v, &w[1].v, name == "resets")).count();
            V::F(count as f64)
        }
        other => panic!("{other} is no function of ranges"),
    }))
}

/// Whether `changes` or `resets` counts the step from one sample to the next.
fn differ(before: &V, after: &V, resets: bool) -> bool {
    match (before, after) {
        (V::F(a), V::F(b)) if resets => b < a,
        (V::F(a), V::F(b)) => a != b && !(a.is_nan() && b.is_nan()),
        (V::H(a), V::H(b)) if resets => b.is_reset(a),
        (V::H(a), V::H(b)) => !a.equals(b),
        _ => true,
    }
}

fn double_exponential(values: &[f64], smoothing: f64, trend: f64) -> Res<Option<V>> {
    for factor in [smoothing, trend] {
        if factor <= 0.0 || factor >= 1.0 {
            return Err(Fail::execution("invalid smoothing or trend factor"));
        }
    }
    let [first, second, ..] = values else { return Ok(None) };
    let (mut level_before, mut level, mut slope) = (0.0, *first, second - first);
    for (i, value) in values.iter().enumerate().skip(1) {
        if i > 1 {
            slope = trend * (level - level_before) + (1.0 - trend) * slope;
        }
        (level_before, level) = (level, smoothing * value + (1.0 - smoothing) * (level + slope));
    }
    Ok(Some(V::F(level)))
}

fn of_last_two(window: &Window, per_second: bool) -> Option<V> {
    let [.., before, last] = &window.samples[..] else { return None };
    let seconds = (last.t - before.t) as f64 / 1000.0;
    match (&before.v, &last.v) {
        (V::F(a), V::F(b)) => {
            let change = if per_second && b < a { *b } else { b - a };
            Some(V::F(if per_second { change / seconds } else { change }))
        }
        (V::H(a), V::H(b)) => {
            let change = if per_second && b.is_reset(a) { Hist::clone(b) } else { b.plus(a, -1.0).ok()? };
            let change = change.with_hint(ResetHint::Gauge).compact();
            Some(V::hist(if per_second { change.over(seconds) } else { change }))
        }
        _ => None,
    }
}

fn extrapolated(
    window: &Window,
    floats: &[(i64, f64)],
    hists: &[(i64, Rc<Hist>)],
    counter: bool,
    per_second: bool,
) -> Option<V> {
    let times: Vec<i64> = window.samples.iter().map(|s| s.t).collect();
    if times.len() < 2 {
        return None;
    }
    let (mut float, mut hist) = (0.0, None);
    // How large the counter was at first, and how much it grew.
    let (at_first, grown);
    if hists.is_empty() {
        float = floats[floats.len() - 1].1 - floats[0].1;
        if counter {
            floats.windows(2).filter(|w| w[1].1 < w[0].1).for_each(|w| float += w[0].1);
        }
        (at_first, grown) = (floats[0].1, float);
    } else {
        let change = hist_change(hists, counter)?;
        (at_first, grown) = (hists[0].1.count, change.count);
        hist = Some(change);
    }
    let mut to_start = (times[0] - window.start) as f64 / 1000.0;
    let mut to_end = (window.end - times[times.len() - 1]) as f64 / 1000.0;
    let sampled = (times[times.len() - 1] - times[0]) as f64 / 1000.0;
    let average = sampled / (times.len() - 1) as f64;
    if to_start >= average * 1.1 {
        to_start = average / 2.0;
    }
    if counter && grown > 0.0 && at_first >= 0.0 {
        let to_zero = sampled * (at_first / grown);
        if to_zero < to_start {
            to_start = to_zero;
        }
    }
    if to_end >= average * 1.1 {
        to_end = average / 2.0;
    }
    let mut factor = (sampled + to_start + to_end) / sampled;
    if per_second {
        factor /= window.seconds();
    }
    Some(match hist {
        None => V::F(float * factor),
        Some(change) => V::hist(change.times(factor).with_hint(ResetHint::Gauge)),
    })
}

fn hist_change(all: &[(i64, Rc<Hist>)], counter: bool) -> Option<Hist> {
    let last = &all[all.len() - 1].1;
    let mut before = Hist::clone(&all[0].1);
    if counter && all[1].1.is_reset(&before) {
        // What the first one looked like does not matter.
        before = Hist { bounds: all[1].1.bounds.clone(), ..Hist::empty(all[1].1.schema) };
    }
    let custom = before.is_custom();
    let between = if counter { &all[1..] } else { &all[all.len() - 1..] };
    if between.iter().any(|(_, h)| h.is_custom() != custom) {
        return None;
    }
    let coarsest = between.iter().map(|(_, h)| h.schema).chain([before.schema]).min()?;
    let mut sum = HistSum::of(&last.to_schema(coarsest), false);
    sum = HistSum::of(&sum.h.plus(&before, -1.0).ok()?, false);
    if counter {
        for (_, h) in &all[1..] {
            if h.is_reset(&before) {
                sum.add(&before).ok()?;
            }
            before = Hist::clone(h);
        }
    }
    Some(sum.finish().with_hint(ResetHint::Gauge))
}
