//! Seeded crashes: a head with its log, snapshots and chunk files is killed at a random moment, a random file is damaged,
//! and what comes back, and what is said to be lost, is held against what was acknowledged.
//!
//! `SKALD_CRASH_SEEDS` says how many seeds are run (default 100), `SKALD_CRASH_FIRST` which is the first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use skald_model::{Labels, QueryRange, TimestampMs};

use super::tests::{Contents, OPTIONS, Rig, batch, contents, labels, limits};
use crate::disk::{Disk, MemDisk};

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end.max(1)
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn crashes_lose_what_was_damaged_and_no_more() {
    let first = number("SKALD_CRASH_FIRST", 0);
    let mut seen = BTreeMap::new();
    for seed in first..first + number("SKALD_CRASH_SEEDS", 100) {
        *seen.entry(crash(seed)).or_insert(0) += 1;
    }
    // Otherwise the test has become one of something else.
    let known = seen.keys().filter(|(done, _): &&(String, bool)| done.ends_with("sample")).count();
    assert!((seen.len() > 10 && known > 1) || seen.values().sum::<i32>() < 100, "{seen:?}");
    println!("{seen:#?}");
}

/// Returns what was done and whether anything was lost, so that it can be counted.
fn crash(seed: u64) -> (String, bool) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let segment_bytes = [300, 2000, 1 << 20][random.below(3)];
    let mut rig = Rig::with_segments(OPTIONS, segment_bytes);
    let (mut acknowledged, mut blocks) = (Contents::new(), Contents::new());
    let mut snapshots = 0;
    for at in 0..10 + random.below(30) {
        let samples: Vec<_> = (0..1 + random.below(12))
            .map(|_| (random.below(5), random.below(300) as i64, random.below(8) as u8))
            .collect();
        let batch = batch(at, &samples);
        let entries: Vec<_> = batch.iter().map(|(l, s)| (l, std::slice::from_ref(s))).collect();
        // The disk may fill up at any place of an append, a snapshot or a cut; what failed was not acknowledged.
        let is_full = random.below(8) == 0;
        if is_full {
            rig.disk.set_free_bytes(Some(random.below(700) as u64));
        }
        let _ = rig.append(&entries, &limits());
        match random.below(10) {
            0 => {
                let up_to = at as i64 * 170 - 100;
                if !is_full {
                    for (series, samples) in rig.cut(up_to) {
                        blocks.entry(series).or_default().extend(samples);
                    }
                }
            }
            1..=4 => rig.try_snapshot(1 + random.below(8)),
            5 => _ = rig.wal.sync(),
            6 => rig.files.upkeep(),
            _ => {}
        }
        rig.disk.set_free_bytes(None);
        snapshots = rig.wal.snapshots().len().max(snapshots);
        for (series, samples) in rig.contents() {
            acknowledged.entry(series).or_default().extend(samples);
        }
        if random.below(12) == 0 {
            rig.restart_after_damage();
            assert_holds(seed, &rig.contents(), &blocks, &acknowledged);
        }
    }
    let expected = rig.contents();
    if random.below(2) == 0 {
        // A power cut: nothing is left that was not synced.
        rig.wal.sync().unwrap();
        rig.kill();
        rig.disk.crash();
    } else {
        rig.kill();
    }
    let (what, done) = damage(&rig.disk, &mut random);
    let (report, chunks_lost, head) = rig.reopen();
    let found = head.as_ref().map(|head| contents(head, &[], QueryRange::ALL)).unwrap_or_default();
    for (series, samples) in &found {
        for (t, value) in samples {
            let sent = acknowledged.get(series).and_then(|samples| samples.get(t));
            assert_eq!(sent, Some(value), "seed {seed}: {series} at {t} was never sent");
        }
    }
    let samples =
        expected.iter().flat_map(|(series, samples)| samples.iter().map(move |(t, value)| (series, *t, value)));
    let missing = |(series, t, value): &(&Labels, TimestampMs, &String)| {
        !has(&found, series, *t, value) && !has(&blocks, series, *t, value)
    };
    let lost: Vec<(&Labels, TimestampMs, &String)> = samples.filter(missing).collect();
    // Where a file ends nobody can know; everything else is told.
    let told =
        report.lost_something() || !report.torn_tails.is_empty() || (what != What::ChunkFile && done == "the end");
    assert!(lost.is_empty() || told, "seed {seed}, {done} of {what:?}: lost without a word: {report:?}");
    // Of two snapshots one is enough, and as long as there were none, nobody needs chunk files.
    let harmless = match what {
        What::Snapshot => done == "all" && snapshots == 2,
        What::ChunkFile => snapshots < 2,
        What::Segment => false,
    };
    assert!(lost.is_empty() || !(harmless || done == "nothing"), "seed {seed}, {done} of {what:?}: {report:?}");
    if what == What::ChunkFile {
        // Nothing else is damaged: what is lost is known to the sample.
        assert!(chunks_lost.samples as usize >= lost.len(), "seed {seed}, {done}: {chunks_lost:?}");
        for (series, t, _) in &lost {
            let named = chunks_lost.named.iter().filter(|named| named.labels == **series);
            let covers = named.into_iter().any(|named| named.chunk.min_time <= *t && *t <= named.chunk.max_time);
            assert!(covers, "seed {seed}, {done}: {series} at {t} is lost, but {chunks_lost:?}");
        }
    }
    // Where a segment was cut between two records, nothing tells that there was more.
    let losses = report.losses();
    let id = rig.head.id();
    let in_chunks = |t: TimestampMs| chunks_lost.times.is_some_and(|times| times.contains(t));
    let samples = losses.iter().map(|loss| loss.samples).sum::<Option<u64>>();
    if (what, done) != (What::Segment, "the end") {
        for (series, t, _) in &lost {
            let reported = in_chunks(*t) || losses.iter().any(|loss| loss.may_hold(id, *t));
            assert!(
                reported,
                "seed {seed}, {done} of {what:?}: {series} at {t} is lost, but {losses:?}, {chunks_lost:?}"
            );
        }
        if let Some(samples) = samples {
            let most = samples + chunks_lost.samples;
            assert!(lost.len() as u64 <= most, "seed {seed}, {done} of {what:?}: {} lost, but {losses:?}", lost.len());
        }
    }
    let known = if lost.is_empty() || samples.is_none() { "" } else { ", known to the sample" };
    let is_lost = !lost.is_empty();
    // And it goes on.
    if let Some(head) = head {
        rig.head = head;
        rig.floats(&labels(0), &[(1_000_000, 1.0)]);
        rig.restart_after_damage();
        assert!(has(&rig.contents(), &labels(0), 1_000_000, &format!("{:x}", 1_f64.to_bits())), "seed {seed}");
    }
    (format!("{done} of {what:?}{known}"), is_lost)
}

