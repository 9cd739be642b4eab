#[path = "../../tests/s3_server/mod.rs"]
mod s3_server;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use prometheus_client::registry::Registry;
use skald_tsdb::disk::{Disk, MemDisk, RealDisk};
use tokio::task::AbortHandle;

use self::s3_server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use super::config::{Backend, BucketLookup, Config};
use super::conformance::conformance;
use super::mem::Fault;
use super::*;
use crate::runtime::ManualClock;
use crate::settings::Secret;

pub(crate) fn directory(dir: &Path) -> Config {
    let mut config = Config::default();
    config.filesystem.dir = Some(dir.to_owned());
    config
}

/// An S3 endpoint that lives as long as this does.
pub(crate) struct RunningS3 {
    pub(crate) config: Config,
    task: AbortHandle,
    _dir: tempfile::TempDir,
}

impl Drop for RunningS3 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn start_s3() -> RunningS3 {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::bind(dir.path(), "127.0.0.1:0").await.unwrap();
    let mut config = Config { backend: Backend::S3, max_retries: 1, ..Config::default() };
    config.s3.endpoint = server.address().unwrap().to_string();
    config.s3.bucket_name = BUCKET.to_owned();
    config.s3.region = "eu-central-1".to_owned();
    config.s3.access_key_id = ACCESS_KEY.to_owned();
    config.s3.secret_access_key = Secret::new(SECRET_KEY);
    config.s3.insecure = true;
    RunningS3 { config, task: tokio::spawn(server.serve()).abort_handle(), _dir: dir }
}

pub(crate) fn open_bucket(config: &Config) -> ObjectStoreBucket {
    open(config, Path::new("/nowhere"), &RealDisk).unwrap()
}

#[tokio::test]
async fn memory_conforms() {
    conformance(&MemBucket::default()).await.unwrap();
}

#[tokio::test]
async fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conformance(&open_bucket(&directory(&dir.path().join("new/blocks")))).await.unwrap();
}

#[tokio::test]
async fn a_prefix_conforms_and_is_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let whole = open_bucket(&directory(dir.path()));
    whole.put("stranger", Bytes::new(), Condition::None).await.unwrap();
    let config = Config { storage_prefix: "clusters/one".into(), ..directory(dir.path()) };
    conformance(&open_bucket(&config)).await.unwrap();
    let mine = open_bucket(&config);
    mine.put("a", Bytes::from_static(b"1"), Condition::None).await.unwrap();
    assert_eq!(whole.get("clusters/one/a").await.unwrap().bytes, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms() {
    let s3 = start_s3().await;
    conformance(&open_bucket(&s3.config)).await.unwrap();
}

#[tokio::test]
async fn s3_refusals_are_clear() {
    #[track_caller]
    fn check(error: &BucketError, parts: [&str; 3]) {
        let text = error.to_string();
        assert!(matches!(error.cause, Cause::Refused(_)), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        assert!(!text.contains("guessed") && !text.contains('\n'), "{text}");
    }
    let s3 = start_s3().await;
    let mut wrong_secret = s3.config.clone();
    wrong_secret.s3.secret_access_key = Secret::new("guessed");
    let bucket = open_bucket(&wrong_secret);
    let expected = ["s3://metrics", "t/", "SignatureDoesNotMatch"];
    check(&bucket.put("t/x", Bytes::from_static(b"1"), Condition::None).await.unwrap_err(), expected);
    check(&bucket.get("t/x").await.unwrap_err(), expected);
    check(&bucket.list("t/").await.unwrap_err(), expected);
    let mut no_bucket = s3.config.clone();
    no_bucket.s3.bucket_name = "nobody-made-it".to_owned();
    let error = open_bucket(&no_bucket).list("t/").await.unwrap_err();
    check(&error, ["s3://nobody-made-it", "t/", "NoSuchBucket"]);
}

#[tokio::test]
async fn an_unreachable_store_is_unavailable() {
    let s3 = start_s3().await;
    s3.task.abort();
    let mut config = s3.config.clone();
    config.s3.endpoint = "127.0.0.1:1".to_owned();
    let error = open_bucket(&config).get("t/x").await.unwrap_err();
    assert!(matches!(error.cause, Cause::Unavailable(_)), "{error}");
}

#[test]
fn impossible_settings_name_themselves() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Config), expected: &str) {
        let mut config = Config::default();
        change(&mut config);
        let error = open(&config, Path::new("/data"), &MemDisk::default()).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    check(|c| c.storage_prefix = "/a".into(), "blocks_storage.storage_prefix");
    check(|c| c.backend = Backend::S3, "blocks_storage.s3.bucket_name");
    check(|c| c.backend = Backend::Gcs, "blocks_storage.gcs.bucket_name");
    check(|c| c.backend = Backend::Azure, "blocks_storage.azure.container_name");
    let s3 = |c: &mut Config| {
        c.backend = Backend::S3;
        c.s3.bucket_name = "b".into();
    };
    check(
        |c| {
            s3(c);
            c.s3.access_key_id = "only one".into();
        },
        "secret_access_key",
    );
    check(
        |c| {
            s3(c);
            c.s3.endpoint = "http://minio:9000".into();
        },
        "blocks_storage.s3.insecure",
    );
}

