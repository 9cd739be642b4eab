//! Objects that are files of this machine are read where they are wanted: no request, no task, no cache besides the
//! operating system's, and no more bytes than are asked for.

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use skald_tsdb::block::{Coalesce, Fetch};
use skald_tsdb::disk::DiskFile;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::pages::PagedObject;
use crate::bucket::{Bucket, BucketError, Cause, Operation};

/// Files that stay open, of all blocks together; others are opened for each read. Processes may often have 1,024.
const MAX_KEPT: usize = 256;
/// Bytes that are read from a file at once: they stay in the processor's nearest cache.
const WINDOW: usize = 14 << 10;
/// Unwanted bytes that cost less to read than another system call.
const READ_ALONG: Coalesce = Coalesce { max_gap: 4 << 10, max_len: 8 << 20 };

/// The file of an object, once it is open and as long as it may stay so.
#[derive(Debug, Clone, Default)]
pub(super) struct FileHandle(Arc<OnceLock<Kept>>);

struct Kept {
    file: Arc<dyn DiskFile>,
    _permit: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept")
    }
}

/// Opens files and keeps some of them open.
pub(super) struct Files {
    may_be_kept: Arc<Semaphore>,
}

impl FileHandle {
    /// Whether the file is kept open.
    pub(super) fn is_kept(&self) -> bool {
        self.0.get().is_some()
    }
}

impl Files {
    pub(super) fn new() -> Self {
        Self { may_be_kept: Arc::new(Semaphore::new(MAX_KEPT)) }
    }

    /// The object's file; `None` when the bucket is not a directory of this machine.
    pub(super) fn open(
        &self,
        bucket: &dyn Bucket,
        object: &PagedObject,
    ) -> Result<Option<Arc<dyn DiskFile>>, BucketError> {
        if let Some(kept) = object.handle.0.get() {
            return Ok(Some(kept.file.clone()));
        }
        let Some(file) = bucket.open_file(&object.key)? else { return Ok(None) };
        if let Ok(permit) = self.may_be_kept.clone().try_acquire_owned() {
            // Whoever was first has kept it.
            let _ = object.handle.0.set(Kept { file: file.clone(), _permit: permit });
        }
        Ok(Some(file))
    }
}

/// Stretches of a file that hold all ranges that were wanted, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Stretches {
    bytes: Bytes,
    /// Ascending.
    stretches: Vec<Stretch>,
}

#[derive(Debug)]
struct Stretch {
    /// Place of its first byte in the file.
    start: u64,
    /// Where it lies among the bytes.
    part: Range<usize>,
}

impl Stretches {
    /// Reads `ranges`, which may overlap and come in any order, of an object of `len` bytes. All share one allocation.
    pub(super) fn read(file: &dyn DiskFile, len: u64, ranges: &[Range<u64>]) -> io::Result<Self> {
        let read = Self::read_with(len, ranges, |buffer, offset| file.read_at(buffer, offset).map(Some));
        Ok(read?.unwrap_or_default())
    }

    /// The same; `None` if some of it may have to be waited for.
    pub(super) fn read_at_hand(file: &dyn DiskFile, len: u64, ranges: &[Range<u64>]) -> io::Result<Option<Self>> {
        Self::read_with(len, ranges, |buffer, offset| file.read_at_hand(buffer, offset))
    }

