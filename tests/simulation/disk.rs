//! A process' view of its disk: none after its end, and, on request, its end in the middle of an append.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use skald_tsdb::disk::{DirEntry, Disk, DiskFile, MemDisk};

use crate::network::Life;

/// The disk of one life.
#[derive(Clone)]
pub struct HostDisk {
    disk: MemDisk,
    life: Arc<Life>,
    /// Changes until the process dies in one.
    fuse: Arc<Mutex<Option<u64>>>,
}

impl HostDisk {
    pub fn new(disk: MemDisk, life: Arc<Life>) -> Self {
        Self { disk, life, fuse: Arc::default() }
    }

    /// Lets the process die in the middle of a change to come.
    pub fn light_fuse(&self, changes: u64) {
        *self.fuse.lock() = Some(changes);
    }

    /// Lets it live on after all.
    pub fn put_fuse_out(&self) {
        *self.fuse.lock() = None;
    }

    fn alive(&self) -> io::Result<()> {
        if self.life.is_dead() { Err(io::Error::other("the process is dead")) } else { Ok(()) }
    }

    /// One change: whether the process dies in it.
    fn burn(&self) -> io::Result<bool> {
        self.alive()?;
        let mut fuse = self.fuse.lock();
        let Some(left) = fuse.as_mut() else { return Ok(false) };
        *left = left.saturating_sub(1);
        let dies = *left == 0;
        if dies {
            self.life.end();
        }
        Ok(dies)
    }

    fn change<T>(&self, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.burn()? {
            return self.alive().and_then(|()| change());
        }
        change()
    }

    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(HostFile { file, disk: self.clone() })
    }
}

impl Disk for HostDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.change(|| Ok(self.file(self.disk.create(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.alive()?;
        Ok(self.file(self.disk.open(path)?))
    }

    fn open_writable(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.alive()?;
        Ok(self.file(self.disk.open_writable(path)?))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.change(|| self.disk.create_dir_all(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.alive()?;
        self.disk.list(path)
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|| self.disk.rename(from, to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change(|| self.disk.remove_file(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.change(|| self.disk.remove_dir_all(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        self.disk.sync_dir(path)
    }
}

struct HostFile {
    file: Arc<dyn DiskFile>,
    disk: HostDisk,
}

impl DiskFile for HostFile {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        if self.disk.burn()? {
            // Some of it got there.
            let part = bytes.len() * (bytes.len() % 7) / 7;
            self.file.append(&bytes[..part])?;
            return self.disk.alive();
        }
        self.file.append(bytes)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.alive()?;
        self.file.read_at(buffer, offset)
    }

    fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.disk.alive()?;
        self.file.read_at_hand(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.alive()?;
        self.file.sync()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.change(|| self.file.truncate(len))
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.alive()?;
        self.file.len()
    }
}
