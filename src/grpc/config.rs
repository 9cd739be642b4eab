//! Settings of gRPC clients.

use std::time::Duration;

use tonic::codec::CompressionEncoding;

use crate::settings::{ByteSize, setting_enum, settings};
use crate::tls::ClientTlsConfig;

setting_enum! {
    /// How messages to and from other processes are compressed.
    pub enum Compression {
        /// Not at all: the least CPU time.
        None = "none",
        /// Smaller, at several times the CPU time of zstd.
        Gzip = "gzip",
        /// Smaller, for little CPU time.
        Zstd = "zstd",
    }
}

impl Compression {
    /// What tonic calls it.
    pub fn encoding(self) -> Option<CompressionEncoding> {
        match self {
            Self::None => None,
            Self::Gzip => Some(CompressionEncoding::Gzip),
            Self::Zstd => Some(CompressionEncoding::Zstd),
        }
    }
}

/// What a peer may send on one stream before it was read here.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;

settings! {
    /// How this process calls others by gRPC.
    pub struct Config {
        /// Compression of what is sent, and of what is answered. Servers take all kinds, so that it can be changed one
        /// process after the other. Worth it where traffic between zones costs more than CPU time.
        pub compression: Compression = Compression::None,
        /// Longest time until a connection stands, its TLS handshake included.
        pub connect_timeout: Duration = Duration::from_secs(5) => Duration::from_millis(10)..,
        /// Silence after which a connection is asked whether it lives.
        pub keep_alive_interval: Duration = Duration::from_secs(10) => Duration::from_secs(1)..,
        /// How long it may take to say so; then it is made anew, and calls on it fail.
        pub keep_alive_timeout: Duration = Duration::from_secs(5) => Duration::from_millis(100)..,
        /// Longest time of a write to an ingester. The ingester stops work on a write nobody waits for any more.
        pub write_timeout: Duration = Duration::from_secs(10) => Duration::from_millis(10)..,
        /// Longest time of any other call, its whole answer included. A query's own deadline is mostly shorter.
        pub read_timeout: Duration = Duration::from_secs(300) => Duration::from_millis(10)..,
        /// Calls to one process that are under way at the same time; further ones fail at once with
        /// `peer-in-flight-limit`. The connection's window has room for all of them, so that an answer nobody reads
        /// does not stop the others.
        pub max_in_flight_calls: usize = 1000 => 1..=2000,
        /// Largest message taken.
        pub max_recv_msg_size: ByteSize = ByteSize::mib(256) => ByteSize::kib(64)..=ByteSize::gib(2),
        /// Largest message sent.
        pub max_send_msg_size: ByteSize = ByteSize::mib(256) => ByteSize::kib(64)..=ByteSize::gib(2),
        /// TLS.
        pub tls: ClientTlsConfig,
    }
}

impl Config {
    /// The window of a connection: that of all its streams together.
    pub(super) fn connection_window(&self) -> u32 {
        // At most 2000 MiB, below the protocol's 2^31.
        (self.max_in_flight_calls as u32).saturating_mul(STREAM_WINDOW)
    }
}
