//! What a query's answer has to be read with: warnings and infos.

use std::collections::{BTreeMap, BTreeSet};

use skald_model::Quoted;

use super::date::rfc3339;
use super::histogram_function::classic::ForcedMonotonicity;
use super::quantile::{format_g, format_two_digits};
use crate::ast::Span;
use crate::parse::line_and_column;

/// Distinct annotations kept of one query; further ones are only counted.
const KEPT: usize = 1000;

/// Longest text of an annotation; labels that a query made may be far longer.
const LONGEST_TEXT: usize = 4096;

/// Warnings and infos, each once.
#[derive(Debug, Clone, Default)]
pub struct Annotations {
    warnings: BTreeSet<Annotation>,
    infos: BTreeSet<Annotation>,
    /// Warnings that tell how often they occurred.
    counted: BTreeMap<Annotation, u64>,
    /// Infos about buckets that had to be raised, one per place and metric.
    monotonicity: BTreeMap<Annotation, Raised>,
}

/// What was raised, over all histograms and steps.
#[derive(Debug, Clone)]
struct Raised {
    change: ForcedMonotonicity,
    first: i64,
    last: i64,
    samples: u64,
}

/// One warning or info.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Annotation {
    start: usize,
    text: String,
    end: usize,
}

impl Annotations {
    /// Adds a warning about the part of the query at `span`; `text` is what follows `PromQL warning: `.
    pub fn warn(&mut self, span: Span, text: impl Into<String>) {
        insert(&mut self.warnings, span, text.into());
    }

    /// Adds one occurrence of a warning that tells how many there were.
    pub(crate) fn warn_counted(&mut self, span: Span, text: impl Into<String>) {
        self.count(Annotation { start: span.start, text: text.into(), end: span.end }, 1);
    }

    fn count(&mut self, annotation: Annotation, more: u64) {
        if self.counted.len() < KEPT || self.counted.contains_key(&annotation) {
            *self.counted.entry(annotation).or_default() += more;
        }
    }

    /// Adds an info about the part of the query at `span`; `text` is what follows `PromQL info: `.
    pub fn info(&mut self, span: Span, text: impl Into<String>) {
        insert(&mut self.infos, span, text.into());
    }

    /// Adds the info that the buckets of a classic histogram had to be raised at `time`.
    pub(crate) fn info_forced_monotonicity(&mut self, span: Span, name: &str, change: ForcedMonotonicity, time: i64) {
        let mut text = "input to histogram_quantile needed to be fixed for monotonicity (see \
                        https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile)"
            .to_owned();
        if !name.is_empty() {
            text = format!("{text} for metric name {}", Quoted(name));
        }
        self.raise(
            Annotation { start: span.start, text, end: span.end },
            Raised { change, first: time, last: time, samples: 1 },
        );
    }

    fn raise(&mut self, annotation: Annotation, more: Raised) {
        if self.monotonicity.len() >= KEPT {
            return;
        }
        self.monotonicity.entry(annotation).and_modify(|raised| raised.merge(&more)).or_insert(more);
    }

    /// Takes over what another query said.
    pub fn merge(&mut self, other: Annotations) {
        self.warnings.extend(other.warnings);
        self.infos.extend(other.infos);
        other.counted.into_iter().for_each(|(annotation, count)| self.count(annotation, count));
        other.monotonicity.into_iter().for_each(|(annotation, raised)| self.raise(annotation, raised));
    }

