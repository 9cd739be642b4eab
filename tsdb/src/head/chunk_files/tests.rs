//! Chunk files against a naive model, through releases, restarts, damage and a full disk.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::disk::MemDisk;
use crate::wal::HeadId;

const HEAD: HeadId = HeadId(7);

fn open(disk: &MemDisk, options: ChunkFileOptions) -> Arc<ChunkFiles> {
    Arc::new(ChunkFiles::open(Arc::new(disk.clone()), Path::new("/chunks"), options).unwrap())
}

fn small() -> ChunkFileOptions {
    ChunkFileOptions { file_bytes: 1 << 12, memory_budget: 10_000, ..ChunkFileOptions::default() }
}

fn data(len: usize, seed: u8) -> Vec<u8> {
    let mut data: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    if let Some(count) = data.first_chunk_mut::<2>() {
        *count = [0, 9];
    }
    data
}

fn put(files: &ChunkFiles, data: &[u8]) -> StoredChunk {
    files.put(HEAD, NewChunk { min_time: 5, max_time: 5 + data.len() as i64, encoding: Encoding::Xor, data })
}

/// As if the batch were full.
fn seal(files: &ChunkFiles) {
    let mut state = files.state.lock();
    state.seal();
    files.publish(&state);
}

fn names(disk: &MemDisk) -> Vec<String> {
    disk.list(Path::new("/chunks")).unwrap().into_iter().map(|entry| entry.name).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize, u8),
    Release(usize),
    Write,
    Sync,
    /// A restart after which the chunks that were synced, or all, are retained.
    Restart,
    Crash,
    DiskFull(u64),
    DiskFree,
    Read(Vec<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (2..900_usize, any::<u8>()).prop_map(|(len, seed)| Step::Put(len, seed)),
        4 => any::<usize>().prop_map(Step::Release),
        3 => Just(Step::Write),
        2 => Just(Step::Sync),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
        1 => (0..3000_u64).prop_map(Step::DiskFull),
        2 => Just(Step::DiskFree),
        3 => proptest::collection::vec(any::<usize>(), 1..20).prop_map(Step::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn behave_like_a_map(steps in proptest::collection::vec(step(), 1..120)) {
        let disk = MemDisk::default();
        let mut files = open(&disk, small());
        // What is there, and whether a sync has covered it.
        let mut model: BTreeMap<ChunkAddress, (StoredChunk, Vec<u8>, bool)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Put(len, seed) => {
                    let data = data(len, seed);
                    let stored = put(&files, &data);
                    prop_assert_eq!((stored.len(), stored.samples), (len, 9));
                    prop_assert!(model.insert(stored.address, (stored, data, false)).is_none(), "an address twice");
                }
                Step::Release(at) if !model.is_empty() => {
                    let address = *model.keys().nth(at % model.len()).unwrap();
                    model.remove(&address);
                    files.release(address);
                }
                Step::Release(_) => {}
                Step::Write => {
                    seal(&files);
                    let _ = files.write_waiting();
                    files.upkeep();
                }
                Step::Sync => {
                    if files.sync().is_ok() {
                        model.values_mut().for_each(|(.., synced)| *synced = true);
                        prop_assert_eq!(files.stats().pending_bytes, 0);
                    }
                }
                Step::Restart | Step::Crash => {
                    disk.set_free_bytes(None);
                    if matches!(step, Step::Crash) {
                        disk.crash();
                        model.retain(|_, (.., synced)| *synced);
                    } else {
                        files.sync().unwrap();
                        model.values_mut().for_each(|(.., synced)| *synced = true);
                    }
                    files = open(&disk, small());
                    let chunks: Vec<StoredChunk> = model.values().map(|(chunk, ..)| *chunk).collect();
                    prop_assert!(files.retain_sound(HEAD, &chunks).into_iter().all(|is_sound| is_sound));
                    files.upkeep();
                }
                Step::DiskFull(free) => disk.set_free_bytes(Some(free)),
                Step::DiskFree => {
                    disk.set_free_bytes(None);
                    seal(&files);
                    files.upkeep();
                    prop_assert_eq!(files.stats().pending_bytes, 0);
                }
                Step::Read(which) if !model.is_empty() => {
                    let wanted: Vec<_> = which.iter().map(|at| model.values().nth(at % model.len()).unwrap()).collect();
                    let chunks: Vec<StoredChunk> = wanted.iter().map(|(chunk, ..)| *chunk).collect();
                    for (read, (_, data, _)) in files.read_all(HEAD, &chunks).into_iter().zip(wanted) {
                        prop_assert_eq!(&read.unwrap()[..], &data[..]);
                    }
                }
                Step::Read(_) => {}
            }
            let stats = files.stats();
            prop_assert_eq!(stats.live_chunks as usize, model.len());
            // A file without chunks goes, so there are no more files than chunks and the one being written.
            let with_chunks: std::collections::BTreeSet<u32> = model.keys().map(|address| address.file).collect();
            prop_assert!(stats.files <= with_chunks.len() + 1);
        }
        for (chunk, data, _) in model.values() {
            prop_assert_eq!(&files.read(HEAD, chunk).unwrap()[..], &data[..]);
        }
        model.keys().for_each(|address| files.release(*address));
        disk.set_free_bytes(None);
        files.upkeep();
        prop_assert_eq!(files.stats(), ChunkFileStats { write_failures: files.stats().write_failures, ..Default::default() });
        prop_assert_eq!(names(&disk), Vec::<String>::new());
    }
}

