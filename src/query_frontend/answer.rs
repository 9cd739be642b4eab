//! The envelope around every answer, and how an answer gets to its client: in one piece while it is small, else cut into
//! pieces that the threads of the query pool encode, a few ahead of the client, and that are sent in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures::{StreamExt, stream};
use http::{HeaderValue, header};
use parking_lot::Mutex;
use skald_promql::eval::Workers;
use tokio_util::task::AbortOnDropHandle;

use super::json::{put_list, put_str};
use crate::error::ServiceError;
use crate::http::prometheus_error;
use crate::runtime::Runtime;
use crate::runtime::pool::{PoolTask, TaskLost};

/// Bytes one piece of an answer aims at: encoding it takes well below a millisecond, sending it is worth a wake-up.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes, about, up to which an answer is encoded where it is asked for; more are work for the query pool.
const FEW_BYTES: usize = 64 << 10;
/// Most pieces that are encoded before the client takes them: several threads encode more than one connection sends.
const MOST_AHEAD: usize = 4;

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

/// The data of an answer, to be cut into parts that any thread can encode.
pub trait Data: Send + 'static {
    /// Cuts off the next part: what takes about `room` bytes, and always something. Nothing is asked of it after the last
    /// part. Encoding is the part's work; cutting is cheap.
    fn cut(&mut self, room: usize) -> Part;

    /// Bytes of the encoded data, about, or any number above `enough` if it is more; asked before anything is cut off.
    fn bytes(&self, enough: usize) -> usize;
}

/// What appends to an answer.
type Put = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

/// A part of an answer's data, not encoded yet.
pub struct Part {
    is_last: bool,
    put: Put,
}

impl Part {
    /// A part that `put` appends.
    pub fn new(is_last: bool, put: impl FnOnce(&mut Vec<u8>) + Send + 'static) -> Self {
        Self { is_last, put: Box::new(put) }
    }

    /// The last part, or the only one.
    pub fn last(put: impl FnOnce(&mut Vec<u8>) + Send + 'static) -> Self {
        Self::new(true, put)
    }

    /// Whether it is the last one.
    #[cfg(test)]
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    /// Appends it.
    pub fn put(self, out: &mut Vec<u8>) {
        (self.put)(out);
    }

    /// The part with something before it.
    #[must_use]
    pub fn after(self, before: impl FnOnce(&mut Vec<u8>) + Send + 'static) -> Self {
        Self::new(self.is_last, move |out| {
            before(out);
            (self.put)(out);
        })
    }

    /// The part, with something behind it if it is the last one.
    #[must_use]
    pub fn ended_by(self, end: impl FnOnce() -> Put) -> Self {
        if !self.is_last {
            return self;
        }
        let end = end();
        Self::last(move |out| {
            (self.put)(out);
            end(out);
        })
    }
}

/// One of many small things.
pub trait Item: Send + 'static {
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);

    /// Bytes it takes, about.
    fn bytes(&self) -> usize;
}

/// A list of small things.
pub struct List<T> {
    items: std::vec::IntoIter<T>,
    begun: bool,
}

impl<T: Item> List<T> {
    /// A list of these items.
    pub fn new(items: Vec<T>) -> Self {
        Self { items: items.into_iter(), begun: false }
    }

    /// The same, cut to `limit` items, which is noted.
    pub fn limited(mut items: Vec<T>, limit: Option<usize>, notes: &mut Notes) -> Self {
        if let Some(limit) = limit.filter(|limit| items.len() > *limit) {
            items.truncate(limit);
            notes.truncated();
        }
        Self::new(items)
    }
}

impl<T: Item> Data for List<T> {
    fn cut(&mut self, room: usize) -> Part {
        let mut bytes = 0;
        let mut fits = |item: &T| {
            let fits = bytes < room;
            bytes += item.bytes();
            fits
        };
        let count = self.items.as_slice().iter().take_while(|item| fits(item)).count();
        let items: Vec<T> = self.items.by_ref().take(count).collect();
        let is_first = !std::mem::replace(&mut self.begun, true);
        let is_last = self.items.as_slice().is_empty();
        Part::new(is_last, move |out| {
            if is_first {
                out.push(b'[');
            }
            for (i, item) in items.into_iter().enumerate() {
                if !(is_first && i == 0) {
                    out.push(b',');
                }
                item.put(out);
            }
            if is_last {
                out.push(b']');
            }
        })
    }

    fn bytes(&self, enough: usize) -> usize {
        sum(self.items.as_slice().iter().map(Item::bytes), enough)
    }
}

