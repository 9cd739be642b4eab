//! Native histograms as maps from bucket index to count, and the arithmetic on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use skald_model::{FloatHistogram, ResetHint, Span};

use crate::floats::Kahan;

pub const CUSTOM: i32 = -53;

pub type Buckets = BTreeMap<i64, f64>;

/// A native histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Hist {
    pub hint: ResetHint,
    pub schema: i32,
    pub zero_threshold: f64,
    pub zero_count: f64,
    pub count: f64,
    pub sum: f64,
    pub positive: Buckets,
    pub negative: Buckets,
    pub bounds: Vec<f64>,
}

/// Exponential and custom buckets do not combine.
#[derive(Debug)]
pub struct Incompatible;

/// Upper bound of bucket `index`: `2^(index * 2^-schema)`.
pub fn bound(index: i64, schema: i32) -> f64 {
    skald_model::histogram::exponential_bound(index as i32, schema)
}

fn dense(spans: &[Span], counts: &[f64]) -> Buckets {
    let (mut index, mut all, mut counts) = (0, Buckets::new(), counts.iter());
    for span in spans {
        index += i64::from(span.offset);
        for _ in 0..span.length {
            if let Some(count) = counts.next() {
                all.insert(index, *count);
            }
            index += 1;
        }
    }
    all
}

fn spans_of(buckets: &Buckets) -> (Vec<Span>, Vec<f64>) {
    let (mut spans, mut next): (Vec<Span>, i64) = (Vec::new(), 0);
    for index in buckets.keys() {
        match spans.last_mut() {
            Some(span) if *index == next => span.length += 1,
            _ => spans.push(Span { offset: (index - next) as i32, length: 1 }),
        }
        next = index + 1;
    }
    (spans, buckets.values().copied().collect())
}

/// The bucket of a `shift` times halved resolution that holds bucket `index`.
fn coarser(index: i64, shift: i32) -> i64 {
    ((index - 1) >> shift) + 1
}

fn reduced(buckets: &Buckets, shift: i32) -> Buckets {
    let mut all = Buckets::new();
    for (index, count) in buckets {
        *all.entry(coarser(*index, shift)).or_insert(0.0) += count;
    }
    all
}

fn without_empty(buckets: &Buckets) -> Buckets {
    buckets.iter().filter(|(_, count)| **count != 0.0).map(|(i, c)| (*i, *c)).collect()
}

impl Hist {
    pub fn empty(schema: i32) -> Self {
        Self {
            hint: ResetHint::Unknown,
            schema,
            zero_threshold: 0.0,
            zero_count: 0.0,
            count: 0.0,
            sum: 0.0,
            positive: Buckets::new(),
            negative: Buckets::new(),
            bounds: Vec::new(),
        }
    }

    pub fn of(h: &FloatHistogram) -> Self {
        Self {
            hint: h.reset_hint,
            schema: h.schema,
            zero_threshold: h.zero_threshold,
            zero_count: h.zero_count,
            count: h.count,
            sum: h.sum,
            positive: dense(&h.positive_spans, &h.positive_buckets),
            negative: dense(&h.negative_spans, &h.negative_buckets),
            bounds: h.custom_values.to_vec(),
        }
    }

    pub fn to_model(&self) -> Arc<FloatHistogram> {
        let (positive_spans, positive_buckets) = spans_of(&self.positive);
        let (negative_spans, negative_buckets) = spans_of(&self.negative);
        Arc::new(FloatHistogram {
            reset_hint: self.hint,
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: self.zero_count,
            count: self.count,
            sum: self.sum,
            positive_spans,
            negative_spans,
            positive_buckets,
            negative_buckets,
            custom_values: self.bounds.clone().into(),
        })
    }

    pub fn is_custom(&self) -> bool {
        self.schema == CUSTOM
    }

    pub fn compact(&self) -> Self {
        let (positive, negative) = (without_empty(&self.positive), without_empty(&self.negative));
        Self { positive, negative, ..self.clone() }
    }

    pub fn with_hint(&self, hint: ResetHint) -> Self {
        Self { hint, ..self.clone() }
    }

    pub fn to_schema(&self, schema: i32) -> Self {
        if self.is_custom() || schema >= self.schema {
            return self.clone();
        }
        let shift = self.schema - schema;
        let (positive, negative) = (reduced(&self.positive, shift), reduced(&self.negative, shift));
        Self { schema, positive, negative, ..self.clone() }
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        let each = |buckets: &Buckets| buckets.iter().map(|(i, c)| (*i, f(*c))).collect();
        Self {
            zero_count: f(self.zero_count),
            count: f(self.count),
            sum: f(self.sum),
            positive: each(&self.positive),
            negative: each(&self.negative),
            ..self.clone()
        }
    }

