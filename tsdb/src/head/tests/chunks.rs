//! Heads whose chunk files are damaged, full, or read while they change.

use super::*;
use crate::disk::{Disk, DiskFile};

const STEP: i64 = 15_000;
const LONG: HeadOptions = HeadOptions { block_range_ms: 7_200_000 };

/// A head whose chunk files are on a disk of their own.
struct TwoDisks {
    wal: Wal,
    head: Arc<Head>,
    chunks: MemDisk,
}

impl TwoDisks {
    fn new(options: ChunkFileOptions) -> Self {
        let (disk, chunks) = (MemDisk::default(), MemDisk::default());
        let Opened { wal, .. } = open(&disk, LONG, 1 << 20);
        let files = Arc::new(ChunkFiles::open(Arc::new(chunks.clone()), Path::new("/chunks"), options).unwrap());
        let head = Arc::new(Head::new(wal.define_head(b"t").unwrap(), LONG, files));
        Self { wal, head, chunks }
    }

    /// Rounds of one sample per series.
    fn rounds(&self, series: usize, rounds: std::ops::Range<i64>) -> Result<(), AppendError> {
        let labels: Vec<Labels> = (0..series).map(labels).collect();
        for round in rounds {
            let samples: Vec<TimedSample> =
                (0..series).map(|i| float(round * STEP, (round * 31 + i as i64 * 7) as f64 * 0.37)).collect();
            let batch: Vec<_> = labels.iter().zip(&samples).map(|(l, s)| (l, std::slice::from_ref(s))).collect();
            append(&self.head, &self.wal, &batch, &AppendLimits::default())?;
        }
        Ok(())
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let names = self.chunks.list(Path::new("/chunks")).unwrap().into_iter().map(|entry| entry.name);
        names.map(|name| (name.clone(), self.chunks.read(&Path::new("/chunks").join(name)).unwrap())).collect()
    }

    fn replace(&self, name: &str, bytes: &[u8]) {
        let file: Arc<dyn DiskFile> = self.chunks.open_writable(&Path::new("/chunks").join(name)).unwrap();
        file.truncate(0).unwrap();
        file.append(bytes).unwrap();
    }

    /// Cuts everything: what blocks hold, and what is lost.
    fn cut_all(&self) -> (Contents, Vec<LostChunk>) {
        let up_to = self.head.max_time().unwrap() + 1;
        let cut = self.head.begin_cut(&self.wal, up_to).unwrap();
        let (mut blocks, mut lost) = (Contents::new(), Vec::new());
        for range in self.head.cut_ranges(cut) {
            let mut take = |labels: &Labels, chunks: &[Chunk]| {
                check_block_chunks(range, chunks);
                let samples = blocks.entry(labels.clone()).or_default();
                chunks.iter().for_each(|chunk| add(samples, chunk, "in two blocks"));
                Ok::<_, ()>(())
            };
            lost.extend(self.head.cut_series(cut, range, &mut take).unwrap().named);
        }
        assert_eq!(self.head.finish_cut(&self.wal, cut).unwrap(), Dropped::Done);
        (blocks, lost)
    }
}

fn small() -> ChunkFileOptions {
    ChunkFileOptions { file_bytes: 1 << 14, batch_bytes: 1, memory_budget: 1 << 20 }
}

fn count(contents: &Contents) -> usize {
    contents.values().map(BTreeMap::len).sum()
}

#[test]
fn closed_chunks_leave_memory() {
    let rig = TwoDisks::new(ChunkFileOptions { batch_bytes: 1, ..ChunkFileOptions::default() });
    rig.rounds(200, 0..121).unwrap();
    let one_chunk = rig.head.stats().heap_bytes;
    rig.rounds(200, 121..721).unwrap();
    let six_chunks = rig.head.stats().heap_bytes;
    assert!(six_chunks < one_chunk + 200 * 5 * 30, "{one_chunk} {six_chunks}");
    assert_eq!(count(&contents(&rig.head, &[], QueryRange::ALL)), 200 * 721);
    let (blocks, lost) = rig.cut_all();
    assert_eq!((count(&blocks), lost.len()), (200 * 721, 0));
    rig.head.chunk_files.upkeep();
    assert_eq!(rig.head.chunk_files.stats(), ChunkFileStats::default());
    assert!(rig.files().is_empty());
}

