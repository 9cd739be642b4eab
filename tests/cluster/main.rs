//! A whole cluster of real processes, as `deploy/local/cluster` starts it. Apart from the other tests of the binary, so that
//! it has the machine to itself.
#![expect(clippy::disallowed_methods, reason = "these tests run real processes, clocks and files")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test tells what it measured and what it skipped")]

#[expect(dead_code, reason = "shared with the tests of single processes, which use more of it")]
#[path = "../system/process.rs"]
mod process;
#[path = "../system/sender.rs"]
mod sender;

mod cluster;
mod kill_and_roll;
mod prometheus;
