//! What the operators of one query share.

use std::time::Duration;

use skald_model::{Labels, METRIC_NAME};

use super::annotations::Annotations;
use super::context::{Charge, Clock, QueryContext};
use super::error::EvalError;
use super::explain::Explain;
use super::output::QueryStats;
use super::points::{Points, StepSeries, histogram_bytes};
use crate::ast::Span;
use crate::plan::{Counted, Plan};

/// Work units (roughly: samples looked at) between two looks at the interrupt.
const WORK_PER_CHECK: usize = 1 << 15;
/// Points kept for reuse: so many, and of few steps as many more as take up so many bytes. A piece of a one-step query makes
/// points for hundreds of series, and a thread that frees what another one has allocated is slow.
const SPARE_POINTS: usize = 16;
const SPARE_BYTES: usize = 128 << 10;

/// What the operators of one query share: its bounds, what it has said and counted, spare buffers.
pub(crate) struct Env<'q> {
    pub(crate) context: &'q QueryContext,
    pub(crate) annotations: Annotations,
    pub(crate) stats: QueryStats,
    pub(crate) names: Names,
    /// Threads that may work on one part of the query at a time.
    pub(crate) workers: usize,
    /// Where the cost of each node is noted, if anyone wants to know.
    pub(crate) explain: Option<Explain>,
    spare: Vec<Points>,
    most_spare: usize,
    work: usize,
    /// What stays as long as the query: scalars that were worked out, regexes.
    kept: Charge,
}

/// What was said and counted while a piece of a query was worked on.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) annotations: Annotations,
    pub(crate) stats: QueryStats,
    pub(crate) names: Names,
    /// How long it took, if anyone wants to know.
    pub(crate) took: Duration,
    /// Points that were not used.
    pub(crate) spare: Vec<Points>,
}

impl<'q> Env<'q> {
    pub(crate) fn new(context: &'q QueryContext, plan: &Plan) -> Self {
        let names = Names { delayed: plan.delayed_name_removal, type_and_unit: plan.type_and_unit_labels };
        let workers = context.workers().map_or(1, |workers| workers.threads().max(1));
        Self {
            context,
            annotations: Annotations::default(),
            stats: QueryStats::default(),
            names,
            workers,
            explain: context.clock().map(|clock| Explain::new(plan, clock)),
            spare: Vec::new(),
            most_spare: if workers > 1 { SPARE_POINTS * workers } else { SPARE_POINTS },
            work: 0,
            kept: Charge::new(context.budget()),
        }
    }

    /// The surroundings of a piece of a query that is worked on elsewhere.
    pub(crate) fn of_piece(context: &'q QueryContext, said: Said, spare: Vec<Points>) -> Self {
        Self {
            context,
            annotations: said.annotations,
            stats: said.stats,
            names: said.names,
            workers: 1,
            explain: None,
            most_spare: SPARE_POINTS.max(spare.len()),
            spare,
            work: 0,
            kept: Charge::new(context.budget()),
        }
    }

    /// What a piece begins with: nothing said, room for the statistics the query wants.
    pub(crate) fn said_of_a_piece(&self) -> Said {
        let steps = self.stats.queryable_samples_per_step.len();
        let stats = QueryStats { queryable_samples_per_step: vec![0; steps], ..QueryStats::default() };
        Said { stats, names: self.names, ..Said::default() }
    }

    /// What was said and counted, the piece having been begun at `begun`.
    pub(crate) fn into_said(self, begun: Option<Duration>) -> Said {
        let took = self.now().zip(begun).map_or(Duration::ZERO, |(now, begun)| now.saturating_sub(begun));
        Said { annotations: self.annotations, stats: self.stats, names: self.names, took, spare: self.spare }
    }

    /// Takes over what was said and counted of a piece.
    pub(crate) fn take_in(&mut self, said: Said) {
        self.annotations.merge(said.annotations);
        self.stats.add(&said.stats);
        said.spare.into_iter().for_each(|points| self.recycle(points));
    }

    /// Up to `count` spare points, for a piece to use.
    pub(crate) fn take_spare(&mut self, count: usize) -> Vec<Points> {
        let kept = self.spare.len().saturating_sub(count);
        self.spare.split_off(kept)
    }

    /// The time, if anyone wants to know how long things take.
    pub(crate) fn now(&self) -> Option<Duration> {
        self.context.clock().map(Clock::now)
    }

    /// An empty share of the budget.
    pub(crate) fn charge(&self) -> Charge {
        Charge::new(self.context.budget())
    }

    /// Points of `steps` steps without a value.
    pub(crate) fn points(&mut self, steps: usize, span: Span) -> Result<Points, EvalError> {
        // A buffer made for a subquery's many steps must not end up holding the one step of a result.
        let fitting = self.spare.iter().rposition(|points| points.fits(steps));
        let mut points = match fitting {
            Some(i) => self.spare.swap_remove(i),
            None => Points::new(self.context.budget()),
        };
        points.reset(steps, span)?;
        Ok(points)
    }

