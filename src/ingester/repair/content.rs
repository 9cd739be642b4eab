//! What this member answers to reads, head and local blocks together, as digests and chunks. Everything here computes or
//! reads files: it belongs on the background pool.
//!
//! Members cut their heads at different moments, so it must not matter where a sample lies. Where only the head has
//! samples of a range it is asked directly; else head and blocks are merged series by series, as for a select.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use skald_model::{BlockRange, LabelBytes, Labels, Matcher, QueryRange, TimestampMs};
use skald_tsdb::chunk::Chunk;
use skald_tsdb::head::{HashRange, PartDigest, SampleDigest, SeriesDigest};
use skald_tsdb::{SeriesChunks, SeriesFilter};

use super::super::read::{Merge, block_error, blocks, merge};
use super::super::tenants::Tenant;
use super::exchange::COMPARED_MS;
use crate::error::ServiceError;

/// Series listed, or digested from the head, in one step.
const SERIES_AT_ONCE: usize = 8192;
/// Most steps in which a head is digested: each looks at the hashes of all series.
const MAX_PIECES: usize = 64;
/// Series whose chunks are read in one step: a few hundred KiB.
const CHUNKS_AT_ONCE: usize = 512;

/// The hash under which members know a series.
pub(super) fn hash_of(labels: &Labels) -> u128 {
    LabelBytes::new_unchecked(&LabelBytes::from_labels(labels)).hash()
}

/// Its upper half, by which series are put into parts.
pub(super) fn upper(hash: u128) -> u64 {
    (hash >> 64) as u64
}

fn half_open(range: QueryRange) -> BlockRange {
    BlockRange { min: range.min, max: range.max.saturating_add(1) }
}

/// The compared ranges in which there may be samples from `from` to `up_to`, clipped to that, ascending.
pub(super) fn ranges(tenant: &Tenant, from: TimestampMs, up_to: TimestampMs) -> Vec<QueryRange> {
    let mut numbers = BTreeSet::new();
    let mut add = |first: TimestampMs, last: TimestampMs| {
        let (first, last) = (first.max(from), last.min(up_to));
        if first <= last {
            numbers.extend(first.div_euclid(COMPARED_MS)..=last.div_euclid(COMPARED_MS));
        }
    };
    // The head first: what a flush moves meanwhile is in a block by then.
    for range in tenant.head.ranges() {
        add(range.min, range.max.saturating_sub(1));
    }
    for block in tenant.blocks() {
        let range = block.meta().range();
        add(range.min, range.max.saturating_sub(1));
    }
    let aligned = |number: i64| QueryRange {
        min: number.saturating_mul(COMPARED_MS).max(from),
        max: number.saturating_mul(COMPARED_MS).saturating_add(COMPARED_MS - 1).min(up_to),
    };
    numbers.into_iter().map(aligned).collect()
}

/// The series of head and blocks that `wanted` holds of, by their hashes.
fn merged(
    tenant: &Tenant,
    range: QueryRange,
    wanted: Arc<dyn Fn(u128) -> bool + Send + Sync>,
) -> Result<Merge, ServiceError> {
    let keep = || {
        let wanted = wanted.clone();
        Some(Box::new(move |labels: &Labels| wanted(hash_of(labels))) as SeriesFilter)
    };
    merge(tenant, &[], range, keep)
}

fn digest(series: &SeriesChunks, range: QueryRange) -> Result<SampleDigest, ServiceError> {
    SampleDigest::of_chunks(&series.chunks, range)
        .map_err(|error| ServiceError::internal(format!("a chunk here is damaged: {error}")))
}

/// Computes digests of parts of the series, step by step: others (the sync of the log) wait for the pool, too.
pub(super) struct Digesting {
    tenant: Arc<Tenant>,
    range: QueryRange,
    parts: Vec<HashRange>,
    digests: Vec<PartDigest>,
    at: DigestedTo,
}

enum DigestedTo {
    /// The pieces left, each with the number of its first part; only the head has samples of the range.
    Head(std::vec::IntoIter<(usize, Vec<HashRange>)>),
    Merged(Box<Merge>),
}

