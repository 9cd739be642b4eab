//! Which files there are, what of them is in memory, and who needs them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::record::{FILE_HEADER_LEN, RECORD_HEADER_LEN, file_header, is_of_unknown_version};
use super::{ChunkAddress, ChunkFileStats, ChunkFiles};
use crate::disk::{Disk, DiskFile};

/// The highest number of a file that may be there at the start. No installation makes so many; as many are left for new ones.
const MAX_NUMBER_FOUND: u32 = u32::MAX / 2;

/// What the state's lock protects.
pub(super) struct FileSet {
    pub(super) files: BTreeMap<u32, FileState>,
    /// The end of the newest file, as far as it is still growing.
    pub(super) building: Option<Building>,
    /// Waiting to be written; ascending by file and start.
    pub(super) waiting: VecDeque<Batch>,
    /// Their bytes.
    pub(super) waiting_bytes: u64,
    /// The next file's number.
    next: u32,
    /// Files that are out of the set and still on the disk.
    unneeded: Vec<u32>,
    pub(super) directory_changed: bool,
}

/// One file.
#[derive(Default)]
pub(super) struct FileState {
    /// `None` until the first batch is written.
    pub(super) handle: Option<Arc<dyn DiskFile>>,
    /// Bytes on the disk that are in order; what lies beyond is in memory.
    pub(super) written: u32,
    /// Bytes given out.
    pub(super) end: u32,
    live_chunks: u32,
    live_bytes: u64,
    pins: u32,
    /// Takes no more chunks.
    complete: bool,
    /// Remains of a failed write stand behind `written`.
    pub(super) torn: bool,
    pub(super) unsynced: bool,
    /// An fsync has failed: what the disk holds is anybody's guess, whatever later ones say.
    pub(super) sync_failed: bool,
}

/// Records that gather for a write.
pub(super) struct Building {
    pub(super) file: u32,
    /// Offset of the first byte.
    pub(super) start: u32,
    pub(super) bytes: Vec<u8>,
}

/// Records that are to be written.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) file: u32,
    pub(super) start: u32,
    pub(super) bytes: Bytes,
}

/// Where a record is read.
pub(super) enum Place {
    Memory(Bytes),
    File(Arc<dyn DiskFile>),
}

fn record_len(address: ChunkAddress) -> u64 {
    u64::from(address.len) + RECORD_HEADER_LEN as u64
}

impl FileSet {
    pub(super) fn open(disk: &dyn Disk, dir: &Path) -> io::Result<Self> {
        let mut set = Self {
            files: BTreeMap::new(),
            building: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            next: 1,
            unneeded: Vec::new(),
            directory_changed: false,
        };
        for entry in disk.list(dir)? {
            let Some(file) = parse_file_name(&entry.name) else { continue };
            if file > MAX_NUMBER_FOUND {
                let name = &entry.name;
                return Err(io::Error::other(format!(
                    "chunk file {name} leaves too few numbers for new ones: remove it"
                )));
            }
            set.next = set.next.max(file + 1);
            let opened = disk.open(&dir.join(&entry.name)).and_then(|handle| {
                let mut header = [0; FILE_HEADER_LEN];
                let n = handle.read_at(&mut header, 0)?;
                Ok((is_of_unknown_version(&header[..n]), handle.len()?, handle))
            });
            // One that cannot be read now, or not by this version, is left alone.
            if let Ok((false, len, handle)) = opened {
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                let (handle, complete) = (Some(handle), true);
                let state = FileState { handle, complete, written: len, end: len, ..FileState::default() };
                set.files.insert(file, state);
            }
        }
        Ok(set)
    }

    pub(super) fn stats(&self) -> ChunkFileStats {
        let files = self.files.values();
        ChunkFileStats {
            files: self.files.len(),
            bytes: files.clone().map(|file| u64::from(file.end)).sum(),
            live_bytes: files.clone().map(|file| file.live_bytes).sum(),
            live_chunks: files.map(|file| u64::from(file.live_chunks)).sum(),
            ..ChunkFileStats::default()
        }
    }

