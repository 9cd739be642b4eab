//! A bucket over the `object_store` crate: a local directory, S3, GCS or Azure.

use std::error::Error as _;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion, WriteMultipart};
use skald_tsdb::disk::{Disk, DiskFile, RealDisk};

use super::{
    Bucket, BucketError, Cause, Condition, Listing, Object, ObjectMeta, Operation, Version, valid_key, valid_prefix,
};

/// Part size of streamed writes. S3 wants at least 5 MiB and at most 10,000 parts, so objects up to 80 GB fit.
const PART_BYTES: usize = 8 << 20;
/// Parts of one streamed write under way at once; with [`PART_BYTES`] the memory one upload takes.
const PARTS_IN_FLIGHT: usize = 3;

/// A bucket over the `object_store` crate.
pub struct ObjectStoreBucket {
    name: Arc<str>,
    store: Arc<dyn ObjectStore>,
    /// Prepended to every key: empty, or ends with `/`.
    prefix: String,
    conditional_update: ConditionalUpdate,
    /// The same store, when it is a directory of this machine.
    directory: Option<Arc<LocalFileSystem>>,
}

/// Who checks that an object is unchanged before it is replaced.
pub(super) enum ConditionalUpdate {
    /// The store.
    Store,
    /// This process: a directory has no such operation. The lock is held from the check to the write, so it serialises
    /// the conditional updates of this process; another process on the same directory could still slip in between.
    Local(tokio::sync::Mutex<()>),
}

impl ObjectStoreBucket {
    /// Wraps `store`; all keys live below `prefix`, which is empty or a valid key.
    pub(super) fn new(
        name: String,
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        conditional_update: ConditionalUpdate,
    ) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Self { name: name.into(), store, prefix, conditional_update, directory: None }
    }

    /// Wraps a directory of this machine.
    pub(super) fn of_directory(name: String, directory: LocalFileSystem, prefix: &str) -> Self {
        let directory = Arc::new(directory);
        let conditional_update = ConditionalUpdate::Local(tokio::sync::Mutex::default());
        Self { directory: Some(directory.clone()), ..Self::new(name, directory, prefix, conditional_update) }
    }

    fn error(&self, operation: Operation, key: &str, cause: Cause) -> BucketError {
        BucketError { bucket: self.name.clone(), operation, key: key.to_owned(), cause }
    }

    fn path(&self, operation: Operation, key: &str) -> Result<Path, BucketError> {
        let malformed = |why: String| self.error(operation, key, Cause::Refused(why));
        if !valid_key(key) {
            return Err(malformed("malformed key".into()));
        }
        Path::parse(format!("{}{key}", self.prefix)).map_err(|e| malformed(e.to_string()))
    }

    /// Runs one call on the store and gives its error our meaning.
    async fn call<T>(
        &self,
        operation: Operation,
        key: &str,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BucketError> {
        call.await.map_err(|e| self.error(operation, key, cause_of(&e)))
    }

    async fn put_if_unchanged_locally(
        &self,
        lock: &tokio::sync::Mutex<()>,
        key: &str,
        path: &Path,
        bytes: Bytes,
        expected: &Version,
    ) -> Result<Version, BucketError> {
        let _only_one = lock.lock().await;
        let current = match self.store.head(path).await {
            Ok(meta) => Some(version_of(&meta)),
            Err(object_store::Error::NotFound { .. }) => None,
            Err(e) => return Err(self.error(Operation::Put, key, cause_of(&e))),
        };
        if current.as_ref() != Some(expected) {
            return Err(self.error(Operation::Put, key, Cause::Precondition));
        }
        let written = self.call(Operation::Put, key, self.store.put(path, bytes.into())).await?;
        Ok(Version { e_tag: written.e_tag, generation: written.version })
    }

    async fn write_parts(
        &self,
        key: &str,
        path: &Path,
        mut parts: BoxStream<'_, std::io::Result<Bytes>>,
    ) -> Result<(), BucketError> {
        let failed = |e: object_store::Error| self.error(Operation::PutStream, key, cause_of(&e));
        let upload = self.store.put_multipart(path).await.map_err(failed)?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        while let Some(part) = parts.next().await {
            let refused = match part {
                Ok(part) => match writer.wait_for_capacity(PARTS_IN_FLIGHT).await {
                    Ok(()) => {
                        writer.put(part);
                        continue;
                    }
                    Err(e) => cause_of(&e),
                },
                Err(e) => Cause::Source(e.to_string()),
            };
            // The reason matters more than whether the abandoned parts could be removed at once.
            if let Err(error) = writer.abort().await {
                tracing::warn!(bucket = %self.name, key, %error, "abandoned upload could not be removed");
            }
            return Err(self.error(Operation::PutStream, key, refused));
        }
        writer.finish().await.map(drop).map_err(failed)
    }
}

