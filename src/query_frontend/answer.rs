//! The envelope around every answer, and how an answer gets to its client: in one piece while it is small, else piece by
//! piece, each encoded when the one before it is on its way.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures::{StreamExt, stream};
use http::{HeaderValue, header};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::json::{put_list, put_str};
use crate::error::ServiceError;
use crate::http::prometheus_error;
use crate::runtime::Runtime;
use crate::runtime::pool::PoolTask;

/// Bytes one piece of an answer aims at: encoding it takes well below a millisecond, sending it is worth a wake-up.
const PIECE_BYTES: usize = 128 << 10;
/// Items (samples, label sets) up to which an answer is encoded where it is asked for; more are work for the query pool.
const FEW_ITEMS: usize = 512;

/// What may stand around an answer's data.
#[derive(Debug, Default)]
pub struct Notes {
    /// Warnings.
    pub warnings: Vec<String>,
    /// Infos.
    pub infos: Vec<String>,
}

impl Notes {
    /// Adds the warning of an answer cut to a limit.
    pub fn truncated(&mut self) {
        self.warnings.push("results truncated due to limit".to_owned());
    }
}

/// The data of an answer, encoded bit by bit. What is encoded is dropped.
pub trait Data: Send + 'static {
    /// Appends more of the data: about as much as fits `room` bytes, and always something. False at the end.
    fn put_some(&mut self, out: &mut Vec<u8>, room: usize) -> bool;

    /// Items (samples, label sets, texts) to encode, about.
    fn items(&self) -> usize;
}

/// A list of things that are small each.
pub struct List<T> {
    items: std::vec::IntoIter<T>,
    put: fn(&mut Vec<u8>, &T),
    begun: bool,
}

impl<T> List<T> {
    /// A list of which `put` encodes one item.
    pub fn new(items: Vec<T>, put: fn(&mut Vec<u8>, &T)) -> Self {
        Self { items: items.into_iter(), put, begun: false }
    }

    /// The same, cut to `limit` items, which is noted.
    pub fn limited(mut items: Vec<T>, limit: Option<usize>, notes: &mut Notes, put: fn(&mut Vec<u8>, &T)) -> Self {
        if let Some(limit) = limit.filter(|limit| items.len() > *limit) {
            items.truncate(limit);
            notes.truncated();
        }
        Self::new(items, put)
    }
}

impl<T: Send + 'static> Data for List<T> {
    fn put_some(&mut self, out: &mut Vec<u8>, room: usize) -> bool {
        let end = out.len().saturating_add(room);
        for item in self.items.by_ref() {
            out.push(if self.begun { b',' } else { b'[' });
            self.begun = true;
            (self.put)(out, &item);
            if out.len() >= end {
                return true;
            }
        }
        if !self.begun {
            out.push(b'[');
        }
        out.push(b']');
        false
    }

    fn items(&self) -> usize {
        self.items.len()
    }
}

/// Data that is encoded at once.
pub struct Whole<F>(Option<F>);

impl<F: FnOnce(&mut Vec<u8>)> Whole<F> {
    /// Data that `put` appends; it must be small.
    pub fn new(put: F) -> Self {
        Self(Some(put))
    }
}

impl<F: FnOnce(&mut Vec<u8>) + Send + 'static> Data for Whole<F> {
    fn put_some(&mut self, out: &mut Vec<u8>, _room: usize) -> bool {
        if let Some(put) = self.0.take() {
            put(out);
        }
        false
    }

    fn items(&self) -> usize {
        1
    }
}

/// A success on its way to the client.
pub struct Success {
    data: Box<dyn Data>,
    notes: Notes,
    begun: bool,
    ended: bool,
}

impl Success {
    /// A success with this data.
    pub fn new(data: impl Data, notes: Notes) -> Self {
        Self { data: Box::new(data), notes, begun: false, ended: false }
    }

