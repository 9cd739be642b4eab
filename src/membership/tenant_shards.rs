//! Which shards tenants' series were written to, as distributors tell and queriers read.
//!
//! A tenant with a shard size is read from the groups of the largest shard of the lookback, if it is known that no larger one was
//! in use; from all groups otherwise. So distributors gossip for each such tenant which sizes they use ([`ShardUse`]): when each
//! was last in use, coarsely, and since when that is told. Gossip is the right home for it: a handful of bytes for each tenant,
//! one change in ten minutes, and what is forgotten when the last process ends is made up for by reading all groups.
//!
//! News take time. A distributor writes to more groups than before only when it has known for that time that this is told
//! ([`TenantShards::write_size`]); fewer need no care: small shards lie within larger ones. What is not told is read everywhere,
//! so tenants beyond the bound on their number only lose the advantage.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skald_ring::codec::{DecodeError, Reader, put_bytes, put_uvarint, put_varint};
use skald_ring::value::EntryKey;
use skald_ring::{MAX_GROUPS, Store, Value};

use crate::runtime::Clock;
use crate::tenant::{MAX_TENANT_ID_LENGTH, TenantId};

const VERSION: u8 = 1;
/// How often a size in use is told again: readers take it to have been in use for twice as long after it was told.
const TOLD_EVERY: Duration = Duration::from_secs(600);
/// Of a tenant that did not write for so long nothing is kept.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// Tenants that are told of, 1 to 2 MB of them; further ones are read from all groups.
const MAX_TENANTS: usize = 20_000;
/// What stands for all groups.
const ALL: u16 = u16::MAX;

