//! Damaged blocks give errors, never a panic, never other data without a word.

use proptest::prelude::*;
use skald_model::QueryRange;

use super::*;
use crate::SeriesChunks;
use crate::disk::MemDisk;

/// A block in memory: disk, directory, files, content.
pub(super) fn block() -> (Arc<dyn Disk>, std::path::PathBuf, Vec<std::path::PathBuf>, Vec<SeriesChunks>) {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
    let mut content = Content::new();
    for i in 0..80_i64 {
        let labels = Labels::from_pairs([("a", format!("v{i}")), ("b", format!("w{}", i % 3))]);
        let samples: Vec<(i64, f64)> = (0..=i % 9).map(|n| (n * 10, (i * n) as f64)).collect();
        content.insert(labels, samples.chunks(4).map(floats).collect());
    }
    let meta = write(&disk, Path::new("/d"), new_block(5, 0, 1000), &content, 900);
    let dir = Path::new("/d").join(meta.ulid.to_string());
    let mut stones = Tombstones::default();
    stones.delete(u32::MAX, QueryRange { min: 0, max: 5 });
    disk.write_atomically(&dir.join(TOMBSTONES_FILE), &stones.encode()).unwrap();
    let segments = disk.list(&dir.join(CHUNKS_DIR)).unwrap().len() as u32;
    assert!(segments > 1);
    let mut files: Vec<_> = [INDEX_FILE, META_FILE, TOMBSTONES_FILE].iter().map(|name| dir.join(name)).collect();
    files.extend((0..segments).map(|segment| segment_path(&dir, segment)));
    let opened = Arc::new(LocalBlock::open(&*disk, &dir).unwrap());
    let series = opened.select(&[], QueryRange::ALL).unwrap().map(Result::unwrap).collect();
    (disk, dir, files, series)
}

fn read_all(disk: &dyn Disk, dir: &Path) -> Result<Vec<SeriesChunks>, BlockError> {
    let block = Arc::new(LocalBlock::open(disk, dir)?);
    block.label_names(&[])?;
    block.label_values("a", &[])?;
    block.series(&[vec![skald_model::Matcher::equal("b", "w1")]])?;
    block.select(&[], QueryRange::ALL)?.collect()
}

#[derive(Debug, Clone)]
pub(super) enum Harm {
    Flip(prop::sample::Index),
    Cut(prop::sample::Index),
    Overwrite(prop::sample::Index, Vec<u8>),
}

impl Harm {
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Harm::Flip(bit) => {
                let bit = bit.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            Harm::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Harm::Overwrite(at, with) => {
                let at = at.index(bytes.len());
                bytes.iter_mut().skip(at).zip(with).for_each(|(byte, &new)| *byte = new);
            }
        }
    }
}

