//! Selects and label queries against a plain filter over everything, and what they cost.

use std::collections::BTreeSet;

use skald_model::{Labels, QueryRange};
use skald_promql::plan::SeriesShard;

use super::*;
use crate::select::LabelRequest;

/// Selectors over the golden sets: all operators, absent labels, sets, prefixes, nothing at all.
fn selectors() -> Vec<Vec<Matcher>> {
    use MatchOp::{Equal, NotEqual, NotRegex, Regex};
    let one = |name, op, value| vec![matcher(name, op, value)];
    let name = |value| matcher("__name__", Regex, value);
    vec![
        one("__name__", Regex, ".+"),
        one("__name__", Regex, "[a-l].*"),
        one("__name__", NotRegex, ".*_bucket|.*_total"),
        one("__name__", Equal, "no such metric"),
        one("instance", Equal, "a"),
        one("instance", NotEqual, ""),
        vec![name(".+"), matcher("instance", Equal, "")],
        vec![name(".+"), matcher("instance", NotEqual, "a")],
        vec![name(".+"), matcher("instance", NotRegex, "a|b")],
        vec![name(".+"), matcher("instance", Regex, "a|b|zz")],
        vec![name(".+"), matcher("le", Regex, ".+"), matcher("instance", Regex, "|b")],
        vec![name(".+"), matcher("no_such_label", Equal, "x")],
        vec![name(".+"), matcher("no_such_label", NotEqual, "x")],
        vec![name("d.*"), matcher("z", Regex, ".*ö.*"), matcher("instance", NotRegex, "c.*")],
    ]
}

fn satisfies(labels: &Labels, matchers: &[Matcher]) -> bool {
    matchers.iter().all(|m| m.matches(labels.get(m.name()).unwrap_or_default()))
}

async fn golden_bench(set: &str) -> Option<(Bench, Vec<Ulid>)> {
    let dir = golden_set(set)?;
    let bench = Bench::new();
    let ids = bench.put_golden(&dir, "a").await;
    Some((bench, ids))
}

async fn selects_agree(set: &str) {
    let Some((bench, ids)) = golden_bench(set).await else { return };
    let (all, _) = bench.select("a", &ids, everything()).await.unwrap();
    let times = all.iter().flat_map(|s| &s.chunks).map(|c| (c.min_time, c.max_time));
    let (first, last) = times.fold((i64::MAX, i64::MIN), |(a, b), (min, max)| (a.min(min), b.max(max)));
    let middle = (first + last) / 2;
    let ranges = [
        QueryRange::ALL,
        QueryRange { min: first, max: first },
        QueryRange { min: middle, max: middle + 600_000 },
        QueryRange { min: last, max: i64::MAX },
        QueryRange { min: last + 1, max: i64::MAX },
        QueryRange { min: 5, max: 4 },
    ];
    let mut found_something = 0;
    for matchers in selectors() {
        for range in ranges {
            let request = SelectRequest::new(matchers.clone(), range);
            let (got, served) = bench.select("a", &ids, request).await.unwrap();
            assert_eq!(served, ids);
            let mut expected = Vec::new();
            for series in all.iter().filter(|series| satisfies(&series.labels, &matchers)) {
                let mut series = series.clone();
                series.chunks.retain(|chunk| chunk.min_time <= range.max && range.min <= chunk.max_time);
                series.deleted.retain(|deleted| !deleted.intersect(range).is_empty());
                if !series.chunks.is_empty() && !range.is_empty() {
                    expected.push(series);
                }
            }
            found_something += usize::from(!expected.is_empty());
            assert_eq!(got.len(), expected.len(), "{matchers:?} {range:?}");
            for (got, expected) in got.iter().zip(&expected) {
                assert_eq!(got.labels, expected.labels, "{matchers:?} {range:?}");
                assert_eq!(got.chunks, expected.chunks, "{matchers:?} {range:?}");
            }
        }
    }
    assert!(found_something > 20, "{found_something}");
}

/// Shards are disjoint, together everything, and cost about their part of the bytes of chunks.
#[tokio::test]
async fn shards_of_blocks_are_the_whole() {
    let Some((bench, ids)) = golden_bench("blocks-head").await else { return };
    let (all, _) = bench.select("a", &ids, everything()).await.unwrap();
    let count = 3;
    let mut together = Vec::new();
    for index in 0..count {
        let shard = SeriesShard { index, count };
        let (part, served) =
            bench.select("a", &ids, SelectRequest { shard: Some(shard), ..everything() }).await.unwrap();
        assert_eq!(served, ids);
        assert!(part.len() > all.len() / 6, "{} of {}", part.len(), all.len());
        assert!(part.iter().all(|series| shard.holds(&series.labels)));
        together.extend(part);
    }
    together.sort_by(|a, b| a.labels.cmp(&b.labels));
    assert_eq!(together, all);
}

#[tokio::test]
async fn selects_of_backfilled_blocks_agree() {
    selects_agree("blocks-backfill").await;
}

#[tokio::test]
async fn selects_of_head_blocks_agree() {
    selects_agree("blocks-head").await;
}

