//! The seam to the file system, so that faults (a full disk, a torn write, a crash) can be injected.
//!
//! [`RealDisk`] is the operating system's; [`MemDisk`] keeps everything in memory, forgets what was not synced when told
//! to crash, and fails on request. Both pass [`conformance`].

mod mem;
mod real;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use mem::MemDisk;
pub use real::RealDisk;

/// A directory entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// Last component of the path.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// A file system. Paths are used as given; parents must exist, except where a method says otherwise.
pub trait Disk: Send + Sync + 'static {
    /// Creates (or truncates) a file for appending and reading.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for appending, truncating and reading.
    fn open_writable(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a directory and all its parents; succeeds when it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Entries of a directory, ascending by name.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Whether a file or directory is there.
    fn exists(&self, path: &Path) -> bool;
    /// Renames a file or directory, replacing a file at `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all it holds.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes the directory's entries (creations, renames, removals) durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Reads a whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Writes a whole file through a temporary neighbour and a rename, durable when it returns.
    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        let file = self.create(&temporary)?;
        let written = file.append(bytes).and_then(|()| file.sync());
        if let Err(error) = written {
            let _ = self.remove_file(&temporary);
            return Err(error);
        }
        self.rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |parent| self.sync_dir(parent))
    }
}

/// An open file. All methods may be called from several threads; appends do not interleave.
pub trait DiskFile: Send + Sync {
    /// Appends all of `bytes` at the end. On an error any prefix may have been written: truncate before going on.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Reads like [`DiskFile::read_at`] what is in memory anyway; `None` if some of it may have to be waited for.
    fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>>;
    /// Makes everything appended so far durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file to `len` bytes; later appends go there.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Size in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` from `offset`, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self.read_at(buffer, offset)? {
            n if n == buffer.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// What every [`Disk`] must do, run against an empty directory `root`.
#[doc(hidden)]
pub fn conformance(disk: &dyn Disk, root: &Path) -> io::Result<()> {
    let dir = root.join("a/b");
    disk.create_dir_all(&dir)?;
    disk.create_dir_all(&dir)?;
    let path = dir.join("file");
    assert!(!disk.exists(&path));
    assert_eq!(disk.open(&path).err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
    let file = disk.create(&path)?;
    file.append(b"hello ")?;
    file.append(b"world")?;
    file.sync()?;
    let mut buffer = [0; 5];
    file.read_exact_at(&mut buffer, 6)?;
    assert_eq!(&buffer, b"world");
    assert_eq!(file.read_at(&mut [0; 10], 8)?, 3);
    let mut at_hand = [0; 4];
    match file.read_at_hand(&mut at_hand, 2)? {
        Some(n) => assert_eq!((n, &at_hand), (4, b"llo ")),
        None => assert_eq!(at_hand.len(), 4, "a disk may always say that it has to wait"),
    }
    assert!(matches!(file.read_at_hand(&mut [0; 10], 99)?, Some(0) | None));
    assert_eq!(file.read_at(&mut [0; 10], 99)?, 0);
    file.truncate(5)?;
    file.append(b"!")?;
    assert_eq!(disk.read(&path)?, b"hello!");
    let again = disk.open_writable(&path)?;
    again.append(b"?")?;
    assert_eq!((again.len()?, again.is_empty()?), (7, false));
    disk.write_atomically(&dir.join("other"), b"x")?;
    let names: Vec<String> = disk.list(&dir)?.into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["file", "other"]);
    disk.rename(&path, &dir.join("other"))?;
    assert_eq!(disk.read(&dir.join("other"))?, b"hello!?");
    disk.rename(&dir, &root.join("a/c"))?;
    assert_eq!(disk.list(&root.join("a"))?, [DirEntry { name: "c".into(), is_dir: true }]);
    assert_eq!(disk.read(&root.join("a/c/other"))?, b"hello!?");
    disk.remove_file(&root.join("a/c/other"))?;
    assert_eq!(disk.remove_file(&root.join("a/c/other")).err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
    disk.sync_dir(&root.join("a"))?;
    disk.remove_dir_all(&root.join("a"))?;
    assert!(!disk.exists(&root.join("a/c")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_disks_conform() {
        let dir = tempfile::tempdir().unwrap();
        conformance(&RealDisk, dir.path()).unwrap();
        conformance(&MemDisk::default(), Path::new("/root")).unwrap();
    }
}
