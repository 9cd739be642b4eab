//! Answers the other members: overviews, digests, series, chunks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use skald_model::{QueryRange, TimestampMs};
use skald_tsdb::head::{DataVersion, HashRange, PartDigest};
use ulid::Ulid;

use super::super::Ingester;
use super::super::read::blocks;
use super::super::tenants::Tenant;
use super::content::{self, Chunks, Digesting, Listing};
use super::exchange::{
    ChunkStream, ChunksRequest, DigestsRequest, MAX_PARTS, MAX_SERIES_OF_CHUNKS, MAX_STRETCHES, Member, OverviewPart,
    OverviewStream, RangeDigest, SeriesDigestStream, SeriesRequest, TenantOverview,
};
use super::{Repaired, State};
use crate::error::{ErrorKind, ServiceError};
use crate::tenant::TenantId;

/// Ranges and tenants in one part of an overview.
const RANGES_AT_ONCE: usize = 1024;

/// A part goes when it took so long: who asks shall not take the silence for death.
const MOMENT: Duration = Duration::from_secs(1);

/// A range this far behind the wall clock changes only by what its head's data version counts, with ten minutes to spare
/// for a clock that is set back.
const REMEMBERED_AFTER_MS: i64 = 20 * 60 * 1000;

/// Digests are computed anew after this long, whatever the version says.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);

/// Whole digests of ranges that do not change any more.
#[derive(Default)]
pub(in crate::ingester) struct Digests {
    /// By tenant and range. The lock is held to look up and insert only.
    map: Mutex<HashMap<TenantId, OfTenant>>,
}

/// By the first and last time of ranges.
type OfTenant = BTreeMap<(TimestampMs, TimestampMs), Remembered>;

struct Remembered {
    version: DataVersion,
    blocks: Vec<Ulid>,
    at: Duration,
    digest: RangeDigest,
}

impl State {
    /// Who this member is, as it tells the others.
    pub(super) fn member(&self) -> Member {
        let repaired = *self.repaired.borrow() == Repaired::Yes;
        let intact = repaired || self.history.lock().is_intact();
        Member { instance: self.instance.lock().clone(), repaired, intact }
    }
}

impl Ingester {
    /// The digest of all series of a range.
    pub(super) async fn range_digest(
        &self,
        tenant: &Arc<Tenant>,
        range: QueryRange,
    ) -> Result<RangeDigest, ServiceError> {
        let shared = &self.shared;
        let settled = range.max < shared.runtime.clock.now_ms().saturating_sub(REMEMBERED_AFTER_MS);
        // Before the samples are looked at: what comes meanwhile makes it another version.
        let version = tenant.head.changes(range).version(range);
        let held: Vec<Ulid> = blocks(tenant, range).iter().map(|block| block.meta().ulid).collect();
        let now = shared.runtime.clock.monotonic();
        let key = (range.min, range.max);
        if settled && let Some(digest) = shared.repair.digests.get(&tenant.id, key, version, &held, now) {
            return Ok(digest);
        }
        let digest = RangeDigest::of(&self.digest(Digesting::new(tenant.clone(), range, HashRange::ALL, 1)).await?);
        shared.metrics.repair.samples_digested.inc_by(digest.digest.samples);
        if settled {
            let remembered = Remembered { version, blocks: held, at: now, digest };
            shared.repair.digests.map.lock().entry(tenant.id.clone()).or_default().insert(key, remembered);
        }
        Ok(digest)
    }

    /// Does it on the background pool.
    async fn digest(&self, mut digesting: Digesting) -> Result<Vec<PartDigest>, ServiceError> {
        loop {
            let step = self.shared.runtime.background_pool.run(move || (digesting.step(), digesting));
            let (goes_on, rest) = step.await?;
            digesting = rest;
            if !goes_on? {
                return Ok(digesting.finish());
            }
        }
    }

    pub(in crate::ingester) fn serve_overview(&self, up_to: TimestampMs) -> OverviewStream {
        let tenants = self.shared.tenants.all();
        let here: std::collections::HashSet<TenantId> = tenants.iter().map(|tenant| tenant.id.clone()).collect();
        self.shared.repair.digests.map.lock().retain(|tenant, _| here.contains(tenant));
        let overview = Overview { ingester: self.clone(), up_to, tenants: tenants.into_iter(), under: None };
        let parts = stream::try_unfold(Some(overview), async move |overview| {
            let Some(mut overview) = overview else { return Ok(None) };
            let part = overview.next_part().await?;
            let left = (!part.last).then_some(overview);
            Ok::<_, ServiceError>(Some((part, left)))
        });
        parts.boxed()
    }

    pub(in crate::ingester) async fn serve_digests(
        &self,
        id: &TenantId,
        request: DigestsRequest,
    ) -> Result<Vec<PartDigest>, ServiceError> {
        let DigestsRequest { range, hashes, parts } = request;
        if parts == 0 || parts > MAX_PARTS || hashes.first > hashes.last {
            return Err(too_much(format!("{parts} parts of a stretch of hashes: at most {MAX_PARTS}")));
        }
        let Some(tenant) = self.shared.tenants.get(id) else {
            return Ok(hashes.split(parts).into_iter().map(PartDigest::new).collect());
        };
        self.digest(Digesting::new(tenant, range, hashes, parts)).await
    }

