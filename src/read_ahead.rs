//! Streams that are read by whoever consumes them as long as nothing has to be waited for, and else by a task ahead of it.
//!
//! What is in memory, in a cache or in a local file needs no task, no channel and no change of threads: a small query is
//! answered by one thread in one go. What has to be waited for is read by a task on the CPU pool, so that several streams
//! wait at the same time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures::Stream;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::runtime::{Pool, PoolTask};

/// Where a stream is read: its CPU work on a pool, its I/O on a runtime.
#[derive(Clone)]
pub struct Place {
    /// Runs the task that reads ahead.
    pub pool: Pool,
    /// What is entered while the stream is polled, so that sockets, timers and blocking calls are this runtime's.
    pub io: Handle,
}

/// How far a stream is read before it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    /// After so many items a task takes over even if none had to be waited for: reading and consuming then overlap.
    pub items_in_place: usize,
    /// Items of the task that may wait for the consumer.
    pub items_ahead: usize,
}

/// A stream of results that is read ahead once it has to wait; ends with its first error.
pub struct ReadAhead<T, E> {
    place: Place,
    depth: Depth,
    first: Option<Option<Result<T, E>>>,
    reader: Reader<T, E>,
}

enum Reader<T, E> {
    /// With the number of items left until a task takes over.
    InPlace(BoxStream<'static, Result<T, E>>, usize),
    Task {
        items: mpsc::Receiver<Result<T, E>>,
        /// Ends the reading when nobody wants it any more.
        _reading: PoolTask<()>,
    },
    Ended,
}

impl<T: Send + 'static, E: Send + 'static> ReadAhead<T, E> {
    /// Begins to read: what is there without waiting is read now, if this is a thread for such work.
    pub fn start(place: Place, depth: Depth, stream: BoxStream<'static, Result<T, E>>) -> Self {
        let reader = Reader::InPlace(stream, depth.items_in_place);
        let mut started = Self { place, depth, first: None, reader };
        // Whoever waits later brings its own waker: a stream that is not ready moves to a task.
        if let Poll::Ready(first) = started.poll(&mut Context::from_waker(Waker::noop())) {
            started.first = Some(first);
        }
        started
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, E>>> {
        if let Reader::InPlace(stream, left) = &mut self.reader
            && *left > 0
            && self.place.pool.is_here()
        {
            let polled = {
                let _in_io = self.place.io.enter();
                stream.poll_next_unpin(cx)
            };
            if let Poll::Ready(item) = polled {
                *left -= 1;
                if item.as_ref().is_none_or(|item| item.is_err()) {
                    self.reader = Reader::Ended;
                }
                return Poll::Ready(item);
            }
            // What may only not be done on this thread goes on with its consumer, on the pool.
            if self.place.pool.is_spent() {
                return Poll::Pending;
            }
        }
        if let Reader::InPlace(..) = &self.reader
            && let Reader::InPlace(stream, _) = std::mem::replace(&mut self.reader, Reader::Ended)
        {
            self.reader = self.read_in_task(stream);
        }
        match &mut self.reader {
            Reader::Task { items, .. } => items.poll_recv(cx),
            _ => Poll::Ready(None),
        }
    }

    fn read_in_task(&self, mut stream: BoxStream<'static, Result<T, E>>) -> Reader<T, E> {
        let (sender, items) = mpsc::channel(self.depth.items_ahead.max(1));
        let reading = async move {
            while let Some(item) = stream.next().await {
                let failed = item.is_err();
                if sender.send(item).await.is_err() || failed {
                    return;
                }
                // Whoever was woken by that waits where only this thread looks, until this task gives way; then another
                // thread may go on with it.
                tokio::task::yield_now().await;
            }
        };
        Reader::Task { items, _reading: self.place.spawn(reading) }
    }
}

impl<T: Send + Unpin + 'static, E: Send + Unpin + 'static> Stream for ReadAhead<T, E> {
    type Item = Result<T, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.first.take() {
            Some(first) => Poll::Ready(first),
            None => self.poll(cx),
        }
    }
}

impl Place {
    /// Starts `work` on the pool; where it does I/O, that is the runtime's.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> PoolTask<T> {
        self.pool.spawn(Entered { io: self.io.clone(), work: Box::pin(work) })
    }

    /// Does `work` at once as far as it goes without waiting; the rest on the pool.
    pub fn begin<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Begun<T> {
        let mut work: BoxFuture<'static, T> = Box::pin(work);
        let polled = {
            let _in_io = self.io.enter();
            work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        };
        match polled {
            Poll::Ready(done) => Begun::Done(done),
            Poll::Pending => Begun::Under(self.spawn(work)),
        }
    }
}

