//! One comparison with one other member: level by level down to what differs, and that is taken.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use skald_model::{QueryRange, TimestampMs};
use skald_tsdb::head::{HashRange, PartDigest, SampleDigest, SeriesDigest};

use super::super::Ingester;
use super::super::flush::FlushExtent;
use super::Peer;
use super::content::Listing;
use super::exchange::{
    COMPARED_MS, ChunksRequest, DigestsRequest, MAX_PARTS, MAX_SERIES_OF_CHUNKS, Member, RangeDigest, SeriesRequest,
    TenantOverview,
};
use super::import::{Differing, TakeError, nonsense};
use crate::error::{ErrorKind, ServiceError};
use crate::tenant::TenantId;

/// Parts into which the series of a range are divided, unless there are very many or few of them.
const PARTS: usize = 512;
/// So few series are listed at once.
const FEW_SERIES: u64 = 2048;
/// Most series listed at one time: some megabytes here and there.
const LISTED_SERIES: u64 = 65_536;
/// Longest wait for one answer, or one part of it.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most ranges of a tenant that make sense: several times what local blocks can be.
const MAX_RANGES: usize = 100_000;
/// So many tenants one after the other that could not be compared end the pass: it is the member, not they.
const MAX_FAILURES_IN_A_ROW: usize = 5;
/// What an early flush leaves in memory behind the newest sample.
const KEPT_MS: i64 = 20 * 60 * 1000;

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) tenants: u64,
    pub(super) ranges: u64,
    pub(super) ranges_differing: u64,
    pub(super) series_compared: u64,
    pub(super) series_differing: u64,
    pub(super) chunks: u64,
    pub(super) bytes: u64,
    pub(super) samples_imported: u64,
    pub(super) conflicts: u64,
    /// Tenants that could not be compared whole, the first few with why.
    pub(super) failed_tenants: u64,
    pub(super) failures: Vec<(TenantId, ServiceError)>,
}

/// How the last comparison with a member went.
#[derive(Debug, Clone)]
pub(super) struct PeerReport {
    pub(super) at_ms: TimestampMs,
    pub(super) took: Duration,
    pub(super) found: Found,
    /// Why it ended early.
    pub(super) error: Option<ServiceError>,
    /// When one was last whole.
    pub(super) whole_at_ms: Option<TimestampMs>,
}

/// Differences that cannot be settled: other values at one time, or samples that only this member has. Known by a hash of
/// tenant, range, series and both digests, so that they are looked at again when either changes.
#[derive(Default)]
pub(super) struct Settled {
    known: Mutex<HashSet<u64>>,
}

impl Settled {
    /// Beyond so many it begins anew.
    const MAX: usize = 1 << 20;

    fn key(tenant: &TenantId, range: QueryRange, hash: u128, digests: &(SampleDigest, SampleDigest)) -> u64 {
        let mut hasher = DefaultHasher::new();
        (tenant.as_str(), range.min.div_euclid(COMPARED_MS), hash, digests).hash(&mut hasher);
        hasher.finish()
    }
}

/// A comparison under way.
pub(super) struct Pass<'a> {
    ingester: &'a Ingester,
    peer: &'a Peer,
    /// Samples after this are not compared.
    up_to: TimestampMs,
    settled: &'a Settled,
    found: Found,
}

impl<'a> Pass<'a> {
    pub(super) fn new(ingester: &'a Ingester, peer: &'a Peer, up_to: TimestampMs, settled: &'a Settled) -> Self {
        Self { ingester, peer, up_to, settled, found: Found::default() }
    }

    /// Compares everything. The member's own words when everything was compared and taken, else why not.
    pub(super) async fn run(mut self) -> (Found, Result<Member, ServiceError>) {
        let compared = self.compare().await;
        let compared = match self.found.failures.first() {
            Some((tenant, error)) if compared.is_ok() => {
                let text = format!("{} tenants not compared; {tenant}: {error}", self.found.failed_tenants);
                Err(ServiceError { message: text, ..error.clone() })
            }
            _ => compared,
        };
        (self.found, compared)
    }

    async fn compare(&mut self) -> Result<Member, ServiceError> {
        let mut parts = self.within(self.peer.client.repair_overview(self.up_to)).await??;
        let (mut failures_in_a_row, mut last) = (0, None);
        loop {
            let part = self.within(parts.next()).await?;
            let part = part.ok_or_else(|| nonsense("its overview was cut short"))??;
            if !part.member.instance.is_empty() && part.member.instance != self.peer.id {
                return Err(nonsense(format!("it is {:?}", part.member.instance)));
            }
            for overview in part.tenants {
                // A large tenant comes in several parts.
                if last.as_ref() != Some(&overview.tenant) {
                    self.found.tenants += 1;
                    last = Some(overview.tenant.clone());
                }
                match self.tenant(&overview).await {
                    Ok(()) => failures_in_a_row = 0,
                    Err(error) => {
                        failures_in_a_row += 1;
                        self.found.failed_tenants += 1;
                        if failures_in_a_row > MAX_FAILURES_IN_A_ROW {
                            return Err(error);
                        }
                        if self.found.failures.len() < MAX_FAILURES_IN_A_ROW {
                            self.found.failures.push((overview.tenant, error));
                        }
                    }
                }
            }
            if part.last {
                return Ok(part.member);
            }
        }
    }

