//! Group commit: who finds nobody writing becomes the leader and writes for all who wait.
//!
//! A group's life: commits join `pending` while a leader writes → the leader finishes and wakes everybody → one of the
//! waiting commits takes `pending` whole, leads, writes it with one append → the group's result is set for all of it.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use parking_lot::MutexGuard;

use super::frame::{FrameKind, MAX_PAYLOAD, put_frame, segment_header};
use super::ledger::{Change, Entry, Ledger, encode_head};
use super::{CommitError, Durability, Generation, HeadId, Lsn, Position, SegmentId, Wal, WalBatch, WalError, WalStats};
use crate::disk::DiskFile;

/// Failed syncs that are remembered; older ones merge.
const MAX_FAILED_SYNCS: usize = 64;

/// The part of the log its lock protects.
pub(super) struct State {
    /// The segment being written, or to be created by the next leader when `open` is `None`.
    segment: SegmentId,
    open: Option<OpenSegment>,
    /// Whether a leader is at work.
    leading: bool,
    pending: Pending,
    written: Lsn,
    synced: Lsn,
    /// Ranges whose sync failed, ascending.
    failed_syncs: Vec<Range<u64>>,
    /// Closed segments that still need an fsync.
    unsynced: Vec<Arc<dyn DiskFile>>,
    directory_changed: bool,
    pub(super) ledger: Ledger,
}

#[derive(Clone)]
struct OpenSegment {
    file: Arc<dyn DiskFile>,
    /// Length up to which all is well.
    len: u64,
    definition_bytes: u64,
}

/// Commits that wait for a leader.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    group: Arc<Group>,
}

#[derive(Default)]
struct Group {
    result: OnceLock<Result<Lsn, CommitError>>,
}

impl State {
    /// `unsynced` are segments of an earlier process.
    pub(super) fn new(segment: SegmentId, ledger: Ledger, unsynced: Vec<Arc<dyn DiskFile>>) -> Self {
        Self {
            segment,
            open: None,
            leading: false,
            pending: Pending::default(),
            written: Lsn(0),
            synced: Lsn(0),
            failed_syncs: Vec::new(),
            unsynced,
            directory_changed: false,
            ledger,
        }
    }

    pub(super) fn segment(&self) -> SegmentId {
        self.segment
    }

    pub(super) fn is_leading(&self) -> bool {
        self.leading
    }

    /// Where what is written next will stand, or before it.
    pub(super) fn position(&self) -> Position {
        Position { segment: self.segment, offset: self.open.as_ref().map_or(0, |open| open.len) }
    }

    /// Whether the segment's file is there.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn stats(&self) -> WalStats {
        let (segments, bytes) = self.ledger.totals();
        WalStats { segments, bytes, written: self.written, synced: self.synced }
    }

    /// Leaves the open segment for good. Commits encoded for it must be encoded again.
    pub(super) fn close_segment(&mut self) {
        if let Some(open) = self.open.take() {
            self.unsynced.push(open.file);
        }
        self.segment = SegmentId(self.segment.0 + 1);
        if !self.pending.entries.is_empty() {
            let stale = std::mem::take(&mut self.pending);
            let _ = stale.group.result.set(Err(CommitError::Rotated));
        }
    }
}

impl Wal {
    /// Appends the batch; when this returns `Ok`, it survives the process. On an error nothing of it is in the log.
    pub fn commit(&self, batch: &mut WalBatch) -> Result<Lsn, CommitError> {
        batch.finish();
        if batch.oversize {
            let text = format!("a record is larger than {MAX_PAYLOAD} bytes");
            return Err(WalError::from(io::Error::new(io::ErrorKind::InvalidInput, text)).into());
        }
        let newest = batch.newest.map(|t| (batch.generation, t));
        let definition_bytes = batch.definition_bytes;
        let entry = Entry { head: batch.head, newest, definition_bytes, change: None };
        self.commit_bytes(batch.segment, &batch.bytes, entry)
    }

