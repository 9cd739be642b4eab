//! Reading segments in stretches: verified, decompressed, not yet understood.

use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use super::frame::{FrameKind, SEGMENT_HEADER_LEN, Scanned, Scanner, SegmentHeader, check_segment_header};
use super::record::count_floats;
use super::{Damage, HeadId, SegmentId};
use crate::disk::DiskFile;

/// Rounds of all series' samples that a stretch of the log holds. With several, one visit to a page's memory takes several
/// samples of its series; two stretches are in memory at a time, and what one decodes to.
const ROUNDS: usize = 2;
/// Bytes of a sample in the log, about.
const SAMPLE_BYTES: usize = 8;
/// Float samples of a stretch: 40 MiB decoded at most. Below the first, a stretch costs more than what is in it.
const STRETCH_SAMPLES: RangeInclusive<usize> = 256 << 10..=2 << 20;
/// Payload bytes of a stretch of a snapshot, which stand for several times as many: label sets and chunks' addresses are
/// unpacked.
const SNAPSHOT_STRETCH_BYTES: usize = 4 << 20;

/// Where a stretch ends, whichever it comes to first.
#[derive(Clone, Copy)]
pub(super) struct StretchSize {
    /// Payload bytes.
    bytes: usize,
    /// Float samples.
    samples: usize,
}

impl StretchSize {
    /// Of the log, where there are so many series: what is read ahead should be little beside the heads.
    pub(super) fn of_log(series: usize) -> Self {
        let samples = (series * ROUNDS).clamp(*STRETCH_SAMPLES.start(), *STRETCH_SAMPLES.end());
        Self { bytes: samples * SAMPLE_BYTES, samples }
    }

    /// Of a snapshot.
    pub(super) const OF_SNAPSHOT: Self = Self { bytes: SNAPSHOT_STRETCH_BYTES, samples: usize::MAX };
}

pub(super) struct SegmentFile {
    pub(super) id: SegmentId,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) len: u64,
}

/// What was read next, never of more than one segment.
#[derive(Default)]
pub(super) struct Stretch {
    pub(super) segment: SegmentId,
    /// Whether the segment begins here, and ends here.
    pub(super) begins: bool,
    pub(super) ends: bool,
    pub(super) events: Vec<Event>,
    /// The frames' payloads.
    pub(super) bytes: Vec<u8>,
    /// Bytes of the file that this took.
    pub(super) file_bytes: u64,
    samples: usize,
}

pub(super) enum Event {
    Frame(Frame),
    Damage(Damage),
    TornTail(Damage),
    /// The file cannot be read from here on.
    Unreadable(String),
}

/// A sound frame of a [`Stretch`].
pub(super) struct Frame {
    pub(super) kind: FrameKind,
    pub(super) head: HeadId,
    /// Where in the segment it begins.
    pub(super) offset: u64,
    /// Its payload among the stretch's bytes.
    pub(super) payload: Range<usize>,
}

/// Walks segments from the first to the last.
pub(super) struct Reader {
    segments: VecDeque<SegmentFile>,
    current: Option<(SegmentFile, Scanner)>,
}

impl Reader {
    pub(super) fn new(segments: impl IntoIterator<Item = SegmentFile>) -> Self {
        Self { segments: segments.into_iter().collect(), current: None }
    }

    /// Fills `stretch` anew; `false` at the end of the last segment.
    pub(super) fn read(&mut self, size: StretchSize, stretch: &mut Stretch) -> bool {
        stretch.events.clear();
        stretch.bytes.clear();
        (stretch.begins, stretch.ends, stretch.samples, stretch.file_bytes) = (false, false, 0, 0);
        if self.current.is_none() {
            let Some(segment) = self.segments.pop_front() else { return false };
            (stretch.segment, stretch.begins) = (segment.id, true);
            match open(&segment, stretch) {
                Some(scanner) => self.current = Some((segment, scanner)),
                None => {
                    (stretch.ends, stretch.file_bytes) = (true, segment.len);
                    return true;
                }
            }
        }
        if let Some((segment, scanner)) = &mut self.current {
            stretch.segment = segment.id;
            let from = if stretch.begins { 0 } else { scanner.offset() };
            stretch.ends = fill(segment.id, scanner, size, stretch);
            let to = if stretch.ends { segment.len } else { scanner.offset() };
            stretch.file_bytes = to.saturating_sub(from);
        }
        if stretch.ends {
            self.current = None;
        }
        true
    }
}

/// Looks at the segment's header; `None` when there is nothing behind it to be read.
fn open(segment: &SegmentFile, stretch: &mut Stretch) -> Option<Scanner> {
    let (id, len) = (segment.id, segment.len);
    if len == 0 {
        return None;
    }
    let mut header = [0; SEGMENT_HEADER_LEN];
    let opened = segment.file.read_at(&mut header, 0).and_then(|n| Ok((n, Scanner::new(segment.file.clone(), id)?)));
    let (n, scanner) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            stretch.events.push(Event::Unreadable(error.to_string()));
            return None;
        }
    };
    match check_segment_header(&header[..n], id) {
        SegmentHeader::Good(_) => {}
        SegmentHeader::UnknownVersion(version) => {
            stretch.events.push(Event::Unreadable(format!("format version {version} is unknown")));
            return None;
        }
        // Frames carry the segment's id in their checksum, so they are found without the header.
        SegmentHeader::Damaged if len > SEGMENT_HEADER_LEN as u64 => {
            let len = SEGMENT_HEADER_LEN as u64;
            stretch.events.push(Event::Damage(Damage { segment: id, offset: 0, len, record: None }));
        }
        SegmentHeader::Damaged => {
            stretch.events.push(Event::TornTail(Damage { segment: id, offset: 0, len, record: None }));
            return None;
        }
    }
    Some(scanner)
}

/// Reads until the stretch is full; whether the segment ended.
fn fill(id: SegmentId, scanner: &mut Scanner, size: StretchSize, stretch: &mut Stretch) -> bool {
    while stretch.bytes.len() < size.bytes && stretch.samples < size.samples {
        let scanned = match scanner.next() {
            Ok(scanned) => scanned,
            Err(error) => {
                stretch.events.push(Event::Unreadable(error.to_string()));
                return true;
            }
        };
        match scanned {
            Scanned::Frame { offset, kind, head, payload } => {
                if matches!(kind, FrameKind::Floats | FrameKind::StartedFloats) {
                    stretch.samples = stretch.samples.saturating_add(count_floats(payload));
                }
                let start = stretch.bytes.len();
                stretch.bytes.extend_from_slice(payload);
                stretch.events.push(Event::Frame(Frame { kind, head, offset, payload: start..stretch.bytes.len() }));
            }
            Scanned::Damage { offset, len, record } => {
                stretch.events.push(Event::Damage(Damage { segment: id, offset, len, record }));
            }
            Scanned::TornTail { offset, len } => {
                stretch.events.push(Event::TornTail(Damage { segment: id, offset, len, record: None }));
                return true;
            }
            Scanned::End => return true,
        }
    }
    false
}