    async fn tenant(&mut self, overview: &TenantOverview) -> Result<(), ServiceError> {
        let one_range = |range: &QueryRange| {
            range.min <= range.max && range.min.div_euclid(COMPARED_MS) == range.max.div_euclid(COMPARED_MS)
        };
        if overview.ranges.len() > MAX_RANGES || !overview.ranges.iter().all(|(range, _)| one_range(range)) {
            return Err(nonsense("its overview names ranges that are none"));
        }
        let from = overview.from.max(self.ingester.shared.repair.floors.of(&overview.tenant));
        for (range, theirs) in &overview.ranges {
            let compared = QueryRange { min: range.min.max(from), max: range.max.min(self.up_to) };
            if compared.min > compared.max || theirs.series == 0 {
                continue;
            }
            self.found.ranges += 1;
            if compared != *range || self.own_digest(&overview.tenant, compared).await? != *theirs {
                self.found.ranges_differing += 1;
                self.range(&overview.tenant, compared, theirs.series).await?;
            }
        }
        Ok(())
    }

    async fn own_digest(&self, id: &TenantId, range: QueryRange) -> Result<RangeDigest, ServiceError> {
        let Some(tenant) = self.ingester.shared.tenants.get(id) else { return Ok(RangeDigest::default()) };
        self.ingester.range_digest(&tenant, range).await
    }

    /// Finds the parts of a range that differ.
    async fn range(&mut self, tenant: &TenantId, range: QueryRange, series: u64) -> Result<(), ServiceError> {
        if series <= FEW_SERIES {
            return self.series(tenant, range, vec![HashRange::ALL], series).await;
        }
        let parts = PARTS.max((series / FEW_SERIES) as usize).min(MAX_PARTS);
        let request = DigestsRequest { range, hashes: HashRange::ALL, parts };
        // Theirs first: what came to both meanwhile is in ours.
        let theirs = self.within(self.peer.client.repair_digests(tenant, request)).await??;
        let ours = self.ingester.serve_digests(tenant, request).await?;
        let differs = |(ours, theirs): &(&PartDigest, &PartDigest)| theirs.series > 0 && ours != theirs;
        if theirs.len() != ours.len() {
            return Err(nonsense(format!("it answered with {} parts instead of {}", theirs.len(), ours.len())));
        }
        let differing = ours.iter().zip(&theirs).filter(differs).map(|(ours, theirs)| (ours.hashes, theirs.series));
        for (stretches, series) in listed_together(differing) {
            self.series(tenant, range, stretches, series).await?;
        }
        Ok(())
    }

    /// Finds the series that differ, of which there are about so many.
    async fn series(
        &mut self,
        tenant: &TenantId,
        range: QueryRange,
        hashes: Vec<HashRange>,
        series: u64,
    ) -> Result<(), ServiceError> {
        let request = SeriesRequest { range, hashes };
        let mut batches = self.within(self.peer.client.repair_series(tenant, request.clone())).await??;
        let mut theirs: HashMap<u128, SampleDigest> = HashMap::new();
        while let Some(batch) = self.within(batches.next()).await? {
            theirs.extend(batch?.into_iter().map(|SeriesDigest { hash, digest }| (hash, digest)));
            // Some are new since they were counted.
            if theirs.len() as u64 > 2 * series + LISTED_SERIES {
                return Err(nonsense(format!("it listed {} series where it had counted {series}", theirs.len())));
            }
        }
        self.found.series_compared += theirs.len() as u64;
        let ours = self.own_series(tenant, request).await?;
        let mut differing: Differing = HashMap::new();
        {
            let settled = self.settled.known.lock();
            for (hash, theirs) in theirs {
                let digests = (ours.get(&hash).copied().unwrap_or_default(), theirs);
                let is_known = || settled.contains(&Settled::key(tenant, range, hash, &digests));
                if digests.0 != theirs && theirs.samples > 0 && !is_known() {
                    differing.insert(hash, digests);
                }
            }
        }
        self.found.series_differing += differing.len() as u64;
        let mut hashes: Vec<u128> = differing.keys().copied().collect();
        hashes.sort_unstable();
        for some in hashes.chunks(MAX_SERIES_OF_CHUNKS) {
            self.fetch(tenant, range, some, &differing).await?;
        }
        Ok(())
    }

    async fn own_series(
        &self,
        id: &TenantId,
        request: SeriesRequest,
    ) -> Result<HashMap<u128, SampleDigest>, ServiceError> {
        let mut ours = HashMap::new();
        let Some(tenant) = self.ingester.shared.tenants.get(id) else { return Ok(ours) };
        let mut listing = Listing::new(tenant, request.range, request.hashes);
        loop {
            let step = self.ingester.shared.runtime.background_pool.run(move || (listing.next(), listing));
            let (some, rest) = step.await?;
            let Some(some) = some? else { return Ok(ours) };
            ours.extend(some.into_iter().map(|SeriesDigest { hash, digest }| (hash, digest)));
            listing = rest;
        }
    }

