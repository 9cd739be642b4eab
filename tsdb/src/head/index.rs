//! What the head looks series up by: symbols and postings, behind one lock.

use std::convert::Infallible;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use skald_model::{LabelBytes, Labels, MatchOp, Matcher};

use super::ref_set::{self, RefSet};
use super::symbols::{Symbol, SymbolTable};
use super::value_order::{self, ValueOrder};
use crate::bounded::Progress;
use crate::postings::{self, Deferral, Plan, PostingsSource, SeriesRef};

/// What looking at one series' labels costs: as much as so many bytes of postings lists, or so many values scanned.
const ENTRY_COST: Deferral = Deferral::WhenCheaper { entry_bytes: 400, entry_values: 4 };
/// Values up to which no order is kept: they are scanned, or sorted, as fast.
const FEW_VALUES: usize = 512;
/// Sets are united in a bitmap of all series if they have this share of them together.
const BITMAP_SHARE: usize = 256;

/// Symbols and postings of one head.
#[derive(Default)]
pub(super) struct Index {
    pub(super) symbols: SymbolTable,
    /// By label name.
    names: HashMap<Symbol, Label, foldhash::fast::FixedState>,
    all: Option<RefSet>,
}

/// One label name.
#[derive(Default)]
struct Label {
    /// Per value, the series that have the pair.
    values: Values,
    order: ValueOrder,
}

type Values = HashMap<Symbol, RefSet, foldhash::fast::FixedState>;

impl Index {
    /// Interns the labels of a new series and enters it; `None` when the head has four billion symbols.
    pub(super) fn insert(&mut self, slot: SeriesRef, labels: LabelBytes<'_>) -> Option<Vec<(Symbol, Symbol)>> {
        let mut pairs = Vec::with_capacity(16);
        for (name, value) in labels.iter() {
            let (Some(name), Some(value)) = (self.symbols.intern(name), self.symbols.intern(value)) else {
                self.remove(slot, &pairs);
                return None;
            };
            let label = self.names.entry(name).or_default();
            match label.values.entry(value) {
                Entry::Occupied(mut set) => set.get_mut().insert(slot),
                Entry::Vacant(entry) => {
                    entry.insert(RefSet::One(slot));
                    label.order.note(value);
                }
            }
            pairs.push((name, value));
        }
        match &mut self.all {
            Some(all) => all.insert(slot),
            None => self.all = Some(RefSet::One(slot)),
        }
        Some(pairs)
    }

    /// Takes a series out and releases its symbols.
    pub(super) fn remove(&mut self, slot: SeriesRef, pairs: &[(Symbol, Symbol)]) {
        for (name, value) in pairs {
            if let Some(label) = self.names.get_mut(name) {
                if label.values.get_mut(value).is_some_and(|set| set.remove(slot)) {
                    label.values.remove(value);
                    label.order.note(*value);
                }
                if label.values.is_empty() {
                    self.names.remove(name);
                }
            }
            self.symbols.release(*name);
            self.symbols.release(*value);
        }
        if self.all.as_mut().is_some_and(|all| all.remove(slot)) {
            self.all = None;
        }
    }

    /// Gives memory back after many removals.
    pub(super) fn compact(&mut self) {
        self.symbols.compact();
        self.names.shrink_to_fit();
        for Label { values, order } in self.names.values_mut() {
            if values.capacity() > values.len() * 4 {
                values.shrink_to_fit();
            }
            order.compact();
        }
    }

    /// How to find the series that satisfy all matchers.
    pub(super) fn plan(&self, matchers: &[Matcher]) -> Plan<List> {
        let Ok(plan) = postings::plan(self, matchers, ENTRY_COST);
        plan
    }

    /// The series that a plan finds, ascending by slot, before its deferred matchers are looked at.
    pub(super) fn evaluate(&self, plan: &Plan<List>) -> Vec<SeriesRef> {
        let Ok(found) = plan.evaluate_unions(|lists| Ok::<_, Infallible>(self.unite(lists)));
        found
    }