    /// Logs a head's change of state.
    pub(super) fn commit_change(&self, head: HeadId, change: Change) -> Result<Lsn, WalError> {
        let mut batch = WalBatch::default();
        loop {
            self.begin(&mut batch, head, Generation(0));
            match &change {
                Change::Defined(state) => {
                    let payload = encode_head(state);
                    put_frame(&mut batch.bytes, batch.segment, FrameKind::Head, false, head, &payload);
                }
                Change::Dropped => {
                    put_frame(&mut batch.bytes, batch.segment, FrameKind::HeadDropped, false, head, &[]);
                }
                Change::CutBegun(cut) => batch.cut_begun(cut.generation, cut.up_to),
                Change::CutDone(cut) => batch.cut_done(cut.generation, cut.up_to),
            }
            let entry = Entry { head, newest: None, definition_bytes: 0, change: Some(change.clone()) };
            match self.commit_bytes(batch.segment, &batch.bytes, entry) {
                Err(CommitError::Rotated) => {}
                Err(CommitError::Wal(error)) => return Err(error),
                Ok(lsn) => return Ok(lsn),
            }
        }
    }

    fn commit_bytes(&self, segment: SegmentId, bytes: &[u8], entry: Entry) -> Result<Lsn, CommitError> {
        let mut state = self.state.lock();
        if segment != state.segment {
            return Err(CommitError::Rotated);
        }
        if bytes.is_empty() {
            return Ok(state.written);
        }
        if !state.leading && state.pending.entries.is_empty() {
            // Nobody to share with: write straight from the caller's buffer.
            return self.lead(&mut state, bytes, &[entry]);
        }
        state.pending.bytes.extend_from_slice(bytes);
        state.pending.entries.push(entry);
        let group = state.pending.group.clone();
        loop {
            if let Some(result) = group.result.get() {
                return result.clone();
            }
            if !state.leading {
                // The group is still the pending one: only leaders take it, and they set its result.
                let pending = std::mem::take(&mut state.pending);
                let result = self.lead(&mut state, &pending.bytes, &pending.entries);
                let _ = pending.group.result.set(result.clone());
                self.group_done.notify_all();
                return result;
            }
            self.group_done.wait(&mut state);
        }
    }

    /// Writes one group; the lock is released during I/O. Wakes the commits that gathered meanwhile.
    fn lead(&self, state: &mut MutexGuard<'_, State>, bytes: &[u8], entries: &[Entry]) -> Result<Lsn, CommitError> {
        state.leading = true;
        let result = self.append_group(state, bytes, entries);
        state.leading = false;
        self.group_done.notify_all();
        result.map_err(CommitError::Wal)
    }

    fn append_group(
        &self,
        state: &mut MutexGuard<'_, State>,
        bytes: &[u8],
        entries: &[Entry],
    ) -> Result<Lsn, WalError> {
        let segment = state.segment;
        let open = match &state.open {
            Some(open) => open.clone(),
            None => self.create_segment(state)?,
        };
        let written = MutexGuard::unlocked(state, || match open.file.append(bytes) {
            Ok(()) => Ok(()),
            Err(error) => Err((error, open.file.truncate(open.len))),
        });
        if let Err((error, repaired)) = written {
            if repaired.is_err() {
                // The half-written group cannot be removed: leave it as the closed segment's torn tail.
                state.close_segment();
            }
            return Err(error.into());
        }
        let len = open.len + bytes.len() as u64;
        let mut definition_bytes = open.definition_bytes;
        for entry in entries {
            definition_bytes += entry.definition_bytes as u64;
            state.ledger.apply(segment, entry);
        }
        state.ledger.set_bytes(segment, len);
        state.written = Lsn(state.written.0 + bytes.len() as u64);
        // Still the same segment: nobody closes it under a leader.
        if let Some(open) = &mut state.open {
            (open.len, open.definition_bytes) = (len, definition_bytes);
            if self.is_full(len, definition_bytes) {
                state.close_segment();
            }
        }
        Ok(state.written)
    }

    fn is_full(&self, len: u64, definition_bytes: u64) -> bool {
        let limit = self.options.segment_bytes;
        let hard_limit = limit.saturating_mul(super::WalOptions::HARD_LIMIT_FACTOR);
        len >= hard_limit || (len >= limit && definition_bytes <= len / 4)
    }

    /// Creates the file of `state.segment`, header and prologue written.
    fn create_segment(&self, state: &mut MutexGuard<'_, State>) -> Result<OpenSegment, WalError> {
        let segment = state.segment;
        let mut start = segment_header(segment).to_vec();
        state.ledger.prologue(segment, &mut start);
        let path = self.dir.join(segment_name(segment));
        let created = MutexGuard::unlocked(state, || -> io::Result<Arc<dyn DiskFile>> {
            let file = self.disk.create(&path)?;
            file.append(&start).inspect_err(|_| {
                // What is left is an empty or torn segment, which recovery tolerates.
                let _ = self.disk.remove_file(&path);
            })?;
            Ok(file)
        });
        let open = OpenSegment { file: created?, len: start.len() as u64, definition_bytes: 0 };
        state.ledger.set_bytes(segment, open.len);
        state.open = Some(open.clone());
        state.directory_changed = true;
        Ok(open)
    }

