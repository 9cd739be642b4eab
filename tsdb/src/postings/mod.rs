//! Postings: sorted lists of series, and how matchers become operations on them.
//!
//! [`set`] holds the operations on sorted lists, [`plan()`] turns matchers into a plan over a [`PostingsSource`] (a head,
//! a block's header) and evaluates it once the lists it names are at hand. Absent on purpose: any knowledge of where
//! lists lie and how they are coded; the source's `List` says that.

mod plan;
pub mod set;

pub use plan::{Deferral, Plan, plan};

/// A series within one block or head: its number in label order (blocks) or of creation (heads).
pub type SeriesRef = u32;

/// What can be looked up by label: a block's header, a head.
pub trait PostingsSource {
    /// Names one postings list without holding it: a byte range, an index.
    type List: Clone;
    /// Why a lookup failed.
    type Error;

    /// The list of a label pair, `None` when no series has it.
    fn lookup(&self, name: &str, value: &str) -> Result<Option<Self::List>, Self::Error>;

    /// Appends the lists of those values of label `name` that `is_wanted` says yes to; it is asked about every value that
    /// starts with `prefix` (or more of them), once, in any order.
    fn scan(
        &self,
        name: &str,
        prefix: &str,
        is_wanted: &mut dyn FnMut(&str) -> bool,
        lists: &mut Vec<Self::List>,
    ) -> Result<(), Self::Error>;

    /// One list of all series that have label `name`, if the source has such a thing; else the lists of its values serve.
    fn with_label(&self, _name: &str) -> Option<Self::List> {
        None
    }

    /// The list of all series, `None` when there is none.
    fn all(&self) -> Result<Option<Self::List>, Self::Error>;

    /// Number of series in a list; an estimate will do.
    fn series_count(&self, list: &Self::List) -> u64;

    /// Number of values label `name` has; an estimate will do.
    fn value_count(&self, name: &str) -> u64;
}
