//! The querier over gRPC: a client of a remote one, and the server side of a local one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use skald_model::{Columns, HistogramValue, Labels, MetricMetadata, QueryRange};
use skald_promql::eval::{AnswerCharge, Element, FragmentOutput, SampleValue, Series, Value};
use skald_proto::grpc::{self as messages, MalformedMessage, querier_client, querier_server};
use tonic::{Request, Response, Status};

use super::client::{FragmentReply, QuerierClient, QueryReply, QueryRequest};
use crate::error::{ErrorKind, ServiceError};
use crate::grpc::{
    self, MAX_MESSAGE_BYTES, Peer, SERIES_PER_MESSAGE, Served, client_of, compressing, convert, malformed,
};
use crate::query_plan::fragment::{add_groups, group_messages};
use crate::query_plan::{MAX_PLAN_BYTES, SentPlan, said};
use crate::select::{LabelRequest, SeriesExemplars};
use crate::tenant::TenantId;

/// Samples one message of an answer holds at most, or one more series: about 200 KiB.
const SAMPLES_PER_MESSAGE: usize = 16_384;
/// Samples that a histogram counts as.
const SAMPLES_OF_HISTOGRAM: usize = 32;

/// What a call has beyond the time of its query.
const CALL_GRACE: Duration = Duration::from_secs(5);
/// Longest evaluation a peer may ask for; the query-frontend's own limit is far below.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Largest request taken: a plan, the text it was made of, and little else.
const MAX_REQUEST_BYTES: usize = MAX_PLAN_BYTES + (1 << 20);

/// A remote querier.
#[derive(Clone)]
pub struct GrpcQuerierClient {
    client: querier_client::QuerierClient<Peer>,
}

impl GrpcQuerierClient {
    /// A querier behind `peer`.
    pub fn new(peer: Peer) -> Self {
        Self { client: client_of!(querier_client::QuerierClient<Peer>, peer) }
    }
}

/// The gRPC service of a local querier.
pub fn server(querier: Arc<dyn QuerierClient>) -> querier_server::QuerierServer<Served<dyn QuerierClient>> {
    compressing!(querier_server::QuerierServer::new(Served(querier)))
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
}

fn query_message(request: QueryRequest) -> Result<messages::QueryRequest, ServiceError> {
    let plan = request.plan.encoded();
    if plan.len() > MAX_PLAN_BYTES {
        let text = format!("the query's plan has {} bytes, more than the limit of {MAX_PLAN_BYTES}", plan.len());
        return Err(ServiceError::new(ErrorKind::BadData, "plan-too-large", text));
    }
    Ok(messages::QueryRequest {
        query: request.query.as_ref().to_owned(),
        timeout_ms: request.timeout.as_millis() as u64,
        plan,
        explain: request.explain,
    })
}

/// The call for a query. It is given somewhat longer than the query, whose end the querier tells best itself.
fn query_call(tenant: &TenantId, request: QueryRequest) -> Result<Request<messages::QueryRequest>, ServiceError> {
    let timeout = request.timeout.saturating_add(CALL_GRACE);
    let mut call = grpc::request(tenant, query_message(request)?);
    call.set_timeout(timeout);
    Ok(call)
}

fn query_request(message: messages::QueryRequest) -> QueryRequest {
    QueryRequest {
        query: message.query.into(),
        plan: SentPlan::Encoded(message.plan),
        timeout: Duration::from_millis(message.timeout_ms).min(LONGEST_TIMEOUT),
        explain: message.explain,
    }
}

/// What `value_type` says.
mod value_type {
    pub const SCALAR: u32 = 1;
    pub const STRING: u32 = 2;
    pub const VECTOR: u32 = 3;
    pub const MATRIX: u32 = 4;
}

fn element_message(element: Element) -> messages::QuerySeries {
    let mut series =
        messages::QuerySeries { labels: element.labels.as_bytes().to_vec(), ..messages::QuerySeries::default() };
    match element.value {
        SampleValue::Float(value) => {
            series.timestamps.push(element.timestamp);
            series.value_bits.push(value.to_bits());
        }
        SampleValue::Histogram(h) => series.histograms.push(messages::Histogram::from_float(element.timestamp, &h)),
    }
    series
}

