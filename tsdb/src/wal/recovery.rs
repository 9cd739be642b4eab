//! Reading the log back at start: what is sound is replayed, what is not is skipped and reported.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use skald_model::TimestampMs;
use skald_model::varint::get_uvarint;

use super::commit::{State, parse_segment_name, segment_name};
use super::frame::{FrameKind, SEGMENT_HEADER_LEN, Scanned, Scanner, SegmentHeader, check_segment_header};
use super::ledger::Ledger;
use super::{Cut, Generation, HeadId, HeadState, Record, SegmentId, Wal, WalError, WalOptions};
use crate::disk::{Disk, DiskFile};

/// Places of damage that a report names; beyond that only the counts grow.
const MAX_NAMED: usize = 1000;

/// Receives the log in the order in which it was written.
pub trait Replay {
    /// A segment begins: the series refs of the one before are void.
    fn segment(&mut self, segment: SegmentId) {
        let _ = segment;
    }
    /// A head's state at this place of the log; called before its first record, and again with every new segment.
    /// Blocks already hold what `done` covers.
    fn head(&mut self, head: HeadId, state: &HeadState, done: Cut);
    /// The next record of a head. Returns how many of its samples had no series definition.
    fn record(&mut self, head: HeadId, record: Record<'_>) -> u64;
    /// How far the reading is.
    fn progress(&mut self, bytes_done: u64, bytes_total: u64) {
        let _ = (bytes_done, bytes_total);
    }
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
    pub kind: Option<FrameKind>,
}

/// What recovery found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
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
    /// Records of heads whose definition was lost, or that make no sense despite a sound checksum.
    pub orphan_records: u64,
}

impl RecoveryReport {
    /// Whether anything acknowledged may be missing. A torn tail alone is what every crash leaves.
    pub fn lost_something(&self) -> bool {
        self.damaged_bytes > 0
            || !self.missing_segments.is_empty()
            || !self.unreadable.is_empty()
            || self.undefined_samples > 0
            || self.orphan_records > 0
    }
}

struct SegmentFile {
    id: SegmentId,
    file: Arc<dyn DiskFile>,
    len: u64,
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    replay: &'a mut dyn Replay,
    report: RecoveryReport,
    /// The state the log ends in, found by a first look at its end.
    last: Ledger,
    /// What will be the log's ledger.
    ledger: Ledger,
    gone: BTreeSet<HeadId>,
    introduced: BTreeSet<HeadId>,
    /// The newest list of segments in the log.
    listed: Vec<SegmentId>,
    bytes_done: u64,
    bytes_total: u64,
}