    /// The next piece of the body; `None` after the last one.
    fn next_piece(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::with_capacity(if self.begun { PIECE_BYTES + 4096 } else { 1024 });
        if !self.begun {
            self.begun = true;
            out.extend_from_slice(b"{\"status\":\"success\",\"data\":");
        }
        self.ended = !self.data.put_some(&mut out, PIECE_BYTES);
        if self.ended {
            for (name, texts) in [("warnings", &self.notes.warnings), ("infos", &self.notes.infos)] {
                if !texts.is_empty() {
                    out.push(b',');
                    put_str(&mut out, name);
                    out.push(b':');
                    put_list(&mut out, texts, |out, text| put_str(out, text));
                }
            }
            out.push(b'}');
        }
        Some(out.into())
    }

    /// The response. Of an answer that is not small only two pieces are in memory at one time: one is sent while the next
    /// is encoded on the query pool. A client that goes away ends that; one that takes nothing for `patience` is cut off,
    /// so that it cannot hold an answer's memory for good.
    async fn respond(mut self, runtime: &Runtime, patience: Duration) -> Result<Response, ServiceError> {
        let (first, rest) =
            if self.data.items() <= FEW_ITEMS { (self.next_piece(), self) } else { self.encode_ahead(runtime).await? };
        let first = first.unwrap_or_default();
        if rest.ended {
            return Ok(json_response(Body::from(first)));
        }
        let sending = Sending { first: Some(first), rest: Rest::new(rest.encode_ahead(runtime), runtime, patience) };
        let runtime = runtime.clone();
        let pieces = stream::unfold(sending, move |mut sending| {
            let runtime = runtime.clone();
            async move {
                if let Some(first) = sending.first.take() {
                    return Some((Ok(first), sending));
                }
                match sending.rest.next(&runtime).await {
                    Ok(piece) => piece.map(|piece| (Ok(piece), sending)),
                    Err(error) => Some((Err(error), sending)),
                }
            }
        });
        // What compresses the body asks once more after the end.
        Ok(json_response(Body::from_stream(pieces.fuse())))
    }

    /// Encodes the next piece on the query pool.
    fn encode_ahead(mut self, runtime: &Runtime) -> PoolTask<(Option<Bytes>, Self)> {
        runtime.query_pool.run(move || (self.next_piece(), self))
    }
}

/// The body of a large answer.
struct Sending {
    first: Option<Bytes>,
    rest: Rest,
}

/// What is still to be sent: the next piece, being encoded, and with it what comes after.
struct Rest {
    ahead: Arc<Mutex<Ahead>>,
    /// Drops what is left when the client has taken nothing for long.
    _watch: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Ahead {
    /// `None` while the client waits for it, after the last piece, and once the client is given up.
    task: Option<PoolTask<(Option<Bytes>, Success)>>,
    pieces_taken: u64,
}

impl Rest {
    fn new(task: PoolTask<(Option<Bytes>, Success)>, runtime: &Runtime, patience: Duration) -> Self {
        let ahead = Arc::new(Mutex::new(Ahead { task: Some(task), pieces_taken: 0 }));
        let (watched, clock) = (ahead.clone(), runtime.clock.clone());
        let watch = async move {
            let mut before = None;
            loop {
                {
                    let mut ahead = watched.lock();
                    if before == Some(ahead.pieces_taken) && ahead.task.take().is_some() {
                        return;
                    }
                    before = Some(ahead.pieces_taken);
                }
                clock.sleep(patience).await;
            }
        };
        Self { ahead, _watch: AbortOnDropHandle::new(tokio::spawn(watch)) }
    }

