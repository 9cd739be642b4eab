//! Whether a native histogram follows a counter reset, and whether two are the same.

use std::sync::Arc;

use skald_model::histogram::{CUSTOM_BUCKETS_SCHEMA, exponential_bound};
use skald_model::{FloatHistogram, ResetHint, Span};

use super::bucket::{buckets, laid_out};
use super::sum::is_outside;

/// Whether a counter started anew between two histograms of one series.
pub(crate) fn is_reset(current: &FloatHistogram, before: &FloatHistogram) -> bool {
    match current.reset_hint {
        ResetHint::Reset => return true,
        ResetHint::NotReset => return false,
        // For a gauge a reset has no meaning; what falls is taken for one.
        ResetHint::Gauge | ResetHint::Unknown => {}
    }
    let current_custom = current.schema == CUSTOM_BUCKETS_SCHEMA;
    if current.count < before.count || current_custom != (before.schema == CUSTOM_BUCKETS_SCHEMA) {
        return true;
    }
    if current_custom {
        return custom_bucket_fell(current, before);
    }
    // A finer resolution or a narrower zero bucket cannot be had without a restart.
    if current.schema > before.schema || current.zero_threshold < before.zero_threshold {
        return true;
    }
    if is_comparable(current, before) {
        let fell = |now: &[f64], before: &[f64]| now.iter().zip(before).any(|(now, before)| now < before);
        return current.zero_count < before.zero_count
            || fell(&current.positive_buckets, &before.positive_buckets)
            || fell(&current.negative_buckets, &before.negative_buckets);
    }
    let mut zero_before = before.zero_count;
    // A bucket that the zero bucket cuts is a matter only once that has become wider.
    if current.zero_threshold != before.zero_threshold {
        let positive = buckets(&before.positive_spans, &before.positive_buckets);
        for (index, count) in positive.chain(buckets(&before.negative_spans, &before.negative_buckets)) {
            let lower = || exponential_bound(index.saturating_sub(1), before.schema);
            if exponential_bound(index, before.schema) <= current.zero_threshold {
                zero_before += count;
            } else if count != 0.0 && lower() < current.zero_threshold {
                return true;
            }
        }
    }
    let shift = before.schema.saturating_sub(current.schema) as u32;
    let fell = |spans: &[Span], counts: &[f64], spans_before: &[Span], counts_before: &[f64]| {
        let mut outside = Vec::with_capacity(counts_before.len());
        for (index, count) in buckets(spans_before, counts_before) {
            // As in Prometheus, buckets are made coarser before it is looked which are in the zero bucket.
            let index = (index.saturating_sub(1) >> shift.min(31)) + 1;
            if exponential_bound(index, current.schema) <= current.zero_threshold {
                continue;
            }
            match outside.last_mut() {
                Some((last, sum)) if *last == index => *sum += count,
                _ => outside.push((index, count)),
            }
        }
        bucket_fell(buckets(spans, counts), &outside)
    };
    let (now, then) = (current, before);
    now.zero_count < zero_before
        || fell(&now.positive_spans, &now.positive_buckets, &then.positive_spans, &then.positive_buckets)
        || fell(&now.negative_spans, &now.negative_buckets, &then.negative_spans, &then.negative_buckets)
}

/// Whether the buckets of two histograms stand for the same, one by one: same resolution, bounds, spans and zero bucket.
pub(crate) fn same_layout(a: &FloatHistogram, b: &FloatHistogram) -> bool {
    a.schema == b.schema
        && a.zero_threshold == b.zero_threshold
        && a.positive_spans == b.positive_spans
        && a.negative_spans == b.negative_spans
        && a.positive_buckets.len() == b.positive_buckets.len()
        && a.negative_buckets.len() == b.negative_buckets.len()
        && (Arc::ptr_eq(&a.custom_values, &b.custom_values) || a.custom_values == b.custom_values)
}

/// Whether buckets of the same place can be compared or subtracted, and no other has to be looked at.
fn is_comparable(current: &FloatHistogram, before: &FloatHistogram) -> bool {
    same_layout(current, before) && has_plain_layout(current)
}

/// Whether every count has a bucket, and no exponential one lies in the zero bucket.
pub(crate) fn has_plain_layout(h: &FloatHistogram) -> bool {
    let is_plain = |spans: &[Span], counts: &[f64]| {
        laid_out(spans, counts).len() == counts.len()
            && (h.schema == CUSTOM_BUCKETS_SCHEMA || is_outside(spans, h.schema, h.zero_threshold))
    };
    is_plain(&h.positive_spans, &h.positive_buckets) && is_plain(&h.negative_spans, &h.negative_buckets)
}

/// Whether a bucket counts less than before, or a populated one is gone. Both sides ascend.
fn bucket_fell(current: impl Iterator<Item = (i32, f64)>, before: &[(i32, f64)]) -> bool {
    let mut current = current.peekable();
    before.iter().any(|(index, count)| {
        while current.next_if(|(other, _)| other < index).is_some() {}
        current.next_if(|(other, _)| other == index).map_or(*count != 0.0, |(_, now)| now < *count)
    })
}