/// A series in parts of at most a message each.
fn series_messages(series: Series) -> impl Iterator<Item = messages::QuerySeries> {
    let Series { labels, samples } = series;
    let floats = samples.float_values.len();
    let parts = floats.div_ceil(SAMPLES_PER_MESSAGE).max(1);
    let cut = move |part: usize, length: usize, most: usize| (part * most).min(length)..((part + 1) * most).min(length);
    let histograms_per_message = SAMPLES_PER_MESSAGE / SAMPLES_OF_HISTOGRAM;
    let parts = parts.max(samples.histograms.len().div_ceil(histograms_per_message));
    (0..parts).map(move |part| {
        let floats = cut(part, floats, SAMPLES_PER_MESSAGE);
        let histograms = cut(part, samples.histograms.len(), histograms_per_message);
        let times = &samples.histogram_timestamps[histograms.clone()];
        messages::QuerySeries {
            labels: labels.as_bytes().to_vec(),
            timestamps: samples.float_timestamps[floats.clone()].to_vec(),
            value_bits: samples.float_values[floats].iter().map(|v| v.to_bits()).collect(),
            histograms: times
                .iter()
                .zip(&samples.histograms[histograms])
                .map(|(t, h)| messages::Histogram::from_float(*t, h))
                .collect(),
        }
    })
}

/// An answer as messages of bounded size, in order, each made when the one before it has gone out: `series` is drained,
/// a series longer than a message goes on in the next one under the same labels.
struct ReplyMessages {
    head: Option<messages::QueryResponse>,
    series: Box<dyn Iterator<Item = messages::QuerySeries> + Send>,
    last: Option<messages::QueryResponse>,
    /// The answer counts against the query's budget until it is sent.
    _charge: Option<AnswerCharge>,
}

impl ReplyMessages {
    fn new(reply: QueryReply) -> Self {
        let mut head = messages::QueryResponse::default();
        let series: Box<dyn Iterator<Item = messages::QuerySeries> + Send> = match reply.value {
            Value::Scalar { timestamp, value } => {
                (head.value_type, head.timestamp, head.scalar_bits) = (value_type::SCALAR, timestamp, value.to_bits());
                Box::new(std::iter::empty())
            }
            Value::String { timestamp, value } => {
                (head.value_type, head.timestamp, head.text) = (value_type::STRING, timestamp, value);
                Box::new(std::iter::empty())
            }
            Value::Vector(elements) => {
                head.value_type = value_type::VECTOR;
                Box::new(elements.into_iter().map(element_message))
            }
            Value::Matrix(series) => {
                head.value_type = value_type::MATRIX;
                Box::new(series.into_iter().flat_map(series_messages))
            }
        };
        let last = messages::QueryResponse {
            last: true,
            warnings: reply.warnings,
            annotations: said::annotation_messages(&reply.annotations),
            stats: Some(said::stats_message(reply.stats)),
            costs: said::cost_messages(reply.explain.as_deref()),
            ..messages::QueryResponse::default()
        };
        Self { head: Some(head), series, last: Some(last), _charge: reply.charge }
    }
}

impl Iterator for ReplyMessages {
    type Item = messages::QueryResponse;

    fn next(&mut self) -> Option<messages::QueryResponse> {
        let head = self.head.take();
        let first = head.is_some();
        let mut message = head.unwrap_or_default();
        let mut samples = 0;
        while samples < SAMPLES_PER_MESSAGE
            && let Some(one) = self.series.next()
        {
            samples += 1 + one.timestamps.len() + one.histograms.len() * SAMPLES_OF_HISTOGRAM;
            message.series.push(one);
        }
        if first || !message.series.is_empty() { Some(message) } else { self.last.take() }
    }
}

