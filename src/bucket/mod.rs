//! Object storage: the only database. A small trait, its implementations, and the layout of what Skald keeps there.
//!
//! A [`Bucket`] is a flat map from keys to immutable objects. [`ObjectStoreBucket`] is a local directory, S3, GCS or Azure;
//! [`MemBucket`] is memory, with faults on request; [`ObservedBucket`] counts and times another one. All of them pass
//! [`conformance`]. On top: [`layout`] says which key holds what, [`upload`] brings a block there, [`index`] is the list of
//! a tenant's blocks, and [`index_cache`] keeps recent copies of it for readers.
//!
//! Absent on purpose: no byte is decoded here but the bucket index's and `meta.json`'s; nobody lists blocks to answer a
//! query, the bucket index exists for that.

pub mod config;
pub mod conformance;
pub mod error;
pub mod index;
pub mod index_cache;
pub mod layout;
pub mod mem;
pub mod observed;
pub mod opening;
pub mod stores;
pub mod upload;

#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use skald_model::TimestampMs;
use skald_tsdb::disk::DiskFile;

pub use config::Config;
pub use error::{BucketError, Cause, Operation};
pub use index::BucketIndex;
pub use index_cache::{BucketIndexConfig, IndexCache};
pub use layout::TenantBucket;
pub use mem::MemBucket;
pub use observed::ObservedBucket;
pub use opening::open;
pub use stores::ObjectStoreBucket;

/// A flat map from keys to immutable objects, shared by every process of a cluster.
///
/// Keys are `/`-separated, without a leading or trailing `/` and without empty, `.` or `..` components. A read after a
/// finished write sees it, a listing too. Every call may be dropped half way; a dropped write happens wholly or not at all.
/// Transient failures have been retried before an error comes back.
#[async_trait]
pub trait Bucket: Send + Sync + 'static {
    /// What errors and logs call this bucket, such as `s3://metrics` or `file:///data/blocks`.
    fn name(&self) -> &str;

    /// Writes a whole object, durable and visible at once when this returns. Meant for objects of a few MiB at most.
    ///
    /// Under a condition that does not hold the object is left alone and the cause is [`Cause::Precondition`].
    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Version, BucketError>;

    /// Writes a large object from a stream, part by part; it becomes visible, replacing what was there, when all of it is
    /// written. An error of the stream abandons the write and comes back as [`Cause::Source`].
    async fn put_stream(&self, key: &str, parts: BoxStream<'_, std::io::Result<Bytes>>) -> Result<(), BucketError>;

    /// Reads a whole object. Meant for objects of a few MiB at most.
    async fn get(&self, key: &str) -> Result<Object, BucketError>;

    /// Reads exactly the bytes of `range`; a range that ends beyond the object is [`Cause::Refused`]. The empty range
    /// yields no bytes and makes no request.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError>;

    /// Opens an object as the file it is, when this bucket is a directory of this machine; `None` when it is not. Reading
    /// from it is no call on the bucket, and goes on when the object is deleted.
    fn open_file(&self, _key: &str) -> Result<Option<Arc<dyn DiskFile>>, BucketError> {
        Ok(None)
    }

    /// Whether objects are files, which [`Bucket::open_file`] opens.
    fn has_files(&self) -> bool {
        false
    }

    /// Size and age of an object.
    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError>;

    /// One level of the keys that start with `prefix`, which is empty or ends with `/`; a prefix without keys is empty.
    async fn list(&self, prefix: &str) -> Result<Listing, BucketError>;

    /// Removes an object; succeeds when there is none.
    async fn delete(&self, key: &str) -> Result<(), BucketError>;
}

/// When a [`Bucket::put`] may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    None,
    /// Only if the key holds no object.
    Absent,
    /// Only if the key still holds the object of this version.
    Unchanged(Version),
}

/// Identifies one content of a key; compare for equality, nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version {
    /// HTTP entity tag, where the store has one.
    pub e_tag: Option<String>,
    /// Generation, where the store has one.
    pub generation: Option<String>,
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub last_modified: TimestampMs,
    /// Which content it is.
    pub version: Version,
}

/// An object read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its content.
    pub bytes: Bytes,
    /// What else is known.
    pub meta: ObjectMeta,
}

/// One level of the keys below a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Objects right below the prefix, ascending: the rest of their key, and what is known of them.
    pub objects: Vec<(String, ObjectMeta)>,
    /// First components of the deeper keys below the prefix, without `/`, ascending and unique. On a local directory an
    /// empty folder may be among them.
    pub folders: Vec<String>,
}

/// Whether `key` obeys the rules stated at [`Bucket`].
fn valid_key(key: &str) -> bool {
    !key.is_empty()
        && key
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control))
}

/// Whether `prefix` is empty or a valid key followed by `/`.
fn valid_prefix(prefix: &str) -> bool {
    prefix.is_empty() || prefix.strip_suffix('/').is_some_and(valid_key)
}
