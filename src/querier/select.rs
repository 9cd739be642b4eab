//! One selector of a query: opens its sources and hands the merged series to the engine.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, try_join_all};
use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use skald_model::{Columns, Labels, QueryRange};
use skald_promql::eval::QueryContext;
use skald_promql::source::{Queryable, Select, SeriesBatch, SeriesSource, SourceError};
use skald_tsdb::SeriesChunks;
use skald_tsdb::decode::decode_series;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Shared;
use super::merge::{Input, Spare, Tolerance, merge};
use super::replicas::{Answered, Candidates, ask_quorum, candidates};
use super::small::Small;
use super::sources::{Sources, sources};
use super::store::open_blocks;
use crate::error::{ErrorKind, ServiceError};
use crate::ingester::client::IngesterClient;
use crate::read_ahead::{Begun, Depth, Place, ReadAhead};
use crate::runtime::Pool;
use crate::select::{RequestBounds, SelectRequest, SeriesStream};
use crate::tenant::TenantId;

/// A stream of more than two batches is read by a task, so that reading and evaluating overlap.
const DEPTH: Depth = Depth { items_in_place: 2, items_ahead: 2 };

/// Selects of one query that are opened before the engine comes to them, with the memory limit that each is granted: a
/// query of hundreds of selectors must not hold batches of all of them.
const SELECTS_AHEAD: std::ops::RangeInclusive<usize> = 1..=8;
const LIMIT_PER_SELECT_AHEAD: usize = 32 << 20;

/// What bounds the reading for one query.
#[derive(Clone)]
pub struct ReadingBounds {
    context: QueryContext,
    /// One permit for each select that may be opened before the engine comes to it.
    ahead: Arc<Semaphore>,
    /// When the query's time is over, by the monotonic clock.
    deadline: Option<Duration>,
}

impl ReadingBounds {
    /// The bounds of a query with this context, memory limit and deadline.
    pub(super) fn new(context: QueryContext, memory_limit: Option<usize>, deadline: Option<Duration>) -> Self {
        let ahead = memory_limit.unwrap_or(usize::MAX) / LIMIT_PER_SELECT_AHEAD;
        let ahead = Semaphore::new(ahead.clamp(*SELECTS_AHEAD.start(), *SELECTS_AHEAD.end()));
        Self { context, ahead: Arc::new(ahead), deadline }
    }
}

/// A tenant's series, as the engine sees them.
pub struct TenantSeries {
    pub(super) shared: Arc<Shared>,
    pub(super) tenant: TenantId,
    /// Where the series are read: with the engine, on the query pool.
    pub(super) place: Place,
    pub(super) warnings: Warnings,
    pub(super) bounds: ReadingBounds,
    /// Of a query that may be evaluated on a thread lent to it.
    pub(super) small: Option<Small>,
}

impl Queryable for TenantSeries {
    fn select(&self, select: Select) -> Box<dyn SeriesSource> {
        let (shared, tenant) = (self.shared.clone(), self.tenant.clone());
        let warnings = self.warnings.clone();
        let (place, context) = (self.place.clone(), self.bounds.context.clone());
        let bounds = RequestBounds::of_select(context.interrupt().clone(), self.bounds.deadline);
        let request = SelectRequest { matchers: select.matchers, range: select.range, shard: select.shard, bounds };
        let opening = async move { open(&shared, &place, &tenant, request, &warnings, &context).await };
        let ahead = Arc::clone(&self.bounds.ahead).try_acquire_owned().ok();
        let (place, opened) = (self.place.clone(), ahead.is_some());
        let mut opening =
            if opened { Opening::Begun(place.begin(opening)) } else { Opening::NotBegun(opening.boxed()) };
        let stream = async move {
            if let Opening::NotBegun(later) = opening {
                opening = Opening::Begun(place.begin(later));
            }
            let (inputs, tolerances) = match opening {
                Opening::Begun(Begun::Done(opened)) => opened?,
                Opening::Begun(Begun::Under(opening)) => opening.await??,
                Opening::NotBegun(opening) => opening.await?,
            };
            Ok::<_, ServiceError>(merge(inputs, tolerances))
        };
        let stream = stream::once(stream).try_flatten().boxed();
        let lent = self.small.map(|small| (small, self.place.pool.clone()));
        Box::new(StreamSource { stream, held: None, lent, _ahead: ahead })
    }
}