    /// Says again of each second place what was said of the first: equal parts of a query are evaluated once. `twins`
    /// ascend.
    pub(crate) fn repeat(&mut self, twins: &[(Span, Span)]) {
        let again = |annotation: &Annotation| {
            let first = (annotation.start, annotation.end);
            let from = twins.partition_point(|(span, _)| (span.start, span.end) < first);
            let same = twins[from..].iter().take_while(move |(span, _)| (span.start, span.end) == first);
            let text = annotation.text.clone();
            same.map(move |(_, second)| Annotation { start: second.start, end: second.end, text: text.clone() })
                .collect::<Vec<_>>()
        };
        for set in [&mut self.warnings, &mut self.infos] {
            let more: Vec<_> = set.iter().flat_map(again).take(KEPT).collect();
            set.extend(more);
        }
        let counted: Vec<_> =
            self.counted.iter().flat_map(|(a, count)| again(a).into_iter().map(|a| (a, *count))).take(KEPT).collect();
        counted.into_iter().for_each(|(annotation, count)| self.count(annotation, count));
        let raised = self.monotonicity.iter().flat_map(|(a, raised)| again(a).into_iter().map(|a| (a, raised.clone())));
        let raised: Vec<_> = raised.take(KEPT).collect();
        raised.into_iter().for_each(|(annotation, raised)| self.raise(annotation, raised));
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.warnings.is_empty() && self.infos.is_empty() && self.counted.is_empty() && self.monotonicity.is_empty()
    }

    /// The warnings as the API shows them, `query` being the text that was parsed: at most `limit`, then one that
    /// counts the rest.
    pub fn warnings(&self, query: &str, limit: usize) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        warnings.extend(self.counted.iter().map(|(annotation, count)| match count {
            1 => annotation.clone(),
            _ => Annotation { text: format!("{} ({count} occurrences)", annotation.text), ..annotation.clone() },
        }));
        render(&warnings, query, limit, "warning")
    }

    /// The infos as the API shows them, likewise.
    pub fn infos(&self, query: &str, limit: usize) -> Vec<String> {
        let mut infos = self.infos.clone();
        infos.extend(self.monotonicity.iter().map(|(annotation, raised)| Annotation {
            text: format!("{}{}", annotation.text, raised.details()),
            ..*annotation
        }));
        render(&infos, query, limit, "info")
    }
}

impl Raised {
    fn merge(&mut self, other: &Raised) {
        let (mine, theirs) = (&mut self.change, other.change);
        mine.min_bound = mine.min_bound.min(theirs.min_bound);
        mine.max_bound = mine.max_bound.max(theirs.max_bound);
        mine.max_difference = mine.max_difference.max(theirs.max_difference);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.samples += other.samples;
    }

    fn details(&self) -> String {
        format!(
            ", from buckets {} to {}, with a max diff of {}, over {} samples from {} to {}",
            format_g(self.change.min_bound),
            format_g(self.change.max_bound),
            format_two_digits(self.change.max_difference),
            self.samples,
            rfc3339(self.first),
            rfc3339(self.last),
        )
    }
}

fn insert(set: &mut BTreeSet<Annotation>, span: Span, mut text: String) {
    if set.len() < KEPT {
        if text.len() > LONGEST_TEXT {
            text.truncate(text.floor_char_boundary(LONGEST_TEXT));
            text.push('…');
            text.shrink_to_fit();
        }
        set.insert(Annotation { start: span.start, text, end: span.end });
    }
}

fn render(set: &BTreeSet<Annotation>, query: &str, limit: usize, kind: &str) -> Vec<String> {
    let mut distinct: Vec<(usize, &str)> = set.iter().map(|a| (a.start, a.text.as_str())).collect();
    distinct.dedup();
    let mut texts: Vec<String> = distinct
        .iter()
        .take(limit)
        .map(|(start, text)| {
            let (line, column) = line_and_column(query, *start);
            format!("PromQL {kind}: {text} ({line}:{column})")
        })
        .collect();
    if distinct.len() > limit {
        texts.push(format!("{} more {kind} annotations omitted", distinct.len() - limit));
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_positions_and_counts_the_rest() {
        let mut annotations = Annotations::default();
        let query = "a +\n  rate(b[5m])";
        for start in [6, 11, 11] {
            annotations.warn(Span { start, end: 13 }, "odd");
        }
        assert_eq!(annotations.warnings(query, 10), ["PromQL warning: odd (2:3)", "PromQL warning: odd (2:8)"]);
        assert_eq!(annotations.warnings(query, 1)[1], "1 more warning annotations omitted");
        assert!(annotations.infos(query, 10).is_empty());
    }
}