    /// The address of the next record, after `building` has been made ready for it.
    pub(super) fn next_address(&mut self, len: u32, file_bytes: u32) -> ChunkAddress {
        let wanted = len.saturating_add(RECORD_HEADER_LEN as u32);
        let end = |building: &Building| building.start + building.bytes.len() as u32;
        let is_full = self.building.as_ref().is_some_and(|b| end(b).saturating_add(wanted) > file_bytes);
        if is_full {
            self.complete();
        }
        let next = &mut self.next;
        let building = self.building.get_or_insert_with(|| {
            let file = *next;
            // Two thousand million files ([`MAX_NUMBER_FOUND`]) are more than a process writes.
            *next += 1;
            Building { file, start: 0, bytes: file_header(file).to_vec() }
        });
        let address = ChunkAddress { file: building.file, offset: end(building), len };
        let state = self.files.entry(address.file).or_default();
        state.end = address.offset + wanted;
        state.live_chunks += 1;
        state.live_bytes += record_len(address);
        address
    }

    /// Hands what has gathered to the writer.
    pub(super) fn seal(&mut self) {
        if let Some(building) = self.building.as_mut().filter(|building| !building.bytes.is_empty()) {
            let bytes = Bytes::from(std::mem::take(&mut building.bytes));
            let start = building.start;
            building.start += bytes.len() as u32;
            self.waiting_bytes += bytes.len() as u64;
            self.waiting.push_back(Batch { file: building.file, start, bytes });
        }
    }

    /// Ends the newest file.
    pub(super) fn complete(&mut self) {
        self.seal();
        if let Some(building) = self.building.take()
            && let Some(state) = self.files.get_mut(&building.file)
        {
            state.complete = true;
            self.drop_if_unneeded(building.file);
        }
    }

    pub(super) fn sparse_files(&self, allowance: u64) -> BTreeSet<u32> {
        let stats = self.stats();
        let much_waste = stats.bytes > 3 * stats.live_bytes + allowance;
        let is_wanted = |file: &FileState| {
            // Snapshots that pin it go; those to come would pin it again for as long as a chunk is left.
            let is_sparse = much_waste && file.live_bytes * 4 < u64::from(file.end);
            file.complete && file.live_chunks > 0 && (is_sparse || file.sync_failed)
        };
        self.files.iter().filter(|(_, file)| is_wanted(file)).map(|(number, _)| *number).collect()
    }

    pub(super) fn reserve(&mut self, file: u32) {
        self.next = self.next.max(file.saturating_add(1));
    }

    /// An fsync of the file failed: no chunk goes there any more.
    pub(super) fn note_failed_sync(&mut self, file: u32) {
        if let Some(state) = self.files.get_mut(&file) {
            state.sync_failed = true;
        }
        if self.building.as_ref().is_some_and(|building| building.file == file) {
            self.complete();
        }
    }

    pub(super) fn retain(&mut self, address: ChunkAddress) -> bool {
        let Some(file) = self.files.get_mut(&address.file) else { return false };
        let is_inside = u64::from(address.offset) + record_len(address) <= u64::from(file.end);
        if is_inside {
            file.live_chunks += 1;
            file.live_bytes += record_len(address);
        }
        is_inside
    }

    pub(super) fn release(&mut self, address: ChunkAddress) {
        let Some(file) = self.files.get_mut(&address.file) else {
            debug_assert!(false, "a chunk's file is there");
            return;
        };
        file.live_chunks = file.live_chunks.saturating_sub(1);
        file.live_bytes = file.live_bytes.saturating_sub(record_len(address));
        if file.live_chunks == 0 {
            // Also the file being written: it would keep its size for the next chunks.
            if !file.complete && file.pins == 0 {
                self.complete();
            }
            self.drop_if_unneeded(address.file);
        }
    }

