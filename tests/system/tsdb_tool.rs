//! `skald tsdb`: on golden blocks beside promtool, on damaged copies of them, and on a bucket behind S3.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::process::installed;
use crate::s3_server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

/// Names of series as the golden blocks' `{job="node"}`.
const TENANT: &str = "team-a";

fn golden() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden/blocks-backfill/blocks");
    if !dir.exists() {
        println!("skipped: no golden blocks beside the checkout");
        return None;
    }
    Some(dir)
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn tsdb(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_skald")).arg("tsdb").args(arguments).env_clear().output().unwrap()
}

#[track_caller]
fn text(output: &Output, succeeds: bool) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.success(), succeeds, "{out}\n{err}");
    out.into_owned()
}

#[track_caller]
fn json(arguments: &[&str], succeeds: bool) -> Vec<Value> {
    let arguments = [arguments, &["--format=json"]].concat();
    text(&tsdb(&arguments), succeeds).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A tenant's folder with copies of the golden blocks.
fn tenant_folder(golden: &Path) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(TENANT);
    copy_all(golden, &folder);
    (dir, folder)
}

fn lines(text: &str) -> BTreeSet<&str> {
    text.lines().collect()
}

#[test]
fn dumps_what_promtool_dumps() {
    let Some(golden) = golden() else { return };
    if !installed("promtool") {
        return;
    }
    let (_dir, folder) = tenant_folder(&golden);
    fs::create_dir(folder.join("wal")).unwrap();
    let theirs = Command::new("promtool").args(["tsdb", "dump"]).arg(&folder).output().unwrap();
    let theirs = String::from_utf8(theirs.stdout).unwrap();
    let ours = text(&tsdb(&["dump", folder.to_str().unwrap()]), true);
    assert!(lines(&ours).len() > 100_000);
    assert!(lines(&ours) == lines(&theirs));

    let (folder, start, end) = (folder.to_str().unwrap(), "1717203000", "2024-06-01T01:00:00Z");
    let some = text(&tsdb(&["dump", folder, "--start", start, "--end", end, "--select", "{job=\"node\"}"]), true);
    let wanted = |line: &&str| {
        let time: i64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        line.contains("job=\"node\"") && (1_717_203_000_000..=1_717_203_600_000).contains(&time)
    };
    assert_eq!(lines(&some), theirs.lines().filter(wanted).collect());
}

#[test]
fn lists_analyzes_and_verifies_directories() {
    let Some(golden) = golden() else { return };
    let (dir, folder) = tenant_folder(&golden);
    let root = dir.path().to_str().unwrap();
    let listed = json(&["list", root], true);
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|block| block["tenant"] == TENANT && block["stats"]["numSamples"].as_u64() > Some(0)));
    let first = listed[0]["ulid"].as_str().unwrap();
    // A block itself, and one of many.
    assert_eq!(json(&["list", folder.join(first).to_str().unwrap()], true), listed[..1]);
    assert_eq!(json(&["list", root, "--block", first], true), listed[..1]);
    assert_eq!(json(&["list", root, "--start=2024-06-01T03:00:00Z", "--end=2024-06-01T03:30:00Z"], true), listed[1..2]);
    assert!(text(&tsdb(&["list", root]), true).contains(first));
    // Nothing found is no success: a script notices.
    assert!(json(&["list", root, "--tenant=team-b"], false).is_empty());

    for (analysis, block) in json(&["analyze", root, "--top=2"], true).iter().zip(&listed) {
        assert_eq!(analysis["series"], block["stats"]["numSeries"]);
        assert_eq!(analysis["chunks"]["xor"]["samples"], block["stats"]["numSamples"]);
        assert_eq!(analysis["seriesByMetric"].as_array().unwrap().len(), 2);
    }
    assert!(json(&["verify", root], true).iter().all(|block| block["intact"] == true));
    assert!(text(&tsdb(&["verify", root]), true).ends_with("3 blocks, 0 damaged\n"));
}

/// Flips a bit in the middle of a block's first segment; the block's name.
fn damage(folder: &Path) -> String {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let name = names[1].to_str().unwrap().to_owned();
    let segment = folder.join(&name).join("chunks/000001");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(segment, bytes).unwrap();
    name
}