impl Digesting {
    /// Of equal parts of `hashes`.
    pub(super) fn new(tenant: Arc<Tenant>, range: QueryRange, hashes: HashRange, parts: usize) -> Self {
        let parts = hashes.split(parts);
        let pieces = (tenant.head.series_count() / SERIES_AT_ONCE).clamp(1, MAX_PIECES);
        let left: Vec<(usize, Vec<HashRange>)> = if parts.len() < pieces {
            let finer = |(number, part): (usize, &HashRange)| {
                part.split(pieces / parts.len()).into_iter().map(move |piece| (number, vec![piece]))
            };
            parts.iter().enumerate().flat_map(finer).collect()
        } else {
            let together = parts.len().div_ceil(pieces);
            parts.chunks(together).enumerate().map(|(number, some)| (number * together, some.to_vec())).collect()
        };
        let digests = parts.iter().map(|part| PartDigest::new(*part)).collect();
        Self { tenant, range, parts, digests, at: DigestedTo::Head(left.into_iter()) }
    }

    /// Goes on; whether there is more to do.
    pub(super) fn step(&mut self) -> Result<bool, ServiceError> {
        if let DigestedTo::Head(left) = &mut self.at {
            let Some((number, piece)) = left.next() else { return Ok(false) };
            let of_piece = match blocks(&self.tenant, self.range).is_empty() {
                true => Some(self.tenant.head.digests_of_parts(half_open(self.range), &piece)),
                false => None,
            };
            // A flush that ended before the head was looked at has published its blocks.
            if let Some(of_piece) = of_piece.filter(|_| blocks(&self.tenant, self.range).is_empty()) {
                for (sum, part) in self.digests[number..].iter_mut().zip(of_piece) {
                    sum.series += part.series;
                    sum.digest.add(part.digest);
                }
                return Ok(true);
            }
            self.digests = self.parts.iter().map(|part| PartDigest::new(*part)).collect();
            let stretch = self.parts.first().zip(self.parts.last());
            let stretch = stretch.map(|(first, last)| HashRange { first: first.first, last: last.last });
            let wanted = move |hash| stretch.is_some_and(|stretch| stretch.contains(upper(hash)));
            self.at = DigestedTo::Merged(Box::new(merged(&self.tenant, self.range, Arc::new(wanted))?));
        }
        let DigestedTo::Merged(merge) = &mut self.at else { return Ok(false) };
        for _ in 0..SERIES_AT_ONCE / 4 {
            let Some(series) = merge.next()? else { return Ok(false) };
            let hash = upper(hash_of(&series.labels));
            let at = self.parts.partition_point(|part| part.last < hash);
            if let Some(part) = self.digests.get_mut(at) {
                part.add(hash, digest(&series, self.range)?);
            }
        }
        Ok(true)
    }

    /// What came of it.
    pub(super) fn finish(self) -> Vec<PartDigest> {
        self.digests
    }
}

/// Lists series, step by step.
pub(super) struct Listing {
    tenant: Arc<Tenant>,
    range: QueryRange,
    hashes: Arc<Vec<HashRange>>,
    at: ListedTo,
}

enum ListedTo {
    /// Everything before the rest of this stretch of hashes; only the head has samples of the range.
    Head {
        stretch: usize,
        from: u64,
    },
    Merged(Box<Merge>),
}

impl Listing {
    pub(super) fn new(tenant: Arc<Tenant>, range: QueryRange, hashes: Vec<HashRange>) -> Self {
        let from = hashes.first().map_or(0, |first| first.first);
        Self { tenant, range, hashes: Arc::new(hashes), at: ListedTo::Head { stretch: 0, from } }
    }