#[test]
fn damage_costs_the_damaged_chunk_only() {
    for seed in 0..300_u64 {
        let disk = MemDisk::default();
        let files = open(&disk, ChunkFileOptions { file_bytes: 1 << 16, ..small() });
        let chunks: Vec<(StoredChunk, Vec<u8>)> = (0..40)
            .map(|i| {
                let data = data(2 + (seed as usize * 7 + i * 13) % 400, i as u8);
                (put(&files, &data), data)
            })
            .collect();
        files.sync().unwrap();
        let path = Path::new("/chunks/0000000001.chunks");
        let mut bytes = disk.read(path).unwrap();
        let from = (seed as usize * 7919) % bytes.len();
        let to = match seed % 3 {
            0 => {
                bytes[from] ^= 1 << (seed % 8);
                from + 1
            }
            1 => {
                let to = (from + 500).min(bytes.len());
                bytes[from..to].fill(0);
                to
            }
            _ => {
                bytes.truncate(from);
                usize::MAX
            }
        };
        let file = disk.open_writable(path).unwrap();
        file.truncate(0).unwrap();
        file.append(&bytes).unwrap();
        let all: Vec<StoredChunk> = chunks.iter().map(|(chunk, _)| *chunk).collect();
        let mut lost = 0;
        for (read, (chunk, data)) in files.read_all(HEAD, &all).into_iter().zip(&chunks) {
            let start = chunk.address.offset as usize;
            let hit = start < to && from < start + record::RECORD_HEADER_LEN + data.len();
            match read {
                Ok(read) => assert_eq!(&read[..], &data[..], "seed {seed}"),
                Err(error) => {
                    assert!(hit, "seed {seed}: {error} but the damage is {from}..{to}");
                    lost += 1;
                }
            }
        }
        assert_eq!(files.stats().lost_reads, lost);
    }
}

#[test]
fn no_other_record_passes_for_the_one_wanted() {
    let disk = MemDisk::default();
    let files = open(&disk, small());
    let bytes = data(100, 1);
    let (a, b) = (put(&files, &bytes), put(&files, &data(100, 2)));
    files.sync().unwrap();
    assert!(files.read(HEAD, &a).is_ok() && files.read(HEAD, &b).is_ok());
    assert!(files.read(HeadId(8), &a).is_err(), "another head's");
    for other in [
        StoredChunk { crc: b.crc, ..a },
        StoredChunk { min_time: a.min_time + 1, ..a },
        StoredChunk { max_time: a.max_time + 1, ..a },
        StoredChunk { encoding: Encoding::Histogram, ..a },
        StoredChunk { address: ChunkAddress { len: 99, ..a.address }, ..a },
        StoredChunk { address: ChunkAddress { offset: a.address.offset + 1, ..a.address }, ..a },
        StoredChunk { address: ChunkAddress { file: 2, ..a.address }, ..a },
    ] {
        assert!(files.read(HEAD, &other).is_err(), "{other:?}");
    }
    // The same records moved to another place of the file.
    let path = Path::new("/chunks/0000000001.chunks");
    let all = disk.read(path).unwrap();
    let (at, len) = (a.address.offset as usize, record::RECORD_HEADER_LEN + 100);
    let mut moved = all[..at].to_vec();
    moved.extend_from_slice(&all[at + len..]);
    moved.extend_from_slice(&all[at..at + len]);
    let file = disk.open_writable(path).unwrap();
    file.truncate(0).unwrap();
    file.append(&moved).unwrap();
    assert!(files.read(HEAD, &a).is_err() && files.read(HEAD, &b).is_err());
}

