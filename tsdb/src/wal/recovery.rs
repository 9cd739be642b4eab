//! Reading the log back at start: what is sound is replayed, what is not is skipped and reported.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use skald_model::TimestampMs;
use skald_model::varint::get_uvarint;

use super::commit::{State, parse_segment_name, segment_name};
use super::frame::{FrameInfo, FrameKind, Scanned, Scanner};
use super::ledger::Ledger;
use super::read::{Event, Frame, Reader, SegmentFile, Stretch, StretchSize};
use super::restore::{Restored, SnapshotReport};
use super::snapshot::{KEPT, is_unfinished, parse_snapshot_name, snapshot_name};
use super::{Cut, Generation, HeadId, HeadState, Held, Keep, Position, Record, SegmentId, Wal, WalError, WalOptions};
use crate::Workers;
use crate::disk::Disk;

/// Places of damage that a report names; beyond that only the counts grow.
const MAX_NAMED: usize = 1000;

/// Receives the log in the order in which it was written.
pub trait Replay {
    /// A segment begins: the series refs of the one before are void.
    fn segment(&mut self, segment: SegmentId) {
        let _ = segment;
    }
    /// Comes first: which chunk files each of the kept snapshots refers to, `None` when that is unknown. Files that none
    /// refers to hold nothing of use. Returns what keeps the files, for each snapshot.
    fn keep_files(&mut self, of_snapshots: &[Option<Vec<u32>>]) -> Vec<Keep> {
        of_snapshots.iter().map(|_| Box::new(()) as Keep).collect()
    }
    /// What comes next in the segment, or in a snapshot.
    fn stretch(&mut self, replayed: Vec<Replayed<'_>>, workers: &dyn Workers) -> Missed;
    /// Series there are by now; more of the log is read at a time when there are many.
    fn series(&self) -> usize {
        0
    }
    /// How far the reading is.
    fn progress(&mut self, bytes_done: u64, bytes_total: u64) {
        let _ = (bytes_done, bytes_total);
    }
}

/// What a stretch of the log or a snapshot should have brought, and did not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missed {
    /// Samples without a series definition, by head.
    pub undefined: BTreeMap<HeadId, Held>,
    /// Records that make no sense despite a sound checksum.
    pub malformed: u64,
    /// Chunks in files that cannot be read.
    pub unreadable_chunks: u64,
}

impl Missed {
    /// Notes samples of a head without a series definition.
    pub fn undefined(&mut self, head: HeadId, held: Held) {
        if held.samples > 0 {
            self.undefined.entry(head).or_default().add(held);
        }
    }
}

impl std::ops::AddAssign for Missed {
    fn add_assign(&mut self, other: Self) {
        other.undefined.into_iter().for_each(|(head, held)| self.undefined(head, held));
        self.malformed += other.malformed;
        self.unreadable_chunks += other.unreadable_chunks;
    }
}

/// A part of a stretch of the log.
pub enum Replayed<'a> {
    /// A head's state at this place of the log: comes before its first record, and again with every new segment.
    Head {
        /// Which head.
        head: HeadId,
        /// Its state.
        state: HeadState,
        /// What blocks hold already.
        done: Cut,
    },
    /// A record of a head.
    Record {
        /// Whose.
        head: HeadId,
        /// Where it begins.
        position: Position,
        /// What.
        record: Record<'a>,
    },
    /// A part of a snapshot, which holds all that the log says of it before a position.
    Restored {
        /// Whose.
        head: HeadId,
        /// What stands in the log from here on is not in it.
        position: Position,
        /// What.
        part: Restored<'a>,
    },
    /// The head is gone.
    Dropped {
        /// Which.
        head: HeadId,
    },
}

/// Bytes of a segment that are not in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// Where.
    pub segment: SegmentId,
    /// Offset in the segment's file.
    pub offset: u64,
    /// Length.
    pub len: u64,
    /// What the record was, when its header is intact.
    pub record: Option<FrameInfo>,
}

/// What recovery found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Snapshots read, the newest first.
    pub snapshots: Vec<SnapshotReport>,
    /// Segments read.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Sound records.
    pub records: u64,
    /// Ends of segments cut off because no record stands there: an append that a crash interrupted.
    pub torn_tails: Vec<Damage>,
    /// Damaged places with sound records behind them (the first thousand).
    pub damaged: Vec<Damage>,
    /// Bytes in damaged places, the unnamed ones included.
    pub damaged_bytes: u64,
    /// Segments that should exist and do not.
    pub missing_segments: Vec<SegmentId>,
    /// Segments whose file could not be read, and why. They are left as they are.
    pub unreadable: Vec<(SegmentId, String)>,
    /// Samples whose series definition was lost.
    pub undefined_samples: u64,
    /// The same by head.
    pub undefined: BTreeMap<HeadId, Held>,
    /// Records of heads whose definition was lost, or that make no sense despite a sound checksum.
    pub orphan_records: u64,
}

