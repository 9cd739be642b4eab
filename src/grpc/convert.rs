//! Messages of `skald.proto` to and from the types services use.

use skald_model::{Labels, Matcher, QueryRange};
use skald_promql::plan::SeriesShard;
use skald_proto::grpc::{self, MalformedMessage};
use skald_tsdb::SeriesChunks;
use skald_tsdb::chunk::{Chunk, Encoding};
use ulid::Ulid;

use crate::select::{LabelRequest, SelectRequest, SeriesExemplars};

fn range(range: Option<grpc::TimeRange>) -> QueryRange {
    range.map_or(QueryRange::ALL, QueryRange::from)
}

fn matchers(messages: Vec<grpc::Matcher>) -> Result<Vec<Matcher>, MalformedMessage> {
    messages.into_iter().map(Matcher::try_from).collect()
}

fn selectors(messages: Vec<grpc::MatcherSet>) -> Result<Vec<Vec<Matcher>>, MalformedMessage> {
    messages.into_iter().map(|set| matchers(set.matchers)).collect()
}

fn selector_messages(selectors: &[Vec<Matcher>]) -> Vec<grpc::MatcherSet> {
    let set = |matchers: &Vec<Matcher>| grpc::MatcherSet { matchers: matchers.iter().map(Into::into).collect() };
    selectors.iter().map(set).collect()
}

/// The message of block identifiers: 16 bytes each, big-endian.
pub fn block_messages(blocks: &[Ulid]) -> Vec<Vec<u8>> {
    blocks.iter().map(|b| b.to_bytes().to_vec()).collect()
}

/// Block identifiers of a message.
pub fn blocks(messages: Vec<Vec<u8>>) -> Result<Vec<Ulid>, MalformedMessage> {
    let block = |bytes: Vec<u8>| {
        <[u8; 16]>::try_from(bytes).map(Ulid::from_bytes).map_err(|_| MalformedMessage("a block id is not 16 bytes"))
    };
    messages.into_iter().map(block).collect()
}

/// The message of a select.
pub fn select_message(request: &SelectRequest, blocks: &[Ulid]) -> grpc::SelectRequest {
    grpc::SelectRequest {
        matchers: request.matchers.iter().map(Into::into).collect(),
        range: Some(request.range.into()),
        blocks: block_messages(blocks),
        shard: request.shard.map(shard_message),
    }
}

/// The message of a shard.
pub fn shard_message(shard: SeriesShard) -> grpc::SeriesShard {
    grpc::SeriesShard { index: shard.index, count: shard.count }
}

/// A shard, which must be one of its shards.
pub fn shard(message: grpc::SeriesShard) -> Result<SeriesShard, MalformedMessage> {
    let grpc::SeriesShard { index, count } = message;
    if index < count {
        Ok(SeriesShard { index, count })
    } else {
        Err(MalformedMessage("a shard is not one of its shards"))
    }
}

/// A select and the blocks it names.
pub fn select(message: grpc::SelectRequest) -> Result<(SelectRequest, Vec<Ulid>), MalformedMessage> {
    let shard = message.shard.map(shard).transpose()?;
    let request = SelectRequest { shard, ..SelectRequest::new(matchers(message.matchers)?, range(message.range)) };
    Ok((request, blocks(message.blocks)?))
}

fn limit_message(limit: Option<usize>) -> Option<u64> {
    limit.map(|limit| limit as u64)
}

/// The message of a request for label names.
pub fn label_names_message(request: &LabelRequest, blocks: &[Ulid]) -> grpc::LabelNamesRequest {
    grpc::LabelNamesRequest {
        selectors: selector_messages(&request.selectors),
        range: Some(request.range.into()),
        blocks: block_messages(blocks),
        limit: limit_message(request.limit),
    }
}

/// A request for label names and the blocks it names.
pub fn label_names(message: grpc::LabelNamesRequest) -> Result<(LabelRequest, Vec<Ulid>), MalformedMessage> {
    let limit = message.limit.and_then(|limit| usize::try_from(limit).ok());
    let request = LabelRequest { limit, ..LabelRequest::new(selectors(message.selectors)?, range(message.range)) };
    Ok((request, blocks(message.blocks)?))
}

