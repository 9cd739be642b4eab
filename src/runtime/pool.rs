//! Bounded pools for CPU work.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use skald_promql::eval::Workers;
use tokio::runtime;
use tokio::task::{AbortHandle, JoinHandle};

use super::Crew;

/// A fixed number of named threads that run CPU work.
///
/// Work is a future: where it waits (for a remote source, say) it gives its thread back. Nothing on a pool may block
/// on I/O, a channel, or another task of a pool.
///
/// A change of threads costs more than many a query: waking one takes tens of microseconds on a machine that is idle. So
/// a thread outside the pool may be lent to work for a moment ([`Pool::begin`]). Work that is begun so says before each
/// of its parts what that will cost ([`Pool::afford`]); what the lent time does not cover is done on the pool.
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
    /// Number of the pool this thread belongs, or is lent, to; 0 of none.
    static POOL: Cell<u64> = const { Cell::new(0) };
    /// What is left of the time this thread is lent for; `None` when it is not lent.
    static LENT: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Lends this thread to a pool until dropped.
struct Lending {
    before: u64,
}

impl Lending {
    fn begin(number: u64, time: Duration) -> Self {
        LENT.set(Some(time));
        Self { before: POOL.replace(number) }
    }
}

impl Drop for Lending {
    fn drop(&mut self) {
        LENT.set(None);
        POOL.set(self.before);
    }
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

    /// As many threads as the pool has, for work that is done while the pool has nothing to do: at start.
    pub fn crew(&self) -> Crew {
        Crew::new(Workers::threads(self))
    }

    /// Starts `work` on this thread, which is not one of the pool's and is lent to it for about `time` of CPU work. What
    /// has to be waited for, or is not covered by that time, goes on on the pool, as if it had been spawned there.
    pub fn begin<T: Send + 'static>(
        &self,
        time: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> PoolTask<T> {
        let number = match &*self.threads {
            Threads::Own { number, .. } if POOL.get() == 0 => *number,
            _ => return self.spawn(work),
        };
        let mut work = Box::pin(work);
        let polled = {
            let _lent = Lending::begin(number, time);
            // Nobody is told when it can go on: it is polled again at once, on the pool.
            let mut context = Context::from_waker(Waker::noop());
            // As on a pool, a panic ends the work and nothing else.
            catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut context)))
        };
        match polled {
            Ok(Poll::Ready(result)) => PoolTask { state: State::Done(Some(result)) },
            Ok(Poll::Pending) => self.spawn(work),
            Err(_) => PoolTask { state: State::Done(None) },
        }
    }

    /// Waits until this thread may do work of about `cost`. Only work on a lent thread ever waits, and then goes on on the
    /// pool.
    pub async fn afford(&self, cost: Duration) {
        poll_fn(|cx| self.poll_afford(cost, cx)).await;
    }

    /// Waits until this thread may block for a file.
    pub async fn leave(&self) {
        self.afford(Duration::MAX).await;
    }

    /// The same as [`Pool::afford`] for poll functions.
    pub fn poll_afford(&self, cost: Duration, cx: &Context<'_>) -> Poll<()> {
        let Some(left) = LENT.get() else { return Poll::Ready(()) };
        let rest = left.checked_sub(cost);
        // What could not be afforded ends the loan: nothing more is to be begun here.
        LENT.set(Some(rest.unwrap_or_default()));
        if rest.is_some() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether this thread is lent: nothing may block here.
    pub fn is_lent(&self) -> bool {
        LENT.get().is_some()
    }

    /// Whether this thread was lent for less than the work needs.
    pub fn is_spent(&self) -> bool {
        LENT.get() == Some(Duration::ZERO)
    }

    /// Whether this thread is one of the pool's, or lent to it.
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
    fn what_a_lent_thread_cannot_afford_goes_on_in_the_pool() {
        let pool = Pool::new("test", 1).unwrap();
        let main = runtime::Builder::new_current_thread().build().unwrap();
        let here = std::thread::current().id();
        let time = Duration::from_millis;
        main.block_on(async {
            let inner = pool.clone();
            let begun = pool.begin(time(10), async move {
                let thread = || std::thread::current().id();
                let mut threads = vec![(thread(), inner.is_lent(), inner.run(thread).await.unwrap())];
                for cost in [time(10), time(1), Duration::MAX] {
                    inner.afford(cost).await;
                    threads.push((thread(), inner.is_lent(), inner.run(thread).await.unwrap()));
                }
                threads
            });
            assert!(!pool.is_here() && !pool.is_lent());
            let threads = begun.await.unwrap();
            assert_eq!(threads[..2], [(here, true, here); 2]);
            let there = threads[2].0;
            assert_ne!(there, here);
            assert_eq!(threads[2..], [(there, false, there); 2]);
        });
    }

    #[test]
    fn what_waits_on_a_lent_thread_is_woken_in_the_pool() {
        let pool = Pool::new("test", 1).unwrap();
        let main = runtime::Builder::new_current_thread().build().unwrap();
        main.block_on(async {
            let (tx, rx) = tokio::sync::oneshot::channel::<u64>();
            let begun = pool.begin(Duration::from_secs(1), rx);
            tx.send(7).unwrap();
            assert_eq!(begun.await, Ok(Ok(7)));
            // A panic is the work's alone, and ends the loan.
            let lost = pool.begin(Duration::from_secs(1), async {
                if true {
                    std::panic::resume_unwind(Box::new("quiet"));
                }
            });
            assert!(!pool.is_here() && !pool.is_lent());
            assert_eq!(lost.await, Err(TaskLost));
        });
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