pub(super) fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        any::<prop::sample::Index>().prop_map(Harm::Flip),
        any::<prop::sample::Index>().prop_map(Harm::Cut),
        (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(i, b)| Harm::Overwrite(i, b)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn harm_is_noticed(file: prop::sample::Index, harm in harm()) {
        let (disk, dir, files, series) = block();
        let path = file.get(&files);
        let mut bytes = disk.read(path).unwrap();
        let original = bytes.clone();
        harm.apply(&mut bytes);
        disk.write_atomically(path, &bytes).unwrap();
        let report = verify_block(&*disk, &dir, &mut |_, _| {});
        // Padding and a few header bytes carry no meaning, and meta.json has no checksum; data never changes unnoticed.
        match read_all(&*disk, &dir) {
            Ok(read) => {
                let time_range_changed = path.ends_with(META_FILE) || path.ends_with(TOMBSTONES_FILE);
                prop_assert!(time_range_changed || read == series, "{path:?} {harm:?}");
            }
            Err(_) => prop_assert!(!report.is_intact() && bytes != original),
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, len: u64, offset in 0_u64..100) {
        let shared = bytes::Bytes::from(bytes.clone());
        let _ = Toc::parse(len, &bytes);
        let _ = parse_postings(offset, offset + len % 1000, &bytes);
        let meta = ChunkMeta { min_time: 0, max_time: 1, reference: ChunkRef(len) };
        let _ = parse_chunk(&meta, &shared);
        let _ = SeriesEntry::default().parse(offset as u32, len, &bytes);
        let _ = SeriesEntry::default().parse_part(offset as u32, len, &bytes, QueryRange::ALL, true);
        let _ = BlockMeta::parse(&bytes);
        let toc = Toc {
            symbols: 5, series: 20, label_indices: 30, label_offset_table: 50, postings: 30, postings_table: 50, index_len: 120,
        };
        let _ = IndexHeader::parse(toc, &shared, &shared);
    }
}

#[test]
fn a_broken_writer_leaves_nothing_and_publishes_nothing() {
    let memory = MemDisk::default();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    disk.create_dir_all(Path::new("/d")).unwrap();
    let big = vec![floats(&(0..500).map(|i| (i, (i * i) as f64 * 0.1)).collect::<Vec<_>>())];
    let content: Content = (0..2000).map(|i| (Labels::from_pairs([("a", i.to_string())]), big.clone())).collect();
    let mut writer =
        BlockWriter::create(disk.clone(), Path::new("/d"), new_block(1, 0, 1000), symbols(&content)).unwrap();
    memory.set_free_bytes(Some(300_000));
    let added = content.iter().try_for_each(|(labels, chunks)| writer.add_series(labels, chunks));
    assert!(matches!(added, Err(BlockError::Io { .. })));
    assert!(matches!(writer.add_series(&labels_of("a", "9999"), &big), Err(BlockError::Input(_))));
    assert!(writer.finish().is_err());
    assert_eq!(disk.list(Path::new("/d")).unwrap(), []);
}

fn labels_of(name: &str, value: &str) -> Labels {
    Labels::from_pairs([(name, value)])
}

#[test]
fn the_writer_refuses_what_no_block_may_hold() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
    disk.create_dir_all(Path::new("/d")).unwrap();
    let good = [floats(&[(10, 1.0), (20, 2.0)]), floats(&[(21, 1.0)])];
    let content: Content = ["a", "m", "z"].map(|v| (labels_of("n", v), good.to_vec())).into();
    let mut writer =
        BlockWriter::create(disk.clone(), Path::new("/d"), new_block(1, 0, 100), symbols(&content)).unwrap();
    writer.add_series(&labels_of("n", "m"), &good).unwrap();
    let mut refuse = |labels: &Labels, chunks: &[Chunk]| {
        assert!(matches!(writer.add_series(labels, chunks), Err(BlockError::Input(_))), "{labels}");
    };
    let z = labels_of("n", "z");
    refuse(&labels_of("n", "a"), &good);
    refuse(&labels_of("n", "m"), &good);
    refuse(&labels_of("n", "zz"), &good);
    refuse(&Labels::empty(), &good);
    refuse(&z, &[floats(&[(10, 1.0), (20, 2.0)]), floats(&[(20, 1.0)])]);
    refuse(&z, &[floats(&[(100, 1.0)])]);
    refuse(&z, &[floats(&[(-1, 1.0)])]);
    refuse(&z, &[Chunk { data: Default::default(), ..good[0].clone() }]);
    writer.add_series(&z, &[]).unwrap();
    writer.add_series(&z, &good).unwrap();
    let meta = writer.finish().unwrap().unwrap();
    assert_eq!((meta.stats.num_series, meta.stats.num_samples), (2, 6));
    assert!(verify_block(&*disk, &Path::new("/d").join(meta.ulid.to_string()), &mut |_, _| {}).is_intact());

    let again = BlockWriter::create(disk.clone(), Path::new("/d"), new_block(1, 0, 100), symbols(&content));
    assert!(matches!(again.err(), Some(BlockError::Input(_))));
    let empty = BlockWriter::create(disk.clone(), Path::new("/d"), new_block(2, 0, 100), symbols(&content)).unwrap();
    assert_eq!(empty.finish().unwrap(), None);
    assert_eq!(disk.list(Path::new("/d")).unwrap().len(), 1);
}
