//! What every [`Bucket`] must do.

use std::io;

use bytes::Bytes;
use futures::StreamExt;

use super::{Bucket, BucketError, Cause, Condition, Version};

fn names(listing: &super::Listing) -> Vec<&str> {
    listing.objects.iter().map(|(name, _)| name.as_str()).collect()
}

#[track_caller]
fn cause<T: std::fmt::Debug>(result: Result<T, BucketError>) -> Cause {
    match result {
        Err(error) => error.cause,
        Ok(value) => panic!("should have failed, gave {value:?}"),
    }
}

/// Runs the suite against a bucket that holds nothing; panics where it departs from the contract. Leaves it empty.
#[doc(hidden)]
pub async fn conformance(bucket: &dyn Bucket) -> Result<(), BucketError> {
    whole_objects(bucket).await?;
    ranges(bucket).await?;
    conditions(bucket).await?;
    listings(bucket).await?;
    streams(bucket).await?;
    malformed_keys(bucket).await;
    Ok(())
}

async fn whole_objects(bucket: &dyn Bucket) -> Result<(), BucketError> {
    assert_eq!(cause(bucket.get("a/none").await), Cause::NotFound);
    assert_eq!(cause(bucket.head("a/none").await), Cause::NotFound);
    assert_eq!(cause(bucket.get_range("a/none", 0..1).await), Cause::NotFound);
    let error = bucket.get("a/none").await.expect_err("nothing is there").to_string();
    assert!(error.contains(bucket.name()) && error.contains("a/none"), "{error}");
    bucket.delete("a/none").await?;
    // Every character a tenant id may have, and a key that would be another's prefix.
    for key in ["a/b", "a/b.c", "we!r-d_.*'()/x"] {
        let first = bucket.put(key, Bytes::from_static(b"first"), Condition::None).await?;
        let second = bucket.put(key, Bytes::from_static(b"second one"), Condition::None).await?;
        assert_ne!(first, second);
        let object = bucket.get(key).await?;
        assert_eq!((&object.bytes[..], object.meta.size), (&b"second one"[..], 10));
        assert_eq!(object.meta.version, second);
        assert_eq!(bucket.head(key).await?, object.meta);
        bucket.delete(key).await?;
        assert_eq!(cause(bucket.get(key).await), Cause::NotFound);
    }
    bucket.put("empty", Bytes::new(), Condition::None).await?;
    assert!(bucket.get("empty").await?.bytes.is_empty());
    bucket.delete("empty").await
}

async fn ranges(bucket: &dyn Bucket) -> Result<(), BucketError> {
    bucket.put("r/x", Bytes::from_static(b"0123456789"), Condition::None).await?;
    assert_eq!(&bucket.get_range("r/x", 0..10).await?[..], b"0123456789");
    assert_eq!(&bucket.get_range("r/x", 3..4).await?[..], b"3");
    assert_eq!(bucket.get_range("r/x", 4..4).await?.len(), 0);
    for beyond in [9..11, 10..11, 500..600, 0..u64::MAX] {
        let cause = cause(bucket.get_range("r/x", beyond.clone()).await);
        assert!(matches!(cause, Cause::Refused(_)), "{beyond:?}: {cause:?}");
    }
    bucket.delete("r/x").await
}

async fn conditions(bucket: &dyn Bucket) -> Result<(), BucketError> {
    let put = |bytes: &'static str, condition| bucket.put("c/x", Bytes::from_static(bytes.as_bytes()), condition);
    let no_version = Version { e_tag: Some("\"none\"".into()), generation: Some("1".into()) };
    assert_eq!(cause(put("0", Condition::Unchanged(no_version.clone())).await), Cause::Precondition);
    let first = put("1", Condition::Absent).await?;
    assert_eq!(cause(put("2", Condition::Absent).await), Cause::Precondition);
    assert_eq!(cause(put("3", Condition::Unchanged(no_version)).await), Cause::Precondition);
    let second = put("44", Condition::Unchanged(first.clone())).await?;
    assert_eq!(cause(put("5", Condition::Unchanged(first)).await), Cause::Precondition);
    let object = bucket.get("c/x").await?;
    assert_eq!((&object.bytes[..], object.meta.version), (&b"44"[..], second));
    bucket.delete("c/x").await
}

async fn listings(bucket: &dyn Bucket) -> Result<(), BucketError> {
    assert_eq!(bucket.list("l/").await?, super::Listing::default());
    // More than one page of S3's (1,000 keys), and folders that sort otherwise than their keys.
    let mut keys: Vec<String> = (0..1_003).map(|i| format!("l/many/{i:04}")).collect();
    keys.extend(["l/x", "l/a/1", "l/a/b/2", "l/a-b/3", "l/z"].map(str::to_owned));
    let puts = futures::stream::iter(keys.clone())
        .map(|key| async move { bucket.put(&key, Bytes::from_static(b"12"), Condition::None).await.map(drop) });
    for put in puts.buffer_unordered(16).collect::<Vec<_>>().await {
        put?;
    }
    let listing = bucket.list("l/").await?;
    assert_eq!(names(&listing), ["x", "z"]);
    assert_eq!(listing.folders, ["a", "a-b", "many"]);
    assert_eq!(listing.objects[0].1.size, 2);
    assert_eq!(names(&bucket.list("l/a/").await?), ["1"]);
    assert_eq!(bucket.list("").await?.folders, ["l"]);
    let many = bucket.list("l/many/").await?;
    assert_eq!((many.objects.len(), many.objects[1_002].0.as_str()), (1_003, "1002"));
    let deletes = futures::stream::iter(keys).map(|key| async move { bucket.delete(&key).await });
    for delete in deletes.buffer_unordered(16).collect::<Vec<_>>().await {
        delete?;
    }
    assert_eq!(bucket.list("l/").await?, super::Listing::default());
    Ok(())
}

async fn streams(bucket: &dyn Bucket) -> Result<(), BucketError> {
    // Parts that are no multiple of anything, more than two of S3's least part size in all.
    let part = |i: u32| Bytes::from(i.to_le_bytes().repeat(250_000));
    let parts = (0..11).map(|i| io::Result::Ok(part(i)));
    bucket.put_stream("s/x", futures::stream::iter(parts).boxed()).await?;
    assert_eq!(bucket.head("s/x").await?.size, 11_000_000);
    assert_eq!(bucket.get_range("s/x", 9_999_996..10_000_004).await?[..], [9, 0, 0, 0, 10, 0, 0, 0]);
    let broken = futures::stream::iter([Ok(part(0)), Err(io::Error::other("disk gone"))]);
    let cause = cause(bucket.put_stream("s/x", broken.boxed()).await);
    assert!(matches!(&cause, Cause::Source(why) if why.contains("disk gone")), "{cause:?}");
    assert_eq!(bucket.head("s/x").await?.size, 11_000_000);
    bucket.put_stream("s/x", futures::stream::empty().boxed()).await?;
    assert_eq!(bucket.head("s/x").await?.size, 0);
    bucket.delete("s/x").await
}

async fn malformed_keys(bucket: &dyn Bucket) {
    for key in ["", "/a", "a/", "a//b", "a/../b", ".", "a/\n"] {
        let cause = cause(bucket.put(key, Bytes::new(), Condition::None).await);
        assert!(matches!(cause, Cause::Refused(_)), "{key:?}: {cause:?}");
    }
    assert!(matches!(cause(bucket.list("a").await), Cause::Refused(_)));
}
