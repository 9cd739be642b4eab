//! Repair: members of a replica group find out what one of them lacks, and fetch it.
//!
//! The same series are on every member of a group, so whatever one of them missed (it was down, lost its disk, shed load,
//! timed out) another has. Nobody keeps a list of that; members compare what they hold. [`exchange`] is what they ask each
//! other, level by level, so that equal members ask once: an overview with a digest per tenant and range of time, digests
//! of a few hundred parts of the series where those differ, single series where these do, chunks in the end. [`content`]
//! is what this member holds, head and local blocks together; [`serve`] answers from it; [`pass`] is one comparison with
//! one other member, [`import`] takes what is missing. [`history`] knows across restarts whether this member lost
//! anything, [`verdict`] when it has all it needs, and [`service`] goes round. [`page`] shows how that went.
//!
//! A member fetches and never sends: each of a group looks after itself. What it does for others is bounded by what
//! they ask at one time, and done on the background pool.
//!
//! What is compared: samples from the [floor](serve::Floors) (older ones went with blocks that were in the bucket for
//! `local_retention`) up to a minute ago, because younger ones may still be on their way to one of the members. A
//! member that is not repaired compares everything. Of two different values at one time each member keeps its own; such
//! series are fetched once, and again when either side changes.
//!
//! Absent on purpose: who belongs to the group (the caller's `group` says it), exemplars and metadata (both may be lost
//! with a member, and come anew), and reading from the bucket: what is there is answered by store-gateways.

mod content;
pub mod exchange;
pub(super) mod grpc;
pub(super) mod history;
mod import;
mod metrics;
mod page;
mod pass;
pub(super) mod serve;
mod service;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::client::IngesterClient;
use crate::error::{ErrorKind, ServiceError};
use history::History;
pub(super) use metrics::RepairMetrics;
pub(super) use page::routes;
use pass::PeerReport;
use serve::{Digests, Floors};

/// Another member of this one's replica group.
#[derive(Clone)]
pub struct Peer {
    /// Its name, as it gives it itself.
    pub id: String,
    /// Whether it is worth asking now.
    pub healthy: bool,
    /// How it is reached.
    pub client: Arc<dyn IngesterClient>,
}

/// This member's replica group as it is known now.
#[derive(Clone, Default)]
pub struct Group {
    /// How many other members the whole group has: the replication factor less one. 0 of an ingester on its own.
    pub others: usize,
    /// Those that are known.
    pub peers: Vec<Peer>,
}

/// Whether this member counts for reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repaired {
    /// It does not yet.
    No {
        /// What it waits for, for people.
        reason: String,
    },
    /// It has what the others had when it started.
    Yes,
}

/// What an ingester keeps for repair.
pub(super) struct State {
    /// Its name, told when the service begins.
    instance: Mutex<String>,
    repaired: watch::Sender<Repaired>,
    /// Whether reads are refused until then.
    guards_reads: AtomicBool,
    /// Held while it is written down.
    history: Mutex<History>,
    digests: Digests,
    pub(super) floors: Floors,
    /// How the last comparison with each other member went.
    reports: Mutex<BTreeMap<String, PeerReport>>,
}

impl State {
    pub(super) fn new(history: History, floors: Floors) -> Self {
        let reason = "repair has not begun".to_owned();
        Self {
            instance: Mutex::default(),
            repaired: watch::channel(Repaired::No { reason }).0,
            guards_reads: AtomicBool::new(false),
            history: Mutex::new(history),
            digests: Digests::default(),
            floors,
            reports: Mutex::default(),
        }
    }

    /// An error for reads while this is a member of a group that lacks something. Readers do not ask such a one, as far as
    /// they know: what they have heard of it may be older than its last start, and then nobody but itself knows better.
    pub(super) fn admits_reads(&self) -> Result<(), ServiceError> {
        match &*self.repaired.borrow() {
            Repaired::No { reason } if self.guards_reads.load(Ordering::Relaxed) => {
                let text = format!("this ingester may lack samples and is asked for none yet: {reason}");
                Err(ServiceError::new(ErrorKind::Unavailable, "ingester-not-repaired", text))
            }
            _ => Ok(()),
        }
    }

    /// Notes that the log is synced for the last time; on the background pool.
    pub(super) fn closed(&self, disk: &dyn skald_tsdb::disk::Disk) {
        self.history.lock().closed(disk);
    }
}
