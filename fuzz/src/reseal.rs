//! Puts the checksums of mutated files right, so that what lies behind them is reached. Written from the formats' pages, not
//! with the readers' code.

use skald_model::varint::get_uvarint;

/// Length of the header of a log's segment and of a frame.
const FRAME_HEADER: usize = 20;
/// Length of an index' table of contents.
const TOC: usize = 52;

fn u32_be(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?) as usize)
}

fn seal_be(bytes: &mut [u8], body: std::ops::Range<usize>) -> Option<usize> {
    let crc = crc32c::crc32c(bytes.get(body.clone())?);
    bytes.get_mut(body.end..)?.first_chunk_mut::<4>()?.copy_from_slice(&crc.to_be_bytes());
    Some(body.end + 4)
}

/// A segment of the log, or a snapshot: `id` is what its frames' checksums hold. The last frame's length is cut to what is
/// there.
pub fn frames(bytes: &mut [u8], id: u64) {
    if let Some(header) = bytes.first_chunk_mut::<FRAME_HEADER>() {
        let crc = crc32c::crc32c(&header[..16]);
        header[16..].copy_from_slice(&crc.to_le_bytes());
    }
    let mut at = FRAME_HEADER;
    while bytes.len() >= at + FRAME_HEADER {
        let (header, payload) = bytes[at..].split_at_mut(FRAME_HEADER);
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let len = len.min(payload.len());
        header[0] = 0xD5;
        header[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        header[12..16].copy_from_slice(&crc32c::crc32c(&payload[..len]).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..16]), &id.to_le_bytes());
        header[16..].copy_from_slice(&crc.to_le_bytes());
        at += FRAME_HEADER + len;
    }
}

/// A block's index: the table of contents and whatever it leads to.
pub fn index(bytes: &mut [u8]) {
    let Some(toc) = bytes.len().checked_sub(TOC) else { return };
    let entry = |bytes: &[u8], i: usize| {
        let at = toc + 8 * i;
        bytes[at..].first_chunk().map_or(0, |entry| u64::from_be_bytes(*entry).min(toc as u64) as usize)
    };
    seal_be(bytes, toc..toc + 48);
    let [symbols, series, series_end, _, postings, table] = std::array::from_fn(|i| entry(bytes, i));
    section(bytes, symbols);
    section(bytes, table);
    let mut at = series;
    loop {
        at = at.next_multiple_of(16);
        if at >= series_end {
            break;
        }
        let mut body = at;
        let len = get_uvarint(bytes, &mut body).unwrap_or(u64::MAX);
        let end = usize::try_from(len).ok().and_then(|len| body.checked_add(len));
        match end.and_then(|end| seal_be(bytes, body..end)) {
            Some(end) => at = end,
            None => break,
        }
    }
    let mut at = postings;
    while let Some(end) = (at < table).then(|| section(bytes, at.next_multiple_of(4))).flatten() {
        at = end;
    }
}

/// The store-gateway's copy of an index' tables: `fixed | toc | magic and symbols | postings offsets`.
pub fn stored_header(bytes: &mut [u8]) {
    const FIXED: usize = 16;
    if seal_be(bytes, FIXED..FIXED + 48).is_none() {
        return;
    }
    section(bytes, FIXED + TOC + 5);
    let series = bytes[FIXED + 8..].first_chunk().map_or(0, |entry| u64::from_be_bytes(*entry));
    let table = usize::try_from(series).ok().and_then(|series| series.checked_add(FIXED + TOC));
    table.and_then(|table| section(bytes, table));
}

fn section(bytes: &mut [u8], at: usize) -> Option<usize> {
    let body = at.checked_add(4)?;
    let len = u32_be(bytes, at)?;
    seal_be(bytes, body..body.checked_add(len)?)
}

/// A block's chunk segment.
pub fn segment(bytes: &mut [u8]) {
    let mut at = 8;
    while at < bytes.len() {
        let mut body = at;
        let len = get_uvarint(bytes, &mut body).unwrap_or(u64::MAX);
        let end = usize::try_from(len).ok().and_then(|len| body.checked_add(len)?.checked_add(1));
        match end.and_then(|end| seal_be(bytes, body..end)) {
            Some(end) => at = end,
            None => break,
        }
    }
}

/// A tombstones file.
pub fn tombstones(bytes: &mut [u8]) {
    if let Some(end) = bytes.len().checked_sub(4).filter(|end| *end >= 5) {
        seal_be(bytes, 5..end);
    }
}
