//! The values of a label in the order of their texts, for labels that have many and are asked about.
//!
//! A prefix then finds its values by bisection, and a list of values needs no sorting. The order costs 4 bytes a value; it is
//! made by the first question that needs it, kept up to date by the next ones, and thrown away when nobody has asked between
//! two compactions of the head.

use std::sync::Arc;

use parking_lot::Mutex;

use super::symbols::{Symbol, SymbolTable};
use crate::bounded;

/// Changes that are worth noting beyond a share of the values; with more, the order is made anew.
const MIN_CHANGES: usize = 1024;
/// Values sorted at a time; the work may end in between.
const RUN_VALUES: usize = 64 << 10;

/// The order of one label's values.
#[derive(Default)]
pub(super) struct ValueOrder {
    /// Innermost: nothing else is locked under it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sorted: Option<Arc<Vec<Symbol>>>,
    /// Values that came or went since. A symbol that went may have come again as another text.
    changed: Vec<Symbol>,
    /// Somebody has asked since the last compaction.
    asked: bool,
}

impl ValueOrder {
    /// Notes that a value came or went.
    #[inline]
    pub(super) fn note(&mut self, value: Symbol) {
        let state = self.state.get_mut();
        if let Some(sorted) = &state.sorted {
            if state.changed.len() >= sorted.len() / 2 + MIN_CHANGES {
                *state = State::default();
            } else {
                state.changed.push(value);
            }
        }
    }

    /// All values, ascending by their texts. `values` lists them in any order, `has` tells whether one is among them.
    pub(super) fn get(
        &self,
        symbols: &SymbolTable,
        values: impl Iterator<Item = Symbol>,
        has: impl Fn(Symbol) -> bool,
    ) -> Arc<Vec<Symbol>> {
        let mut state = self.state.lock();
        state.asked = true;
        let sorted = match state.sorted.take() {
            None => Arc::new(sort(symbols, values.collect())),
            Some(sorted) if state.changed.is_empty() => sorted,
            Some(sorted) => {
                let mut changed = std::mem::take(&mut state.changed);
                changed.sort_unstable();
                changed.dedup();
                let fresh = sort(symbols, changed.iter().copied().filter(|value| has(*value)).collect());
                let kept = sorted.iter().copied().filter(|value| changed.binary_search(value).is_err());
                Arc::new(merge(symbols, kept.collect(), fresh))
            }
        };
        state.changed = Vec::new();
        // Work that was told to end has not sorted everything.
        state.sorted = bounded::goes_on().then(|| Arc::clone(&sorted));
        sorted
    }

    /// Throws the order away if nobody has asked since this was called before.
    pub(super) fn compact(&mut self) {
        let state = self.state.get_mut();
        if !std::mem::take(&mut state.asked) {
            *state = State::default();
        }
    }

    /// Heap bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        let state = self.state.lock();
        let sorted = state.sorted.as_ref().map_or(0, |sorted| sorted.capacity());
        (sorted + state.changed.capacity()) * size_of::<Symbol>()
    }
}

/// Sorts symbols by their texts. Texts are compared by eight bytes behind what all have in common; only where these are
/// equal are the texts themselves looked at, which lie all over the memory.
pub(super) fn sort(symbols: &SymbolTable, mut values: Vec<Symbol>) -> Vec<Symbol> {
    let Some(first) = values.first().map(|value| symbols.text(*value).as_bytes()) else { return values };
    let mut common = first.len();
    for value in &values {
        let text = symbols.text(*value).as_bytes();
        common = first[..common].iter().zip(text).take_while(|(a, b)| a == b).count();
    }
    let key = |value: Symbol| {
        let rest = &symbols.text(value).as_bytes()[common..];
        // Texts hold the byte 0 too: a shorter one may have the key of a longer one, and comes before it as a text.
        let mut key = [0; 8];
        let len = rest.len().min(8);
        key[..len].copy_from_slice(&rest[..len]);
        u64::from_be_bytes(key)
    };
    let mut keyed: Vec<(u64, Symbol)> = values.iter().map(|value| (key(*value), *value)).collect();
    let compare =
        |(a, x): &(u64, Symbol), (b, y): &(u64, Symbol)| a.cmp(b).then_with(|| symbols.text(*x).cmp(symbols.text(*y)));
    for run in keyed.chunks_mut(RUN_VALUES).take_while(|_| bounded::goes_on()) {
        run.sort_unstable_by(compare);
    }
    if keyed.len() > RUN_VALUES && bounded::goes_on() {
        // Finds the runs, and merges them.
        keyed.sort_by(compare);
    }
    values.clear();
    values.extend(keyed.into_iter().map(|(_, value)| value));
    values
}

/// Merges a few values into many; both ascending.
fn merge(symbols: &SymbolTable, many: Vec<Symbol>, few: Vec<Symbol>) -> Vec<Symbol> {
    if few.is_empty() {
        return many;
    }
    let mut merged = Vec::with_capacity(many.len() + few.len());
    let mut rest = &many[..];
    for value in few {
        let text = symbols.text(value);
        let before = rest.partition_point(|other| symbols.text(*other) < text);
        merged.extend_from_slice(&rest[..before]);
        merged.push(value);
        rest = &rest[before..];
    }
    merged.extend_from_slice(rest);
    merged
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keeps_up_with_values_that_come_and_go(
            steps in proptest::collection::vec(("pre[ab\0]{0,12}", 0..4_u8), 0..300),
        ) {
            let (mut symbols, mut order) = (SymbolTable::default(), ValueOrder::default());
            let mut model: BTreeMap<String, Symbol> = BTreeMap::new();
            for (text, step) in steps {
                match step {
                    0 | 1 => {
                        model.entry(text).or_insert_with_key(|text| {
                            let symbol = symbols.intern(text).unwrap();
                            order.note(symbol);
                            symbol
                        });
                    }
                    2 => {
                        if let Some((_, symbol)) = model.pop_first() {
                            symbols.release(symbol);
                            order.note(symbol);
                        }
                    }
                    _ => {
                        let has = |symbol: Symbol| model.values().any(|other| *other == symbol);
                        let sorted = order.get(&symbols, model.values().rev().copied(), has);
                        prop_assert_eq!(&*sorted, &model.values().copied().collect::<Vec<_>>());
                    }
                }
            }
        }
    }

    #[test]
    fn an_order_nobody_asks_for_is_given_back() {
        let (mut symbols, mut order) = (SymbolTable::default(), ValueOrder::default());
        let values: Vec<Symbol> = (0..100).map(|i| symbols.intern(&format!("{i}")).unwrap()).collect();
        order.get(&symbols, values.iter().copied(), |_| true);
        order.compact();
        assert!(order.heap_bytes() >= 400, "it was asked for");
        order.compact();
        assert_eq!(order.heap_bytes(), 0);
        order.get(&symbols, values.iter().copied(), |_| true);
        (0..10_000).for_each(|value| order.note(value));
        assert!(order.heap_bytes() < 10_000, "more changes than it is worth: {}", order.heap_bytes());
    }
}
