//! A bucket that counts and times the calls on another one.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use skald_tsdb::disk::DiskFile;

use super::{Bucket, BucketError, Cause, Condition, Listing, Object, ObjectMeta, Operation, Version};
use crate::runtime::Clock;

/// Counts, times and weighs the calls on another bucket.
pub struct ObservedBucket {
    inner: Arc<dyn Bucket>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: Operation,
}

impl EncodeLabelValue for Operation {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.as_str().encode(encoder)
    }
}

#[derive(Clone)]
struct Metrics {
    operations: Family<OperationLabel, Counter>,
    failures: Family<OperationLabel, Counter>,
    durations: Family<OperationLabel, Histogram>,
    read_bytes: Counter,
    written_bytes: Counter,
}

impl Metrics {
    fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            operations: Family::default(),
            failures: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 3.0, 10))),
            read_bytes: Counter::default(),
            written_bytes: Counter::default(),
        };
        // A counter that exists from the start can be alerted on before its first failure.
        for operation in Operation::ALL {
            let label = OperationLabel { operation };
            drop(metrics.operations.get_or_create(&label));
            drop(metrics.failures.get_or_create(&label));
        }
        registry.register("skald_bucket_operations", "Calls on the bucket", metrics.operations.clone());
        registry.register(
            "skald_bucket_operation_failures",
            "Calls on the bucket that failed; a missing object or an unmet condition is an answer, not a failure",
            metrics.failures.clone(),
        );
        registry.register(
            "skald_bucket_operation_duration_seconds",
            "Time of a call on the bucket, retries included",
            metrics.durations.clone(),
        );
        registry.register("skald_bucket_read_bytes", "Bytes read from the bucket", metrics.read_bytes.clone());
        registry.register("skald_bucket_written_bytes", "Bytes written to the bucket", metrics.written_bytes.clone());
        metrics
    }
}

impl ObservedBucket {
    /// Wraps `inner`; its metrics go to `registry`.
    pub fn new(inner: Arc<dyn Bucket>, clock: Arc<dyn Clock>, registry: &mut Registry) -> Self {
        Self { inner, clock, metrics: Metrics::new(registry) }
    }

    async fn observe<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        let started = self.clock.monotonic();
        let result = call.await;
        let label = OperationLabel { operation };
        self.metrics.operations.get_or_create(&label).inc();
        let elapsed = self.clock.monotonic().saturating_sub(started);
        self.metrics.durations.get_or_create(&label).observe(elapsed.as_secs_f64());
        if let Err(error) = &result
            && !matches!(error.cause, Cause::NotFound | Cause::Precondition)
        {
            self.metrics.failures.get_or_create(&label).inc();
        }
        result
    }
}

#[async_trait]
impl Bucket for ObservedBucket {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Version, BucketError> {
        let size = bytes.len() as u64;
        let version = self.observe(Operation::Put, self.inner.put(key, bytes, condition)).await?;
        self.metrics.written_bytes.inc_by(size);
        Ok(version)
    }

    async fn put_stream(&self, key: &str, parts: BoxStream<'_, std::io::Result<Bytes>>) -> Result<(), BucketError> {
        let written = self.metrics.written_bytes.clone();
        let counted = parts.inspect_ok(move |part| _ = written.inc_by(part.len() as u64)).boxed();
        self.observe(Operation::PutStream, self.inner.put_stream(key, counted)).await
    }

    async fn get(&self, key: &str) -> Result<Object, BucketError> {
        let object = self.observe(Operation::Get, self.inner.get(key)).await?;
        self.metrics.read_bytes.inc_by(object.bytes.len() as u64);
        Ok(object)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        let bytes = self.observe(Operation::GetRange, self.inner.get_range(key, range)).await?;
        self.metrics.read_bytes.inc_by(bytes.len() as u64);
        Ok(bytes)
    }

    fn open_file(&self, key: &str) -> Result<Option<Arc<dyn DiskFile>>, BucketError> {
        self.inner.open_file(key)
    }

    fn has_files(&self) -> bool {
        self.inner.has_files()
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.observe(Operation::Head, self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, BucketError> {
        self.observe(Operation::List, self.inner.list(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.observe(Operation::Delete, self.inner.delete(key)).await
    }
}