#[test]
fn every_kind_of_store_opens_without_contact() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Config), name: &str) {
        let mut config = Config::default();
        change(&mut config);
        assert_eq!(open(&config, Path::new("/data"), &MemDisk::default()).unwrap().name(), name);
    }
    check(
        |c| {
            c.backend = Backend::S3;
            c.s3.bucket_name = "metrics".into();
            c.s3.region = "eu-central-1".into();
            c.s3.endpoint = "https://minio:9000/".into();
            c.s3.bucket_lookup_type = BucketLookup::VirtualHosted;
        },
        "s3://metrics",
    );
    check(
        |c| {
            c.backend = Backend::Gcs;
            c.gcs.bucket_name = "metrics".into();
            c.gcs.service_account = Secret::new(
                r#"{"gcs_base_url": "https://localhost:1", "disable_oauth": true, "client_email": "", "private_key": "",
                    "private_key_id": ""}"#,
            );
        },
        "gs://metrics",
    );
    check(
        |c| {
            c.backend = Backend::Azure;
            c.azure.container_name = "metrics".into();
            c.azure.account_name = "skald".into();
            c.azure.account_key = Secret::new("c2VjcmV0");
        },
        "azure://skald/metrics",
    );
}

#[test]
fn an_unusable_directory_is_named() {
    let disk = MemDisk::default();
    disk.create_dir_all(Path::new("/data")).unwrap();
    disk.create(Path::new("/data/blocks")).unwrap();
    let error = open(&Config::default(), Path::new("/data"), &disk).err().unwrap().to_string();
    assert!(error.contains("blocks_storage.filesystem.dir") && error.contains("/data/blocks"), "{error}");
}

#[tokio::test]
async fn concurrent_conditional_updates_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Arc::new(open_bucket(&directory(dir.path())));
    bucket.put("n", Bytes::from_static(b"0"), Condition::Absent).await.unwrap();
    let increment = |bucket: Arc<ObjectStoreBucket>| async move {
        loop {
            let object = bucket.get("n").await.unwrap();
            let n: u32 = std::str::from_utf8(&object.bytes).unwrap().parse().unwrap();
            let next = Bytes::from((n + 1).to_string());
            match bucket.put("n", next, Condition::Unchanged(object.meta.version)).await {
                Ok(_) => return,
                Err(e) => assert!(e.is_precondition(), "{e}"),
            }
        }
    };
    futures::future::join_all((0..8).map(|_| increment(bucket.clone()))).await;
    assert_eq!(bucket.get("n").await.unwrap().bytes, "8");
}

#[tokio::test]
async fn calls_are_counted_and_timed() {
    let clock = ManualClock::at(0);
    let mem = MemBucket::default();
    let mut registry = Registry::default();
    let observed = ObservedBucket::new(Arc::new(mem.clone()), Arc::new(clock), &mut registry);
    conformance(&observed).await.unwrap();
    observed.put("x", Bytes::from_static(b"12345"), Condition::None).await.unwrap();
    mem.refuse_everything();
    observed.get("x").await.unwrap_err();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("skald_bucket_operation_failures_total{operation=\"get\"} 1"), "{text}");
    assert!(text.contains("skald_bucket_operation_failures_total{operation=\"head\"} 0"), "{text}");
    assert!(text.contains("skald_bucket_operation_duration_seconds_count{operation=\"delete\"}"), "{text}");
}

#[tokio::test]
async fn memory_suffers_faults() {
    let bucket = MemBucket::default();
    bucket.set_faults(Some(Box::new(|operation, key, number| match (operation, key) {
        (Operation::Get, "slow") => Some(Fault::Delay(Duration::from_secs(3600))),
        _ => (number == 1).then(|| Fault::Fail(Cause::Unavailable("second call".into()))),
    })));
    bucket.put("slow", Bytes::new(), Condition::None).await.unwrap();
    let error = bucket.put("x", Bytes::new(), Condition::None).await.unwrap_err();
    assert_eq!(error.cause, Cause::Unavailable("second call".into()));
    assert!(bucket.get("slow").now_or_never().is_none());
    assert_eq!(bucket.keys(), ["slow"]);
    assert_eq!(bucket.take_calls().len(), 3);
}