    fn drop_if_unneeded(&mut self, file: u32) {
        let is_unneeded = |state: &FileState| state.complete && state.live_chunks == 0 && state.pins == 0;
        if self.files.get(&file).is_some_and(is_unneeded) {
            self.files.remove(&file);
            self.unneeded.push(file);
        }
    }

    /// Removes a file that is not in the set (any more) from the disk.
    pub(super) fn remove_later(&mut self, file: u32) {
        self.unneeded.push(file);
    }

    /// Bytes that only memory holds.
    pub(super) fn pending_bytes(&self) -> u64 {
        self.waiting_bytes + self.building.as_ref().map_or(0, |building| building.bytes.len() as u64)
    }

    /// Files to be removed from the disk.
    pub(super) fn take_unneeded(&mut self) -> Vec<u32> {
        // Those an earlier process left, and nobody asked for.
        let left: Vec<u32> = self.files.keys().copied().collect();
        left.into_iter().for_each(|file| self.drop_if_unneeded(file));
        std::mem::take(&mut self.unneeded)
    }

    /// Where the record of `address` can be read now; `None` when its file is gone.
    pub(super) fn place(&self, address: ChunkAddress) -> Option<Place> {
        let file = self.files.get(&address.file)?;
        let len = RECORD_HEADER_LEN + address.len as usize;
        if address.offset < file.written {
            return file.handle.clone().map(Place::File);
        }
        if let Some(building) = self.building.as_ref()
            && building.file == address.file
            && building.start <= address.offset
        {
            let at = (address.offset - building.start) as usize;
            return building.bytes.get(at..at + len).map(|bytes| Place::Memory(Bytes::copy_from_slice(bytes)));
        }
        let after = self.waiting.partition_point(|b| (b.file, b.start) <= (address.file, address.offset));
        let batch = self.waiting.get(after.checked_sub(1)?).filter(|batch| batch.file == address.file)?;
        let at = (address.offset - batch.start) as usize;
        (at + len <= batch.bytes.len()).then(|| Place::Memory(batch.bytes.slice(at..at + len)))
    }
}

/// Keeps files: see [`ChunkFiles::pin`]. Dropping it lets them go.
pub struct Pin {
    files: Arc<ChunkFiles>,
    pinned: BTreeSet<u32>,
}

impl Pin {
    pub(super) fn new(files: Arc<ChunkFiles>) -> Self {
        Self { files, pinned: BTreeSet::new() }
    }

    /// Keeps a file from now on; `false` when it is not there, or a sync of it has failed.
    pub fn add(&mut self, file: u32) -> bool {
        if self.pinned.contains(&file) {
            return true;
        }
        let mut set = self.files.state.lock();
        let Some(state) = set.files.get_mut(&file).filter(|file| !file.sync_failed) else { return false };
        state.pins += 1;
        self.pinned.insert(file);
        true
    }

    /// Makes what the files kept hold by now survive a power cut. Once that fails for one of them, it will not do any more.
    pub fn sync(&self) -> io::Result<()> {
        self.files.sync_files(&|file| self.pinned.contains(&file))
    }

    /// The files kept.
    pub fn files(&self) -> impl Iterator<Item = u32> + '_ {
        self.pinned.iter().copied()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut set = self.files.state.lock();
        for file in &self.pinned {
            if let Some(state) = set.files.get_mut(file) {
                state.pins = state.pins.saturating_sub(1);
            }
            set.drop_if_unneeded(*file);
        }
    }
}

/// The name of a file.
pub(super) fn file_name(file: u32) -> String {
    format!("{file:010}.chunks")
}

fn parse_file_name(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".chunks")?;
    let is_canonical = digits.len() == 10 && digits.bytes().all(|b| b.is_ascii_digit());
    is_canonical.then(|| digits.parse().ok()).flatten()
}