/// The sum of numbers, as far as it takes to see that it is above `enough`.
pub fn sum(numbers: impl IntoIterator<Item = usize>, enough: usize) -> usize {
    let mut sum = 0;
    for number in numbers {
        sum += number;
        if sum > enough {
            break;
        }
    }
    sum
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
    fn cut(&mut self, _room: usize) -> Part {
        let put = self.0.take();
        Part::last(move |out| {
            if let Some(put) = put {
                put(out);
            }
        })
    }

    fn bytes(&self, _enough: usize) -> usize {
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

/// A piece of an answer's body, not encoded yet.
struct Piece {
    part: Part,
    room: usize,
}

impl Piece {
    fn encode(self) -> Bytes {
        let mut out = Vec::with_capacity(self.room);
        self.part.put(&mut out);
        out.into()
    }
}

impl Success {
    /// A success with this data.
    pub fn new(data: impl Data, notes: Notes) -> Self {
        Self { data: Box::new(data), notes, begun: false, ended: false }
    }

    /// The next piece of the body; `None` after the last one.
    fn cut(&mut self) -> Option<Piece> {
        if self.ended {
            return None;
        }
        // Sizes are guessed, and a buffer that has to grow is copied.
        let bytes = if self.begun { PIECE_BYTES } else { self.data.bytes(PIECE_BYTES).min(PIECE_BYTES) };
        let room = bytes + bytes / 8 + 1024;
        let mut part = self.data.cut(PIECE_BYTES);
        if !std::mem::replace(&mut self.begun, true) {
            part = part.after(|out| out.extend_from_slice(b"{\"status\":\"success\",\"data\":"));
        }
        self.ended = part.is_last;
        let notes = &mut self.notes;
        let part = part.ended_by(|| {
            let Notes { warnings, infos } = std::mem::take(notes);
            Box::new(move |out| {
                for (name, texts) in [("warnings", warnings), ("infos", infos)] {
                    if !texts.is_empty() {
                        out.push(b',');
                        put_str(out, name);
                        out.push(b':');
                        put_list(out, texts, |out, text| put_str(out, &text));
                    }
                }
                out.push(b'}');
            })
        });
        Some(Piece { part, room })
    }

    /// The response. Of an answer that is not small only a few pieces are in memory at one time. A client that goes away ends
    /// their encoding; one that takes nothing for `patience` is cut off, so that it cannot hold an answer's memory for good.
    async fn respond(mut self, runtime: &Runtime, patience: Duration) -> Result<Response, ServiceError> {
        if self.data.bytes(FEW_BYTES) <= FEW_BYTES {
            // Where sizes were guessed too small there is more.
            let mut all = Vec::new();
            while let Some(piece) = self.cut() {
                all.push(piece.encode());
            }
            let whole = if all.len() == 1 { all.swap_remove(0) } else { all.concat().into() };
            return Ok(json_response(Body::from(whole)));
        }
        let sending = Sending::new(self, runtime, patience);
        let first = sending.next().await.map_err(|_| TaskLost)?;
        if sending.is_complete() {
            return Ok(json_response(Body::from(first.unwrap_or_default())));
        }
        let pieces = stream::unfold((first, sending), async |(mut first, sending)| {
            let piece = match first.take() {
                Some(first) => Ok(Some(first)),
                None => sending.next().await,
            };
            piece.transpose().map(|piece| (piece, (first, sending)))
        });
        // What compresses the body asks once more after the end.
        Ok(json_response(Body::from_stream(pieces.fuse())))
    }
}

/// The body of a large answer.
struct Sending {
    ahead: Arc<Mutex<Ahead>>,
    /// Drops what is left when the client has taken nothing for long.
    _watch: AbortOnDropHandle<()>,
}

/// What is still to be sent.
struct Ahead {
    /// The pieces that come next, being encoded.
    tasks: VecDeque<PoolTask<Bytes>>,
    /// What comes after them, and the answer's share of the query's budget until all is sent; `None` once the client is given
    /// up.
    rest: Option<Success>,
    /// Whether the client waits for a piece.
    asked: bool,
    pieces_taken: u64,
    runtime: Runtime,
}

impl Ahead {
    fn hand_out(&mut self) {
        let most = self.runtime.query_pool.threads().min(MOST_AHEAD);
        while self.tasks.len() < most
            && let Some(piece) = self.rest.as_mut().and_then(Success::cut)
        {
            self.tasks.push_back(self.runtime.query_pool.run(move || piece.encode()));
        }
    }
}

impl Sending {
    fn new(success: Success, runtime: &Runtime, patience: Duration) -> Self {
        let mut ahead = Ahead {
            tasks: VecDeque::new(),
            rest: Some(success),
            asked: false,
            pieces_taken: 0,
            runtime: runtime.clone(),
        };
        ahead.hand_out();
        let ahead = Arc::new(Mutex::new(ahead));
        let (watched, clock) = (ahead.clone(), runtime.clock.clone());
        let watch = async move {
            let mut before = None;
            loop {
                {
                    let mut ahead = watched.lock();
                    if before == Some(ahead.pieces_taken) && !ahead.asked {
                        ahead.tasks.clear();
                        ahead.rest = None;
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
    async fn next(&self) -> Result<Option<Bytes>, std::io::Error> {
        // An answer that was not encoded to its end must not look as if it were.
        let cut = || std::io::Error::other("the answer was cut");
        let task = {
            let mut ahead = self.ahead.lock();
            if ahead.rest.is_none() {
                return Err(cut());
            }
            ahead.asked = true;
            let task = ahead.tasks.pop_front();
            ahead.hand_out();
            task
        };
        let Some(task) = task else { return Ok(None) };
        let piece = task.await.map_err(|_| cut())?;
        let mut ahead = self.ahead.lock();
        ahead.asked = false;
        ahead.pieces_taken += 1;
        Ok(Some(piece))
    }

    /// Whether nothing comes any more.
    fn is_complete(&self) -> bool {
        let ahead = self.ahead.lock();
        ahead.tasks.is_empty() && ahead.rest.as_ref().is_some_and(|rest| rest.ended)
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
        list: List<Number>,
        _alive: Arc<()>,
    }

    impl Data for Numbers {
        fn cut(&mut self, room: usize) -> Part {
            self.list.cut(room)
        }

        fn bytes(&self, enough: usize) -> usize {
            self.list.bytes(enough)
        }
    }

    struct Number(i64);

    impl Item for Number {
        fn put(&self, out: &mut Vec<u8>) {
            put_time(out, self.0 * 1000);
        }

        fn bytes(&self) -> usize {
            7
        }
    }

    fn numbers(count: i64) -> (Success, Weak<()>) {
        let alive = Arc::new(());
        let weak = Arc::downgrade(&alive);
        let list = List::new((0..count).map(Number).collect());
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
            gossip: Arc::new(crate::runtime::SocketGossip),
            bucket: None,
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
        assert!(all.len() > 4 * PIECE_BYTES);
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
