//! The real binary, used as its users use it: over HTTP, beside real Prometheus programs, killed at bad moments.
//!
//! Each test starts its own processes on loopback ports of their own and stops them by pid.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "these tests run real processes, clocks and files")]

mod crash;
mod flush;
mod golden;
mod process;
mod sender;
