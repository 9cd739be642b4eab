//! Quantiles and fractions of classic histograms.

/// Relative difference between neighbouring counts that is taken for rounding.
const SMALL_DIFFERENCE: f64 = 1e-12;

/// A classic bucket: how many observations are at most `bound`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bucket {
    pub(super) bound: f64,
    pub(super) count: f64,
}

/// What had to be changed so that counts do not decrease.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ForcedMonotonicity {
    /// Smallest and largest bound of a raised bucket.
    pub(crate) min_bound: f64,
    pub(crate) max_bound: f64,
    /// Largest difference made up for.
    pub(crate) max_difference: f64,
}

/// The `q`-quantile of buckets that ascend by bound, and what had to be changed. May rewrite the buckets.
pub(super) fn quantile(q: f64, buckets: &mut Vec<Bucket>) -> (f64, Option<ForcedMonotonicity>) {
    if q.is_nan() {
        return (f64::NAN, None);
    }
    if !(0.0..=1.0).contains(&q) {
        return (if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY }, None);
    }
    if buckets.last().is_none_or(|b| b.bound != f64::INFINITY) {
        return (f64::NAN, None);
    }
    coalesce(buckets);
    let forced = force_monotonicity(buckets);
    let last = buckets.len() - 1;
    let observations = buckets[last].count;
    if last == 0 || observations == 0.0 {
        return (f64::NAN, forced);
    }
    let mut rank = q * observations;
    let b = buckets[..last].partition_point(|bucket| bucket.count < rank || bucket.count.is_nan());
    if b == last {
        return (buckets[last - 1].bound, forced);
    }
    if b == 0 && buckets[0].bound <= 0.0 {
        return (buckets[0].bound, forced);
    }
    let (mut start, end, mut count) = (0.0, buckets[b].bound, buckets[b].count);
    if b > 0 {
        start = buckets[b - 1].bound;
        count -= buckets[b - 1].count;
        rank -= buckets[b - 1].count;
    }
    (start + (end - start) * (rank / count), forced)
}

/// The share of the observations between two values. May rewrite the buckets.
pub(super) fn fraction(lower: f64, upper: f64, buckets: &mut Vec<Bucket>) -> f64 {
    if buckets.last().is_none_or(|b| b.bound != f64::INFINITY) {
        return f64::NAN;
    }
    coalesce(buckets);
    let count = buckets[buckets.len() - 1].count;
    if count == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    (rank_of(upper, buckets, count) - rank_of(lower, buckets, count)) / count
}

/// How many observations are below `value`, with linear interpolation inside a bucket.
fn rank_of(value: f64, buckets: &[Bucket], count: f64) -> f64 {
    let mut rank = 0.0;
    for (i, bucket) in buckets.iter().enumerate() {
        let start = match i {
            0 if bucket.bound > 0.0 => 0.0,
            0 => f64::NEG_INFINITY,
            _ => buckets[i - 1].bound,
        };
        if start >= value {
            return if rank > count { count } else { rank };
        }
        if bucket.bound > value {
            // Nothing is known of where in an endless bucket the observations are: all at its finite bound.
            let share = if start == f64::NEG_INFINITY { 1.0 } else { (value - start) / (bucket.bound - start) };
            let inside = rank + (bucket.count - rank) * share;
            return if inside > count { count } else { inside };
        }
        rank = bucket.count;
    }
    count
}

/// Sums the counts of equal bounds, which stand together.
fn coalesce(buckets: &mut Vec<Bucket>) {
    buckets.dedup_by(|later, first| {
        let same = later.bound == first.bound;
        if same {
            first.count += later.count;
        }
        same
    });
}

fn force_monotonicity(buckets: &mut [Bucket]) -> Option<ForcedMonotonicity> {
    let mut forced: Option<ForcedMonotonicity> = None;
    let mut before = buckets[0].count;
    for bucket in &mut buckets[1..] {
        if bucket.count == before {
            continue;
        }
        if nearly_equal(before, bucket.count) {
            bucket.count = before;
        } else if bucket.count < before {
            let change = forced.get_or_insert(ForcedMonotonicity {
                min_bound: bucket.bound,
                max_bound: bucket.bound,
                max_difference: 0.0,
            });
            change.min_bound = change.min_bound.min(bucket.bound);
            change.max_bound = change.max_bound.max(bucket.bound);
            change.max_difference = change.max_difference.max(before - bucket.count);
            bucket.count = before;
        } else {
            before = bucket.count;
        }
    }
    forced
}

