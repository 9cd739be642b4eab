//! The data directory: there, writable, and this process's alone.
#![expect(clippy::disallowed_methods, reason = "a lock between processes is about the real file system")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Name of the lock file within the data directory.
pub const LOCK_FILE: &str = "skald.lock";

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It cannot be made or written to.
    #[error("cannot use the data directory {path}: {source}; make it writable, or choose another with --data-dir", path = path.display())]
    Unusable {
        /// What could not be made or written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process uses it.
    #[error(
        "the data directory {path} is in use by {holder} (it holds {LOCK_FILE}); stop that process, or give this one another directory with --data-dir",
        path = path.display()
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Who uses it, as far as known.
        holder: String,
    },
}

/// The data directory, locked for as long as this value lives. The operating system lets go of the lock when the process
/// ends, however it ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be, makes sure that it can be written to, and locks it.
    pub fn lock(path: &Path) -> Result<DataDir, DataDirError> {
        let unusable = |at: &Path, source| DataDirError::Unusable { path: at.to_owned(), source };
        fs::create_dir_all(path).map_err(|error| unusable(path, error))?;
        let lock_path = path.join(LOCK_FILE);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| unusable(&lock_path, error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let known = Read::by_ref(&mut lock).take(20).read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
                let holder = if known { format!("process {}", pid.trim()) } else { "another process".to_owned() };
                return Err(DataDirError::InUse { path: path.to_owned(), holder });
            }
            Err(error) => return Err(unusable(&lock_path, error.into())),
        }
        let written = (|| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())?;
            lock.sync_all()
        })();
        written.map_err(|error| unusable(&lock_path, error))?;
        Ok(DataDir { path: path.to_owned(), _lock: lock })
    }

    /// Locks the data directory that `path` lies in, if it lies in one: what a tool does that changes files in there.
    pub fn lock_around(path: &Path) -> Result<Option<DataDir>, DataDirError> {
        let unusable = |source| DataDirError::Unusable { path: path.to_owned(), source };
        let whole = fs::canonicalize(path).map_err(unusable)?;
        let around = whole.ancestors().find(|dir| dir.join(LOCK_FILE).is_file());
        around.map(Self::lock).transpose()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it_and_it_is_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/data");
        let held = DataDir::lock(&path).unwrap();
        let error = DataDir::lock(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        assert!(error.contains("deep/data") && error.contains("--data-dir"), "{error}");
        let inside = path.join("tsdb/tenant");
        fs::create_dir_all(&inside).unwrap();
        assert!(matches!(DataDir::lock_around(&inside), Err(DataDirError::InUse { .. })));
        drop(held);
        assert!(DataDir::lock_around(&inside).unwrap().is_some());
        assert!(DataDir::lock_around(dir.path()).unwrap().is_none(), "it is around no data directory");
        DataDir::lock(&path).unwrap();
    }

    #[test]
    fn an_unwritable_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below"), PathBuf::from("/proc/skald")] {
            let error = DataDir::lock(&path).unwrap_err();
            assert!(matches!(error, DataDirError::Unusable { .. }), "{error:?}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
    }
}
