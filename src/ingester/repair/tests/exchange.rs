//! What every implementation of the questions must answer, of the ingester itself and behind gRPC.

use skald_tsdb::head::HashRange;
use tonic::service::Routes;

use super::super::super::flush::FlushExtent;
use super::super::super::grpc::{GrpcIngesterClient, server};
use super::super::content::hash_of;
use super::super::exchange::{COMPARED_MS, ChunksRequest, DigestsRequest, OverviewPart, RangeDigest, SeriesRequest};
use super::*;
use crate::http;
use crate::runtime::{Net, SystemClock};

/// The ingester behind gRPC.
async fn remote(ingester: Ingester) -> GrpcIngesterClient {
    let net = MemNet::default();
    let listener = net.listen("ingester:9095").await.unwrap();
    let router = Routes::new(server(Arc::new(ingester))).into_axum_router();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    tokio::spawn(async move {
        let config = http::Config::default();
        http::serve(listener, None, move || router.clone(), &config, clock, std::future::pending()).await;
    });
    GrpcIngesterClient::new(crate::grpc::Channels::plain(Arc::new(net)).to("ingester:9095").unwrap())
}

async fn overview(client: &dyn IngesterClient, up_to: i64) -> Vec<OverviewPart> {
    client.repair_overview(up_to).await.unwrap().try_collect().await.unwrap()
}

