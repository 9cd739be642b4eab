//! Compensated sums of several things at once, for loops whose additions would otherwise wait for each other.
//!
//! Every lane does what [`KahanSum::plus`] does, with the rounding error taken without a comparison: as long as nothing
//! overflows it is a float and there is only one, so the bits are the same. Where something did, the results are not
//! finite, and whoever asked has to do it again with [`KahanSum`] itself.

use crate::eval::kahan::KahanSum;

/// Windows walked side by side.
pub(super) const LANES: usize = 4;

/// A sum, and the error of the addition.
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let from_b = sum - a;
    (sum, (a - (sum - from_b)) + (b - from_b))
}

/// `N` running sums.
#[derive(Clone, Copy)]
struct Sums<const N: usize> {
    sums: [f64; N],
    compensations: [f64; N],
}

impl<const N: usize> Sums<N> {
    fn of(first: f64) -> Self {
        Self { sums: [first; N], compensations: [0.0; N] }
    }

    #[inline(always)]
    fn add(&mut self, values: [f64; N]) {
        for (lane, value) in values.into_iter().enumerate() {
            let (sum, error) = two_sum(self.sums[lane], value);
            self.sums[lane] = sum;
            self.compensations[lane] += error;
        }
    }

    #[inline(always)]
    fn values(&self) -> [f64; N] {
        std::array::from_fn(|lane| self.sums[lane] + self.compensations[lane])
    }

    fn lane(&self, lane: usize) -> KahanSum {
        KahanSum { sum: self.sums[lane], compensation: self.compensations[lane] }
    }
}

/// The sums of windows of one length.
pub(super) fn sums(windows: [&[f64]; LANES]) -> [KahanSum; LANES] {
    let mut sums = Sums::<LANES>::of(-0.0);
    let [a, b, c, d] = windows;
    for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
        sums.add([*a, *b, *c, *d]);
    }
    std::array::from_fn(|lane| sums.lane(lane))
}

/// A running variance: Welford's method with both running values compensated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variance {
    mean: KahanSum,
    squares: KahanSum,
    count: f64,
}

impl Default for Variance {
    fn default() -> Self {
        Self { mean: KahanSum::of(0.0), squares: KahanSum::of(0.0), count: 0.0 }
    }
}

impl Variance {
    #[must_use]
    pub(super) fn plus(self, value: f64) -> Self {
        let count = self.count + 1.0;
        let delta = value - self.mean.value();
        let mean = self.mean.plus(delta / count);
        let squares = self.squares.plus(delta * (value - mean.value()));
        Self { mean, squares, count }
    }

    /// Of the population.
    pub(super) fn value(self) -> f64 {
        self.squares.value() / self.count
    }
}

/// The variances of windows of one length.
pub(super) fn variances(windows: [&[f64]; LANES]) -> [Variance; LANES] {
    let (mut means, mut squares, mut count) = (Sums::<LANES>::of(0.0), Sums::<LANES>::of(0.0), 0.0);
    let [a, b, c, d] = windows;
    for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
        let values = [*a, *b, *c, *d];
        count += 1.0;
        let before = means.values();
        let deltas: [f64; LANES] = std::array::from_fn(|lane| values[lane] - before[lane]);
        means.add(deltas.map(|delta| delta / count));
        let after = means.values();
        squares.add(std::array::from_fn(|lane| deltas[lane] * (values[lane] - after[lane])));
    }
    std::array::from_fn(|lane| Variance { mean: means.lane(lane), squares: squares.lane(lane), count })
}

/// The sums of x, y, x·y and x², x being the seconds since `origin` and y the value.
pub(super) fn products(times: &[i64], values: &[f64], origin: i64) -> [f64; 4] {
    let mut sums = Sums::<4>::of(0.0);
    for (time, y) in times.iter().zip(values) {
        let x = (time - origin) as f64 / 1000.0;
        sums.add([x, *y, x * y, x * x]);
    }
    sums.values()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            4 => -100.0..100.0f64,
            1 => (-1000i32..1000).prop_map(|i| f64::from(i) * 0.1),
            1 => prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO,
            1 => Just(-0.0),
        ]
    }

    fn check(got: KahanSum, want: KahanSum) {
        let bits = |sum: KahanSum| [sum.sum.to_bits(), sum.compensation.to_bits()];
        let finite = got.sum.is_finite() && got.compensation.is_finite();
        assert!(!finite || bits(got) == bits(want), "{got:?}, not {want:?}");
    }

    proptest! {
        /// Where the result is finite it is that of the plain loop, bit by bit.
        #[test]
        fn lanes_are_plain_loops(values in proptest::collection::vec(value(), 1..60)) {
            let windows: [&[f64]; LANES] = std::array::from_fn(|lane| {
                let length = values.len().saturating_sub(LANES).max(1);
                &values[lane.min(values.len() - length)..][..length]
            });
            for (lane, got) in sums(windows).into_iter().enumerate() {
                check(got, windows[lane].iter().fold(KahanSum::default(), |sum, v| sum.plus(*v)));
            }
            for (lane, got) in variances(windows).into_iter().enumerate() {
                let want = windows[lane].iter().fold(Variance::default(), |variance, v| variance.plus(*v));
                check(got.mean, want.mean);
                if got.mean.value().is_finite() {
                    check(got.squares, want.squares);
                }
            }
            let times: Vec<i64> = (0..values.len() as i64).map(|i| i * 7_001).collect();
            let mut want = [KahanSum::of(0.0); 4];
            for (time, y) in times.iter().zip(&values) {
                let x = (time - 7) as f64 / 1000.0;
                for (sum, v) in want.iter_mut().zip([x, *y, x * y, x * x]) {
                    sum.add(v);
                }
            }
            for (got, want) in products(&times, &values, 7).into_iter().zip(want) {
                prop_assert!(!got.is_finite() || got.to_bits() == want.value().to_bits());
            }
        }
    }
}