    pub fn times(&self, factor: f64) -> Self {
        let h = self.map(|count| count * factor);
        if factor < 0.0 { h.with_hint(ResetHint::Gauge) } else { h }
    }

    pub fn over(&self, divisor: f64) -> Self {
        let mut h = self.map(|count| count / divisor);
        if divisor == 0.0 {
            (h.positive, h.negative) = (Buckets::new(), Buckets::new());
        }
        if divisor < 0.0 { h.with_hint(ResetHint::Gauge) } else { h }
    }

    /// What the zero bucket counts with a threshold of at least `threshold`, and the threshold that cuts no populated
    /// bucket.
    fn widened_zero(&self, threshold: f64) -> (f64, f64) {
        widened_zero(&self.positive, &self.negative, self.schema, self.zero_count, self.zero_threshold, threshold)
    }

    /// `self + other * factor`, plainly; `factor` is 1 or -1.
    pub fn plus(&self, other: &Hist, factor: f64) -> Result<Hist, Incompatible> {
        let mut sum = HistSum::of(self, false);
        sum.add(&if factor < 0.0 { other.negated() } else { other.clone() })?;
        Ok(sum.finish())
    }

    /// Like [`Hist::times`] with -1, but the hint stays.
    fn negated(&self) -> Self {
        self.map(|count| -count)
    }

    /// Whether this follows a counter reset after `before`.
    pub fn is_reset(&self, before: &Hist) -> bool {
        match self.hint {
            ResetHint::Reset => return true,
            ResetHint::NotReset => return false,
            ResetHint::Unknown | ResetHint::Gauge => {}
        }
        if self.count < before.count {
            return true;
        }
        if self.is_custom() {
            return !before.is_custom() || self.custom_fell(before);
        }
        if self.schema > before.schema || self.zero_threshold < before.zero_threshold {
            return true;
        }
        if before.is_custom() {
            return true;
        }
        let (zero_before, threshold) = before.widened_zero(self.zero_threshold);
        if threshold != self.zero_threshold || self.zero_count < zero_before {
            return true;
        }
        let before = before.to_schema(self.schema);
        let fell = |now: &Buckets, then: &Buckets| {
            let outside = then.iter().filter(|(i, _)| bound(**i, self.schema) > self.zero_threshold);
            outside.into_iter().any(|(i, count)| match now.get(i) {
                Some(now) => now < count,
                None => *count != 0.0,
            })
        };
        fell(&self.positive, &before.positive) || fell(&self.negative, &before.negative)
    }

    fn custom_fell(&self, before: &Hist) -> bool {
        if self.bounds == before.bounds {
            return before.positive.iter().any(|(i, count)| match self.positive.get(i) {
                Some(now) => now < count,
                None => *count != 0.0,
            });
        }
        let common = common_bounds(&self.bounds, &before.bounds);
        let (now, then) = (self.to_bounds(&common), before.to_bounds(&common));
        (0..=common.len() as i64).any(|i| now.get(&i).unwrap_or(&0.0) < then.get(&i).unwrap_or(&0.0))
    }

    fn to_bounds(&self, common: &[f64]) -> Buckets {
        let mut all = Buckets::new();
        for (index, count) in &self.positive {
            *all.entry(moved(&self.bounds, common, *index)).or_insert(0.0) += count;
        }
        all
    }

    /// Whether two histograms are the same, reset knowledge aside.
    pub fn equals(&self, other: &Hist) -> bool {
        let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || a == b;
        let buckets = |a: &Buckets, b: &Buckets| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && same(*a.1, *b.1))
        };
        self.schema == other.schema
            && same(self.zero_threshold, other.zero_threshold)
            && same(self.zero_count, other.zero_count)
            && same(self.count, other.count)
            && same(self.sum, other.sum)
            && self.bounds == other.bounds
            && buckets(&self.positive, &other.positive)
            && buckets(&self.negative, &other.negative)
    }

    fn has_overflow(&self) -> bool {
        let buckets = self.positive.values().chain(self.negative.values());
        [self.zero_count, self.count, self.sum].iter().chain(buckets).any(|v| v.is_infinite())
    }
}

