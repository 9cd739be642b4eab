//! A file system in memory, with faults on request.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{DirEntry, Disk, DiskFile};

/// A file system in memory. Clones share one content.
///
/// [`MemDisk::crash`] forgets file bytes that were not synced, as a power cut would (directory operations are durable at
/// once); [`MemDisk::set_free_bytes`] makes the disk fill up.
#[derive(Clone, Default)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<PathBuf, Node>,
    /// Bytes that may still be appended; `None` is without end.
    free_bytes: Option<u64>,
    failing_syncs: bool,
}

#[derive(Clone)]
enum Node {
    Dir,
    File(Arc<Mutex<Content>>),
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    synced_len: usize,
}

struct MemFile {
    content: Arc<Mutex<Content>>,
    disk: MemDisk,
}

impl MemDisk {
    /// Drops everything that was appended after the last sync of each file.
    pub fn crash(&self) {
        for node in self.state.lock().nodes.values() {
            if let Node::File(content) = node {
                let mut content = content.lock();
                let len = content.synced_len;
                content.bytes.truncate(len);
            }
        }
    }

    /// Lets only this many more bytes be appended; the rest fails with `StorageFull` after a partial write.
    pub fn set_free_bytes(&self, free: Option<u64>) {
        self.state.lock().free_bytes = free;
    }

    /// Lets every sync of a file fail from now on, or work again.
    pub fn set_failing_syncs(&self, failing: bool) {
        self.state.lock().failing_syncs = failing;
    }

    fn file(&self, content: Arc<Mutex<Content>>) -> Arc<dyn DiskFile> {
        Arc::new(MemFile { content, disk: self.clone() })
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for MemDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        match path.parent().and_then(|parent| state.nodes.get(parent)) {
            Some(Node::Dir) => {}
            _ => return Err(not_found()),
        }
        let content = Arc::new(Mutex::new(Content::default()));
        state.nodes.insert(path.to_owned(), Node::File(content.clone()));
        drop(state);
        Ok(self.file(content))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let content = match self.state.lock().nodes.get(path) {
            Some(Node::File(content)) => content.clone(),
            _ => return Err(not_found()),
        };
        Ok(self.file(content))
    }

    fn open_writable(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        for dir in path.ancestors() {
            match state.nodes.get(dir) {
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                Some(Node::Dir) => {}
                None => drop(state.nodes.insert(dir.to_owned(), Node::Dir)),
            }
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let state = self.state.lock();
        if !matches!(state.nodes.get(path), Some(Node::Dir)) {
            return Err(not_found());
        }
        let children = state.nodes.iter().filter(|(p, _)| p.parent() == Some(path));
        Ok(children
            .filter_map(|(p, node)| {
                let name = p.file_name()?.to_str()?.to_owned();
                Some(DirEntry { name, is_dir: matches!(node, Node::Dir) })
            })
            .collect())
    }

    fn exists(&self, path: &Path) -> bool {
        self.state.lock().nodes.contains_key(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.nodes.contains_key(from) {
            return Err(not_found());
        }
        let moved: Vec<PathBuf> = state.nodes.keys().filter(|p| p.starts_with(from)).cloned().collect();
        for path in moved {
            if let (Some(node), Ok(rest)) = (state.nodes.remove(&path), path.strip_prefix(from)) {
                let target = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
                state.nodes.insert(target, node);
            }
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        match state.nodes.get(path) {
            Some(Node::File(_)) => {
                state.nodes.remove(path);
                Ok(())
            }
            _ => Err(not_found()),
        }
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.nodes.contains_key(path) {
            return Err(not_found());
        }
        state.nodes.retain(|p, _| !p.starts_with(path));
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for MemFile {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let fits = match &mut state.free_bytes {
            None => bytes.len(),
            Some(free) => {
                let fits = (*free).min(bytes.len() as u64);
                *free -= fits;
                fits as usize
            }
        };
        drop(state);
        self.content.lock().bytes.extend_from_slice(&bytes[..fits]);
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.content.lock();
        let start = content.bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let n = buffer.len().min(content.bytes.len() - start);
        buffer[..n].copy_from_slice(&content.bytes[start..start + n]);
        Ok(n)
    }

    fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.read_at(buffer, offset).map(Some)
    }

    fn sync(&self) -> io::Result<()> {
        if self.disk.state.lock().failing_syncs {
            return Err(io::Error::other("the sync fails on request"));
        }
        let mut content = self.content.lock();
        content.synced_len = content.bytes.len();
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut content = self.content.lock();
        let len = usize::try_from(len).map_err(io::Error::other)?;
        content.bytes.resize(len, 0);
        content.synced_len = content.synced_len.min(len);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().bytes.len() as u64)
    }
}
