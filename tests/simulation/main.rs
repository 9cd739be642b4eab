//! A whole cluster in one thread: the processes are real (`skald::app::run`: HTTP, gRPC, rings, repair), what they run on is
//! simulated. Time is virtual and passes at once when nobody has anything to do; disks are in memory; the network delays,
//! stalls and breaks streams; gossip is `ring`'s simulation of it. Everything follows from a seed.
//!
//! - [`scenario`] is the story of a run: senders, readers, misfortune, calm, the loss of a zone.
//! - [`misfortune`] is what happens to the cluster, [`cluster`] the processes it happens to.
//! - [`book`] knows what was acknowledged and judges answers: every acknowledged sample is in every answer to its range that is
//!   not an error, and no tenant sees another's.
//! - [`network`], [`disk`], [`clock`], [`gossip`] and [`http`] are the machines.
//! - [`chance`] sees to it that a seed is the same run every time.
//!
//! `SIMULATION_SEED=n` runs one seed again and prints what happened; `SIMULATION_VARIANT` is what it is broken by.
//! `SIMULATION_SEEDS=n` runs so many.
#![expect(clippy::disallowed_methods, reason = "virtual clocks, and processes that run the seeds")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a run tells what it came to")]

mod book;
mod chance;
mod clock;
mod cluster;
mod disk;
mod gossip;
mod http;
mod misfortune;
mod network;
mod scenario;
mod seeds;
#[path = "../system/sender.rs"]
mod sender;
