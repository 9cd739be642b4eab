//! What a head holds, in few bytes: how the members of a replica group find out which samples one of them lacks.
//!
//! A digest is a number of samples and the sum of their fingerprints: the same for the same samples, in whatever order,
//! chunks, or lists of late samples they lie. Two members compare one digest per part of the hashes ([`Head::digests`]),
//! narrow down where they differ, list the series there ([`Head::series_digests`]), fetch their chunks
//! ([`Head::series_by_hash`]) and import them ([`Head::import_chunks`]).
//!
//! A closed chunk that cannot be read counts as missing: its samples are imported like others, and fill the gap.
//!
//! Start timestamps are no part of it: blocks may lack them, and of two senders of a sample the first one's is kept.
//!
//! Only the head's samples count, not those of blocks cut from it. Members cut at different moments, so whoever compares a
//! range that one of them has cut adds that one's blocks by [`SampleDigest::of_chunks`].

use std::collections::BTreeSet;

use skald_model::{BlockRange, LabelBytes, Labels, QueryRange};

use super::recode;
use super::sample::{TimedSample, fingerprint, float_fingerprint};
use super::select::Pinned;
use super::stored::PageChunk;
use super::{Head, PAGE_SERIES, locate};
use crate::SeriesChunks;
use crate::bounded::Progress;
use crate::chunk::{Chunk, ChunkError, started};
use crate::postings::SeriesRef;
use crate::wal::Cut;

/// Bytes of chunks read at once.
const READ_BYTES: usize = 1 << 20;

/// What some set of samples adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SampleDigest {
    /// How many.
    pub samples: u64,
    /// The sum of their fingerprints, over time, kind and value.
    pub checksum: u64,
}

/// A stretch of the upper halves of series' hashes ([`LabelBytes::hash`]), both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HashRange {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl HashRange {
    /// All series.
    pub const ALL: HashRange = HashRange { first: 0, last: u64::MAX };

    /// Whether a series with this upper half of its hash is among them.
    pub fn contains(self, hash: u64) -> bool {
        self.first <= hash && hash <= self.last
    }

    /// The range in so many parts of equal length; the last ones are missing when there are fewer hashes than parts.
    pub fn split(self, parts: usize) -> Vec<HashRange> {
        let (first, width) = (u128::from(self.first), u128::from(self.last) + 1 - u128::from(self.first));
        let bound = |at: u128| first + (width * at).div_ceil(parts.max(1) as u128);
        let all = (0..parts.max(1) as u128).map(|at| (bound(at), bound(at + 1)));
        let filled = all.filter(|(from, to)| from < to);
        filled.map(|(from, to)| HashRange { first: from as u64, last: (to - 1) as u64 }).collect()
    }
}

/// What the series of a stretch of hashes hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PartDigest {
    /// Which series.
    pub hashes: HashRange,
    /// How many of them have samples.
    pub series: u64,
    /// Samples, and the sum over the series of a fingerprint of hash and samples.
    pub digest: SampleDigest,
}

/// What one series holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesDigest {
    /// Its hash, as [`LabelBytes::hash`] gives it.
    pub hash: u128,
    /// Its samples.
    pub digest: SampleDigest,
}

impl PartDigest {
    /// Of series of which none has samples.
    pub fn new(hashes: HashRange) -> Self {
        Self { hashes, series: 0, digest: SampleDigest::default() }
    }

    /// Adds one series, by the upper half of its hash, if it has samples.
    pub fn add(&mut self, hash: u64, digest: SampleDigest) {
        if digest.samples > 0 {
            self.series += 1;
            self.digest.add(of_series(hash, digest));
        }
    }
}

impl SampleDigest {
    /// The digest of one series' samples of `range`. The chunks may overlap and repeat; of two different samples at one
    /// time the same one counts whatever the order of the chunks.
    pub fn of_chunks(chunks: &[Chunk], range: QueryRange) -> Result<Self, ChunkError> {
        let mut samples = Vec::new();
        for chunk in chunks.iter().filter(|c| c.min_time <= range.max && range.min <= c.max_time) {
            fingerprints(chunk, range, &mut samples)?;
        }
        if !samples.is_sorted_by(|(a, _), (b, _)| a < b) {
            samples.sort_unstable();
            samples.dedup_by_key(|(time, _)| *time);
        }
        let checksum = samples.iter().fold(0_u64, |sum, (_, fingerprint)| sum.wrapping_add(*fingerprint));
        Ok(Self { samples: samples.len() as u64, checksum })
    }

    /// Adds what other series, or other parts, add up to.
    pub fn add(&mut self, other: Self) {
        self.samples += other.samples;
        self.checksum = self.checksum.wrapping_add(other.checksum);
    }
}

