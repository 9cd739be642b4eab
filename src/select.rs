//! What readers ask of ingesters and store-gateways alike.

use futures::stream::BoxStream;
use skald_model::{Exemplar, Labels, Matcher, QueryRange};
use skald_promql::plan::SeriesShard;
use skald_tsdb::SeriesChunks;

use crate::error::ServiceError;

/// Asks for samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectRequest {
    /// All must hold; at least one does not match the empty string.
    pub matchers: Vec<Matcher>,
    /// Chunks that may hold samples of this range are answered whole.
    pub range: QueryRange,
    /// Only the series of one shard; the chunks of others are not touched.
    pub shard: Option<SeriesShard>,
}

/// Asks for labels or series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRequest {
    /// A series counts when it satisfies one of these lists of matchers; no list at all means every series.
    pub selectors: Vec<Vec<Matcher>>,
    /// A series counts when it may have a sample in this range; supersets in time are allowed.
    pub range: QueryRange,
}

/// Batches of series in ascending label order over the whole stream, each series once.
pub type SeriesStream = BoxStream<'static, Result<Vec<SeriesChunks>, ServiceError>>;

/// Exemplars of one series, ascending in time.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesExemplars {
    /// Which series.
    pub labels: Labels,
    /// Its exemplars.
    pub exemplars: Vec<Exemplar>,
}

/// Bytes of chunks one batch of a [`SeriesStream`] aims at: large enough to amortise a message, small enough that a
/// few in flight per stream stay cheap.
pub const BATCH_BYTES: usize = 512 << 10;
