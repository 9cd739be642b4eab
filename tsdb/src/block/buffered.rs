//! A file being written front to back.

use std::path::Path;
use std::sync::Arc;

use super::{BlockError, BlockFile};
use crate::disk::{Disk, DiskFile};

/// Bytes gathered before they go to the file.
const BUFFER_LEN: usize = 256 << 10;

/// Gathers small writes and knows the position.
pub(super) struct BufferedFile {
    file: Arc<dyn DiskFile>,
    kind: BlockFile,
    buffer: Vec<u8>,
    flushed: u64,
}

impl BufferedFile {
    pub(super) fn create(disk: &dyn Disk, path: &Path, kind: BlockFile) -> Result<Self, BlockError> {
        let file = disk.create(path).map_err(BlockError::io(kind))?;
        Ok(Self { file, kind, buffer: Vec::with_capacity(BUFFER_LEN), flushed: 0 })
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), BlockError> {
        if self.buffer.len() + bytes.len() > BUFFER_LEN {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_LEN {
            self.file.append(bytes).map_err(BlockError::io(self.kind))?;
            self.flushed += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Zeros up to the next multiple of `align`, a power of two up to 16.
    pub(super) fn pad(&mut self, align: u64) -> Result<(), BlockError> {
        let padding = self.position().next_multiple_of(align) - self.position();
        self.put(&[0; 16][..padding as usize])
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        if !self.buffer.is_empty() {
            self.file.append(&self.buffer).map_err(BlockError::io(self.kind))?;
            self.flushed += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes what is left and syncs.
    pub(super) fn sync(&mut self) -> Result<(), BlockError> {
        self.flush()?;
        self.file.sync().map_err(BlockError::io(self.kind))
    }
}