/// The size that is told for a shard size: up to 8 itself, then four to each doubling, so that a tenant has few.
fn rounded(size: Option<usize>) -> u16 {
    match size {
        None => ALL,
        Some(size) if size > MAX_GROUPS as usize => ALL,
        Some(size) if size <= 8 => size.max(1) as u16,
        Some(size) => {
            let step = 1 << (size.ilog2() - 2);
            (size.div_ceil(step) * step) as u16
        }
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What is told of one tenant. All times are wall times, Unix milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Told {
    /// Since when every size in use is told.
    since_ms: i64,
    /// When each size was last in use.
    sizes: BTreeMap<u16, i64>,
}

impl Told {
    /// Whether `other` says anything new.
    fn lacks(&self, other: &Self) -> bool {
        other.since_ms > self.since_ms || other.sizes.iter().any(|(size, at)| self.sizes.get(size) < Some(at))
    }

    fn merge(&mut self, other: &Self) {
        self.since_ms = self.since_ms.max(other.since_ms);
        for (size, at) in &other.sizes {
            let own = self.sizes.entry(*size).or_insert(*at);
            *own = (*own).max(*at);
        }
    }
}

/// The shard sizes of tenants that have one, or had one lately. Merging takes the later of all times, so it does not matter in
/// which order and how often they come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardUse {
    tenants: BTreeMap<String, Told>,
}

impl ShardUse {
    fn of(tenant: &str, told: Told) -> Self {
        Self { tenants: BTreeMap::from([(tenant.to_owned(), told)]) }
    }
}

impl Value for ShardUse {
    fn merge(&mut self, other: &Self) -> Vec<EntryKey> {
        let mut changed = Vec::new();
        for (tenant, told) in &other.tenants {
            match self.tenants.get_mut(tenant) {
                Some(own) if !own.lacks(told) => continue,
                Some(own) => own.merge(told),
                None => {
                    self.tenants.insert(tenant.clone(), told.clone());
                }
            }
            changed.push(tenant.as_bytes().into());
        }
        changed
    }

    fn lacks(&self, other: &Self) -> bool {
        other.tenants.iter().any(|(tenant, told)| self.tenants.get(tenant).is_none_or(|own| own.lacks(told)))
    }

    fn entries(&self) -> Vec<EntryKey> {
        self.tenants.keys().map(|tenant| tenant.as_bytes().into()).collect()
    }

    fn is_transient(_: &[u8]) -> bool {
        false
    }

    /// `version u8 | tenant | told since | how many | (size | last used)…`.
    fn encode_entry(&self, key: &[u8], out: &mut Vec<u8>) -> bool {
        let Some((tenant, told)) = std::str::from_utf8(key).ok().and_then(|key| self.tenants.get_key_value(key)) else {
            return false;
        };
        out.push(VERSION);
        put_bytes(out, tenant.as_bytes());
        put_varint(out, told.since_ms);
        put_uvarint(out, told.sizes.len() as u64);
        for (size, at_ms) in &told.sizes {
            put_uvarint(out, (*size).into());
            put_varint(out, *at_ms);
        }
        true
    }

    fn decode_entry(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = reader.byte("version of a tenant's shards")?;
        if version != VERSION {
            let (what, version, newest) = ("a tenant's shards", version.into(), VERSION.into());
            return Err(DecodeError::UnknownVersion { what, version, newest });
        }
        let tenant = reader.text("tenant", MAX_TENANT_ID_LENGTH)?.to_owned();
        let mut told = Told { since_ms: reader.varint("since when")?, sizes: BTreeMap::new() };
        for _ in 0..reader.uvarint("number of shard sizes", 64)? {
            let size = reader.uvarint("shard size", ALL.into())? as u16;
            if size != ALL && rounded(Some(size.into())) != size {
                return Err(DecodeError::Invalid("shard size"));
            }
            told.sizes.insert(size, reader.varint("time of its use")?);
        }
        Ok(Self::of(&tenant, told))
    }

    fn expire(&mut self, now_ms: i64) {
        let oldest_ms = now_ms.saturating_sub(ms(RETENTION));
        self.tenants.retain(|_, told| told.sizes.values().any(|at| *at >= oldest_ms));
    }
}

/// What a distributor remembers of a tenant's shard between writes.
#[derive(Debug, Default)]
pub struct ShardMemory {
    /// What was wanted and what came of it; `None` before the first write.
    last: Option<(Option<usize>, Option<usize>)>,
    /// When to look again, monotonic.
    look_at: Duration,
    /// What was seen of each size.
    seen: BTreeMap<u16, SeenSize>,
    /// Since when sizes are told, as told, and when that was first seen, monotonic.
    since: Option<(i64, Duration)>,
}

#[derive(Debug, Clone, Copy)]
struct SeenSize {
    /// Since when it was seen to be told again and again, monotonic.
    since: Duration,
    /// When it was last in use, as told.
    at_ms: i64,
}

impl ShardMemory {
    /// Looks at what is told: a size that was not in use for so long that readers may have given it up is new once more.
    fn observe(&mut self, told: &Told, given_up_after: Duration, now: Duration) {
        let Told { since_ms, sizes } = told;
        if self.since.is_none_or(|(seen, _)| seen != *since_ms) {
            self.since = Some((*since_ms, now));
        }
        self.seen.retain(|size, _| sizes.contains_key(size));
        for (size, at_ms) in sizes {
            let seen = self.seen.entry(*size).or_insert(SeenSize { since: now, at_ms: *at_ms });
            if at_ms.saturating_sub(seen.at_ms) >= ms(given_up_after) {
                seen.since = now;
            }
            seen.at_ms = *at_ms;
        }
    }
}

/// The shards of tenants as this process knows them.
pub struct TenantShards {
    store: Arc<dyn Store<ShardUse>>,
    /// How long news take to reach everybody.
    spread: Duration,
    /// How far back reads look.
    lookback: Duration,
    clock: Arc<dyn Clock>,
    /// What was told before, older first: for tenants that write to this process for the first time. Held only to look into it.
    before: Mutex<[(Duration, Arc<ShardUse>); 2]>,
}

/// How often what is told is remembered for those.
const REMEMBERED_EVERY: Duration = Duration::from_secs(300);

impl fmt::Debug for TenantShards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantShards").finish_non_exhaustive()
    }
}

impl TenantShards {
    /// Over a gossiped value, whose news take so long to reach everybody, for reads that look back so far.
    pub fn new(store: Arc<dyn Store<ShardUse>>, spread: Duration, lookback: Duration, clock: Arc<dyn Clock>) -> Self {
        let now = (clock.monotonic(), store.get());
        Self { store, spread, lookback, clock, before: Mutex::new([now.clone(), now]) }
    }

    /// Remembers what is told now, so that it is known to be no news later.
    pub(super) fn remember(&self) {
        let now = (self.clock.monotonic(), self.store.get());
        let mut before = self.before.lock();
        *before = [before[1].clone(), now];
    }

