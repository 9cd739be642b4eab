//! Reading snapshots back at start.
//!
//! The newest one is enough when it is whole, and the chunks are there that it refers to. Of one that is not, what is sound
//! is taken; the older one and the log from there have the rest. Every record says up to which position of the log it holds
//! everything, so nothing is taken twice.

use skald_model::TimestampMs;
use skald_model::varint::{get_uvarint, get_varint};

use super::frame::{FrameKind, SEGMENT_HEADER_LEN, Scanned, Scanner, SegmentHeader, check_segment_header, snapshot_id};
use super::read::{Event, Frame, Reader, SegmentFile, Stretch, StretchSize};
use super::recovery::Recovery;
use super::snapshot::{Held, Snapshot, snapshot_name};
use super::{HeadId, HeadState, Position, Record, Replayed, SegmentId, WalError};

/// A part of a snapshot; the bytes are the head's.
#[derive(Debug, Clone, Copy)]
pub enum Restored<'a> {
    /// Series with their chunks.
    Series(&'a [u8]),
    /// Exemplars.
    Exemplars(&'a [u8]),
}

/// What was found in a snapshot that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotReport {
    /// The log from this segment on is what it lacks.
    pub segment: SegmentId,
    /// Size of its file.
    pub bytes: u64,
    /// What its sound records hold.
    pub restored_records: u64,
    /// Offset and length of what is damaged.
    pub damaged: Vec<(u64, u64)>,
    /// What the damaged records held, as far as the snapshot's index tells, by head.
    pub damaged_records: Vec<(HeadId, Held)>,
    /// Chunks it refers to that cannot be read.
    pub unreadable_chunks: u64,
    /// The end is missing, or the index that tells what was damaged.
    pub incomplete: bool,
    /// Everything it lost was found in an older snapshot or the log.
    pub supplied: bool,
}

impl SnapshotReport {
    /// Whether all of it is sound, and all it refers to.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty() && !self.incomplete && self.unreadable_chunks == 0
    }

    /// What the damaged records held together.
    pub fn damaged_total(&self) -> Held {
        let mut total = Held::NOTHING;
        self.damaged_records.iter().for_each(|(_, held)| total.add(*held));
        total
    }
}

/// What is being learnt about a snapshot.
struct Reading {
    report: SnapshotReport,
    index: Vec<Indexed>,
    /// Number of records the end says there are.
    records: Option<u64>,
}

/// An entry of a snapshot's index.
struct Indexed {
    offset: u64,
    head: HeadId,
    held: Held,
}

