//! `meta.json`: what a block says about itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use skald_model::{BlockRange, TimestampMs};
use ulid::Ulid;

use super::{BlockError, BlockFile};

/// Name of the file.
pub const META_FILE: &str = "meta.json";
pub(super) const META_VERSION: u64 = 1;

/// A block's `meta.json`. Fields this program does not know are ignored on reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockMeta {
    /// The block's name.
    pub ulid: Ulid,
    /// First instant the block may hold.
    pub min_time: TimestampMs,
    /// First instant after those the block may hold; samples from here on do not count.
    pub max_time: TimestampMs,
    /// How much it holds.
    #[serde(default)]
    pub stats: BlockStats,
    /// Where it comes from.
    #[serde(default)]
    pub compaction: Compaction,
    /// Always 1; unrelated to the index's version.
    pub version: u64,
    /// What object-store systems add.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thanos: Option<ThanosMeta>,
}

/// How much a block holds. Zeros are left out, as Prometheus does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockStats {
    /// Samples, a native histogram counting as one.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_samples: u64,
    /// Float samples; absent in blocks of older writers.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_float_samples: u64,
    /// Native histogram samples; absent in blocks of older writers.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_histogram_samples: u64,
    /// Series.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_series: u64,
    /// Chunks.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_chunks: u64,
    /// Deleted intervals.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_tombstones: u64,
}

/// Where a block comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compaction {
    /// 1 for a head's block, else one more than the highest level merged.
    pub level: u32,
    /// Every level 1 ancestor, ascending; a level 1 block lists itself.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Ulid>,
    /// The blocks it was merged from.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<ParentBlock>,
    /// The merge found nothing to keep: the block may be removed.
    #[serde(skip_serializing_if = "is_false")]
    pub deletable: bool,
    /// A merge of this block failed: leave it out of plans.
    #[serde(skip_serializing_if = "is_false")]
    pub failed: bool,
    /// Words about the origin, ascending, such as `from-out-of-order`.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

/// A block that another was merged from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentBlock {
    /// Its name.
    pub ulid: Ulid,
    /// Its first instant.
    pub min_time: TimestampMs,
    /// First instant after its last.
    pub max_time: TimestampMs,
}

/// What Thanos, Mimir and Cortex keep beside Prometheus' own fields.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThanosMeta {
    /// Version of this object: 1, or absent.
    #[serde(skip_serializing_if = "is_zero")]
    pub version: u64,
    /// Labels of the block itself, such as `__compactor_shard_id__`; not part of its series.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Distance of its samples.
    pub downsample: Downsample,
    /// What wrote it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Names of chunk segments; superseded by `files`.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub segment_files: Vec<String>,
    /// Files of the block and their sizes, ascending by path.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileSize>,
    /// Sizes that tell a reader how much to fetch.
    #[serde(skip_serializing_if = "IndexStats::is_empty")]
    pub index_stats: IndexStats,
    /// Whatever others put here, kept as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extensions: Option<serde_json::Value>,
}

/// Distance of a block's samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Downsample {
    /// Milliseconds; 0 means samples as they came.
    pub resolution: i64,
}

/// One file of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSize {
    /// Path inside the block's directory, with `/`.
    pub rel_path: String,
    /// Size; 0 (left out) for `meta.json`, which cannot know its own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size_bytes: u64,
}

/// Sizes that tell a reader how much to fetch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexStats {
    /// Longest entry of a series in the index, in bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub series_max_size: u64,
    /// Longest chunk with its framing, in bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_max_size: u64,
}

impl IndexStats {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl BlockMeta {
    /// Parses a `meta.json`; refuses versions other than 1.
    pub fn parse(json: &[u8]) -> Result<Self, BlockError> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let damaged = |offset, what| BlockError::damaged(BlockFile::Meta, offset, what);
        let Version { version } = serde_json::from_slice(json)
            .map_err(|e| damaged(position(json, &e), "not a JSON object with a version"))?;
        if version != META_VERSION {
            return Err(BlockError::Unsupported { file: BlockFile::Meta, what: "meta version", found: version });
        }
        let meta: Self =
            serde_json::from_slice(json).map_err(|e| damaged(position(json, &e), "a field is missing or malformed"))?;
        if meta.min_time > meta.max_time {
            return Err(damaged(0, "minTime is after maxTime"));
        }
        Ok(meta)
    }

