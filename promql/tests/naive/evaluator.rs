//! The model: plain recursion over the syntax tree, one step at a time.
//!
//! A step knows the grid it belongs to, because a few facts of the language are facts of all steps together: which
//! series collide after a function of range vectors, what `info` selects, which inner steps a subquery evaluates.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use skald_model::{Labels, METRIC_NAME, ResetHint};
use skald_promql::ast::{
    AggregateOp, AtModifier, BinaryOp, Duration, DurationExpr, EdgeMode, Expr, MatrixSelector, Subquery, ValueType,
    VectorSelector,
};
use skald_promql::eval::EvalParams;

use crate::floats::{go_max, go_min};
use crate::histogram::Hist;
use crate::value::*;

type Memo<T> = RefCell<HashMap<(usize, Grid), Res<Rc<T>>>>;

/// Series of a subquery: labels, drop flag, samples.
pub type Inner = Vec<(Labels, bool, Vec<Sample>)>;

pub struct Naive<'d> {
    pub data: &'d Data,
    pub params: &'d EvalParams,
    /// Aggregations take their input in another order: what changes by that depends on an order that nobody promises.
    pub shuffled: Option<u64>,
    /// Selectors of whose histograms only counts and sums are used.
    counted: HashSet<usize>,
    subqueries: Memo<Inner>,
    pub range_calls: Memo<Vec<Vec<Elem>>>,
}

/// One point of an answer.
pub type Point = (Labels, i64, V);

/// What a query yields, in the order of the evaluation.
#[derive(Clone, Debug)]
pub enum Answer {
    Text(String),
    Points(Vec<Point>),
}

impl<'d> Naive<'d> {
    pub fn new(data: &'d Data, params: &'d EvalParams, shuffled: Option<u64>) -> Self {
        let (counted, subqueries) = (HashSet::new(), Memo::default());
        Self { data, params, shuffled, counted, subqueries, range_calls: Memo::default() }
    }

    pub fn run(mut self, query: &Expr) -> Res<Answer> {
        self.check_durations(query)?;
        self.note_counted(query, false);
        let p = self.params;
        let grid = match p.step_ms {
            0 => Grid::one(p.start_ms),
            step => Grid { start: p.start_ms, step, count: (p.end_ms - p.start_ms) / step + 1 },
        };
        let mut points = Vec::new();
        match query.value_type() {
            ValueType::String => return Ok(Answer::Text(text_of(query).to_owned())),
            ValueType::Matrix if p.step_ms == 0 => {
                for window in self.windows(query, p.start_ms, grid)? {
                    let labels = self.without_dropped_name(window.labels, window.drop);
                    points.extend(window.samples.into_iter().map(|s| (labels.clone(), s.t, s.v)));
                }
            }
            ValueType::Matrix => return Err(Fail::bad_data("invalid expression type")),
            ValueType::Scalar => {
                for t in grid.times() {
                    points.push((Labels::empty(), t, V::F(self.scalar(query, t, grid)?)));
                }
            }
            ValueType::Vector => {
                for t in grid.times() {
                    let mut elems = self.vector(query, t, grid)?;
                    for e in &mut elems {
                        e.labels = self.without_dropped_name(e.labels.clone(), e.drop);
                    }
                    check_unique(&elems)?;
                    points.extend(elems.into_iter().map(|e| (e.labels, t, e.v)));
                }
            }
        }
        Ok(Answer::Points(points))
    }

    /// Notes the selectors below `histogram_count` and its like. Prometheus drops the buckets of what they find, after
    /// it has looked for resets; that shows where it later looks for resets once more, of gauges for example.
    fn note_counted(&mut self, e: &Expr, counts: bool) {
        let selector = match e {
            Expr::Vector(selector) => Some(selector),
            Expr::Matrix(matrix) => Some(&matrix.selector),
            _ => None,
        };
        if let Some(selector) = selector.filter(|_| counts) {
            self.counted.insert(std::ptr::from_ref(selector) as usize);
        }
        let counts = match e {
            Expr::Call(call) if call.function.name.starts_with("histogram_") => {
                matches!(call.function.name, "histogram_count" | "histogram_sum" | "histogram_avg")
            }
            Expr::Subquery(_) | Expr::Binary(_) => false,
            _ => counts,
        };
        for child in e.children() {
            self.note_counted(child, counts);
        }
    }

