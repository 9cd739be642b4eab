//! Groups of an aggregation on their way between shards: running values with their compensation, not yet finished.

use skald_model::Labels;

use super::fold::{Group, Slot};
use crate::ast::{AggregateOp, Span};
use crate::eval::env::Env;
use crate::eval::error::EvalError;
use crate::eval::histogram::partial::PartialTotal;
use crate::eval::histogram::{Incompatible, Total, warn_incompatible_schemas};
use crate::eval::kahan::KahanSum;
use crate::eval::points::{Bits, histogram_bytes};

/// Whether an aggregation can be worked out of the partial results of disjoint sets of series.
pub(crate) fn is_divisible(op: AggregateOp) -> bool {
    use AggregateOp as A;
    matches!(op, A::Sum | A::Avg | A::Min | A::Max | A::Count | A::Group)
}

/// What a shard knows of one group. Columns have one number per step, or none where the aggregation needs no such.
#[derive(Debug, Clone, PartialEq)]
pub struct PartialGroup {
    /// The group.
    pub labels: Labels,
    /// The metric name is to be dropped at the end of the evaluation.
    pub drop_name: bool,
    /// The steps where the group has a float: bit b of word w is step 64 × w + b.
    pub floats: Vec<u64>,
    /// Sum, extreme, count; of `avg` the mean where `incremental` has the step.
    pub first: Vec<f64>,
    /// `sum`, `avg`: what rounding took.
    pub second: Vec<f64>,
    /// `avg`: number of values.
    pub count: Vec<f64>,
    /// `avg`: the steps whose sum would have become infinite.
    pub incremental: Vec<u64>,
    /// `sum`, `avg`: totals of native histograms by step, ascending; `None` where they do not fit together.
    pub histograms: Vec<(u32, Option<PartialTotal>)>,
}

impl PartialGroup {
    /// Bytes it holds, about.
    pub(crate) fn heap_bytes(&self) -> usize {
        let total = |total: &PartialTotal| histogram_bytes(&total.sum) + histogram_bytes(&total.compensation);
        let totals = self.histograms.iter().map(|(_, one)| size_of::<PartialTotal>() + one.as_ref().map_or(0, total));
        let numbers = self.floats.len() + self.first.len() + self.second.len() + self.count.len();
        size_of::<Self>()
            + self.labels.as_bytes().len()
            + 8 * (numbers + self.incremental.len())
            + totals.sum::<usize>()
    }
}

impl Group {
    pub(super) fn into_partial(mut self, labels: Labels) -> PartialGroup {
        let slots = std::mem::take(&mut self.histograms).into_iter().enumerate();
        let histograms = slots.filter_map(|(step, slot)| match slot {
            Slot::Empty => None,
            Slot::Total(total) => Some((step as u32, Some(total.into_partial()))),
            Slot::Incompatible => Some((step as u32, None)),
        });
        PartialGroup {
            labels,
            drop_name: self.drop_name,
            floats: self.floats.words().to_vec(),
            histograms: histograms.collect(),
            first: self.first,
            second: self.second,
            count: self.count,
            incremental: self.incremental.words().to_vec(),
        }
    }

