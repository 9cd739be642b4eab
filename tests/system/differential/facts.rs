//! What is known of an expression's answer before it is asked: how exactly both sides must agree on it, and whether a
//! further operation keeps them agreed.

use std::collections::BTreeSet;

use super::series::{METRICS, Shape};

/// How near the two answers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precision {
    /// Multiples of 1/8 below `2^bits`: sums are exact in any order.
    Eighths { bits: u32 },
    /// The same bits.
    Exact,
    /// The same but for rounding: sums in another order or without compensation, another library's `exp`.
    Near,
    /// The same but for rounding that an operation has enlarged.
    Rough,
}

impl Precision {
    pub fn is_exact(self) -> bool {
        self <= Precision::Exact
    }

    /// Multiples of 1/8 with more bits; exact when they become too many.
    pub fn grown(self, more: u32) -> Precision {
        match self {
            Precision::Eighths { bits } if bits + more <= 45 => Precision::Eighths { bits: bits + more },
            Precision::Eighths { .. } => Precision::Exact,
            other => other,
        }
    }
}

pub const INTEGERS: Precision = Precision::Eighths { bits: 20 };

/// What a vector's or matrix' elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Float,
    Histogram,
    /// Some of both.
    Both,
}

/// Whether elements have metric names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    None,
    /// All the same one.
    One,
    Many,
}

#[derive(Debug, Clone)]
pub struct Facts {
    pub kind: Kind,
    pub precision: Precision,
    /// Neither a negative number nor the negative zero.
    pub nonneg: bool,
    /// Neither NaN nor infinite.
    pub finite: bool,
    /// Whether a negative zero may occur.
    pub negative_zero: bool,
    /// Numbers of many digits: no two are the same by accident.
    pub distinct: bool,
    pub names: Names,
    /// Labels elements may have, without the name. Elements of one name differ in them.
    pub labels: BTreeSet<String>,
    /// A rate over this does not come to the case in which the versions look for a counter's zero differently.
    pub rate_agrees: bool,
    /// The same for samples taken at other times than the series', as a subquery does.
    pub resampled_rate_agrees: bool,
    /// Cumulative buckets with `le`.
    pub is_classic: bool,
    /// Of histograms: gauges, and all of one resolution.
    pub is_gauge: bool,
    pub one_schema: bool,
    /// Half the observations are in the zero bucket and none below.
    pub zero_heavy: bool,
    /// Seconds since 1970.
    pub is_time: bool,
    /// Of a scalar: made of numbers alone.
    pub is_literal: bool,
    /// Places where it may fail. Of several, the versions may name another one first.
    pub risks: u32,
}

impl Facts {
    pub fn scalar(precision: Precision) -> Facts {
        Facts {
            kind: Kind::Float,
            precision,
            nonneg: false,
            finite: true,
            negative_zero: true,
            distinct: false,
            names: Names::None,
            labels: BTreeSet::new(),
            rate_agrees: false,
            resampled_rate_agrees: false,
            is_classic: false,
            is_gauge: false,
            one_schema: false,
            zero_heavy: false,
            is_time: false,
            is_literal: false,
            risks: 0,
        }
    }

    /// Of a new value that has nothing but its labels from this one.
    pub fn derived(&self, precision: Precision) -> Facts {
        let names = self.names;
        Facts { names, labels: self.labels.clone(), risks: self.risks, ..Facts::scalar(precision) }
    }

    /// Counts: small integers, never negative.
    pub fn counts(&self) -> Facts {
        Facts { nonneg: true, negative_zero: false, ..self.derived(INTEGERS) }
    }

    fn of_metric(at: usize) -> Facts {
        let metric = &METRICS[at];
        let shape = metric.shape;
        use Shape::{
            Bucket, BucketCount, Counter, Gauge, Info, Level, Mixed, Native, NativeGauge, NativeSchemas, NativeZero,
            Size, Weird, WeirdPositive, YoungCounter,
        };
        let kind = match shape {
            Native | NativeSchemas | NativeZero | NativeGauge => Kind::Histogram,
            Mixed => Kind::Both,
            _ => Kind::Float,
        };
        let precision = match shape {
            Gauge | Size | Weird | WeirdPositive => Precision::Exact,
            _ => Precision::Eighths { bits: 26 },
        };
        let large_counter = matches!(shape, Counter | Bucket | BucketCount | Native | NativeSchemas | NativeZero);
        Facts {
            kind,
            precision,
            nonneg: !matches!(shape, Gauge | Level | Weird),
            finite: !matches!(shape, Weird | WeirdPositive),
            negative_zero: shape == Weird,
            distinct: matches!(shape, Gauge | Size),
            names: Names::One,
            labels: metric.labels.iter().map(|label| (*label).to_owned()).collect(),
            rate_agrees: large_counter || matches!(shape, YoungCounter | Gauge | Level | Mixed | Info),
            resampled_rate_agrees: large_counter,
            is_classic: shape == Bucket,
            is_gauge: shape == NativeGauge,
            one_schema: shape != NativeSchemas,
            zero_heavy: shape == NativeZero,
            is_time: false,
            is_literal: false,
            risks: 0,
        }
    }

    pub fn of_metrics(metrics: &[usize]) -> Facts {
        let mut all = metrics.iter().map(|at| Facts::of_metric(*at));
        let first = all.next().unwrap_or_else(|| Facts::scalar(Precision::Exact));
        all.fold(first, |a, b| Facts { names: Names::Many, distinct: false, ..a.or(&b) })
    }

    /// Of a vector with elements of both.
    pub fn or(&self, other: &Facts) -> Facts {
        Facts {
            kind: if self.kind == other.kind { self.kind } else { Kind::Both },
            precision: self.precision.max(other.precision),
            nonneg: self.nonneg && other.nonneg,
            finite: self.finite && other.finite,
            negative_zero: self.negative_zero || other.negative_zero,
            // Both may hold the same number.
            distinct: false,
            names: if (self.names, other.names) == (Names::None, Names::None) { Names::None } else { Names::Many },
            labels: &self.labels | &other.labels,
            rate_agrees: self.rate_agrees && other.rate_agrees,
            resampled_rate_agrees: self.resampled_rate_agrees && other.resampled_rate_agrees,
            is_classic: self.is_classic && other.is_classic,
            is_gauge: self.is_gauge || other.is_gauge,
            one_schema: self.one_schema && other.one_schema,
            zero_heavy: self.zero_heavy && other.zero_heavy,
            is_time: self.is_time && other.is_time,
            is_literal: false,
            risks: self.risks + other.risks,
        }
    }
}
