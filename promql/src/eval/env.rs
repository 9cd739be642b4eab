//! What the operators of one query share.

use skald_model::{Labels, METRIC_NAME};

use super::EvalParams;
use super::annotations::Annotations;
use super::context::{Charge, QueryContext};
use super::error::EvalError;
use super::output::QueryStats;
use super::points::{Points, StepSeries, histogram_bytes};
use crate::ast::Span;

/// Work units (roughly: samples looked at) between two looks at the interrupt.
const WORK_PER_CHECK: usize = 1 << 15;
/// Points kept for reuse.
const SPARE_POINTS: usize = 16;

/// What the operators of one query share: its bounds, what it has said and counted, spare buffers.
pub(crate) struct Env<'q> {
    pub(crate) context: &'q QueryContext,
    pub(crate) annotations: Annotations,
    pub(crate) stats: QueryStats,
    pub(crate) names: Names,
    spare: Vec<Points>,
    work: usize,
}

impl<'q> Env<'q> {
    pub(crate) fn new(context: &'q QueryContext, params: &EvalParams) -> Self {
        let names = Names { delayed: params.delayed_name_removal, type_and_unit: params.type_and_unit_labels };
        Self {
            context,
            annotations: Annotations::default(),
            stats: QueryStats::default(),
            names,
            spare: Vec::new(),
            work: 0,
        }
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
        if self.spare.len() < SPARE_POINTS {
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
            Counted::Step => {
                stats.queryable_samples += samples;
                if let Some(at_step) = stats.queryable_samples_per_step.get_mut(step) {
                    *at_step += samples;
                }
            }
            Counted::EveryStep(steps) => {
                stats.queryable_samples += samples * steps as u64;
                stats.queryable_samples_per_step.iter_mut().for_each(|at_step| *at_step += samples);
            }
        }
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

/// How the samples a selector uses count in the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Not: inside a subquery, whose points are counted where they are used.
    No,
    /// Each at its step.
    Step,
    /// Each at every one of so many steps: the expression is evaluated once for all of them.
    EveryStep(usize),
}

/// How metric names are dropped.
#[derive(Debug, Clone, Copy)]
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
