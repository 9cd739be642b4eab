use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use prometheus_client::registry::Registry;
use skald_tsdb::block::BlockMeta;
use ulid::Ulid;

use super::*;
use crate::bucket::index::{IndexError, IndexedBlock};
use crate::bucket::mem::{Fault, MemBucket};
use crate::bucket::{Bucket, BucketIndex, BucketIndexConfig, Cause, Condition, IndexCache, Operation, TenantBucket};
use crate::runtime::{Clock, ManualClock};
use crate::tenant::TenantId;

const NOW: i64 = 1_700_000_000_123;

fn tenant(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

/// A block's name made at `ms`.
fn ulid(ms: i64, random: u128) -> Ulid {
    Ulid::from_parts(ms as u64, random)
}

struct Bench {
    bucket: MemBucket,
    clock: ManualClock,
    compactor: Arc<Compactor>,
    registry: Registry,
}

impl Bench {
    fn new() -> Self {
        let (bucket, clock) = (MemBucket::default(), ManualClock::at(NOW));
        bucket.set_now(NOW);
        let mut registry = Registry::default();
        let compactor = Compactor::new(
            Arc::new(bucket.clone()),
            Arc::new(clock.clone()),
            Config::default(),
            Arc::new(|tenant| tenant.as_str() != "somebody-elses"),
            &mut registry,
        );
        Self { bucket, clock, compactor: Arc::new(compactor), registry }
    }

    async fn put(&self, key: &str, content: impl Into<Bytes>) {
        self.bucket.put(key, content.into(), Condition::None).await.unwrap();
    }

    async fn put_block(&self, tenant: &str, id: Ulid) {
        let json = format!(
            r#"{{"ulid": "{id}", "minTime": 10, "maxTime": 20, "version": 1, "compaction": {{"level": 2,
                "sources": [], "hints": ["from-out-of-order"]}}, "thanos": {{"source": "compactor",
                "labels": {{"__compactor_shard_id__": "1_of_4"}}, "files": [{{"rel_path": "chunks/000001", "size_bytes": 9}},
                {{"rel_path": "chunks/000002", "size_bytes": 9}}, {{"rel_path": "index", "size_bytes": 9}}]}}}}"#
        );
        self.put(&format!("{tenant}/{id}/meta.json"), json).await;
        self.put(&format!("{tenant}/{id}/index"), "x").await;
    }

    fn tenant_bucket(&self, id: &str) -> TenantBucket {
        TenantBucket::new(Arc::new(self.bucket.clone()), tenant(id))
    }

    async fn index(&self, id: &str) -> BucketIndex {
        BucketIndex::fetch(&self.tenant_bucket(id)).await.unwrap().unwrap().0
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

#[tokio::test]
async fn the_index_lists_complete_blocks_and_marks() {
    let bench = Bench::new();
    let (whole, partial, damaged, marked) = (ulid(NOW, 1), ulid(NOW, 2), ulid(NOW, 3), ulid(NOW, 4));
    bench.put_block("a", whole).await;
    bench.put_block("a", marked).await;
    bench.put(&format!("a/{partial}/index"), "x").await;
    bench.put(&format!("a/{damaged}/meta.json"), "{").await;
    let mark = format!(r#"{{"id": "{marked}", "version": 1, "deletion_time": 1699999999, "details": "old"}}"#);
    bench.put(&format!("a/markers/{marked}-deletion-mark.json"), mark).await;
    bench.put("a/not-a-block/meta.json", "{}").await;
    let update = bench.compactor.update_tenant(&tenant("a")).await.unwrap();
    assert_eq!(update.partial, [partial]);
    assert_eq!(update.damaged.iter().map(|d| d.0).collect::<Vec<_>>(), [damaged]);
    let index = bench.index("a").await;
    assert_eq!(index, update.index);
    assert_eq!(index.blocks.iter().map(|b| b.block_id).collect::<Vec<_>>(), [whole, marked]);
    assert_eq!(index.marked_for_deletion_ms(marked), Some(1_699_999_999_000));
    assert_eq!(index.deletion_mark(whole), None);
    let expected = IndexedBlock {
        block_id: whole,
        min_time: 10,
        max_time: 20,
        segments_format: "1b6d".into(),
        segments_num: 2,
        uploaded_at: NOW / 1000,
        compactor_shard_id: "1_of_4".into(),
        source: "compactor".into(),
        compaction_level: 2,
        out_of_order: true,
        labels: [("__compactor_shard_id__".to_owned(), "1_of_4".to_owned())].into(),
    };
    assert_eq!(index.block(whole), Some(&expected));
    let metrics = bench.metrics();
    for line in [
        r#"skald_bucket_blocks{tenant="a"} 2"#,
        r#"skald_bucket_partial_blocks{tenant="a"} 1"#,
        r#"skald_bucket_damaged_blocks{tenant="a"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} not in {metrics}");
    }
}

#[tokio::test]
async fn only_new_blocks_are_read() {
    let bench = Bench::new();
    bench.put_block("a", ulid(NOW, 1)).await;
    bench.compactor.update_tenant(&tenant("a")).await.unwrap();
    bench.put_block("a", ulid(NOW, 2)).await;
    bench.bucket.take_calls();
    bench.compactor.update_tenant(&tenant("a")).await.unwrap();
    let metas =
        bench.bucket.take_calls().into_iter().filter(|(op, key)| *op == Operation::Get && key.ends_with("meta.json"));
    assert_eq!(metas.map(|call| call.1).collect::<Vec<_>>(), [format!("a/{}/meta.json", ulid(NOW, 2))]);
    assert_eq!(bench.index("a").await.blocks.len(), 2);
}

#[tokio::test]
async fn a_failing_bucket_never_shortens_an_index() {
    let bench = Bench::new();
    bench.put_block("a", ulid(NOW, 1)).await;
    bench.compactor.update_tenant(&tenant("a")).await.unwrap();
    let before = bench.index("a").await;
    bench.put_block("a", ulid(NOW, 2)).await;
    bench.put_block("a", ulid(NOW, 3)).await;
    // Each call of an update fails once, in turn.
    let mut failures = 0;
    loop {
        bench.bucket.take_calls();
        bench.bucket.set_faults(Some(Box::new(move |_, _, number| {
            (number == failures).then(|| Fault::Fail(Cause::Unavailable("hiccup".into())))
        })));
        let result = bench.compactor.update_tenant(&tenant("a")).await;
        let calls = bench.bucket.take_calls().len();
        bench.bucket.set_faults(None);
        match result {
            Err(error) => assert!(error.to_string().contains("hiccup"), "{error}"),
            Ok(update) => {
                assert_eq!(update.index.blocks.len(), 3);
                assert!(failures as usize >= calls, "failure {failures} of {calls} calls went unnoticed");
                break;
            }
        }
        assert_eq!(bench.index("a").await, before);
        failures += 1;
    }
    assert!(failures >= 5, "{failures}");
}

#[tokio::test]
async fn a_damaged_index_is_replaced() {
    let bench = Bench::new();
    bench.put_block("a", ulid(NOW, 1)).await;
    bench.put("a/bucket-index.json.gz", "garbage").await;
    let fetched = BucketIndex::fetch(&bench.tenant_bucket("a")).await;
    assert!(matches!(fetched, Err(IndexError::Damaged { .. })));
    bench.compactor.update_tenant(&tenant("a")).await.unwrap();
    assert_eq!(bench.index("a").await.blocks.len(), 1);
}

#[tokio::test]
async fn two_compactors_do_not_overwrite_each_other() {
    let bench = Bench::new();
    bench.put_block("a", ulid(NOW, 1)).await;
    // The first write is beaten by somebody else's.
    let mut beaten = false;
    bench.bucket.set_faults(Some(Box::new(move |operation, key, _| {
        let first = operation == Operation::Put && key.ends_with(".gz") && !std::mem::replace(&mut beaten, true);
        first.then_some(Fault::Fail(Cause::Precondition))
    })));
    bench.compactor.update_tenant(&tenant("a")).await.unwrap();
    let reads = bench.bucket.take_calls().into_iter().filter(|(op, key)| *op == Operation::Get && key.ends_with(".gz"));
    assert_eq!(reads.count(), 2);
    bench.bucket.set_faults(Some(Box::new(|operation, _, _| {
        (operation == Operation::Put).then_some(Fault::Fail(Cause::Precondition))
    })));
    assert!(bench.compactor.update_tenant(&tenant("a")).await.is_err());
}

#[tokio::test]
async fn rounds_go_on_past_those_that_fail_or_hang() {
    let bench = Bench::new();
    for id in ["fails", "hangs", "works", "somebody-elses"] {
        bench.put_block(id, ulid(NOW, 1)).await;
    }
    bench.bucket.set_faults(Some(Box::new(|_, key, _| match key {
        key if key.starts_with("fails/") => Some(Fault::Fail(Cause::Refused("no".into()))),
        key if key.starts_with("hangs/") => Some(Fault::Delay(Duration::from_secs(3600))),
        _ => None,
    })));
    let compactor = bench.compactor.clone();
    let running = tokio::spawn(async move { compactor.run().await });
    let updated_at = |seconds: i64| {
        let bucket = bench.tenant_bucket("works");
        async move {
            for _ in 0..1_000 {
                if let Ok(Some((index, _))) = BucketIndex::fetch(&bucket).await
                    && index.updated_at == seconds
                {
                    return;
                }
                tokio::task::yield_now().await;
            }
            panic!("no round updated the index at {seconds}");
        }
    };
    updated_at(NOW / 1000).await;
    bench.clock.advance(Duration::from_secs(60));
    updated_at(NOW / 1000 + 60).await;
    running.abort();
    let metrics = bench.metrics();
    assert!(metrics.contains("skald_bucket_index_updates_failed_total 2"), "{metrics}");
    assert!(!metrics.contains("somebody-elses"), "{metrics}");
    let all = bench.compactor.update_all();
    bench.bucket.set_faults(Some(Box::new(|_, key, _| {
        key.starts_with("fails/").then(|| Fault::Fail(Cause::Refused("no".into())))
    })));
    let outcome: Vec<_> = all.await.unwrap().into_iter().map(|(tenant, result)| (tenant, result.is_ok())).collect();
    let expected = [("fails", false), ("hangs", true), ("somebody-elses", true), ("works", true)];
    assert_eq!(outcome, expected.map(|(id, ok)| (tenant(id), ok)));
}

#[tokio::test]
async fn readers_refuse_what_is_too_old() {
    let bench = Bench::new();
    let cache =
        IndexCache::new(Arc::new(bench.bucket.clone()), Arc::new(bench.clock.clone()), BucketIndexConfig::default());
    // Nobody's tenant has no blocks; a young block without an index is on its way.
    assert!(cache.get(&tenant("a")).await.unwrap().blocks.is_empty());
    let young = ulid(bench.clock.now_ms() - 60_000, 1);
    bench.put_block("a", young).await;
    bench.clock.advance(Duration::from_secs(61));
    assert!(cache.get(&tenant("a")).await.unwrap().blocks.is_empty());
    bench.compactor.update_tenant(&tenant("a")).await.unwrap();
    assert!(cache.get(&tenant("a")).await.unwrap().blocks.is_empty(), "a copy within the refresh interval serves");
    assert_eq!(cache.refresh(&tenant("a")).await.unwrap().blocks.len(), 1);
    assert_eq!(cache.get(&tenant("a")).await.unwrap().blocks.len(), 1);
    // A failing bucket is bridged by the copy, but not for ever.
    bench.clock.advance(Duration::from_secs(1800));
    bench.bucket.refuse_everything();
    assert_eq!(cache.get(&tenant("a")).await.unwrap().blocks.len(), 1);
    bench.clock.advance(Duration::from_secs(1801));
    let error = cache.get(&tenant("a")).await.unwrap_err();
    assert!(matches!(error, IndexError::TooOld { age_seconds: 3601, max_seconds: 3600, .. }), "{error}");
    // Old blocks without an index are an error, too.
    bench.bucket.set_faults(None);
    bench.put_block("b", young).await;
    assert!(matches!(cache.get(&tenant("b")).await, Err(IndexError::TooOld { .. })));
    bench.bucket.refuse_everything();
    assert!(matches!(cache.get(&tenant("c")).await, Err(IndexError::Bucket(_))));
}

#[tokio::test]
async fn many_readers_cost_one_request() {
    let bench = Bench::new();
    bench.put_block("a", ulid(NOW, 1)).await;
    bench.compactor.update_tenant(&tenant("a")).await.unwrap();
    let cache =
        IndexCache::new(Arc::new(bench.bucket.clone()), Arc::new(bench.clock.clone()), BucketIndexConfig::default());
    bench.bucket.take_calls();
    bench.bucket.set_faults(Some(Box::new(|_, _, _| Some(Fault::Delay(Duration::from_millis(5))))));
    let (a, b) = (tenant("a"), tenant("a"));
    let (first, second, third) = tokio::join!(cache.get(&a), cache.get(&b), cache.get(&a));
    assert!(first.is_ok() && second.is_ok() && third.is_ok());
    assert_eq!(bench.bucket.take_calls().len(), 1);
}

#[test]
fn mimirs_indexes_are_read() {
    let json = r#"{"version":2,"blocks":[{"block_id":"01M7XJD02WQ18DRRGGBN1G1W9J","min_time":1,"max_time":2,
        "segments_format":"1b6d","segments_num":3,"uploaded_at":1717290000,"compactor_shard_id":"","source":"compactor",
        "compaction_level":3,"labels":null,"something_new":{}},
        {"block_id":"01M7XJCN8X6AG3YFSXEVRRHHCM","min_time":0,"max_time":1,"uploaded_at":5}],
        "block_deletion_marks":null,"updated_at":1717290010}"#;
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let index = BucketIndex::decode(&gzip(json)).unwrap();
    assert_eq!(index.updated_at_ms(), 1_717_290_010_000);
    assert_eq!(index.blocks[0].max_time, 1);
    let block = index.block(Ulid::from_string("01M7XJD02WQ18DRRGGBN1G1W9J").unwrap()).unwrap();
    assert_eq!((block.segments_num, block.compaction_level, block.source.as_str()), (3, 3, "compactor"));
    assert_eq!(BucketIndex::decode(&index.encode()).unwrap(), index);
    assert!(BucketIndex::decode(&gzip(&json.replace("\"version\":2", "\"version\":3"))).is_err());
    assert!(BucketIndex::decode(b"").is_err() && BucketIndex::decode(&gzip("[]")).is_err());
}

