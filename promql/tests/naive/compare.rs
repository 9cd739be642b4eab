//! The engine's answer beside the model's.
//!
//! Equal means: the same series, the same times, floats of equal bits (every NaN is the same), histograms bucket for
//! bucket, errors of the same kind. Sums in another order may differ by 1e-12, relative to the larger.

use std::collections::BTreeMap;

use skald_model::Labels;
use skald_promql::ast::Expr;
use skald_promql::eval::{EvalParams, Interrupt, QueryContext, SampleValue, Value, evaluate};
use skald_promql::source::Queryable;
use skald_promql::testing::block_on;

use crate::evaluator::{Answer, Naive, Point};
use crate::histogram::{Buckets, Hist};
use crate::value::*;

pub const TOLERANCE: f64 = 1e-12;

/// What the engine says to a query.
pub fn engine(query: &Expr, params: &EvalParams, source: &dyn Queryable) -> Res<Answer> {
    let context = QueryContext::new(None, None, Interrupt::default());
    let result = block_on(evaluate(query, params, source, &context));
    let answer = match &result {
        Ok(output) => Ok(answer_of(&output.value)),
        Err(error) => Err(Fail { kind: error.error_type(), text: error.to_string() }),
    };
    drop(result);
    assert_eq!(context.bytes(), 0, "what a query holds is given back with its answer: {query}");
    answer
}

pub fn answer_of(value: &Value) -> Answer {
    let of = |v: &SampleValue| match v {
        SampleValue::Float(value) => V::F(*value),
        SampleValue::Histogram(h) => V::hist(Hist::of(h)),
    };
    match value {
        Value::String { value, .. } => Answer::Text(value.clone()),
        Value::Scalar { timestamp, value } => Answer::Points(vec![(Labels::empty(), *timestamp, V::F(*value))]),
        Value::Vector(elements) => {
            Answer::Points(elements.iter().map(|e| (e.labels.clone(), e.timestamp, of(&e.value))).collect())
        }
        Value::Matrix(series) => {
            let mut points = Vec::new();
            for s in series {
                let floats = s.samples.float_timestamps.iter().zip(&s.samples.float_values);
                points.extend(floats.map(|(t, v)| (s.labels.clone(), *t, V::F(*v))));
                let hists = s.samples.histogram_timestamps.iter().zip(&s.samples.histograms);
                points.extend(hists.map(|(t, h)| (s.labels.clone(), *t, V::hist(Hist::of(h)))));
            }
            Answer::Points(points)
        }
    }
}

/// What became of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Both gave the same points; there were some.
    Equal,
    /// Within the tolerance.
    Close,
    Empty,
    /// Both refused.
    Refused,
    /// The model itself gives another answer when aggregations take their input in another order.
    Unordered,
}

/// Compares the engine with the model; the error says how they differ.
pub fn check(query: &Expr, params: &EvalParams, data: &Data, source: &dyn Queryable) -> Result<Verdict, String> {
    let want = Naive::new(data, params, None).run(query);
    let got = engine(query, params, source);
    match same(&got, &want) {
        Ok(verdict) => Ok(verdict),
        Err(difference) => {
            if is_ordered(query, params, data) {
                Err(difference)
            } else {
                Ok(Verdict::Unordered)
            }
        }
    }
}

/// Whether the model's answer stays when aggregations take their input in other orders.
pub fn is_ordered(query: &Expr, params: &EvalParams, data: &Data) -> bool {
    let want = Naive::new(data, params, None).run(query);
    (1..=4).all(|salt| {
        let other = Naive::new(data, params, Some(salt)).run(query);
        matches!(same(&other, &want), Ok(verdict) if verdict != Verdict::Close)
    })
}