#[test]
fn damage_costs_the_chunks_it_meets_and_is_told_exactly() {
    const SERIES: usize = 5;
    for seed in 0..150_usize {
        let rig = TwoDisks::new(small());
        rig.rounds(SERIES, 0..500).unwrap();
        let expected = contents(&rig.head, &[], QueryRange::ALL);
        let files = rig.files();
        let (name, mut bytes) = files[seed % files.len()].clone();
        let from = seed * 7919 % bytes.len();
        match seed % 3 {
            0 => bytes[from] ^= 0x40,
            1 => bytes[from..].iter_mut().take(2000).for_each(|byte| *byte = 0),
            _ => bytes.truncate(from),
        }
        rig.replace(&name, &bytes);
        // A reader is told; readers of other series and times are not concerned.
        let mut told = 0;
        for i in 0..SERIES {
            let i = i.to_string();
            let mut select = rig.head.select(&[Matcher::equal("i", i.as_str())], QueryRange::ALL);
            match select.next_batch(usize::MAX) {
                Ok(batch) => assert_eq!(batch.unwrap().len(), 1),
                Err(lost) => {
                    assert_eq!(lost.labels.get("i"), Some(i.as_str()));
                    told += 1;
                }
            }
            let recent = QueryRange { min: 499 * STEP, max: 499 * STEP };
            let mut select = rig.head.select(&[Matcher::equal("i", i.as_str())], recent);
            assert_eq!(select.next_batch(usize::MAX).unwrap().unwrap().len(), 1);
        }
        let (blocks, lost) = rig.cut_all();
        let with_losses: std::collections::BTreeSet<&Labels> = lost.iter().map(|lost| &lost.labels).collect();
        assert_eq!(with_losses.len(), told, "seed {seed}");
        // What blocks lack is what the report names: series, times and number of samples.
        let mut missing = expected;
        for (series, samples) in &blocks {
            let left = missing.get_mut(series).unwrap();
            samples.iter().for_each(|(t, value)| assert_eq!(left.remove(t).as_ref(), Some(value)));
        }
        for LostChunk { labels, chunk, .. } in &lost {
            let left = missing.get_mut(labels).unwrap();
            let gone = left.extract_if(chunk.min_time..=chunk.max_time, |_, _| true).count();
            assert_eq!(gone, usize::from(chunk.samples), "seed {seed}");
        }
        assert_eq!(count(&missing), 0, "seed {seed}: lost without a word");
        // And it goes on.
        rig.rounds(SERIES, 500..502).unwrap();
        assert_eq!(count(&contents(&rig.head, &[], QueryRange::ALL)), SERIES * 2);
    }
}

#[test]
fn samples_sent_again_fill_the_place_of_a_damaged_chunk() {
    let rig = TwoDisks::new(small());
    rig.rounds(1, 0..300).unwrap();
    let before = contents(&rig.head, &[], QueryRange::ALL);
    rig.rounds(1, 0..300).unwrap();
    assert_eq!(contents(&rig.head, &[], QueryRange::ALL), before, "known samples are accepted and not stored twice");
    let changed = [float(10 * STEP, -1.0)];
    let appended = append(&rig.head, &rig.wal, &[(&labels(0), &changed)], &AppendLimits::default()).unwrap();
    assert_eq!(reasons(&appended), [(RejectReason::DuplicateTimestamp, 1)]);
    let (name, mut bytes) = rig.files().remove(0);
    bytes[100] ^= 1;
    rig.replace(&name, &bytes);
    assert!(rig.head.select(&[], QueryRange::ALL).next_batch(usize::MAX).is_err());
    rig.rounds(1, 0..300).unwrap();
    let (blocks, lost) = rig.cut_all();
    assert_eq!((blocks, lost.len()), (before, 1));
}

#[test]
fn writes_are_shed_before_memory_runs_out_and_taken_again_when_there_is_space() {
    let rig = TwoDisks::new(ChunkFileOptions { file_bytes: 1 << 20, batch_bytes: 4096, memory_budget: 100_000 });
    rig.chunks.set_free_bytes(Some(20_000));
    let mut round = 0;
    let error = loop {
        match rig.rounds(50, round..round + 1) {
            Ok(()) => round += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::ChunkBacklog { pending_bytes: 100_000.. }), "{error}");
    assert!(rig.head.chunk_files.stats().pending_bytes < 200_000);
    let before = contents(&rig.head, &[], QueryRange::ALL);
    assert_eq!(count(&before), 50 * round as usize, "reads go on");
    rig.head.chunk_files.upkeep();
    assert!(rig.rounds(50, round..round + 1).is_err(), "still full");
    rig.chunks.set_free_bytes(None);
    rig.head.chunk_files.upkeep();
    rig.rounds(50, round..round + 200).unwrap();
    assert_eq!(count(&contents(&rig.head, &[], QueryRange::ALL)), 50 * (round as usize + 200));
    let (blocks, lost) = rig.cut_all();
    assert_eq!((count(&blocks), lost.len()), (50 * (round as usize + 200), 0));
}

