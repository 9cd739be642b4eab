//! Totals of native histograms on their way between the shards of an aggregation.

use skald_model::FloatHistogram;

use super::sum::{HistogramMean, HistogramSum};
use super::{Incompatible, Total};

/// What a shard knows of a total: the running sums, and what rounding took from them, as two histograms of one layout.
#[derive(Debug, Clone, PartialEq)]
pub struct PartialTotal {
    /// The sums, or the means once `incremental`.
    pub sum: FloatHistogram,
    /// Their compensations.
    pub compensation: FloatHistogram,
    /// Number of histograms, for a mean; 0 for a sum.
    pub count: f64,
    /// The sums would have become infinite: they are means.
    pub incremental: bool,
    /// A histogram after a reset was among the summands.
    pub saw_reset: bool,
    /// A histogram without a reset before it was.
    pub saw_no_reset: bool,
    /// Different custom bounds had to be reduced to the common ones.
    pub reconciled: bool,
}

impl Total {
    /// The running total as it travels.
    pub(crate) fn into_partial(self) -> PartialTotal {
        let (total, count, incremental) = match self {
            Self::Sum(sum) => (sum, 0.0, false),
            Self::Mean(mean) => mean.into_parts(),
        };
        let (saw_reset, saw_no_reset, reconciled) = total.flags();
        let [sum, compensation] = total.parts();
        PartialTotal { sum, compensation, count, incremental, saw_reset, saw_no_reset, reconciled }
    }

    /// The total that [`Total::into_partial`] was made of, to go on with.
    pub(crate) fn of_partial(partial: &PartialTotal) -> Result<Self, Incompatible> {
        let total = sum_of(partial)?;
        Ok(if partial.count > 0.0 {
            Self::Mean(HistogramMean::from_parts(total, partial.count, partial.incremental))
        } else {
            Self::Sum(total)
        })
    }

    /// Adds the total of another shard.
    pub(crate) fn absorb(&mut self, partial: &PartialTotal) -> Result<(), Incompatible> {
        match self {
            Self::Sum(sum) => {
                sum.add(&partial.sum, 1.0)?;
                sum.add(&partial.compensation, 1.0)?;
                sum.add_flags(partial.saw_reset, partial.saw_no_reset, partial.reconciled);
                Ok(())
            }
            Self::Mean(mean) => mean.absorb(sum_of(partial)?, partial.count.max(1.0), partial.incremental),
        }
    }
}

fn sum_of(partial: &PartialTotal) -> Result<HistogramSum, Incompatible> {
    let mut total = HistogramSum::compensated(&partial.sum);
    total.add_compensation(&partial.compensation)?;
    total.add_flags(partial.saw_reset, partial.saw_no_reset, partial.reconciled);
    Ok(total)
}