impl RecoveryReport {
    /// Takes over what a stretch missed, but for its chunks.
    pub(super) fn note_missed(&mut self, missed: Missed) {
        self.orphan_records += missed.malformed;
        for (head, held) in missed.undefined {
            self.undefined_samples += held.samples;
            self.undefined.entry(head).or_default().add(held);
        }
    }

    /// Whether anything acknowledged may be missing. A torn tail alone is what every crash leaves.
    pub fn lost_something(&self) -> bool {
        self.damaged_bytes > 0
            || self.snapshots.iter().any(|snapshot| !snapshot.supplied)
            || !self.missing_segments.is_empty()
            || !self.unreadable.is_empty()
            || self.undefined_samples > 0
            || self.orphan_records > 0
    }
}

pub(super) struct Recovery<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) dir: &'a Path,
    pub(super) replay: &'a mut dyn Replay,
    pub(super) workers: &'a dyn Workers,
    pub(super) report: RecoveryReport,
    /// The state the log ends in, found by a first look at its end.
    last: Ledger,
    /// What will be the log's ledger.
    pub(super) ledger: Ledger,
    gone: BTreeSet<HeadId>,
    introduced: BTreeSet<HeadId>,
    /// The newest list of segments in the log.
    listed: Vec<SegmentId>,
    /// The next segment's number.
    next: u64,
    bytes_done: u64,
    bytes_total: u64,
}

impl Wal {
    /// Opens the log in `dir` (created if need be) and replays what it holds with the help of `workers`, one stretch of
    /// some megabytes in memory while the next is read.
    ///
    /// Damage is never a reason to fail: only a directory that cannot be created or listed is. Nothing has to be written,
    /// so a full disk does not keep a process from starting.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: WalOptions,
        replay: &mut dyn Replay,
        workers: &dyn Workers,
    ) -> Result<(Wal, RecoveryReport), WalError> {
        if !disk.exists(dir) {
            disk.create_dir_all(dir)?;
        }
        let mut report = RecoveryReport::default();
        let (mut segments, mut snapshots) = (Vec::new(), Vec::new());
        let mut next = 1;
        for entry in disk.list(dir)? {
            let path = dir.join(&entry.name);
            if is_unfinished(&entry.name) {
                let _ = disk.remove_file(&path);
            }
            let (id, files) = match (parse_segment_name(&entry.name), parse_snapshot_name(&entry.name)) {
                (Some(id), _) => (id, &mut segments),
                (None, Some(id)) => (id, &mut snapshots),
                (None, None) => continue,
            };
            next = next.max(id.0.saturating_add(1));
            match disk.open(&path).and_then(|file| Ok((file.len()?, file))) {
                Ok((len, file)) => files.push(SegmentFile { id, file, len }),
                Err(error) => report.unreadable.push((id, error.to_string())),
            }
        }
        segments.sort_by_key(|segment| segment.id);
        snapshots.sort_by_key(|snapshot| snapshot.id);
        for old in snapshots.drain(..snapshots.len().saturating_sub(KEPT)) {
            let _ = disk.remove_file(&dir.join(snapshot_name(old.id)));
        }
        let newest = snapshots.last().map_or(SegmentId(0), |newest| newest.id);
        let to_be_read = segments.iter().filter(|segment| segment.id >= newest).chain(snapshots.last());
        let mut recovery = Recovery {
            disk: disk.as_ref(),
            dir,
            bytes_total: to_be_read.map(|file| file.len).sum(),
            replay,
            workers,
            report,
            last: Ledger::default(),
            ledger: Ledger::default(),
            gone: BTreeSet::new(),
            introduced: BTreeSet::new(),
            listed: Vec::new(),
            next,
            bytes_done: 0,
        };
        recovery.look_at_the_end(&segments);
        // What a process wrote before it was killed may not be on the disk yet; the next sync sees to that.
        let unsynced = segments.iter().map(|segment| segment.file.clone()).collect();
        let there: BTreeSet<SegmentId> = segments.iter().map(|segment| segment.id).collect();
        let from = recovery.restore(snapshots)?;
        recovery.read_segments(segments, from);
        recovery.find_missing(&there);
        recovery.judge_snapshots();
        let next = recovery.listed.iter().fold(recovery.next, |next, id| next.max(id.0.saturating_add(1)));
        let Recovery { report, ledger, .. } = recovery;
        let wal = Wal {
            disk,
            dir: dir.to_owned(),
            options,
            state: Mutex::new(State::new(SegmentId(next), ledger, unsynced)),
            group_done: Condvar::new(),
            syncing: Mutex::new(()),
        };
        wal.free_segments();
        Ok((wal, report))
    }
}

