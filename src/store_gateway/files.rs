//! Objects that are files of this machine are read where they are wanted: no request, no task, no cache besides the
//! operating system's, and no more bytes than are asked for.

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use skald_tsdb::block::Coalesce;
use skald_tsdb::disk::DiskFile;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::pages::PagedObject;
use crate::bucket::{Bucket, BucketError, Cause, Operation};

/// Files that stay open, of all blocks together; others are opened for each read. Processes may often have 1,024.
const MAX_KEPT: usize = 256;
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

/// Stretches of a file that hold all ranges that were wanted.
#[derive(Debug, Default)]
pub(super) struct Stretches {
    /// With the place of the first byte, ascending.
    stretches: Vec<(u64, Bytes)>,
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
        let total: u64 = fetches.iter().map(|fetch| fetch.range.end - fetch.range.start).sum();
        let mut buffer = vec![0; usize::try_from(total).map_err(io::Error::other)?];
        let mut at = 0;
        let mut parts = Vec::with_capacity(fetches.len());
        for fetch in fetches {
            let end = at + (fetch.range.end - fetch.range.start) as usize;
            let Some(read) = read_at(&mut buffer[at..end], fetch.range.start)? else { return Ok(None) };
            // A file shorter than it should be yields less, which its reader finds out.
            parts.push((fetch.range.start, at..at + read));
            at = end;
        }
        let buffer = Bytes::from(buffer);
        Ok(Some(Self { stretches: parts.into_iter().map(|(start, part)| (start, buffer.slice(part))).collect() }))
    }

    /// The bytes of one of the ranges. What lies beyond the object's end is missing from the result.
    pub(super) fn bytes(&self, range: &Range<u64>) -> Bytes {
        let after = self.stretches.partition_point(|(start, _)| *start <= range.start);
        let Some((start, bytes)) = after.checked_sub(1).and_then(|at| self.stretches.get(at)) else {
            return Bytes::new();
        };
        let from = ((range.start - start) as usize).min(bytes.len());
        let to = (range.end.saturating_sub(*start) as usize).min(bytes.len());
        bytes.slice(from..to.max(from))
    }

    /// Bytes that were read.
    pub(super) fn len(&self) -> u64 {
        self.stretches.iter().map(|(_, bytes)| bytes.len() as u64).sum()
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
            for range in &ranges {
                let at = |end: u64| (end as usize).min(content.len());
                prop_assert_eq!(&read.bytes(range)[..], &content[at(range.start)..at(range.end)]);
                prop_assert_eq!(at_hand.bytes(range), read.bytes(range));
            }
        }
    }
}