#[test]
fn a_file_that_leaves_no_numbers_is_named() {
    let disk = MemDisk::default();
    disk.create_dir_all(Path::new("/chunks")).unwrap();
    disk.write_atomically(Path::new("/chunks/4294967295.chunks"), b"").unwrap();
    let opened = ChunkFiles::open(Arc::new(disk.clone()), Path::new("/chunks"), small());
    let error = opened.err().unwrap().to_string();
    assert!(error.contains("4294967295.chunks") && error.contains("remove it"), "{error}");
    disk.remove_file(Path::new("/chunks/4294967295.chunks")).unwrap();
    // The largest that may be there has successors.
    disk.write_atomically(Path::new("/chunks/2147483647.chunks"), b"").unwrap();
    let files = open(&disk, small());
    let chunks: Vec<_> = (0..20).map(|seed| (put(&files, &data(800, seed)), data(800, seed))).collect();
    files.sync().unwrap();
    assert!(names(&disk).contains(&"2147483649.chunks".to_owned()), "{:?}", names(&disk));
    chunks.iter().for_each(|(chunk, data)| assert_eq!(&files.read(HEAD, chunk).unwrap()[..], &data[..]));
}

#[test]
fn a_full_disk_keeps_chunks_in_memory_until_there_is_space() {
    let disk = MemDisk::default();
    let files = open(&disk, ChunkFileOptions { file_bytes: 1 << 20, memory_budget: 700_000, ..small() });
    disk.set_free_bytes(Some(100_000));
    let mut chunks = Vec::new();
    while !files.is_over_budget() {
        let data = data(800, chunks.len() as u8);
        chunks.push((put(&files, &data), data));
        files.write_batches();
    }
    assert!(chunks.len() as u64 * 800 > 650_000);
    assert_eq!(files.stats().write_failures, 1, "appends do not hammer a full disk");
    let check = || chunks.iter().for_each(|(chunk, data)| assert_eq!(&files.read(HEAD, chunk).unwrap()[..], &data[..]));
    check();
    files.upkeep();
    assert!(files.is_over_budget());
    disk.set_free_bytes(None);
    files.upkeep();
    assert!(!files.is_over_budget() && files.stats().pending_bytes < 256 << 10);
    check();
    files.sync().unwrap();
    assert_eq!(files.stats().pending_bytes, 0);
    check();
    let again = open(&disk, small());
    for (chunk, data) in &chunks {
        assert_eq!(again.retain_sound(HEAD, &[*chunk]), [true]);
        assert_eq!(&again.read(HEAD, chunk).unwrap()[..], &data[..]);
    }
}

#[test]
fn a_pin_keeps_files_that_nobody_else_needs() {
    let disk = MemDisk::default();
    let files = open(&disk, small());
    let bytes = data(3000, 1);
    let (a, b) = (put(&files, &bytes), put(&files, &bytes));
    files.sync().unwrap();
    let mut pin = files.pin();
    assert!(pin.add(a.address.file) && pin.add(a.address.file) && !pin.add(99));
    files.release(a.address);
    files.release(b.address);
    files.upkeep();
    assert_eq!(names(&disk), ["0000000001.chunks"]);
    // The snapshot that pinned it is what the next process starts from.
    let again = open(&disk, small());
    assert_eq!(again.retain_sound(HEAD, &[a, b]), [true, false]);
    assert_eq!(&again.read(HEAD, &a).unwrap()[..], &bytes[..]);
    let c = put(&again, &bytes);
    assert_eq!(c.address.file, 2, "numbers are not given twice");
    drop(pin);
    files.upkeep();
    assert!(names(&disk).is_empty());
}

#[test]
fn files_that_are_none_are_removed_and_their_numbers_not_used() {
    let disk = MemDisk::default();
    disk.create_dir_all(Path::new("/chunks")).unwrap();
    disk.create(Path::new("/chunks/0000000004.chunks")).unwrap().append(b"SKCH\x02").unwrap();
    disk.create(Path::new("/chunks/notes")).unwrap();
    let mut newer = record::file_header(6)[..12].to_vec();
    newer[4] = 2;
    newer.extend_from_slice(&crc32c::crc32c(&newer).to_le_bytes());
    disk.create(Path::new("/chunks/0000000006.chunks")).unwrap().append(&newer).unwrap();
    let files = open(&disk, small());
    files.upkeep();
    assert_eq!(names(&disk), ["0000000006.chunks", "notes"], "what a newer version wrote is left to it");
    assert_eq!(put(&files, &data(10, 0)).address.file, 7);
}

#[test]
fn version_1_stays_readable() {
    let disk = MemDisk::default();
    let files = open(&disk, small());
    let stored = put(&files, &[0, 9, 1, 2, 3]);
    files.sync().unwrap();
    let written = disk.read(Path::new("/chunks/0000000001.chunks")).unwrap();
    let golden: &[u8] = include_bytes!("testdata/version1.chunks");
    assert_eq!(written, golden);
    assert_eq!(stored.address, ChunkAddress { file: 1, offset: 16, len: 5 });
}
