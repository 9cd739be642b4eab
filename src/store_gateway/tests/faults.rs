//! Buckets that fail, data that is damaged, disks that are full, strangers.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use skald_tsdb::disk::Disk;

use super::*;
use crate::bucket::mem::Fault;
use crate::bucket::{Cause, Operation};
use crate::error::ErrorKind;
use crate::select::LabelRequest;

async fn golden_bench() -> Option<(Bench, Vec<Ulid>, Vec<SeriesChunks>)> {
    let dir = golden_set("blocks-head")?;
    let bench = Bench::new();
    let ids = bench.put_golden(&dir, "a").await;
    let (all, _) = Bench::with(bench.bucket.clone(), MemDisk::default(), Config::default())
        .select("a", &ids, everything())
        .await
        .unwrap();
    bench.requests();
    Some((bench, ids, all))
}

#[tokio::test]
async fn a_failing_bucket_never_shortens_an_answer() {
    let Some((bench, ids, all)) = golden_bench().await else { return };
    let mut failures = 0;
    loop {
        // Everything is cold each time.
        let cold = Bench::with(bench.bucket.clone(), MemDisk::default(), Config::default());
        bench.requests();
        bench.bucket.set_faults(Some(Box::new(move |_, _, number| {
            (number == failures).then(|| Fault::Fail(Cause::Unavailable("hiccup".into())))
        })));
        let result = cold.select("a", &ids, everything()).await;
        bench.bucket.set_faults(None);
        match result {
            Err(error) => assert_eq!((error.kind, &*error.reason), (ErrorKind::Unavailable, "bucket-unavailable")),
            Ok((got, served)) => {
                assert_eq!((got, served), (all.clone(), ids.clone()));
                break;
            }
        }
        // The failure left nothing behind.
        let (got, _) = cold.select("a", &ids, everything()).await.unwrap();
        assert_eq!(got, all);
        failures += 1;
    }
    assert_eq!(failures as usize, ids.len() * 6);
}

#[tokio::test]
async fn a_bucket_that_refuses_is_named() {
    let Some((bench, ids, _)) = golden_bench().await else { return };
    bench.bucket.refuse_everything();
    let error = bench.select("a", &ids, everything()).await.unwrap_err();
    assert_eq!((error.kind, &*error.reason), (ErrorKind::Internal, "bucket-refused"));
    assert!(
        error.message.contains("mem://") && error.message.contains("a/") && error.message.contains("access denied")
    );
    assert!(bench.metrics().contains("skald_store_gateway_query_failures_total 1"));
}

#[tokio::test]
async fn strangers_and_missing_blocks_are_not_served() {
    let Some((bench, ids, _)) = golden_bench().await else { return };
    bench.select("a", &ids, everything()).await.unwrap();
    bench.requests();
    let (got, served) = bench.select("b", &ids, everything()).await.unwrap();
    assert_eq!((got, served), (vec![], vec![]));
    assert!(bench.bucket.take_calls().iter().all(|(_, key)| key.starts_with("b/")));
    let request = LabelRequest::new(vec![], QueryRange::ALL);
    let names = bench.gateway.label_names(&tenant("b"), ids.clone(), request).await.unwrap();
    assert_eq!((names.value.len(), names.served.len()), (0, 0));
    let missing = Ulid::from_parts(7, 7);
    let (_, served) = bench.select("a", &[ids[0], missing], everything()).await.unwrap();
    assert_eq!(served, [ids[0]]);
    // A block that comes later is found.
    let meta = bench.bucket.get(&format!("a/{}/meta.json", ids[0])).await.unwrap().bytes;
    let meta = String::from_utf8_lossy(&meta).replace(&ids[0].to_string(), &missing.to_string());
    for file in ["index", "chunks/000001"] {
        let bytes = bench.bucket.get(&format!("a/{}/{file}", ids[0])).await.unwrap().bytes;
        bench.bucket.put(&format!("a/{missing}/{file}"), bytes, Condition::None).await.unwrap();
    }
    bench.bucket.put(&format!("a/{missing}/meta.json"), meta.into_bytes().into(), Condition::None).await.unwrap();
    let (_, served) = bench.select("a", &[missing], everything()).await.unwrap();
    assert_eq!(served, [missing]);
}

#[tokio::test]
async fn blocks_that_cannot_be_opened_are_quarantined_by_name() {
    let Some((bench, ids, all)) = golden_bench().await else { return };
    for (file, at) in [("index", -3_isize), ("index", 9), ("index", 0), ("meta.json", 0), ("tombstones", -1)] {
        let key = format!("a/{}/{file}", ids[0]);
        let flip = |bytes: &mut Vec<u8>| {
            let at = if at < 0 { bytes.len() - at.unsigned_abs() } else { at as usize };
            bytes[at] ^= 0x40;
        };
        let cold = Bench::with(bench.bucket.clone(), MemDisk::default(), Config::default());
        assert!(bench.bucket.damage(&key, flip));
        let error = cold.select("a", &ids, everything()).await.unwrap_err();
        assert_eq!(&*error.reason, "block-damaged", "{file} {at}");
        assert!(error.message.contains(&ids[0].to_string()) && error.message.contains(file), "{}", error.message);
        // The rest goes on; the block is not looked at again for a while, then it is.
        let (_, served) = cold.select("a", &ids[1..], everything()).await.unwrap();
        assert_eq!(served, ids[1..]);
        assert!(bench.bucket.damage(&key, flip));
        bench.requests();
        assert!(cold.select("a", &ids[..1], everything()).await.is_err());
        assert_eq!(bench.requests(), 0);
        cold.clock.advance(Duration::from_secs(600));
        let (got, _) = cold.select("a", &ids, everything()).await.unwrap();
        assert_eq!(got, all);
    }
}

