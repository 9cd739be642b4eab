//! The bucket index: the list of a tenant's blocks, so that no reader has to list the bucket.
//!
//! `<tenant>/bucket-index.json.gz` is gzip of a JSON object, version 2 of Mimir's (version 1, Cortex', has fewer fields):
//!
//! ```json
//! {"version": 2,
//!  "blocks": [{"block_id": "01…", "min_time": ms, "max_time": ms (half-open), "segments_format": "1b6d",
//!              "segments_num": 1, "uploaded_at": s, "compactor_shard_id": "1_of_4", "source": "ingester",
//!              "compaction_level": 1, "out_of_order": true, "labels": {}}],
//!  "block_deletion_marks": [{"block_id": "01…", "deletion_time": s}],
//!  "updated_at": s}
//! ```
//!
//! The compactor alone writes it; blocks under way (without `meta.json`) are not in it, marked ones are.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Deserializer, Serialize};
use skald_model::{BlockRange, TimestampMs};
use ulid::Ulid;

use super::{BucketError, TenantBucket, Version};
use crate::error::{ErrorKind, ServiceError};

/// The version this program writes.
const VERSION: u32 = 2;
/// Largest index that is read, decompressed: about five million blocks.
const MAX_BYTES: u64 = 1 << 30;
/// `segments_format` of blocks whose chunk segments count from 1 with six digits: all that Prometheus-like writers make.
const SEGMENTS_1_BASED_6_DIGITS: &str = "1b6d";
/// Block label that names the compactor's shard.
pub const COMPACTOR_SHARD_LABEL: &str = "__compactor_shard_id__";
/// Hint of a block made of out-of-order samples.
const OUT_OF_ORDER_HINT: &str = "from-out-of-order";
/// Block label with the same meaning, of other writers.
const OUT_OF_ORDER_LABEL: &str = "__out_of_order__";

/// The list of a tenant's blocks at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketIndex {
    version: u32,
    /// Complete blocks, ascending by id; those with a deletion mark are among them.
    #[serde(deserialize_with = "null_as_default")]
    pub blocks: Vec<IndexedBlock>,
    /// Marks of blocks that will be deleted, ascending by block.
    #[serde(default, deserialize_with = "null_as_default")]
    pub block_deletion_marks: Vec<DeletionMark>,
    /// When it was made, Unix seconds.
    pub updated_at: i64,
}

/// One complete block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedBlock {
    /// The block's name.
    pub block_id: Ulid,
    /// First instant it may hold.
    pub min_time: TimestampMs,
    /// First instant after those it may hold.
    pub max_time: TimestampMs,
    /// How its chunk segments are named, or empty when unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub segments_format: String,
    /// How many chunk segments it has; 0 when unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub segments_num: u32,
    /// When its `meta.json` was written, Unix seconds by the store's clock.
    pub uploaded_at: i64,
    /// Compactor shard it belongs to (`1_of_4`), or empty.
    #[serde(default)]
    pub compactor_shard_id: String,
    /// Kind of writer, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Compaction level; 0 when unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub compaction_level: u32,
    /// Whether it was cut from out-of-order samples.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_order: bool,
    /// Labels of the block itself; not part of its series.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A block that will be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionMark {
    /// The block's name.
    pub block_id: Ulid,
    /// When it was marked, Unix seconds.
    pub deletion_time: i64,
}

/// `deletion-mark.json`, as compactors write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionMarkFile {
    /// The block's name.
    pub id: Ulid,
    /// Always 1.
    pub version: u32,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
    /// When it was marked, Unix seconds.
    pub deletion_time: i64,
}

/// The bucket index cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IndexError {
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// Its bytes are not a bucket index; the compactor writes a new one.
    #[error("bucket index {key} is damaged: {what}")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// It, or its absence, is so old that blocks may be missing from it: an answer built on it could be short.
    #[error(
        "bucket index of tenant {tenant} is too old: last updated {age_seconds}s ago, allowed are {max_seconds}s; \
         check that the compactor runs"
    )]
    TooOld {
        /// Whose.
        tenant: String,
        /// Seconds since its last update.
        age_seconds: i64,
        /// How many may pass.
        max_seconds: i64,
    },
}

/// What a service answers when it cannot know a tenant's blocks.
impl From<IndexError> for ServiceError {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::Bucket(error) => error.into(),
            IndexError::Damaged { .. } => Self::new(ErrorKind::Internal, "bucket-index-damaged", error.to_string()),
            IndexError::TooOld { .. } => Self::new(ErrorKind::Internal, "bucket-index-too-old", error.to_string()),
        }
    }
}

