//! Arithmetic and comparisons between two vectors.
//!
//! The side that may hold one element per match group (the right one, with `group_right` the left one) is read first
//! and kept; the other, "many" side streams past it. Match groups are numbers, computed once per series.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use hashbrown::HashMap;
use skald_model::{Labels, LabelsBuilder};

use super::arithmetic::{Operation, keeps_name};
use crate::ast::{Cardinality, Span, VectorMatching};
use crate::eval::context::Charge;
use crate::eval::env::Env;
use crate::eval::error::EvalError;
use crate::eval::group_index::{GroupIndex, LabelSubset};
use crate::eval::operator::Operator;
use crate::eval::points::{Bits, Point, Points, StepSeries};

/// A binary operator between two vectors.
pub(crate) struct VectorVector {
    one: Box<dyn Operator>,
    many: Box<dyn Operator>,
    operation: Operation,
    matching: VectorMatching,
    /// `group_right`: the "many" side is the right one.
    many_right: bool,
    /// Result labels of the "many" side need no check: they cannot collide.
    many_unique: bool,
    index: GroupIndex,
    groups: Vec<OneGroup>,
    conflicts: Vec<Conflict>,
    /// Results per label set, where they may collide.
    results: HashMap<Labels, Bits, foldhash::fast::RandomState>,
    ready: VecDeque<StepSeries>,
    phase: Phase,
    steps: usize,
    scratch: Bits,
    charge: Charge,
    span: Span,
}

enum Phase {
    ReadOne,
    StreamMany,
    /// Elements of the "one" side without a partner, from this group on.
    Unmatched(usize),
}

/// What the "one" side has of a match group.
struct OneGroup {
    series: Vec<StepSeries>,
    present: Bits,
    /// The steps where a "many" element has met (or, with a fill value, could have met) this group.
    matched: Bits,
}

/// Steps where the "one" side has two elements of one group: an error if the "many" side is not empty there.
struct Conflict {
    steps: Bits,
    group: usize,
    series: [Labels; 2],
}

/// Conflicts kept with their series; of further ones only the steps, which the last one takes over.
const CONFLICTS: usize = 64;

impl VectorVector {
    pub(crate) fn new(
        (lhs, rhs): (Box<dyn Operator>, Box<dyn Operator>),
        many_unique: bool,
        operation: Operation,
        matching: VectorMatching,
        steps: usize,
        charge: Charge,
        span: Span,
    ) -> Self {
        let many_right = matching.cardinality == Cardinality::OneToMany;
        let (one, many) = if many_right { (lhs, rhs) } else { (rhs, lhs) };
        let subset =
            if matching.on { LabelSubset::only(&matching.labels) } else { LabelSubset::without(&matching.labels) };
        Self {
            one,
            many,
            operation,
            many_right,
            many_unique: many_unique && matching.include.is_empty(),
            matching,
            index: GroupIndex::new(subset),
            groups: Vec::new(),
            conflicts: Vec::new(),
            results: HashMap::default(),
            ready: VecDeque::new(),
            phase: Phase::ReadOne,
            steps,
            scratch: Bits::default(),
            charge,
            span,
        }
    }

    fn one_to_one(&self) -> bool {
        self.matching.cardinality == Cardinality::OneToOne
    }

    /// The constant a missing element of the "one" side is replaced with. As in Prometheus, `group_right` changes the
    /// sides before the fill values are looked at: `fill_right` is for the "one" side in either case.
    fn fill_one(&self) -> Option<f64> {
        self.matching.fill_right
    }

    fn fill_many(&self) -> Option<f64> {
        self.matching.fill_left
    }

    fn group(&mut self, labels: &Labels) -> Result<usize, EvalError> {
        let id = self.index.insert(labels);
        if id == self.groups.len() {
            self.charge.grow(self.steps / 4 + 2 * size_of::<OneGroup>() + 96 + self.index.key_bytes(id), self.span)?;
            let (present, matched) = (Bits::new(self.steps), Bits::new(self.steps));
            self.groups.push(OneGroup { series: Vec::new(), present, matched });
        }
        Ok(id)
    }

