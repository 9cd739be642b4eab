//! Taking chunks in, and writing them out.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use skald_model::TimestampMs;

use super::file_set::{Batch, FileSet, file_name};
use super::record::put_record;
use super::{ChunkFiles, StoredChunk};
use crate::chunk::Encoding;
use crate::disk::DiskFile;
use crate::wal::HeadId;

/// Bytes by which the last record of a batch goes beyond it, but for large histograms.
const MARGIN: usize = 4 << 10;

/// A chunk that is to be stored. Its data starts with its number of samples.
#[derive(Debug, Clone, Copy)]
pub struct NewChunk<'a> {
    /// Time of the first sample.
    pub min_time: TimestampMs,
    /// Time of the last sample.
    pub max_time: TimestampMs,
    /// How it is coded.
    pub encoding: Encoding,
    /// Its bytes.
    pub data: &'a [u8],
}

impl ChunkFiles {
    /// Takes a chunk of `head` in. It is readable at once, and written later: no I/O is done here.
    pub fn put(&self, head: HeadId, chunk: NewChunk<'_>) -> StoredChunk {
        let NewChunk { min_time, max_time, encoding, data } = chunk;
        let data_crc = crc32c::crc32c(data);
        let samples = data.first_chunk::<2>().map_or(0, |count| u16::from_be_bytes(*count));
        let mut state = self.state.lock();
        let address = state.next_address(data.len() as u32, self.options.file_bytes);
        let mut stored = StoredChunk { min_time, max_time, encoding, samples, crc: 0, address };
        if let Some(building) = &mut state.building {
            if building.bytes.capacity() < self.options.batch_bytes {
                building.bytes.reserve_exact(self.options.batch_bytes + MARGIN);
            }
            stored.crc = put_record(&mut building.bytes, head, &stored, data_crc, data);
            if building.bytes.len() >= self.options.batch_bytes {
                state.seal();
            }
        }
        self.publish(&state);
        stored
    }

    /// Writes what waits, unless somebody else does or the last try failed. To be called after chunks were taken in, with
    /// no lock held.
    pub fn write_batches(&self) {
        if self.waiting_batches.load(Ordering::Relaxed) > 0
            && !self.failing.load(Ordering::Relaxed)
            && let Some(writer) = self.writer.try_lock()
        {
            // A failure is counted, and told by what waits.
            let _ = self.write_as(&writer);
        }
    }

    /// Writes what waits, whatever happened before.
    pub(super) fn write_waiting(&self) -> io::Result<()> {
        let writer = self.writer.lock();
        self.write_as(&writer)
    }

    /// Writes everything taken in so far and makes it survive a power cut.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_files(&|_| true)
    }

    /// Writes everything taken in so far and makes the files that `wanted` names survive a power cut.
    ///
    /// A file whose fsync has failed once is never again said to be safe: the pages may be gone.
    pub(super) fn sync_files(&self, wanted: &dyn Fn(u32) -> bool) -> io::Result<()> {
        let writer = self.writer.lock();
        {
            let mut state = self.state.lock();
            state.seal();
            self.publish(&state);
        }
        self.write_as(&writer)?;
        let mut state = self.state.lock();
        if state.files.iter().any(|(number, file)| wanted(*number) && file.sync_failed) {
            return Err(io::Error::other("an earlier sync of a chunk file failed"));
        }
        let directory_changed = std::mem::take(&mut state.directory_changed);
        let mut unsynced = Vec::new();
        for (number, file) in state.files.iter_mut().filter(|(number, file)| wanted(**number) && file.unsynced) {
            file.unsynced = false;
            unsynced.extend(file.handle.clone().map(|handle| (*number, handle)));
        }
        drop(state);
        // Chunks may be written meanwhile: they are the next sync's.
        drop(writer);
        let mut outcome = Ok(());
        for (number, handle) in unsynced {
            if let Err(error) = handle.sync() {
                let mut state = self.state.lock();
                state.note_failed_sync(number);
                self.publish(&state);
                outcome = Err(error);
            }
        }
        outcome?;
        if directory_changed && let Err(error) = self.disk.sync_dir(&self.dir) {
            self.state.lock().directory_changed = true;
            return Err(error);
        }
        Ok(())
    }

    /// Writes batch after batch. A batch that fails stays where it is, and with it those of its file; on a full disk all.
    fn write_as(&self, _writer: &MutexGuard<'_, ()>) -> io::Result<()> {
        let mut failed_files = BTreeSet::new();
        let mut outcome = Ok(());
        // Others only push behind: the places of what is waiting do not change meanwhile.
        let mut at = 0;
        loop {
            let Some(batch) = self.state.lock().waiting.get(at).cloned() else { break };
            if failed_files.contains(&batch.file) {
                at += 1;
                continue;
            }
            if let Err(error) = self.write_batch(&batch) {
                self.write_failures.fetch_add(1, Ordering::Relaxed);
                let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                outcome = Err(error);
                if is_full {
                    break;
                }
                failed_files.insert(batch.file);
                at += 1;
                continue;
            }
            let mut state = self.state.lock();
            if let Some(batch) = state.waiting.remove(at) {
                state.waiting_bytes -= batch.bytes.len() as u64;
            }
            self.publish(&state);
        }
        self.failing.store(outcome.is_err(), Ordering::Relaxed);
        outcome
    }

    /// Appends one batch to its file, or leaves the file as it was.
    fn write_batch(&self, batch: &Batch) -> io::Result<()> {
        let (handle, torn) = match self.state.lock().files.get(&batch.file) {
            // Nobody has a chunk in it any more.
            None => return Ok(()),
            Some(file) => (file.handle.clone(), file.torn),
        };
        let handle: Arc<dyn DiskFile> = match handle {
            Some(handle) => handle,
            None => {
                let created = self.disk.create(&self.dir.join(file_name(batch.file)))?;
                let mut state = self.state.lock();
                state.directory_changed = true;
                if let Some(file) = state.files.get_mut(&batch.file) {
                    file.handle = Some(Arc::clone(&created));
                }
                created
            }
        };
        let start = u64::from(batch.start);
        if torn {
            handle.truncate(start)?;
        }
        let written = handle.append(&batch.bytes);
        let repaired = if written.is_err() { handle.truncate(start) } else { Ok(()) };
        let mut state = self.state.lock();
        if let Some(file) = state.files.get_mut(&batch.file) {
            file.torn = repaired.is_err();
            if written.is_ok() {
                file.written = batch.start + batch.bytes.len() as u32;
                file.unsynced = true;
            }
        } else {
            // Its last chunk went meanwhile, and perhaps the file before it was created.
            state.remove_later(batch.file);
        }
        // Chunks to come shall not wait for a file that cannot even be cut back.
        if repaired.is_err() && state.building.as_ref().is_some_and(|building| building.file == batch.file) {
            state.complete();
            self.publish(&state);
        }
        written
    }

    /// Tells those who do not take the lock.
    pub(super) fn publish(&self, state: &FileSet) {
        self.pending_bytes.store(state.pending_bytes(), Ordering::Relaxed);
        self.waiting_batches.store(state.waiting.len(), Ordering::Relaxed);
    }
}

/// The parts of a stored chunk that are known without its bytes.
impl StoredChunk {
    /// Bytes of its data.
    pub fn len(&self) -> usize {
        self.address.len as usize
    }

    /// Whether it has no data; never so for a chunk of a head.
    pub fn is_empty(&self) -> bool {
        self.address.len == 0
    }
}
