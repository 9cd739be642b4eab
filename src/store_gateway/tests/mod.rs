//! Tests of the store-gateway as a whole, over real blocks.

mod faults;
mod golden;
mod queries;
mod wire;
mod written;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use prometheus_client::registry::Registry;
use skald_model::{Columns, MatchOp, Matcher, QueryRange};
use skald_tsdb::SeriesChunks;
use skald_tsdb::chunk::{Chunk, Encoding, xor};
use skald_tsdb::disk::{Disk, MemDisk, RealDisk};
use ulid::Ulid;

use super::client::{BlocksBatch, StoreGatewayClient};
use super::{Config, StoreGateway};
use crate::bucket::{Bucket, BucketIndexConfig, Condition, IndexCache, MemBucket};
use crate::error::ServiceError;
use crate::runtime::{ManualClock, MemNet, Pool, Rng, Runtime};
use crate::select::SelectRequest;
use crate::tenant::TenantId;

fn tenant(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

fn matcher(name: &str, op: MatchOp, value: &str) -> Matcher {
    Matcher::new(op, name, value).unwrap()
}

/// Every series has a metric name.
fn everything() -> SelectRequest {
    SelectRequest::new(vec![matcher("__name__", MatchOp::Regex, ".+")], QueryRange::ALL)
}

/// Block sets written by Prometheus; `None`, with a note, where they are not at hand.
fn golden_set(name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden").join(name);
    if RealDisk.exists(&dir) {
        return Some(dir);
    }
    println!("skipped: {} is not there", dir.display());
    None
}

/// A store-gateway over a bucket in memory.
struct Bench {
    bucket: MemBucket,
    clock: ManualClock,
    disk: MemDisk,
    gateway: StoreGateway,
    registry: Registry,
}

impl Bench {
    fn new() -> Self {
        Self::with(MemBucket::default(), MemDisk::default(), Config::default())
    }

    fn with(bucket: MemBucket, disk: MemDisk, config: Config) -> Self {
        let shared: Arc<dyn Bucket> = Arc::new(bucket.clone());
        Self::over(shared, bucket, disk, config)
    }

    /// The gateway reads `shared`; `bucket` is that one when it is in memory.
    fn over(shared: Arc<dyn Bucket>, bucket: MemBucket, disk: MemDisk, config: Config) -> Self {
        let clock = ManualClock::at(1_717_400_000_000);
        let runtime = Runtime {
            clock: Arc::new(clock.clone()),
            rng: Arc::new(Rng::seeded(1)),
            disk: Arc::new(disk.clone()),
            net: Arc::new(MemNet::default()),
            gossip: Arc::new(crate::runtime::SocketGossip),
            bucket: None,
            ingest_pool: Pool::inline(),
            query_pool: Pool::inline(),
            background_pool: Pool::inline(),
        };
        let indexes = IndexCache::new(shared.clone(), runtime.clock.clone(), BucketIndexConfig::default());
        let mut registry = Registry::default();
        let gateway = StoreGateway::new(
            shared,
            Arc::new(indexes),
            Arc::new(|_, _| true),
            runtime,
            &config,
            Path::new("/data"),
            &mut registry,
        );
        Self { bucket, clock, disk, gateway, registry }
    }

    /// Puts a golden set's blocks under `tenant`; their names, ascending.
    async fn put_golden(&self, set: &Path, tenant: &str) -> Vec<Ulid> {
        let blocks = set.join("blocks");
        let mut ids = Vec::new();
        for block in RealDisk.list(&blocks).unwrap() {
            let dir = blocks.join(&block.name);
            let mut files: Vec<String> = vec!["index".into(), "meta.json".into(), "tombstones".into()];
            files.extend(RealDisk.list(&dir.join("chunks")).unwrap().iter().map(|f| format!("chunks/{}", f.name)));
            for file in files {
                let bytes = RealDisk.read(&dir.join(&file)).unwrap();
                let key = format!("{tenant}/{}/{file}", block.name);
                self.bucket.put(&key, bytes.into(), Condition::None).await.unwrap();
            }
            ids.push(Ulid::from_string(&block.name).unwrap());
        }
        ids
    }

    async fn select(
        &self,
        of: &str,
        blocks: &[Ulid],
        request: SelectRequest,
    ) -> Result<(Vec<SeriesChunks>, Vec<Ulid>), ServiceError> {
        let stream = self.gateway.select(&tenant(of), blocks.to_vec(), request).await?;
        let batches: Vec<BlocksBatch> = stream.try_collect().await?;
        let mut all = Vec::new();
        let mut served = None;
        for batch in batches {
            assert!(served.is_none(), "the blocks come last");
            match batch {
                BlocksBatch::Series(series) => {
                    assert!(!series.is_empty());
                    all.extend(series);
                }
                BlocksBatch::Served(blocks) => served = Some(blocks),
            }
        }
        assert!(all.is_sorted_by(|a, b| a.labels < b.labels), "series are in order, each once");
        Ok((all, served.unwrap()))
    }

    /// Requests to the bucket since the last time.
    fn requests(&self) -> usize {
        self.bucket.take_calls().len()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

/// The samples of a series in time order, each time once, without deleted ones.
fn samples(series: &SeriesChunks, decode: impl Fn(&Chunk, &mut Columns)) -> Columns {
    let mut chunk_samples = Columns::default();
    let mut floats = std::collections::BTreeMap::new();
    let mut histograms = std::collections::BTreeMap::new();
    for chunk in &series.chunks {
        chunk_samples.clear();
        decode(chunk, &mut chunk_samples);
        for (&t, &v) in chunk_samples.float_timestamps.iter().zip(&chunk_samples.float_values) {
            floats.entry(t).or_insert(v);
        }
        for (&t, h) in chunk_samples.histogram_timestamps.iter().zip(&chunk_samples.histograms) {
            histograms.entry(t).or_insert_with(|| h.clone());
        }
    }
    let mut out = Columns::default();
    let kept = |t: &i64| !series.deleted.iter().any(|range| range.contains(*t));
    floats.into_iter().filter(|(t, _)| kept(t)).for_each(|(t, v)| out.push_float(t, v));
    histograms.into_iter().filter(|(t, _)| kept(t)).for_each(|(t, h)| out.push_histogram(t, h));
    out
}

/// Decodes the floats of a chunk, nothing of other chunks.
fn decode_floats(chunk: &Chunk, out: &mut Columns) {
    if chunk.encoding == Encoding::Xor {
        xor::decode(&chunk.data, QueryRange::ALL, out).unwrap();
    }
}
