//! Frames: one checksummed record each, and the scanner that finds them again in a damaged file.

use std::io;
use std::sync::Arc;

use super::{HeadId, Held, SegmentId};
use crate::disk::DiskFile;

/// Bytes before a frame's payload.
const HEADER_LEN: usize = 20;
/// The same when the header tells what the payload holds.
const COUNTED_HEADER_LEN: usize = 44;
/// Bytes before a segment's first frame.
pub(super) const SEGMENT_HEADER_LEN: usize = 20;
/// Largest payload; a larger length is damage.
pub(super) const MAX_PAYLOAD: usize = 16 << 20;
/// Payload size at which a writer starts the next frame: what one flipped bit may cost.
pub(super) const TARGET_PAYLOAD: usize = 60 << 10;

const MARKER: u8 = 0xD5;
/// Of a frame whose header tells what the payload holds.
const COUNTED_MARKER: u8 = 0xD6;
const COMPRESSED: u8 = 0x80;
const MAGIC: [u8; 4] = *b"SKWL";
const VERSION: u8 = 3;
/// The oldest that is still read.
const OLDEST: u8 = 1;
const SNAPSHOT_MAGIC: [u8; 4] = *b"SKWS";
const SNAPSHOT_VERSION: u8 = 3;
/// The oldest that is still read.
const OLDEST_SNAPSHOT: u8 = 1;
/// What tells the checksums of a snapshot's frames from those of the segment of its number.
const SNAPSHOT_BIT: u64 = 1 << 63;
/// Bytes the scanner reads at once.
const READ_BYTES: usize = 256 << 10;
/// The same when most payloads are skipped.
const PEEK_BYTES: usize = 4 << 10;

/// What a frame's payload is; `FORMAT.md` has the layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A head's definition and cut state.
    Head = 1,
    /// A head that is gone.
    HeadDropped = 2,
    /// A cut began.
    CutBegun = 3,
    /// A cut's blocks are safe.
    CutDone = 4,
    /// Series definitions.
    Series = 5,
    /// Float samples.
    Floats = 6,
    /// Native histogram samples.
    Histograms = 7,
    /// Exemplars.
    Exemplars = 8,
    /// Metric metadata.
    Metadata = 9,
    /// The segments that exist.
    Segments = 10,
    /// Series of a snapshot with their chunks.
    SnapshotSeries = 11,
    /// Exemplars of a snapshot.
    SnapshotExemplars = 12,
    /// What the records of a snapshot hold.
    SnapshotIndex = 13,
    /// The last record of a snapshot.
    SnapshotEnd = 14,
    /// Where the log begins: what came before is in snapshots.
    LogBegins = 15,
    /// The chunk files a snapshot refers to.
    SnapshotFiles = 16,
    /// Float samples of which some have start timestamps.
    StartedFloats = 17,
    /// Native histogram samples likewise.
    StartedHistograms = 18,
}

impl FrameKind {
    /// Whether its payload is samples of a log.
    pub(super) fn has_samples(self) -> bool {
        matches!(self, Self::Floats | Self::Histograms | Self::StartedFloats | Self::StartedHistograms)
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Head,
            2 => Self::HeadDropped,
            3 => Self::CutBegun,
            4 => Self::CutDone,
            5 => Self::Series,
            6 => Self::Floats,
            7 => Self::Histograms,
            8 => Self::Exemplars,
            9 => Self::Metadata,
            10 => Self::Segments,
            11 => Self::SnapshotSeries,
            12 => Self::SnapshotExemplars,
            13 => Self::SnapshotIndex,
            14 => Self::SnapshotEnd,
            15 => Self::LogBegins,
            16 => Self::SnapshotFiles,
            17 => Self::StartedFloats,
            18 => Self::StartedHistograms,
            _ => return None,
        })
    }
}

fn header_crc(header: &[u8], segment: SegmentId) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), &segment.0.to_le_bytes())
}

/// Appends one frame.
pub(super) fn put_frame(
    out: &mut Vec<u8>,
    segment: SegmentId,
    kind: FrameKind,
    compressed: bool,
    head: HeadId,
    payload: &[u8],
) {
    let mut header = [0; HEADER_LEN];
    header[0] = MARKER;
    put_fields(&mut header, kind, compressed, head, payload);
    put_sealed(out, &mut header, segment);
    out.extend_from_slice(payload);
}