    fn keep_one(&mut self, mut series: StepSeries) -> Result<(), EvalError> {
        let id = self.group(&series.labels)?;
        series.hold(self.span)?;
        let group = &mut self.groups[id];
        series.points.presence(&mut self.scratch);
        if group.present.intersects(&self.scratch) {
            let mut steps = self.scratch.clone();
            steps.intersect(&group.present);
            let full = self.conflicts.len() >= CONFLICTS;
            match self.conflicts.last_mut().filter(|_| full) {
                Some(last) => last.steps.unite(&steps),
                None => {
                    let other = group.series.iter().find(|other| {
                        let mut present = Bits::default();
                        other.points.presence(&mut present);
                        present.intersects(&steps)
                    });
                    let other = other.map_or_else(Labels::empty, |s| s.labels.clone());
                    self.conflicts.push(Conflict { steps, group: id, series: [other, series.labels.clone()] });
                }
            }
        }
        group.present.unite(&self.scratch);
        group.series.push(series);
        // With a fill value it does not matter whether the other side has anything.
        if self.fill_one().is_some() || self.fill_many().is_some() {
            return self.check_conflicts();
        }
        Ok(())
    }

    /// An element of the "many" side is there at a step where the "one" side is ambiguous.
    fn check_conflicts(&self) -> Result<(), EvalError> {
        let Some(conflict) = self.conflicts.iter().find(|c| c.steps.intersects(&self.scratch)) else { return Ok(()) };
        let group = self.index.labels(conflict.group);
        let mut series = conflict.series.clone();
        series.sort();
        let [first, second] = series;
        let side = if self.many_right { "left" } else { "right" };
        Err(EvalError::Execution(format!(
            "found duplicate series for the match group {group} on the {side} hand-side of the operation: \
             [{first}, {second}];many-to-many matching not allowed: matching labels must be unique on one side"
        )))
    }

    fn join(&mut self, many: StepSeries, env: &mut Env<'_>) -> Result<(), EvalError> {
        many.points.presence(&mut self.scratch);
        self.check_conflicts()?;
        let fill = self.fill_one();
        let id = match (self.index.get(&many.labels), fill) {
            (Some(id), _) => id,
            (None, None) => {
                env.recycle(many.points);
                return Ok(());
            }
            (None, Some(_)) => self.group(&many.labels)?,
        };
        let meeting = self.meeting(id, &many.points, fill);
        let group = &mut self.groups[id];
        if self.matching.cardinality == Cardinality::OneToOne && group.matched.intersects(&meeting) {
            let text = "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)";
            return Err(EvalError::Execution(text.to_owned()));
        }
        group.matched.unite(&meeting);
        // Series are taken out while they are combined, so that the rest of the operator stays reachable.
        let partners = std::mem::take(&mut group.series);
        for one in &partners {
            self.combine(&many.labels, Side::Of(&many.points), &one.labels, Side::Of(&one.points), env)?;
        }
        self.groups[id].series = partners;
        if let Some(value) = fill {
            let mut alone = self.scratch.clone();
            alone.subtract(&self.groups[id].present);
            if !alone.is_empty() {
                let labels = self.index.labels(id);
                let filled = Side::Constant(value, &alone);
                self.combine(&many.labels, Side::Of(&many.points), &labels, filled, env)?;
            }
        }
        env.recycle(many.points);
        Ok(())
    }

    /// The steps where a "many" series meets an element of its group, or the fill value, and the operator has a meaning
    /// for the two.
    fn meeting(&self, id: usize, many: &Points, fill: Option<f64>) -> Bits {
        let mut all = self.scratch.clone();
        let group = &self.groups[id];
        if fill.is_none() {
            all.intersect(&group.present);
        }
        let mut alone = self.scratch.clone();
        alone.subtract(&group.present);
        let constant = fill.map(|value| Side::Constant(value, &alone));
        let ones = group.series.iter().map(|one| Side::Of(&one.points)).chain(constant);
        let (mut fitting, mut present) = (Bits::new(self.steps), Bits::default());
        for one in ones {
            one.presence(&mut present, self.steps);
            present.intersect(&all);
            self.retain_fitting(&Side::Of(many), &one, &mut present);
            fitting.unite(&present);
        }
        fitting
    }

    fn retain_fitting(&self, many: &Side<'_>, one: &Side<'_>, met: &mut Bits) {
        let (lhs, rhs) = if self.many_right { (one, many) } else { (many, one) };
        self.operation.retain_fitting(lhs, rhs, met);
    }

    /// Pairs the elements of the "one" side that met nobody with the fill value of the "many" side.
    fn join_unmatched(&mut self, id: usize, env: &mut Env<'_>) -> Result<(), EvalError> {
        let Some(value) = self.fill_many() else { return Ok(()) };
        let labels = self.index.labels(id);
        let group = &mut self.groups[id];
        let mut alone = group.present.clone();
        alone.subtract(&group.matched);
        let partners = std::mem::take(&mut group.series);
        for one in &partners {
            let filled = Side::Constant(value, &alone);
            self.combine(&labels, filled, &one.labels, Side::Of(&one.points), env)?;
        }
        Ok(())
    }