#[test]
fn a_damaged_block_loses_only_what_is_damaged() {
    let Some(golden) = golden() else { return };
    let (dir, folder) = tenant_folder(&golden);
    let root = dir.path().to_str().unwrap();
    let before = text(&tsdb(&["dump", root]), true);
    let name = damage(&folder);
    let verified = json(&["verify", root], false);
    assert_eq!(verified.iter().map(|block| block["intact"] == true).collect::<Vec<_>>(), [true, false, true]);
    assert!(verified[1]["problems"][0]["what"].as_str().unwrap().contains("checksum"), "{}", verified[1]);

    // Looked at, nothing is changed.
    let plan = json(&["repair", root], false);
    assert_eq!((&plan[1]["lossCount"], &plan[1]["written"]), (&1.into(), &Value::Null));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);

    let repaired = json(&["repair", root, "--write"], false);
    let (lost, written) = (&repaired[1], repaired[1]["written"].as_str().unwrap());
    assert!(folder.join(format!("{name}.damaged")).exists() && folder.join(written).exists());
    assert!(json(&["verify", root], true).iter().all(|block| block["intact"] == true));
    let after = text(&tsdb(&["dump", root]), true);
    let (before, after) = (lines(&before), lines(&after));
    assert!(after.is_subset(&before));
    let gone: Vec<_> = before.difference(&after).collect();
    assert_eq!(lost["lostSamples"].as_u64(), Some(gone.len() as u64));
    assert!((1..=250).contains(&gone.len()), "{}", gone.len());
    let series = lost["losses"][0]["series"].as_str().unwrap();
    assert!(gone.iter().all(|line| line.starts_with(series)), "{series}");
    // Done once, there is nothing left to do.
    assert!(json(&["repair", root], true).iter().all(|block| block["intact"] == true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_looked_at_and_repaired_by_its_url() {
    let Some(golden) = golden() else { return };
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().join(BUCKET).join("cluster-1").join(TENANT);
    let server = S3Server::bind(store.path(), "127.0.0.1:0").await.unwrap();
    copy_all(&golden, &folder);
    let endpoint = format!("--blocks-storage.s3.endpoint={}", server.address().unwrap());
    let serving = tokio::spawn(async move { server.serve().await.unwrap() });
    let (key, secret) = (
        format!("--blocks-storage.s3.access-key-id={ACCESS_KEY}"),
        format!("--blocks-storage.s3.secret-access-key={SECRET_KEY}"),
    );
    let work_dir = tempfile::tempdir().unwrap();
    let work = format!("--work-dir={}", work_dir.path().display());
    let url = format!("s3://{BUCKET}/cluster-1");
    let name = damage(&folder);
    let asked = tokio::task::spawn_blocking(move || {
        let settings = [
            &url,
            &endpoint,
            &key,
            &secret,
            "--blocks-storage.s3.insecure=true",
            "--blocks-storage.s3.region=x",
            &work,
        ];
        let with = |action: &'static str, more: &[&'static str]| [&[action], settings.as_slice(), more].concat();
        assert_eq!(json(&with("list", &[]), true).len(), 3);
        assert_eq!(json(&with("verify", &[]), false)[1]["intact"], false);
        let repaired = json(&with("repair", &["--write"]), false);
        repaired[1]["written"].as_str().unwrap().to_owned()
    });
    let written = asked.await.unwrap();
    serving.abort();
    // What was brought here is gone.
    assert_eq!(fs::read_dir(work_dir.path()).unwrap().count(), 0);
    assert!(folder.join(&written).join("meta.json").exists());
    let mark = fs::read(folder.join("markers").join(format!("{name}-deletion-mark.json"))).unwrap();
    let mark: Value = serde_json::from_slice(&mark).unwrap();
    assert_eq!((&mark["id"], &mark["version"]), (&Value::from(name.as_str()), &1.into()));
    assert!(json(&["verify", folder.join(written).to_str().unwrap()], true)[0]["intact"] == true);
}