/// Appends one frame whose header tells what the payload holds, so that this is known when the payload is damaged.
pub(super) fn put_counted_frame(
    out: &mut Vec<u8>,
    segment: SegmentId,
    kind: FrameKind,
    compressed: bool,
    head: HeadId,
    payload: &[u8],
    held: Held,
) {
    let mut header = [0; COUNTED_HEADER_LEN];
    header[0] = COUNTED_MARKER;
    put_fields(&mut header, kind, compressed, head, payload);
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
    header[16..20].copy_from_slice(&count(held.series));
    header[20..24].copy_from_slice(&count(held.samples));
    header[24..32].copy_from_slice(&held.min_time.to_le_bytes());
    header[32..40].copy_from_slice(&held.max_time.to_le_bytes());
    put_sealed(out, &mut header, segment);
    out.extend_from_slice(payload);
}

/// What all headers have, but for their marker and checksum.
fn put_fields(header: &mut [u8], kind: FrameKind, compressed: bool, head: HeadId, payload: &[u8]) {
    header[1] = kind as u8 | if compressed { COMPRESSED } else { 0 };
    header[4..8].copy_from_slice(&head.0.to_le_bytes());
    header[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[12..16].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
}

fn put_sealed(out: &mut Vec<u8>, header: &mut [u8], segment: SegmentId) {
    let end = header.len() - 4;
    let crc = header_crc(&header[..end], segment);
    header[end..].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(header);
}

/// The bytes a segment starts with.
pub(super) fn segment_header(segment: SegmentId) -> [u8; SEGMENT_HEADER_LEN] {
    file_header(MAGIC, VERSION, segment)
}

/// The bytes a snapshot starts with.
pub(super) fn snapshot_header(segment: SegmentId) -> [u8; SEGMENT_HEADER_LEN] {
    file_header(SNAPSHOT_MAGIC, SNAPSHOT_VERSION, segment)
}

/// What a snapshot's frames have for a segment id.
pub(super) fn snapshot_id(segment: SegmentId) -> SegmentId {
    SegmentId(segment.0 | SNAPSHOT_BIT)
}

/// Whether this is what [`snapshot_id`] gives.
pub(super) fn is_snapshot(id: SegmentId) -> bool {
    id.0 & SNAPSHOT_BIT != 0
}

fn file_header(magic: [u8; 4], version: u8, segment: SegmentId) -> [u8; SEGMENT_HEADER_LEN] {
    let mut header = [0; SEGMENT_HEADER_LEN];
    header[..4].copy_from_slice(&magic);
    header[4] = version;
    header[8..16].copy_from_slice(&segment.0.to_le_bytes());
    let crc = crc32c::crc32c(&header[..16]);
    header[16..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What the start of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentHeader {
    /// Of this version.
    Good(u8),
    /// Intact, but written by a version this one does not know.
    UnknownVersion(u8),
    Damaged,
}

/// Looks at the start of a segment, or of the snapshot whose [`snapshot_id`] this is.
pub(super) fn check_segment_header(bytes: &[u8], id: SegmentId) -> SegmentHeader {
    let Some(header) = bytes.get(..SEGMENT_HEADER_LEN) else { return SegmentHeader::Damaged };
    let (magic, versions) =
        if is_snapshot(id) { (SNAPSHOT_MAGIC, OLDEST_SNAPSHOT..=SNAPSHOT_VERSION) } else { (MAGIC, OLDEST..=VERSION) };
    let segment = id.0 & !SNAPSHOT_BIT;
    let intact = header[..4] == magic && header[16..] == crc32c::crc32c(&header[..16]).to_le_bytes();
    match header[4] {
        _ if !intact => SegmentHeader::Damaged,
        known if versions.contains(&known) && header[8..16] == segment.to_le_bytes() => SegmentHeader::Good(known),
        known if versions.contains(&known) => SegmentHeader::Damaged,
        other => SegmentHeader::UnknownVersion(other),
    }
}

/// What the header of a frame says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameInfo {
    /// What its payload is.
    pub kind: FrameKind,
    /// Whose it is.
    pub head: HeadId,
    /// What its payload holds, if the header tells; there may be fewer series.
    pub held: Option<Held>,
}

struct Header {
    info: FrameInfo,
    compressed: bool,
    /// Bytes of the header itself.
    own_len: usize,
    /// Bytes of the payload.
    len: usize,
    payload_crc: u32,
}

impl Header {
    fn whole_len(&self) -> u64 {
        (self.own_len + self.len) as u64
    }
}

/// Reads the header that `bytes` begin with, which may go on behind it.
fn parse_header(bytes: &[u8], segment: SegmentId) -> Option<Header> {
    let own_len = match *bytes.first()? {
        MARKER => HEADER_LEN,
        COUNTED_MARKER => COUNTED_HEADER_LEN,
        _ => return None,
    };
    let (fields, crc) = bytes.get(..own_len)?.split_last_chunk::<4>()?;
    if *crc != header_crc(fields, segment).to_le_bytes() {
        return None;
    }
    let word = |at: usize| fields.get(at..)?.first_chunk::<4>().map(|word| u32::from_le_bytes(*word));
    let time = |at: usize| fields.get(at..)?.first_chunk::<8>().map(|time| i64::from_le_bytes(*time));
    let held = || {
        let (series, samples) = (u64::from(word(16)?), u64::from(word(20)?));
        Some(Held { series, samples, min_time: time(24)?, max_time: time(32)? })
    };
    let len = word(8)? as usize;
    let kind = FrameKind::from_byte(fields[1] & !COMPRESSED)?;
    let compressed = fields[1] & COMPRESSED != 0;
    let info = FrameInfo { kind, head: HeadId(word(4)?), held: held() };
    (len <= MAX_PAYLOAD).then_some(Header { info, compressed, own_len, len, payload_crc: word(12)? })
}

/// What the scanner met next.
pub(super) enum Scanned<'a> {
    /// A whole frame, its payload decompressed.
    Frame { offset: u64, kind: FrameKind, head: HeadId, payload: &'a [u8] },
    /// Bytes that are no frame, with a frame behind them. `record` when one frame's header was intact.
    Damage { offset: u64, len: u64, record: Option<FrameInfo> },
    /// No frame from `offset` to the end of the file, `len` bytes.
    TornTail { offset: u64, len: u64 },
    /// The end of the file, right behind a frame.
    End,
}

/// Walks the frames of one segment file; memory stays bounded by one frame.
pub(super) struct Scanner {
    file: Arc<dyn DiskFile>,
    segment: SegmentId,
    file_len: u64,
    /// Where the next frame is expected.
    offset: u64,
    buffer: Vec<u8>,
    /// File offset of `buffer[0]`.
    buffer_at: u64,
    /// Bytes read at once.
    read_bytes: usize,
    plain: Vec<u8>,
}

impl Scanner {
    pub(super) fn new(file: Arc<dyn DiskFile>, segment: SegmentId) -> io::Result<Self> {
        let file_len = file.len()?;
        let offset = SEGMENT_HEADER_LEN as u64;
        let (buffer, buffer_at, plain) = (Vec::new(), 0, Vec::new());
        Ok(Self { file, segment, file_len, offset, buffer, buffer_at, read_bytes: READ_BYTES, plain })
    }

    /// Where the next frame is expected.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next thing in the file; call until `TornTail` or `End`.
    pub(super) fn next(&mut self) -> io::Result<Scanned<'_>> {
        let start = self.offset;
        if start >= self.file_len {
            return Ok(Scanned::End);
        }
        let segment = self.segment;
        match parse_header(self.window(start, COUNTED_HEADER_LEN)?, segment) {
            Some(header) => {
                let whole = header.whole_len();
                if start + whole > self.file_len {
                    // The header is sound, so the file ends inside this frame.
                    self.offset = self.file_len;
                    return Ok(Scanned::TornTail { offset: start, len: self.file_len - start });
                }
                self.offset = start + whole;
                if self.payload_is_good(start, &header)? {
                    let FrameInfo { kind, head, .. } = header.info;
                    let payload = self.payload(start, &header)?;
                    return Ok(Scanned::Frame { offset: start, kind, head, payload });
                }
                Ok(Scanned::Damage { offset: start, len: whole, record: Some(header.info) })
            }
            None => match self.resynchronise(start + 1)? {
                Some(found) => {
                    self.offset = found;
                    Ok(Scanned::Damage { offset: start, len: found - start, record: None })
                }
                None => {
                    self.offset = self.file_len;
                    Ok(Scanned::TornTail { offset: start, len: self.file_len - start })
                }
            },
        }
    }

    /// The next thing in the file that is of one of the `kinds`, or damaged. The payloads of others are not read.
    pub(super) fn next_of(&mut self, kinds: &[FrameKind]) -> io::Result<Scanned<'_>> {
        self.read_bytes = PEEK_BYTES;
        let segment = self.segment;
        while let Some(header) = parse_header(self.window(self.offset, COUNTED_HEADER_LEN)?, segment) {
            let end = self.offset + header.whole_len();
            if kinds.contains(&header.info.kind) || end > self.file_len {
                break;
            }
            self.offset = end;
        }
        self.next()
    }

    /// Up to `len` bytes at `offset`, fewer only at the end of the file.
    fn window(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let buffered = self.buffer_at..self.buffer_at + self.buffer.len() as u64;
        let wanted_end = self.file_len.min(offset + len as u64);
        if !(buffered.contains(&offset) && wanted_end <= buffered.end) {
            let want = usize::try_from(self.file_len.saturating_sub(offset)).unwrap_or(usize::MAX);
            let want = want.min(len.max(self.read_bytes));
            self.buffer.resize(want, 0);
            let n = self.file.read_at(&mut self.buffer, offset)?;
            self.buffer.truncate(n);
            self.buffer_at = offset;
        }
        let from = (offset - self.buffer_at) as usize;
        let to = self.buffer.len().min(from + len);
        Ok(&self.buffer[from..to])
    }

    fn payload_is_good(&mut self, start: u64, header: &Header) -> io::Result<bool> {
        let (len, compressed, crc) = (header.len, header.compressed, header.payload_crc);
        let payload = self.window(start + header.own_len as u64, len)?;
        if payload.len() != len || crc32c::crc32c(payload) != crc {
            return Ok(false);
        }
        Ok(!compressed || snap::raw::decompress_len(payload).is_ok_and(|plain| plain <= MAX_PAYLOAD))
    }

    fn payload(&mut self, start: u64, header: &Header) -> io::Result<&[u8]> {
        if !header.compressed {
            return self.window(start + header.own_len as u64, header.len);
        }
        let mut plain = std::mem::take(&mut self.plain);
        let payload = self.window(start + header.own_len as u64, header.len)?;
        plain.resize(snap::raw::decompress_len(payload).unwrap_or(0), 0);
        // The checksum held, so only a writer's bug could make this fail; an empty payload is then counted as malformed.
        let n = snap::raw::Decoder::new().decompress(payload, &mut plain).unwrap_or(0);
        plain.truncate(n);
        self.plain = plain;
        Ok(&self.plain)
    }

    /// The first offset from `from` on at which a whole, intact frame stands.
    fn resynchronise(&mut self, mut from: u64) -> io::Result<Option<u64>> {
        while from < self.file_len {
            let window = self.window(from, READ_BYTES)?;
            if window.is_empty() {
                return Ok(None);
            }
            let len = window.len() as u64;
            match window.iter().position(|byte| matches!(*byte, MARKER | COUNTED_MARKER)) {
                None => from += len,
                Some(at) => {
                    let (candidate, segment) = (from + at as u64, self.segment);
                    if let Some(header) = parse_header(self.window(candidate, COUNTED_HEADER_LEN)?, segment)
                        && candidate + header.whole_len() <= self.file_len
                        && self.payload_is_good(candidate, &header)?
                    {
                        return Ok(Some(candidate));
                    }
                    from = candidate + 1;
                }
            }
        }
        Ok(None)
    }
}
