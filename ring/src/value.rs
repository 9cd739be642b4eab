//! What a store replicates: values made of entries, each of which can only grow.

use std::fmt;

use crate::codec::{DecodeError, Reader};

/// Largest encoded entry in bytes: one fits a packet of gossip with its frame around it.
pub const MAX_ENTRY_LENGTH: usize = 1024;

/// Name of an entry within a value: what changed, and what a newer message replaces.
pub type EntryKey = Box<[u8]>;

/// A value that is replicated by merging.
///
/// It consists of entries, each a join semilattice: merging is commutative, associative and idempotent, so that replicas
/// that have seen the same entries, in any order and any number of times, are equal.
pub trait Value: Clone + Default + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Takes in what `other` has that is newer; the entries that changed here.
    fn merge(&mut self, other: &Self) -> Vec<EntryKey>;

    /// Whether a merge of `other` would change anything. Most of what is gossiped has been heard already.
    fn lacks(&self, other: &Self) -> bool;

    /// The names of all entries.
    fn entries(&self) -> Vec<EntryKey>;

    /// Whether an entry changes again within seconds whatever happens, so that missing one change does not matter. Such are
    /// told after others and half as often.
    fn is_transient(key: &[u8]) -> bool;

    /// Appends an entry, at most [`MAX_ENTRY_LENGTH`] bytes. Nothing, and false, when there is none of that name any more.
    fn encode_entry(&self, key: &[u8], out: &mut Vec<u8>) -> bool;

    /// A value of one entry, of all the bytes that are left in `reader`.
    fn decode_entry(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// Drops what no replica needs to hear of any more, by wall time `now_ms`, Unix milliseconds. Is also done to what is
    /// received, so that what has been dropped does not come back from a replica whose clock is behind.
    fn expire(&mut self, now_ms: i64);
}