impl BucketIndex {
    /// Puts an index together; sorts its parts.
    pub fn new(
        mut blocks: Vec<IndexedBlock>,
        mut block_deletion_marks: Vec<DeletionMark>,
        updated_at_ms: TimestampMs,
    ) -> Self {
        blocks.sort_unstable_by_key(|block| block.block_id);
        block_deletion_marks.sort_unstable_by_key(|mark| mark.block_id);
        Self { version: VERSION, blocks, block_deletion_marks, updated_at: updated_at_ms.div_euclid(1000) }
    }

    /// The block of that name, if it is listed.
    pub fn block(&self, id: Ulid) -> Option<&IndexedBlock> {
        let at = self.blocks.binary_search_by_key(&id, |block| block.block_id).ok()?;
        self.blocks.get(at)
    }

    /// The block's deletion mark, if it has one.
    pub fn deletion_mark(&self, id: Ulid) -> Option<&DeletionMark> {
        let at = self.block_deletion_marks.binary_search_by_key(&id, |mark| mark.block_id).ok()?;
        self.block_deletion_marks.get(at)
    }

    /// When the block was marked for deletion, Unix milliseconds, if it was.
    pub fn marked_for_deletion_ms(&self, id: Ulid) -> Option<TimestampMs> {
        self.deletion_mark(id).map(|mark| mark.deletion_time.saturating_mul(1000))
    }

    /// When it was made, Unix milliseconds (whole seconds, rounded down).
    pub fn updated_at_ms(&self) -> TimestampMs {
        self.updated_at.saturating_mul(1000)
    }

    /// The object's content.
    pub fn encode(&self) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        // Into memory, from string-keyed maps: neither step has anything that could fail.
        let written = serde_json::to_writer(&mut gzip, self).map_err(std::io::Error::from);
        let out = written.and_then(|()| gzip.flush()).and_then(|()| gzip.finish());
        debug_assert!(out.is_ok());
        out.unwrap_or_default()
    }

    /// Reads an object's content; the error says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut json = Vec::new();
        let read = MultiGzDecoder::new(bytes).take(MAX_BYTES + 1).read_to_end(&mut json);
        read.map_err(|e| format!("not gzip: {e}"))?;
        if json.len() as u64 > MAX_BYTES {
            return Err(format!("larger than {MAX_BYTES} bytes"));
        }
        let mut index: Self = serde_json::from_slice(&json).map_err(|e| e.to_string())?;
        if !(1..=VERSION).contains(&index.version) {
            return Err(format!("version {} is unknown", index.version));
        }
        index.blocks.sort_unstable_by_key(|block| block.block_id);
        index.block_deletion_marks.sort_unstable_by_key(|mark| mark.block_id);
        Ok(index)
    }

    /// Reads a tenant's index as it is in the bucket now, `None` when there is none.
    pub async fn fetch(bucket: &TenantBucket) -> Result<Option<(Self, Version)>, IndexError> {
        let key = bucket.index_key();
        let object = match bucket.bucket().get(&key).await {
            Ok(object) => object,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        match Self::decode(&object.bytes) {
            Ok(index) => Ok(Some((index, object.meta.version))),
            Err(what) => Err(IndexError::Damaged { key, what }),
        }
    }
}

impl IndexedBlock {
    /// The entry of a block from its `meta.json` and the time that was written.
    pub fn new(meta: &skald_tsdb::block::BlockMeta, uploaded_at_ms: TimestampMs) -> Self {
        let thanos = meta.thanos.clone().unwrap_or_default();
        let segments: Vec<&str> = match thanos.files.as_slice() {
            [] => thanos.segment_files.iter().map(String::as_str).collect(),
            files => files.iter().filter_map(|file| file.rel_path.strip_prefix("chunks/")).collect(),
        };
        let numbered = segments.iter().zip(1..).all(|(name, number)| **name == format!("{number:06}"));
        let known = numbered && !segments.is_empty();
        let labels = thanos.labels;
        Self {
            block_id: meta.ulid,
            min_time: meta.min_time,
            max_time: meta.max_time,
            segments_format: if known { SEGMENTS_1_BASED_6_DIGITS.to_owned() } else { String::new() },
            segments_num: if known { segments.len() as u32 } else { 0 },
            uploaded_at: uploaded_at_ms.div_euclid(1000),
            compactor_shard_id: labels.get(COMPACTOR_SHARD_LABEL).cloned().unwrap_or_default(),
            source: thanos.source,
            compaction_level: meta.compaction.level,
            out_of_order: meta.compaction.hints.iter().any(|hint| hint == OUT_OF_ORDER_HINT)
                || labels.contains_key(OUT_OF_ORDER_LABEL),
            labels,
        }
    }

    /// The time range the block answers for.
    pub fn range(&self) -> BlockRange {
        BlockRange { min: self.min_time, max: self.max_time }
    }

    /// When its upload was complete, Unix milliseconds (whole seconds, rounded down).
    pub fn uploaded_at_ms(&self) -> TimestampMs {
        self.uploaded_at.saturating_mul(1000)
    }
}

/// Go writes an absent list or map as `null`.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}
