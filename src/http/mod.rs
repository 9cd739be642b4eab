//! The HTTP server: what every request passes through, and the pages every process has.

mod config;

pub use config::{ApiConfig, Config, HttpPrefix};
