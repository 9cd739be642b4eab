//! A network in virtual time: byte streams that are late, stalled by a cut, broken, or end with the process behind them.
//!
//! Like TCP, a stream loses nothing and keeps its order: a cut holds bytes back, and they arrive once it is mended. What
//! breaks a stream is the end of a process, or a reset.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use skald::runtime::{BoxIo, Listener, Net, Rng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Sleep};

/// Bytes on their way in one direction before the writer has to wait.
const WINDOW: usize = 256 * 1024;

/// A machine: its number, in the order in which they were named.
pub type HostId = usize;

/// One run of a process, from its start to its end.
#[derive(Debug)]
pub struct Life {
    pub host: HostId,
    dead: AtomicBool,
}

impl Life {
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// From here on nothing it does is seen by anybody.
    pub fn end(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }
}

/// All links.
pub struct Network {
    state: Mutex<State>,
    random: Rng,
    /// Told when a link is mended or a machine is back.
    mended: Notify,
}

#[derive(Default)]
struct State {
    hosts: Vec<Host>,
    /// Directions in which nothing arrives.
    cut: BTreeSet<(HostId, HostId)>,
    /// Directions in which everything takes up to so many milliseconds more.
    slow: BTreeMap<(HostId, HostId), u64>,
    listeners: BTreeMap<String, Listening>,
    connections: Vec<Weak<Connection>>,
}

struct Host {
    name: String,
    /// It is gone without a word: nobody refuses a connection to it.
    silent: bool,
}

struct Listening {
    life: Arc<Life>,
    arrivals: mpsc::UnboundedSender<(Stream, String)>,
}

/// A stream in both directions.
struct Connection {
    lives: [Arc<Life>; 2],
    /// By who writes.
    pipes: [Mutex<Pipe>; 2],
    cut: [AtomicBool; 2],
    broken: AtomicBool,
}

#[derive(Default)]
struct Pipe {
    /// What arrives when; `None` is the end.
    queue: VecDeque<(Instant, Option<VecDeque<u8>>)>,
    bytes: usize,
    /// When the last of it arrives.
    last: Option<Instant>,
    closed: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

impl Connection {
    fn wake(&self) {
        self.pipes.iter().for_each(|pipe| pipe.lock().wake());
    }

    fn break_off(&self) {
        self.broken.store(true, Ordering::Relaxed);
        self.wake();
    }
}

impl State {
    fn connections(&mut self) -> Vec<Arc<Connection>> {
        self.connections.retain(|connection| connection.strong_count() > 0);
        self.connections.iter().filter_map(Weak::upgrade).collect()
    }

    fn is_cut(&self, from: HostId, to: HostId) -> bool {
        from != to && (self.cut.contains(&(from, to)) || self.hosts[from].silent || self.hosts[to].silent)
    }

    fn apply_cuts(&mut self) {
        for connection in self.connections() {
            let hosts = [connection.lives[0].host, connection.lives[1].host];
            connection.cut[0].store(self.is_cut(hosts[0], hosts[1]), Ordering::Relaxed);
            connection.cut[1].store(self.is_cut(hosts[1], hosts[0]), Ordering::Relaxed);
            connection.wake();
        }
    }