pub fn same(got: &Res<Answer>, want: &Res<Answer>) -> Result<Verdict, String> {
    let (got, want) = match (got, want) {
        (Err(got), Err(want)) if got.kind == want.kind => return Ok(Verdict::Refused),
        (Err(got), Err(want)) => return Err(format!("refused with {got:?}, want {want:?}")),
        (Err(got), Ok(want)) => return Err(format!("refused with {got:?}, want {want:?}")),
        (Ok(got), Err(want)) => return Err(format!("got {got:?}, want the refusal {want:?}")),
        (Ok(Answer::Text(got)), Ok(Answer::Text(want))) if got == want => return Ok(Verdict::Equal),
        (Ok(Answer::Points(got)), Ok(Answer::Points(want))) => (got, want),
        (Ok(got), Ok(want)) => return Err(format!("got {got:?}, want {want:?}")),
    };
    let key = |(labels, t, _): &Point| (labels.clone(), *t);
    let table = |points: &[Point]| points.iter().map(|p| (key(p), p.2.clone())).collect::<BTreeMap<_, _>>();
    let (got_by, want_by) = (table(got), table(want));
    if got_by.len() != got.len() {
        return Err("a series has two values at one time".to_owned());
    }
    if let Some(key) = want_by.keys().find(|key| !got_by.contains_key(key)) {
        return Err(format!("{} at {} is missing, want {:?}", key.0, key.1, want_by[key]));
    }
    if let Some(key) = got_by.keys().find(|key| !want_by.contains_key(key)) {
        return Err(format!("{} at {} is too much: {:?}", key.0, key.1, got_by[key]));
    }
    let mut verdict = if got.is_empty() { Verdict::Empty } else { Verdict::Equal };
    for (key, want) in &want_by {
        let got = &got_by[key];
        match closeness(got, want) {
            Some(true) => {}
            Some(false) => verdict = Verdict::Close,
            None => return Err(format!("{} at {}: got {got:?}, want {want:?}", key.0, key.1)),
        }
    }
    Ok(verdict)
}

/// Whether two values are equal or only close; nothing if they are neither.
fn closeness(got: &V, want: &V) -> Option<bool> {
    match (got, want) {
        (V::F(got), V::F(want)) => float_closeness(*got, *want, 0.0),
        (V::H(got), V::H(want)) => hist_closeness(got, want),
        _ => None,
    }
}

fn float_closeness(got: f64, want: f64, scale: f64) -> Option<bool> {
    if got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan() {
        return Some(true);
    }
    let close = (got - want).abs() <= TOLERANCE * got.abs().max(want.abs()).max(scale);
    close.then_some(false)
}

fn hist_closeness(got: &Hist, want: &Hist) -> Option<bool> {
    if got.equals(want) && got.hint == want.hint {
        return Some(true);
    }
    let scale = want.positive.values().chain(want.negative.values()).fold(want.count.abs(), |m, v| m.max(v.abs()));
    if !scale.is_finite() {
        // What a factor of NaN or infinity makes of empty buckets depends on whether they are there.
        return (float_closeness(got.count, want.count, 0.0).is_some() && got.schema == want.schema).then_some(false);
    }
    let layout = got.schema == want.schema
        && got.zero_threshold == want.zero_threshold
        && got.bounds == want.bounds
        && got.hint == want.hint;
    if !layout {
        return None;
    }
    let mut equal = float_closeness(got.count, want.count, scale)?;
    equal &= float_closeness(got.sum, want.sum, 0.0)?;
    equal &= float_closeness(got.zero_count, want.zero_count, scale)?;
    for (got, want) in [(&got.positive, &want.positive), (&got.negative, &want.negative)] {
        let at = |buckets: &Buckets, i: &i64| buckets.get(i).copied().unwrap_or(0.0) + 0.0;
        for i in got.keys().chain(want.keys()) {
            equal &= float_closeness(at(got, i), at(want, i), scale)?;
        }
    }
    Some(equal)
}

/// Points by labels and time.
pub fn sorted(mut points: Vec<Point>) -> Vec<Point> {
    points.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    points
}

/// Equal as Prometheus' scripts understand it: to the sixth digit, reset hints aside.
pub fn close_enough(got: &V, want: &V) -> bool {
    let float = |got: f64, want: f64| {
        let scale = got.abs() + want.abs();
        got == want || got.is_nan() && want.is_nan() || scale.is_finite() && (got - want).abs() / scale < 1e-6
    };
    match (got, want) {
        (V::F(got), V::F(want)) => float(*got, *want),
        (V::H(got), V::H(want)) => {
            let (got, want) = (got.compact(), want.compact());
            let buckets = |got: &Buckets, want: &Buckets| {
                got.len() == want.len() && got.iter().zip(want).all(|(a, b)| a.0 == b.0 && float(*a.1, *b.1))
            };
            got.schema == want.schema
                && got.bounds == want.bounds
                && got.zero_threshold == want.zero_threshold
                && float(got.zero_count, want.zero_count)
                && float(got.count, want.count)
                && float(got.sum, want.sum)
                && buckets(&got.positive, &want.positive)
                && buckets(&got.negative, &want.negative)
        }
        _ => false,
    }
}
