//! A full disk: writes are told to come back later, reads go on, and nothing acknowledged is lost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Skald, now_ms};
use crate::sender::Request;

/// A small file system, while this value lives.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts it; `None` with a note where that is not allowed.
    fn mount(path: &Path, mebibytes: u32) -> Option<SmallDisk> {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={mebibytes}m,mode=700");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "skald-test"]).arg(path).output();
        match output {
            Ok(output) if output.status.success() => Some(SmallDisk { path: path.to_owned() }),
            refused => {
                println!("skipped: a small file system cannot be mounted here: {refused:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, for a process that is about to end may still have files open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

const SERIES: usize = 500;

/// What was sent in round `i`: values that do not compress.
fn value(round: usize, series: usize) -> f64 {
    let mixed = (round * SERIES + series + 1) as u64;
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64
}

fn body(first: i64, round: usize) -> Vec<u8> {
    let mut request = Request::default();
    for series in 0..SERIES {
        let name = format!("s{series:04}");
        let labels = [("__name__", "full"), ("series", name.as_str())];
        request = request.series(&labels, &[(first + round as i64, value(round, series))]);
    }
    request.body()
}

/// Every acknowledged round is there, as it was sent, and nothing that was never sent.
async fn check(skald: &Skald, first: i64, acknowledged: &BTreeMap<usize, u16>) {
    let end = (first + 60_000) as f64 / 1000.0;
    let data = skald.query("full[1h]", end).await;
    let found = data["result"].as_array().unwrap();
    assert_eq!(found.len(), SERIES);
    for one in found {
        let series: usize = one["metric"]["series"].as_str().unwrap()[1..].parse().unwrap();
        let samples: BTreeMap<usize, f64> = one["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|point| {
                let at = (point[0].as_f64().unwrap() * 1000.0).round() as i64;
                ((at - first) as usize, point[1].as_str().unwrap().parse().unwrap())
            })
            .collect();
        for (round, status) in acknowledged {
            match samples.get(round) {
                Some(found) => assert_eq!(*found, value(*round, series), "round {round} of series {series}"),
                None => assert_ne!(*status, 200, "round {round} of series {series} is lost"),
            }
        }
        assert!(samples.keys().all(|round| acknowledged.contains_key(round)), "a sample that was never sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_only_the_writes_it_cannot_hold() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&dir.path().join("data"), 12) else { return };
    let ballast = disk.path.join("ballast");
    std::fs::write(&ballast, vec![1; 5 << 20]).unwrap();
    let mut skald = Skald::start(dir.path(), &["--ingester.wal.segment-size=1MiB"]).await;
    let first = now_ms() - 600_000;
    // Every round and how it was answered.
    let mut rounds: BTreeMap<usize, u16> = BTreeMap::new();
    let mut refused = 0;
    while refused < 10 {
        let round = rounds.len();
        assert!(round < 20_000, "the disk does not fill up");
        let answer = skald.push(body(first, round)).await.unwrap();
        rounds.insert(round, answer.status);
        match answer.status {
            200 => assert_eq!(refused, 0, "a write after the disk was full, which nobody emptied"),
            503 => refused += 1,
            _ => panic!("{answer:?}"),
        }
    }
    println!("full after {} rounds of {SERIES} samples", rounds.len() - refused);
    assert!(rounds.len() > 100);
    assert!(skald.process().is_running());
    check(&skald, first, &rounds).await;
    assert_eq!(skald.get("/metrics", &[]).await.status, 200);

    std::fs::remove_file(&ballast).unwrap();
    // The space is there at once, but the log may wait a little before it tries again.
    crate::process::wait_for("a write after space was made", 20, async || {
        let answer = skald.push(body(first, 30_000)).await.unwrap();
        (answer.status == 200).then_some(())
    })
    .await;
    rounds.insert(30_000, 200);
    for round in 30_001..30_050 {
        let answer = skald.push(body(first, round)).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}\n{}", skald.log());
        rounds.insert(round, 200);
    }
    check(&skald, first, &rounds).await;
    skald.kill();
    skald.start_again().await;
    check(&skald, first, &rounds).await;
    skald.stop();
}