fn columns(message: messages::QuerySeries) -> Result<Series, MalformedMessage> {
    if message.timestamps.len() != message.value_bits.len() {
        return Err(MalformedMessage("columns of unequal length"));
    }
    let mut samples = Columns {
        float_timestamps: message.timestamps,
        float_values: message.value_bits.into_iter().map(f64::from_bits).collect(),
        ..Columns::default()
    };
    for histogram in message.histograms {
        let sample = histogram.into_sample();
        let HistogramValue::Float(h) = sample.value else {
            return Err(MalformedMessage("an answer holds an integer histogram"));
        };
        samples.push_histogram(sample.timestamp, h);
    }
    Ok(Series { labels: messages::labels(&message.labels)?, samples })
}

fn element(message: messages::QuerySeries) -> Result<Element, MalformedMessage> {
    let series = columns(message)?;
    let samples = series.samples;
    let (timestamp, value) = match (samples.float_values.as_slice(), samples.histograms.as_slice()) {
        ([value], []) => (samples.float_timestamps[0], SampleValue::Float(*value)),
        ([], [histogram]) => (samples.histogram_timestamps[0], SampleValue::Histogram(histogram.clone())),
        _ => return Err(MalformedMessage("an element of a vector has not exactly one sample")),
    };
    Ok(Element { labels: series.labels, timestamp, value })
}

/// Puts an answer together from its messages.
async fn reply(mut stream: tonic::Streaming<messages::QueryResponse>) -> Result<QueryReply, ServiceError> {
    let mut head = stream.message().await?.ok_or_else(cut)?;
    let first = std::mem::take(&mut head.series);
    let mut elements = Vec::new();
    let mut series: Vec<Series> = Vec::new();
    // Decoded message by message: what a message holds twice for a moment is bounded.
    let mut take = |messages: Vec<messages::QuerySeries>| -> Result<(), MalformedMessage> {
        for message in messages {
            if head.value_type == value_type::VECTOR {
                elements.push(element(message)?);
                continue;
            }
            let one = columns(message)?;
            match series.last_mut() {
                Some(last) if last.labels == one.labels => last.samples.extend_from(&one.samples, QueryRange::ALL),
                _ => series.push(one),
            }
        }
        Ok(())
    };
    take(first).map_err(malformed)?;
    let last = loop {
        let mut message = stream.message().await?.ok_or_else(cut)?;
        take(std::mem::take(&mut message.series)).map_err(malformed)?;
        if message.last {
            break message;
        }
    };
    let value = match head.value_type {
        value_type::SCALAR => Value::Scalar { timestamp: head.timestamp, value: f64::from_bits(head.scalar_bits) },
        value_type::STRING => Value::String { timestamp: head.timestamp, value: head.text },
        value_type::VECTOR => Value::Vector(elements),
        value_type::MATRIX => Value::Matrix(series),
        _ => return Err(malformed(MalformedMessage("unknown type of answer"))),
    };
    Ok(QueryReply {
        value,
        annotations: said::annotations(last.annotations).map_err(malformed)?,
        warnings: last.warnings,
        stats: said::stats(last.stats),
        explain: said::costs(last.costs),
        charge: None,
    })
}

/// A fragment's groups as messages of bounded size, the last one with what was said about them.
fn fragment_messages(reply: FragmentReply) -> impl Iterator<Item = messages::FragmentResponse> {
    let FragmentOutput { groups, annotations, stats, explain } = reply.output;
    let last = messages::FragmentResponse {
        last: true,
        warnings: reply.warnings,
        stats: Some(said::stats_message(stats)),
        annotations: said::annotation_messages(&annotations),
        costs: said::cost_messages(explain.as_deref()),
        ..messages::FragmentResponse::default()
    };
    let groups = group_messages(groups)
        .map(|groups| messages::FragmentResponse { groups, ..messages::FragmentResponse::default() });
    groups.chain(std::iter::once(last))
}

/// Puts a fragment's result together from its messages.
async fn fragment_reply(
    mut stream: tonic::Streaming<messages::FragmentResponse>,
) -> Result<FragmentReply, ServiceError> {
    let mut groups = Vec::new();
    loop {
        let mut message = stream.message().await?.ok_or_else(cut)?;
        add_groups(&mut groups, std::mem::take(&mut message.groups)).map_err(malformed)?;
        if message.last {
            let output = FragmentOutput {
                groups,
                annotations: said::annotations(message.annotations).map_err(malformed)?,
                stats: said::stats(message.stats),
                explain: said::costs(message.costs),
            };
            return Ok(FragmentReply { output, warnings: message.warnings });
        }
    }
}

