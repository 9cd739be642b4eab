//! What is computed from the buckets of histograms, native and classic.

use crate::floats::{self, Kahan};
use crate::histogram::{Hist, bound};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Negative(i64),
    Zero,
    Positive(i64),
}

#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    pub lower: f64,
    pub upper: f64,
    pub count: f64,
    pub kind: Kind,
}

/// All buckets, ascending by bounds; a zero bucket only if it counts something.
pub fn all(h: &Hist) -> Vec<Bucket> {
    let custom = |i: i64| match usize::try_from(i) {
        Ok(i) => h.bounds.get(i).copied().unwrap_or(f64::INFINITY),
        Err(_) => f64::NEG_INFINITY,
    };
    let at = |i: i64| if h.is_custom() { custom(i) } else { bound(i, h.schema) };
    let mut all = Vec::new();
    for (i, count) in h.negative.iter().rev() {
        let (lower, upper) = (-bound(*i, h.schema), -bound(*i - 1, h.schema));
        all.push(Bucket { lower, upper, count: *count, kind: Kind::Negative(*i) });
    }
    if h.zero_count != 0.0 {
        let (lower, upper) = (-h.zero_threshold, h.zero_threshold);
        all.push(Bucket { lower, upper, count: h.zero_count, kind: Kind::Zero });
    }
    for (i, count) in &h.positive {
        all.push(Bucket { lower: at(*i - 1), upper: at(*i), count: *count, kind: Kind::Positive(*i) });
    }
    all
}

/// The buckets with what lies in the zero bucket taken from them.
pub fn outside_zero(h: &Hist) -> Vec<Bucket> {
    let mut all = all(h);
    all.retain(|b| b.kind != Kind::Zero || b.count > 0.0);
    for b in all.iter_mut().filter(|_| !h.is_custom()) {
        match b.kind {
            Kind::Positive(_) if b.lower < h.zero_threshold => b.lower = h.zero_threshold,
            Kind::Negative(_) if b.upper > -h.zero_threshold => b.upper = -h.zero_threshold,
            _ => {}
        }
    }
    all
}

/// The share of a bucket's observations below a value inside it.
pub fn share_below(v: f64, b: &Bucket, linear: bool) -> f64 {
    if linear {
        return (v - b.lower) / (b.upper - b.lower);
    }
    let (low, high, at) = (b.lower.abs().log2(), b.upper.abs().log2(), v.abs().log2());
    if v > 0.0 { (at - low) / (high - low) } else { 1.0 - (at - high) / (low - high) }
}

/// A bucket around zero ends there if all other observations are on one side.
fn one_sided(b: &mut Bucket, h: &Hist) {
    match (h.negative.is_empty(), h.positive.is_empty()) {
        (true, false) => b.lower = 0.0,
        (false, true) => b.upper = 0.0,
        _ => {}
    }
}

pub fn quantile(q: f64, h: &Hist) -> f64 {
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    if h.count == 0.0 || q.is_nan() {
        return f64::NAN;
    }
    let from_below = h.sum.is_nan() || q < 0.5;
    let rank = if from_below { q * h.count } else { (1.0 - q) * h.count };
    let mut buckets = outside_zero(h);
    if !from_below {
        buckets.reverse();
    }
    let mut b = Bucket { lower: 0.0, upper: 0.0, count: 0.0, kind: Kind::Zero };
    let mut count = 0.0;
    for next in buckets {
        // Prometheus looks at the bounds of an empty bucket, too, if it is the last.
        b = next;
        if b.count == 0.0 {
            continue;
        }
        count += b.count;
        if count >= rank {
            break;
        }
    }
    if h.is_custom() {
        if b.lower == f64::NEG_INFINITY {
            if b.upper <= 0.0 {
                return b.upper;
            }
            b.lower = 0.0;
        } else if b.upper == f64::INFINITY {
            return b.lower;
        }
    } else if b.lower < 0.0 && b.upper > 0.0 {
        one_sided(&mut b, h);
    }
    if count > h.count {
        count = h.count;
    }
    if count < rank {
        return if h.sum.is_nan() { f64::NAN } else { b.upper };
    }
    let rank = if from_below { rank - (count - b.count) } else { count - rank };
    let fraction = rank / b.count;
    if h.is_custom() || (b.lower <= 0.0 && b.upper >= 0.0) {
        return b.lower + (b.upper - b.lower) * fraction;
    }
    let (low, high) = (b.lower.abs().log2(), b.upper.abs().log2());
    if b.lower > 0.0 {
        (low + (high - low) * fraction).exp2()
    } else {
        -(high + (low - high) * (1.0 - fraction)).exp2()
    }
}

