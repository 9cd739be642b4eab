//! The store-gateway: serves blocks from object storage.
//!
//! A request names the blocks it wants. [`service`] opens them ([`blocks`], [`opening`]): of a block's index only the symbols
//! and postings offsets are kept at hand, on disk, and a little of them in memory. For a select, [`select`] runs one reader per
//! block ([`reading`], with [`parsing`]: postings, entries, chunks) and merges their series. Every range of an object comes through
//! [`pages`], which caches and joins requests, or reads the [`files`] of a bucket that is a directory. [`upkeep`] closes what is idle and removes what is gone.
//!
//! Everything on this machine is a cache: a gateway may start empty, and damaged files are made anew. Absent on purpose:
//! samples are never decoded here (except where two blocks overlap a deletion), and nothing is written to the bucket.

mod block;
mod blocks;
mod cache;
pub mod client;
mod config;
mod facts;
mod files;
pub mod grpc;
mod metrics;
mod opening;
mod pages;
mod parsing;
mod query;
mod reading;
mod select;
mod service;
mod upkeep;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use service::{Ownership, StoreGateway};