/// The message of a request for the values of label `name`.
pub fn label_values_message(name: &str, request: &LabelRequest, blocks: &[Ulid]) -> grpc::LabelValuesRequest {
    grpc::LabelValuesRequest {
        name: name.to_owned(),
        selectors: selector_messages(&request.selectors),
        range: Some(request.range.into()),
        blocks: block_messages(blocks),
        limit: limit_message(request.limit),
    }
}

/// A request for label values: the label, what is asked, and the blocks.
pub fn label_values(message: grpc::LabelValuesRequest) -> Result<(String, LabelRequest, Vec<Ulid>), MalformedMessage> {
    let limit = message.limit.and_then(|limit| usize::try_from(limit).ok());
    let request = LabelRequest { limit, ..LabelRequest::new(selectors(message.selectors)?, range(message.range)) };
    Ok((message.name, request, blocks(message.blocks)?))
}

/// The message of a request for series.
pub fn series_message(request: &LabelRequest, blocks: &[Ulid]) -> grpc::SeriesRequest {
    grpc::SeriesRequest {
        selectors: selector_messages(&request.selectors),
        range: Some(request.range.into()),
        blocks: block_messages(blocks),
        limit: limit_message(request.limit),
    }
}

/// A request for series and the blocks it names.
pub fn series(message: grpc::SeriesRequest) -> Result<(LabelRequest, Vec<Ulid>), MalformedMessage> {
    let limit = message.limit.and_then(|limit| usize::try_from(limit).ok());
    let request = LabelRequest { limit, ..LabelRequest::new(selectors(message.selectors)?, range(message.range)) };
    Ok((request, blocks(message.blocks)?))
}

/// The message of a request for exemplars.
pub fn exemplars_message(request: &LabelRequest) -> grpc::ExemplarsRequest {
    grpc::ExemplarsRequest { selectors: selector_messages(&request.selectors), range: Some(request.range.into()) }
}

/// A request for exemplars.
pub fn exemplars(message: grpc::ExemplarsRequest) -> Result<LabelRequest, MalformedMessage> {
    Ok(LabelRequest::new(selectors(message.selectors)?, range(message.range)))
}

/// The message of one series with its chunks.
pub fn series_chunks_message(series: SeriesChunks) -> grpc::SeriesChunks {
    let chunk = |chunk: Chunk| grpc::Chunk {
        min_time: chunk.min_time,
        max_time: chunk.max_time,
        encoding: chunk.encoding as u32,
        data: chunk.data,
    };
    grpc::SeriesChunks {
        labels: series.labels.as_bytes().to_vec(),
        chunks: series.chunks.into_iter().map(chunk).collect(),
        deleted: series.deleted.into_iter().map(Into::into).collect(),
    }
}

/// One series with its chunks.
pub fn series_chunks(message: grpc::SeriesChunks) -> Result<SeriesChunks, MalformedMessage> {
    let chunk = |chunk: grpc::Chunk| {
        let encoding = u8::try_from(chunk.encoding)
            .ok()
            .and_then(Encoding::from_byte)
            .ok_or(MalformedMessage("unknown chunk encoding"))?;
        Ok(Chunk { min_time: chunk.min_time, max_time: chunk.max_time, encoding, data: chunk.data })
    };
    Ok(SeriesChunks {
        labels: grpc::labels(&message.labels)?,
        chunks: message.chunks.into_iter().map(chunk).collect::<Result<_, _>>()?,
        deleted: message.deleted.into_iter().map(Into::into).collect(),
    })
}

/// The message of one series' exemplars.
pub fn series_exemplars_message(series: &SeriesExemplars) -> grpc::SeriesExemplars {
    grpc::SeriesExemplars {
        labels: series.labels.as_bytes().to_vec(),
        exemplars: series.exemplars.iter().map(Into::into).collect(),
    }
}

/// One series' exemplars.
pub fn series_exemplars(message: grpc::SeriesExemplars) -> Result<SeriesExemplars, MalformedMessage> {
    Ok(SeriesExemplars {
        labels: grpc::labels(&message.labels)?,
        exemplars: message.exemplars.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
    })
}

/// The messages' bytes of many label sets.
pub fn label_sets_message(sets: &[Labels]) -> Vec<Vec<u8>> {
    sets.iter().map(|labels| labels.as_bytes().to_vec()).collect()
}

/// Many label sets.
pub fn label_sets(messages: &[Vec<u8>]) -> Result<Vec<Labels>, MalformedMessage> {
    messages.iter().map(|bytes| grpc::labels(bytes)).collect()
}