#[test]
fn files_of_which_little_is_left_are_emptied() {
    let (disk, chunks) = (MemDisk::default(), MemDisk::default());
    let Opened { wal, .. } = open(&disk, LONG, 1 << 20);
    let files = Arc::new(ChunkFiles::open(Arc::new(chunks.clone()), Path::new("/chunks"), small()).unwrap());
    let head = |name: &[u8]| Arc::new(Head::new(wal.define_head(name).unwrap(), LONG, files.clone()));
    let (busy, slow) = (head(b"busy"), head(b"slow"));
    // The slow head closes a chunk now and then, and never comes to a cut.
    for round in 0..6000_i64 {
        let all: Vec<Labels> = (0..4).map(labels).collect();
        let one = [float(round * STEP, round as f64 * 1.37)];
        let batch: Vec<_> = all.iter().map(|labels| (labels, &one[..])).collect();
        append(&busy, &wal, &batch, &AppendLimits::default()).unwrap();
        if round % 4 == 0 {
            let one = [float(round, round as f64 * 1.37)];
            append(&slow, &wal, &[(&labels(9), &one)], &AppendLimits::default()).unwrap();
        }
        if round % 500 == 499 {
            let cut = busy.begin_cut(&wal, round * STEP).unwrap();
            let _ = busy.finish_cut(&wal, cut).unwrap();
            files.upkeep();
        }
    }
    let expected = contents(&slow, &[], QueryRange::ALL);
    assert_eq!(count(&expected), 1500);
    let before = files.stats();
    assert!(before.files > 7, "{before:?}");
    let sparse = files.sparse_files();
    let mut reader = slow.select(&[], QueryRange::ALL);
    assert!(slow.move_chunks(&sparse) >= 5);
    files.upkeep();
    assert!(files.stats().files >= before.files, "a reader may have seen the old places");
    assert!(reader.next_batch(usize::MAX).is_ok());
    drop(reader);
    assert_eq!(contents(&slow, &[], QueryRange::ALL), expected);
    assert_eq!(slow.move_chunks(&sparse), 0);
    files.upkeep();
    let after = files.stats();
    assert!(after.files <= 3 && after.bytes < before.bytes / 2, "{before:?} {after:?}");
    assert_eq!(contents(&slow, &[], QueryRange::ALL), expected);
    assert!(files.sparse_files().is_empty());
}

#[test]
fn a_flush_frees_memory_when_the_disk_is_full() {
    let rig = TwoDisks::new(ChunkFileOptions { file_bytes: 1 << 20, batch_bytes: 4096, memory_budget: 100_000 });
    rig.chunks.set_free_bytes(Some(0));
    let mut round = 0;
    while rig.rounds(50, round..round + 1).is_ok() {
        round += 1;
    }
    let (blocks, lost) = rig.cut_all();
    assert_eq!((count(&blocks), lost.len()), (50 * round as usize, 0));
    rig.head.chunk_files.upkeep();
    assert!(rig.rounds(50, round..round + 1).is_ok(), "{:?}", rig.head.chunk_files.stats());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test needs several threads at once")]
fn readers_see_whole_chunks_while_others_are_cut_away() {
    let rig = TwoDisks::new(small());
    let (head, wal) = (rig.head.clone(), Arc::new(rig.wal));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (head, stop) = (head.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut reads = 0;
                while !stop.load(Ordering::Relaxed) {
                    // Panics when a chunk cannot be read, or is not what its entry says.
                    contents(&head, &[], QueryRange::ALL);
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    let all: Vec<Labels> = (0..20).map(labels).collect();
    for round in 0..2500_i64 {
        let one = [float(round * STEP, round as f64 * 1.37)];
        let batch: Vec<_> = all.iter().map(|labels| (labels, &one[..])).collect();
        append(&head, &wal, &batch, &AppendLimits::default()).unwrap();
        if round % 250 == 249 {
            let cut = head.begin_cut(&wal, round * STEP).unwrap();
            let mut samples = 0;
            for range in head.cut_ranges(cut) {
                let count = |chunks: &[Chunk]| chunks.iter().map(|c| usize::from(c.num_samples())).sum::<usize>();
                let lost = head.cut_series(cut, range, |_, chunks| {
                    samples += count(chunks);
                    Ok::<_, ()>(())
                });
                assert_eq!(lost.unwrap().chunks, 0);
            }
            assert!(samples >= 20 * 249, "{samples}");
            let _ = head.finish_cut(&wal, cut).unwrap();
            head.chunk_files.upkeep();
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>() > 0);
    while head.drop_covered(&wal) != Dropped::Done {}
    head.chunk_files.upkeep();
    let stats = head.chunk_files.stats();
    assert!(stats.live_chunks <= 20 && stats.files <= 2, "{stats:?}");
}
