//! `label_replace`, `label_join` and the functions that sort.

use std::cmp::Ordering;
use std::task::{Context, Poll, ready};

use regex::{Regex, RegexBuilder};
use skald_model::re2;
use skald_model::{Labels, LabelsBuilder, METRIC_NAME};

use super::env::Env;
use super::error::EvalError;
use super::operator::Operator;
use super::points::StepSeries;
use crate::ast::Span;

/// Compiled sizes of regexes of `label_replace`: the smallest that is enough is what one is counted with; the last one is
/// the largest it may reach.
const REGEX_SIZES: [usize; 4] = [16 << 10, 128 << 10, 1 << 20, 4 << 20];
/// Most bytes of its text.
const REGEX_TEXT_LIMIT: usize = 64 << 10;
/// Longest label value that `label_replace` and `label_join` make.
const LONGEST_VALUE: usize = 1 << 20;

/// What becomes of a series' labels.
pub(crate) enum Relabel {
    Replace { target: String, replacement: String, source: String, regex: Box<Regex> },
    Join { target: String, separator: String, sources: Vec<String> },
}

impl Relabel {
    /// `label_replace`
    pub(crate) fn replace(
        target: String,
        replacement: String,
        source: String,
        pattern: &str,
        charge: &mut impl FnMut(usize) -> Result<(), EvalError>,
    ) -> Result<Self, EvalError> {
        let refuse = || invalid("regular expression", "label_replace", pattern);
        if pattern.len() > REGEX_TEXT_LIMIT {
            let length = pattern.len();
            let text =
                format!("regex of label_replace of {length} bytes is longer than the limit of {REGEX_TEXT_LIMIT}");
            return Err(EvalError::Execution(text));
        }
        let translated = re2::translate(pattern).map_err(|_| refuse())?;
        let translated = format!("^(?s:{translated})$");
        let sized = |size: usize| Some((RegexBuilder::new(&translated).size_limit(size).build().ok()?, size));
        let (regex, size) = REGEX_SIZES.into_iter().find_map(sized).ok_or_else(refuse)?;
        // The automaton, and what matching with it builds up.
        charge(2 * size)?;
        if !is_label_name(&target) {
            return Err(invalid("destination label name", "label_replace", &target));
        }
        Ok(Self::Replace { target, replacement, source, regex: Box::new(regex) })
    }

    /// `label_join`
    pub(crate) fn join(target: String, separator: String, sources: Vec<String>) -> Result<Self, EvalError> {
        if let Some(source) = sources.iter().find(|source| !is_label_name(source)) {
            return Err(invalid("source label name", "label_join", source));
        }
        if !is_label_name(&target) {
            return Err(invalid("destination label name", "label_join", &target));
        }
        Ok(Self::Join { target, separator, sources })
    }

    fn apply(&self, series: &mut StepSeries, span: Span) -> Result<(), EvalError> {
        let labels = &series.labels;
        let (target, value) = match self {
            Self::Replace { target, replacement, source, regex } => {
                let source = labels.get(source).unwrap_or("");
                let Some(captures) = regex.captures(source) else { return Ok(()) };
                // No group is longer than the source.
                check_length(replacement.len() + replacement.matches('$').count() * source.len())?;
                let mut value = String::new();
                captures.expand(replacement, &mut value);
                (target, value)
            }
            Self::Join { target, separator, sources } => {
                let values: Vec<&str> = sources.iter().map(|s| labels.get(s).unwrap_or("")).collect();
                check_length(values.iter().map(|value| value.len() + separator.len()).sum())?;
                (target, values.join(separator))
            }
        };
        series.labels = LabelsBuilder::new(labels).set(target, &value).build();
        series.points.charge_labels(series.labels.as_bytes().len(), span)?;
        if target == METRIC_NAME {
            series.drop_name = false;
        }
        Ok(())
    }
}

/// Refuses to build a label value that may become longer than any should be.
fn check_length(most: usize) -> Result<(), EvalError> {
    if most <= LONGEST_VALUE {
        return Ok(());
    }
    let text = format!("a label value of up to {most} bytes is more than the limit of {LONGEST_VALUE}");
    Err(EvalError::Execution(text))
}

/// Whether a label can have this name. The parser writes U+FFFD for bytes that are not UTF-8.
pub(crate) fn is_label_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('\u{FFFD}')
}

fn invalid(what: &str, function: &str, value: &str) -> EvalError {
    EvalError::Execution(format!("invalid {what} in {function}(): {value}"))
}

/// Applies a [`Relabel`] to every series.
pub(crate) struct RelabelOperator {
    pub(crate) child: Box<dyn Operator>,
    pub(crate) relabel: Relabel,
    pub(crate) span: Span,
}