impl Recovery<'_> {
    /// Learns from the newest segments which heads are left and what their blocks hold, so that replay can skip it.
    fn look_at_the_end(&mut self, segments: &[SegmentFile]) {
        for segment in segments.iter().rev().take(2) {
            self.learn_heads(segment);
        }
    }

    /// Learns which heads a segment or snapshot knows.
    pub(super) fn learn_heads(&mut self, segment: &SegmentFile) {
        let mut heads = BTreeMap::<HeadId, HeadState>::new();
        let Ok(mut scanner) = Scanner::new(segment.file.clone(), segment.id) else { return };
        while let Ok(scanned) = scanner.next_of(&[FrameKind::Head, FrameKind::HeadDropped, FrameKind::CutDone]) {
            match scanned {
                Scanned::Frame { kind: FrameKind::Head, head, payload, .. } => {
                    if let Some(state) = HeadState::parse(payload) {
                        heads.insert(head, state);
                    }
                }
                Scanned::Frame { kind: FrameKind::HeadDropped, head, .. } => drop(self.gone.insert(head)),
                Scanned::Frame { kind: FrameKind::CutDone, head, payload, .. } => {
                    if let (Some(Record::CutDone(cut)), Some(state)) =
                        (Record::parse(FrameKind::CutDone, payload), heads.get_mut(&head))
                    {
                        state.done = cut;
                    }
                }
                Scanned::Frame { .. } | Scanned::Damage { .. } => {}
                Scanned::TornTail { .. } | Scanned::End => break,
            }
        }
        heads.iter().for_each(|(head, state)| self.last.restore(*head, state));
    }

    /// Keeps a segment's number from being given out.
    pub(super) fn note_segment(&mut self, segment: SegmentId) {
        self.next = self.next.max(segment.0.saturating_add(1));
    }

    /// Tells how far the reading is, after so many more bytes.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.bytes_done += bytes;
        self.bytes_total = self.bytes_total.max(self.bytes_done);
        self.replay.progress(self.bytes_done, self.bytes_total);
    }

    /// Whether a head was dropped.
    pub(super) fn is_gone(&self, head: HeadId) -> bool {
        self.gone.contains(&head)
    }

    /// Reads the segments from `from` on; the others are kept for the day when a snapshot is damaged.
    fn read_segments(&mut self, mut segments: Vec<SegmentFile>, from: SegmentId) {
        for skipped in segments.extract_if(.., |segment| segment.id < from) {
            self.ledger.skip(skipped.id, skipped.len);
        }
        for segment in &segments {
            self.ledger.set_bytes(segment.id, segment.len);
            self.report.segments += 1;
            self.report.bytes += segment.len;
        }
        let mut reader = Reader::new(segments);
        let (mut current, mut ahead) = (Stretch::default(), Stretch::default());
        let mut more = reader.read(StretchSize::of_log(self.replay.series()), &mut current);
        while more {
            let (workers, size) = (self.workers, StretchSize::of_log(self.replay.series()));
            let mut read_ahead = || more = reader.read(size, &mut ahead);
            workers.alongside(&mut read_ahead, &mut || self.stretch(&current));
            std::mem::swap(&mut current, &mut ahead);
        }
    }

    fn stretch(&mut self, stretch: &Stretch) {
        let segment = stretch.segment;
        if stretch.begins {
            self.replay.segment(segment);
        }
        let mut replayed = Vec::with_capacity(stretch.events.len());
        for event in &stretch.events {
            match event {
                Event::Frame(frame) => {
                    self.report.records += 1;
                    self.frame(segment, frame, &stretch.bytes[frame.payload.clone()], &mut replayed);
                }
                Event::Damage(damage) => self.damage(*damage),
                Event::TornTail(tail) => self.cut_tail(*tail),
                Event::Unreadable(error) => {
                    self.report.unreadable.push((segment, error.clone()));
                    // Unknown to the ledger, it is never freed.
                    self.ledger.forget(segment);
                }
            }
        }
        let missed = self.replay.stretch(replayed, self.workers);
        self.report.note_missed(missed);
        self.advance(stretch.file_bytes);
    }

    fn damage(&mut self, damage: Damage) {
        self.report.damaged_bytes += damage.len;
        if self.report.damaged.len() < MAX_NAMED {
            self.report.damaged.push(damage);
        }
    }

    /// Takes the torn end off the file, so that it is reported once. Nobody appends to it, so failing is harmless.
    fn cut_tail(&mut self, tail: Damage) {
        self.report.torn_tails.push(tail);
        let path = self.dir.join(segment_name(tail.segment));
        let _ = self.disk.open_writable(&path).and_then(|file| file.truncate(tail.offset));
        self.ledger.set_bytes(tail.segment, tail.offset);
    }

    fn frame<'a>(&mut self, segment: SegmentId, frame: &Frame, payload: &'a [u8], replayed: &mut Vec<Replayed<'a>>) {
        let (kind, head) = (frame.kind, frame.head);
        match kind {
            FrameKind::Segments => self.listed = parse_segments(payload),
            FrameKind::LogBegins => {
                if let Some(begins) = get_uvarint(payload, &mut 0) {
                    self.ledger.begun_at(SegmentId(begins));
                }
            }
            FrameKind::HeadDropped => {
                self.ledger.reserve(head);
                self.gone.insert(head);
                self.ledger.apply_dropped(head, segment);
                replayed.push(Replayed::Dropped { head });
            }
            _ if self.gone.contains(&head) => self.ledger.reserve(head),
            FrameKind::Head => match HeadState::parse(payload) {
                Some(state) => replayed.push(self.introduce(head, state)),
                None => self.report.orphan_records += 1,
            },
            _ => {
                if !self.is_introduced(head, replayed) {
                    return;
                }
                match Record::parse(kind, payload) {
                    Some(record) => {
                        self.record(segment, head, &record);
                        replayed.push(Replayed::Record {
                            head,
                            position: Position { segment, offset: frame.offset },
                            record,
                        });
                    }
                    None => self.report.orphan_records += 1,
                }
            }
        }
    }

    /// Introduces a head whose state at this place is damaged, if the end of the log has its definition.
    pub(super) fn is_introduced(&mut self, head: HeadId, replayed: &mut Vec<Replayed<'_>>) -> bool {
        if self.introduced.contains(&head) {
            return true;
        }
        let Some(last) = self.last.head(head) else {
            self.report.orphan_records += 1;
            return false;
        };
        let definition = last.definition.clone();
        let (generation, boundary) = (Generation(0), TimestampMs::MIN);
        let state = HeadState { definition, generation, boundary, done: Cut::NONE };
        replayed.push(self.introduce(head, state));
        true
    }

    pub(super) fn introduce<'a>(&mut self, head: HeadId, state: HeadState) -> Replayed<'a> {
        self.introduced.insert(head);
        self.ledger.restore(head, &state);
        let done = self.last.head(head).map_or(state.done, |last| last.done);
        Replayed::Head { head, state, done }
    }

    /// Brings the ledger up to date.
    fn record(&mut self, segment: SegmentId, head: HeadId, record: &Record<'_>) {
        match record {
            Record::Floats { generation, max_time, .. } | Record::Histograms { generation, max_time, .. } => {
                self.ledger.hold(segment, head, *generation, *max_time);
                // Only changes anything when the record of the cut's begin is lost.
                self.ledger.apply_cut_begun(head, Cut { generation: *generation, up_to: TimestampMs::MIN });
            }
            Record::CutBegun(cut) => self.ledger.apply_cut_begun(head, *cut),
            Record::CutDone(cut) => self.ledger.apply_cut_done(head, *cut),
            Record::Series(_) | Record::Exemplars(_) | Record::Metadata(_) => {}
        }
    }

    /// The newest list of segments against what is there: freeing logs a new list first.
    fn find_missing(&mut self, there: &BTreeSet<SegmentId>) {
        let unreadable: BTreeSet<SegmentId> = self.report.unreadable.iter().map(|(id, _)| *id).collect();
        let missing = self.listed.iter().filter(|id| !there.contains(id) && !unreadable.contains(id));
        self.report.missing_segments = missing.copied().collect();
    }
}

fn parse_segments(payload: &[u8]) -> Vec<SegmentId> {
    let mut at = 0;
    std::iter::from_fn(|| get_uvarint(payload, &mut at).map(SegmentId)).collect()
}
