//! Writing snapshots: what the heads hold, in a file of checksummed records that lets the log before it go.
//!
//! ```text
//! begin   the log moves on to a new segment S; snapshot-S.tmp is created
//! record  page by page, while appends go on: each record says up to which position of the log it holds everything
//! finish  index and end are written, the file synced, renamed and the directory synced; of three snapshots the oldest
//!         goes, and with it the log before the older one of the two that are left
//! ```
//!
//! A snapshot that fails is given up: its file goes, the log and the snapshots before it stay. What the records say is
//! the head's business ([`crate::head`]); `FORMAT.md` has all of it.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::MutexGuard;
use skald_model::TimestampMs;
use skald_model::varint::{put_uvarint, put_varint};

use super::commit::State;
use super::frame::{FrameKind, MAX_PAYLOAD, TARGET_PAYLOAD, put_frame, snapshot_header, snapshot_id};
use super::ledger::encode_head;
use super::{HeadId, Position, SegmentId, Wal, WalError};
use crate::disk::{Disk, DiskFile};

/// Bytes that gather before they are written.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes after which the file is synced, so that no sync has to wait for more: the log's own come in between.
const SYNC_BYTES: u64 = 16 << 20;
/// Snapshots that are kept.
pub(super) const KEPT: usize = 2;

/// A complete snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The log from this segment on is what it lacks.
    pub segment: SegmentId,
    /// Size of its file.
    pub bytes: u64,
}

/// What a record of a snapshot holds, for the report should it be damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Series.
    pub series: u64,
    /// Samples.
    pub samples: u64,
    /// Time of the oldest sample; beyond `max_time` when there is none.
    pub min_time: TimestampMs,
    /// Time of the newest one.
    pub max_time: TimestampMs,
}

impl Default for Held {
    fn default() -> Self {
        Self::NOTHING
    }
}

impl Held {
    /// Nothing.
    pub const NOTHING: Held = Held { series: 0, samples: 0, min_time: TimestampMs::MAX, max_time: TimestampMs::MIN };

    /// Adds what another record holds.
    pub fn add(&mut self, other: Held) {
        self.series += other.series;
        self.samples += other.samples;
        self.min_time = self.min_time.min(other.min_time);
        self.max_time = self.max_time.max(other.max_time);
    }
}

/// What lives as long as a snapshot is kept: it keeps files that the snapshot refers to.
pub type Keep = Box<dyn Any + Send + Sync>;

/// A snapshot being written. Dropping it gives it up.
pub struct SnapshotWriter {
    disk: Arc<dyn Disk>,
    segment: SegmentId,
    /// `None` once it is complete.
    temporary: Option<PathBuf>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    buffer: Vec<u8>,
    /// Bytes of the file and the buffer.
    len: u64,
    unsynced: u64,
    /// Payloads of the index, all but the last full.
    index: Vec<Vec<u8>>,
    records: u64,
    held: Held,
    /// The heads' states, which are written at both ends: without its head's definition no record is of use.
    heads: Vec<(HeadId, Vec<u8>)>,
}