    fn without_dropped_name(&self, labels: Labels, drop: bool) -> Labels {
        if drop && self.params.delayed_name_removal { self.strip(&labels) } else { labels }
    }

    /// The labels without the metric name and what belongs to it.
    pub fn strip(&self, labels: &Labels) -> Labels {
        let with_name = |name: &str| self.params.type_and_unit_labels && matches!(name, "__type__" | "__unit__");
        filtered(labels, |name| name != METRIC_NAME && !with_name(name))
    }

    /// The element after an operation that drops its name: at once, or by a flag.
    pub fn drop_name(&self, mut e: Elem, v: V) -> Elem {
        if !self.params.delayed_name_removal {
            e.labels = self.strip(&e.labels);
        }
        Elem { drop: true, v, ..e }
    }

    /// Refuses equal labels where Prometheus looks for them after each operation.
    pub fn unique(&self, elems: Vec<Elem>, grid: Grid) -> Res<Vec<Elem>> {
        if !self.params.delayed_name_removal || grid.count > 1 {
            check_unique(&elems)?;
        }
        Ok(elems)
    }

    pub fn scalar(&self, e: &Expr, t: i64, grid: Grid) -> Res<f64> {
        Ok(match e {
            Expr::Number(number) => number.value,
            Expr::Paren(paren) => self.scalar(&paren.expr, t, grid)?,
            Expr::Unary(unary) => {
                let value = self.scalar(&unary.expr, t, grid)?;
                if unary.negative { -value } else { value }
            }
            Expr::Binary(binary) => {
                let (a, b) = (self.scalar(&binary.lhs, t, grid)?, self.scalar(&binary.rhs, t, grid)?);
                match crate::binary::compare(binary.op, a, b) {
                    Some(holds) => f64::from(u8::from(holds)),
                    None => crate::binary::arithmetic(binary.op, a, b),
                }
            }
            Expr::Call(call) => {
                let p = self.params;
                match (call.function.name, &call.args[..]) {
                    ("time", _) => t as f64 / 1000.0,
                    ("pi", _) => std::f64::consts::PI,
                    ("start", _) => p.start_ms as f64 / 1000.0,
                    ("end", _) => p.end_ms as f64 / 1000.0,
                    ("step", _) => p.step_ms as f64 / 1000.0,
                    ("range", _) => (p.end_ms - p.start_ms) as f64 / 1000.0,
                    ("min_of", [a, b]) => go_min(self.scalar(a, t, grid)?, self.scalar(b, t, grid)?),
                    ("max_of", [a, b]) => go_max(self.scalar(a, t, grid)?, self.scalar(b, t, grid)?),
                    ("scalar", [v]) => {
                        let elems = self.vector(v, t, grid)?;
                        let floats: Vec<f64> = elems.iter().filter_map(|e| e.v.float()).collect();
                        if let [one] = floats[..] { one } else { f64::NAN }
                    }
                    (name, _) => panic!("{name} is no scalar"),
                }
            }
            other => panic!("{other} is no scalar"),
        })
    }

    pub fn vector(&self, e: &Expr, t: i64, grid: Grid) -> Res<Vec<Elem>> {
        // What does not depend on the step is worked out at the first one.
        let (t, grid) = if grid.count > 1 && is_invariant(e) { (grid.start, Grid::one(grid.start)) } else { (t, grid) };
        match e {
            Expr::Paren(paren) => self.vector(&paren.expr, t, grid),
            Expr::Vector(selector) => self.selector(selector, t),
            Expr::Unary(unary) => {
                let elems = self.vector(&unary.expr, t, grid)?;
                if !unary.negative {
                    return Ok(elems);
                }
                let negated = elems.into_iter().map(|e| {
                    let v = match &e.v {
                        V::F(value) => V::F(-value),
                        V::H(h) => V::hist(h.times(-1.0)),
                    };
                    self.drop_name(e, v)
                });
                let negated: Vec<Elem> = negated.collect();
                if !self.params.delayed_name_removal {
                    check_unique(&negated)?;
                }
                Ok(negated)
            }
            Expr::Binary(binary) => self.binary(binary, t, grid),
            Expr::Call(call) => self.call(call, t, grid),
            Expr::Aggregate(aggregate) => self.aggregate(aggregate, t, grid),
            other => panic!("{other} is no vector"),
        }
    }