impl Recovery<'_> {
    /// Restores what the snapshots hold, given ascending; returns the first segment of the log that has to be read.
    pub(super) fn restore(&mut self, snapshots: Vec<SegmentFile>) -> Result<SegmentId, WalError> {
        self.ledger.snapshots = snapshots.iter().map(|file| Snapshot { segment: file.id, bytes: file.len }).collect();
        // One that cannot be opened today may be wanted tomorrow.
        let unreadable: Vec<SegmentId> = self.report.unreadable.iter().map(|(id, _)| *id).collect();
        let files = snapshots.iter().map(files_of).chain(unreadable.iter().map(|_| None));
        let keeps = self.replay.keep_files(&files.collect::<Vec<_>>());
        self.ledger.keeps = snapshots.iter().map(|file| file.id).chain(unreadable).zip(keeps).collect();
        for snapshot in snapshots.into_iter().rev() {
            let segment = snapshot.id;
            check_version(&snapshot)?;
            let report = self.restore_one(snapshot);
            let is_whole = report.is_whole();
            self.report.snapshots.push(report);
            if is_whole {
                return Ok(segment);
            }
        }
        // Whatever is left.
        Ok(SegmentId(0))
    }

    fn restore_one(&mut self, snapshot: SegmentFile) -> SnapshotReport {
        let SegmentFile { id: segment, file, len: bytes } = snapshot;
        let report = SnapshotReport {
            segment,
            bytes,
            restored_records: 0,
            damaged: Vec::new(),
            damaged_records: Vec::new(),
            unreadable_chunks: 0,
            incomplete: false,
            supplied: false,
        };
        let mut reading = Reading { report, index: Vec::new(), records: None };
        self.note_segment(segment);
        let file = SegmentFile { id: snapshot_id(segment), file, len: bytes };
        self.learn_heads(&file);
        let mut reader = Reader::new([file]);
        let (mut current, mut ahead) = (Stretch::default(), Stretch::default());
        let mut more = reader.read(StretchSize::OF_SNAPSHOT, &mut current);
        while more {
            let workers = self.workers;
            let mut read_ahead = || more = reader.read(StretchSize::OF_SNAPSHOT, &mut ahead);
            workers.alongside(&mut read_ahead, &mut || self.restore_stretch(&current, &mut reading));
            std::mem::swap(&mut current, &mut ahead);
        }
        let Reading { mut report, index, records } = reading;
        let lost = |entry: &&Indexed| report.damaged.iter().any(|(at, len)| (*at..at + len).contains(&entry.offset));
        let damaged: Vec<_> = index.iter().filter(lost).map(|entry| (entry.head, entry.held)).collect();
        report.damaged_records = damaged;
        report.incomplete = records != Some(report.restored_records + report.damaged_records.len() as u64);
        report
    }

    fn restore_stretch(&mut self, stretch: &Stretch, reading: &mut Reading) {
        let mut replayed = Vec::with_capacity(stretch.events.len());
        for event in &stretch.events {
            match event {
                Event::Frame(frame) => {
                    let payload = &stretch.bytes[frame.payload.clone()];
                    self.restore_frame(frame, payload, reading, &mut replayed);
                }
                Event::Damage(damage) | Event::TornTail(damage) => {
                    reading.report.damaged.push((damage.offset, damage.len));
                }
                Event::Unreadable(_) => reading.report.incomplete = true,
            }
        }
        let missed = self.replay.stretch(replayed, self.workers);
        reading.report.unreadable_chunks += missed.unreadable_chunks;
        self.report.note_missed(missed);
        self.advance(stretch.file_bytes);
    }

    fn restore_frame<'a>(
        &mut self,
        frame: &Frame,
        payload: &'a [u8],
        reading: &mut Reading,
        replayed: &mut Vec<Replayed<'a>>,
    ) {
        let head = frame.head;
        let mut at = 0;
        match frame.kind {
            FrameKind::SnapshotIndex => {
                let entries = std::iter::from_fn(|| Indexed::get(payload, &mut at));
                reading.index.extend(entries);
            }
            // Read before all else.
            FrameKind::SnapshotFiles => {}
            FrameKind::SnapshotEnd => reading.records = get_uvarint(payload, &mut at),
            _ => {
                reading.report.restored_records += 1;
                if self.is_gone(head) {
                    return;
                }
                if frame.kind != FrameKind::Head && !self.is_introduced(head, replayed) {
                    return;
                }
                match frame.kind {
                    FrameKind::Head => replayed.extend(HeadState::parse(payload).map(|s| self.introduce(head, s))),
                    FrameKind::SnapshotSeries => replayed.extend(self.part(head, payload, Restored::Series)),
                    FrameKind::SnapshotExemplars => replayed.extend(self.part(head, payload, Restored::Exemplars)),
                    kind => {
                        let record = Record::parse(kind, payload);
                        let position = Position::default();
                        replayed.extend(record.map(|record| Replayed::Record { head, position, record }));
                    }
                }
            }
        }
    }

    /// A part of the snapshot, whose payload begins with a position.
    fn part<'a>(
        &mut self,
        head: HeadId,
        payload: &'a [u8],
        part: impl Fn(&'a [u8]) -> Restored<'a>,
    ) -> Option<Replayed<'a>> {
        let mut at = 0;
        let segment = SegmentId(get_uvarint(payload, &mut at)?);
        let position = Position { segment, offset: get_uvarint(payload, &mut at)? };
        // A later process must not write to that segment again: what it wrote would pass for restored.
        self.note_segment(segment);
        Some(Replayed::Restored { head, position, part: part(payload.get(at..)?) })
    }

    /// Says which snapshots' damage was made good, and takes those off the list: what they hold is held elsewhere.
    pub(super) fn judge_snapshots(&mut self) {
        let is_there = self.report.missing_segments.is_empty() && self.report.unreadable.is_empty();
        let whole_one = self.report.snapshots.iter().any(SnapshotReport::is_whole);
        // Something was logged before a snapshot was taken: where there is no log at all, it is gone.
        let log_is_gone = !whole_one && self.report.segments == 0;
        let log_is_whole = is_there && !log_is_gone && self.ledger.is_from_the_start();
        if log_is_gone && let Some(newest) = self.report.snapshots.first() {
            // So that the next start, which finds a log, does not take it for all of it.
            self.ledger.begun_at(newest.segment);
        }
        for report in &mut self.report.snapshots {
            report.supplied = whole_one || log_is_whole;
            if !report.is_whole() && report.supplied {
                self.ledger.snapshots.retain(|snapshot| snapshot.segment != report.segment);
                self.ledger.keeps.remove(&report.segment);
                let _ = self.disk.remove_file(&self.dir.join(snapshot_name(report.segment)));
            }
        }
    }
}