fn has(contents: &Contents, series: &Labels, t: TimestampMs, value: &String) -> bool {
    contents.get(series).and_then(|samples| samples.get(&t)) == Some(value)
}

/// Everything acknowledged is there, or in blocks.
fn assert_holds(seed: u64, found: &Contents, blocks: &Contents, acknowledged: &Contents) {
    for (series, samples) in acknowledged {
        for (t, value) in samples {
            let held = has(found, series, *t, value) || has(blocks, series, *t, value);
            assert!(held, "seed {seed}: {series} at {t} is lost after a kill");
        }
    }
}

/// What kind of file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Segment,
    Snapshot,
    ChunkFile,
}

/// Damages one file at random; says what was done to which.
fn damage(disk: &MemDisk, random: &mut Random) -> (What, &'static str) {
    let files = |dir: &str, prefix: &str, suffix: &str| -> Vec<PathBuf> {
        let names = disk.list(Path::new(dir)).unwrap().into_iter().map(|entry| entry.name);
        let wanted = names.filter(|name| name.starts_with(prefix) && name.ends_with(suffix) && !name.ends_with("tmp"));
        wanted.map(|name| Path::new(dir).join(name)).collect()
    };
    let kinds = [
        (What::Segment, files("/wal", "", ".wal")),
        (What::Snapshot, files("/wal", "snapshot-", "")),
        (What::ChunkFile, files("/chunks", "", ".chunks")),
    ];
    let there: Vec<_> = kinds.iter().filter(|(_, files)| !files.is_empty()).collect();
    let (what, files) = there[random.below(there.len())];
    let path = &files[random.below(files.len())];
    let mut bytes = disk.read(path).unwrap();
    let at = random.below(bytes.len());
    let done = match random.below(6) {
        0 => return (*what, "nothing"),
        1 | 2 if !bytes.is_empty() => {
            bytes[at] ^= 1 << random.below(8);
            "a bit"
        }
        3 => {
            let end = bytes.len().min(at + 1 + random.below(200));
            bytes[at..end].fill(0);
            "zeroes"
        }
        4 => {
            disk.remove_file(path).unwrap();
            // A process that was killed while it made the newest segment may have left none.
            return (*what, if *what == What::Segment { "the end" } else { "all" });
        }
        _ => {
            bytes.truncate(at);
            "the end"
        }
    };
    disk.create(path).unwrap().append(&bytes).unwrap();
    (*what, done)
}
