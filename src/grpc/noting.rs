//! Connections that note what broke them, since the HTTP/2 client only says that they are gone, and count their bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::runtime::BoxIo;

/// What the last connection to a peer broke by, until somebody takes it.
#[derive(Clone, Default)]
pub(super) struct BrokenBy(Arc<Mutex<Option<String>>>);

impl BrokenBy {
    /// What it was.
    pub fn take(&self) -> Option<String> {
        self.0.lock().take()
    }

    fn note<T>(&self, polled: &Poll<io::Result<T>>) {
        if let Poll::Ready(Err(error)) = polled {
            *self.0.lock() = Some(error.to_string());
        }
    }
}

/// Bytes to and from others, as they go into TLS where there is some.
#[derive(Clone, Default)]
pub(super) struct Traffic {
    pub sent: Counter,
    pub received: Counter,
}

/// A byte stream that notes its errors and counts its bytes.
pub(super) struct Noting {
    io: BoxIo,
    broken_by: BrokenBy,
    traffic: Traffic,
}

impl Noting {
    /// `io`, its errors noted in `broken_by`, its bytes counted in `traffic`.
    pub fn new(io: BoxIo, broken_by: BrokenBy, traffic: Traffic) -> Self {
        broken_by.take();
        Self { io, broken_by, traffic }
    }

    /// A peer that closes often has said why: a TLS alert, which only reading finds.
    fn note_after_writing<T>(&mut self, context: &mut Context<'_>, polled: &Poll<io::Result<T>>) {
        if matches!(polled, Poll::Ready(Err(_))) {
            self.broken_by.note(polled);
            let read = Pin::new(&mut self.io).poll_read(context, &mut ReadBuf::new(&mut [0; 64]));
            self.broken_by.note(&read);
        }
    }

    fn after_writing(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = polled {
            self.traffic.sent.inc_by(bytes as u64);
        }
        self.note_after_writing(context, &polled);
        polled
    }
}

impl AsyncRead for Noting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        self.traffic.received.inc_by((buffer.filled().len() - before) as u64);
        self.broken_by.note(&polled);
        polled
    }
}

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, bytes);
        self.after_writing(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(context);
        self.note_after_writing(context, &polled);
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, buffers);
        self.after_writing(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