pub fn fraction(lower: f64, upper: f64, h: &Hist) -> f64 {
    if h.count == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let buckets = outside_zero(h);
    // Without NaN observations all of the count lies in the buckets.
    let whole = if h.sum.is_nan() { buckets.iter().fold(0.0, |sum, b| sum + b.count) } else { h.count };
    let rank_of = |value: f64| {
        let mut rank = 0.0;
        for b in &buckets {
            let mut b = *b;
            let around_zero = b.lower <= 0.0 && b.upper >= 0.0;
            if around_zero {
                one_sided(&mut b, h);
            }
            if b.lower >= value {
                return rank;
            }
            if b.upper > value {
                if b.lower == f64::NEG_INFINITY {
                    return b.count;
                }
                return rank + b.count * share_below(value, &b, h.is_custom() || around_zero);
            }
            rank += b.count;
        }
        whole
    };
    let clip = |rank: f64| if rank > whole { whole } else { rank };
    (clip(rank_of(upper)) - clip(rank_of(lower))) / h.count
}

pub fn variance(h: &Hist) -> f64 {
    let mean = h.sum / h.count;
    let mut sum = Kahan::of(0.0);
    for b in outside_zero(h).into_iter().filter(|b| b.count != 0.0) {
        let middle = if h.is_custom() {
            (b.upper + b.lower) / 2.0
        } else if b.lower <= 0.0 && b.upper >= 0.0 {
            0.0
        } else {
            (b.upper * b.lower).sqrt() * if b.upper < 0.0 { -1.0 } else { 1.0 }
        };
        let delta = middle - mean;
        sum = sum.plus(b.count * delta * delta);
    }
    sum.value() / h.count
}

/// As `count_values` writes it.
pub fn text(h: &Hist) -> String {
    let g = |v: f64| floats::format(v, true);
    let mut parts = vec![format!("count:{}", g(h.count)), format!("sum:{}", g(h.sum))];
    for (i, b) in all(h).into_iter().filter(|b| b.count != 0.0).enumerate() {
        let _ = i;
        let (open, close) = match b.kind {
            Kind::Negative(_) => ("[", ")"),
            Kind::Zero => ("[", "]"),
            Kind::Positive(_) if b.lower == f64::NEG_INFINITY => ("[", "]"),
            Kind::Positive(_) => ("(", "]"),
        };
        parts.push(format!("{open}{},{}{close}:{}", g(b.lower), g(b.upper), g(b.count)));
    }
    format!("{{{}}}", parts.join(", "))
}

/// Classic buckets: upper bound and cumulative count. Ascending, equal bounds added up; none without +Inf.
fn classic(buckets: &[(f64, f64)]) -> Option<Vec<(f64, f64)>> {
    let mut sorted = buckets.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    if sorted.last()?.0 != f64::INFINITY {
        return None;
    }
    let mut all: Vec<(f64, f64)> = Vec::new();
    for (bound, count) in sorted {
        match all.last_mut() {
            Some(last) if last.0 == bound => last.1 += count,
            _ => all.push((bound, count)),
        }
    }
    Some(all)
}

pub fn classic_quantile(q: f64, buckets: &[(f64, f64)]) -> f64 {
    if q.is_nan() {
        return f64::NAN;
    }
    if !(0.0..=1.0).contains(&q) {
        return if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    let Some(mut all) = classic(buckets) else { return f64::NAN };
    let mut before = all[0].1;
    for (_, count) in &mut all[1..] {
        if nearly_equal(*count, before) || *count < before {
            *count = before;
        } else {
            before = *count;
        }
    }
    let total = all[all.len() - 1].1;
    if all.len() < 2 || total == 0.0 {
        return f64::NAN;
    }
    let mut rank = q * total;
    let last = all.len() - 1;
    let at = all[..last].partition_point(|(_, count)| count.partial_cmp(&rank).is_none_or(|o| o.is_lt()));
    let (end, mut count) = all[at];
    if at == last {
        return all[last - 1].0;
    }
    if at == 0 && end <= 0.0 {
        return end;
    }
    let mut start = 0.0;
    if at > 0 {
        start = all[at - 1].0;
        count -= all[at - 1].1;
        rank -= all[at - 1].1;
    }
    start + (end - start) * (rank / count)
}

fn nearly_equal(a: f64, b: f64) -> bool {
    let difference = (a - b).abs();
    if a == 0.0 || b == 0.0 || a.abs() + b.abs() < f64::MIN_POSITIVE {
        return a == b || difference < 1e-12 * f64::MIN_POSITIVE;
    }
    a == b || difference / (a.abs() + b.abs()).min(f64::MAX) < 1e-12
}

pub fn classic_fraction(lower: f64, upper: f64, buckets: &[(f64, f64)]) -> f64 {
    let Some(all) = classic(buckets) else { return f64::NAN };
    let total = all[all.len() - 1].1;
    if total == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let rank_of = |value: f64| {
        let (mut start, mut rank) = (if all[0].0 <= 0.0 { f64::NEG_INFINITY } else { 0.0 }, 0.0);
        for (end, count) in &all {
            if start >= value {
                return rank;
            }
            if *end > value {
                return if start == f64::NEG_INFINITY {
                    *count
                } else {
                    rank + (count - rank) * (value - start) / (end - start)
                };
            }
            (start, rank) = (*end, *count);
        }
        total
    };
    let clip = |rank: f64| if rank > total { total } else { rank };
    (clip(rank_of(upper)) - clip(rank_of(lower))) / total
}