    /// Fetches series and takes what is missing here.
    async fn fetch(
        &mut self,
        tenant: &TenantId,
        range: QueryRange,
        hashes: &[u128],
        differing: &Differing,
    ) -> Result<(), ServiceError> {
        let differing: Differing = hashes.iter().filter_map(|hash| Some((*hash, *differing.get(hash)?))).collect();
        let differing = std::sync::Arc::new(differing);
        let mut left: HashSet<u128> = hashes.iter().copied().collect();
        let request = ChunksRequest { range, hashes: hashes.to_vec() };
        let mut batches = self.within(self.peer.client.repair_chunks(tenant, request)).await??;
        while let Some(batch) = self.within(batches.next()).await? {
            let batch = std::sync::Arc::new(batch?);
            let mut made_room = false;
            let taken = loop {
                let (ingester, id) = (self.ingester.clone(), tenant.clone());
                let (some, of) = (batch.clone(), differing.clone());
                let pool = &self.ingester.shared.runtime.background_pool;
                match pool.run(move || ingester.take(&id, range, &some, &of)).await? {
                    Ok(taken) => break taken,
                    Err(TakeError::Backlog(_)) if !made_room => {
                        made_room = true;
                        self.make_room(tenant, range).await?;
                    }
                    Err(TakeError::Backlog(error) | TakeError::Failed(error)) => return Err(error),
                }
            };
            self.found.chunks += taken.chunks;
            self.found.bytes += taken.bytes;
            self.found.samples_imported += taken.samples;
            self.found.conflicts += taken.conflicts;
            taken.series.iter().for_each(|hash| _ = left.remove(hash));
            let mut settled = self.settled.known.lock();
            if settled.len() + taken.nothing_new.len() > Settled::MAX {
                settled.clear();
            }
            for hash in &taken.nothing_new {
                if let Some(digests) = differing.get(hash) {
                    settled.insert(Settled::key(tenant, range, *hash, digests));
                }
            }
        }
        match left.len() {
            0 => Ok(()),
            missing => Err(nonsense(format!("it did not send {missing} series that it had listed"))),
        }
    }

    /// Makes blocks of late samples.
    async fn make_room(&self, id: &TenantId, range: QueryRange) -> Result<(), ServiceError> {
        let Some(tenant) = self.ingester.shared.tenants.get(id) else { return Ok(()) };
        let newest = tenant.head.max_time().unwrap_or(range.max).min(self.ingester.shared.runtime.clock.now_ms());
        let up_to = range.max.saturating_add(1).min(newest.saturating_sub(KEPT_MS));
        let flushed = self.ingester.flush(&tenant, FlushExtent::Before(up_to)).await;
        flushed.map_err(|error| ServiceError::internal(format!("no room could be made for imports: {error}")))
    }

    /// What the other member does, as long as it does not take forever.
    async fn within<T>(&self, answer: impl Future<Output = T>) -> Result<T, ServiceError> {
        tokio::select! {
            answer = answer => Ok(answer),
            () = self.ingester.shared.runtime.clock.sleep(PATIENCE) => {
                let text = format!("no answer for {PATIENCE:?}");
                Err(ServiceError::new(ErrorKind::Timeout, "repair-timeout", text))
            }
        }
    }
}

/// Puts parts, ascending, together to what is listed at one time: neighbours become one stretch.
fn listed_together(parts: impl Iterator<Item = (HashRange, u64)>) -> Vec<(Vec<HashRange>, u64)> {
    let mut together: Vec<(Vec<HashRange>, u64)> = Vec::new();
    for (hashes, series) in parts {
        match together.last_mut() {
            Some((stretches, sum)) if *sum + series <= LISTED_SERIES => {
                *sum += series;
                match stretches.last_mut() {
                    Some(last) if last.last.checked_add(1) == Some(hashes.first) => last.last = hashes.last,
                    _ => stretches.push(hashes),
                }
            }
            _ => together.push((vec![hashes], series)),
        }
    }
    together
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_listed_as_one_stretch_up_to_a_limit() {
        let parts = HashRange::ALL.split(8);
        let some = |numbers: &[(usize, u64)]| {
            listed_together(
                numbers.iter().map(|(number, series)| (parts[*number], *series)).collect::<Vec<_>>().into_iter(),
            )
        };
        assert_eq!(some(&[]), []);
        let both = HashRange { first: parts[1].first, last: parts[2].last };
        assert_eq!(some(&[(1, 5), (2, 6), (4, 7)]), [(vec![both, parts[4]], 18)]);
        assert_eq!(
            some(&[(1, LISTED_SERIES), (2, 1), (3, LISTED_SERIES)]),
            [(vec![parts[1]], LISTED_SERIES), (vec![parts[2]], 1), (vec![parts[3]], LISTED_SERIES)]
        );
        let all: Vec<(usize, u64)> = (0..8).map(|number| (number, 1)).collect();
        assert_eq!(some(&all), [(vec![HashRange::ALL], 8)]);
    }
}