fn cut() -> ServiceError {
    ServiceError::new(ErrorKind::Unavailable, "query-answer-cut", "the answer was cut")
}

#[async_trait]
impl QuerierClient for GrpcQuerierClient {
    async fn query(&self, tenant: &TenantId, request: QueryRequest) -> Result<QueryReply, ServiceError> {
        let request = query_call(tenant, request)?;
        reply(self.client.clone().query(request).await?.into_inner()).await
    }

    async fn fragment(&self, tenant: &TenantId, request: QueryRequest) -> Result<FragmentReply, ServiceError> {
        let request = query_call(tenant, request)?;
        fragment_reply(self.client.clone().fragment(request).await?.into_inner()).await
    }

    async fn label_names(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<String>, ServiceError> {
        let message = convert::label_names_message(&request, &[]);
        Ok(self
            .client
            .clone()
            .label_names(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner()
            .names)
    }

    async fn label_values(
        &self,
        tenant: &TenantId,
        name: &str,
        request: LabelRequest,
    ) -> Result<Vec<String>, ServiceError> {
        let message = convert::label_values_message(name, &request, &[]);
        Ok(self
            .client
            .clone()
            .label_values(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner()
            .values)
    }

    async fn series(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<Labels>, ServiceError> {
        let message = convert::series_message(&request, &[]);
        let mut stream = self
            .client
            .clone()
            .series(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner();
        let mut all = Vec::new();
        while let Some(message) = stream.message().await? {
            all.extend(convert::label_sets(&message.labels).map_err(malformed)?);
        }
        Ok(all)
    }

    async fn exemplars(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        let message = convert::exemplars_message(&request);
        let response = self
            .client
            .clone()
            .exemplars(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner();
        response.series.into_iter().map(convert::series_exemplars).collect::<Result<_, _>>().map_err(malformed)
    }

    async fn metadata(&self, tenant: &TenantId, metric: Option<&str>) -> Result<Vec<MetricMetadata>, ServiceError> {
        let message = messages::MetadataRequest { metric: metric.unwrap_or_default().to_owned() };
        let response = self.client.clone().metadata(grpc::request(tenant, message)).await?.into_inner();
        Ok(response.metadata.into_iter().map(Into::into).collect())
    }
}

#[async_trait]
impl querier_server::Querier for Served<dyn QuerierClient> {
    type QueryStream = BoxStream<'static, Result<messages::QueryResponse, Status>>;

    async fn query(&self, request: Request<messages::QueryRequest>) -> Result<Response<Self::QueryStream>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let reply = self.0.query(&tenant, query_request(request.into_inner())).await?;
        Ok(Response::new(futures::stream::iter(ReplyMessages::new(reply).map(Ok)).boxed()))
    }

    type FragmentStream = BoxStream<'static, Result<messages::FragmentResponse, Status>>;

    async fn fragment(
        &self,
        request: Request<messages::QueryRequest>,
    ) -> Result<Response<Self::FragmentStream>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let reply = self.0.fragment(&tenant, query_request(request.into_inner())).await?;
        Ok(Response::new(futures::stream::iter(fragment_messages(reply).map(Ok)).boxed()))
    }

    async fn label_names(
        &self,
        request: Request<messages::LabelNamesRequest>,
    ) -> Result<Response<messages::LabelNamesResponse>, Status> {
        let (tenant, deadline) = (grpc::tenant_of(&request)?, grpc::deadline_of(&request));
        let (labels, _) = convert::label_names(request.into_inner()).map_err(malformed)?;
        let names = self.0.label_names(&tenant, labels.until(deadline)).await?;
        Ok(Response::new(messages::LabelNamesResponse { names, served_blocks: Vec::new() }))
    }

    async fn label_values(
        &self,
        request: Request<messages::LabelValuesRequest>,
    ) -> Result<Response<messages::LabelValuesResponse>, Status> {
        let (tenant, deadline) = (grpc::tenant_of(&request)?, grpc::deadline_of(&request));
        let (name, labels, _) = convert::label_values(request.into_inner()).map_err(malformed)?;
        let values = self.0.label_values(&tenant, &name, labels.until(deadline)).await?;
        Ok(Response::new(messages::LabelValuesResponse { values, served_blocks: Vec::new() }))
    }

    type SeriesStream = BoxStream<'static, Result<messages::SeriesResponse, Status>>;

    async fn series(&self, request: Request<messages::SeriesRequest>) -> Result<Response<Self::SeriesStream>, Status> {
        let (tenant, deadline) = (grpc::tenant_of(&request)?, grpc::deadline_of(&request));
        let (labels, _) = convert::series(request.into_inner()).map_err(malformed)?;
        let sets = self.0.series(&tenant, labels.until(deadline)).await?;
        let batches: Vec<_> = sets
            .chunks(SERIES_PER_MESSAGE)
            .map(|sets| {
                Ok(messages::SeriesResponse { labels: convert::label_sets_message(sets), served_blocks: Vec::new() })
            })
            .collect();
        Ok(Response::new(futures::stream::iter(batches).boxed()))
    }

    async fn exemplars(
        &self,
        request: Request<messages::ExemplarsRequest>,
    ) -> Result<Response<messages::ExemplarsResponse>, Status> {
        let (tenant, deadline) = (grpc::tenant_of(&request)?, grpc::deadline_of(&request));
        let labels = convert::exemplars(request.into_inner()).map_err(malformed)?;
        let series = self.0.exemplars(&tenant, labels.until(deadline)).await?;
        let series = series.iter().map(convert::series_exemplars_message).collect();
        Ok(Response::new(messages::ExemplarsResponse { series }))
    }

    async fn metadata(
        &self,
        request: Request<messages::MetadataRequest>,
    ) -> Result<Response<messages::MetadataResponse>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let metric = request.into_inner().metric;
        let metadata = self.0.metadata(&tenant, (!metric.is_empty()).then_some(metric.as_str())).await?;
        let metadata = metadata.iter().map(messages::Metadata::from).collect();
        Ok(Response::new(messages::MetadataResponse { metadata }))
    }
}

#[cfg(test)]
mod tests {
    use skald_promql::eval::{Annotations, QueryStats};

    use super::*;

    #[test]
    fn answers_are_cut_into_bounded_messages() {
        let one = |name: &str, samples: i64| {
            let mut columns = Columns::default();
            (0..samples).for_each(|t| columns.push_float(t, 0.5));
            Series { labels: Labels::from_pairs([("a", name)]), samples: columns }
        };
        let reply = QueryReply {
            value: Value::Matrix(vec![one("1", 10_000), one("2", 40_000), one("3", 10), one("4", 10)]),
            warnings: vec!["w".into()],
            annotations: Annotations::default(),
            stats: QueryStats::default(),
            explain: None,
            charge: None,
        };
        let messages: Vec<_> = ReplyMessages::new(reply).collect();
        let samples: Vec<Vec<usize>> =
            messages.iter().map(|m| m.series.iter().map(|s| s.timestamps.len()).collect()).collect();
        assert_eq!(samples, [vec![10_000, 16_384], vec![16_384], vec![7232, 10, 10], vec![]]);
        assert!(messages[3].last && messages[3].warnings == ["w"]);
        assert_eq!(messages[0].value_type, value_type::MATRIX);
        assert_eq!(messages[1].series[0].timestamps[0], 16_384);
    }

    #[test]
    fn an_answer_without_series_has_a_head_and_an_end() {
        let reply = QueryReply {
            value: Value::Vector(Vec::new()),
            warnings: Vec::new(),
            annotations: Annotations::default(),
            stats: QueryStats::default(),
            explain: None,
            charge: None,
        };
        let messages: Vec<_> = ReplyMessages::new(reply).collect();
        assert_eq!((messages.len(), messages[0].value_type, messages[1].last), (2, value_type::VECTOR, true));
    }
}
