//! Compensated summation, as Prometheus does it (Kahan–Neumaier).

/// A sum with what rounding took from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct KahanSum {
    pub(crate) sum: f64,
    pub(crate) compensation: f64,
}

impl Default for KahanSum {
    /// Nothing yet: negative zero is what every first value survives, its own sign of zero included.
    fn default() -> Self {
        Self { sum: -0.0, compensation: 0.0 }
    }
}

impl KahanSum {
    /// One value.
    pub(crate) fn of(sum: f64) -> Self {
        Self { sum, compensation: 0.0 }
    }

    /// The sum with `x` added.
    #[inline(always)]
    #[must_use]
    pub(crate) fn plus(self, x: f64) -> Self {
        let sum = self.sum + x;
        let (large, small) = if self.sum.abs() >= x.abs() { (self.sum, x) } else { (x, self.sum) };
        let compensation = self.compensation + ((large - sum) + small);
        // An infinite sum has nothing to compensate; the difference above is NaN then.
        Self { sum, compensation: if sum.is_infinite() { 0.0 } else { compensation } }
    }

    #[inline(always)]
    pub(crate) fn add(&mut self, x: f64) {
        *self = self.plus(x);
    }

    /// The compensated sum.
    #[inline(always)]
    pub(crate) fn value(self) -> f64 {
        self.sum + self.compensation
    }
}

/// A mean that survives sums beyond the largest float: plain while the sum is finite, incremental from then on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KahanMean {
    /// The sum, or the mean once `incremental`.
    pub(crate) total: KahanSum,
    /// Number of values; at least one, except that [`KahanMean::add`] takes the first one too.
    pub(crate) count: f64,
    pub(crate) incremental: bool,
}

impl KahanMean {
    pub(crate) fn of(first: f64) -> Self {
        Self { total: KahanSum::of(first), count: 1.0, incremental: false }
    }

    /// Of `count` values whose sum never became infinite.
    pub(crate) fn of_sum(total: KahanSum, count: usize) -> Self {
        Self { total, count: count as f64, incremental: false }
    }

    #[inline]
    pub(crate) fn add(&mut self, x: f64) {
        if self.count == 0.0 {
            *self = Self::of(x);
            return;
        }
        self.count += 1.0;
        if !self.incremental {
            let total = self.total.plus(x);
            if !total.sum.is_infinite() {
                self.total = total;
                return;
            }
            self.incremental = true;
            self.total.sum /= self.count - 1.0;
            self.total.compensation /= self.count - 1.0;
        }
        let q = (self.count - 1.0) / self.count;
        let kept = KahanSum { sum: q * self.total.sum, compensation: q * self.total.compensation };
        self.total = kept.plus(x / self.count);
    }

    pub(crate) fn value(&self) -> f64 {
        if self.incremental {
            self.total.value()
        } else {
            self.total.sum / self.count + self.total.compensation / self.count
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(values: &[f64]) -> f64 {
        values.iter().fold(KahanSum::default(), |sum, v| sum.plus(*v)).value()
    }

    #[test]
    fn keeps_what_plain_addition_loses() {
        assert_eq!(sum(&[1.0, 1e100, 1.0, -1e100]), 2.0);
        assert_eq!(sum(&[f64::INFINITY, 1.0]), f64::INFINITY);
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert!(sum(&[f64::NAN, 1.0]).is_nan());
    }

    #[test]
    fn mean_survives_overflow() {
        let mut mean = KahanMean::of(9.5e307);
        mean.add(9.5e307);
        assert_eq!(mean.value(), 9.5e307);
        let mut infinite = KahanMean::of(f64::INFINITY);
        infinite.add(0.0);
        infinite.add(f64::INFINITY);
        assert_eq!(infinite.value(), f64::INFINITY);
    }
}
