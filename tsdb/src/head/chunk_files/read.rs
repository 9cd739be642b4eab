//! Finding chunks again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::file_set::Place;
use super::record::{RECORD_HEADER_LEN, check_record};
use super::{ChunkFiles, StoredChunk};
use crate::disk::DiskFile;
use crate::wal::HeadId;

/// Bytes between two records that are read along rather than left out: copying them costs less than another call.
const MAX_GAP: u64 = 4 << 10;
/// Most bytes of one read.
const MAX_RUN: u64 = 1 << 20;

/// Why a chunk cannot be read. Others are not concerned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkReadError {
    /// The record's bytes are not what was written.
    #[error("chunk file {file}: the record at {offset} is damaged")]
    Damaged {
        /// The file's number.
        file: u32,
        /// The record's offset.
        offset: u32,
    },
    /// The file is not there.
    #[error("chunk file {file} is gone")]
    Gone {
        /// Its number.
        file: u32,
    },
    /// What the disk says.
    #[error("chunk file {file}: {text}")]
    Io {
        /// The file's number.
        file: u32,
        /// The disk's words.
        text: String,
    },
}

/// Neighbours in one file, read at once.
struct Run {
    handle: Arc<dyn DiskFile>,
    start: u64,
    end: u64,
    /// Positions in the list of chunks wanted.
    members: Vec<usize>,
}

impl ChunkFiles {
    /// Reads one chunk of `head`.
    pub fn read(&self, head: HeadId, chunk: &StoredChunk) -> Result<Bytes, ChunkReadError> {
        let mut read = self.read_all(head, std::slice::from_ref(chunk));
        read.pop().unwrap_or(Err(ChunkReadError::Gone { file: chunk.address.file }))
    }

    /// Reads chunks of `head`, in few calls where they lie close to each other; one result per chunk, in their order. The
    /// results may share buffers: keep them as long as one batch, not longer.
    pub fn read_all(&self, head: HeadId, chunks: &[StoredChunk]) -> Vec<Result<Bytes, ChunkReadError>> {
        let gone = |chunk: &StoredChunk| Err(ChunkReadError::Gone { file: chunk.address.file });
        let mut records: Vec<Result<Bytes, ChunkReadError>> = chunks.iter().map(gone).collect();
        let mut in_files = Vec::new();
        {
            let state = self.state.lock();
            for (at, chunk) in chunks.iter().enumerate() {
                match state.place(chunk.address) {
                    Some(Place::Memory(record)) => records[at] = Ok(record),
                    Some(Place::File(handle)) => in_files.push((at, handle)),
                    None => {}
                }
            }
        }
        in_files.sort_unstable_by_key(|(at, _)| chunks[*at].address);
        for run in runs(chunks, in_files) {
            self.read_run(&run, chunks, &mut records);
        }
        for (record, chunk) in records.iter_mut().zip(chunks) {
            if let Ok(bytes) = record {
                let address = chunk.address;
                *record = check_record(bytes, head, chunk)
                    .ok_or(ChunkReadError::Damaged { file: address.file, offset: address.offset });
            }
            if record.is_err() {
                self.lost_reads.fetch_add(1, Ordering::Relaxed);
            }
        }
        records
    }

    fn read_run(&self, run: &Run, chunks: &[StoredChunk], records: &mut [Result<Bytes, ChunkReadError>]) {
        let whole = self.read_range(run.handle.as_ref(), run.start, run.end);
        for at in &run.members {
            let (start, end) = extent(&chunks[*at]);
            records[*at] = match &whole {
                Ok(bytes) => Ok(bytes.slice((start - run.start) as usize..(end - run.start) as usize)),
                // One bad place shall not cost its neighbours.
                Err(_) if run.members.len() > 1 => {
                    self.read_range(run.handle.as_ref(), start, end).map_err(|error| failed(&chunks[*at], &error))
                }
                Err(error) => Err(failed(&chunks[*at], error)),
            };
        }
    }

    fn read_range(&self, file: &dyn DiskFile, start: u64, end: u64) -> io::Result<Bytes> {
        // Addresses out of a snapshot may be anything, for all that their checksum says.
        if end - start > MAX_RUN && file.len()? < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffers.fill((end - start) as usize, |buffer| file.read_exact_at(buffer, start))
    }
}

/// Offsets of a record in its file.
fn extent(chunk: &StoredChunk) -> (u64, u64) {
    let start = u64::from(chunk.address.offset);
    (start, start + RECORD_HEADER_LEN as u64 + u64::from(chunk.address.len))
}

/// Joins neighbours; `in_files` ascends by address.
fn runs(chunks: &[StoredChunk], in_files: Vec<(usize, Arc<dyn DiskFile>)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (at, handle) in in_files {
        let (start, end) = extent(&chunks[at]);
        if let Some(run) = runs.last_mut()
            && chunks[run.members[0]].address.file == chunks[at].address.file
            && start <= run.end + MAX_GAP
            && end <= run.start + MAX_RUN
        {
            run.end = run.end.max(end);
            run.members.push(at);
        } else {
            runs.push(Run { handle, start, end, members: vec![at] });
        }
    }
    runs
}

fn failed(chunk: &StoredChunk, error: &io::Error) -> ChunkReadError {
    let file = chunk.address.file;
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ChunkReadError::Damaged { file, offset: chunk.address.offset },
        _ => ChunkReadError::Io { file, text: error.to_string() },
    }
}