fn nearly_equal(a: f64, b: f64) -> bool {
    let (sum, difference) = (a.abs() + b.abs(), (a - b).abs());
    if a == 0.0 || b == 0.0 || sum < f64::MIN_POSITIVE {
        return difference < SMALL_DIFFERENCE * f64::MIN_POSITIVE;
    }
    // Nearly always so, and found without a division.
    if difference > sum * (10.0 * SMALL_DIFFERENCE) {
        return false;
    }
    difference / sum.min(f64::MAX) < SMALL_DIFFERENCE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(pairs: &[(f64, f64)]) -> Vec<Bucket> {
        pairs.iter().map(|(bound, count)| Bucket { bound: *bound, count: *count }).collect()
    }

    const INF: f64 = f64::INFINITY;

    #[test]
    fn quantiles() {
        let check = |q: f64, pairs: &[(f64, f64)], want: f64| {
            let (got, _) = quantile(q, &mut buckets(pairs));
            assert!(got == want || (got.is_nan() && want.is_nan()), "quantile({q}, {pairs:?}) = {got}, not {want}");
        };
        let usual = [(0.1, 1.0), (0.2, 3.0), (INF, 4.0)];
        check(0.5, &usual, 0.1 + (0.2 - 0.1) * (1.0 / 2.0));
        check(1.0, &usual, 0.2);
        check(0.0, &usual, 0.0);
        check(-1.0, &usual, f64::NEG_INFINITY);
        check(1.1, &usual, INF);
        check(0.5, &usual[..2], f64::NAN);
        check(0.5, &[(INF, 4.0)], f64::NAN);
        check(0.5, &[(1.0, 0.0), (INF, 0.0)], f64::NAN);
        check(0.1, &[(-1.0, 4.0), (INF, 4.0)], -1.0);
        check(0.0, &[(1.0, 0.0), (2.0, 1.0), (INF, 1.0)], f64::NAN);
        check(0.5, &[(1.0, 1.0), (1.0, 1.0), (2.0, 4.0), (INF, 4.0)], 1.0);
    }

    #[test]
    fn decreases_are_raised_and_told() {
        let mut falling = buckets(&[(1.0, 1.0), (10.0, 5.0), (100.0, 4.0), (1000.0, 9.0), (INF, 8.0)]);
        let (value, forced) = quantile(0.5, &mut falling);
        assert_eq!(value, 1.0 + 9.0 * (3.5 / 4.0));
        let want = ForcedMonotonicity { min_bound: 100.0, max_bound: INF, max_difference: 1.0 };
        assert_eq!(forced, Some(want));
        let (_, forced) = quantile(0.5, &mut buckets(&[(1.0, 1.0 + 1e-14), (2.0, 1.0), (INF, 1.0)]));
        assert_eq!(forced, None);
    }

    #[test]
    fn fractions() {
        let check = |lower: f64, upper: f64, want: f64| {
            let got = fraction(lower, upper, &mut buckets(&[(1.0, 2.0), (3.0, 6.0), (INF, 8.0)]));
            assert!(got == want || (got.is_nan() && want.is_nan()), "fraction({lower}, {upper}) = {got}, not {want}");
        };
        check(0.0, 1.0, 0.25);
        check(f64::NEG_INFINITY, INF, 1.0);
        check(2.0, 3.0, 0.25);
        check(3.0, 2.0, 0.0);
        check(3.0, 10.0, 0.0);
        check(f64::NAN, 10.0, f64::NAN);
        let negative = [(-1.0, 2.0), (INF, 4.0)];
        assert_eq!(fraction(f64::NEG_INFINITY, -5.0, &mut buckets(&negative)), 0.5);
    }
}
