//! How a block comes into the bucket.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use skald_tsdb::block::{BlockMeta, FileSize, ThanosMeta};
use skald_tsdb::disk::{Disk, DiskFile};

use super::layout::{INDEX_FILE, META_FILE, TOMBSTONES_FILE};
use super::{BucketError, Condition, TenantBucket};
use crate::runtime::Pool;

/// How much of a file is read, and held in memory, at a time.
const PART_BYTES: usize = 8 << 20;

/// A block could not be uploaded; nothing that a reader takes for a block was left behind.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The bucket: try again later, unless it refuses.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The local files.
    #[error("{path}: {source}")]
    Disk {
        /// Which file or directory.
        path: String,
        /// What the file system says.
        source: io::Error,
    },
}

/// Copies the block in `dir` to the bucket and returns the `meta.json` it has there.
///
/// `meta.json` goes last, and only once everything else is durable, so that no reader sees half a block. In the bucket it
/// carries the block's files with their sizes, and `source`, the kind of writer. Uploading again what is already there
/// does no harm: a block that has its `meta.json` is left alone, anything less is replaced.
pub async fn upload_block(
    disk: &Arc<dyn Disk>,
    pool: &Pool,
    dir: &Path,
    bucket: &TenantBucket,
    meta: &BlockMeta,
    source: &str,
) -> Result<BlockMeta, UploadError> {
    let meta_key = bucket.block_key(meta.ulid, META_FILE);
    let files = list_files(disk, pool, dir).await?;
    let meta = with_files(meta, &files, source);
    match bucket.bucket().head(&meta_key).await {
        Ok(_) => return Ok(meta),
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e.into()),
    }
    for file in files.iter().filter(|file| file.rel_path != META_FILE) {
        let path = dir.join(&file.rel_path);
        let key = bucket.block_key(meta.ulid, &file.rel_path);
        let disk = disk.clone();
        let opened = {
            let path = path.clone();
            pool.run(move || disk.open(&path)).await.map_err(|lost| io::Error::other(lost.to_string())).flatten()
        };
        let opened = opened.map_err(|source| UploadError::Disk { path: path.display().to_string(), source })?;
        if file.size_bytes <= PART_BYTES as u64 {
            let whole = read_part(pool, opened, 0, file.size_bytes as usize).await;
            let whole = whole.map_err(|source| UploadError::Disk { path: path.display().to_string(), source })?;
            bucket.bucket().put(&key, whole, Condition::None).await?;
        } else {
            bucket.bucket().put_stream(&key, parts(pool, opened, file.size_bytes)).await?;
        }
    }
    bucket.bucket().put(&meta_key, meta.to_json().into(), Condition::None).await?;
    Ok(meta)
}

/// The files of a block with their sizes, ascending by path, `meta.json` (size 0) among them.
async fn list_files(disk: &Arc<dyn Disk>, pool: &Pool, dir: &Path) -> Result<Vec<FileSize>, UploadError> {
    let failed = |source| UploadError::Disk { path: dir.display().to_string(), source };
    let (disk, dir) = (disk.clone(), dir.to_owned());
    let listing = pool.run(move || {
        let size = |name: &str| -> io::Result<FileSize> {
            Ok(FileSize { rel_path: name.to_owned(), size_bytes: disk.open(&dir.join(name))?.len()? })
        };
        let mut files = Vec::new();
        for entry in disk.list(&dir.join("chunks"))? {
            files.push(size(&format!("chunks/{}", entry.name))?);
        }
        files.push(size(INDEX_FILE)?);
        files.push(FileSize { rel_path: META_FILE.to_owned(), size_bytes: 0 });
        if disk.exists(&dir.join(TOMBSTONES_FILE)) {
            files.push(size(TOMBSTONES_FILE)?);
        }
        Ok(files)
    });
    listing.await.map_err(|lost| io::Error::other(lost.to_string())).flatten().map_err(failed)
}

fn with_files(meta: &BlockMeta, files: &[FileSize], source: &str) -> BlockMeta {
    let mut meta = meta.clone();
    let thanos = meta.thanos.get_or_insert_with(ThanosMeta::default);
    thanos.version = 1;
    thanos.source = source.to_owned();
    thanos.files = files.to_vec();
    let segments = files.iter().filter_map(|file| file.rel_path.strip_prefix("chunks/"));
    thanos.segment_files = segments.map(str::to_owned).collect();
    meta
}

async fn read_part(pool: &Pool, file: Arc<dyn DiskFile>, offset: u64, len: usize) -> io::Result<Bytes> {
    let read = pool.run(move || {
        let mut part = vec![0; len];
        file.read_exact_at(&mut part, offset)?;
        Ok(Bytes::from(part))
    });
    read.await.map_err(|lost| io::Error::other(lost.to_string())).flatten()
}

