//! Takes what another member has and this one lacks.

use std::collections::HashMap;

use skald_model::{LabelBytes, Labels, QueryRange};
use skald_tsdb::SeriesChunks;
use skald_tsdb::chunk::Chunk;
use skald_tsdb::head::{AppendLimits, ImportError, ImportLimits, SampleDigest, SeriesImport, missing};

use super::super::push::{FRESH_MS, wal_error};
use super::super::{BLOCK_RANGE_MS, Ingester};
use super::content::{hash_of, own_chunks};
use crate::error::{ErrorKind, ServiceError};
use crate::tenant::TenantId;

/// Heap bytes of late samples of a tenant from which on a flush makes room before more is imported.
const MAX_LATE_BYTES: usize = 512 << 20;

/// Digests of a series here and there.
pub(super) type Differing = HashMap<u128, (SampleDigest, SampleDigest)>;

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Hashes of the series in it.
    pub(super) series: Vec<u128>,
    /// Those of them of which nothing was missing here.
    pub(super) nothing_new: Vec<u128>,
    pub(super) chunks: u64,
    pub(super) bytes: u64,
    pub(super) samples: u64,
    pub(super) conflicts: u64,
}

/// Why a batch could not be taken.
#[derive(Debug)]
pub(super) enum TakeError {
    /// Too many late samples are in memory: a flush makes room.
    Backlog(ServiceError),
    /// Anything else.
    Failed(ServiceError),
}

impl From<ServiceError> for TakeError {
    fn from(error: ServiceError) -> Self {
        Self::Failed(error)
    }
}

/// What another member sent makes no sense.
pub(super) fn nonsense(text: impl Into<String>) -> ServiceError {
    ServiceError::new(ErrorKind::Internal, "repair-peer-nonsense", text)
}

impl Ingester {
    /// On the background pool: imports the samples of `range` that are missing here. Repeating it does no harm.
    ///
    /// The tenant's limits of series do not count: what is imported was acknowledged.
    pub(super) fn take(
        &self,
        id: &TenantId,
        range: QueryRange,
        batch: &[SeriesChunks],
        differing: &Differing,
    ) -> Result<Taken, TakeError> {
        let shared = &self.shared;
        let mut taken = Taken::default();
        let mut series: Vec<(u128, &Labels)> = Vec::with_capacity(batch.len());
        for one in batch {
            let hash = hash_of(&one.labels);
            if !differing.contains_key(&hash) {
                return Err(nonsense("it sent a series that was not asked for").into());
            }
            taken.chunks += one.chunks.len() as u64;
            taken.bytes += one.chunks.iter().map(|chunk| chunk.data.len() as u64).sum::<u64>();
            series.push((hash, &one.labels));
        }
        taken.series = series.iter().map(|(hash, _)| *hash).collect();
        let tenant = loop {
            let tenant = shared.tenants.get_or_insert(id, || self.new_tenant(id)).map_err(wal_error)?;
            if !*tenant.closed.read() {
                break tenant;
            }
            // Somebody removes this idle tenant right now; the next round makes a new one.
            std::thread::yield_now();
        };
        let own = own_chunks(&tenant, range, &series)?;
        let mut lacking: Vec<(Vec<u8>, Vec<Chunk>)> = Vec::new();
        for ((hash, labels), theirs) in series.iter().zip(batch) {
            let ours = own.get(hash).map_or(&[][..], Vec::as_slice);
            let found = missing(ours, &theirs.chunks, range, BLOCK_RANGE_MS)
                .map_err(|error| nonsense(format!("it sent a damaged chunk of {labels}: {error}")))?;
            taken.conflicts += found.conflicts;
            if found.samples == 0 {
                taken.nothing_new.push(*hash);
                continue;
            }
            let bytes = LabelBytes::from_labels(labels);
            if LabelBytes::check(&bytes).is_none() {
                return Err(nonsense("it sent a series whose labels break the rules").into());
            }
            lacking.push((bytes, found.chunks));
        }
        let closed = tenant.closed.read();
        if *closed {
            let text = "the tenant was idle and is being removed; the next pass brings its samples";
            return Err(ServiceError::new(ErrorKind::Unavailable, "tenant-closing", text).into());
        }
        tenant.pushed(shared.runtime.clock.monotonic().as_millis() as i64);
        let now = shared.runtime.clock.now_ms();
        let grace_period = shared.limits.of(id).distributor.creation_grace_period;
        let append = AppendLimits {
            max_time: now.saturating_add(grace_period.as_millis() as i64),
            max_exemplars: 0,
            fresh_from: now.saturating_sub(FRESH_MS),
            ..AppendLimits::default()
        };
        let limits = ImportLimits { append, max_late_bytes: MAX_LATE_BYTES };
        let imports =
            lacking.iter().map(|(labels, chunks)| SeriesImport { labels: LabelBytes::new_unchecked(labels), chunks });
        let imported = tenant.head.import_chunks(&shared.wal, imports, &limits).map_err(import_error)?;
        taken.samples = imported.stored;
        Ok(taken)
    }
}

fn import_error(error: ImportError) -> TakeError {
    let failed = |kind, reason, error: ImportError| ServiceError::new(kind, reason, error.to_string());
    match error {
        ImportError::LateBacklog { .. } => {
            TakeError::Backlog(failed(ErrorKind::Unavailable, "late-samples-backlog", error))
        }
        ImportError::Damaged { .. } => TakeError::Failed(nonsense(error.to_string())),
        ImportError::SeriesLimit { .. } => {
            TakeError::Failed(failed(ErrorKind::Unavailable, "max-series-per-user", error))
        }
        ImportError::Append(error) => TakeError::Failed(super::super::push::append_error(error)),
    }
}