fn widened_zero(
    positive: &Buckets,
    negative: &Buckets,
    schema: i32,
    zero_count: f64,
    zero_threshold: f64,
    threshold: f64,
) -> (f64, f64) {
    if threshold == zero_threshold {
        return (zero_count, threshold);
    }
    // Repeat until no populated bucket is cut, then count what lies inside.
    let mut threshold = threshold;
    loop {
        let cut = positive.iter().chain(negative).find(|(index, count)| {
            **count != 0.0 && bound(**index - 1, schema) < threshold && bound(**index, schema) > threshold
        });
        match cut {
            Some((index, _)) => threshold = bound(*index, schema),
            None => break,
        }
    }
    let inside = positive.iter().chain(negative).filter(|(index, _)| bound(**index, schema) <= threshold);
    (inside.fold(zero_count, |sum, (_, count)| sum + count), threshold)
}

fn common_bounds(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().copied().filter(|bound| b.contains(bound)).collect()
}

/// Where bucket `index` of `bounds` lies among the coarser `common` bounds.
fn moved(bounds: &[f64], common: &[f64], index: i64) -> i64 {
    let upper = usize::try_from(index).ok().and_then(|i| bounds.get(i).copied()).unwrap_or(f64::INFINITY);
    common.iter().position(|bound| *bound >= upper).unwrap_or(common.len()) as i64
}

/// A running sum, compensated bucket by bucket or plain.
#[derive(Clone)]
pub struct HistSum {
    /// The sum without the compensation.
    pub h: Hist,
    compensated: bool,
    lost: BTreeMap<Place, f64>,
    /// Whether different custom bounds met.
    pub reconciled: bool,
    pub saw_reset: bool,
    pub saw_no_reset: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Zero,
    Count,
    Sum,
    Positive(i64),
    Negative(i64),
}

impl HistSum {
    pub fn of(first: &Hist, compensated: bool) -> Self {
        Self {
            h: first.clone(),
            compensated,
            lost: BTreeMap::new(),
            reconciled: false,
            saw_reset: first.hint == ResetHint::Reset,
            saw_no_reset: first.hint == ResetHint::NotReset,
        }
    }

    fn add_at(&mut self, place: Place, value: f64) {
        let total = match place {
            Place::Zero => &mut self.h.zero_count,
            Place::Count => &mut self.h.count,
            Place::Sum => &mut self.h.sum,
            Place::Positive(i) => self.h.positive.entry(i).or_insert(0.0),
            Place::Negative(i) => self.h.negative.entry(i).or_insert(0.0),
        };
        if !self.compensated {
            *total += value;
            return;
        }
        let lost = self.lost.entry(place).or_insert(0.0);
        let sum = Kahan { sum: *total, lost: *lost }.plus(value);
        (*total, *lost) = (sum.sum, sum.lost);
    }

    pub fn add(&mut self, other: &Hist) -> Result<(), Incompatible> {
        if self.h.is_custom() != other.is_custom() {
            return Err(Incompatible);
        }
        self.saw_reset |= other.hint == ResetHint::Reset;
        self.saw_no_reset |= other.hint == ResetHint::NotReset;
        self.h.hint = match (self.h.hint, other.hint) {
            (a, b) if a == b => a,
            (ResetHint::Gauge, _) | (_, ResetHint::Gauge) => ResetHint::Gauge,
            _ => ResetHint::Unknown,
        };
        let mut other = other.clone();
        if other.is_custom() {
            self.meet_bounds(&mut other);
        } else {
            let zero_count = self.meet_zero_bucket(&other);
            self.add_at(Place::Zero, zero_count);
            self.reduce(other.schema);
            other = other.to_schema(self.h.schema);
            let (schema, threshold) = (self.h.schema, self.h.zero_threshold);
            other.positive.retain(|i, _| bound(*i, schema) > threshold);
            other.negative.retain(|i, _| bound(*i, schema) > threshold);
        }
        self.add_at(Place::Count, other.count);
        self.add_at(Place::Sum, other.sum);
        other.positive.iter().for_each(|(i, count)| self.add_at(Place::Positive(*i), *count));
        other.negative.iter().for_each(|(i, count)| self.add_at(Place::Negative(*i), *count));
        Ok(())
    }

