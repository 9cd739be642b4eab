//! Looking series and values up without keeping new series waiting.
//!
//! A look at a million values takes a good part of a second, and who enters a new series waits for the index' lock while
//! the head's appends wait for it. So a reading lets go of the lock after so much work, and takes it again. What happens
//! meanwhile does not show: series that came are taken out of what was found, and after a series went everything is looked
//! up once more, under one hold.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};
use skald_model::{MatchOp, Matcher};

use super::index::{Index, Label};
use super::ref_set::{self, RefSet};
use super::select::Pinned;
use super::symbols::Symbol;
use super::value_order::{Texts, ValueOrder};
use super::{Head, page};
use crate::bounded::Progress;
use crate::postings::{self, Deferral, Plan, PostingsSource, SeriesRef};

/// What looking at one series' labels costs: as much as so many bytes of postings lists, or so many values scanned.
const ENTRY_COST: Deferral = Deferral::WhenCheaper { entry_bytes: 400, entry_values: 4 };
/// Values up to which no order is kept: they are scanned, or sorted, as fast.
const FEW_VALUES: usize = 512;
/// Reading a text from the order of all takes two or three times as long as from memory, if neighbours there are neighbours
/// in the label's texts as well: then a prefix has to leave less than this share (one of so many).
const LARGE_SHARE: usize = 3;
/// A label that has less than this share of all symbols has its texts all over the memory: waiting for each takes longer.
const SPARSE_SHARE: usize = 4;
/// Sets are united in a bitmap of all series if they have this share of them together.
const BITMAP_SHARE: usize = 256;
/// Units of work under one hold of the lock, each of which takes 50 to 500 ns: a millisecond, about. In tests few, so that
/// much can happen between two holds.
const UNITS_PER_HOLD: usize = if cfg!(test) { 16 } else { 4096 };
/// Units done between two looks at how many were.
pub(super) const PIECE: usize = if cfg!(test) { 8 } else { 512 };

/// Names one postings list of the index.
#[derive(Debug, Clone, Copy)]
pub(super) enum List {
    All,
    /// All series that have a label.
    Label(Symbol),
    Pair(Symbol, Symbol),
}

/// One look at an index, in pieces.
pub(super) struct Reading<'a> {
    index: &'a RwLock<Index>,
    guard: RefCell<Option<RwLockReadGuard<'a, Index>>>,
    units: Cell<usize>,
    /// Since the lock was let go for the first time.
    away: Cell<Option<Away>>,
    /// Never lets go.
    whole: bool,
}

/// What a reading needs to know to tell later what came and went.
#[derive(Clone, Copy)]
struct Away {
    /// Newcomers that there were already.
    newcomers: usize,
    removals: u64,
}

impl Head {
    /// Does `work`, which may be done twice, over a view of the index that does not change.
    pub(super) fn read<T>(&self, work: impl Fn(&Reading<'_>) -> T) -> T {
        // No slot gets another series meanwhile.
        let _pinned = Pinned::new(self);
        let reading = Reading::new(&self.index, false);
        let answer = work(&reading);
        if reading.nothing_went() {
            return answer;
        }
        drop((answer, reading));
        work(&Reading::new(&self.index, true))
    }
}

impl<'a> Reading<'a> {
    pub(super) fn new(index: &'a RwLock<Index>, whole: bool) -> Self {
        Self { index, guard: RefCell::new(Some(index.read())), units: Cell::new(0), away: Cell::new(None), whole }
    }

    /// Looks at the index, which takes about so many units of work.
    #[inline]
    pub(super) fn with<T>(&self, units: usize, look: impl FnOnce(&Index) -> T) -> T {
        let mut guard = self.guard.borrow_mut();
        let index = guard.get_or_insert_with(|| self.index.read());
        let seen = look(index);
        drop(guard);
        self.units.set(self.units.get() + units);
        if self.units.get() >= UNITS_PER_HOLD {
            self.let_go();
        }
        seen
    }

    /// Lets go of the lock until it is needed again: before work that does not need it.
    pub(super) fn let_go(&self) {
        if self.whole {
            return;
        }
        if let Some(index) = self.guard.take()
            && self.away.get().is_none()
        {
            self.away.set(Some(Away { newcomers: index.begin_reading(), removals: index.removals() }));
        }
        self.units.set(0);
    }

    fn nothing_went(&self) -> bool {
        self.away.get().is_none_or(|away| self.with(0, Index::removals) == away.removals)
    }

    /// How to find the series that satisfy all matchers.
    pub(super) fn plan(&self, matchers: &[Matcher]) -> Plan<List> {
        let Ok(plan) = postings::plan(self, matchers, ENTRY_COST);
        plan
    }