/// Custom bounds are compared at those both have.
fn custom_bucket_fell(current: &FloatHistogram, before: &FloatHistogram) -> bool {
    let own = || buckets(&current.positive_spans, &current.positive_buckets);
    let others = || buckets(&before.positive_spans, &before.positive_buckets);
    if is_comparable(current, before) {
        let mut pairs = current.positive_buckets.iter().zip(&before.positive_buckets);
        return pairs.any(|(now, before)| now < before);
    }
    if current.custom_values == before.custom_values {
        return bucket_fell(own(), &others().collect::<Vec<_>>());
    }
    let common: Vec<f64> =
        current.custom_values.iter().copied().filter(|bound| before.custom_values.contains(bound)).collect();
    let per_common = |bounds: &[f64], list: &mut dyn Iterator<Item = (i32, f64)>| {
        let mut counts = vec![0.0; common.len() + 1];
        for (index, count) in list {
            let bound = usize::try_from(index).ok().and_then(|i| bounds.get(i).copied());
            let at = bound.map_or(common.len(), |bound| common.partition_point(|c| *c < bound));
            counts[at] += count;
        }
        counts
    };
    let now = per_common(&current.custom_values, &mut own());
    let then = per_common(&before.custom_values, &mut others());
    now.iter().zip(&then).any(|(now, then)| now < then)
}

/// Whether two histograms are the same, reset knowledge aside; NaNs of equal bits are equal.
pub(crate) fn equal(a: &FloatHistogram, b: &FloatHistogram) -> bool {
    let same = |x: f64, y: f64| x.to_bits() == y.to_bits() || x == y;
    let bounds = a.custom_values.len() == b.custom_values.len()
        && a.custom_values.iter().zip(b.custom_values.iter()).all(|(x, y)| same(*x, *y));
    let bits = |list: &[skald_model::Span], counts: &[f64]| {
        buckets(list, counts).map(|(index, count)| (index, (count + 0.0).to_bits())).collect::<Vec<_>>()
    };
    a.schema == b.schema
        && bounds
        && [(a.zero_threshold, b.zero_threshold), (a.zero_count, b.zero_count), (a.count, b.count), (a.sum, b.sum)]
            .into_iter()
            .all(|(x, y)| same(x, y))
        && bits(&a.positive_spans, &a.positive_buckets) == bits(&b.positive_spans, &b.positive_buckets)
        && bits(&a.negative_spans, &a.negative_buckets) == bits(&b.negative_spans, &b.negative_buckets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(schema: i32, offset: i32, counts: &[f64]) -> FloatHistogram {
        FloatHistogram {
            schema,
            count: counts.iter().sum(),
            positive_spans: vec![Span { offset, length: counts.len() as u32 }],
            positive_buckets: counts.to_vec(),
            ..FloatHistogram::default()
        }
    }

    #[test]
    fn resets() {
        let check = |current: &FloatHistogram, before: &FloatHistogram, want: bool| {
            assert_eq!(is_reset(current, before), want, "{current:?} after {before:?}");
        };
        let base = histogram(0, 0, &[1.0, 2.0, 1.0]);
        check(&histogram(0, 0, &[1.0, 3.0, 1.0]), &base, false);
        check(&base, &base, false);
        check(&histogram(0, 0, &[1.0]), &FloatHistogram { count: 0.0, ..histogram(0, 0, &[1.0, -1.0]) }, true);
        check(&histogram(0, 0, &[1.0, 1.0, 3.0]), &base, true);
        check(&histogram(0, 1, &[2.0, 2.0]), &base, true);
        check(&histogram(0, -1, &[9.0, 1.0, 2.0, 1.0]), &base, false);
        check(&histogram(1, 0, &[9.0, 9.0]), &base, true);
        // Buckets 0, 1 and 2 of schema 0 are in buckets 0, 1 and 1 of schema -1.
        check(&histogram(-1, 0, &[1.0, 3.0]), &base, false);
        check(&histogram(-1, 0, &[2.0, 2.0]), &base, true);
        check(&FloatHistogram { reset_hint: ResetHint::NotReset, ..FloatHistogram::default() }, &base, false);
        check(&FloatHistogram { reset_hint: ResetHint::Reset, ..base.clone() }, &base, true);
        let wide = FloatHistogram { zero_threshold: 1.0, zero_count: 1.0, ..histogram(0, 1, &[2.0, 1.0]) };
        let wide = FloatHistogram { count: 4.0, ..wide };
        check(&wide, &base, false);
        check(&FloatHistogram { zero_count: 0.0, ..wide.clone() }, &base, true);
        check(&base, &wide, true);
        // A zero bucket up to 3 cuts the populated bucket (2, 4].
        check(
            &FloatHistogram { zero_threshold: 3.0, zero_count: 99.0, count: 99.0, ..FloatHistogram::default() },
            &base,
            true,
        );
    }

    #[test]
    fn custom_resets_compare_common_bounds() {
        let custom = |bounds: &[f64], counts: &[f64]| FloatHistogram {
            custom_values: bounds.into(),
            ..histogram(CUSTOM_BUCKETS_SCHEMA, 0, counts)
        };
        let before = custom(&[2.0, 4.0, 6.0], &[1.0, 2.0, 5.0, 7.0]);
        assert!(is_reset(&custom(&[2.0, 3.0, 4.0, 6.0], &[1.0, 0.0, 1.0, 5.0, 8.0]), &before));
        assert!(!is_reset(&custom(&[2.0, 3.0, 4.0, 6.0], &[1.0, 0.0, 2.0, 5.0, 8.0]), &before));
        assert!(!is_reset(&custom(&[4.0], &[3.0, 12.0]), &before));
        assert!(is_reset(&histogram(0, 0, &[99.0]), &before));
    }

    #[test]
    fn layout_does_not_make_a_difference() {
        let a = histogram(0, 0, &[1.0, 2.0]);
        let b = FloatHistogram {
            reset_hint: ResetHint::Gauge,
            positive_spans: vec![Span { offset: 0, length: 1 }, Span { offset: 0, length: 1 }],
            ..a.clone()
        };
        assert!(equal(&a, &b));
        assert!(!equal(&a, &histogram(0, 1, &[1.0, 2.0])));
        let nan = FloatHistogram { sum: f64::NAN, ..a.clone() };
        assert!(equal(&nan, &nan.clone()) && !equal(&nan, &a));
    }
}