    pub fn shifted(&self, at: Option<AtModifier>, offset: Option<&Duration>, t: i64) -> i64 {
        let at = match at {
            None => t,
            Some(AtModifier::Timestamp(at)) => at,
            Some(AtModifier::Start) => self.params.start_ms,
            Some(AtModifier::End) => self.params.end_ms,
        };
        at - offset.map_or(0, |offset| self.duration(offset))
    }

    /// The newest sample at most the lookback old; nothing after a stale marker.
    pub fn newest<'s>(&self, samples: &'s [Sample], t: i64) -> Option<&'s Sample> {
        let newest = samples.iter().rfind(|s| s.t <= t)?;
        (newest.t > t - self.params.lookback_ms && !newest.v.is_stale()).then_some(newest)
    }

    pub fn matching(&self, selector: &VectorSelector) -> Vec<(&'d Labels, Cow<'d, [Sample]>)> {
        let matches = |labels: &Labels| selector.matchers.iter().all(|m| m.matches(label(labels, m.name())));
        let found = self.data.iter().filter(|(labels, _)| matches(labels));
        let counted = self.counted.contains(&(std::ptr::from_ref(selector) as usize));
        let samples = |all: &'d Vec<Sample>| if counted { counts_of(all).into() } else { all.into() };
        found.map(|(labels, all)| (labels, samples(all))).collect()
    }

    fn selector(&self, selector: &VectorSelector, t: i64) -> Res<Vec<Elem>> {
        let t = self.shifted(selector.at, selector.offset.as_ref(), t);
        let mut elems = Vec::new();
        for (labels, samples) in self.matching(selector) {
            let v = match selector.edges {
                // Without a window there is nothing to anchor.
                EdgeMode::Plain | EdgeMode::Anchored => self.newest(&samples, t).map(|s| s.v.clone()),
                EdgeMode::Smoothed => crate::edges::smoothed(&samples, t, self.params.lookback_ms),
            };
            elems.extend(v.map(|v| Elem { labels: labels.clone(), drop: false, v }));
        }
        Ok(elems)
    }

    /// The windows of a range vector, the empty ones left out.
    pub fn windows(&self, e: &Expr, t: i64, grid: Grid) -> Res<Vec<Window>> {
        match e {
            Expr::Paren(paren) => self.windows(&paren.expr, t, grid),
            Expr::Matrix(matrix) => Ok(self.range_selector(matrix, t)),
            Expr::Subquery(subquery) => self.subquery(subquery, t, grid),
            other => panic!("{other} is no range vector"),
        }
    }

    fn range_selector(&self, matrix: &MatrixSelector, t: i64) -> Vec<Window> {
        let selector = &matrix.selector;
        let end = self.shifted(selector.at, selector.offset.as_ref(), t);
        let start = end - self.duration(&matrix.range);
        let lookback = self.params.lookback_ms;
        let (before, after) = match selector.edges {
            EdgeMode::Plain => (0, 0),
            EdgeMode::Anchored => (lookback, 0),
            EdgeMode::Smoothed => (lookback, lookback),
        };
        let window = |(labels, samples): (&Labels, Cow<'_, [Sample]>)| {
            let inside = |s: &&Sample| start - before < s.t && s.t <= end + after && !s.v.is_stale();
            let samples: Vec<Sample> = samples.iter().filter(inside).cloned().collect();
            Window { labels: labels.clone(), drop: false, start, end, samples }
        };
        self.matching(selector).into_iter().map(window).filter(|w| !w.samples.is_empty()).collect()
    }

    fn subquery(&self, subquery: &Subquery, t: i64, grid: Grid) -> Res<Vec<Window>> {
        let range = self.duration(&subquery.range);
        let step = subquery.step.as_ref().map_or(self.params.default_subquery_step_ms, |step| self.duration(step));
        let shift = |t: i64| self.shifted(subquery.at, subquery.offset.as_ref(), t);
        // The inner steps of all outer steps together.
        let left = shift(grid.start) - range;
        let mut first = left / step * step;
        if first <= left {
            first += step;
        }
        let last = shift(grid.last());
        let count = if last < first { 0 } else { (last - first) / step + 1 };
        let inner = Grid { start: first, step, count };
        let series = self.inner(&subquery.expr, inner)?;
        let end = shift(t);
        let start = end - range;
        let window = |(labels, drop, samples): &(Labels, bool, Vec<Sample>)| {
            let samples: Vec<Sample> = samples.iter().filter(|s| start < s.t && s.t <= end).cloned().collect();
            Window { labels: labels.clone(), drop: *drop, start, end, samples }
        };
        Ok(series.iter().map(window).filter(|w| !w.samples.is_empty()).collect())
    }

    /// A subquery's expression on its own grid; worked out once.
    fn inner(&self, e: &Expr, grid: Grid) -> Res<Rc<Inner>> {
        let key = (std::ptr::from_ref(e) as usize, grid);
        if let Some(known) = self.subqueries.borrow().get(&key) {
            return known.clone();
        }
        let evaluate = || -> Res<Rc<Inner>> {
            let mut series: Inner = Vec::new();
            for t in grid.times() {
                let elems = self.vector(e, t, grid)?;
                check_unique(&elems)?;
                for e in elems {
                    let v = match &e.v {
                        // What is known of resets is not known between the steps of a subquery.
                        V::H(h) if h.hint != ResetHint::Gauge => V::hist(h.with_hint(ResetHint::Unknown)),
                        v => v.clone(),
                    };
                    match series.iter_mut().find(|(labels, ..)| *labels == e.labels) {
                        Some((.., samples)) => samples.push(Sample { t, v }),
                        None => series.push((e.labels, e.drop, vec![Sample { t, v }])),
                    }
                }
            }
            Ok(Rc::new(series))
        };
        let result = evaluate();
        self.subqueries.borrow_mut().insert(key, result.clone());
        result
    }

    /// Milliseconds; what cannot be one was refused before.
    pub fn duration(&self, duration: &Duration) -> i64 {
        match duration {
            Duration::Literal(ms) => *ms,
            Duration::Expr(expr) => (self.seconds(expr).unwrap_or(f64::NAN) * 1000.0) as i64,
        }
    }

    fn seconds(&self, e: &DurationExpr) -> Res<f64> {
        Ok(match e {
            DurationExpr::Number { seconds, .. } => *seconds,
            DurationExpr::Step(_) => self.params.step_ms as f64 / 1000.0,
            DurationExpr::Range(_) => (self.params.end_ms - self.params.start_ms) as f64 / 1000.0,
            DurationExpr::Unary { negative, expr, .. } => self.seconds(expr)? * if *negative { -1.0 } else { 1.0 },
            DurationExpr::Paren(expr, _) => self.seconds(expr)?,
            DurationExpr::MinMax { max, lhs, rhs, .. } => {
                let (a, b) = (self.seconds(lhs)?, self.seconds(rhs)?);
                if *max { go_max(a, b) } else { go_min(a, b) }
            }
            DurationExpr::Binary { op, lhs, rhs, .. } => {
                let (a, b) = (self.seconds(lhs)?, self.seconds(rhs)?);
                if b == 0.0 && matches!(op, BinaryOp::Div | BinaryOp::Mod) {
                    return Err(Fail::bad_data("division by zero"));
                }
                crate::binary::arithmetic(*op, a, b)
            }
        })
    }

    fn check_durations(&self, query: &Expr) -> Res<()> {
        let check = |duration: &Duration, positive: bool| {
            let Duration::Expr(expr) = duration else { return Ok(()) };
            let seconds = self.seconds(expr)?;
            if !seconds.is_finite() || seconds.abs() > i64::MAX as f64 / 1e9 {
                return Err(Fail::bad_data("duration out of range"));
            }
            if positive && seconds <= 0.0 {
                return Err(Fail::bad_data("duration must be greater than 0"));
            }
            Ok(())
        };
        let selector = |s: &VectorSelector| s.offset.as_ref().map_or(Ok(()), |offset| check(offset, false));
        for e in query.descendants() {
            match e {
                Expr::Vector(s) => selector(s)?,
                Expr::Matrix(m) => {
                    selector(&m.selector)?;
                    check(&m.range, true)?;
                }
                Expr::Subquery(s) => {
                    check(&s.range, true)?;
                    s.step.as_ref().map_or(Ok(()), |step| check(step, true))?;
                    s.offset.as_ref().map_or(Ok(()), |offset| check(offset, false))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The samples with counts and sums only; whether a histogram follows a reset is said by then.
fn counts_of(samples: &[Sample]) -> Vec<Sample> {
    let mut before: Option<Rc<Hist>> = None;
    let mut all = Vec::new();
    for s in samples {
        let V::H(h) = &s.v else {
            all.push(s.clone());
            continue;
        };
        if s.v.is_stale() {
            all.push(s.clone());
            continue;
        }
        let hint = match (&before, h.hint) {
            (Some(before), ResetHint::Unknown) if h.is_reset(before) => ResetHint::Reset,
            (Some(_), ResetHint::Unknown) => ResetHint::NotReset,
            (_, hint) => hint,
        };
        before = Some(Rc::new(h.with_hint(hint)));
        let bounds = h.bounds.clone();
        let counts = Hist { hint, bounds, count: h.count, sum: h.sum, ..Hist::empty(h.schema) };
        all.push(Sample { t: s.t, v: V::hist(counts) });
    }
    all
}

pub fn check_unique(elems: &[Elem]) -> Res<()> {
    for (i, e) in elems.iter().enumerate() {
        if elems[..i].iter().any(|other| other.labels == e.labels) {
            return Err(Fail::duplicate());
        }
    }
    Ok(())
}

/// The text of a string expression.
pub fn text_of(e: &Expr) -> &str {
    match e {
        Expr::String(text) => &text.value,
        Expr::Paren(paren) => text_of(&paren.expr),
        other => panic!("{other} is no string"),
    }
}

pub fn without_parens(e: &Expr) -> &Expr {
    match e {
        Expr::Paren(paren) => without_parens(&paren.expr),
        _ => e,
    }
}

/// Whether an expression is worked out once for all steps.
fn is_invariant(e: &Expr) -> bool {
    match e {
        Expr::Number(_) | Expr::String(_) => true,
        Expr::Vector(s) => s.at.is_some(),
        Expr::Matrix(m) => m.selector.at.is_some(),
        Expr::Subquery(s) => s.at.is_some(),
        Expr::Paren(paren) => is_invariant(&paren.expr),
        Expr::Unary(unary) => is_invariant(&unary.expr),
        Expr::Binary(binary) => is_invariant(&binary.lhs) && is_invariant(&binary.rhs),
        Expr::Aggregate(aggregate) => {
            debug_assert!(aggregate.op != AggregateOp::Sum || aggregate.param.is_none());
            is_invariant(&aggregate.expr) && aggregate.param.as_deref().is_none_or(is_invariant)
        }
        Expr::Call(call) => {
            const LOOKS_AT_TIME: &[&str] = &[
                "time",
                "timestamp",
                "start_timestamp",
                "predict_linear",
                "minute",
                "hour",
                "day_of_week",
                "day_of_month",
                "day_of_year",
                "days_in_month",
                "month",
                "year",
            ];
            !LOOKS_AT_TIME.contains(&call.function.name) && call.args.iter().all(is_invariant)
        }
    }
}