    /// Takes points back for reuse.
    pub(crate) fn recycle(&mut self, mut points: Points) {
        let few_steps = SPARE_BYTES / SPARE_POINTS * self.most_spare / points.buffer_bytes();
        if self.spare.len() < self.most_spare.max(few_steps) {
            points.drop_histograms();
            self.spare.push(points);
        }
    }

    /// Counts the samples that a selector gives to each step, one at most.
    pub(crate) fn count_points(&mut self, counted: Counted, points: &Points) {
        if self.stats.queryable_samples_per_step.is_empty() {
            let histograms: usize = points.histograms().iter().map(|(_, h)| histogram_bytes(h) / 16).sum();
            self.count_samples(counted, 0, points.floats.len() + histograms);
            return;
        }
        points.floats.ones().for_each(|step| self.count_samples(counted, step, 1));
        for (step, histogram) in points.histograms() {
            self.count_samples(counted, *step as usize, histogram_bytes(histogram) / 16);
        }
    }

    /// Counts samples used at a step.
    #[inline]
    pub(crate) fn count_samples(&mut self, counted: Counted, step: usize, samples: usize) {
        let samples = samples as u64;
        let stats = &mut self.stats;
        match counted {
            Counted::No => {}
            Counted::Step(times) => {
                let samples = samples * u64::from(times);
                stats.queryable_samples += samples;
                if let Some(at_step) = stats.queryable_samples_per_step.get_mut(step) {
                    *at_step += samples;
                }
            }
            Counted::EveryStep(steps, times) => {
                let samples = samples * u64::from(times);
                stats.queryable_samples = stats.queryable_samples.saturating_add(samples.saturating_mul(steps as u64));
                stats.queryable_samples_per_step.iter_mut().for_each(|at_step| *at_step += samples);
            }
        }
    }

    /// Counts samples used at many steps, one step after the other, with little to do for each.
    pub(crate) fn count_by_step(&mut self, counted: Counted) -> StepCounter<'_, 'q> {
        let by_step = !self.stats.queryable_samples_per_step.is_empty();
        StepCounter { by_step, total: 0, counted, env: self }
    }

    /// Counts the values of a scalar of `steps` steps, before they are worked out.
    pub(crate) fn charge_scalars(&mut self, steps: usize) -> Result<(), EvalError> {
        self.charge_kept(steps.saturating_mul(size_of::<f64>()), Span::default())
    }

    /// Counts what stays as long as the query.
    pub(crate) fn charge_kept(&mut self, bytes: usize, span: Span) -> Result<(), EvalError> {
        self.kept.grow(bytes, span)?;
        self.context.interrupt().check()
    }

    /// Counts work, and now and then looks whether the query shall stop.
    #[inline]
    pub(crate) fn tick(&mut self, work: usize) -> Result<(), EvalError> {
        self.work += work + 1;
        if self.work < WORK_PER_CHECK {
            return Ok(());
        }
        self.work = 0;
        self.context.interrupt().check()
    }
}

/// Counts samples step by step; what it has counted reaches the statistics when it is dropped.
pub(crate) struct StepCounter<'e, 'q> {
    by_step: bool,
    total: usize,
    counted: Counted,
    env: &'e mut Env<'q>,
}

impl StepCounter<'_, '_> {
    #[inline(always)]
    pub(crate) fn count(&mut self, step: usize, samples: usize) {
        if self.by_step {
            self.env.count_samples(self.counted, step, samples);
        } else {
            self.total += samples;
        }
    }
}

impl Drop for StepCounter<'_, '_> {
    fn drop(&mut self) {
        self.env.count_samples(self.counted, 0, self.total);
    }
}

/// How metric names are dropped.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Names {
    /// At the end of the evaluation rather than at once.
    pub(crate) delayed: bool,
    type_and_unit: bool,
}

impl Names {
    /// Whether the label goes with the metric name.
    pub(crate) fn is_reserved(&self, label: &str) -> bool {
        label == METRIC_NAME || (self.type_and_unit && (label == "__type__" || label == "__unit__"))
    }

    /// The labels without the metric name and what goes with it.
    pub(crate) fn strip(&self, labels: &Labels) -> Labels {
        if !labels.iter().any(|(name, _)| self.is_reserved(name)) {
            return labels.clone();
        }
        Labels::from_sorted(labels.iter().filter(|(name, _)| !self.is_reserved(name)))
    }

    /// Drops the name of a series: now, or at the end.
    pub(crate) fn drop(&self, series: &mut StepSeries) {
        if self.delayed {
            series.drop_name = true;
        } else {
            series.labels = self.strip(&series.labels);
        }
    }
}