    /// Widens the zero buckets until they are equally wide and cut no populated bucket; what `other`'s counts then.
    fn meet_zero_bucket(&mut self, other: &Hist) -> f64 {
        let (mut zero_count, mut threshold) = (other.zero_count, other.zero_threshold);
        while threshold != self.h.zero_threshold {
            if self.h.zero_threshold > threshold {
                (zero_count, threshold) = other.widened_zero(self.h.zero_threshold);
            }
            if threshold > self.h.zero_threshold {
                let (_, wider) = self.h.widened_zero(threshold);
                self.h.zero_threshold = wider;
                let schema = self.h.schema;
                let inside = |i: i64| bound(i - 1, schema) < wider;
                let gone: Vec<(Place, f64)> = (self.h.positive.iter().map(|(i, c)| (*i, Place::Positive(*i), *c)))
                    .chain(self.h.negative.iter().map(|(i, c)| (*i, Place::Negative(*i), *c)))
                    .filter(|(i, ..)| inside(*i))
                    .map(|(_, place, count)| (place, count))
                    .collect();
                for (place, count) in gone {
                    let lost = self.lost.remove(&place).unwrap_or(0.0);
                    self.add_at(Place::Zero, count);
                    self.add_at(Place::Zero, lost);
                }
                self.h.positive.retain(|i, _| !inside(*i));
                self.h.negative.retain(|i, _| !inside(*i));
            }
        }
        zero_count
    }

    pub fn reduce(&mut self, schema: i32) {
        if schema >= self.h.schema || self.h.is_custom() {
            return;
        }
        let shift = self.h.schema - schema;
        let old = std::mem::replace(&mut self.h, Hist::empty(schema));
        let lost = std::mem::take(&mut self.lost);
        self.h = Hist { schema, positive: Buckets::new(), negative: Buckets::new(), ..old.clone() };
        for (i, count) in &old.positive {
            self.add_at(Place::Positive(coarser(*i, shift)), *count);
        }
        for (i, count) in &old.negative {
            self.add_at(Place::Negative(coarser(*i, shift)), *count);
        }
        for (place, value) in lost {
            let place = match place {
                Place::Positive(i) => Place::Positive(coarser(i, shift)),
                Place::Negative(i) => Place::Negative(coarser(i, shift)),
                other => other,
            };
            *self.lost.entry(place).or_insert(0.0) += value;
        }
    }

    fn meet_bounds(&mut self, other: &mut Hist) {
        self.add_at(Place::Zero, other.zero_count);
        if self.h.bounds == other.bounds {
            return;
        }
        self.reconciled = true;
        let common = common_bounds(&self.h.bounds, &other.bounds);
        self.h.positive = self.h.to_bounds(&common);
        let lost = std::mem::take(&mut self.lost);
        for (place, value) in lost {
            let place = match place {
                Place::Positive(i) => Place::Positive(moved(&self.h.bounds, &common, i)),
                other => other,
            };
            *self.lost.entry(place).or_insert(0.0) += value;
        }
        self.h.bounds = common.clone();
        other.positive = other.to_bounds(&common);
        other.bounds = common;
    }

    /// The sum, without empty buckets.
    pub fn finish(&self) -> Hist {
        let mut h = self.h.clone();
        for (place, lost) in &self.lost {
            match place {
                Place::Zero => h.zero_count += lost,
                Place::Count => h.count += lost,
                Place::Sum => h.sum += lost,
                Place::Positive(i) => *h.positive.entry(*i).or_insert(0.0) += lost,
                Place::Negative(i) => *h.negative.entry(*i).or_insert(0.0) += lost,
            }
        }
        h.compact()
    }

    fn scale(&mut self, f: impl Fn(f64) -> f64) {
        self.h = self.h.map(&f);
        self.lost.values_mut().for_each(|lost| *lost = f(*lost));
    }
}

/// The compensated sum or mean of histograms; a mean that would overflow goes on incrementally.
pub fn total(all: &[&Hist], mean: bool) -> Result<HistSum, Incompatible> {
    let mut sum = HistSum::of(all[0], true);
    let mut incremental = false;
    for (i, h) in all.iter().enumerate().skip(1) {
        let count = (i + 1) as f64;
        if !incremental {
            let mut next = sum.clone();
            next.add(h)?;
            if !mean || !next.h.has_overflow() {
                sum = next;
                continue;
            }
            incremental = true;
            sum.scale(|v| v / (count - 1.0));
        }
        let q = (count - 1.0) / count;
        sum.scale(|v| v * q);
        sum.add(&h.map(|v| v / count))?;
    }
    if mean && !incremental {
        let count = all.len() as f64;
        sum.scale(|v| v / count);
    }
    Ok(sum)
}