    /// Makes everything committed so far survive a power cut; returns the position up to which that holds.
    ///
    /// After a failed fsync the kernel may have dropped the pages, so trying the same file again would prove nothing:
    /// the commits it covered are [`Durability::Failed`], and the log moves on to a new segment.
    pub fn sync(&self) -> Result<Lsn, WalError> {
        let _one_at_a_time = self.syncing.lock();
        let mut state = self.state.lock();
        let (from, to) = (state.synced, state.written);
        let mut files = std::mem::take(&mut state.unsynced);
        if from != to {
            files.extend(state.open.as_ref().map(|open| open.file.clone()));
        }
        let directory_changed = std::mem::take(&mut state.directory_changed);
        drop(state);
        let mut outcome = files.iter().try_for_each(|file| file.sync());
        if directory_changed {
            outcome = outcome.and_then(|()| self.disk.sync_dir(&self.dir));
        }
        let mut state = self.state.lock();
        state.synced = to;
        if let Err(error) = outcome {
            state.failed_syncs.push(from.0..to.0);
            if state.failed_syncs.len() > MAX_FAILED_SYNCS {
                let oldest = state.failed_syncs.remove(0);
                state.failed_syncs[0].start = oldest.start;
            }
            state.directory_changed |= directory_changed;
            // A leader at work keeps its file; what it is writing now is synced by the next call.
            if state.open.is_some() && !state.leading {
                state.close_segment();
                self.group_done.notify_all();
            }
            return Err(error.into());
        }
        Ok(to)
    }

    /// Position up to which [`Wal::sync`] has been through; see [`Wal::durability`] for syncs that failed.
    pub fn synced_lsn(&self) -> Lsn {
        self.state.lock().synced
    }

    /// Whether the commit that returned `lsn` would survive a power cut.
    pub fn durability(&self, lsn: Lsn) -> Durability {
        let state = self.state.lock();
        if lsn > state.synced {
            return Durability::Pending;
        }
        // A commit ends at its position, so the failed range holds it when `start < lsn <= end`.
        let failed = state.failed_syncs.iter().any(|range| range.start < lsn.0 && lsn.0 <= range.end);
        if failed { Durability::Failed } else { Durability::Durable }
    }

    /// Removes the segments that hold nothing anybody needs. Works on a full disk.
    pub(super) fn free_segments(&self) {
        let freeable = {
            let state = self.state.lock();
            state.ledger.freeable(state.segment)
        };
        // What says that they are not needed must outlive them; without that they wait for the next cut.
        if freeable.is_empty() || self.sync().is_err() {
            return;
        }
        {
            let mut state = self.state.lock();
            freeable.iter().for_each(|segment| state.ledger.forget(*segment));
        }
        // So that recovery can tell a freed segment from a lost one; without space for it, recovery just mentions them.
        let _ = self.log_segments();
        let _ = self.sync();
        for segment in freeable {
            // A file that stays is found and freed again by the next recovery.
            let _ = self.disk.remove_file(&self.dir.join(segment_name(segment)));
        }
    }

    fn log_segments(&self) -> Result<Lsn, CommitError> {
        loop {
            let (segment, mut bytes) = (self.state.lock().segment, Vec::new());
            self.state.lock().ledger.put_segments(segment, &mut bytes);
            let entry = Entry { head: HeadId(0), newest: None, definition_bytes: 0, change: None };
            match self.commit_bytes(segment, &bytes, entry) {
                Err(CommitError::Rotated) => {}
                result => return result,
            }
        }
    }
}

/// The file name of a segment.
pub(super) fn segment_name(segment: SegmentId) -> String {
    format!("{:010}.wal", segment.0)
}

/// The segment a file name stands for.
pub(super) fn parse_segment_name(name: &str) -> Option<SegmentId> {
    let digits = Path::new(name).file_stem()?.to_str()?;
    let canonical = digits.len() >= 10 && digits.bytes().all(|b| b.is_ascii_digit()) && name.ends_with(".wal");
    canonical.then(|| digits.parse().ok().map(SegmentId)).flatten()
}