fn fingerprints(chunk: &Chunk, range: QueryRange, out: &mut Vec<(i64, u64)>) -> Result<(), ChunkError> {
    if chunk.encoding.is_float() {
        let mut columns = skald_model::Columns::default();
        started::decode(chunk.encoding, &chunk.data, range, &mut columns)?;
        let samples = columns.float_timestamps.iter().zip(&columns.float_values);
        out.extend(samples.map(|(time, value)| (*time, float_fingerprint(*time, *value))));
    } else {
        let mut samples: Vec<TimedSample> = Vec::new();
        recode::decode(chunk.encoding, &chunk.data, range, &mut samples)?;
        out.extend(samples.iter().map(|sample| (sample.time, fingerprint(sample.time, &sample.value))));
    }
    Ok(())
}

/// The instants of a block's range.
fn closed(range: BlockRange) -> QueryRange {
    QueryRange { min: range.min, max: range.max.saturating_sub(1) }
}

impl Head {
    /// The aligned ranges in which there are samples, ascending.
    pub fn ranges(&self) -> Vec<BlockRange> {
        let everything = Cut { generation: crate::wal::Generation(u32::MAX), up_to: i64::MAX };
        self.cut_ranges(everything)
    }

    /// Digests of the samples of `range`, for `parts` equal parts of `hashes`. Decodes all of these samples; nothing is
    /// kept of them, so memory does not grow with the number of series.
    pub fn digests(&self, range: BlockRange, hashes: HashRange, parts: usize) -> Vec<PartDigest> {
        self.digests_of_parts(range, &hashes.split(parts))
    }

    /// The same for parts that ascend without gaps.
    pub fn digests_of_parts(&self, range: BlockRange, parts: &[HashRange]) -> Vec<PartDigest> {
        let Some((first, last)) = parts.first().zip(parts.last()) else { return Vec::new() };
        let hashes = HashRange { first: first.first, last: last.last };
        let mut all: Vec<PartDigest> = parts.iter().map(|hashes| PartDigest::new(*hashes)).collect();
        let pinned = Pinned::new(self);
        let mut progress = Progress::default();
        for number in 0..self.pages.read().len() {
            let wanted = self.hashes_of_page(number, hashes);
            if wanted.is_empty() {
                continue;
            }
            self.for_each_digest(&pinned, &wanted, closed(range), |hash, _, digest| {
                let at = all.partition_point(|part| part.hashes.last < hash);
                if let Some(part) = all.get_mut(at) {
                    part.add(hash, digest);
                }
            });
            if !(0..PAGE_SERIES).all(|_| progress.goes_on(0)) {
                break;
            }
        }
        all
    }

    /// The first series by hash, within `hashes`, that have samples of `range`, with a digest each: about `max_series`
    /// of them. What comes behind the last one's hash is asked for next; fewer than `max_series` are the end.
    pub fn series_digests(&self, range: BlockRange, hashes: HashRange, max_series: usize) -> Vec<SeriesDigest> {
        let pinned = Pinned::new(self);
        let max_series = max_series.max(1);
        let (mut found, mut from) = (Vec::new(), Some(hashes.first));
        // Series without samples of the range do not count: further ones take their places.
        while let Some(first) = from
            && found.len() < max_series
        {
            let wanted = self.first_by_hash(HashRange { first, ..hashes }, max_series);
            from = wanted.last().and_then(|(last, _)| last.checked_add(1)).filter(|next| *next <= hashes.last);
            self.for_each_digest(&pinned, &wanted, closed(range), |_, slot, digest| {
                let mut bytes = Vec::new();
                self.label_bytes(slot, &mut bytes);
                found.push(SeriesDigest { hash: LabelBytes::new_unchecked(&bytes).hash(), digest });
            });
        }
        found.sort_unstable_by_key(|series| series.hash);
        found
    }

    /// The labels of a series with this hash.
    pub fn labels_by_hash(&self, hash: u128) -> Option<Labels> {
        self.slots_by_hash(&[hash]).first().map(|slot| self.label_bytes(*slot, &mut Vec::new()))
    }

    fn slots_by_hash(&self, hashes: &[u128]) -> Vec<SeriesRef> {
        let appender = self.appender.lock();
        let is_it = |slot: &SeriesRef, hash: u128| {
            let (number, at) = locate(*slot);
            let page = appender.pages.get(number).map(|page| page.read());
            page.is_some_and(|page| page.series(at).is_some_and(|series| series.hash == (hash >> 64) as u64))
        };
        hashes.iter().flat_map(|hash| appender.table.candidates(*hash).filter(|slot| is_it(slot, *hash))).collect()
    }

    /// The series with these hashes, with all their chunks that may hold samples of `range`, those that can be read. A
    /// hash of no series is passed over.
    pub fn series_by_hash(&self, range: BlockRange, hashes: &[u128]) -> Vec<SeriesChunks> {
        let pinned = Pinned::new(self);
        let slots = self.slots_by_hash(hashes);
        let wanted: BTreeSet<u128> = hashes.iter().copied().collect();
        let mut found: Vec<SeriesChunks> = Vec::new();
        let mut bytes = Vec::new();
        for slot in slots {
            bytes.clear();
            let labels = self.label_bytes(slot, &mut bytes);
            let chunks = self.load_chunks(&pinned, &[slot], closed(range)).pop().unwrap_or_default();
            if wanted.contains(&LabelBytes::new_unchecked(&bytes).hash()) && !chunks.is_empty() {
                found.push(SeriesChunks { labels, chunks, deleted: Vec::new() });
            }
        }
        found.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
        found
    }