    /// The next piece; `None` after the last one.
    async fn next(&self, runtime: &Runtime) -> Result<Option<Bytes>, std::io::Error> {
        // An answer that was not encoded to its end must not look as if it were.
        let cut = || std::io::Error::other("the answer was cut");
        let Some(task) = self.ahead.lock().task.take() else { return Err(cut()) };
        let (piece, rest) = task.await.map_err(|_| cut())?;
        if piece.is_some() {
            let mut ahead = self.ahead.lock();
            ahead.pieces_taken += 1;
            ahead.task = Some(rest.encode_ahead(runtime));
        }
        Ok(piece)
    }
}

fn json_response(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The response to an outcome.
pub async fn respond(outcome: Result<Success, ServiceError>, runtime: &Runtime, patience: Duration) -> Response {
    let response = match outcome {
        Ok(success) => success.respond(runtime, patience).await,
        Err(error) => Err(error),
    };
    response.unwrap_or_else(|error| prometheus_error(&error))
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use axum::body::HttpBody;
    use http_body_util::BodyExt;
    use skald_tsdb::disk::RealDisk;

    use super::super::json::put_time;
    use super::*;
    use crate::runtime::{ManualClock, MemNet, Pool, Rng};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Numbers, one a byte or more, that say whether they are still there.
    struct Numbers {
        list: List<i64>,
        _alive: Arc<()>,
    }

    impl Data for Numbers {
        fn put_some(&mut self, out: &mut Vec<u8>, room: usize) -> bool {
            self.list.put_some(out, room)
        }

        fn items(&self) -> usize {
            self.list.items()
        }
    }

    fn numbers(count: i64) -> (Success, Weak<()>) {
        let alive = Arc::new(());
        let weak = Arc::downgrade(&alive);
        let list = List::new((0..count).map(|n| n * 1000).collect(), |out, n| put_time(out, *n));
        let mut notes = Notes::default();
        notes.truncated();
        (Success::new(Numbers { list, _alive: alive }, notes), weak)
    }

    fn runtime() -> (Runtime, ManualClock) {
        let clock = ManualClock::at(0);
        let runtime = Runtime {
            clock: Arc::new(clock.clone()),
            rng: Arc::new(Rng::seeded(1)),
            disk: Arc::new(RealDisk),
            net: Arc::new(MemNet::default()),
            ingest_pool: Pool::inline(),
            query_pool: Pool::inline(),
            background_pool: Pool::inline(),
        };
        (runtime, clock)
    }

    fn expected(count: i64) -> serde_json::Value {
        let data: Vec<i64> = (0..count).collect();
        serde_json::json!({"status": "success", "data": data, "warnings": ["results truncated due to limit"]})
    }

    #[tokio::test]
    async fn small_answers_are_one_body_of_known_length() {
        for count in [0, 1, 600] {
            let response = numbers(count).0.respond(&runtime().0, PATIENCE).await.unwrap();
            assert!(response.body().size_hint().exact().is_some());
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap(), expected(count));
        }
    }

    #[tokio::test]
    async fn large_answers_come_in_pieces_and_are_dropped_with_the_body() {
        let (runtime, _clock) = runtime();
        let (success, alive) = numbers(200_000);
        let mut body = success.respond(&runtime, PATIENCE).await.unwrap().into_body();
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() < PIECE_BYTES + 100, "{}", piece.len());
            all.extend_from_slice(&piece);
        }
        assert!(all.len() > 8 * PIECE_BYTES);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&all).unwrap(), expected(200_000));
        assert!(body.frame().await.is_none(), "compression asks after the end");

        let (success, alive_too) = numbers(200_000);
        let mut body = success.respond(&runtime, PATIENCE).await.unwrap().into_body();
        let _ = body.frame().await;
        assert!(alive_too.upgrade().is_some());
        drop(body);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(alive_too.upgrade().is_none() && alive.upgrade().is_none());
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (runtime, clock) = runtime();
        let (success, alive) = numbers(200_000);
        let mut body = success.respond(&runtime, PATIENCE).await.unwrap().into_body();
        let _ = body.frame().await.unwrap().unwrap();
        let wait = async || {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        };
        wait().await;
        clock.advance(PATIENCE - Duration::from_secs(1));
        let _ = body.frame().await.unwrap().unwrap();
        wait().await;
        clock.advance(Duration::from_secs(2));
        wait().await;
        assert!(alive.upgrade().is_some(), "it has taken something in time");
        clock.advance(PATIENCE);
        wait().await;
        assert!(alive.upgrade().is_none());
        assert!(body.frame().await.unwrap().is_err(), "what was cut must not look complete");
    }
}
