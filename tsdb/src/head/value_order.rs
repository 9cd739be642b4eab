//! The values of a label in the order of their texts, for labels that have many and are asked about.
//!
//! A prefix then finds its values by bisection, a list of values needs no sorting, and a scan reads the texts one behind the
//! other, not all over the memory: each is kept as what distinguishes it from the one before. That costs some 10 to 20 bytes a
//! value; the order is made by the first question that needs it, kept up to date by the next ones, and thrown away when
//! nobody has asked between two compactions of the head.

use std::sync::Arc;

use parking_lot::Mutex;
use skald_model::varint;

use super::reading::{PIECE, Reading};
use super::symbols::Symbol;
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
    /// Held by who makes the order or keeps it up to date. The index' lock is taken under it, so nobody waits for it who
    /// holds that.
    making: Mutex<()>,
    /// Innermost: nothing else is locked under it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sorted: Option<Arc<Sorted>>,
    /// Values that came or went since. A symbol that went may have come again as another text.
    changed: Vec<Symbol>,
    /// With more changes than this the order is not worth keeping up to date.
    max_changes: usize,
    /// Somebody has asked since the last compaction.
    asked: bool,
}

impl ValueOrder {
    /// Notes that a value came or went.
    #[inline]
    pub(super) fn note(&self, value: Symbol) {
        let mut state = self.state.lock();
        if state.sorted.is_none() {
            return;
        }
        if state.changed.len() >= state.max_changes {
            *state = State::default();
        } else {
            state.changed.push(value);
        }
    }

    /// All values of the label `name`, which this is the order of. The reading does not hold the index' lock afterwards.
    pub(super) fn get(&self, reading: &Reading<'_>, name: Symbol) -> Arc<Sorted> {
        reading.let_go();
        let _making = self.making.lock();
        let (before, changed) = reading.with(1, |index| {
            let mut state = self.state.lock();
            let label = index.label(name);
            state.asked = true;
            state.max_changes = label.map_or(0, |label| label.values.len()) / 2 + MIN_CHANGES;
            let changed = std::mem::take(&mut state.changed);
            match &state.sorted {
                Some(sorted) => (Arc::clone(sorted), changed),
                None => {
                    // With an empty one there, changes are noted from here on.
                    let empty = Arc::<Sorted>::default();
                    state.sorted = Some(Arc::clone(&empty));
                    (empty, label.into_iter().flat_map(|label| label.values.keys().copied()).collect())
                }
            }
        });
        if changed.is_empty() {
            reading.let_go();
            return before;
        }
        let sorted = Arc::new(before.after(reading, name, &changed));
        let mut state = self.state.lock();
        if state.sorted.as_ref().is_some_and(|sorted| Arc::ptr_eq(sorted, &before)) {
            // Work that was told to end has not sorted everything.
            match bounded::goes_on() {
                true => state.sorted = Some(Arc::clone(&sorted)),
                false => *state = State::default(),
            }
        }
        sorted
    }

    /// Throws the order away if nobody has asked since this was called before.
    pub(super) fn compact(&self) {
        let mut state = self.state.lock();
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
    /// The order after some values `changed`: those that the label still has belong to their new places, others went.
    fn after(&self, reading: &Reading<'_>, name: Symbol, changed: &[Symbol]) -> Self {
        let mut is_changed = Vec::new();
        let mut fresh = Texts::default();
        for piece in changed.chunks(PIECE) {
            reading.with(piece.len(), |index| {
                for value in piece {
                    let (word, bit) = (*value as usize / 64, 1_u64 << (value % 64));
                    if is_changed.len() <= word {
                        is_changed.resize(word + 1, 0);
                    }
                    if is_changed[word] & bit == 0
                        && index.label(name).is_some_and(|label| label.values.contains_key(value))
                    {
                        fresh.push(*value, index.symbols.text(*value));
                    }
                    is_changed[word] |= bit;
                }
            });
        }
        let went =
            |value: Symbol| is_changed.get(value as usize / 64).is_some_and(|word| word >> (value % 64) & 1 == 1);
        reading.let_go();
        fresh.sort();
        let mut fresh = fresh.iter().peekable();
        let mut open = OpenBlock::default();
        let mut sorted = Self::default();
        let mut text = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            let next = self.blocks.get(index + 1).map(|next| next.first());
            let is_here = |text: &str| next.is_none_or(|next| text.as_bytes() < next);
            let stays =
                !block.symbols.iter().any(|value| went(*value)) && !fresh.peek().is_some_and(|(_, t)| is_here(t));
            if stays && (open.symbols.is_empty() || open.symbols.len() >= BLOCK_VALUES / 2) {
                open.close(&mut sorted);
                sorted.push(Arc::clone(block));
                continue;
            }
            let mut at = 0;
            for value in &block.symbols {
                block.next(&mut at, &mut text);
                while let Some((value, before)) = fresh.next_if(|(_, fresh)| fresh.as_bytes() < &text[..]) {
                    open.push(value, before.as_bytes(), &mut sorted);
                }
                if !went(*value) {
                    open.push(*value, &text, &mut sorted);
                }
            }
            while let Some((value, behind)) = fresh.next_if(|(_, text)| is_here(text)) {
                open.push(value, behind.as_bytes(), &mut sorted);
            }
        }
        // All that came, when there was nothing before.
        for (value, text) in fresh {
            if open.symbols.len() >= BLOCK_VALUES {
                open.close(&mut sorted);
            }
            open.push(value, text.as_bytes(), &mut sorted);
        }
        open.close(&mut sorted);
        sorted
    }

