//! The words of the model: values, elements, windows, failures. Everything is owned and plain.

use std::rc::Rc;

use skald_model::{Labels, LabelsBuilder, METRIC_NAME};

use crate::histogram::Hist;

/// A float or a native histogram.
#[derive(Clone, Debug)]
pub enum V {
    F(f64),
    H(Rc<Hist>),
}

impl V {
    pub fn hist(h: Hist) -> Self {
        Self::H(Rc::new(h))
    }

    pub fn float(&self) -> Option<f64> {
        match self {
            Self::F(value) => Some(*value),
            Self::H(_) => None,
        }
    }

    pub fn is_stale(&self) -> bool {
        match self {
            Self::F(value) => skald_model::is_stale_nan(*value),
            Self::H(h) => skald_model::is_stale_nan(h.sum),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Sample {
    pub t: i64,
    pub v: V,
}

/// All series, ascending by labels; samples ascend by time.
pub type Data = Vec<(Labels, Vec<Sample>)>;

/// An element of an instant vector.
#[derive(Clone, Debug)]
pub struct Elem {
    pub labels: Labels,
    /// Delayed name removal: the name goes at the end.
    pub drop: bool,
    pub v: V,
}

/// One series of a range vector at one step.
#[derive(Clone, Debug)]
pub struct Window {
    pub labels: Labels,
    pub drop: bool,
    /// The window itself: `start < t <= end`.
    pub start: i64,
    pub end: i64,
    /// Samples of the window, with `anchored` and `smoothed` also those around it.
    pub samples: Vec<Sample>,
}

impl Window {
    /// The window's length as Go's `Duration.Seconds` gives it, whose last bit is not that of a division by 1000.
    pub fn seconds(&self) -> f64 {
        let ms = self.end - self.start;
        (ms / 1000) as f64 + (ms % 1000 * 1_000_000) as f64 / 1e9
    }

    pub fn floats(&self) -> Vec<(i64, f64)> {
        self.samples.iter().filter_map(|s| Some((s.t, s.v.float()?))).collect()
    }

    pub fn hists(&self) -> Vec<(i64, Rc<Hist>)> {
        let hist = |s: &Sample| match &s.v {
            V::H(h) => Some((s.t, Rc::clone(h))),
            V::F(_) => None,
        };
        self.samples.iter().filter_map(hist).collect()
    }
}

/// Why a query has no answer: Prometheus' `errorType` and the text.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "the text is for whoever reads a failure")]
pub struct Fail {
    pub kind: &'static str,
    pub text: String,
}

impl Fail {
    pub fn execution(text: impl Into<String>) -> Self {
        Self { kind: "execution", text: text.into() }
    }

    pub fn bad_data(text: impl Into<String>) -> Self {
        Self { kind: "bad_data", text: text.into() }
    }

    pub fn duplicate() -> Self {
        Self::execution("vector cannot contain metrics with the same labelset")
    }
}

pub type Res<T> = Result<T, Fail>;

/// The steps of an evaluation: `start + i * step` for `i < count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    pub start: i64,
    pub step: i64,
    pub count: i64,
}

impl Grid {
    pub fn one(start: i64) -> Self {
        Self { start, step: 0, count: 1 }
    }

    pub fn times(self) -> impl Iterator<Item = i64> {
        (0..self.count).map(move |i| self.start + i * self.step)
    }

    pub fn last(self) -> i64 {
        self.start + (self.count - 1) * self.step
    }
}

pub fn label<'l>(labels: &'l Labels, name: &str) -> &'l str {
    labels.get(name).unwrap_or("")
}

pub fn set_label(labels: &Labels, name: &str, value: &str) -> Labels {
    LabelsBuilder::new(labels).set(name, value).build()
}

/// The labels that `keep` says yes to.
pub fn filtered(labels: &Labels, keep: impl Fn(&str) -> bool) -> Labels {
    Labels::from_pairs(labels.iter().filter(|(name, _)| keep(name)))
}

/// `on`/`by`: the listed labels; `ignoring`/`without`: all but them and the name.
pub fn subset(labels: &Labels, listed: &[String], only: bool) -> Labels {
    filtered(labels, |name| {
        let is_listed = listed.iter().any(|l| l == name);
        if only { is_listed } else { !is_listed && name != METRIC_NAME }
    })
}