    pub(in crate::ingester) fn serve_series(
        &self,
        id: &TenantId,
        request: SeriesRequest,
    ) -> Result<SeriesDigestStream, ServiceError> {
        let SeriesRequest { range, hashes } = request;
        let ascend = hashes.iter().all(|hashes| hashes.first <= hashes.last)
            && hashes.windows(2).all(|pair| pair[0].last < pair[1].first);
        if !ascend || hashes.len() > MAX_STRETCHES {
            let count = hashes.len();
            return Err(too_much(format!("{count} stretches of hashes, at most {MAX_STRETCHES} in ascending order")));
        }
        let Some(tenant) = self.shared.tenants.get(id) else { return Ok(stream::empty().boxed()) };
        let pool = self.shared.runtime.background_pool.clone();
        let steps = stream::try_unfold(Listing::new(tenant, range, hashes), move |mut listing| {
            let pool = pool.clone();
            async move { pool.run(move || Ok(listing.next()?.map(|some| (some, listing)))).await? }
        });
        Ok(steps.boxed())
    }

    pub(in crate::ingester) fn serve_chunks(
        &self,
        id: &TenantId,
        request: ChunksRequest,
    ) -> Result<ChunkStream, ServiceError> {
        let ChunksRequest { range, hashes } = request;
        if hashes.len() > MAX_SERIES_OF_CHUNKS {
            return Err(too_much(format!("chunks of {} series: at most {MAX_SERIES_OF_CHUNKS}", hashes.len())));
        }
        let Some(tenant) = self.shared.tenants.get(id) else { return Ok(stream::empty().boxed()) };
        let pool = self.shared.runtime.background_pool.clone();
        let steps = stream::try_unfold(Chunks::new(tenant, range, hashes), move |mut chunks| {
            let pool = pool.clone();
            async move { pool.run(move || Ok(chunks.next()?.map(|some| (some, chunks)))).await? }
        });
        Ok(steps.boxed())
    }
}

/// An overview on its way.
struct Overview {
    ingester: Ingester,
    up_to: TimestampMs,
    tenants: std::vec::IntoIter<Arc<Tenant>>,
    under: Option<(Arc<Tenant>, std::vec::IntoIter<QueryRange>)>,
}

impl Overview {
    /// Some ranges, as many as a moment allows. A tenant may go on in the next part.
    async fn next_part(&mut self) -> Result<OverviewPart, ServiceError> {
        let shared = &self.ingester.shared;
        let begun = shared.runtime.clock.monotonic();
        let mut part = OverviewPart { member: shared.repair.member(), ..OverviewPart::default() };
        for _ in 0..RANGES_AT_ONCE {
            if shared.runtime.clock.monotonic() - begun > MOMENT {
                break;
            }
            let Some((tenant, ranges)) = &mut self.under else {
                let Some(tenant) = self.tenants.next() else {
                    part.last = true;
                    break;
                };
                let (from, up_to, of) = (shared.repair.floors.of(&tenant.id), self.up_to, tenant.clone());
                let ranges = shared.runtime.background_pool.run(move || content::ranges(&of, from, up_to)).await?;
                shared.repair.digests.keep(&tenant.id, &ranges);
                self.under = Some((tenant, ranges.into_iter()));
                continue;
            };
            let Some(range) = ranges.next() else {
                self.under = None;
                continue;
            };
            let digest = self.ingester.range_digest(tenant, range).await?;
            if digest.series == 0 {
                continue;
            }
            if part.tenants.last().is_none_or(|last| last.tenant != tenant.id) {
                let from = shared.repair.floors.of(&tenant.id);
                part.tenants.push(TenantOverview { tenant: tenant.id.clone(), from, ranges: Vec::new() });
            }
            if let Some(last) = part.tenants.last_mut() {
                last.ranges.push((range, digest));
            }
        }
        Ok(part)
    }
}

fn too_much(text: String) -> ServiceError {
    ServiceError::new(ErrorKind::BadData, "repair-request", text)
}

impl Digests {
    fn get(
        &self,
        tenant: &TenantId,
        range: (i64, i64),
        version: DataVersion,
        blocks: &[Ulid],
        now: Duration,
    ) -> Option<RangeDigest> {
        let map = self.map.lock();
        let found = map.get(tenant)?.get(&range)?;
        let is_current =
            found.version == version && found.blocks == blocks && now.saturating_sub(found.at) < REMEMBERED_FOR;
        is_current.then_some(found.digest)
    }

    /// Forgets the tenant's other ranges.
    fn keep(&self, tenant: &TenantId, ranges: &[QueryRange]) {
        let mut map = self.map.lock();
        if let Some(of_tenant) = map.get_mut(tenant) {
            of_tenant.retain(|(min, max), _| ranges.contains(&QueryRange { min: *min, max: *max }));
        }
    }
}

/// Up to when each tenant's samples went with blocks that are in the bucket and were dropped here.
#[derive(Default)]
pub(in crate::ingester) struct Floors {
    map: Mutex<HashMap<TenantId, TimestampMs>>,
}

impl Floors {
    /// The first time that is compared still.
    pub(in crate::ingester) fn of(&self, tenant: &TenantId) -> TimestampMs {
        self.get(tenant).unwrap_or(TimestampMs::MIN)
    }

    /// The same, if any time is not.
    pub(in crate::ingester) fn get(&self, tenant: &TenantId) -> Option<TimestampMs> {
        self.map.lock().get(tenant).copied()
    }

    /// A block that ended at `end` was dropped.
    pub(in crate::ingester) fn raise(&self, tenant: &TenantId, end: TimestampMs) {
        let mut map = self.map.lock();
        let floor = map.entry(tenant.clone()).or_insert(end);
        *floor = (*floor).max(end);
    }
}
