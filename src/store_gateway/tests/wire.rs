//! The gateway behind gRPC answers as the one in this process does.

use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::task::JoinSet;

use super::*;
use crate::bucket::mem::Fault;
use crate::bucket::{Cause, Operation};
use crate::grpc::Channels;
use crate::runtime::Net;
use crate::select::LabelRequest;
use crate::store_gateway::grpc::{GrpcStoreGatewayClient, server};

/// A client of `gateway` over a network in memory, and the server's task, which ends when dropped.
async fn over_the_wire(gateway: &StoreGateway) -> (GrpcStoreGatewayClient, JoinSet<()>) {
    let net: Arc<dyn Net> = Arc::new(MemNet::default());
    let mut listener = net.listen("gateway:9095").await.unwrap();
    let routes = tonic::service::Routes::new(server(Arc::new(gateway.clone()))).into_axum_router();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        loop {
            let Ok((io, _)) = listener.accept().await else { return };
            let service = TowerToHyperService::new(routes.clone());
            tokio::spawn(async move {
                // A client that goes away is no matter here.
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service).await;
            });
        }
    });
    let client = GrpcStoreGatewayClient::new(Channels::plain(net).to("gateway:9095").unwrap());
    (client, serving)
}

async fn collect(
    client: &dyn StoreGatewayClient,
    of: &str,
    blocks: &[Ulid],
) -> Result<(Vec<SeriesChunks>, Vec<Ulid>), ServiceError> {
    let batches: Vec<BlocksBatch> =
        client.select(&tenant(of), blocks.to_vec(), everything()).await?.try_collect().await?;
    let (mut series, mut served) = (Vec::new(), Vec::new());
    for batch in batches {
        match batch {
            BlocksBatch::Series(batch) => series.extend(batch),
            BlocksBatch::Served(blocks) => served.extend(blocks),
        }
    }
    Ok((series, served))
}

#[tokio::test]
async fn answers_are_the_same() {
    let Some(dir) = golden_set("blocks-head") else { return };
    let bench = Bench::new();
    let ids = bench.put_golden(&dir, "a").await;
    let (remote, _server) = over_the_wire(&bench.gateway).await;
    let local = &bench.gateway;
    let selectors = vec![vec![matcher("instance", MatchOp::Equal, "a")], vec![matcher("z", MatchOp::Regex, ".+")]];
    for of in ["a", "nobody"] {
        assert_eq!(collect(&remote, of, &ids).await.unwrap(), collect(local, of, &ids).await.unwrap());
        for selectors in [vec![], selectors.clone()] {
            let request = || LabelRequest::new(selectors.clone(), QueryRange::ALL);
            let (of, ids) = (tenant(of), || ids.clone());
            let names = remote.label_names(&of, ids(), request()).await.unwrap();
            assert_eq!(names, local.label_names(&of, ids(), request()).await.unwrap());
            let values = remote.label_values(&of, ids(), "instance", request()).await.unwrap();
            assert_eq!(values, local.label_values(&of, ids(), "instance", request()).await.unwrap());
            let series = remote.series(&of, ids(), request()).await.unwrap();
            assert_eq!(series, local.series(&of, ids(), request()).await.unwrap());
        }
    }
}

#[tokio::test]
async fn errors_are_the_same() {
    let Some(dir) = golden_set("blocks-head") else { return };
    let bench = Bench::new();
    let ids = bench.put_golden(&dir, "a").await;
    let (remote, _server) = over_the_wire(&bench.gateway).await;
    bench.bucket.damage(&format!("a/{}/chunks/000001", ids[0]), |bytes| bytes[500] ^= 1);
    let (there, here) = (collect(&remote, "a", &ids).await, collect(&bench.gateway, "a", &ids).await);
    assert_eq!(there.as_ref().unwrap_err().reason, "block-damaged");
    assert_eq!(there, here);
    bench.bucket.set_faults(Some(Box::new(|_, _, _| Some(Fault::Fail(Cause::Unavailable("down".into()))))));
    let cold = Bench::with(bench.bucket.clone(), MemDisk::default(), Config::default());
    let (remote, _server) = over_the_wire(&cold.gateway).await;
    let (there, here) = (collect(&remote, "a", &ids).await, collect(&cold.gateway, "a", &ids).await);
    assert_eq!(there.as_ref().unwrap_err().reason, "bucket-unavailable");
    assert_eq!(there, here);
}

#[tokio::test]
async fn an_abandoned_stream_ends_the_query() {
    let Some(dir) = golden_set("blocks-head") else { return };
    let bench = Bench::new();
    let ids = bench.put_golden(&dir, "a").await;
    bench.bucket.set_faults(Some(Box::new(|operation, key, _| {
        let hangs = operation == Operation::GetRange && key.contains("chunks");
        hangs.then_some(Fault::Delay(std::time::Duration::from_secs(3600)))
    })));
    let (remote, _server) = over_the_wire(&bench.gateway).await;
    let mut stream = remote.select(&tenant("a"), ids, everything()).await.unwrap();
    assert!(futures::poll!(stream.next()).is_pending());
    assert!(bench.metrics().contains("query_duration_seconds_count 0"));
    drop(stream);
    for _ in 0..1_000 {
        if bench.metrics().contains("query_duration_seconds_count 1") {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the query goes on without anybody who listens");
}
