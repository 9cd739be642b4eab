//! Listening and connecting.
#![expect(clippy::disallowed_methods, reason = "this is the one place that opens sockets")]

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A byte stream to a peer.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Any byte stream to a peer.
pub type BoxIo = Box<dyn Io>;

/// The network as a process sees it. Addresses are `host:port`.
pub trait Net: Send + Sync + 'static {
    /// Listens on `address`; port 0 picks a free one.
    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>>;
    /// Connects to `address`.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>>;
}

/// Something that takes connections.
pub trait Listener: Send + 'static {
    /// The next connection and who made it.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, String)>>;
    /// The address it really listens on.
    fn local_address(&self) -> String;
}

/// TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNet;

impl Net for TcpNet {
    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        let address = address.to_owned();
        Box::pin(async move {
            let listener = TcpListener::bind(&address)
                .await
                .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxIo)
        })
    }
}

impl Listener for TcpListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, String)>> {
        Box::pin(async move {
            let (stream, peer) = TcpListener::accept(self).await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as BoxIo, peer.to_string()))
        })
    }

    fn local_address(&self) -> String {
        self.local_addr().map(|a| a.to_string()).unwrap_or_default()
    }
}

/// A network inside one process: clones see each other's listeners.
#[derive(Clone, Default)]
pub struct MemNet {
    listeners: Arc<Mutex<HashMap<String, mpsc::Sender<DuplexStream>>>>,
}

struct MemListener {
    address: String,
    connections: mpsc::Receiver<DuplexStream>,
}

impl Net for MemNet {
    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        let (address, listeners) = (address.to_owned(), self.listeners.clone());
        Box::pin(async move {
            let (sender, connections) = mpsc::channel(64);
            let mut listeners = listeners.lock();
            if listeners.get(&address).is_some_and(|l| !l.is_closed()) {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("cannot listen on {address}: in use")));
            }
            listeners.insert(address.clone(), sender);
            Ok(Box::new(MemListener { address, connections }) as Box<dyn Listener>)
        })
    }

    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let listener = self.listeners.lock().get(address).cloned();
        Box::pin(async move {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            listener.ok_or_else(refused)?.send(theirs).await.map_err(|_| refused())?;
            Ok(Box::new(ours) as BoxIo)
        })
    }
}

impl Listener for MemListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, String)>> {
        Box::pin(async move {
            let stream = self.connections.recv().await.ok_or(io::ErrorKind::NotConnected)?;
            Ok((Box::new(stream) as BoxIo, "memory".to_owned()))
        })
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn conformance(net: &dyn Net, address: &str) {
        let mut listener = net.listen(address).await.unwrap();
        let bound = listener.local_address();
        let mut client = net.connect(&bound).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        server.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"ping");
        assert_eq!(net.listen(&bound).await.err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse));
        drop(listener);
        assert!(net.connect(&bound).await.is_err());
    }

    #[tokio::test]
    async fn both_networks_conform() {
        conformance(&TcpNet, "127.0.0.1:0").await;
        conformance(&MemNet::default(), "ingester:9095").await;
    }
}
