//! Which series a head has, and which labels: what matchers select, and the answers that need no samples.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;
use skald_model::{Labels, Matcher};

use super::Head;
use super::page::Page;
use super::reading::{PIECE, Reading};
use super::ref_set;
use super::symbols::Symbol;
use super::value_order::Texts;
use crate::bounded::Progress;
use crate::postings::{SeriesRef, set};

/// Label sets sorted at a time, by their symbols; a bound on what stands beside the answer, and on how long the index' lock
/// is held.
const RUN_SERIES: usize = 2048;

/// Series ascending by slot, and pages that have all of them.
type Found = (Vec<SeriesRef>, Vec<Arc<RwLock<Page>>>);

impl Head {
    /// The series that satisfy all matchers.
    pub(super) fn matching(&self, reading: &Reading<'_>, matchers: &[Matcher]) -> Found {
        let plan = reading.plan(matchers);
        let mut found = reading.evaluate(&plan);
        // After the index: every series found there has its page.
        let pages = self.pages.read().clone();
        if plan.deferred().is_empty() {
            return (found, pages);
        }
        let mut deferred: Vec<(&Matcher, Option<Symbol>)> =
            reading.with(1, |index| plan.deferred().iter().map(|m| (m, index.symbols.get(m.name()))).collect());
        // Comparing is cheaper than any regex.
        deferred.sort_by_key(|(matcher, _)| matcher.regex_cost());
        let mut kept = 0;
        let candidates = found.clone();
        reading.for_each_series(&pages, &candidates, |index, series, pairs| {
            let value = |name: Symbol| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
            let text = |name: Option<Symbol>| name.and_then(value).map_or("", |value| index.symbols.text(value));
            if deferred.iter().all(|(matcher, name)| matcher.matches(text(*name))) {
                found[kept] = series;
                kept += 1;
            }
            true
        });
        found.truncate(kept);
        (found, pages)
    }

    fn matching_any(&self, reading: &Reading<'_>, selectors: &[Vec<Matcher>]) -> Found {
        match selectors {
            [] => self.matching(reading, &[]),
            [only] => self.matching(reading, only),
            many => {
                let lists: Vec<_> = many.iter().map(|matchers| self.matching(reading, matchers).0).collect();
                (set::union(&lists), self.pages.read().clone())
            }
        }
    }

    /// The label sets of the series that satisfy one of the lists of matchers (all, without any list), ascending; the first
    /// `limit` of them.
    pub fn series(&self, selectors: &[Vec<Matcher>], limit: Option<usize>) -> Vec<Labels> {
        self.read(|reading| {
            let (found, pages) = self.matching_any(reading, selectors);
            let limit = limit.unwrap_or(usize::MAX);
            let mut all: Vec<Labels> = Vec::with_capacity(found.len().min(limit));
            let mut progress = Progress::default();
            let (mut pairs, mut spans): (Vec<(Symbol, Symbol)>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
            for run in found.chunks(RUN_SERIES) {
                pairs.clear();
                spans.clear();
                reading.for_each_series(&pages, run, |_, _, labels| {
                    spans.push(pairs.len()..pairs.len() + labels.len());
                    pairs.extend_from_slice(labels);
                    progress.goes_on(0)
                });
                let goes_on = reading.with(2 * run.len(), |index| {
                    let compare =
                        |a: &Range<usize>, b: &Range<usize>| index.compare(&pairs[a.clone()], &pairs[b.clone()]);
                    if limit < spans.len() {
                        spans.select_nth_unstable_by(limit, compare);
                        spans.truncate(limit);
                    }
                    spans.sort_unstable_by(compare);
                    spans.iter().all(|span| {
                        let labels = index.labels(&pairs[span.clone()]);
                        let goes_on = progress.goes_on(labels.as_bytes().len() + 4 * size_of::<Labels>());
                        all.push(labels);
                        goes_on
                    })
                });
                if !goes_on {
                    return all;
                }
            }
            if found.len() > RUN_SERIES {
                reading.let_go();
                // Finds the runs, and merges them.
                all.sort();
            }
            all.truncate(limit);
            all
        })
    }

    /// The names of all labels of the series that satisfy one of the lists of matchers (all, without any), ascending.
    pub fn label_names(&self, selectors: &[Vec<Matcher>]) -> Vec<String> {
        let mut names = self.read(|reading| {
            if selectors.is_empty() {
                return reading.with(1, |index| index.label_names().map(str::to_owned).collect());
            }
            let names = self.texts_of(reading, selectors, |name, _| Some(name));
            names.iter().map(|(_, text)| text.to_owned()).collect::<Vec<String>>()
        });
        names.sort_unstable();
        names
    }

    /// The values label `name` has in the series that satisfy one of the lists of matchers (all, without any), ascending; the
    /// first `limit` of them.
    pub fn label_values(&self, name: &str, selectors: &[Vec<Matcher>], limit: Option<usize>) -> Vec<String> {
        self.read(|reading| {
            let Some(wanted) = reading.name_symbol(name) else { return Vec::new() };
            let limit = limit.unwrap_or(usize::MAX);
            let mut progress = Progress::default();
            let mut values: Vec<String> = Vec::new();
            let mut take = |text: &str| {
                let takes = values.len() < limit && progress.goes_on(text.len() + 4 * size_of::<String>());
                if takes {
                    values.push(text.to_owned());
                }
                takes
            };
            let mut found = match selectors {
                [] => {
                    reading.values_in_order(wanted, take);
                    return values;
                }
                // Every value that there is belongs to a series.
                [matchers] if matchers.iter().all(|matcher| matcher.name() == name) => {
                    texts(reading, &reading.matching_values(wanted, matchers))
                }
                _ => self.texts_of(reading, selectors, |n, value| (n == wanted).then_some(value)),
            };
            reading.let_go();
            found.sort();
            found.iter().all(|(_, text)| take(text));
            values
        })
    }

    /// The distinct texts that `pick` takes out of the label pairs of the series selected, in no order.
    fn texts_of(
        &self,
        reading: &Reading<'_>,
        selectors: &[Vec<Matcher>],
        pick: impl Fn(Symbol, Symbol) -> Option<Symbol>,
    ) -> Texts {
        let (found, pages) = self.matching_any(reading, selectors);
        let mut seen = vec![0_u64; reading.with(1, |index| index.symbols.bound()) / 64 + 1];
        let mut progress = Progress::default();
        reading.for_each_series(&pages, &found, |_, _, pairs| {
            for symbol in pairs.iter().filter_map(|(name, value)| pick(*name, *value)) {
                // A symbol that came meanwhile is of a series that did, or everything is done again.
                if let Some(word) = seen.get_mut(symbol as usize / 64) {
                    *word |= 1 << (symbol % 64);
                }
            }
            progress.goes_on(0)
        });
        let mut symbols = Vec::new();
        ref_set::for_each_bit(&seen, |symbol| symbols.push(symbol));
        texts(reading, &symbols)
    }
}

/// The texts of symbols.
fn texts(reading: &Reading<'_>, symbols: &[Symbol]) -> Texts {
    let (mut texts, mut progress) = (Texts::default(), Progress::default());
    for piece in symbols.chunks(PIECE) {
        let goes_on = reading.with(piece.len(), |index| {
            piece.iter().all(|symbol| {
                let text = index.symbols.text(*symbol);
                texts.push(*symbol, text);
                progress.goes_on(text.len() + 4 * size_of::<Symbol>())
            })
        });
        if !goes_on {
            break;
        }
    }
    texts
}