    /// How many series have a hash that `wanted` says yes to. Walks all series, a few hundred under one hold of the locks.
    pub fn count_series(&self, wanted: impl Fn(u128) -> bool) -> usize {
        let _pinned = Pinned::new(self);
        let (mut pairs, mut bytes, mut count) = (Vec::new(), Vec::new(), 0);
        let pages = self.pages.read().clone();
        for page in pages.iter() {
            let slots: Vec<usize> = page.read().alive().collect();
            for slots in slots.chunks(256) {
                let index = self.index.read();
                let page = page.read();
                for at in slots.iter().filter(|at| page.series(**at).is_some()) {
                    pairs.clear();
                    bytes.clear();
                    page.labels(*at, &mut pairs);
                    index.label_bytes(&pairs, &mut bytes);
                    count += usize::from(wanted(LabelBytes::new_unchecked(&bytes).hash()));
                }
            }
        }
        count
    }

    /// The labels of a series, and appended to `out` as a sender encodes them.
    pub(super) fn label_bytes(&self, slot: SeriesRef, out: &mut Vec<u8>) -> Labels {
        let (number, at) = locate(slot);
        let mut pairs = Vec::new();
        let index = self.index.read();
        if let Some(page) = self.pages.read().get(number) {
            page.read().labels(at, &mut pairs);
        }
        index.label_bytes(&pairs, out);
        index.labels(&pairs)
    }

    /// Hashes and slots of a page's series.
    fn hashes_of_page(&self, number: usize, hashes: HashRange) -> Vec<(u64, SeriesRef)> {
        let Some(page) = self.pages.read().get(number).cloned() else { return Vec::new() };
        let page = page.read();
        let of = |at: usize| page.series(at).map(|series| (series.hash, (number * PAGE_SERIES + at) as SeriesRef));
        page.alive().filter_map(of).filter(|(hash, _)| hashes.contains(*hash)).collect()
    }

    /// The first series by hash; one more than `max` where two have the same.
    fn first_by_hash(&self, hashes: HashRange, max: usize) -> Vec<(u64, SeriesRef)> {
        let (mut found, mut hashes) = (Vec::new(), hashes);
        let cut = |found: &mut Vec<(u64, SeriesRef)>, hashes: &mut HashRange| {
            found.sort_unstable();
            if let Some((last, _)) = found.get(max - 1).copied() {
                hashes.last = last;
                found.truncate(found.partition_point(|(hash, _)| *hash <= last));
            }
        };
        for number in 0..self.pages.read().len() {
            found.extend(self.hashes_of_page(number, hashes));
            if found.len() >= 4 * max {
                cut(&mut found, &mut hashes);
            }
        }
        cut(&mut found, &mut hashes);
        found
    }

    /// Calls `each` with every series that has samples of the range.
    fn for_each_digest(
        &self,
        pinned: &Pinned<'_>,
        series: &[(u64, SeriesRef)],
        range: QueryRange,
        mut each: impl FnMut(u64, SeriesRef, SampleDigest),
    ) {
        let mut rest = series;
        while !rest.is_empty() {
            // A chunk is some hundred bytes; a series has four of a range.
            let (some, later) = rest.split_at(rest.len().min(READ_BYTES / 1024));
            rest = later;
            let slots: Vec<SeriesRef> = some.iter().map(|(_, slot)| *slot).collect();
            for ((hash, slot), chunks) in some.iter().zip(self.load_chunks(pinned, &slots, range)) {
                // These bytes were encoded here and have their checksum: they decode.
                let digest = SampleDigest::of_chunks(&chunks, range).unwrap_or_default();
                if digest.samples > 0 {
                    each(*hash, *slot, digest);
                }
            }
        }
    }

    /// Per series its chunks that may hold samples of `range`, as far as they can be read.
    fn load_chunks(&self, pinned: &Pinned<'_>, slots: &[SeriesRef], range: QueryRange) -> Vec<Vec<Chunk>> {
        let rules = self.rules(0);
        let pages = self.pages.read().clone();
        let chunks_of = slots.iter().map(|slot| {
            let (number, at) = locate(*slot);
            let mut chunks: Vec<PageChunk> = Vec::new();
            if let Some(page) = pages.get(number) {
                page.read().chunks(at, range, pinned.hidden(), rules, &mut chunks);
            }
            chunks
        });
        let loaded = rules.shelf.load(chunks_of.collect());
        loaded.into_iter().map(|chunks| chunks.into_iter().filter_map(Result::ok).collect()).collect()
    }
}

/// What a series adds to the digest of its part: which series has which samples matters, not only which samples there are.
fn of_series(hash: u64, digest: SampleDigest) -> SampleDigest {
    let mut fingerprint = super::sample::Fingerprint::new(hash);
    fingerprint.add(digest.samples);
    fingerprint.add(digest.checksum);
    SampleDigest { samples: digest.samples, checksum: fingerprint.finish() }
}