impl Indexed {
    fn get(payload: &[u8], at: &mut usize) -> Option<Self> {
        let offset = get_uvarint(payload, at)?;
        let head = HeadId(u32::try_from(get_uvarint(payload, at)?).ok()?);
        let (series, samples) = (get_uvarint(payload, at)?, get_uvarint(payload, at)?);
        let (min_time, max_time): (TimestampMs, TimestampMs) = (get_varint(payload, at)?, get_varint(payload, at)?);
        Some(Self { offset, head, held: Held { series, samples, min_time, max_time } })
    }
}

fn check_version(snapshot: &SegmentFile) -> Result<(), WalError> {
    let mut header = [0; SEGMENT_HEADER_LEN];
    let n = snapshot.file.read_at(&mut header, 0).unwrap_or(0);
    match check_segment_header(&header[..n], snapshot_id(snapshot.id)) {
        SegmentHeader::UnknownVersion(version) => Err(WalError::Version { file: snapshot_name(snapshot.id), version }),
        SegmentHeader::Good(_) | SegmentHeader::Damaged => Ok(()),
    }
}

/// The chunk files that a snapshot refers to; `None` when it does not tell any more.
fn files_of(snapshot: &SegmentFile) -> Option<Vec<u32>> {
    let id = snapshot_id(snapshot.id);
    let mut header = [0; SEGMENT_HEADER_LEN];
    let n = snapshot.file.read_at(&mut header, 0).ok()?;
    match check_segment_header(&header[..n], id) {
        // The first version copied all chunks.
        SegmentHeader::Good(1) => return Some(Vec::new()),
        SegmentHeader::UnknownVersion(_) => return None,
        SegmentHeader::Good(_) | SegmentHeader::Damaged => {}
    }
    let mut scanner = Scanner::new(snapshot.file.clone(), id).ok()?;
    loop {
        match scanner.next_of(&[FrameKind::SnapshotFiles]).ok()? {
            Scanned::Frame { kind: FrameKind::SnapshotFiles, payload, .. } => {
                let mut at = 0;
                let count = get_uvarint(payload, &mut at)?;
                let number = |_| get_uvarint(payload, &mut at).and_then(|number| u32::try_from(number).ok());
                return (0..count).map(number).collect();
            }
            Scanned::Frame { .. } | Scanned::Damage { .. } => {}
            Scanned::TornTail { .. } | Scanned::End => return None,
        }
    }
}