    /// Applies the operator at the steps both sides have and queues the result, if there is any.
    fn combine(
        &mut self,
        many_labels: &Labels,
        many: Side<'_>,
        one_labels: &Labels,
        one: Side<'_>,
        env: &mut Env<'_>,
    ) -> Result<(), EvalError> {
        let mut out = env.points(self.steps, self.span)?;
        let (lhs, rhs) = if self.many_right { (&one, &many) } else { (&many, &one) };
        env.tick(self.steps)?;
        let mut met = Bits::default();
        lhs.presence(&mut met, self.steps);
        let mut other = Bits::default();
        rhs.presence(&mut other, self.steps);
        met.intersect(&other);
        if met.is_empty() {
            env.recycle(out);
            return Ok(());
        }
        self.operation.apply(lhs, rhs, &met, &mut out, self.span, env)?;
        let labels = self.result_labels(many_labels, one_labels, env);
        if !self.one_to_one() && !self.many_unique {
            self.operation.retain_fitting(lhs, rhs, &mut met);
            self.check_result(&labels, &met)?;
        }
        if out.is_empty() {
            env.recycle(out);
            return Ok(());
        }
        // As in Prometheus, what a filter lets through is no longer marked as without a name.
        let drop_name = env.names.delayed && self.operation.return_bool;
        self.ready.push_back(StepSeries { labels, drop_name, points: out });
        Ok(())
    }

    fn check_result(&mut self, labels: &Labels, met: &Bits) -> Result<(), EvalError> {
        if let Some(seen) = self.results.get_mut(labels) {
            if seen.intersects(met) {
                let text = "multiple matches for labels: grouping labels must ensure unique matches";
                return Err(EvalError::Execution(text.to_owned()));
            }
            seen.unite(met);
        } else {
            self.charge.grow(self.steps / 8 + 128 + labels.as_bytes().len(), self.span)?;
            self.results.insert(labels.clone(), met.clone());
        }
        Ok(())
    }

    fn result_labels(&self, many: &Labels, one: &Labels, env: &Env<'_>) -> Labels {
        let drops = !keeps_name(self.operation.op) || (self.operation.return_bool && !env.names.delayed);
        let labels = if drops { env.names.strip(many) } else { many.clone() };
        if self.one_to_one() {
            let listed = |name: &str| self.matching.labels.iter().any(|l| l == name);
            let on = self.matching.on;
            return Labels::from_sorted(labels.iter().filter(|(name, _)| listed(name) == on));
        }
        if self.matching.include.is_empty() {
            return labels;
        }
        let mut builder = LabelsBuilder::new(&labels);
        for name in &self.matching.include {
            builder.set(name, one.get(name).unwrap_or(""));
        }
        builder.build()
    }
}

/// One operand of a pair: a series, or a fill value at some steps.
pub(crate) enum Side<'a> {
    Of(&'a Points),
    Constant(f64, &'a Bits),
}

impl Side<'_> {
    pub(crate) fn has_histograms(&self) -> bool {
        matches!(self, Self::Of(points) if points.has_histograms())
    }

    /// The float of a step that has one.
    #[inline]
    pub(crate) fn float(&self, step: usize) -> f64 {
        match self {
            Self::Of(points) => points.values[step],
            Self::Constant(value, _) => *value,
        }
    }

    pub(crate) fn get(&self, step: usize) -> Option<Point> {
        match self {
            Self::Of(points) => points.get(step),
            Self::Constant(value, bits) => bits.get(step).then_some(Point::Float(*value)),
        }
    }

    fn presence(&self, out: &mut Bits, steps: usize) {
        match self {
            Self::Of(points) => points.presence(out),
            Self::Constant(_, bits) => {
                out.reset(steps);
                out.unite(bits);
            }
        }
    }
}

impl Operator for VectorVector {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        loop {
            if let Some(series) = self.ready.pop_front() {
                return Poll::Ready(Ok(Some(series)));
            }
            match self.phase {
                Phase::ReadOne => match ready!(self.one.poll_next(cx, env))? {
                    Some(series) => {
                        env.tick(1)?;
                        self.keep_one(series)?;
                    }
                    None => self.phase = Phase::StreamMany,
                },
                Phase::StreamMany => match ready!(self.many.poll_next(cx, env))? {
                    Some(series) => self.join(series, env)?,
                    None => self.phase = Phase::Unmatched(0),
                },
                Phase::Unmatched(id) => {
                    if id == self.groups.len() || self.fill_many().is_none() {
                        return Poll::Ready(Ok(None));
                    }
                    self.phase = Phase::Unmatched(id + 1);
                    self.join_unmatched(id, env)?;
                }
            }
        }
    }
}