    /// The series that a plan finds, ascending by slot, before its deferred matchers are looked at. Their pages are there.
    pub(super) fn evaluate(&self, plan: &Plan<List>) -> Vec<SeriesRef> {
        let Ok(mut found) = plan.evaluate_unions(|lists| Ok::<_, Infallible>(self.unite(lists)));
        if let Some(away) = self.away.get() {
            // Lists that the plan does not name may have them, too.
            let newcomers = self.with(0, |index| index.newcomers_since(away.newcomers));
            if !newcomers.is_empty() {
                found.retain(|series| newcomers.binary_search(series).is_err());
            }
        }
        found
    }

    /// The series of any of the lists, ascending.
    fn unite(&self, lists: &[List]) -> Vec<SeriesRef> {
        if let [list @ (List::All | List::Pair(..))] = lists {
            return self.with(1, |index| index.set(list).map(RefSet::to_vec).unwrap_or_default());
        }
        let Some(last) = self.with(1, Index::last_series) else { return Vec::new() };
        let mut progress = Progress::default();
        let mut total = 0_u64;
        for piece in lists.chunks(PIECE) {
            total += self.with(piece.len(), |index| piece.iter().map(|list| index.count(list)).sum::<u64>());
        }
        if total.saturating_mul(BITMAP_SHARE as u64) < u64::from(last) {
            let mut found = Vec::with_capacity(total as usize);
            self.for_each_set(lists, &mut progress, |set| set.append_to(&mut found));
            found.sort_unstable();
            found.dedup();
            return found;
        }
        // Those that come meanwhile and have higher numbers are newcomers.
        let mut bits = vec![0; last as usize / 64 + 1];
        self.for_each_set(lists, &mut progress, |set| set.mark(&mut bits));
        let mut found = Vec::with_capacity(bits.iter().map(|word| word.count_ones() as usize).sum());
        ref_set::for_each_bit(&bits, |series| found.push(series));
        found
    }

    fn for_each_set(&self, lists: &[List], progress: &mut Progress, mut visit: impl FnMut(&RefSet)) {
        let mut pairs = Vec::new();
        for piece in lists.chunks(PIECE) {
            self.with(piece.len(), |index| {
                // Neighbouring lists are of one label.
                let mut label = None;
                for list in piece {
                    match list {
                        List::All => index.set(list).into_iter().for_each(&mut visit),
                        List::Label(name) => {
                            let values = index.label(*name).into_iter().flat_map(|label| label.values.keys());
                            pairs.extend(values.map(|value| List::Pair(*name, *value)));
                        }
                        List::Pair(name, value) => {
                            if label.is_none_or(|(known, _)| known != name) {
                                label = index.label(*name).map(|label| (name, label));
                            }
                            label.and_then(|(_, label)| label.values.get(value)).into_iter().for_each(&mut visit);
                        }
                    }
                    if !progress.goes_on(0) {
                        return;
                    }
                }
            });
        }
        if !pairs.is_empty() {
            self.for_each_set(&pairs, progress, visit);
        }
    }

    /// The symbol of a name, when some series has the label.
    pub(super) fn name_symbol(&self, name: &str) -> Option<Symbol> {
        self.with(1, |index| index.name_symbol(name))
    }

    /// Visits the values of a label, ascending, until told to end.
    pub(super) fn values_in_order(&self, name: Symbol, mut visit: impl FnMut(&str) -> bool) {
        if let Some(order) = self.order(name) {
            return order.get(self, name).for_each("", |_, text| visit(text));
        }
        let mut texts = Texts::default();
        self.in_memory_order(name, |value, text| texts.push(value, text));
        self.let_go();
        texts.sort();
        texts.iter().all(|(_, text)| visit(text));
    }

    /// The order of a label that has many values; none where this holds the lock that others wait for while they make it.
    fn order(&self, name: Symbol) -> Option<Arc<ValueOrder>> {
        if self.whole {
            return None;
        }
        self.with(1, |index| {
            index.label(name).filter(|label| label.values.len() > FEW_VALUES).map(|label| Arc::clone(&label.order))
        })
    }

    /// Visits the values of a label that start with `prefix` and are wanted, in no order.
    fn scan_values(
        &self,
        name: Symbol,
        prefix: &str,
        is_wanted: &mut dyn FnMut(&str) -> bool,
        mut visit: impl FnMut(Symbol),
    ) {
        if let Some(order) = self.order(name).filter(|_| !prefix.is_empty()) {
            let sorted = order.get(self, name);
            let is_sparse = sorted.len() * SPARSE_SHARE < self.with(1, |index| index.symbols.len());
            if is_sparse || sorted.count_about(prefix) * LARGE_SHARE < sorted.len() {
                self.let_go();
                return sorted.for_each(prefix, |value, text| {
                    if is_wanted(text) {
                        visit(value);
                    }
                    true
                });
            }
        }
        self.in_memory_order(name, |value, text| {
            if starts_with(text, prefix) && is_wanted(text) {
                visit(value);
            }
        });
    }

