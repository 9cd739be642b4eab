//! Bounded pools for CPU work.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use skald_promql::eval::Workers;
use tokio::runtime;
use tokio::task::{AbortHandle, JoinHandle};

/// A fixed number of named threads that run CPU work.
///
/// Work is a future: where it waits (for a remote source, say) it gives its thread back. Nothing on a pool may block
/// on I/O, a channel, or another task of a pool.
#[derive(Clone)]
pub struct Pool {
    threads: Arc<Threads>,
}

enum Threads {
    /// Threads of its own. The handle outlives a runtime that is dropped from inside another one.
    Own { handle: runtime::Handle, runtime: Option<runtime::Runtime>, number: u64, count: usize },
    /// The runtime the caller is on: one thread for everything, for simulation and tests.
    Inline,
}

/// Number of the next pool.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Number of the pool this thread belongs to; 0 of none.
    static POOL: Cell<u64> = const { Cell::new(0) };
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Self::Own { runtime, .. } = self
            && let Some(runtime) = runtime.take()
        {
            runtime.shutdown_background();
        }
    }
}

impl Pool {
    /// Starts `threads` threads called `name`.
    pub fn new(name: &str, threads: usize) -> std::io::Result<Self> {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name(name)
            .on_thread_start(move || POOL.set(number))
            .thread_stack_size(8 << 20)
            .build()?;
        let (handle, count) = (runtime.handle().clone(), threads.max(1));
        Ok(Self { threads: Arc::new(Threads::Own { handle, runtime: Some(runtime), number, count }) })
    }

    /// A pool without threads: work runs on the runtime that calls [`Pool::spawn`].
    pub fn inline() -> Self {
        Self { threads: Arc::new(Threads::Inline) }
    }

    /// Starts `work`; dropping the returned task cancels it at its next waiting point.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> PoolTask<T> {
        let handle = match &*self.threads {
            Threads::Own { handle, .. } => handle.spawn(work),
            Threads::Inline => tokio::spawn(work),
        };
        PoolTask { state: State::Under { abort: handle.abort_handle(), handle } }
    }

    /// Whether this thread is one of the pool's.
    pub fn is_here(&self) -> bool {
        match &*self.threads {
            Threads::Own { number, .. } => POOL.get() == *number,
            Threads::Inline => true,
        }
    }

    /// Runs a closure that never waits; at once, when this thread is one of the pool's.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> PoolTask<T> {
        match &*self.threads {
            Threads::Own { number, .. } if POOL.get() == *number => PoolTask { state: State::Done(Some(work())) },
            _ => self.spawn(async move { work() }),
        }
    }
}

/// A query gives pieces of its work to the pool it runs on.
impl Workers for Pool {
    fn threads(&self) -> usize {
        match &*self.threads {
            Threads::Own { count, .. } => *count,
            Threads::Inline => 1,
        }
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        if let Threads::Own { handle, .. } = &*self.threads {
            handle.spawn(async move { work() });
        }
    }
}

/// Work under way on a [`Pool`].
pub struct PoolTask<T> {
    state: State<T>,
}

enum State<T> {
    Under {
        handle: JoinHandle<T>,
        abort: AbortHandle,
    },
    /// `None` once the result is taken.
    Done(Option<T>),
}

impl<T> Unpin for PoolTask<T> {}

/// The work did not end: it panicked, or its pool was shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task ended without a result (it panicked, or the process is stopping)")]
pub struct TaskLost;

impl<T> Future for PoolTask<T> {
    type Output = Result<T, TaskLost>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Under { handle, .. } => Pin::new(handle).poll(cx).map_err(|_| TaskLost),
            State::Done(result) => Poll::Ready(result.take().ok_or(TaskLost)),
        }
    }
}

impl<T> Drop for PoolTask<T> {
    fn drop(&mut self) {
        if let State::Under { abort, .. } = &self.state {
            abort.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_of_one_thread_runs_many_tasks_that_wait_for_each_other() {
        let pool = Pool::new("test", 1).unwrap();
        let main = runtime::Builder::new_current_thread().build().unwrap();
        let sum = main.block_on(async {
            let (tx, mut rx) = tokio::sync::mpsc::channel::<u64>(1);
            let consumer = pool.spawn(async move {
                let mut sum = 0;
                while let Some(n) = rx.recv().await {
                    sum += n;
                }
                sum
            });
            let producers: Vec<_> = (0..50)
                .map(|n| {
                    let tx = tx.clone();
                    pool.spawn(async move { tx.send(n).await.is_ok() })
                })
                .collect();
            drop(tx);
            for producer in producers {
                assert!(producer.await.unwrap());
            }
            consumer.await.unwrap()
        });
        assert_eq!(sum, 49 * 50 / 2);
    }

    #[test]
    fn a_thread_of_the_pool_runs_closures_itself() {
        let pool = Pool::new("test", 1).unwrap();
        let other = Pool::new("test", 1).unwrap();
        let main = runtime::Builder::new_current_thread().build().unwrap();
        let inner = (pool.clone(), other);
        main.block_on(pool.spawn(async move {
            let here = std::thread::current().id();
            assert_eq!(inner.0.run(|| std::thread::current().id()).await, Ok(here));
            assert_ne!(inner.1.run(|| std::thread::current().id()).await, Ok(here));
        }))
        .unwrap();
    }

    #[test]
    fn dropping_the_task_cancels_and_a_panic_is_an_error() {
        let pool = Pool::new("test", 1).unwrap();
        let main = runtime::Builder::new_current_thread().build().unwrap();
        main.block_on(async {
            let (tx, rx) = tokio::sync::oneshot::channel::<()>();
            drop(pool.spawn(async move {
                std::future::pending::<()>().await;
                drop(tx);
            }));
            assert!(rx.await.is_err());
            let lost = pool.run(|| {
                if true {
                    std::panic::resume_unwind(Box::new("quiet"));
                }
            });
            assert_eq!(lost.await, Err(TaskLost));
        });
    }
}