type Opened = Result<(Vec<Input>, Vec<Tolerance>), ServiceError>;

/// A select that is being opened, or will be when the engine comes to it.
enum Opening {
    Begun(Begun<Opened>),
    NotBegun(BoxFuture<'static, Opened>),
}

/// Opens every source of a select.
async fn open(
    shared: &Arc<Shared>,
    place: &Place,
    tenant: &TenantId,
    request: SelectRequest,
    warnings: &Warnings,
    context: &QueryContext,
) -> Opened {
    let sources = sources(&shared.config, request.range, shared.runtime.clock.now_ms());
    let mut inputs = Vec::new();
    let mut tolerances = Vec::new();
    if let Some(range) = sources.ingesters {
        let request = SelectRequest { range, ..request.clone() };
        let groups = candidates(shared, tenant)?.into_iter().map(|group| open_group(shared, tenant, group, &request));
        for Answered { answers, left } in try_join_all(groups).await? {
            let group = tolerances.len();
            inputs.extend(answers.into_iter().map(|stream| Input { stream: ahead(place, stream, context), group }));
            let spares = left.into_iter().rev().map(|member| spare(place, context, tenant, member, request.clone()));
            tolerances.push(Tolerance { spares: spares.collect(), left: 0 });
        }
    }
    if let Some(range) = sources.store {
        let request = SelectRequest { range, ..request };
        match open_store(shared, tenant, request).await {
            Ok(None) => {}
            Ok(Some(stream)) => {
                inputs.push(Input {
                    stream: ahead(place, warn_if_optional(stream, &sources, warnings), context),
                    group: tolerances.len(),
                });
                tolerances.push(Tolerance { left: usize::from(sources.store_is_optional), ..Tolerance::default() });
            }
            Err(error) if sources.store_is_optional => warnings.store_unavailable(&error),
            Err(error) => return Err(error),
        }
    }
    Ok((inputs, tolerances))
}

/// Opens a select at a quorum of a group's members. Where there are others to turn to, opened means that the first series
/// are there.
async fn open_group(
    shared: &Shared,
    tenant: &TenantId,
    group: Candidates,
    request: &SelectRequest,
) -> Result<Answered<SeriesStream>, ServiceError> {
    let has_others = group.members.len() > group.quorum;
    ask_quorum(shared, group, |member| {
        let (tenant, request) = (tenant.clone(), request.clone());
        Box::pin(async move {
            let mut stream = member.select(&tenant, request).await?;
            if !has_others {
                return Ok(stream);
            }
            Ok(match stream.next().await.transpose()? {
                Some(first) => stream::iter([Ok(first)]).chain(stream).boxed(),
                None => stream::empty().boxed(),
            })
        })
    })
    .await
}

/// The same series from another member of the group, for when one fails in the middle.
fn spare(
    place: &Place,
    context: &QueryContext,
    tenant: &TenantId,
    member: Arc<dyn IngesterClient>,
    request: SelectRequest,
) -> Spare {
    let (place, context, tenant) = (place.clone(), context.clone(), tenant.clone());
    Box::new(move || {
        Box::pin(async move {
            let stream = member.select(&tenant, request).await?;
            Ok(ahead(&place, stream, &context))
        })
    })
}

/// The series of the blocks that overlap the request; `None` when there is no such block.
async fn open_store(
    shared: &Arc<Shared>,
    tenant: &TenantId,
    request: SelectRequest,
) -> Result<Option<SeriesStream>, ServiceError> {
    let blocks = shared.blocks.blocks(tenant, request.range).await?;
    if blocks.is_empty() {
        return Ok(None);
    }
    open_blocks(shared.clone(), tenant.clone(), blocks, request, Vec::new()).await.map(Some)
}

/// Makes a failure of the store a warning where the ingesters hold the same samples.
fn warn_if_optional(stream: SeriesStream, sources: &Sources, warnings: &Warnings) -> SeriesStream {
    if !sources.store_is_optional {
        return stream;
    }
    let warnings = warnings.clone();
    stream.inspect_err(move |error| warnings.store_unavailable(error)).boxed()
}

/// What went wrong without making the answer wrong; shared by the selects of a query.
#[derive(Clone, Default)]
pub struct Warnings(Arc<Mutex<BTreeSet<String>>>);

impl Warnings {
    fn store_unavailable(&self, error: &ServiceError) {
        self.0.lock().insert(format!("object storage was not asked, the answer comes from ingesters alone: {error}"));
    }

