//! Where blocks are: finds them, and brings one to the local disk.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skald_tsdb::block::{BlockMeta, META_FILE};
use skald_tsdb::disk::Disk;
use ulid::Ulid;

use super::{Options, Progress, ToolError, of_block, open_at};
use crate::bucket::Bucket;
use crate::bucket::config::Backend;
use crate::bucket::layout::parse_ulid;
use crate::config::Config;
use crate::tenant::TenantId;

/// Folders between a location and its blocks: a data directory's `tsdb`, and the tenant.
const MAX_DEPTH: usize = 2;
/// Bytes of an object that are fetched at once.
const PART_BYTES: u64 = 8 << 20;

/// A directory, or a part of a bucket.
pub(super) enum Place {
    Directory { root: PathBuf, disk: Arc<dyn Disk> },
    Bucket { bucket: Arc<dyn Bucket>, root: String, disk: Arc<dyn Disk>, config: Box<Config> },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { root, .. } => write!(f, "{}", root.display()),
            Self::Bucket { bucket, root, .. } if root.is_empty() => f.write_str(bucket.name()),
            Self::Bucket { bucket, root, .. } => write!(f, "{}/{root}", bucket.name()),
        }
    }
}

/// A block that was found; it may be damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundBlock {
    pub(super) ulid: Ulid,
    /// The folder it lies in, if that can be a tenant.
    pub(super) tenant: Option<TenantId>,
    /// Its folder, from the place's root on; empty when the root is the block.
    pub(super) path: String,
}

impl FoundBlock {
    /// What errors call it.
    pub(super) fn name(&self) -> String {
        match &self.tenant {
            Some(tenant) => format!("{tenant}/{}", self.ulid),
            None => self.ulid.to_string(),
        }
    }
}

/// A block's directory on the local disk; removed in the end if it was brought here.
pub(super) struct LocalCopy {
    pub(super) dir: PathBuf,
    remove: Option<(PathBuf, Arc<dyn Disk>)>,
}

impl Drop for LocalCopy {
    fn drop(&mut self) {
        if let Some((dir, disk)) = &self.remove {
            let _ = disk.remove_dir_all(dir);
        }
    }
}

impl Place {
    /// Understands `location`: a directory, or `s3://bucket/prefix`, `gs://bucket/prefix`,
    /// `azure://account/container/prefix`, `file:///directory`. Without one, the storage of the settings.
    pub(super) fn open(location: Option<&str>, config: &Config, disk: Arc<dyn Disk>) -> Result<Self, ToolError> {
        let storage = &config.blocks_storage;
        let mut config = config.clone();
        let directory = |root: PathBuf, disk: Arc<dyn Disk>| match disk.list(&root) {
            Ok(_) => Ok(Self::Directory { root, disk }),
            Err(error) => Err(ToolError::Disk { path: root.display().to_string(), source: error }),
        };
        let root = match location.map(|location| (location, location.split_once("://"))) {
            None if storage.backend == Backend::Filesystem => {
                let dir = storage.filesystem.dir.clone().unwrap_or_else(|| config.data_dir.join("blocks"));
                return directory(dir.join(&storage.storage_prefix), disk);
            }
            None => storage.storage_prefix.clone(),
            Some((path, None)) => return directory(path.into(), disk),
            Some((_, Some(("file", path)))) => return directory(path.into(), disk),
            Some((url, Some((scheme, rest)))) => {
                let (name, mut root) = rest.split_once('/').unwrap_or((rest, ""));
                let storage = &mut config.blocks_storage;
                match scheme {
                    "s3" => (storage.backend, storage.s3.bucket_name) = (Backend::S3, name.to_owned()),
                    "gs" => (storage.backend, storage.gcs.bucket_name) = (Backend::Gcs, name.to_owned()),
                    "azure" => {
                        let (container, rest) = root.split_once('/').unwrap_or((root, ""));
                        storage.backend = Backend::Azure;
                        (storage.azure.account_name, storage.azure.container_name) =
                            (name.to_owned(), container.to_owned());
                        root = rest;
                    }
                    _ => {
                        return Err(ToolError::Location(format!(
                            "{url}: unknown kind of storage `{scheme}`; known are a directory, s3://bucket/prefix, \
                             gs://bucket/prefix, azure://account/container/prefix and file:///directory"
                        )));
                    }
                }
                root.trim_matches('/').to_owned()
            }
        };
        let bucket = open_at(&config, "", disk.as_ref())?;
        Ok(Self::Bucket { bucket, root, disk, config: Box::new(config) })
    }

