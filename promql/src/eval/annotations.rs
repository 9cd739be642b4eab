//! What a query's answer has to be read with: warnings and infos.

mod parts;

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use skald_model::Quoted;

use super::date::rfc3339;
use super::histogram_function::classic::ForcedMonotonicity;
use super::quantile::{format_g, format_two_digits};
use crate::ast::Span;
use crate::parse::line_and_column;

pub use parts::AnnotationPart;

/// Distinct annotations kept of one query; further ones are only counted.
const KEPT: usize = 1000;

/// Longest text of an annotation; labels that a query made may be far longer.
const LONGEST_TEXT: usize = 4096;

/// Warnings and infos.
///
/// A text said of several parts of the query is shown of one of them, as in Prometheus: of the one evaluated last, except
/// where occurrences are added up, which name the first.
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
            let count = self.counted.entry(annotation).or_default();
            *count = count.saturating_add(more);
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
        let mut counted: BTreeMap<&str, (Place, u64)> = BTreeMap::new();
        for (annotation, count) in &self.counted {
            let place = Place::of(annotation);
            let (first, all) = counted.entry(&annotation.text).or_insert((place, 0));
            *first = place.min(*first);
            *all += count;
        }
        let counted = counted.into_iter().map(|(text, (place, count))| match count {
            1 => (place, text.to_owned()),
            _ => (place, format!("{text} ({count} occurrences)")),
        });
        render(last_places(&self.warnings).chain(counted).collect(), query, limit, "warning")
    }

    /// The infos as the API shows them, likewise.
    pub fn infos(&self, query: &str, limit: usize) -> Vec<String> {
        let mut raised: BTreeMap<&str, (Place, Raised)> = BTreeMap::new();
        for (annotation, more) in &self.monotonicity {
            let place = Place::of(annotation);
            match raised.entry(&annotation.text) {
                Entry::Vacant(entry) => {
                    entry.insert((place, more.clone()));
                }
                Entry::Occupied(mut entry) => {
                    let (first, all) = entry.get_mut();
                    *first = place.min(*first);
                    all.merge(more);
                }
            }
        }
        let raised = raised.into_iter().map(|(text, (place, all))| (place, format!("{text}{}", all.details())));
        render(last_places(&self.infos).chain(raised).collect(), query, limit, "info")
    }
}

/// A part of a query. Parts order as they are evaluated: operands before what uses them, the left before the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    end: usize,
    start: Reverse<usize>,
}

impl Place {
    fn of(annotation: &Annotation) -> Self {
        Self { end: annotation.end, start: Reverse(annotation.start) }
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
        self.samples = self.samples.saturating_add(other.samples);
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

/// Each text with the last place it was said of.
fn last_places(set: &BTreeSet<Annotation>) -> impl Iterator<Item = (Place, String)> + '_ {
    let mut last: BTreeMap<&str, Place> = BTreeMap::new();
    for annotation in set {
        let place = Place::of(annotation);
        last.entry(&annotation.text).and_modify(|last| *last = place.max(*last)).or_insert(place);
    }
    last.into_iter().map(|(text, place)| (place, text.to_owned()))
}

fn render(mut said: Vec<(Place, String)>, query: &str, limit: usize, kind: &str) -> Vec<String> {
    said.sort_by(|(a, a_text), (b, b_text)| (a.start.0, a_text).cmp(&(b.start.0, b_text)));
    let omitted = said.len().saturating_sub(limit);
    said.truncate(limit);
    let place = |(place, text): (Place, String)| {
        let (line, column) = line_and_column(query, place.start.0);
        format!("PromQL {kind}: {text} ({line}:{column})")
    };
    let mut texts: Vec<String> = said.into_iter().map(place).collect();
    if omitted > 0 {
        texts.push(format!("{omitted} more {kind} annotations omitted"));
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
        annotations.warn(Span { start: 6, end: 16 }, "odd");
        annotations.warn(Span { start: 0, end: 1 }, "strange");
        assert_eq!(annotations.warnings(query, 10), ["PromQL warning: strange (1:1)", "PromQL warning: odd (2:3)"]);
        assert_eq!(annotations.warnings(query, 1)[1], "1 more warning annotations omitted");
        assert!(annotations.infos(query, 10).is_empty());
    }

    #[test]
    fn a_text_names_the_part_evaluated_last_or_the_first_if_it_counts() {
        let query = "rate(a[5m:]) + rate(b[5m])";
        let [inner, whole, right] = [(5, 11), (0, 12), (20, 25)].map(|(start, end)| Span { start, end });
        let check = |spans: &[Span], last: &str, first: &str| {
            let mut annotations = Annotations::default();
            for &span in spans {
                let mut part = Annotations::default();
                part.info(span, "odd");
                part.warn_counted(span, "odd");
                annotations.merge(part);
            }
            assert_eq!(annotations.infos(query, 10), [format!("PromQL info: odd ({last})")]);
            let count = spans.len();
            assert_eq!(
                annotations.warnings(query, 10),
                [format!("PromQL warning: odd ({count} occurrences) ({first})")]
            );
        };
        check(&[inner, whole], "1:1", "1:6");
        check(&[whole, inner], "1:1", "1:6");
        check(&[right, whole, inner], "1:21", "1:6");
    }
}
