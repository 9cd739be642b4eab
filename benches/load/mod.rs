//! The servers that are measured under a remote_write load, and the load.
//!
//! [`server`] says how each is started and what its process has cost; [`send`] sends series to one, as fast as it takes
//! them, over a few connections.

pub mod send;
pub mod server;

pub type Error = Box<dyn std::error::Error + Send + Sync>;