#[test]
fn what_is_written_is_what_mimir_reads() {
    let meta = BlockMeta::parse(
        br#"{"ulid": "01M7XJD02WQ18DRRGGBN1G1W9J", "minTime": 1, "maxTime": 2, "version": 1, "compaction": {"level": 1}}"#,
    )
    .unwrap();
    let index = BucketIndex::new(vec![IndexedBlock::new(&meta, 5_999)], Vec::new(), 7_001);
    let mut json = String::new();
    std::io::Read::read_to_string(&mut MultiGzDecoder::new(&index.encode()[..]), &mut json).unwrap();
    let expected = concat!(
        r#"{"version":2,"blocks":[{"block_id":"01M7XJD02WQ18DRRGGBN1G1W9J","min_time":1,"max_time":2,"uploaded_at":5,"#,
        r#""compactor_shard_id":"","compaction_level":1}],"block_deletion_marks":[],"updated_at":7}"#
    );
    assert_eq!(json, expected);
}

#[tokio::test]
async fn the_admin_page_updates_one_tenant_or_all() {
    use axum::body::Body;
    use http::{Request, StatusCode};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    let bench = Bench::new();
    for id in ["a", "b"] {
        bench.put_block(id, ulid(NOW, 1)).await;
    }
    let routes = routes(bench.compactor.clone());
    let ask = |method: &'static str, query: &'static str| {
        let request = Request::builder().method(method).uri(format!("/compactor/update-bucket-index{query}"));
        let answer = routes.clone().oneshot(request.body(Body::empty()).unwrap());
        async {
            let answer = answer.await.unwrap();
            let status = answer.status();
            (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
        }
    };
    let updated = |id: &str| format!(r#"{{"tenant":"{id}","blocks":1,"partial_blocks":0,"damaged_blocks":0}}"#);
    let (status, body) = ask("POST", "?tenant=a").await;
    assert_eq!((status, body), (StatusCode::OK, format!(r#"{{"tenants":[{}]}}"#, updated("a"))));
    assert!(BucketIndex::fetch(&bench.tenant_bucket("b")).await.unwrap().is_none());
    let (status, body) = ask("POST", "").await;
    assert_eq!((status, body), (StatusCode::OK, format!(r#"{{"tenants":[{},{}]}}"#, updated("a"), updated("b"))));
    assert_eq!(ask("GET", "").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask("POST", "?tenant=a/b").await.0, StatusCode::BAD_REQUEST);
    bench.bucket.set_faults(Some(Box::new(|_, key, _| {
        key.starts_with("b/").then(|| Fault::Fail(Cause::Unavailable("down".into())))
    })));
    let (status, body) = ask("POST", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("tenant b") && body.contains("down"), "{body}");
    assert_eq!(ask("POST", "?tenant=a").await.0, StatusCode::OK);
}
