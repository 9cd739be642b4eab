//! The values of a label in the order of their texts, for labels that have many and are asked about.
//!
//! A prefix then finds its values by bisection, a list of values needs no sorting, and a scan reads the texts one behind the
//! other, not all over the memory: each is kept as what distinguishes it from the one before. That costs some 10 to 20 bytes a
//! value; the order is made by the first question that needs it, kept up to date by the next ones, and thrown away when
//! nobody has asked between two compactions of the head.

use std::sync::Arc;

use parking_lot::Mutex;
use skald_model::varint;

use super::symbols::{Symbol, SymbolTable};
use crate::bounded;

/// Changes that are worth noting beyond a share of the values; with more, the order is made anew.
const MIN_CHANGES: usize = 1024;
/// Values sorted at a time; the work may end in between.
const RUN_VALUES: usize = 64 << 10;
/// Values of a block when it is made: as many are read to find one, and written when one changes.
const BLOCK_VALUES: usize = 64;

/// The order of one label's values.
#[derive(Default)]
pub(super) struct ValueOrder {
    /// Innermost: nothing else is locked under it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sorted: Option<Arc<Sorted>>,
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
            if state.changed.len() >= sorted.len / 2 + MIN_CHANGES {
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
    ) -> Arc<Sorted> {
        let mut state = self.state.lock();
        state.asked = true;
        let sorted = match state.sorted.take() {
            None => Arc::new(Sorted::new(symbols, values.collect())),
            Some(sorted) if state.changed.is_empty() => sorted,
            Some(sorted) => Arc::new(sorted.changed(symbols, &state.changed, has)),
        };
        state.changed = Vec::new();
        // Work that was told to end has not sorted everything.
        state.sorted = bounded::goes_on().then(|| Arc::clone(&sorted));
        sorted
    }

    /// Whether the order is there, but for changes.
    pub(super) fn is_made(&self) -> bool {
        self.state.lock().sorted.is_some()
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
        state.sorted.as_ref().map_or(0, |sorted| sorted.heap_bytes()) + state.changed.capacity() * size_of::<Symbol>()
    }
}

/// Values ascending by their texts; immutable.
#[derive(Default)]
pub(super) struct Sorted {
    blocks: Vec<Arc<Block>>,
    len: usize,
}

/// Neighbouring values; never without any.
struct Block {
    symbols: Box<[Symbol]>,
    /// Of each text: the number of bytes it shares with the one before (0 for the first), the number of those behind them,
    /// both uvarints, and these.
    texts: Box<[u8]>,
}

impl Sorted {
    /// Sorts values.
    pub(super) fn new(symbols: &SymbolTable, values: Vec<Symbol>) -> Self {
        let mut sorted = Self::default();
        sorted.push(symbols, &sort(symbols, values));
        sorted
    }

    /// Appends values that come behind all that there are.
    fn push(&mut self, symbols: &SymbolTable, values: &[Symbol]) {
        self.len += values.len();
        self.blocks.extend(values.chunks(BLOCK_VALUES).map(|values| Arc::new(Block::new(symbols, values))));
    }

