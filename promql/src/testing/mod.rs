//! Test support for whoever implements or uses [`crate::source`]: storage in memory, a way to run a future without a
//! runtime, and the conformance suite every [`crate::source::Queryable`] passes.

mod conformance;
mod memory;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

pub use conformance::source_conformance;
pub use memory::MemStorage;

/// Runs a future on this thread; panics if it waits without having been woken.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        assert!(woken.0.swap(false, Ordering::Relaxed), "the future waits but nothing wakes it");
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