    /// The series of any of the lists, ascending.
    fn unite(&self, lists: &[List]) -> Vec<SeriesRef> {
        match lists {
            [] => return Vec::new(),
            [List::All] => return self.all.as_ref().map(RefSet::to_vec).unwrap_or_default(),
            [List::Pair(name, value)] => return self.set(*name, *value).map(RefSet::to_vec).unwrap_or_default(),
            _ => {}
        }
        let Some(last) = self.all.as_ref().and_then(RefSet::max) else { return Vec::new() };
        let mut progress = Progress::default();
        let total = lists.iter().fold(0_u64, |sum, list| sum + self.series_count(list));
        if total.saturating_mul(BITMAP_SHARE as u64) < u64::from(last) {
            let mut found = Vec::with_capacity(total as usize);
            self.for_each_set(lists, &mut progress, |set| set.append_to(&mut found));
            found.sort_unstable();
            found.dedup();
            return found;
        }
        let mut bits = vec![0; last as usize / 64 + 1];
        self.for_each_set(lists, &mut progress, |set| set.mark(&mut bits));
        let mut found = Vec::with_capacity(bits.iter().map(|word| word.count_ones() as usize).sum());
        ref_set::for_each_bit(&bits, |series| found.push(series));
        found
    }

    fn for_each_set(&self, lists: &[List], progress: &mut Progress, mut visit: impl FnMut(&RefSet)) {
        // Neighbouring lists are of one label.
        let mut label = None;
        for list in lists {
            match list {
                List::All => self.all.iter().for_each(&mut visit),
                List::Label(name) => {
                    let sets = self.names.get(name).into_iter().flat_map(|label| label.values.values());
                    sets.take_while(|_| progress.goes_on(0)).for_each(&mut visit);
                }
                List::Pair(name, value) => {
                    if label.is_none_or(|(known, _)| known != name) {
                        label = self.names.get(name).map(|label| (name, label));
                    }
                    label.and_then(|(_, label)| label.values.get(value)).into_iter().for_each(&mut visit);
                }
            }
            if !progress.goes_on(0) {
                return;
            }
        }
    }

    fn set(&self, name: Symbol, value: Symbol) -> Option<&RefSet> {
        self.names.get(&name)?.values.get(&value)
    }

    fn label(&self, name: &str) -> Option<(Symbol, &Label)> {
        let symbol = self.symbols.get(name)?;
        Some((symbol, self.names.get(&symbol)?))
    }

    /// Visits the values of a label that start with `prefix`, ascending by their texts, until told to end.
    fn visit_in_order(&self, label: &Label, prefix: &str, mut visit: impl FnMut(Symbol, &str) -> bool) {
        let all = label.values.keys().copied();
        if label.values.len() > FEW_VALUES {
            let order = label.order.get(&self.symbols, all, |value| label.values.contains_key(&value));
            return order.for_each(prefix, visit);
        }
        let with_prefix = all.filter(|value| self.symbols.text(*value).starts_with(prefix)).collect();
        for value in value_order::sort(&self.symbols, with_prefix) {
            if !visit(value, self.symbols.text(value)) {
                return;
            }
        }
    }

    /// Visits the values of a label that start with `prefix` and are wanted, in no order.
    fn scan_values(
        &self,
        name: Symbol,
        prefix: &str,
        is_wanted: &mut dyn FnMut(&str) -> bool,
        mut visit: impl FnMut(Symbol),
    ) {
        let Some(label) = self.names.get(&name) else { return };
        if label.values.len() > FEW_VALUES && (!prefix.is_empty() || label.order.is_made()) {
            return self.visit_in_order(label, prefix, |value, text| {
                if is_wanted(text) {
                    visit(value);
                }
                true
            });
        }
        self.in_memory_order(label, |value| {
            let text = self.symbols.text(value);
            if text.starts_with(prefix) && is_wanted(text) {
                visit(value);
            }
        });
    }

    /// The values of a label in the order in which their texts lie in memory, more or less: the table has them in none, and
    /// most of the time of a scan would be spent waiting for memory.
    fn in_memory_order(&self, label: &Label, mut visit: impl FnMut(Symbol)) {
        if label.values.len() <= FEW_VALUES {
            return label.values.keys().copied().for_each(visit);
        }
        let mut bits = vec![0_u64; self.symbols.bound() / 64 + 1];
        for value in label.values.keys() {
            bits[*value as usize / 64] |= 1 << (value % 64);
        }
        ref_set::for_each_bit(&bits, &mut visit);
    }

    /// Number of series with the label pair.
    pub(super) fn series_with(&self, name: &str, value: &str) -> usize {
        let pair = self.symbols.get(name).zip(self.symbols.get(value));
        pair.and_then(|(name, value)| self.set(name, value)).map_or(0, RefSet::len)
    }