    /// A size that was in use within it is one of the lookback to every reader: those give it up later by twice [`TOLD_EVERY`].
    fn given_up_after(&self) -> Duration {
        self.lookback.max(TOLD_EVERY)
    }

    /// The shard size to write with now, given the one that is `wanted` (`None` for all groups): smaller for a moment when the
    /// wanted one is larger than what readers may know of.
    pub fn write_size(&self, tenant: &TenantId, wanted: Option<usize>, memory: &mut ShardMemory) -> Option<usize> {
        let now = self.clock.monotonic();
        if let Some((last, size)) = memory.last
            && last == wanted
            && now < memory.look_at
        {
            return size;
        }
        let size = self.decide(tenant.as_str(), wanted, memory, now);
        memory.last = Some((wanted, size));
        let soon = self.spread.clamp(Duration::from_millis(100), Duration::from_secs(1));
        memory.look_at = memory.look_at.max(now + soon);
        size
    }

    fn decide(&self, tenant: &str, wanted: Option<usize>, memory: &mut ShardMemory, now: Duration) -> Option<usize> {
        let (size, now_ms) = (rounded(wanted), self.clock.now_ms());
        let known = self.store.get();
        let Some(told) = known.tenants.get(tenant) else {
            *memory = ShardMemory::default();
            // Nobody knows of a shard, so that all groups are read, and go on to be for a lookback from now.
            if size != ALL && known.tenants.len() < MAX_TENANTS {
                let told = Told { since_ms: now_ms, sizes: BTreeMap::from([(size, now_ms)]) };
                memory.observe(&told, self.given_up_after(), now);
                self.store.update(&ShardUse::of(tenant, told));
                memory.look_at = now + self.spread;
            }
            return wanted;
        };
        if memory.last.is_none() {
            if now.saturating_sub(self.before.lock()[1].0) >= REMEMBERED_EVERY {
                self.remember();
            }
            for (at, before) in &*self.before.lock() {
                if let Some(told) = before.tenants.get(tenant) {
                    memory.observe(told, self.given_up_after(), *at);
                }
            }
        }
        memory.observe(told, self.given_up_after(), now);
        let is_within = |at_ms: &i64, age: Duration| now_ms.abs_diff(*at_ms) < age.as_millis() as u64;
        if told.sizes.get(&size).is_none_or(|at| !is_within(at, TOLD_EVERY)) {
            let mut more = told.clone();
            more.sizes.insert(size, now_ms);
            memory.observe(&more, self.given_up_after(), now);
            self.store.update(&ShardUse::of(tenant, more));
        }
        let is_spread = |since: Duration| now.saturating_sub(since) >= self.spread;
        // All groups are read while sizes are not told for long enough.
        let told_from_ms = now_ms.saturating_sub(ms(self.lookback)).saturating_sub(ms(TOLD_EVERY));
        if told.since_ms > told_from_ms && memory.since.is_some_and(|(_, since)| is_spread(since)) {
            return wanted;
        }
        // What every reader knows to have been in use within the lookback.
        let is_known = |size: &u16, at_ms: &i64| {
            let seen = memory.seen.get(size);
            seen.is_some_and(|seen| is_spread(seen.since)) && is_within(at_ms, self.given_up_after())
        };
        let largest = told.sizes.iter().filter(|(size, at)| is_known(size, at)).map(|(size, _)| *size).max();
        match largest {
            Some(largest) if largest >= size => wanted,
            // Every shard has its first group.
            largest => Some(largest.unwrap_or(1).into()),
        }
    }

    /// The size of the shard that holds all series a tenant has written within the lookback; `None` when they may be in any group.
    pub fn read_size(&self, tenant: &TenantId) -> Option<usize> {
        let known = self.store.get();
        let told = known.tenants.get(tenant.as_str())?;
        if self.lookback >= RETENTION / 2 {
            return None;
        }
        // Each time may be as late as it takes to be told again, and to have been heard of by all who write.
        let from_ms = self.clock.now_ms().saturating_sub(ms(self.lookback)).saturating_sub(ms(2 * TOLD_EVERY));
        if told.since_ms > from_ms {
            return None;
        }
        let in_use = told.sizes.iter().filter(|(_, at)| **at >= from_ms).map(|(size, _)| *size);
        in_use.max().filter(|size| *size != ALL).map(usize::from)
    }
}

#[cfg(test)]
mod tests;