    /// Takes in the same group of another shard.
    pub(super) fn absorb(
        &mut self,
        op: AggregateOp,
        other: PartialGroup,
        span: Span,
        env: &mut Env<'_>,
    ) -> Result<(), EvalError> {
        let steps = self.first.len();
        let words = steps.div_ceil(64);
        let fits = |column: &[f64], own: &[f64]| column.len() == own.len();
        let all_fit = fits(&other.first, &self.first)
            && fits(&other.second, &self.second)
            && fits(&other.count, &self.count)
            && other.floats.len() == words
            && other.incremental.len() == self.incremental.words().len();
        let (Some(floats), Some(incremental)) =
            (Bits::of_words(&other.floats, steps), Bits::of_words(&other.incremental, steps))
        else {
            return Err(malformed());
        };
        if !all_fit {
            return Err(malformed());
        }
        self.drop_name |= other.drop_name;
        for i in floats.ones() {
            if !self.floats.get(i) {
                self.first[i] = other.first[i];
                if let (Some(own), Some(theirs)) = (self.second.get_mut(i), other.second.get(i)) {
                    *own = *theirs;
                }
                if let (Some(own), Some(theirs)) = (self.count.get_mut(i), other.count.get(i)) {
                    *own = *theirs;
                    if incremental.get(i) {
                        self.incremental.set(i);
                    }
                }
                continue;
            }
            match op {
                AggregateOp::Sum => {
                    let own = KahanSum { sum: self.first[i], compensation: self.second[i] };
                    let sum = together(own, KahanSum { sum: other.first[i], compensation: other.second[i] });
                    (self.first[i], self.second[i]) = (sum.sum, sum.compensation);
                }
                AggregateOp::Avg => self.absorb_mean(i, &other, incremental.get(i)),
                AggregateOp::Min if other.first[i] < self.first[i] || self.first[i].is_nan() => {
                    self.first[i] = other.first[i];
                }
                AggregateOp::Max if other.first[i] > self.first[i] || self.first[i].is_nan() => {
                    self.first[i] = other.first[i];
                }
                AggregateOp::Count | AggregateOp::Group => self.first[i] += other.first[i],
                _ => {}
            }
        }
        self.floats.unite(&floats);
        self.absorb_histograms(other.histograms, span, env)
    }

    fn absorb_mean(&mut self, i: usize, other: &PartialGroup, incremental: bool) {
        let own = KahanSum { sum: self.first[i], compensation: self.second[i] };
        let theirs = KahanSum { sum: other.first[i], compensation: other.second[i] };
        let (own_count, their_count) = (self.count[i], other.count[i]);
        let count = own_count + their_count;
        let own_incremental = self.incremental.get(i);
        let mut total = together(own, theirs);
        if own_incremental || incremental || total.sum.is_infinite() {
            // The sum is too large: means, weighted by their counts.
            let weighted = |total: KahanSum, weight: f64| KahanSum {
                sum: total.sum * weight,
                compensation: total.compensation * weight,
            };
            let own = weighted(own, if own_incremental { own_count / count } else { 1.0 / count });
            total = together(own, weighted(theirs, if incremental { their_count / count } else { 1.0 / count }));
            self.incremental.set(i);
        }
        (self.first[i], self.second[i], self.count[i]) = (total.sum, total.compensation, count);
    }

    fn absorb_histograms(
        &mut self,
        others: Vec<(u32, Option<PartialTotal>)>,
        span: Span,
        env: &mut Env<'_>,
    ) -> Result<(), EvalError> {
        let steps = self.first.len();
        if self.histograms.is_empty() && !others.is_empty() {
            self.charge.grow(steps * size_of::<Slot>(), span)?;
            self.histograms.resize_with(steps, Slot::default);
        }
        for (step, other) in others {
            let slot = self.histograms.get_mut(step as usize).ok_or_else(malformed)?;
            env.tick(64)?;
            let outcome = match (&mut *slot, other) {
                (Slot::Incompatible, _) => continue,
                // The shard has said so already.
                (_, None) => {
                    *slot = Slot::Incompatible;
                    continue;
                }
                (Slot::Empty, Some(other)) => {
                    Total::of_partial(&other).map(|total| *slot = Slot::Total(Box::new(total)))
                }
                (Slot::Total(total), Some(other)) => total.absorb(&other),
            };
            match (outcome, &*slot) {
                (Err(Incompatible), _) => {
                    warn_incompatible_schemas(&Labels::empty(), span, env);
                    *slot = Slot::Incompatible;
                }
                (Ok(()), Slot::Total(total)) => self.charge.grow(total.heap_bytes(), span)?,
                (Ok(()), _) => {}
            }
        }
        Ok(())
    }
}

/// Two sums as one, their compensations kept.
fn together(a: KahanSum, b: KahanSum) -> KahanSum {
    let sum = a.plus(b.sum);
    // Adding a zero that compensates nothing would turn a negative zero around.
    if b.compensation == 0.0 { sum } else { sum.plus(b.compensation) }
}

fn malformed() -> EvalError {
    EvalError::Internal("a shard's partial result does not have the aggregation's steps".to_owned())
}
