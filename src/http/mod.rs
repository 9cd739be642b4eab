//! The HTTP server: what every request passes through, and the pages every process has.
//!
//! ```text
//! Listener ─► serve (connections, limits, graceful end) ─► frame (metrics, panics, gzip, 404) ─► a service's routes
//!                                                                                             └► pages
//! ```
//!
//! Absent here: what the services answer. They give their routes as an [`axum::Router`].

mod answer;
mod config;
mod exposition;
mod frame;
mod linger;
mod pages;
mod process_metrics;
mod server;
mod table;

#[cfg(test)]
mod tests;

pub use answer::{Failure, prometheus_error};
pub use config::{ApiConfig, Config, HttpPrefix};
pub use frame::{Frame, FrameMetrics};
pub use pages::{Link, Pages};
pub use process_metrics::ProcessMetrics;
pub use server::{OpenCall, OpenCalls, Peer, serve};
pub use table::{Action, TablePage};
