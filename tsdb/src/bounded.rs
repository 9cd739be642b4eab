//! Bounds of long work: whoever starts it on a thread says when it is to end early.
//!
//! A select over a million series, or the answer to which series there are, is one call that takes a second. Its loops ask
//! now and then whether to go on. What they have gathered when they are told to end is incomplete: whoever said so throws
//! it away.

use std::cell::RefCell;
use std::sync::Arc;

/// Whether work goes on that has gathered so many more bytes since it asked before.
pub type GoOn = Arc<dyn Fn(usize) -> bool + Send + Sync>;

thread_local! {
    static GO_ON: RefCell<Option<GoOn>> = const { RefCell::new(None) };
}

/// Items of work (values compared, series looked at) between two questions.
const ITEMS_PER_QUESTION: usize = 256;

/// Does `work`, which ends early once `go_on` says no.
pub fn bounded<T>(go_on: GoOn, work: impl FnOnce() -> T) -> T {
    /// Puts back what was there before, also after a panic.
    struct Restore(Option<GoOn>);
    impl Drop for Restore {
        fn drop(&mut self) {
            GO_ON.set(self.0.take());
        }
    }
    let _restore = Restore(GO_ON.replace(Some(go_on)));
    work()
}

/// Whether the work of this thread goes on. Asked directly only where there is much to do in between.
pub(crate) fn goes_on() -> bool {
    GO_ON.with_borrow(|go_on| go_on.as_ref().is_none_or(|go_on| go_on(0)))
}

/// Asks every few hundred items whether the work goes on.
#[derive(Default)]
pub(crate) struct Progress {
    items: usize,
    bytes: usize,
    ended: bool,
}

impl Progress {
    /// Counts an item that adds `bytes` to what is gathered; false once the work is to end.
    #[inline]
    pub(crate) fn goes_on(&mut self, bytes: usize) -> bool {
        self.items += 1;
        self.bytes += bytes;
        if self.items >= ITEMS_PER_QUESTION {
            self.ask();
        }
        !self.ended
    }

    fn ask(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.items = 0;
        self.ended |= GO_ON.with_borrow(|go_on| go_on.as_ref().is_some_and(|go_on| !go_on(bytes)));
    }
}

impl Drop for Progress {
    /// The last items count, too.
    fn drop(&mut self) {
        self.ask();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn work_ends_when_it_is_told_to_and_tells_what_it_gathers() {
        let gathered = Arc::new(AtomicUsize::new(0));
        let counted = gathered.clone();
        let go_on: GoOn = Arc::new(move |bytes| counted.fetch_add(bytes, Ordering::Relaxed) + bytes < 100_000);
        let work = || {
            let mut progress = Progress::default();
            (0..1_000_000).take_while(|_| progress.goes_on(10)).count()
        };
        let done = bounded(go_on, work);
        assert!((10_000..11_000).contains(&done), "{done}");
        assert!((100_000..110_000).contains(&gathered.load(Ordering::Relaxed)));
        assert_eq!(work(), 1_000_000, "nobody bounds what comes after");
    }

    #[test]
    fn few_items_are_counted_too() {
        let gathered = Arc::new(AtomicUsize::new(0));
        let counted = gathered.clone();
        let go_on: GoOn = Arc::new(move |bytes| counted.fetch_add(bytes, Ordering::Relaxed) < usize::MAX);
        bounded(go_on, || assert!(Progress::default().goes_on(7)));
        assert_eq!(gathered.load(Ordering::Relaxed), 7);
    }
}