/// Work that was begun.
pub enum Begun<T> {
    /// It is done.
    Done(T),
    /// It waits for something.
    Under(PoolTask<T>),
}

/// A future that is polled in the context of another runtime than its thread's.
struct Entered<T> {
    io: Handle,
    work: BoxFuture<'static, T>,
}

impl<T> Future for Entered<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let io = self.io.clone();
        let _in_io = io.enter();
        self.work.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::stream;
    use tokio::sync::oneshot;

    use super::*;

    /// Read by a task from the start, and read in place.
    fn places() -> [Place; 2] {
        [Pool::new("test", 2).unwrap(), Pool::inline()].map(|pool| Place { pool, io: Handle::current() })
    }

    const DEPTH: Depth = Depth { items_in_place: 2, items_ahead: 1 };

    #[tokio::test]
    async fn all_items_arrive_in_order_however_they_are_read() {
        for place in places() {
            let ready = stream::iter((0..10).map(Ok::<_, ()>)).boxed();
            let read: Vec<_> = ReadAhead::start(place.clone(), DEPTH, ready).collect().await;
            assert_eq!(read, (0..10).map(Ok).collect::<Vec<_>>());
            for waits_at in 0..4 {
                let waiting = stream::iter(0..10).then(move |i| async move {
                    if i >= waits_at {
                        tokio::time::sleep(Duration::from_micros(10)).await;
                    }
                    Ok::<_, ()>(i)
                });
                let read: Vec<_> = ReadAhead::start(place.clone(), DEPTH, waiting.boxed()).collect().await;
                assert_eq!(read, (0..10).map(Ok).collect::<Vec<_>>());
            }
        }
    }

    #[tokio::test]
    async fn an_error_is_the_last_item() {
        for place in places() {
            for at in 0..5 {
                let items = stream::iter((0..10).map(move |i| if i == at { Err(i) } else { Ok(i) })).boxed();
                let read: Vec<_> = ReadAhead::start(place.clone(), DEPTH, items).collect().await;
                assert_eq!(read, (0..at).map(Ok).chain([Err(at)]).collect::<Vec<_>>());
            }
        }
    }

    #[tokio::test]
    async fn a_pool_thread_reads_what_is_ready_itself() {
        let place = Place { pool: Pool::new("test", 2).unwrap(), io: Handle::current() };
        let inner = place.clone();
        let same = place.pool.spawn(async move {
            let here = std::thread::current().id();
            let items = stream::repeat_with(|| Ok::<_, ()>(std::thread::current().id())).take(2).boxed();
            let mut read = ReadAhead::start(inner, DEPTH, items);
            [read.next().await, read.next().await].into_iter().all(|thread| thread == Some(Ok(here)))
        });
        assert_eq!(same.await, Ok(true));
    }

    #[tokio::test]
    async fn what_a_lent_thread_cannot_afford_is_read_in_place_on_the_pool() {
        let place = Place { pool: Pool::new("test", 2).unwrap(), io: Handle::current() };
        let (inner, here) = (place.clone(), std::thread::current().id());
        let read = place.pool.begin(Duration::from_millis(2), async move {
            let pool = inner.pool.clone();
            let items = stream::iter(0..4).then(move |_| {
                let pool = pool.clone();
                async move {
                    pool.afford(Duration::from_millis(1)).await;
                    Ok::<_, ()>(std::thread::current().id())
                }
            });
            let depth = Depth { items_in_place: 4, ..DEPTH };
            let mut read = ReadAhead::start(inner, depth, items.boxed());
            let mut threads = Vec::new();
            while let Some(Ok(thread)) = read.next().await {
                threads.push((thread, std::thread::current().id()));
            }
            threads
        });
        let threads = read.await.unwrap();
        assert_eq!(threads[..2], [(here, here); 2]);
        assert!(threads[2..].iter().all(|&(reader, consumer)| reader == consumer && reader != here), "{threads:?}");
    }

    #[tokio::test]
    async fn what_waits_is_read_before_it_is_asked_for_and_dropped_with_its_reader() {
        let (begun, has_begun) = oneshot::channel();
        let (dropped, is_dropped) = oneshot::channel::<()>();
        let stream = stream::once(async move {
            tokio::task::yield_now().await;
            let _ = begun.send(());
            std::future::pending::<()>().await;
            drop(dropped);
            Ok::<_, ()>(())
        });
        let [place, _] = places();
        let reading = ReadAhead::start(place, DEPTH, stream.boxed());
        has_begun.await.unwrap();
        drop(reading);
        assert!(is_dropped.await.is_err());
    }
}
