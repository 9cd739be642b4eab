//! The write-ahead log: what was acknowledged and is not yet in a block.
//!
//! One log serves every head of an ingester; a record carries an opaque [`HeadId`]. A commit goes through these files in
//! order: [`batch`] encodes a head's records into its own buffer, [`frame`] wraps and checksums them, [`commit`] writes
//! what is waiting with one append (a *group*), [`ledger`] remembers which segment still holds what. At start [`read`]
//! reads stretches of the log ahead while [`recovery`] replays them through [`record`]. `FORMAT.md` beside this file is
//! the format.
//!
//! - `commit` answers after write(2): acknowledged data survives the process. [`Wal::sync`] makes it survive the machine;
//!   the caller runs it on a timer, and who must not answer earlier waits for [`Wal::durability`].
//! - A failed append leaves nothing behind: the segment is cut back to its last good length, every commit of the group
//!   gets the error, and the next commit tries again. A full disk needs no restart.
//! - A segment is freed as soon as each head's samples in it are covered by a finished cut, or two snapshots
//!   ([`snapshot`]) were begun after it; [`restore`] reads them back.
//!
//! Absent on purpose: tenants, timers, threads.

mod batch;
mod commit;
mod frame;
mod histogram;
mod ledger;
mod loss;
mod read;
mod record;
mod recovery;
mod restore;
mod snapshot;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use skald_model::TimestampMs;

use crate::disk::Disk;

pub use batch::WalBatch;
pub use frame::{FrameInfo, FrameKind};
pub use loss::{Loss, LostPart};
pub use record::{Cut, Exemplars, Floats, HeadState, Histograms, LoggedFloat, Metadata, Record, SeriesDefinitions};
pub use recovery::{Damage, Missed, RecoveryReport, Replay, Replayed};
pub use restore::{Restored, SnapshotReport};
pub use snapshot::{Held, Keep, Snapshot, SnapshotWriter};

/// A head's number in the log; never given out twice while a trace of it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct HeadId(pub u32);

/// A segment's number, part of its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SegmentId(pub u64);

/// Where in the log something stands: a segment, and an offset in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Which segment.
    pub segment: SegmentId,
    /// Bytes from the start of its file.
    pub offset: u64,
}

/// How many cuts a head has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Generation(pub u32);

/// A position in the log of this process: bytes written since it was opened. Grows with every commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Lsn(pub u64);

/// Whether a commit would survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Not yet synced.
    Pending,
    /// Synced.
    Durable,
    /// The sync that covered it failed: it may or may not be on the disk.
    Failed,
}

/// How the log is written.
#[derive(Debug, Clone)]
pub struct WalOptions {
    /// Size at which a segment is closed. A segment whose series definitions outweigh its samples may grow to
    /// [`WalOptions::HARD_LIMIT_FACTOR`] times that: defining every series again costs more than a longer file.
    pub segment_bytes: u64,
    /// Whether records other than floats are compressed with snappy. Floats are coded by columns and stay as they are.
    pub compress: bool,
}

impl WalOptions {
    /// How far beyond `segment_bytes` a segment of mostly definitions may grow.
    pub const HARD_LIMIT_FACTOR: u64 = 8;
}

impl Default for WalOptions {
    fn default() -> Self {
        Self { segment_bytes: 128 << 20, compress: true }
    }
}

/// Why nothing was logged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalError {
    /// No space; the caller may retry once there is.
    #[error("write-ahead log: no space left on the disk")]
    Full,
    /// Anything else the disk said; the caller may retry.
    #[error("write-ahead log: {0}")]
    Io(Arc<std::io::Error>),
    /// A snapshot was written by a newer version: reading the log without it would lose what only it holds.
    #[error("write-ahead log: {file} has format version {version}, which this version cannot read")]
    Version {
        /// Its name.
        file: String,
        /// What it says.
        version: u8,
    },
}

impl From<std::io::Error> for WalError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io(Arc::new(error)),
        }
    }
}

/// Why a batch was not committed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The log moved on to another segment: call [`Wal::begin`] and encode again, with the definitions that one needs.
    #[error("the batch was encoded for a segment that is closed")]
    Rotated,
    /// The batch is not in the log.
    #[error(transparent)]
    Wal(#[from] WalError),
}

/// The log. All methods may be called from several threads.
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: WalOptions,
    /// Innermost lock of the crate: nothing else is taken and no I/O done while it is held.
    state: Mutex<commit::State>,
    /// Signalled when a group is finished.
    group_done: Condvar,
    /// Held through an fsync, so that one runs at a time. Taken before `state`.
    syncing: Mutex<()>,
}

/// What the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WalStats {
    /// Segments on the disk, the one being written included.
    pub segments: usize,
    /// Their size together.
    pub bytes: u64,
    /// End of what was written.
    pub written: Lsn,
    /// End of what was synced.
    pub synced: Lsn,
}

impl Wal {
    /// Ties an emptied `batch` to a head and to the segment being written.
    pub fn begin(&self, batch: &mut WalBatch, head: HeadId, generation: Generation) {
        let segment = self.state.lock().segment();
        batch.reset(segment, head, generation, self.options.compress);
    }

    /// The segment being written.
    pub fn segment(&self) -> SegmentId {
        self.state.lock().segment()
    }

    /// Registers a head. `definition` is the caller's (a tenant's name, say) and comes back at recovery.
    pub fn define_head(&self, definition: &[u8]) -> Result<HeadId, WalError> {
        let head = self.state.lock().ledger.new_head();
        let state = HeadState {
            definition: definition.to_vec(),
            generation: Generation(0),
            boundary: TimestampMs::MIN,
            done: Cut::NONE,
        };
        self.commit_change(head, ledger::Change::Defined(state))?;
        Ok(head)
    }

    /// Forgets a head and all it logged: it holds nothing that is not in blocks.
    pub fn drop_head(&self, head: HeadId) -> Result<(), WalError> {
        self.commit_change(head, ledger::Change::Dropped)?;
        self.free_segments();
        Ok(())
    }

    /// Logs that `head` begins a cut: the samples it logs from now on are of the generation returned.
    /// The caller lets no commit of this head run meanwhile.
    pub fn begin_cut(&self, head: HeadId, up_to: TimestampMs) -> Result<Generation, WalError> {
        let generation = Generation(self.state.lock().ledger.generation(head).0.saturating_add(1));
        self.commit_change(head, ledger::Change::CutBegun(Cut { generation, up_to }))?;
        Ok(generation)
    }

    /// Logs that blocks hold all that `cut` covers, and frees the segments nobody needs any more.
    pub fn finish_cut(&self, head: HeadId, cut: Cut) -> Result<(), WalError> {
        self.commit_change(head, ledger::Change::CutDone(cut))?;
        self.free_segments();
        Ok(())
    }

    /// The heads that are known, with their cut state.
    pub fn heads(&self) -> Vec<(HeadId, HeadState)> {
        self.state.lock().ledger.heads()
    }

    /// Sizes and positions.
    pub fn stats(&self) -> WalStats {
        self.state.lock().stats()
    }
}