    fn read_with(
        len: u64,
        ranges: &[Range<u64>],
        read_at: impl Fn(&mut [u8], u64) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<Self>> {
        let clipped = |range: &Range<u64>| range.start..range.end.min(len);
        let mut wanted: Vec<Range<u64>> = ranges.iter().map(clipped).filter(|range| !range.is_empty()).collect();
        if !wanted.is_sorted_by_key(|range| range.start) {
            wanted.sort_unstable_by_key(|range| range.start);
        }
        let fetches = READ_ALONG.join(wanted);
        let length = |fetch: &Fetch| fetch.range.end - fetch.range.start;
        let total: u64 = fetches.iter().map(length).sum();
        let longest = fetches.iter().map(length).max().unwrap_or_default();
        // Read into a small buffer, then copied from the processor's cache: that costs less than to fill with zeros what
        // is about to be overwritten.
        let mut window = vec![0; WINDOW.min(longest as usize)];
        let mut bytes = Vec::with_capacity(usize::try_from(total).map_err(io::Error::other)?);
        let mut stretches = Vec::with_capacity(fetches.len());
        for Fetch { range, .. } in fetches {
            let (begin, mut at) = (bytes.len(), range.start);
            while at < range.end {
                let wanted = window.len().min((range.end - at) as usize);
                let Some(read) = read_at(&mut window[..wanted], at)? else { return Ok(None) };
                bytes.extend_from_slice(&window[..read]);
                at += read as u64;
                // A file shorter than it should be yields less, which its reader finds out.
                if read < wanted {
                    break;
                }
            }
            stretches.push(Stretch { start: range.start, part: begin..bytes.len() });
        }
        Ok(Some(Self { bytes: bytes.into(), stretches }))
    }

    /// Where the bytes of one of the ranges lie. What lies beyond the object's end is missing from the result.
    ///
    /// The search begins with stretch `near`, which becomes the one that was found.
    pub(super) fn find(&self, range: &Range<u64>, near: &mut usize) -> (&Bytes, Range<usize>) {
        let holds = |at: usize| {
            let starts = |at: usize| self.stretches.get(at).map(|stretch| stretch.start);
            starts(at).is_some_and(|start| start <= range.start) && starts(at + 1).is_none_or(|next| range.start < next)
        };
        let at = [*near, *near + 1]
            .into_iter()
            .find(|&at| holds(at))
            .or_else(|| self.stretches.partition_point(|stretch| stretch.start <= range.start).checked_sub(1));
        let Some((at, stretch)) = at.and_then(|at| Some((at, self.stretches.get(at)?))) else {
            return (&self.bytes, 0..0);
        };
        *near = at;
        let from = ((range.start - stretch.start) as usize).min(stretch.part.len());
        let to = (range.end.saturating_sub(stretch.start) as usize).min(stretch.part.len());
        (&self.bytes, stretch.part.start + from..stretch.part.start + to.max(from))
    }

    /// Bytes that were read.
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// A failed read of a file as the bucket's failure.
pub(super) fn read_error(bucket: &dyn Bucket, key: &str, error: &io::Error) -> BucketError {
    BucketError {
        bucket: bucket.name().into(),
        operation: Operation::GetRange,
        key: key.to_owned(),
        cause: Cause::Unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use skald_tsdb::disk::{Disk, MemDisk};

    use super::*;

    const LEN: u64 = 100_000;

    proptest! {
        #[test]
        fn ranges_are_what_the_file_holds(
            ranges in proptest::collection::vec((0..LEN + 10, 0_u64..9_000), 0..9),
            missing in 0_u64..2_000,
        ) {
            let content: Vec<u8> = (0..LEN - missing).map(|i| (i / 3 + i / 251) as u8).collect();
            let disk = MemDisk::default();
            disk.create_dir_all(Path::new("d")).unwrap();
            disk.create(Path::new("d/f")).unwrap().append(&content).unwrap();
            let file = disk.open(Path::new("d/f")).unwrap();
            let ranges: Vec<_> = ranges.into_iter().map(|(start, len)| start..start + len).collect();
            let at_hand = Stretches::read_at_hand(&*file, LEN, &ranges).unwrap().unwrap();
            let read = Stretches::read(&*file, LEN, &ranges).unwrap();
            let mut near = 0;
            for range in &ranges {
                let at = |end: u64| (end as usize).min(content.len());
                let (bytes, part) = read.find(range, &mut near);
                prop_assert_eq!(&bytes[part], &content[at(range.start)..at(range.end)]);
                let (bytes, part) = at_hand.find(range, &mut 0);
                prop_assert_eq!(&bytes[part], &content[at(range.start)..at(range.end)]);
            }
        }
    }
}