/// Damages one byte after the other and asks; an answer is right or an error that names the block.
#[tokio::test]
async fn damage_is_never_served() {
    let Some((bench, ids, all)) = golden_bench().await else { return };
    let mut errors = 0;
    let mut tries = 0;
    for file in ["index", "chunks/000001"] {
        let key = format!("a/{}/{file}", ids[0]);
        let len = bench.bucket.head(&key).await.unwrap().size as usize;
        for at in (0..len).step_by(len / 40) {
            let flip = |bytes: &mut Vec<u8>| bytes[at] ^= 0x10;
            let cold = Bench::with(bench.bucket.clone(), MemDisk::default(), Config::default());
            bench.bucket.damage(&key, flip);
            tries += 1;
            match cold.select("a", &ids, everything()).await {
                Ok((got, _)) => assert_eq!(got, all, "{file} {at}"),
                Err(error) => {
                    errors += 1;
                    assert_eq!(&*error.reason, "block-damaged", "{file} {at}: {error}");
                    assert!(error.message.contains(&ids[0].to_string()), "{error}");
                }
            }
            bench.bucket.damage(&key, flip);
            if file == "chunks/000001" {
                // What is cached is damaged, what is in the bucket is not any more.
                let (got, _) = cold.select("a", &ids, everything()).await.unwrap();
                assert_eq!(got, all, "{file} {at}");
            }
        }
    }
    // Few bytes are padding or of no meaning to a reader.
    assert!(errors * 10 > tries * 8, "{errors} of {tries}");
}

#[tokio::test]
async fn what_is_kept_on_disk_is_only_a_cache() {
    let Some((bench, ids, all)) = golden_bench().await else { return };
    bench.select("a", &ids, everything()).await.unwrap();
    let dir = Path::new("/data/store-gateway/a").join(ids[0].to_string());
    for file in ["index-header", "facts"] {
        for damage in ["truncate", "flip", "remove"] {
            let path = dir.join(file);
            let mut bytes = bench.disk.read(&path).unwrap();
            match damage {
                "truncate" => bytes.truncate(bytes.len() / 2),
                _ => bytes[70] ^= 1,
            }
            match damage {
                "remove" => bench.disk.remove_file(&path).unwrap(),
                _ => bench.disk.write_atomically(&path, &bytes).unwrap(),
            }
            let reopened = Bench::with(bench.bucket.clone(), bench.disk.clone(), Config::default());
            let (got, _) = reopened.select("a", &ids, everything()).await.unwrap();
            assert_eq!(got, all, "{file} {damage}");
            assert!(reopened.metrics().contains("blocks_opened_from_bucket_total 1"), "{file} {damage}");
        }
    }
    // A full disk costs memory, not answers.
    let full = MemDisk::default();
    full.set_free_bytes(Some(100));
    let (got, _) =
        Bench::with(bench.bucket.clone(), full, Config::default()).select("a", &ids, everything()).await.unwrap();
    assert_eq!(got, all);
}

#[tokio::test]
async fn a_block_that_vanishes_is_said_to_be_gone() {
    let Some((bench, ids, all)) = golden_bench().await else { return };
    let request = LabelRequest::new(vec![], QueryRange::ALL);
    bench.gateway.label_names(&tenant("a"), ids.clone(), request).await.unwrap();
    for file in ["meta.json", "index", "chunks/000001"] {
        bench.bucket.delete(&format!("a/{}/{file}", ids[0])).await.unwrap();
    }
    let error = bench.select("a", &ids, everything()).await.unwrap_err();
    assert_eq!((error.kind, &*error.reason), (ErrorKind::Unavailable, "block-gone"));
    assert!(error.message.contains(&ids[0].to_string()), "{error}");
    // What is kept on disk still opens, until the upkeep has learned of it from the bucket index.
    let clock = bench.clock.clone();
    let gateway = bench.gateway.clone();
    let bucket = crate::bucket::TenantBucket::new(Arc::new(bench.bucket.clone()), tenant("a"));
    crate::compactor::update_bucket_index(&bucket, 1_717_400_900_000, 4).await.unwrap();
    let running = tokio::spawn(async move { gateway.run().await });
    let dir = Path::new("/data/store-gateway/a").join(ids[0].to_string());
    for _ in 0..100 {
        clock.advance(Duration::from_secs(60));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        if !bench.disk.exists(&dir) {
            break;
        }
    }
    running.abort();
    assert!(!bench.disk.exists(&dir));
    let (got, served) = bench.select("a", &ids, everything()).await.unwrap();
    assert_eq!(served, ids[1..]);
    assert!(got.len() <= all.len());
}

#[tokio::test]
async fn an_abandoned_select_stops_reading() {
    let Some((bench, ids, _)) = golden_bench().await else { return };
    bench.bucket.set_faults(Some(Box::new(|operation, key, _| {
        (operation == Operation::GetRange && key.contains("chunks")).then(|| Fault::Delay(Duration::from_secs(3600)))
    })));
    let mut stream = bench.gateway.select(&tenant("a"), ids.clone(), everything()).await.unwrap();
    for _ in 0..50 {
        assert!(stream.next().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let under_way = bench.requests();
    assert!(under_way > 0);
    drop(stream);
    bench.bucket.set_faults(None);
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.requests(), 0);
    assert!(bench.metrics().contains("skald_store_gateway_query_duration_seconds_count 1"));
}