impl Operator for RelabelOperator {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        let Some(mut series) = ready!(self.child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
        env.tick(1)?;
        self.relabel.apply(&mut series, self.span)?;
        Poll::Ready(Ok(Some(series)))
    }
}

/// What the elements of an instant vector are ordered by.
pub(crate) enum SortBy {
    /// Floats only, NaN last.
    Value { descending: bool },
    /// These labels in natural order, then all labels.
    Labels { labels: Vec<String>, descending: bool },
}

/// Orders the elements of an instant query's vector.
pub(crate) struct Sort {
    child: Box<dyn Operator>,
    by: SortBy,
    collected: Vec<StepSeries>,
    ended: bool,
}

impl Sort {
    pub(crate) fn new(child: Box<dyn Operator>, by: SortBy) -> Self {
        Self { child, by, collected: Vec::new(), ended: false }
    }

    fn order(&mut self) {
        match &self.by {
            SortBy::Value { descending } => {
                self.collected.sort_by(|a, b| by_value(a.points.values[0], b.points.values[0], *descending));
            }
            SortBy::Labels { labels, descending: false } => {
                self.collected.sort_by(|a, b| by_labels(&a.labels, &b.labels, labels));
            }
            SortBy::Labels { labels, descending: true } => {
                self.collected.sort_by(|a, b| by_labels(&b.labels, &a.labels, labels));
            }
        }
    }
}

impl Operator for Sort {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        while !self.ended {
            match ready!(self.child.poll_next(cx, env))? {
                Some(mut series) => {
                    if matches!(self.by, SortBy::Value { .. }) {
                        series.points.drop_histograms();
                    }
                    if !series.points.is_empty() {
                        series.hold(Span::default())?;
                        self.collected.push(series);
                    }
                }
                None => {
                    self.ended = true;
                    self.order();
                    self.collected.reverse();
                }
            }
        }
        Poll::Ready(Ok(self.collected.pop()))
    }
}

/// A sorting function in a range query, whose result is ordered by labels anyway.
pub(crate) struct IneffectiveSort {
    pub(crate) child: Box<dyn Operator>,
    /// Whether histograms are dropped, as the functions that sort by value do.
    pub(crate) floats_only: bool,
    pub(crate) span: Span,
}

impl Operator for IneffectiveSort {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        let text = "sort is ineffective for range queries since results are always ordered by labels";
        let next = ready!(self.child.poll_next(cx, env))?;
        let Some(mut series) = next else {
            env.annotations.warn(self.span, text);
            return Poll::Ready(Ok(None));
        };
        if self.floats_only {
            series.points.drop_histograms();
        }
        Poll::Ready(Ok(Some(series)))
    }
}

fn by_value(a: f64, b: f64, descending: bool) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => {
            let order = a.partial_cmp(&b).unwrap_or(Ordering::Equal);
            if descending { order.reverse() } else { order }
        }
    }
}

fn by_labels(a: &Labels, b: &Labels, labels: &[String]) -> Ordering {
    for label in labels {
        let (x, y) = (a.get(label).unwrap_or(""), b.get(label).unwrap_or(""));
        if x != y {
            return natural(x, y);
        }
    }
    a.cmp(b)
}

/// Natural order: runs of digits compare as numbers, everything else as bytes.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        match (a.is_empty(), b.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        let (x, rest_a) = run(a);
        let (y, rest_b) = run(b);
        let order = match (x.parse::<u64>(), y.parse::<u64>()) {
            (Ok(x), Ok(y)) => x.cmp(&y),
            _ => x.cmp(y),
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// The leading run of digits, or of anything else, and what follows.
fn run(text: &str) -> (&str, &str) {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn natural_order() {
        let mut texts = ["4m1000", "4m5", "b", "4m600", "10", "9", "", "4m"];
        texts.sort_by(|a, b| natural(a, b));
        assert_eq!(texts, ["", "4m", "4m5", "4m600", "4m1000", "9", "10", "b"]);
    }

    #[test]
    fn nan_sorts_last_both_ways() {
        for (descending, want) in [(false, [1.0, 2.0]), (true, [2.0, 1.0])] {
            let mut values = [f64::NAN, 2.0, 1.0];
            values.sort_by(|a, b| by_value(*a, *b, descending));
            assert_eq!(values[..2], want);
            assert!(values[2].is_nan());
        }
    }

    #[test]
    fn patterns_have_the_syntax_of_re2() {
        let replace =
            |pattern: &str| Relabel::replace("dst".into(), "$1".into(), "src".into(), pattern, &mut |_| Ok(()));
        assert!(replace(r"(\d+)x").is_ok());
        for pattern in ["a)(b", "(", r"\p{Nothing}", "a**"] {
            let error = replace(pattern).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.starts_with("invalid regular expression in label_replace(): "), "{pattern}: {error}");
        }
    }
}