#[tokio::test]
async fn labels_agree() {
    for set in ["blocks-backfill", "blocks-head"] {
        let Some((bench, ids)) = golden_bench(set).await else { return };
        let (all, _) = bench.select("a", &ids, everything()).await.unwrap();
        let cases = selectors().into_iter().map(|matchers| vec![matchers]);
        let cases = cases.chain([vec![], selectors()[3..6].to_vec()]);
        for selectors in cases {
            let counts = |labels: &Labels| selectors.is_empty() || selectors.iter().any(|m| satisfies(labels, m));
            let series: Vec<Labels> = all.iter().map(|s| s.labels.clone()).filter(|labels| counts(labels)).collect();
            let request = || LabelRequest::new(selectors.clone(), QueryRange::ALL);
            let tenant = tenant("a");
            let got = bench.gateway.series(&tenant, ids.clone(), request()).await.unwrap();
            assert_eq!((&got.value, &got.served), (&series, &ids), "{selectors:?}");
            let names: BTreeSet<&str> = series.iter().flat_map(Labels::iter).map(|(name, _)| name).collect();
            let got = bench.gateway.label_names(&tenant, ids.clone(), request()).await.unwrap();
            assert_eq!(got.value, names.into_iter().collect::<Vec<_>>(), "{selectors:?}");
            assert_eq!(got.served, ids);
            for name in ["__name__", "instance", "le", "z", "no_such_label", ""] {
                let values: BTreeSet<&str> = series.iter().filter_map(|labels| labels.get(name)).collect();
                let got = bench.gateway.label_values(&tenant, ids.clone(), name, request()).await.unwrap();
                assert_eq!(got.value, values.into_iter().collect::<Vec<_>>(), "{name} {selectors:?}");
                assert_eq!(got.served, ids);
            }
        }
        // Blocks outside the range count as served and are not read.
        let request = LabelRequest::new(vec![], QueryRange { min: 5, max: 6 });
        let got = bench.gateway.label_names(&tenant("a"), ids.clone(), request).await.unwrap();
        assert_eq!((got.value.len(), got.served), (0, ids));
    }
}

#[tokio::test]
async fn requests_are_few_and_cached() {
    let Some((bench, ids)) = golden_bench("blocks-backfill").await else { return };
    bench.requests();
    let (cold, _) = bench.select("a", &ids, everything()).await.unwrap();
    // To open a block: meta.json, tombstones, two listings for the sizes it does not state, its index, small enough to be
    // read whole and kept. Then its segment, small enough for one request.
    assert_eq!(bench.requests(), ids.len() * 6);
    let (warm, _) = bench.select("a", &ids, everything()).await.unwrap();
    assert_eq!(bench.requests(), 0);
    assert_eq!(cold, warm);
    // A new process with the same disk opens blocks without a request.
    let again = Bench::with(bench.bucket.clone(), bench.disk.clone(), Config::default());
    let (reopened, _) = again.select("a", &ids, everything()).await.unwrap();
    assert_eq!(again.requests(), ids.len() * 2);
    assert_eq!(cold, reopened);
    let metrics = bench.metrics();
    assert!(
        metrics.contains(&format!("skald_store_gateway_blocks_opened_from_bucket_total {}", ids.len())),
        "{metrics}"
    );
    assert!(metrics.contains("skald_store_gateway_query_bucket_requests_sum 18.0"), "{metrics}");
    assert!(again.metrics().contains("skald_store_gateway_blocks_opened_from_disk_total 3"), "{metrics}");
}

#[tokio::test]
async fn without_memory_for_caches_answers_are_the_same() {
    let Some((bench, ids)) = golden_bench("blocks-head").await else { return };
    let (expected, _) = bench.select("a", &ids, everything()).await.unwrap();
    let config = Config {
        index_cache_size: crate::settings::ByteSize::bytes(0),
        chunks_cache_size: crate::settings::ByteSize::bytes(0),
        max_concurrent_requests: 1,
        index_header_loading_concurrency: 1,
        ..Config::default()
    };
    let small = Bench::with(bench.bucket.clone(), MemDisk::default(), config);
    let (got, _) = small.select("a", &ids, everything()).await.unwrap();
    assert_eq!(got, expected);
}

#[tokio::test]
async fn a_pool_of_one_thread_serves_many_queries_at_once() {
    let Some((bench, ids)) = golden_bench("blocks-head").await else { return };
    let (expected, _) = bench.select("a", &ids, everything()).await.unwrap();
    let queries = (0..50).map(|_| bench.select("a", &ids, everything()));
    for answer in futures::future::join_all(queries).await {
        assert_eq!(answer.unwrap().0, expected);
    }
}

#[tokio::test]
async fn replicas_of_a_block_count_once() {
    let Some((bench, ids)) = golden_bench("blocks-backfill").await else { return };
    let (expected, _) = bench.select("a", &ids, everything()).await.unwrap();
    // The same block under another name, as another ingester of the group would upload it.
    let copy = Ulid::from_parts(1, 1);
    for file in ["index", "tombstones", "chunks/000001", "meta.json"] {
        let original = bench.bucket.get(&format!("a/{}/{file}", ids[0])).await.unwrap().bytes;
        let text = String::from_utf8_lossy(&original).replace(&ids[0].to_string(), &copy.to_string());
        let bytes = if file == "meta.json" { text.into_bytes().into() } else { original };
        bench.bucket.put(&format!("a/{copy}/{file}"), bytes, Condition::None).await.unwrap();
    }
    let mut with_copy = vec![copy];
    with_copy.extend(&ids);
    let (got, served) = bench.select("a", &with_copy, everything()).await.unwrap();
    assert_eq!(got, expected);
    assert_eq!(served, with_copy);
}