    /// The warnings so far.
    pub fn take(&self) -> impl Iterator<Item = String> {
        std::mem::take(&mut *self.0.lock()).into_iter()
    }
}

/// Reads a stream, ahead of the engine if it waits or goes on. What was read ahead,
/// and the batch that is being merged with those of other sources, is charged to the query.
fn ahead(place: &Place, stream: SeriesStream, context: &QueryContext) -> SeriesStream {
    let charge = Arc::new(Mutex::new(context.source_charge()));
    let growing = charge.clone();
    let charged = stream.map(move |batch| {
        let batch = batch?;
        let bytes = batch.iter().map(SeriesChunks::heap_bytes).sum();
        let over =
            |error: SourceError| ServiceError::new(ErrorKind::Unprocessable, "max-memory-per-query", error.to_string());
        growing.lock().grow(bytes).map_err(over)?;
        Ok((batch, bytes))
    });
    let read = ReadAhead::start(place.clone(), DEPTH, charged.boxed());
    // Series of the batch taken last may wait for those of other sources until the next one is asked for.
    let mut merging = 0;
    let taken = read.map_ok(move |(batch, bytes)| {
        charge.lock().shrink(std::mem::replace(&mut merging, bytes));
        batch
    });
    taken.boxed()
}

/// A stream of batches as the engine polls it.
struct StreamSource {
    stream: SeriesStream,
    /// A batch that is not to be evaluated on a lent thread.
    held: Option<Vec<SeriesChunks>>,
    /// What says whether a batch may be.
    lent: Option<(Small, Pool)>,
    /// Lets another select be opened ahead once this one is dropped.
    _ahead: Option<OwnedSemaphorePermit>,
}

impl SeriesSource for StreamSource {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Box<dyn SeriesBatch>>, SourceError>> {
        loop {
            let series = match self.held.take() {
                Some(series) => series,
                None => match ready!(self.stream.poll_next_unpin(cx)) {
                    None => return Poll::Ready(Ok(None)),
                    Some(Err(error)) => return Poll::Ready(Err(source_error(error))),
                    Some(Ok(series)) => series,
                },
            };
            if series.is_empty() {
                continue;
            }
            if let Some((small, pool)) = &self.lent
                && pool.is_lent()
                && pool.poll_afford(small.cost(&series), cx).is_pending()
            {
                self.held = Some(series);
                return Poll::Pending;
            }
            return Poll::Ready(Ok(Some(Box::new(ChunkBatch::new(series)))));
        }
    }
}

fn source_error(error: ServiceError) -> SourceError {
    match error.kind {
        ErrorKind::Unprocessable | ErrorKind::TooManyRequests | ErrorKind::TooLarge | ErrorKind::BadData => {
            SourceError::Limit(error.message)
        }
        ErrorKind::Unavailable => SourceError::Unavailable(error.message),
        ErrorKind::Timeout | ErrorKind::Canceled => SourceError::Interrupted(error.message),
        _ => SourceError::Corrupt(error.message),
    }
}

struct ChunkBatch {
    series: Vec<SeriesChunks>,
    /// Counted once: the engine asks after every series.
    heap_bytes: usize,
}

impl ChunkBatch {
    fn new(series: Vec<SeriesChunks>) -> Self {
        let heap_bytes = series.iter().map(SeriesChunks::heap_bytes).sum();
        Self { series, heap_bytes }
    }
}

impl SeriesBatch for ChunkBatch {
    fn len(&self) -> usize {
        self.series.len()
    }

    fn labels(&self, i: usize) -> &Labels {
        &self.series[i].labels
    }

    fn decode(&self, i: usize, range: QueryRange, out: &mut Columns) -> Result<(), SourceError> {
        let series = &self.series[i];
        decode_series(&series.chunks, range, out)
            .map_err(|e| SourceError::Corrupt(format!("a chunk of {} is damaged: {e}", series.labels)))?;
        for deleted in &series.deleted {
            out.delete(*deleted);
        }
        Ok(())
    }

    fn heap_bytes(&self) -> usize {
        self.heap_bytes
    }
}