/// A file's bytes in parts, read as they are asked for.
fn parts(pool: &Pool, file: Arc<dyn DiskFile>, size: u64) -> BoxStream<'_, io::Result<Bytes>> {
    futures::stream::unfold((file, 0), move |(file, offset)| async move {
        let len = (size - offset).min(PART_BYTES as u64);
        if len == 0 {
            return None;
        }
        let part = read_part(pool, file.clone(), offset, len as usize).await;
        // After an error nobody asks again.
        Some((part, (file, offset + len)))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::mem::Fault;
    use crate::bucket::{Bucket, Cause, MemBucket, Operation};
    use crate::tenant::TenantId;
    use skald_tsdb::disk::MemDisk;

    const DIR: &str = "/data/tsdb/a/01M7XJD02WQ18DRRGGBN1G1W9J";
    /// A segment of more than one part.
    const SEGMENT_LEN: usize = PART_BYTES + 12_345;

    struct Bench {
        disk: Arc<dyn Disk>,
        bucket: MemBucket,
        tenant_bucket: TenantBucket,
        meta: BlockMeta,
    }

    fn segment() -> Vec<u8> {
        (0..SEGMENT_LEN).map(|i| (i / 1000) as u8).collect()
    }

    impl Bench {
        fn new() -> Self {
            let disk = MemDisk::default();
            disk.create_dir_all(&Path::new(DIR).join("chunks")).unwrap();
            for (file, content) in
                [("chunks/000001", segment()), ("index", b"index".to_vec()), ("meta.json", b"old".to_vec())]
            {
                disk.create(&Path::new(DIR).join(file)).unwrap().append(&content).unwrap();
            }
            let json = br#"{"ulid": "01M7XJD02WQ18DRRGGBN1G1W9J", "minTime": 1, "maxTime": 2, "version": 1}"#;
            let bucket = MemBucket::default();
            Self {
                disk: Arc::new(disk),
                tenant_bucket: TenantBucket::new(Arc::new(bucket.clone()), TenantId::new("a").unwrap()),
                bucket,
                meta: BlockMeta::parse(json).unwrap(),
            }
        }

        async fn upload(&self) -> Result<BlockMeta, UploadError> {
            let pool = Pool::inline();
            upload_block(&self.disk, &pool, Path::new(DIR), &self.tenant_bucket, &self.meta, "ingester").await
        }

        async fn content(&self, file: &str) -> Bytes {
            self.bucket.get(&self.tenant_bucket.block_key(self.meta.ulid, file)).await.unwrap().bytes
        }
    }

    #[tokio::test]
    async fn every_file_then_meta() {
        let bench = Bench::new();
        let meta = bench.upload().await.unwrap();
        let calls = bench.bucket.take_calls();
        let writes = calls.iter().filter(|(op, _)| matches!(op, Operation::Put | Operation::PutStream));
        let written: Vec<&str> = writes.map(|(_, key)| key.rsplit('/').next().unwrap()).collect();
        assert_eq!(written, ["000001", "index", "meta.json"]);
        assert_eq!(bench.content("chunks/000001").await, segment());
        assert_eq!(bench.content("index").await, "index");
        assert_eq!(BlockMeta::parse(&bench.content("meta.json").await).unwrap(), meta);
        let thanos = meta.thanos.unwrap();
        assert_eq!((thanos.source.as_str(), thanos.version), ("ingester", 1));
        assert_eq!(thanos.segment_files, ["000001"]);
        let files: Vec<_> = thanos.files.iter().map(|f| (f.rel_path.as_str(), f.size_bytes)).collect();
        assert_eq!(files, [("chunks/000001", SEGMENT_LEN as u64), ("index", 5), ("meta.json", 0)]);
        // Once more: nothing is written again.
        bench.bucket.take_calls();
        bench.upload().await.unwrap();
        assert_eq!(bench.bucket.take_calls().len(), 1);
    }

    #[tokio::test]
    async fn a_failure_anywhere_leaves_no_block_and_a_retry_succeeds() {
        for failing in 0.. {
            let bench = Bench::new();
            bench.bucket.set_faults(Some(Box::new(move |_, _, number| {
                (number == failing).then(|| Fault::Fail(Cause::Unavailable("gone".into())))
            })));
            let result = bench.upload().await;
            bench.bucket.set_faults(None);
            if result.is_ok() {
                assert_eq!(failing, 4);
                break;
            }
            assert!(!bench.bucket.keys().iter().any(|key| key.ends_with("meta.json")));
            bench.upload().await.unwrap();
            assert_eq!(bench.content("chunks/000001").await.len(), SEGMENT_LEN);
        }
    }

    #[tokio::test]
    async fn missing_files_are_named() {
        let bench = Bench::new();
        bench.disk.remove_file(&Path::new(DIR).join("index")).unwrap();
        let error = bench.upload().await.unwrap_err();
        assert!(
            matches!(&error, UploadError::Disk { path, .. } if path.contains("01M7XJD02WQ18DRRGGBN1G1W9J")),
            "{error}"
        );
        assert!(bench.bucket.keys().is_empty());
    }
}
