//! The storage engine: chunks, head, write-ahead log, blocks, index.
//!
//! Synchronous; absent on purpose: network, tenants, clocks, threads of its own.

pub mod block;
mod bounded;
pub mod chunk;
pub mod decode;
pub mod disk;
pub mod encode;
pub mod head;
mod overlap;
pub mod postings;
mod processor;
mod series_chunks;
pub mod wal;
mod workers;

pub use bounded::{GoOn, bounded};
pub use series_chunks::{SeriesChunks, SeriesFilter};
pub use workers::{Alone, Workers};