    fn push(&mut self, block: Arc<Block>) {
        self.len += block.symbols.len();
        self.blocks.push(block);
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many start with `prefix`, but for some in the first block and the last.
    pub(super) fn count_about(&self, prefix: &str) -> usize {
        let prefix = prefix.as_bytes();
        let from = self.blocks.partition_point(|block| block.first() < prefix);
        let count = self.blocks[from..].partition_point(|block| block.first().starts_with(prefix));
        self.blocks[from..from + count].iter().map(|block| block.symbols.len()).sum()
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
                // Comparing no bytes with those of an empty text, which lie nowhere, takes the processor 100 ns.
                if !prefix.is_empty() && !text.starts_with(prefix) {
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
    /// The text at `at`, put into `text` in place of the one before it.
    #[inline]
    fn next(&self, at: &mut usize, text: &mut Vec<u8>) {
        // Written by `OpenBlock`: it is as it should be.
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

/// A block to which values are added.
#[derive(Default)]
struct OpenBlock {
    symbols: Vec<Symbol>,
    texts: Vec<u8>,
    last: Vec<u8>,
}

impl OpenBlock {
    fn push(&mut self, value: Symbol, text: &[u8], into: &mut Sorted) {
        // Room for more than a full block: else one value more would push another one into the next block, and so on.
        if self.symbols.len() == 2 * BLOCK_VALUES {
            self.close(into);
        }
        let shared = self.last.iter().zip(text).take_while(|(a, b)| a == b).count();
        varint::put_uvarint(&mut self.texts, shared as u64);
        varint::put_uvarint(&mut self.texts, (text.len() - shared) as u64);
        self.texts.extend_from_slice(&text[shared..]);
        self.symbols.push(value);
        self.last.truncate(shared);
        self.last.extend_from_slice(&text[shared..]);
    }

    fn close(&mut self, into: &mut Sorted) {
        if !self.symbols.is_empty() {
            into.push(Arc::new(Block { symbols: self.symbols.as_slice().into(), texts: self.texts.as_slice().into() }));
        }
        self.symbols.clear();
        self.texts.clear();
        self.last.clear();
    }
}

/// Copies of some values' texts, one behind the other.
#[derive(Default)]
pub(super) struct Texts {
    bytes: String,
    /// Symbol, and where its text is.
    values: Vec<(Symbol, usize, u32)>,
}

impl Texts {
    /// Adds one.
    pub(super) fn push(&mut self, value: Symbol, text: &str) {
        self.values.push((value, self.bytes.len(), text.len() as u32));
        self.bytes.push_str(text);
    }

    /// The values and their texts.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Symbol, &str)> {
        self.values.iter().map(|value| (value.0, self.text(value)))
    }

    fn text(&self, (_, start, len): &(Symbol, usize, u32)) -> &str {
        self.bytes.get(*start..*start + *len as usize).unwrap_or_default()
    }

    /// Sorts them by their texts. These are compared by eight bytes behind what all have in common; only where these are
    /// equal are the texts themselves looked at, which lie all over the memory.
    pub(super) fn sort(&mut self) {
        let Some(first) = self.values.first().map(|value| self.text(value).as_bytes()) else { return };
        let mut common = first.len();
        for (_, text) in self.iter() {
            common = first[..common].iter().zip(text.as_bytes()).take_while(|(a, b)| a == b).count();
        }
        let key = |text: &str| {
            let rest = &text.as_bytes()[common..];
            // Texts hold the byte 0 too: a shorter one may have the key of a longer one, and comes before it as a text.
            let mut key = [0; 8];
            let len = rest.len().min(8);
            key[..len].copy_from_slice(&rest[..len]);
            u64::from_be_bytes(key)
        };
        let mut keyed: Vec<_> = self.values.iter().map(|value| (key(self.text(value)), *value)).collect();
        let compare = |(a, x): &(u64, _), (b, y): &(u64, _)| a.cmp(b).then_with(|| self.text(x).cmp(self.text(y)));
        for run in keyed.chunks_mut(RUN_VALUES).take_while(|_| bounded::goes_on()) {
            run.sort_unstable_by(compare);
        }
        if keyed.len() > RUN_VALUES && bounded::goes_on() {
            // Finds the runs, and merges them.
            keyed.sort_by(compare);
        }
        self.values = keyed.into_iter().map(|(_, value)| value).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use parking_lot::RwLock;
    use proptest::prelude::*;
    use skald_model::LabelBytes;

    use super::super::index::Index;
    use super::*;

    /// An index of series with one label.
    #[derive(Default)]
    struct Rig {
        index: RwLock<Index>,
        series: BTreeMap<String, (u32, Vec<(Symbol, Symbol)>)>,
        next: u32,
    }

    impl Rig {
        fn insert(&mut self, text: String) {
            if !self.series.contains_key(&text) {
                let mut bytes = Vec::new();
                LabelBytes::encode(&mut bytes, "l", &text);
                let pairs = self.index.write().insert(self.next, LabelBytes::new_unchecked(&bytes)).unwrap();
                self.series.insert(text, (self.next, pairs));
                self.next += 1;
            }
        }

        fn remove_first(&mut self) {
            if let Some((_, (slot, pairs))) = self.series.pop_first() {
                self.index.write().remove(slot, &pairs);
            }
        }

        fn order(&self) -> Option<Arc<ValueOrder>> {
            let index = self.index.read();
            index.name_symbol("l").and_then(|name| index.label(name)).map(|label| Arc::clone(&label.order))
        }

        fn sorted(&self) -> Arc<Sorted> {
            let reading = Reading::new(&self.index, false);
            let name = reading.name_symbol("l");
            self.order().zip(name).map(|(order, name)| order.get(&reading, name)).unwrap_or_default()
        }
    }

    proptest! {
        #[test]
        fn keeps_up_with_values_that_come_and_go(
            steps in proptest::collection::vec(("pre[abé\0]{0,12}", 0..24_u8), 0..1200), asks in 4..24_u8,
        ) {
            let mut rig = Rig::default();
            for (text, step) in steps {
                match step {
                    _ if step >= asks => {
                        let sorted = rig.sorted();
                        prop_assert_eq!(sorted.len, rig.series.len());
                        let start: String = text.chars().take(4).collect();
                        for prefix in ["", &start, &text, "prf"] {
                            let mut seen = Vec::new();
                            sorted.for_each(prefix, |value, text| {
                                seen.push((text.to_owned(), value));
                                true
                            });
                            let of_model = rig.series.iter().filter(|(text, _)| text.starts_with(prefix));
                            let expected: Vec<_> = of_model.map(|(text, (_, pairs))| (text.clone(), pairs[0].1)).collect();
                            prop_assert_eq!(seen, expected);
                        }
                    }
                    _ if step % 4 == 2 => rig.remove_first(),
                    _ => rig.insert(text),
                }
            }
        }
    }

    #[test]
    fn an_order_nobody_asks_for_is_given_back() {
        let mut rig = Rig::default();
        (0..100).for_each(|i| rig.insert(format!("{i}")));
        rig.sorted();
        let order = rig.order().unwrap();
        order.compact();
        assert!(order.heap_bytes() >= 400, "it was asked for");
        order.compact();
        assert_eq!(order.heap_bytes(), 0);
        rig.sorted();
        (0..10_000).for_each(|value| order.note(value));
        assert!(order.heap_bytes() < 10_000, "more changes than it is worth: {}", order.heap_bytes());
    }

    #[test]
    fn a_new_value_costs_a_block() {
        let mut rig = Rig::default();
        (0..10_000).for_each(|i| rig.insert(format!("value-{i:05}")));
        let before = rig.sorted();
        rig.insert("value-04711b".to_owned());
        let after = rig.sorted();
        let kept = after.blocks.iter().filter(|block| before.blocks.iter().any(|other| Arc::ptr_eq(block, other)));
        assert!(kept.count() + 2 >= before.blocks.len(), "{} blocks", before.blocks.len());
        assert_eq!(after.len, 10_001);
        let bytes = after.heap_bytes() as f64 / 10_001.0;
        assert!(bytes < 12.0, "{bytes} bytes a value");
    }
}