    /// The next ones; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Vec<SeriesDigest>>, ServiceError> {
        if let ListedTo::Head { stretch, from } = self.at {
            let Some(hashes) = self.hashes.get(stretch) else { return Ok(None) };
            let rest = HashRange { first: from, last: hashes.last };
            let listed = self.tenant.head.series_digests(half_open(self.range), rest, SERIES_AT_ONCE);
            if blocks(&self.tenant, self.range).is_empty() {
                let next = listed.last().filter(|_| listed.len() >= SERIES_AT_ONCE);
                let next = next.and_then(|last| upper(last.hash).checked_add(1)).filter(|next| *next <= hashes.last);
                self.at = match next {
                    Some(from) => ListedTo::Head { stretch, from },
                    None => {
                        let from = self.hashes.get(stretch + 1).map_or(0, |next| next.first);
                        ListedTo::Head { stretch: stretch + 1, from }
                    }
                };
                return Ok(Some(listed));
            }
            let hashes = self.hashes.clone();
            let wanted = move |hash| {
                let at = hashes.partition_point(|stretch| stretch.last < upper(hash));
                hashes.get(at).is_some_and(|stretch| stretch.contains(upper(hash)))
            };
            self.at = ListedTo::Merged(Box::new(merged(&self.tenant, self.range, Arc::new(wanted))?));
        }
        let ListedTo::Merged(merge) = &mut self.at else { return Ok(None) };
        let mut listed = Vec::new();
        while listed.len() < SERIES_AT_ONCE
            && let Some(series) = merge.next()?
        {
            let digest = digest(&series, self.range)?;
            if digest.samples > 0 {
                listed.push(SeriesDigest { hash: hash_of(&series.labels), digest });
            }
        }
        Ok((!listed.is_empty()).then_some(listed))
    }
}

/// Reads the chunks of series, step by step.
pub(super) struct Chunks {
    tenant: Arc<Tenant>,
    range: QueryRange,
    hashes: Vec<u128>,
    at: ReadTo,
}

enum ReadTo {
    /// So many of the hashes; only the head has samples of the range.
    Head(usize),
    Merged(Box<Merge>),
}

impl Chunks {
    pub(super) fn new(tenant: Arc<Tenant>, range: QueryRange, hashes: Vec<u128>) -> Self {
        Self { tenant, range, hashes, at: ReadTo::Head(0) }
    }

    /// The next ones; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Vec<SeriesChunks>>, ServiceError> {
        if let ReadTo::Head(done) = self.at {
            let rest = &self.hashes[done..];
            let some = &rest[..rest.len().min(CHUNKS_AT_ONCE)];
            if some.is_empty() {
                return Ok(None);
            }
            let found = self.tenant.head.series_by_hash(half_open(self.range), some);
            if blocks(&self.tenant, self.range).is_empty() {
                self.at = ReadTo::Head(done + some.len());
                return Ok(Some(found));
            }
            let wanted: HashSet<u128> = rest.iter().copied().collect();
            let merge = merged(&self.tenant, self.range, Arc::new(move |hash| wanted.contains(&hash)))?;
            self.at = ReadTo::Merged(Box::new(merge));
        }
        let ReadTo::Merged(merge) = &mut self.at else { return Ok(None) };
        merge.next_batch()
    }
}

/// What is here of some series, by hash.
pub(super) fn own_chunks(
    tenant: &Tenant,
    range: QueryRange,
    series: &[(u128, &Labels)],
) -> Result<HashMap<u128, Vec<Chunk>>, ServiceError> {
    let hashes: Vec<u128> = series.iter().map(|(hash, _)| *hash).collect();
    let of_head = tenant.head.series_by_hash(half_open(range), &hashes);
    let mut own: HashMap<u128, Vec<Chunk>> =
        of_head.into_iter().map(|series| (hash_of(&series.labels), series.chunks)).collect();
    for block in blocks(tenant, range) {
        for (hash, labels) in series {
            let matchers: Vec<Matcher> = labels.iter().map(|(name, value)| Matcher::equal(name, value)).collect();
            for found in block.select(&matchers, range).map_err(block_error)? {
                let found = found.map_err(block_error)?;
                if found.labels == **labels {
                    own.entry(*hash).or_default().extend(found.chunks);
                }
            }
        }
    }
    Ok(own)
}