    fn host_of(&self, address: &str) -> Option<HostId> {
        let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
        self.hosts.iter().position(|host| host.name == name)
    }
}

impl Network {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), random: Rng::seeded(seed), mended: Notify::new() })
    }

    pub fn add_host(&self, name: &str) -> HostId {
        let mut state = self.state.lock();
        state.hosts.push(Host { name: name.to_owned(), silent: false });
        state.hosts.len() - 1
    }

    /// A process starts on a machine, which is there again if it was gone: it knows nothing of former streams.
    pub fn begin_life(&self, host: HostId) -> Arc<Life> {
        let mut state = self.state.lock();
        for connection in state.connections() {
            if connection.lives.iter().any(|life| life.host == host) {
                connection.break_off();
            }
        }
        state.hosts[host].silent = false;
        state.apply_cuts();
        drop(state);
        self.mended.notify_waiters();
        Arc::new(Life { host, dead: AtomicBool::new(false) })
    }

    /// A process ends at once: its streams break, or, with its machine, fall silent.
    pub fn kill(&self, life: &Arc<Life>, silent: bool) {
        life.end();
        let mut state = self.state.lock();
        state.listeners.retain(|_, listening| !Arc::ptr_eq(&listening.life, life));
        state.hosts[life.host].silent = silent;
        for connection in state.connections() {
            if connection.lives.iter().any(|one| Arc::ptr_eq(one, life)) {
                if silent { connection.wake() } else { connection.break_off() }
            }
        }
        state.apply_cuts();
    }

    /// Breaks every stream from and to a machine.
    pub fn reset(&self, host: HostId) {
        for connection in self.state.lock().connections() {
            if connection.lives.iter().any(|life| life.host == host) {
                connection.break_off();
            }
        }
    }

    /// Stops what goes in one direction, or lets it go on.
    pub fn set_cut(&self, from: HostId, to: HostId, cut: bool) {
        let mut state = self.state.lock();
        let changed = if cut { state.cut.insert((from, to)) } else { state.cut.remove(&(from, to)) };
        if changed {
            state.apply_cuts();
        }
        drop(state);
        if !cut {
            self.mended.notify_waiters();
        }
    }

    /// Makes everything in one direction take up to so many milliseconds more.
    pub fn set_slow(&self, from: HostId, to: HostId, most_ms: u64) {
        self.state.lock().slow.insert((from, to), most_ms);
    }

    /// No cuts, no slow links.
    pub fn mend(&self) {
        let mut state = self.state.lock();
        state.cut.clear();
        state.slow.clear();
        state.apply_cuts();
        drop(state);
        self.mended.notify_waiters();
    }

    fn delay(&self, from: HostId, to: HostId) -> Duration {
        if from == to {
            return Duration::ZERO;
        }
        let most = self.state.lock().slow.get(&(from, to)).copied().unwrap_or(2);
        Duration::from_millis(self.random.next_u64() % (most + 1))
    }

    async fn connect(self: Arc<Self>, life: Arc<Life>, address: String) -> io::Result<Stream> {
        let from = life.host;
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("no host is called as in {address}"));
        let to = self.state.lock().host_of(&address).ok_or_else(unknown)?;
        tokio::time::sleep(self.delay(from, to) + self.delay(to, from)).await;
        loop {
            let mended = self.mended.notified();
            match self.try_connect(&life, to, &address) {
                Some(connected) => return connected,
                None => mended.await,
            }
        }
    }

    /// Connects now, unless nothing arrives there: `None`.
    fn try_connect(self: &Arc<Self>, life: &Arc<Life>, to: HostId, address: &str) -> Option<io::Result<Stream>> {
        let from = life.host;
        if life.is_dead() {
            return Some(Err(io::ErrorKind::NetworkDown.into()));
        }
        let mut state = self.state.lock();
        if state.is_cut(from, to) || state.is_cut(to, from) {
            return None;
        }
        let Some(listening) = state.listeners.get(address) else {
            return Some(Err(io::ErrorKind::ConnectionRefused.into()));
        };
        let (there, arrivals) = (listening.life.clone(), listening.arrivals.clone());
        let connection = Arc::new(Connection {
            lives: [life.clone(), there],
            pipes: Default::default(),
            cut: Default::default(),
            broken: AtomicBool::new(false),
        });
        let stream = |side: usize| Stream {
            network: self.clone(),
            connection: connection.clone(),
            side,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        state.connections.push(Arc::downgrade(&connection));
        let peer = format!("{}:1", state.hosts[from].name);
        // A stream that nobody takes closes, which asks for the state.
        drop(state);
        let arrived = arrivals.send((stream(1), peer));
        Some(arrived.map(|()| stream(0)).map_err(|_| io::ErrorKind::ConnectionRefused.into()))
    }
}

/// The network as one process sees it.
#[derive(Clone)]
pub struct HostNet {
    pub network: Arc<Network>,
    pub life: Arc<Life>,
}

impl HostNet {
    pub async fn connect_to(&self, address: &str) -> io::Result<Stream> {
        self.network.clone().connect(self.life.clone(), address.to_owned()).await
    }
}