    /// Every label name, in no order.
    pub(super) fn label_names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(|name| self.symbols.text(*name))
    }

    /// Visits every value of a label, ascending, until told to end.
    pub(super) fn values_in_order(&self, name: Symbol, mut visit: impl FnMut(&str) -> bool) {
        if let Some(label) = self.names.get(&name) {
            self.visit_in_order(label, "", |_, text| visit(text));
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
                let known = values.iter().filter_map(|value| self.symbols.get(value));
                found.extend(
                    known.filter(|value| self.set(name, *value).is_some() && is_wanted(self.symbols.text(*value))),
                );
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

    /// Symbols of texts, ascending by these.
    pub(super) fn sorted(&self, symbols: Vec<Symbol>) -> Vec<Symbol> {
        value_order::sort(&self.symbols, symbols)
    }

    /// The symbol of a name, when some series has the label.
    pub(super) fn name_symbol(&self, name: &str) -> Option<Symbol> {
        self.symbols.get(name).filter(|symbol| self.names.contains_key(symbol))
    }

    /// A series' labels as a query sees them.
    pub(super) fn labels(&self, pairs: &[(Symbol, Symbol)]) -> Labels {
        Labels::from_sorted(pairs.iter().map(|(name, value)| (self.symbols.text(*name), self.symbols.text(*value))))
    }

    /// A series' labels as a sender encodes them.
    pub(super) fn label_bytes(&self, pairs: &[(Symbol, Symbol)], out: &mut Vec<u8>) {
        for (name, value) in pairs {
            LabelBytes::encode(out, self.symbols.text(*name), self.symbols.text(*value));
        }
    }

    /// Label-set order of two series, by their symbols: equal ones need no look at the text.
    pub(super) fn compare(&self, a: &[(Symbol, Symbol)], b: &[(Symbol, Symbol)]) -> std::cmp::Ordering {
        let text = |symbol: Symbol| self.symbols.text(symbol);
        for (x, y) in a.iter().zip(b) {
            if x.0 != y.0 {
                return text(x.0).cmp(text(y.0));
            }
            if x.1 != y.1 {
                return text(x.1).cmp(text(y.1));
            }
        }
        a.len().cmp(&b.len())
    }

    /// Heap bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        let of = |Label { values, order }: &Label| {
            let sets = values.values().map(RefSet::heap_bytes).sum::<usize>();
            values.allocation_size() + sets + order.heap_bytes()
        };
        self.symbols.heap_bytes()
            + self.names.allocation_size()
            + self.names.values().map(of).sum::<usize>()
            + self.all.as_ref().map_or(0, RefSet::heap_bytes)
    }
}

/// Names one postings list of the index.
#[derive(Debug, Clone, Copy)]
pub(super) enum List {
    All,
    /// All series that have a label.
    Label(Symbol),
    Pair(Symbol, Symbol),
}

impl PostingsSource for Index {
    type List = List;
    type Error = Infallible;

    fn lookup(&self, name: &str, value: &str) -> Result<Option<List>, Infallible> {
        let pair = self.symbols.get(name).zip(self.symbols.get(value));
        Ok(pair.filter(|(name, value)| self.set(*name, *value).is_some()).map(|(n, v)| List::Pair(n, v)))
    }

    fn scan(
        &self,
        name: &str,
        prefix: &str,
        is_wanted: &mut dyn FnMut(&str) -> bool,
        lists: &mut Vec<List>,
    ) -> Result<(), Infallible> {
        if let Some(name) = self.symbols.get(name) {
            self.scan_values(name, prefix, is_wanted, |value| lists.push(List::Pair(name, value)));
        }
        Ok(())
    }

    fn with_label(&self, name: &str) -> Option<List> {
        self.label(name).map(|(symbol, _)| List::Label(symbol))
    }

    fn all(&self) -> Result<Option<List>, Infallible> {
        Ok(self.all.as_ref().map(|_| List::All))
    }

    fn series_count(&self, list: &List) -> u64 {
        let set = match list {
            List::All | List::Label(_) => self.all.as_ref(),
            List::Pair(name, value) => self.set(*name, *value),
        };
        set.map_or(0, |set| set.len() as u64)
    }

    fn value_count(&self, name: &str) -> u64 {
        self.label(name).map_or(0, |(_, label)| label.values.len() as u64)
    }
}