    /// The blocks that the options ask for, by tenant and name.
    pub(super) async fn find_blocks(&self, options: &Options) -> Result<Vec<FoundBlock>, ToolError> {
        let (named, range) = (options.blocks()?, options.range()?);
        let mut found = Vec::new();
        let root_name = match self {
            Self::Directory { root, .. } => {
                let name = |root: &Path| root.file_name().map(|name| name.to_string_lossy().into_owned());
                (name(root), root.parent().and_then(name))
            }
            Self::Bucket { root, .. } => {
                let mut parts = root.rsplit('/').filter(|part| !part.is_empty()).map(str::to_owned);
                (parts.next(), parts.next())
            }
        };
        let tenant = |name: &Option<String>| name.as_deref().and_then(|name| TenantId::new(name).ok());
        if let (Some(name), parent) = &root_name
            && let Some(ulid) = parse_ulid(name)
        {
            found.push(FoundBlock { ulid, tenant: tenant(parent), path: String::new() });
        } else {
            // Folders still to be looked into, with their own name.
            let mut folders = vec![(String::new(), root_name.0)];
            for _ in 0..=MAX_DEPTH {
                for (folder, own_name) in std::mem::take(&mut folders) {
                    for name in self.list_folders(&folder).await? {
                        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                        match parse_ulid(&name) {
                            Some(ulid) => found.push(FoundBlock { ulid, tenant: tenant(&own_name), path }),
                            None => folders.push((path, Some(name))),
                        }
                    }
                }
            }
        }
        found.retain(|block| named.is_empty() || named.contains(&block.ulid));
        let wanted = Some(options.tenant.as_str()).filter(|tenant| !tenant.is_empty());
        found.retain(|block| wanted.is_none_or(|wanted| block.tenant.as_ref().is_some_and(|t| t.as_str() == wanted)));
        if range != skald_model::QueryRange::ALL {
            let mut inside = Vec::new();
            for block in found {
                // What cannot be read is not hidden by a time range.
                if self.meta(&block).await.ok().is_none_or(|meta| meta.range().overlaps(range)) {
                    inside.push(block);
                }
            }
            found = inside;
        }
        found.sort_by(|a, b| {
            (a.tenant.as_ref().map(TenantId::as_str), a.ulid).cmp(&(b.tenant.as_ref().map(TenantId::as_str), b.ulid))
        });
        Ok(found)
    }

    async fn list_folders(&self, folder: &str) -> Result<Vec<String>, ToolError> {
        match self {
            Self::Directory { root, disk } => {
                let path = root.join(folder);
                let entries = disk.list(&path).map_err(at_path(&path))?;
                Ok(entries.into_iter().filter(|entry| entry.is_dir).map(|entry| entry.name).collect())
            }
            Self::Bucket { bucket, root, .. } => {
                let parts = [root.as_str(), folder].into_iter().filter(|part| !part.is_empty());
                let prefix: String = parts.flat_map(|part| [part, "/"]).collect();
                Ok(bucket.list(&prefix).await?.folders)
            }
        }
    }

    /// What a block says about itself.
    pub(super) async fn meta(&self, block: &FoundBlock) -> Result<BlockMeta, ToolError> {
        let bytes = match self {
            Self::Directory { root, disk } => {
                let path = root.join(&block.path).join(META_FILE);
                disk.read(&path).map_err(at_path(&path))?.into()
            }
            Self::Bucket { bucket, root, .. } => bucket.get(&key(root, &block.path, META_FILE)).await?.bytes,
        };
        BlockMeta::parse(&bytes).map_err(of_block(block))
    }

    /// Bytes of a block's files in a local directory; 0 of a bucket's, which says so in its `meta.json`.
    pub(super) fn local_size(&self, block: &FoundBlock) -> Result<u64, ToolError> {
        let Self::Directory { root, disk } = self else { return Ok(0) };
        let mut size = 0;
        for folder in [root.join(&block.path), root.join(&block.path).join("chunks")] {
            for entry in disk.list(&folder).map_err(at_path(&folder))?.iter().filter(|entry| !entry.is_dir) {
                let path = folder.join(&entry.name);
                size += disk.open(&path).and_then(|file| file.len()).map_err(at_path(&path))?;
            }
        }
        Ok(size)
    }

    /// The block as a local directory.
    pub(super) async fn bring(&self, block: &FoundBlock, options: &Options) -> Result<LocalCopy, ToolError> {
        let (bucket, root, disk) = match self {
            Self::Directory { root, .. } => return Ok(LocalCopy { dir: root.join(&block.path), remove: None }),
            Self::Bucket { bucket, root, disk, .. } => (bucket, root, disk),
        };
        let work_dir = options.work_dir.clone().unwrap_or_else(std::env::temp_dir);
        let own = work_dir.join(format!("skald-tsdb-{}-{}", std::process::id(), block.ulid));
        // The block's directory bears its name, as verifying expects.
        let dir = own.join(block.ulid.to_string());
        let copy = LocalCopy { dir: dir.clone(), remove: Some((own, disk.clone())) };
        let mut files = Vec::new();
        let folder = key(root, &block.path, "");
        for (prefix, below) in [("", ""), ("chunks/", "chunks/")] {
            let listing = bucket.list(&format!("{folder}{prefix}")).await?;
            files.extend(listing.objects.into_iter().map(|(name, meta)| (format!("{below}{name}"), meta.size)));
        }
        disk.create_dir_all(&dir.join("chunks")).map_err(at_path(&dir))?;
        let progress = Progress::new(format!("fetch {}", block.ulid));
        let (mut done, total) = (0, files.iter().map(|(_, size)| size).sum());
        for (name, size) in files {
            let path = dir.join(&name);
            let file = disk.create(&path).map_err(at_path(&path))?;
            let mut at = 0;
            while at < size {
                let part = bucket.get_range(&format!("{folder}{name}"), at..size.min(at + PART_BYTES)).await?;
                file.append(&part).map_err(at_path(&path))?;
                at += part.len() as u64;
                done += part.len() as u64;
                progress.update(done, total);
            }
        }
        Ok(copy)
    }
}

/// Key of a block's file, or, without a file, of its folder with `/`.
pub(super) fn key(root: &str, path: &str, file: &str) -> String {
    let mut key: String =
        [root, path].into_iter().filter(|part| !part.is_empty()).flat_map(|part| [part, "/"]).collect();
    key.push_str(file);
    key
}

pub(super) fn at_path(path: &Path) -> impl FnOnce(std::io::Error) -> ToolError {
    let path = path.display().to_string();
    move |source| ToolError::Disk { path, source }
}
