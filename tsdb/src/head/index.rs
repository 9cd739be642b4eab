//! What the head looks series up by: symbols and postings, behind one lock.

use std::convert::Infallible;

use hashbrown::HashMap;
use skald_model::{LabelBytes, Labels, Matcher};

use super::ref_set::RefSet;
use super::symbols::{Symbol, SymbolTable};
use crate::postings::SeriesRef;
use crate::postings::{self, Deferral, PostingsSource};

/// Symbols and postings of one head.
#[derive(Default)]
pub(super) struct Index {
    pub(super) symbols: SymbolTable,
    /// Per label name, per value, the series that have the pair.
    names: HashMap<Symbol, Values, foldhash::fast::FixedState>,
    all: Option<RefSet>,
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
            self.names
                .entry(name)
                .or_default()
                .entry(value)
                .and_modify(|set| set.insert(slot))
                .or_insert(RefSet::One(slot));
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
            if let Some(values) = self.names.get_mut(name) {
                if values.get_mut(value).is_some_and(|set| set.remove(slot)) {
                    values.remove(value);
                }
                if values.is_empty() {
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
        for values in self.names.values_mut() {
            if values.capacity() > values.len() * 4 {
                values.shrink_to_fit();
            }
        }
    }

    /// The series that satisfy all matchers, ascending by slot.
    pub(super) fn matching(&self, matchers: &[Matcher]) -> Vec<SeriesRef> {
        let Ok(plan) = postings::plan(self, matchers, Deferral::Never);
        let Ok(found) = plan.evaluate(|list| Ok::<_, Infallible>(self.load(*list)));
        found
    }

    fn load(&self, list: List) -> Vec<SeriesRef> {
        let set = match list {
            List::All => self.all.as_ref(),
            List::Pair(name, value) => self.set(name, value),
        };
        set.map(RefSet::to_vec).unwrap_or_default()
    }

    fn set(&self, name: Symbol, value: Symbol) -> Option<&RefSet> {
        self.names.get(&name)?.get(&value)
    }

    fn values_of(&self, name: &str) -> Option<&Values> {
        self.names.get(&self.symbols.get(name)?)
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

    /// Every value of a label, in no order.
    pub(super) fn label_values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.values_of(name).into_iter().flat_map(|values| values.keys()).map(|value| self.symbols.text(*value))
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
        let of = |values: &Values| values.allocation_size() + values.values().map(RefSet::heap_bytes).sum::<usize>();
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
        if let Some(symbol) = self.symbols.get(name)
            && let Some(values) = self.names.get(&symbol)
        {
            for value in values.keys() {
                let text = self.symbols.text(*value);
                if (prefix.is_empty() || text.starts_with(prefix)) && is_wanted(text) {
                    lists.push(List::Pair(symbol, *value));
                }
            }
        }
        Ok(())
    }

    fn all(&self) -> Result<Option<List>, Infallible> {
        Ok(self.all.as_ref().map(|_| List::All))
    }

    fn series_count(&self, list: &List) -> u64 {
        let set = match list {
            List::All => self.all.as_ref(),
            List::Pair(name, value) => self.set(*name, *value),
        };
        set.map_or(0, |set| set.len() as u64)
    }

    fn value_count(&self, name: &str) -> u64 {
        self.values_of(name).map_or(0, |values| values.len() as u64)
    }
}