    /// The file's contents, indented with tabs like Prometheus'.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        let indent = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, indent);
        // Strings, numbers and string-keyed maps into memory: there is nothing that could fail.
        let written = self.serialize(&mut serializer);
        debug_assert!(written.is_ok());
        out
    }

    /// The time range the block answers for.
    pub fn range(&self) -> BlockRange {
        BlockRange { min: self.min_time, max: self.max_time }
    }
}

/// Byte offset of a JSON error.
fn position(json: &[u8], error: &serde_json::Error) -> u64 {
    let before: usize =
        json.split_inclusive(|&b| b == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    (before + error.column()).saturating_sub(1) as u64
}

/// Go writes an absent list or map as `null`.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIMIR: &str = r#"{
        "ulid": "01M7XJD02WQ18DRRGGBN1G1W9J", "minTime": -5, "maxTime": 1717207199957,
        "stats": {"numSamples": 3, "numSeries": 2, "numChunks": 2, "numNew": 7},
        "compaction": {"level": 2, "sources": ["01M7XJCN8X6AG3YFSXEVRRHHCM"], "hints": null,
            "parents": [{"ulid": "01M7XJCN8X6AG3YFSXEVRRHHCM", "minTime": 1, "maxTime": 2}]},
        "version": 1, "someday": {"x": []},
        "thanos": {"version": 1, "labels": {"__compactor_shard_id__": "1_of_4"}, "downsample": {"resolution": 0},
            "source": "compactor", "segment_files": ["000001"],
            "files": [{"rel_path": "chunks/000001", "size_bytes": 12}, {"rel_path": "meta.json"}],
            "index_stats": {"series_max_size": 64}, "extensions": {"a": 1}}
    }"#;

    #[test]
    fn reads_and_rewrites_what_mimir_writes() {
        let meta = BlockMeta::parse(MIMIR.as_bytes()).unwrap();
        assert_eq!((meta.range().min, meta.stats.num_series, meta.compaction.level), (-5, 2, 2));
        let thanos = meta.thanos.as_ref().unwrap();
        assert_eq!(thanos.labels["__compactor_shard_id__"], "1_of_4");
        assert_eq!((thanos.files[0].size_bytes, thanos.files[1].size_bytes), (12, 0));
        assert_eq!(BlockMeta::parse(&meta.to_json()).unwrap(), meta);
        let text = String::from_utf8(meta.to_json()).unwrap();
        assert!(text.contains("\n\t\"minTime\": -5") && !text.contains("failed") && !text.contains("numTombstones"));
    }

    #[test]
    fn refuses_other_versions_and_damage() {
        let check = |from: &str, to: &str| BlockMeta::parse(MIMIR.replace(from, to).as_bytes()).unwrap_err();
        assert!(matches!(check("\"version\": 1, \"some", "\"version\": 2, \"some"), BlockError::Unsupported { .. }));
        assert!(matches!(check("\"minTime\": -5,", ""), BlockError::Damaged { .. }));
        assert!(matches!(check("\"minTime\": -5", "\"minTime\": 1e99"), BlockError::Damaged { .. }));
        assert!(matches!(check("01M7XJD02WQ18DRRGGBN1G1W9J", "x"), BlockError::Damaged { .. }));
        assert!(BlockMeta::parse(b"").is_err());
    }

    #[test]
    fn null_stands_for_nothing() {
        let json =
            br#"{"ulid":"01M7XJD02WQ18DRRGGBN1G1W9J","minTime":0,"maxTime":1,"version":1,"thanos":{"labels":null}}"#;
        let meta = BlockMeta::parse(json).unwrap();
        assert!(meta.thanos.unwrap().labels.is_empty());
    }
}
