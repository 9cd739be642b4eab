//! `</` and `>/`: the part of a histogram below or above a value.

use crate::buckets::{Bucket, Kind, all, share_below};
use crate::histogram::{Buckets, Hist};

/// The part on one side of `cut`; all as it is if nothing is cut off.
pub fn trim(h: &Hist, cut: f64, below: bool) -> Hist {
    let (positive, negative) = (Buckets::new(), Buckets::new());
    let mut kept = Hist { count: 0.0, sum: 0.0, positive, negative, ..h.clone() };
    let populated = |buckets: &Buckets| buckets.values().any(|c| *c != 0.0);
    let (has_positive, has_negative) = (populated(&h.positive), populated(&h.negative));
    let mut changed = false;
    // Prometheus adds up positive buckets first, then negative ones from zero down, then the zero bucket.
    let mut buckets = all(h);
    buckets.sort_by_key(|b| match b.kind {
        Kind::Positive(i) => (0, i),
        Kind::Negative(i) => (1, i),
        Kind::Zero => (2, 0),
    });
    for mut b in buckets {
        if b.kind == Kind::Zero {
            b.upper = if has_negative && !has_positive { 0.0 } else { b.upper };
            b.lower = if has_positive && !has_negative { 0.0 } else { b.lower };
        }
        // Only what is more than nothing of the zero bucket is trimmed.
        let counts = if b.kind == Kind::Zero { b.count > 0.0 } else { b.count != 0.0 };
        if !counts {
            continue;
        }
        let (count, middle) = part(&b, cut, below, h.is_custom());
        changed |= count != b.count;
        kept.count += count;
        kept.sum += middle * count;
        match b.kind {
            Kind::Positive(i) => drop(kept.positive.insert(i, count)),
            Kind::Negative(i) => drop(kept.negative.insert(i, count)),
            Kind::Zero => kept.zero_count = count,
        }
    }
    if changed { kept.compact() } else { h.clone() }
}

/// How much of a bucket stays, and the middle of that.
fn part(b: &Bucket, cut: f64, below: bool, custom: bool) -> (f64, f64) {
    let (all, none) = if below { (b.upper <= cut, b.lower >= cut) } else { (b.lower >= cut, b.upper <= cut) };
    // NaN cuts everything off, but for a zero bucket everything passes through the interpolation.
    if b.kind == Kind::Zero {
        let middle = |from: f64, to: f64| (from + to) / 2.0;
        return match (all, none) {
            // A cut at both bounds of an empty range: below, the lower bound decides, above, too.
            _ if cut <= b.lower => {
                if below {
                    (0.0, 0.0)
                } else {
                    (b.count, middle(b.lower, b.upper))
                }
            }
            _ if cut >= b.upper => {
                if below {
                    (b.count, middle(b.lower, b.upper))
                } else {
                    (0.0, 0.0)
                }
            }
            _ if below => (b.count * ((cut - b.lower) / (b.upper - b.lower)), middle(b.lower, cut)),
            _ => (b.count * ((b.upper - cut) / (b.upper - b.lower)), middle(cut, b.upper)),
        };
    }
    if all {
        return (b.count, middle(b.lower, b.upper, b, custom));
    }
    if none || cut.is_nan() {
        return (0.0, 0.0);
    }
    if b.lower == f64::NEG_INFINITY {
        return endless_below(b, cut, below);
    }
    if b.upper == f64::INFINITY {
        return if below { (0.0, 0.0) } else { (b.count, cut) };
    }
    let under = b.count * share_below(cut, b, custom);
    if below { (under, middle(b.lower, cut, b, custom)) } else { (b.count - under, middle(cut, b.upper, b, custom)) }
}

/// Of the lowest custom bucket: positive observations start at zero; of others nothing is known.
fn endless_below(b: &Bucket, cut: f64, below: bool) -> (f64, f64) {
    let reaches_zero = b.upper > 0.0 && b.upper.is_finite();
    match below {
        true if cut > 0.0 && reaches_zero => (b.count * cut / b.upper, cut / 2.0),
        true if b.upper <= 0.0 => (b.count, cut),
        false if cut >= 0.0 && reaches_zero => (b.count * (1.0 - cut / b.upper), (cut + b.upper) / 2.0),
        _ => (0.0, 0.0),
    }
}

fn middle(from: f64, to: f64, b: &Bucket, custom: bool) -> f64 {
    match (from.is_infinite(), to.is_infinite()) {
        (true, true) => 0.0,
        (true, false) if to > 0.0 => to / 2.0,
        (true, false) => to,
        (false, true) => from,
        _ if custom => (from + to) / 2.0,
        _ => {
            let geometric = (from * to).abs().sqrt();
            if matches!(b.kind, Kind::Negative(_)) { -geometric } else { geometric }
        }
    }
}
