//! The real binary, used as its users use it: over HTTP, beside real Prometheus programs, killed at bad moments.
//!
//! Each test starts its own processes on loopback ports of their own and stops them by pid.
#![expect(clippy::disallowed_methods, reason = "these tests run real processes, clocks and files")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test tells what it measured and what it skipped")]

mod compare;
mod load;
mod process;
#[path = "../s3_server/mod.rs"]
mod s3_server;
mod sender;

mod blocks;
mod crash;
mod differential;
mod disk_full;
mod flush;
mod golden;
mod hostile;
mod lifecycle;
mod prometheus;
mod query_parts;
mod roles;
mod rolling;
mod s3;
mod scale;
mod starts;
mod stopping;
mod tenants;
mod tsdb_tool;
mod wrong_input;