impl Net for HostNet {
    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        let (address, life, network) = (address.to_owned(), self.life.clone(), self.network.clone());
        Box::pin(async move {
            let (arrivals, arriving) = mpsc::unbounded_channel();
            let mut state = network.state.lock();
            if life.is_dead() {
                return Err(io::ErrorKind::NetworkDown.into());
            }
            if state.listeners.get(&address).is_some_and(|other| !other.arrivals.is_closed()) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            state.listeners.insert(address.clone(), Listening { life, arrivals });
            Ok(Box::new(Door { address, arriving }) as Box<dyn Listener>)
        })
    }

    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let connecting = self.network.clone().connect(self.life.clone(), address.to_owned());
        Box::pin(async move { Ok(Box::new(connecting.await?) as BoxIo) })
    }
}

/// Where connections come in.
struct Door {
    address: String,
    arriving: mpsc::UnboundedReceiver<(Stream, String)>,
}

impl Listener for Door {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, String)>> {
        Box::pin(async move {
            match self.arriving.recv().await {
                Some((stream, peer)) => Ok((Box::new(stream) as BoxIo, peer)),
                // Its process is dead: it sees nothing any more.
                None => std::future::pending().await,
            }
        })
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}

/// One end of a connection.
pub struct Stream {
    network: Arc<Network>,
    connection: Arc<Connection>,
    side: usize,
    timer: Pin<Box<Sleep>>,
}

impl Stream {
    fn broken(&self) -> io::Result<()> {
        let connection = &self.connection;
        if connection.broken.load(Ordering::Relaxed) || connection.lives[self.side].is_dead() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }

    fn close(&self) {
        let (from, to) = (self.connection.lives[self.side].host, self.connection.lives[1 - self.side].host);
        let delay = self.network.delay(from, to);
        let mut pipe = self.connection.pipes[self.side].lock();
        if !pipe.closed && !self.connection.lives[self.side].is_dead() {
            pipe.closed = true;
            let at = pipe.last.map_or(Instant::now() + delay, |last| last.max(Instant::now() + delay));
            pipe.queue.push_back((at, None));
            pipe.wake();
        }
    }

    /// Reads until the end.
    pub async fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let mut bytes = [0; 16 * 1024];
            let mut buffer = ReadBuf::new(&mut bytes);
            poll_fn(|context| Pin::new(&mut *self).poll_read(context, &mut buffer)).await?;
            if buffer.filled().is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(buffer.filled());
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.broken()?;
        let connection = self.connection.clone();
        let mut pipe = connection.pipes[1 - self.side].lock();
        if !connection.cut[1 - self.side].load(Ordering::Relaxed)
            && let Some((at, _)) = pipe.queue.front()
        {
            let at = *at;
            let late = at > Instant::now();
            if late {
                self.timer.as_mut().reset(at);
            }
            if (!late || self.timer.as_mut().poll(context).is_ready())
                && let Some((_, bytes)) = pipe.queue.front_mut()
            {
                let Some(bytes) = bytes else { return Poll::Ready(Ok(())) };
                let (first, _) = bytes.as_slices();
                let count = first.len().min(buffer.remaining());
                buffer.put_slice(&first[..count]);
                bytes.drain(..count);
                if bytes.is_empty() {
                    pipe.queue.pop_front();
                }
                pipe.bytes -= count;
                if let Some(writer) = pipe.writer.take() {
                    writer.wake();
                }
                return Poll::Ready(Ok(()));
            }
        }
        pipe.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.broken()?;
        let connection = &self.connection;
        let delay = self.network.delay(connection.lives[self.side].host, connection.lives[1 - self.side].host);
        let mut pipe = connection.pipes[self.side].lock();
        if pipe.closed || pipe.reader_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = bytes.len().min(WINDOW - pipe.bytes);
        if count == 0 && !bytes.is_empty() {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let at = Instant::now() + delay;
        let at = pipe.last.map_or(at, |last| last.max(at));
        pipe.last = Some(at);
        pipe.bytes += count;
        pipe.queue.push_back((at, Some(bytes[..count].iter().copied().collect())));
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.broken())
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.close();
        let mut pipe = self.connection.pipes[1 - self.side].lock();
        pipe.reader_gone = true;
        pipe.wake();
    }
}
