//! Where states are kept and how they spread.
//!
//! A [`Store`] is one replicated value, to be read, watched and changed by merging. A process has one [`Replica`] with a slot
//! for each value; what changes in it is queued ([`queue`]) and put into [`message`]s that name their cluster and version.
//! Who carries them is another question: nobody ([`Replica::alone`]), a [`simulation`] that delays, loses and cuts off, or gossip
//! over sockets.

#[cfg(feature = "gossip")]
pub mod gossip;
pub mod message;
pub mod queue;
pub mod replica;
pub mod simulation;

#[cfg(test)]
mod conformance;

use std::sync::Arc;

use tokio::sync::watch;

use crate::value::Value;

pub use message::{Cluster, MessageError};
pub use replica::{Counts, OpenError, Replica};

/// One replicated value. Changes spread to all replicas of the cluster sooner or later, and in no particular order.
pub trait Store<V: Value>: Send + Sync {
    /// The value as it is known here. Cheap.
    fn get(&self) -> Arc<V>;

    /// A receiver of every later value; a slow one sees the latest only.
    fn watch(&self) -> watch::Receiver<Arc<V>>;

    /// Merges `change` into the value and spreads what was new in it; whether anything was.
    fn update(&self, change: &V) -> bool;
}