    /// Visits the values of a label in the order in which their texts lie in memory, more or less: the table has them in
    /// none, and most of the time of a scan would be spent waiting for memory.
    fn in_memory_order(&self, name: Symbol, mut visit: impl FnMut(Symbol, &str)) {
        let values = self.with(1, |index| {
            let Some(label) = index.label(name) else { return Vec::new() };
            let values = label.values.keys().copied();
            if label.values.len() <= FEW_VALUES {
                return values.collect();
            }
            let mut bits = vec![0_u64; index.symbols.bound() / 64 + 1];
            values.for_each(|value| bits[value as usize / 64] |= 1 << (value % 64));
            let mut values = Vec::with_capacity(label.values.len());
            ref_set::for_each_bit(&bits, |value| values.push(value));
            values
        });
        for piece in values.chunks(PIECE) {
            self.with(piece.len(), |index| {
                piece.iter().for_each(|value| visit(*value, index.symbols.text(*value)));
            });
        }
    }

    /// The values of a label that satisfy all matchers, which are about this label, in no order. That the label is absent
    /// satisfies nothing here.
    pub(super) fn matching_values(&self, name: Symbol, matchers: &[Matcher]) -> Vec<Symbol> {
        let mut progress = Progress::default();
        let mut is_wanted = |text: &str| progress.goes_on(0) && matchers.iter().all(|matcher| matcher.matches(text));
        let named = matchers.iter().find_map(|matcher| match matcher.op() {
            MatchOp::Equal => Some(vec![matcher.value()]),
            MatchOp::Regex => Some(matcher.set_matches()?.iter().map(String::as_str).collect()),
            MatchOp::NotEqual | MatchOp::NotRegex => None,
        });
        let mut found = Vec::new();
        match named {
            Some(values) => {
                for value in values {
                    let known = self.with(1, |index| index.value_symbol(name, value));
                    found.extend(known.filter(|_| is_wanted(value)));
                }
            }
            None => {
                let regexes = matchers.iter().filter(|matcher| matcher.op() == MatchOp::Regex);
                // The longer the shortest prefix, the fewer values are looked at.
                let prefixes = regexes.map(Matcher::prefixes).max_by_key(|all| all.iter().map(|one| one.len()).min());
                for prefix in prefixes.unwrap_or_else(|| vec![""]) {
                    self.scan_values(name, prefix, &mut is_wanted, |value| found.push(value));
                }
            }
        }
        found
    }

    /// Visits the labels of series that ascend, until told to end. A page is locked once for all of its own.
    pub(super) fn for_each_series(
        &self,
        pages: &page::Pages,
        series: &[SeriesRef],
        mut visit: impl FnMut(&Index, SeriesRef, &[(Symbol, Symbol)]) -> bool,
    ) {
        let mut pairs = Vec::with_capacity(16);
        for in_page in series.chunk_by(|a, b| super::locate(*a).0 == super::locate(*b).0) {
            let Some(page) = pages.get(super::locate(in_page[0]).0) else { continue };
            let goes_on = self.with(in_page.len(), |index| {
                let page = page.read();
                in_page.iter().all(|series| {
                    pairs.clear();
                    page.labels(super::locate(*series).1, &mut pairs);
                    visit(index, *series, &pairs)
                })
            });
            if !goes_on {
                return;
            }
        }
    }
}

/// Without a look at memory where there is no prefix: comparing no bytes at all with an empty text, which lies nowhere, takes
/// the processor 100 ns.
#[inline]
fn starts_with(text: &str, prefix: &str) -> bool {
    prefix.is_empty() || text.starts_with(prefix)
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if self.away.get().is_some() {
            self.with(0, Index::end_reading);
        }
    }
}

impl PostingsSource for Reading<'_> {
    type List = List;
    type Error = Infallible;

    fn lookup(&self, name: &str, value: &str) -> Result<Option<List>, Infallible> {
        Ok(self.with(1, |index| {
            let name = index.symbols.get(name)?;
            index.value_symbol(name, value).map(|value| List::Pair(name, value))
        }))
    }

    fn scan(
        &self,
        name: &str,
        prefix: &str,
        is_wanted: &mut dyn FnMut(&str) -> bool,
        lists: &mut Vec<List>,
    ) -> Result<(), Infallible> {
        if let Some(name) = self.name_symbol(name) {
            self.scan_values(name, prefix, is_wanted, |value| lists.push(List::Pair(name, value)));
        }
        Ok(())
    }

    fn with_label(&self, name: &str) -> Option<List> {
        self.name_symbol(name).map(List::Label)
    }

    fn all(&self) -> Result<Option<List>, Infallible> {
        Ok(self.with(1, Index::last_series).map(|_| List::All))
    }

    fn series_count(&self, list: &List) -> u64 {
        self.with(1, |index| index.count(list))
    }

    fn value_count(&self, name: &str) -> u64 {
        let values = |index: &Index| {
            index.symbols.get(name).and_then(|name| index.label(name)).map_or(0, |label: &Label| label.values.len())
        };
        self.with(1, values) as u64
    }
}
