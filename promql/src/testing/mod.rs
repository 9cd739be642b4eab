//! Test support for whoever implements or uses [`crate::source`]: storage in memory, a way to run a future without a
//! runtime, and the conformance suite every [`crate::source::Queryable`] passes.

mod conformance;
mod memory;

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

pub use conformance::source_conformance;
pub use memory::MemStorage;

/// How long [`block_on`] waits to be woken: far longer than any source of a test takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a future on this thread; panics if it waits and nothing wakes it, from this thread or another.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let woken = Arc::new(Woken { flag: Mutex::new(true), signal: Condvar::new() });
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        assert!(woken.wait(), "the future waits but nothing wakes it");
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}

struct Woken {
    flag: Mutex<bool>,
    signal: Condvar,
}

impl Woken {
    /// Takes the flag, once it is up; `false` when nobody raises it.
    fn wait(&self) -> bool {
        let flag = self.flag.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.signal.wait_timeout_while(flag, PATIENCE, |up| !*up);
        let (mut flag, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *flag)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        *self.flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.signal.notify_one();
    }
}