async fn conformance(client: &dyn IngesterClient, ingester: &Ingester) {
    // Nobody is here: one part says so, and who answers.
    let [nobody] = &overview(client, i64::MAX).await[..] else { panic!("one part") };
    assert!(nobody.last && nobody.tenants.is_empty() && nobody.member.instance == "m0", "{nobody:?}");
    assert!(!nobody.member.intact && !nobody.member.repaired);

    let (a, b) = (tenant("a"), tenant("b"));
    push_many(ingester, &a, 0..3000, NOW).await;
    push_many(ingester, &a, 0..10, NOW - 2 * COMPARED_MS).await;
    push_many(ingester, &b, 500..502, NOW).await;
    let parts = overview(client, i64::MAX).await;
    assert!(parts.last().is_some_and(|part| part.last) && parts.iter().filter(|part| part.last).count() == 1);
    let tenants: Vec<_> = parts.into_iter().flat_map(|part| part.tenants).collect();
    let names: Vec<&str> = tenants.iter().map(|overview| overview.tenant.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let counts: Vec<_> = tenants[0].ranges.iter().map(|(_, digest)| (digest.series, digest.digest.samples)).collect();
    assert_eq!(counts, [(10, 10), (3000, 3000)]);
    assert_eq!(tenants[1].ranges.len(), 1);
    // What is younger than the question asks for does not count.
    let earlier = overview(client, NOW - 1).await;
    assert_eq!(earlier[0].tenants[0].ranges.iter().map(|(_, digest)| digest.series).collect::<Vec<_>>(), [10]);

    // Parts add up to the whole, and the series of a part to the part. Nothing of another tenant is among them.
    let (range, whole) = tenants[0].ranges[1];
    let digests = DigestsRequest { range, hashes: HashRange::ALL, parts: 64 };
    let parts = client.repair_digests(&a, digests).await.unwrap();
    assert_eq!((parts.len(), RangeDigest::of(&parts)), (64, whole));
    let request = SeriesRequest { range, hashes: vec![parts[3].hashes, parts[5].hashes] };
    let series: Vec<_> = client.repair_series(&a, request).await.unwrap().try_collect().await.unwrap();
    let series: Vec<_> = series.concat();
    assert_eq!(series.len() as u64, parts[3].series + parts[5].series);
    let wanted: Vec<u128> = series.iter().map(|series| series.hash).chain([7]).collect();
    let request = ChunksRequest { range, hashes: wanted.clone() };
    let chunks: Vec<_> = client.repair_chunks(&a, request).await.unwrap().try_collect().await.unwrap();
    let chunks: Vec<_> = chunks.concat();
    assert_eq!(chunks.len(), series.len(), "a hash of no series is passed over");
    assert!(chunks.iter().all(|series| wanted.contains(&hash_of(&series.labels))));
    for (other, expected) in [(&b, 2), (&tenant("nobody"), 0)] {
        let parts = client.repair_digests(other, digests).await.unwrap();
        assert_eq!((parts.len(), RangeDigest::of(&parts).series), (64, expected));
        let request = SeriesRequest { range, hashes: vec![HashRange::ALL] };
        let listed: Vec<_> = client.repair_series(other, request).await.unwrap().try_collect().await.unwrap();
        assert_eq!(listed.concat().len() as u64, expected);
        let request =
            ChunksRequest { range, hashes: wanted.iter().copied().chain([hash_of(&chunks[0].labels)]).collect() };
        let found: Vec<_> = client.repair_chunks(other, request).await.unwrap().try_collect().await.unwrap();
        assert!(found.concat().len() as u64 <= expected);
    }

    // It does not matter whether samples are in the head or in blocks of it, or in both.
    let one = ingester.shared.tenants.get(&a).unwrap();
    ingester.flush(&one, FlushExtent::Everything).await.unwrap();
    push_many(ingester, &a, 3000..3100, NOW).await;
    push_many(ingester, &b, 600..603, NOW).await;
    let flushed = client.repair_digests(&a, digests).await.unwrap();
    assert_eq!(RangeDigest::of(&flushed).series, 3100);
    let request = SeriesRequest { range, hashes: vec![HashRange::ALL] };
    let listed: Vec<_> = client.repair_series(&a, request).await.unwrap().try_collect().await.unwrap();
    let listed = listed.concat();
    assert!(listed.len() == 3100 && series.iter().all(|series| listed.contains(series)));
    let request = ChunksRequest { range, hashes: wanted };
    let again: Vec<_> = client.repair_chunks(&a, request).await.unwrap().try_collect().await.unwrap();
    let mut again: Vec<_> = again.concat();
    let mut before = chunks;
    before.sort_by(|a, b| a.labels.cmp(&b.labels));
    again.sort_by(|a, b| a.labels.cmp(&b.labels));
    assert_eq!(before, again);

    // What asks for too much is refused.
    let too_many = DigestsRequest { parts: 1 << 20, ..digests };
    assert_eq!(client.repair_digests(&a, too_many).await.unwrap_err().reason, "repair-request");
    let too_many = ChunksRequest { range, hashes: vec![1; 20_000] };
    assert_eq!(client.repair_chunks(&a, too_many).await.err().unwrap().reason, "repair-request");
    let twice = SeriesRequest { range, hashes: vec![HashRange::ALL; 2] };
    assert_eq!(client.repair_series(&a, twice).await.err().unwrap().reason, "repair-request");
}

#[tokio::test]
async fn the_ingester_itself_conforms() {
    let ingester = places(1)[0].open().await;
    conformance(&ingester, &ingester).await;
}

#[tokio::test]
async fn the_ingester_behind_grpc_conforms() {
    let ingester = places(1)[0].open().await;
    conformance(&remote(ingester.clone()).await, &ingester).await;
}

#[tokio::test]
async fn members_repair_each_other_over_grpc() {
    let places = places(2);
    let all = open_all(&places).await;
    push_many(&all[0], &tenant("a"), 0..5000, NOW).await;
    push_many(&all[1], &tenant("a"), 2000..6000, NOW).await;
    let (found, compared) = compare(&all[0], &peer("m1", remote(all[1].clone()).await)).await;
    compared.unwrap();
    assert_eq!((found.series_differing, found.samples_imported), (1000, 1000), "{found:?}");
    let (found, compared) = compare(&all[1], &peer("m0", remote(all[0].clone()).await)).await;
    compared.unwrap();
    assert_eq!((found.series_differing, found.samples_imported), (2000, 2000), "{found:?}");
    assert_eq!(samples(&all[0], &tenant("a")).await, samples(&all[1], &tenant("a")).await);
}

#[tokio::test]
async fn what_does_not_change_is_digested_once() {
    let place = &places(1)[0];
    let ingester = place.open().await;
    let a = tenant("a");
    let digested = || ingester.shared.metrics.repair.samples_digested.get();
    push_many(&ingester, &a, 0..10, NOW - 200 * MINUTE).await;
    push_many(&ingester, &a, 0..10, NOW).await;
    let first = overview(&ingester, i64::MAX).await;
    assert_eq!(digested(), 20);
    assert_eq!((overview(&ingester, i64::MAX).await, digested()), (first, 30), "the newest is digested each time");
    // A late sample, a flush, and time make it be looked at again.
    push_many(&ingester, &a, 20..21, NOW - 200 * MINUTE).await;
    let changed = overview(&ingester, i64::MAX).await;
    assert_eq!((digested(), changed[0].tenants[0].ranges[0].1.series), (51, 11));
    let one = ingester.shared.tenants.get(&a).unwrap();
    ingester.flush(&one, FlushExtent::Before(NOW - 100 * MINUTE)).await.unwrap();
    assert_eq!((overview(&ingester, i64::MAX).await, digested()), (changed.clone(), 72));
    assert_eq!((overview(&ingester, i64::MAX).await, digested()), (changed, 82));
    place.clock.advance(Duration::from_secs(3600));
    overview(&ingester, i64::MAX).await;
    assert_eq!(digested(), 103);
}