    /// The values after some `changed`: those that `has` says are there belong to their new places, others went.
    fn changed(&self, symbols: &SymbolTable, changed: &[Symbol], has: impl Fn(Symbol) -> bool) -> Self {
        let mut is_changed = vec![0_u64; symbols.bound() / 64 + 1];
        let mut fresh = Vec::new();
        for value in changed {
            // A symbol beyond all others is one that went, and its page with it.
            is_changed.resize(is_changed.len().max(*value as usize / 64 + 1), 0);
            let (word, bit) = (&mut is_changed[*value as usize / 64], 1 << (value % 64));
            if *word & bit == 0 && has(*value) {
                fresh.push(*value);
            }
            *word |= bit;
        }
        let went =
            |value: Symbol| is_changed.get(value as usize / 64).is_some_and(|word| word >> (value % 64) & 1 == 1);
        let fresh = sort(symbols, fresh);
        let mut fresh = &fresh[..];
        let mut sorted = Self::default();
        // Values in order, not yet in a block.
        let mut open: Vec<Symbol> = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            let next = self.blocks.get(index + 1).map(|next| next.first());
            let here =
                next.map_or(fresh.len(), |next| fresh.partition_point(|value| symbols.text(*value).as_bytes() < next));
            let (before_next, rest) = fresh.split_at(here);
            fresh = rest;
            let stays = before_next.is_empty() && !block.symbols.iter().any(|value| went(*value));
            if stays && (open.is_empty() || open.len() >= BLOCK_VALUES / 2) {
                sorted.push(symbols, &std::mem::take(&mut open));
                sorted.len += block.symbols.len();
                sorted.blocks.push(Arc::clone(block));
                continue;
            }
            let kept = block.symbols.iter().copied().filter(|value| !went(*value)).collect();
            open.extend(merge(symbols, kept, before_next));
            if open.len() >= 2 * BLOCK_VALUES {
                sorted.push(symbols, &std::mem::take(&mut open));
            }
        }
        // All that came, when there was nothing before.
        open.extend_from_slice(fresh);
        sorted.push(symbols, &open);
        sorted
    }

    /// Visits the values that start with `prefix`, ascending, until told to end.
    pub(super) fn for_each(&self, prefix: &str, mut visit: impl FnMut(Symbol, &str) -> bool) {
        let prefix = prefix.as_bytes();
        // The last block that begins before the prefix may end with it.
        let from = self.blocks.partition_point(|block| block.first() < prefix).saturating_sub(1);
        let mut text = Vec::new();
        for block in &self.blocks[from..] {
            let mut at = 0;
            for symbol in &block.symbols {
                block.next(&mut at, &mut text);
                if !text.starts_with(prefix) {
                    if text[..] < *prefix {
                        continue;
                    }
                    return;
                }
                if !visit(*symbol, std::str::from_utf8(&text).unwrap_or_default()) {
                    return;
                }
            }
        }
    }

    fn heap_bytes(&self) -> usize {
        let block = |block: &Arc<Block>| {
            size_of::<Block>() + 2 * size_of::<usize>() + size_of_val(&block.symbols[..]) + block.texts.len()
        };
        self.blocks.capacity() * size_of::<Arc<Block>>() + self.blocks.iter().map(block).sum::<usize>()
    }
}

impl Block {
    fn new(symbols: &SymbolTable, values: &[Symbol]) -> Self {
        let mut texts = Vec::with_capacity(values.len() * 16);
        let mut before: &[u8] = &[];
        for value in values {
            let text = symbols.text(*value).as_bytes();
            let shared = before.iter().zip(text).take_while(|(a, b)| a == b).count();
            varint::put_uvarint(&mut texts, shared as u64);
            varint::put_uvarint(&mut texts, (text.len() - shared) as u64);
            texts.extend_from_slice(&text[shared..]);
            before = text;
        }
        Self { symbols: values.into(), texts: texts.into() }
    }

    /// The text at `at`, put into `text` in place of the one before it.
    #[inline]
    fn next(&self, at: &mut usize, text: &mut Vec<u8>) {
        // Written above: it is as it should be.
        let shared = varint::get_uvarint(&self.texts, at).unwrap_or_default() as usize;
        let len = varint::get_uvarint(&self.texts, at).unwrap_or_default() as usize;
        text.truncate(shared);
        text.extend_from_slice(self.texts.get(*at..*at + len).unwrap_or_default());
        *at += len;
    }

    /// The first text.
    fn first(&self) -> &[u8] {
        let mut at = 1;
        let len = varint::get_uvarint(&self.texts, &mut at).unwrap_or_default() as usize;
        self.texts.get(at..at + len).unwrap_or_default()
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

/// Merges a few values into others; both ascending.
fn merge(symbols: &SymbolTable, many: Vec<Symbol>, few: &[Symbol]) -> Vec<Symbol> {
    if few.is_empty() {
        return many;
    }
    let mut merged = Vec::with_capacity(many.len() + few.len());
    let mut rest = &many[..];
    for value in few {
        let text = symbols.text(*value);
        let before = rest.partition_point(|other| symbols.text(*other) < text);
        merged.extend_from_slice(&rest[..before]);
        merged.push(*value);
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
            steps in proptest::collection::vec(("pre[abé\0]{0,12}", 0..24_u8), 0..1200), asks in 4..24_u8,
        ) {
            let (mut symbols, mut order) = (SymbolTable::default(), ValueOrder::default());
            let mut model: BTreeMap<String, Symbol> = BTreeMap::new();
            for (text, step) in steps {
                match if step >= asks { 9 } else { step % 4 } {
                    0 | 1 | 3 => {
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
                        prop_assert_eq!(sorted.len, model.len());
                        let start: String = text.chars().take(4).collect();
                        for prefix in ["", &start, &text, "prf"] {
                            let mut seen = Vec::new();
                            sorted.for_each(prefix, |symbol, text| {
                                seen.push((text.to_owned(), symbol));
                                true
                            });
                            let of_model = model.iter().filter(|(text, _)| text.starts_with(prefix));
                            let expected: Vec<_> = of_model.map(|(text, symbol)| (text.clone(), *symbol)).collect();
                            prop_assert_eq!(seen, expected);
                        }
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
