//! What the head looks series up by: symbols and postings, behind one lock. [`super::reading`] looks.

use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;
use skald_model::{LabelBytes, Labels};

use super::reading::List;
use super::ref_set::RefSet;
use super::symbols::{Symbol, SymbolTable};
use super::value_order::ValueOrder;
use crate::postings::SeriesRef;

/// Symbols and postings of one head.
#[derive(Default)]
pub(super) struct Index {
    pub(super) symbols: SymbolTable,
    /// By label name.
    names: HashMap<Symbol, Label, foldhash::fast::FixedState>,
    all: Option<RefSet>,
    newcomers: Mutex<Newcomers>,
    /// Series that were ever removed.
    removals: u64,
}

/// One label name.
#[derive(Default)]
pub(super) struct Label {
    /// Per value, the series that have the pair.
    pub(super) values: Values,
    /// Nobody waits for this lock's holder while it holds the index'.
    pub(super) order: Arc<ValueOrder>,
}

/// Series that came while somebody reads.
#[derive(Default)]
struct Newcomers {
    readings: usize,
    series: Vec<SeriesRef>,
}

pub(super) type Values = HashMap<Symbol, RefSet, foldhash::fast::FixedState>;

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
        let newcomers = self.newcomers.get_mut();
        if newcomers.readings > 0 {
            newcomers.series.push(slot);
        }
        Some(pairs)
    }

    /// Takes a series out and releases its symbols.
    pub(super) fn remove(&mut self, slot: SeriesRef, pairs: &[(Symbol, Symbol)]) {
        self.removals += 1;
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

    /// Series that were ever removed.
    pub(super) fn removals(&self) -> u64 {
        self.removals
    }

    /// Somebody reads who lets go of the lock: newcomers are noted from now on. Returns how many were before.
    pub(super) fn begin_reading(&self) -> usize {
        let mut newcomers = self.newcomers.lock();
        newcomers.readings += 1;
        newcomers.series.len()
    }

    /// What [`Index::begin_reading`] began is over.
    pub(super) fn end_reading(&self) {
        let mut newcomers = self.newcomers.lock();
        newcomers.readings -= 1;
        if newcomers.readings == 0 {
            newcomers.series = Vec::new();
        }
    }

    /// The series that came since then, ascending.
    pub(super) fn newcomers_since(&self, before: usize) -> Vec<SeriesRef> {
        let mut series = self.newcomers.lock().series.get(before..).unwrap_or_default().to_vec();
        series.sort_unstable();
        series
    }

    /// One label.
    pub(super) fn label(&self, name: Symbol) -> Option<&Label> {
        self.names.get(&name)
    }

    /// The series of a list; none of a label's, which are many sets.
    pub(super) fn set(&self, list: &List) -> Option<&RefSet> {
        match list {
            List::All => self.all.as_ref(),
            List::Label(_) => None,
            List::Pair(name, value) => self.names.get(name)?.values.get(value),
        }
    }

    /// Series of a list; of a label's, at most so many.
    pub(super) fn count(&self, list: &List) -> u64 {
        let list = if matches!(list, List::Label(_)) { &List::All } else { list };
        self.set(list).map_or(0, |set| set.len() as u64)
    }

    /// The series with the highest number.
    pub(super) fn last_series(&self) -> Option<SeriesRef> {
        self.all.as_ref().and_then(RefSet::max)
    }

    /// The symbol of a value that a series has for the label.
    pub(super) fn value_symbol(&self, name: Symbol, value: &str) -> Option<Symbol> {
        let value = self.symbols.get(value)?;
        self.names.get(&name)?.values.contains_key(&value).then_some(value)
    }

    /// Number of series with the label pair.
    pub(super) fn series_with(&self, name: &str, value: &str) -> usize {
        let pair = self.symbols.get(name).zip(self.symbols.get(value));
        pair.map_or(0, |(name, value)| self.count(&List::Pair(name, value)) as usize)
    }

    /// Every label name, in no order.
    pub(super) fn label_names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(|name| self.symbols.text(*name))
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
            values.allocation_size() + sets + size_of::<ValueOrder>() + order.heap_bytes()
        };
        self.symbols.heap_bytes()
            + self.names.allocation_size()
            + self.names.values().map(of).sum::<usize>()
            + self.all.as_ref().map_or(0, RefSet::heap_bytes)
            + self.newcomers.lock().series.capacity() * size_of::<SeriesRef>()
    }
}