impl SnapshotWriter {
    /// The log from this segment on is what the snapshot lacks.
    pub fn segment(&self) -> SegmentId {
        self.segment
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Adds a record of a head. `payload` begins with the position up to which it holds everything, unless it is metadata.
    pub fn record(&mut self, kind: FrameKind, head: HeadId, payload: &[u8], held: Held) -> Result<(), WalError> {
        if payload.len() > MAX_PAYLOAD {
            let text = format!("a record of the snapshot is larger than {MAX_PAYLOAD} bytes");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text).into());
        }
        if self.index.last().is_none_or(|last| last.len() >= TARGET_PAYLOAD) {
            self.index.push(Vec::new());
        }
        if let Some(index) = self.index.last_mut() {
            put_uvarint(index, self.len);
            put_uvarint(index, u64::from(head.0));
            put_uvarint(index, held.series);
            put_uvarint(index, held.samples);
            put_varint(index, held.min_time);
            put_varint(index, held.max_time);
        }
        self.records += 1;
        self.held.add(held);
        self.frame(kind, head, payload)
    }

    fn frame(&mut self, kind: FrameKind, head: HeadId, payload: &[u8]) -> Result<(), WalError> {
        let before = self.buffer.len();
        put_frame(&mut self.buffer, snapshot_id(self.segment), kind, false, head, payload);
        self.len += (self.buffer.len() - before) as u64;
        if self.buffer.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), WalError> {
        self.file.append(&self.buffer)?;
        self.unsynced += self.buffer.len() as u64;
        self.buffer.clear();
        if self.unsynced >= SYNC_BYTES {
            self.file.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    fn put_heads(&mut self) -> Result<(), WalError> {
        let heads = std::mem::take(&mut self.heads);
        for (head, state) in &heads {
            self.record(FrameKind::Head, *head, state, Held::NOTHING)?;
        }
        self.heads = heads;
        Ok(())
    }

    fn complete(&mut self, files: &[u32]) -> Result<(), WalError> {
        self.put_heads()?;
        let mut payload = Vec::new();
        put_uvarint(&mut payload, files.len() as u64);
        files.iter().for_each(|file| put_uvarint(&mut payload, u64::from(*file)));
        self.frame(FrameKind::SnapshotFiles, HeadId(0), &payload)?;
        for payload in std::mem::take(&mut self.index) {
            self.frame(FrameKind::SnapshotIndex, HeadId(0), &payload)?;
        }
        let mut end = Vec::new();
        put_uvarint(&mut end, self.records);
        put_uvarint(&mut end, self.held.series);
        put_uvarint(&mut end, self.held.samples);
        self.frame(FrameKind::SnapshotEnd, HeadId(0), &end)?;
        self.write()?;
        self.file.sync()?;
        if let Some(temporary) = &self.temporary {
            self.disk.rename(temporary, &self.path)?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // One that stays is removed at the next start.
            let _ = self.disk.remove_file(temporary);
        }
    }
}

impl Wal {
    /// The complete snapshots, ascending.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.state.lock().ledger.snapshots.clone()
    }

    /// Bytes of the log that the newest snapshot lacks.
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.state.lock().ledger.bytes_since_snapshot()
    }

    /// Up to here the log holds what was committed; what is committed from now on comes later.
    pub fn position(&self) -> Position {
        self.state.lock().position()
    }

    /// Begins a snapshot: the log moves on to another segment, with definitions of its own. One is written at a time.
    pub fn begin_snapshot(&self) -> Result<SnapshotWriter, WalError> {
        let (segment, heads) = {
            let mut state = self.state.lock();
            self.rotate(&mut state);
            (state.segment(), state.ledger.heads())
        };
        let path = self.dir.join(snapshot_name(segment));
        let temporary = self.dir.join(format!("{}{TEMPORARY}", snapshot_name(segment)));
        let file = self.disk.create(&temporary)?;
        let mut writer = SnapshotWriter {
            disk: self.disk.clone(),
            segment,
            temporary: Some(temporary),
            path,
            file,
            buffer: snapshot_header(segment).to_vec(),
            len: 0,
            unsynced: 0,
            index: Vec::new(),
            records: 0,
            held: Held::NOTHING,
            heads: heads.iter().map(|(head, state)| (*head, encode_head(state))).collect(),
        };
        writer.len = writer.buffer.len() as u64;
        writer.put_heads()?;
        Ok(writer)
    }

    /// Declares the snapshot complete, once it is on the disk, and frees what it makes superfluous. It refers to `files`,
    /// which `keep` keeps, and which are on the disk.
    pub fn finish_snapshot(&self, mut writer: SnapshotWriter, files: &[u32], keep: Keep) -> Result<Snapshot, WalError> {
        // What the records lack must be no further behind than the log that has it.
        self.sync()?;
        writer.complete(files)?;
        self.disk.sync_dir(&self.dir).inspect_err(|_| {
            // Nobody keeps what it refers to.
            let _ = self.disk.remove_file(&writer.path);
        })?;
        let snapshot = Snapshot { segment: writer.segment, bytes: writer.len };
        let superfluous: Vec<(Snapshot, Option<Keep>)> = {
            let ledger = &mut self.state.lock().ledger;
            ledger.snapshots.push(snapshot);
            ledger.keeps.insert(snapshot.segment, keep);
            ledger.let_log_begin();
            let from = ledger.snapshots.len().saturating_sub(KEPT);
            let old: Vec<Snapshot> = ledger.snapshots.drain(..from).collect();
            old.into_iter().map(|old| (old, ledger.keeps.remove(&old.segment))).collect()
        };
        for (old, keep) in superfluous {
            // One that stays is removed at the next start; it is not one of the newest, so nobody asks for what it kept.
            let _ = self.disk.remove_file(&self.dir.join(snapshot_name(old.segment)));
            drop(keep);
        }
        self.free_segments();
        Ok(snapshot)
    }

    /// Moves on to a segment that nothing has been written to, and that no snapshot is named after.
    fn rotate(&self, state: &mut MutexGuard<'_, State>) {
        while state.is_leading() {
            self.group_done.wait(state);
        }
        let segment = state.segment();
        if state.is_open() || state.ledger.snapshots.last().is_some_and(|newest| newest.segment == segment) {
            state.close_segment();
            self.group_done.notify_all();
        }
    }
}

const PREFIX: &str = "snapshot-";
/// What the name of an unfinished one ends in.
pub(super) const TEMPORARY: &str = ".tmp";

/// The file name of a snapshot.
pub(super) fn snapshot_name(segment: SegmentId) -> String {
    format!("{PREFIX}{:010}", segment.0)
}

/// The segment that follows the snapshot of this name.
pub(super) fn parse_snapshot_name(name: &str) -> Option<SegmentId> {
    let digits = name.strip_prefix(PREFIX)?;
    let canonical = digits.len() >= 10 && digits.bytes().all(|b| b.is_ascii_digit());
    canonical.then(|| digits.parse().ok().map(SegmentId)).flatten()
}

/// Whether the name is that of a snapshot nobody finished.
pub(super) fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(TEMPORARY).is_some_and(|name| parse_snapshot_name(name).is_some())
}
