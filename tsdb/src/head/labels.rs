//! Which series a head has, and which labels: what matchers select, and the answers that need no samples.

use std::sync::Arc;

use parking_lot::RwLock;
use skald_model::{Labels, Matcher};

use super::index::Index;
use super::page::Page;
use super::ref_set;
use super::symbols::Symbol;
use super::{Head, locate};
use crate::bounded::Progress;
use crate::postings::{SeriesRef, set};

/// Label sets sorted at a time, by their symbols; a bound on what stands beside the answer.
const RUN_SERIES: usize = 8192;

type Pages = [Arc<RwLock<Page>>];

impl Head {
    /// The series that satisfy all matchers, ascending by slot. `pages` are as young as the index or younger.
    pub(super) fn matching(&self, index: &Index, pages: &Pages, matchers: &[Matcher]) -> Vec<SeriesRef> {
        let plan = index.plan(matchers);
        let mut found = index.evaluate(&plan);
        if plan.deferred().is_empty() {
            return found;
        }
        let mut deferred: Vec<(&Matcher, Option<Symbol>)> =
            plan.deferred().iter().map(|matcher| (matcher, index.symbols.get(matcher.name()))).collect();
        // Comparing is cheaper than any regex.
        deferred.sort_by_key(|(matcher, _)| matcher.regex_cost());
        let mut kept = 0;
        let candidates = found.clone();
        for_each_series(pages, &candidates, |series, pairs| {
            let value = |name: Symbol| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
            let text = |name: Option<Symbol>| name.and_then(value).map_or("", |value| index.symbols.text(value));
            if deferred.iter().all(|(matcher, name)| matcher.matches(text(*name))) {
                found[kept] = series;
                kept += 1;
            }
            true
        });
        found.truncate(kept);
        found
    }

    fn matching_any(&self, index: &Index, pages: &Pages, selectors: &[Vec<Matcher>]) -> Vec<SeriesRef> {
        match selectors {
            [] => self.matching(index, pages, &[]),
            [only] => self.matching(index, pages, only),
            many => {
                let lists: Vec<_> = many.iter().map(|matchers| self.matching(index, pages, matchers)).collect();
                set::union(&lists)
            }
        }
    }

    /// The label sets of the series that satisfy one of the lists of matchers (all, without any list), ascending; the first
    /// `limit` of them.
    pub fn series(&self, selectors: &[Vec<Matcher>], limit: Option<usize>) -> Vec<Labels> {
        let index = self.index.read();
        let pages = self.pages.read().clone();
        let found = self.matching_any(&index, &pages, selectors);
        let limit = limit.unwrap_or(usize::MAX);
        let mut all: Vec<Labels> = Vec::with_capacity(found.len().min(limit));
        let mut progress = Progress::default();
        let (mut pairs, mut spans): (Vec<(Symbol, Symbol)>, Vec<std::ops::Range<usize>>) = (Vec::new(), Vec::new());
        for run in found.chunks(RUN_SERIES) {
            pairs.clear();
            spans.clear();
            for_each_series(&pages, run, |_, labels| {
                spans.push(pairs.len()..pairs.len() + labels.len());
                pairs.extend_from_slice(labels);
                progress.goes_on(0)
            });
            let compare = |a: &std::ops::Range<usize>, b: &std::ops::Range<usize>| {
                index.compare(&pairs[a.clone()], &pairs[b.clone()])
            };
            if limit < spans.len() {
                spans.select_nth_unstable_by(limit, compare);
                spans.truncate(limit);
            }
            spans.sort_unstable_by(compare);
            for span in &spans {
                let labels = index.labels(&pairs[span.clone()]);
                if !progress.goes_on(labels.as_bytes().len() + 4 * size_of::<Labels>()) {
                    return all;
                }
                all.push(labels);
            }
        }
        drop(index);
        if found.len() > RUN_SERIES {
            // Finds the runs, and merges them.
            all.sort();
        }
        all.truncate(limit);
        all
    }

    /// The names of all labels of the series that satisfy one of the lists of matchers (all, without any), ascending.
    pub fn label_names(&self, selectors: &[Vec<Matcher>]) -> Vec<String> {
        let index = self.index.read();
        let mut names: Vec<String> = if selectors.is_empty() {
            index.label_names().map(str::to_owned).collect()
        } else {
            let symbols = self.symbols_of(&index, selectors, |name, _| Some(name));
            symbols.into_iter().map(|symbol| index.symbols.text(symbol).to_owned()).collect()
        };
        drop(index);
        names.sort_unstable();
        names
    }

    /// The values label `name` has in the series that satisfy one of the lists of matchers (all, without any), ascending; the
    /// first `limit` of them.
    pub fn label_values(&self, name: &str, selectors: &[Vec<Matcher>], limit: Option<usize>) -> Vec<String> {
        let index = self.index.read();
        let Some(wanted) = index.name_symbol(name) else { return Vec::new() };
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
        let found = match selectors {
            [] => {
                index.values_in_order(wanted, take);
                return values;
            }
            // Every value that there is belongs to a series.
            [matchers] if matchers.iter().all(|matcher| matcher.name() == name) => {
                index.matching_values(wanted, matchers)
            }
            _ => self.symbols_of(&index, selectors, |n, value| (n == wanted).then_some(value)),
        };
        index.sorted(found).into_iter().all(|value| take(index.symbols.text(value)));
        values
    }

    /// The distinct symbols that `pick` takes out of the label pairs of the series selected.
    fn symbols_of(
        &self,
        index: &Index,
        selectors: &[Vec<Matcher>],
        pick: impl Fn(Symbol, Symbol) -> Option<Symbol>,
    ) -> Vec<Symbol> {
        let pages = self.pages.read().clone();
        let found = self.matching_any(index, &pages, selectors);
        let mut seen = vec![0_u64; index.symbols.bound() / 64 + 1];
        let mut progress = Progress::default();
        for_each_series(&pages, &found, |_, pairs| {
            for symbol in pairs.iter().filter_map(|(name, value)| pick(*name, *value)) {
                seen[symbol as usize / 64] |= 1 << (symbol % 64);
            }
            progress.goes_on(0)
        });
        let mut symbols = Vec::new();
        ref_set::for_each_bit(&seen, |symbol| symbols.push(symbol));
        symbols
    }
}

/// Visits the labels of series that ascend, until told to end. A page is locked once for all of its own.
fn for_each_series(pages: &Pages, series: &[SeriesRef], mut visit: impl FnMut(SeriesRef, &[(Symbol, Symbol)]) -> bool) {
    let mut pairs = Vec::with_capacity(16);
    for in_page in series.chunk_by(|a, b| locate(*a).0 == locate(*b).0) {
        let Some(page) = pages.get(locate(in_page[0]).0) else { continue };
        let page = page.read();
        for series in in_page {
            pairs.clear();
            page.labels(locate(*series).1, &mut pairs);
            if !visit(*series, &pairs) {
                return;
            }
        }
    }
}