#[async_trait]
impl Bucket for ObjectStoreBucket {
    fn name(&self) -> &str {
        &self.name
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Version, BucketError> {
        let path = self.path(Operation::Put, key)?;
        let mode = match (condition, &self.conditional_update) {
            (Condition::None, _) => PutMode::Overwrite,
            (Condition::Absent, _) => PutMode::Create,
            (Condition::Unchanged(expected), ConditionalUpdate::Local(lock)) => {
                return self.put_if_unchanged_locally(lock, key, &path, bytes, &expected).await;
            }
            (Condition::Unchanged(expected), ConditionalUpdate::Store) => {
                PutMode::Update(UpdateVersion { e_tag: expected.e_tag, version: expected.generation })
            }
        };
        let options = PutOptions::from(mode);
        let written = self.call(Operation::Put, key, self.store.put_opts(&path, bytes.into(), options)).await?;
        Ok(Version { e_tag: written.e_tag, generation: written.version })
    }

    async fn put_stream(&self, key: &str, parts: BoxStream<'_, std::io::Result<Bytes>>) -> Result<(), BucketError> {
        let path = self.path(Operation::PutStream, key)?;
        self.write_parts(key, &path, parts).await
    }

    async fn get(&self, key: &str) -> Result<Object, BucketError> {
        let path = self.path(Operation::Get, key)?;
        self.call(Operation::Get, key, async {
            let result = self.store.get(&path).await?;
            let meta = meta_of(&result.meta);
            Ok(Object { bytes: result.bytes().await?, meta })
        })
        .await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let path = self.path(Operation::GetRange, key)?;
        let bytes = self.call(Operation::GetRange, key, self.store.get_range(&path, range.clone())).await?;
        if bytes.len() as u64 != range.end - range.start {
            let cause = Cause::Refused(format!("range {range:?} ends beyond the object, {} bytes came", bytes.len()));
            return Err(self.error(Operation::GetRange, key, cause));
        }
        Ok(bytes)
    }

    fn has_files(&self) -> bool {
        self.directory.is_some()
    }

    fn open_file(&self, key: &str) -> Result<Option<Arc<dyn DiskFile>>, BucketError> {
        let Some(directory) = &self.directory else { return Ok(None) };
        let path = self.path(Operation::GetRange, key)?;
        let path =
            directory.path_to_filesystem(&path).map_err(|e| self.error(Operation::GetRange, key, cause_of(&e)))?;
        match RealDisk.open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) => {
                let cause = match error.kind() {
                    std::io::ErrorKind::NotFound => Cause::NotFound,
                    _ => Cause::Unavailable(error.to_string()),
                };
                Err(self.error(Operation::GetRange, key, cause))
            }
        }
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        let path = self.path(Operation::Head, key)?;
        self.call(Operation::Head, key, self.store.head(&path)).await.map(|meta| meta_of(&meta))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, BucketError> {
        if !valid_prefix(prefix) {
            return Err(self.error(Operation::List, prefix, Cause::Refused("malformed prefix".into())));
        }
        let whole = format!("{}{prefix}", self.prefix);
        let path = match whole.strip_suffix('/') {
            None => None,
            Some(trimmed) => {
                let malformed =
                    |e: object_store::path::Error| self.error(Operation::List, prefix, Cause::Refused(e.to_string()));
                Some(Path::parse(trimmed).map_err(malformed)?)
            }
        };
        let found = match self.store.list_with_delimiter(path.as_ref()).await {
            Ok(found) => found,
            Err(e) => {
                // A prefix without keys is empty, so what was not found is the bucket.
                let cause = match cause_of(&e) {
                    Cause::NotFound => Cause::Refused(one_line(&e)),
                    cause => cause,
                };
                return Err(self.error(Operation::List, prefix, cause));
            }
        };
        let last = |path: &Path| path.filename().unwrap_or_default().to_owned();
        let mut listing = Listing {
            objects: found.objects.iter().map(|meta| (last(&meta.location), meta_of(meta))).collect(),
            folders: found.common_prefixes.iter().map(last).collect(),
        };
        listing.objects.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        listing.folders.sort_unstable();
        listing.folders.dedup();
        Ok(listing)
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        let path = self.path(Operation::Delete, key)?;
        match self.store.delete(&path).await {
            Ok(()) => Ok(()),
            Err(e) => match cause_of(&e) {
                Cause::NotFound => Ok(()),
                cause => Err(self.error(Operation::Delete, key, cause)),
            },
        }
    }
}

fn version_of(meta: &object_store::ObjectMeta) -> Version {
    Version { e_tag: meta.e_tag.clone(), generation: meta.version.clone() }
}

fn meta_of(meta: &object_store::ObjectMeta) -> ObjectMeta {
    ObjectMeta { size: meta.size, last_modified: meta.last_modified.timestamp_millis(), version: version_of(meta) }
}

/// What the caller can do about an error of the store.
fn cause_of(error: &object_store::Error) -> Cause {
    use object_store::Error;
    let text = one_line(error);
    // A missing bucket answers 404 like a missing object, but is somebody's mistake.
    if ["NoSuchBucket", "ContainerNotFound"].iter().any(|code| text.contains(code)) {
        return Cause::Refused(text);
    }
    match error {
        Error::NotFound { .. } => Cause::NotFound,
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => Cause::Precondition,
        Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::InvalidPath { .. }
        | Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::UnknownConfigurationKey { .. } => Cause::Refused(text),
        other if is_refusal(other) => Cause::Refused(text),
        _ => Cause::Unavailable(text),
    }
}

/// Whether an error without a variant of its own is one that repeating does not cure: an HTTP 4xx (all of which
/// `object_store` gives up on at once), a range beyond a file, or a file system that denies access.
fn is_refusal(error: &object_store::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind;
            return matches!(
                io.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory
            );
        }
        source = cause.source();
    }
    let text = error.to_string();
    if text.contains("Requested range was invalid") {
        return true;
    }
    text.contains("status code: 4") && !text.contains("status code: 429") && !text.contains("status code: 408")
}

/// An error's text without line breaks (S3 answers with XML).
fn one_line(error: &dyn fmt::Display) -> String {
    const MAX_CHARS: usize = 600;
    let text = error.to_string();
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(MAX_CHARS) {
        line.truncate(cut);
        line.push('…');
    }
    line
}