impl Wal {
    /// Opens the log in `dir` (created if need be) and replays what it holds, one record in memory at a time.
    ///
    /// Damage is never a reason to fail: only a directory that cannot be created or listed is. Nothing has to be written,
    /// so a full disk does not keep a process from starting.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: WalOptions,
        replay: &mut dyn Replay,
    ) -> Result<(Wal, RecoveryReport), WalError> {
        if !disk.exists(dir) {
            disk.create_dir_all(dir)?;
        }
        let mut report = RecoveryReport::default();
        let mut segments = Vec::new();
        let mut next = 1;
        for entry in disk.list(dir)? {
            let Some(id) = parse_segment_name(&entry.name) else { continue };
            next = next.max(id.0.saturating_add(1));
            match disk.open(&dir.join(&entry.name)).and_then(|file| Ok((file.len()?, file))) {
                Ok((len, file)) => segments.push(SegmentFile { id, file, len }),
                Err(error) => report.unreadable.push((id, error.to_string())),
            }
        }
        segments.sort_by_key(|segment| segment.id);
        let mut recovery = Recovery {
            disk: disk.as_ref(),
            dir,
            replay,
            report,
            last: Ledger::default(),
            ledger: Ledger::default(),
            gone: BTreeSet::new(),
            introduced: BTreeSet::new(),
            listed: Vec::new(),
            bytes_done: 0,
            bytes_total: segments.iter().map(|segment| segment.len).sum(),
        };
        recovery.look_at_the_end(&segments);
        for segment in &segments {
            recovery.read_segment(segment);
        }
        recovery.find_missing(&segments);
        let next = recovery.listed.iter().fold(next, |next, id| next.max(id.0.saturating_add(1)));
        let Recovery { report, ledger, .. } = recovery;
        let wal = Wal {
            disk,
            dir: dir.to_owned(),
            options,
            state: Mutex::new(State::new(SegmentId(next), ledger)),
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
            let mut heads = BTreeMap::<HeadId, HeadState>::new();
            let Ok(mut scanner) = Scanner::new(segment.file.clone(), segment.id) else { continue };
            while let Ok(scanned) = scanner.next() {
                match scanned {
                    Scanned::Frame { kind: FrameKind::Head, head, payload } => {
                        if let Some(state) = HeadState::parse(payload) {
                            heads.insert(head, state);
                        }
                    }
                    Scanned::Frame { kind: FrameKind::HeadDropped, head, .. } => drop(self.gone.insert(head)),
                    Scanned::Frame { kind: FrameKind::CutDone, head, payload } => {
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
    }

    fn read_segment(&mut self, segment: &SegmentFile) {
        let read = self.try_read_segment(segment);
        if let Err(error) = read {
            self.report.unreadable.push((segment.id, error));
            // Unknown to the ledger, it is never freed.
            self.ledger.forget(segment.id);
        }
        self.bytes_done += segment.len;
        self.replay.progress(self.bytes_done, self.bytes_total);
    }

    fn try_read_segment(&mut self, segment: &SegmentFile) -> Result<(), String> {
        let id = segment.id;
        self.ledger.set_bytes(id, segment.len);
        self.report.segments += 1;
        self.report.bytes += segment.len;
        if segment.len == 0 {
            return Ok(());
        }
        let mut header = [0; SEGMENT_HEADER_LEN];
        let n = segment.file.read_at(&mut header, 0).map_err(|error| error.to_string())?;
        match check_segment_header(&header[..n], id) {
            SegmentHeader::Good => {}
            SegmentHeader::UnknownVersion(version) => {
                return Err(format!("format version {version} is unknown"));
            }
            // Frames carry the segment's id in their checksum, so they are found without the header.
            SegmentHeader::Damaged if segment.len > SEGMENT_HEADER_LEN as u64 => {
                self.damage(Damage { segment: id, offset: 0, len: SEGMENT_HEADER_LEN as u64, kind: None });
            }
            SegmentHeader::Damaged => {
                self.report.torn_tails.push(Damage { segment: id, offset: 0, len: segment.len, kind: None });
                return Ok(());
            }
        }
        self.replay.segment(id);
        let mut scanner = Scanner::new(segment.file.clone(), id).map_err(|error| error.to_string())?;
        let mut reported = 0;
        loop {
            match scanner.next().map_err(|error| error.to_string())? {
                Scanned::Frame { kind, head, payload } => {
                    self.report.records += 1;
                    self.frame(id, kind, head, payload);
                }
                Scanned::Damage { offset, len, kind } => self.damage(Damage { segment: id, offset, len, kind }),
                Scanned::TornTail { offset, len } => {
                    self.cut_tail(Damage { segment: id, offset, len, kind: None });
                    return Ok(());
                }
                Scanned::End => return Ok(()),
            }
            if scanner.offset() - reported >= 1 << 20 {
                reported = scanner.offset();
                self.replay.progress(self.bytes_done + reported, self.bytes_total);
            }
        }
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

    fn frame(&mut self, segment: SegmentId, kind: FrameKind, head: HeadId, payload: &[u8]) {
        match kind {
            FrameKind::Segments => self.listed = parse_segments(payload),
            FrameKind::HeadDropped => {
                self.ledger.reserve(head);
                self.gone.insert(head);
                self.ledger.apply_dropped(head);
            }
            _ if self.gone.contains(&head) => self.ledger.reserve(head),
            FrameKind::Head => match HeadState::parse(payload) {
                Some(state) => self.introduce(head, &state),
                None => self.report.orphan_records += 1,
            },
            _ => {
                if !self.introduced.contains(&head) {
                    // Its definition in this segment is damaged; the end of the log may have it.
                    let Some(last) = self.last.head(head) else {
                        self.report.orphan_records += 1;
                        return;
                    };
                    let definition = last.definition.clone();
                    let (generation, boundary) = (Generation(0), TimestampMs::MIN);
                    self.introduce(head, &HeadState { definition, generation, boundary, done: Cut::NONE });
                }
                match Record::parse(kind, payload) {
                    Some(record) => self.record(segment, head, record),
                    None => self.report.orphan_records += 1,
                }
            }
        }
    }

    fn introduce(&mut self, head: HeadId, state: &HeadState) {
        self.introduced.insert(head);
        self.ledger.restore(head, state);
        let done = self.last.head(head).map_or(state.done, |last| last.done);
        self.replay.head(head, state, done);
    }

    fn record(&mut self, segment: SegmentId, head: HeadId, record: Record<'_>) {
        match &record {
            Record::Floats { generation, max_time, .. } | Record::Histograms { generation, max_time, .. } => {
                self.ledger.hold(segment, head, *generation, *max_time);
                // Only changes anything when the record of the cut's begin is lost.
                self.ledger.apply_cut_begun(head, Cut { generation: *generation, up_to: TimestampMs::MIN });
            }
            Record::CutBegun(cut) => self.ledger.apply_cut_begun(head, *cut),
            Record::CutDone(cut) => self.ledger.apply_cut_done(head, *cut),
            Record::Series(_) | Record::Exemplars(_) | Record::Metadata(_) => {}
        }
        self.report.undefined_samples += self.replay.record(head, record);
    }

    /// The newest list of segments against what is there: freeing logs a new list first.
    fn find_missing(&mut self, segments: &[SegmentFile]) {
        let there: BTreeSet<SegmentId> = segments.iter().map(|segment| segment.id).collect();
        let unreadable: BTreeSet<SegmentId> = self.report.unreadable.iter().map(|(id, _)| *id).collect();
        let missing = self.listed.iter().filter(|id| !there.contains(id) && !unreadable.contains(id));
        self.report.missing_segments = missing.copied().collect();
    }
}

fn parse_segments(payload: &[u8]) -> Vec<SegmentId> {
    let mut at = 0;
    std::iter::from_fn(|| get_uvarint(payload, &mut at).map(SegmentId)).collect()
}
