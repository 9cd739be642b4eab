//! Which key holds what: Mimir's and Cortex's layout, so that their buckets can be opened as they are.
//!
//! ```text
//! <tenant>/<ulid>/meta.json                        the block exists once this does
//! <tenant>/<ulid>/index
//! <tenant>/<ulid>/chunks/000001 …
//! <tenant>/<ulid>/tombstones                       optional
//! <tenant>/<ulid>/deletion-mark.json               the block will be deleted
//! <tenant>/markers/<ulid>-deletion-mark.json       copy of it, so that one listing finds all
//! <tenant>/bucket-index.json.gz                    the list of all this
//! ```

use std::sync::Arc;

use ulid::Ulid;

use super::{Bucket, BucketError, Listing};
use crate::tenant::TenantId;

/// Name of the object that makes a block exist; written last, removed first.
pub const META_FILE: &str = "meta.json";
/// Name of a block's index.
pub const INDEX_FILE: &str = "index";
/// Name of a block's tombstones.
pub const TOMBSTONES_FILE: &str = "tombstones";
/// Name of the bucket index.
pub const BUCKET_INDEX_FILE: &str = "bucket-index.json.gz";
/// Folder of the marks that concern a tenant or its blocks.
pub const MARKERS_FOLDER: &str = "markers";
/// What follows the block's name in the markers folder.
pub const DELETION_MARK_FILE: &str = "deletion-mark.json";

/// What one tenant has in a bucket. Every key is built here from a checked tenant id, so none leaves the tenant's part.
#[derive(Clone)]
pub struct TenantBucket {
    bucket: Arc<dyn Bucket>,
    tenant: TenantId,
}

impl TenantBucket {
    /// The part of `bucket` that belongs to `tenant`.
    pub fn new(bucket: Arc<dyn Bucket>, tenant: TenantId) -> Self {
        Self { bucket, tenant }
    }

    /// The whole bucket.
    pub fn bucket(&self) -> &Arc<dyn Bucket> {
        &self.bucket
    }

    /// The tenant.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Key of a file of a block; `file` is as in the block's directory, such as `chunks/000001`.
    pub fn block_key(&self, block: Ulid, file: &str) -> String {
        format!("{}/{block}/{file}", self.tenant)
    }

    /// Key of a chunk segment; `segment` counts from 0, as chunk references do.
    pub fn segment_key(&self, block: Ulid, segment: u32) -> String {
        format!("{}/{block}/chunks/{:06}", self.tenant, u64::from(segment) + 1)
    }

    /// Key of the bucket index.
    pub fn index_key(&self) -> String {
        format!("{}/{BUCKET_INDEX_FILE}", self.tenant)
    }

    /// Key of the copy of a block's deletion mark.
    pub fn deletion_mark_key(&self, block: Ulid) -> String {
        format!("{}/{MARKERS_FOLDER}/{block}-{DELETION_MARK_FILE}", self.tenant)
    }

    /// The blocks whose folders exist, complete or not, ascending.
    pub async fn list_blocks(&self) -> Result<Vec<Ulid>, BucketError> {
        let listing = self.bucket.list(&format!("{}/", self.tenant)).await?;
        Ok(listing.folders.iter().filter_map(|folder| parse_ulid(folder)).collect())
    }

    /// The blocks that carry a deletion mark, ascending.
    pub async fn list_deletion_marks(&self) -> Result<Vec<Ulid>, BucketError> {
        let listing = self.bucket.list(&format!("{}/{MARKERS_FOLDER}/", self.tenant)).await?;
        let marked = |name: &str| parse_ulid(name.strip_suffix(DELETION_MARK_FILE)?.strip_suffix('-')?);
        Ok(listing.objects.iter().filter_map(|(name, _)| marked(name)).collect())
    }

    /// What lies in a block's folder.
    pub async fn list_block(&self, block: Ulid) -> Result<Listing, BucketError> {
        self.bucket.list(&format!("{}/{block}/", self.tenant)).await
    }
}

/// The tenants that have anything in the bucket, ascending. Folders that cannot be a tenant's are passed over.
pub async fn list_tenants(bucket: &dyn Bucket) -> Result<Vec<TenantId>, BucketError> {
    let listing = bucket.list("").await?;
    Ok(listing.folders.iter().filter_map(|folder| TenantId::new(folder).ok()).collect())
}

/// A block's name in its one canonical spelling: others would be another key.
pub(crate) fn parse_ulid(text: &str) -> Option<Ulid> {
    let ulid = Ulid::from_string(text).ok()?;
    (ulid.to_string() == text).then_some(ulid)
}
