//! Any bytes as a block's index or chunk segment: everything that opens, reads, checks and repairs a block is run on it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use skald_model::{BlockRange, Columns, Histogram, HistogramValue, Labels, MatchOp, Matcher, QueryRange, Span};
use skald_tsdb::block::{
    BlockWriter, Compaction, HeaderRanges, IndexHeader, LocalBlock, NewBlock, SymbolSet, ThanosMeta, Toc,
    analyze_block, cut_columns, salvage_block, verify_block,
};
use skald_tsdb::chunk::Chunk;
use skald_tsdb::decode::decode_series;
use skald_tsdb::disk::{Disk, MemDisk};
use skald_tsdb::encode::ChunkEncoder;
use ulid::Ulid;

use crate::{choice, chosen, reseal};

const AS_IT_IS: u8 = 0;
const SEALED: u8 = 1;
const STORED_HEADER: u8 = 2;
const PARENT: &str = "/blocks";

/// A block's files.
#[derive(Clone)]
pub struct Files {
    /// `meta.json`
    pub meta: Vec<u8>,
    /// `index`
    pub index: Vec<u8>,
    /// `chunks/000001`
    pub segment: Vec<u8>,
}

/// A small block of every kind of chunk.
pub fn files() -> Files {
    let disk = MemDisk::default();
    disk.create_dir_all(Path::new(PARENT)).expect("in memory");
    let series: Vec<Labels> = (0..5)
        .map(|i| {
            Labels::from_pairs([("__name__", format!("m{}", i % 2)), ("i", format!("{i}")), ("z", "é".to_owned())])
        })
        .collect();
    let mut series: Vec<(Labels, Vec<Chunk>)> =
        series.into_iter().zip(0..).map(|(labels, i)| (labels, chunks(i))).collect();
    series.sort_by(|a, b| a.0.cmp(&b.0));
    let mut symbols = SymbolSet::default();
    series.iter().for_each(|(labels, _)| symbols.insert_labels(labels).expect("few"));
    let range = BlockRange { min: 0, max: 7_200_000 };
    let new = NewBlock { ulid: Ulid(1), range, compaction: Compaction::default(), thanos: Some(ThanosMeta::default()) };
    let mut writer =
        BlockWriter::create(Arc::new(disk.clone()), Path::new(PARENT), new, symbols.sort()).expect("in memory");
    series.iter().for_each(|(labels, chunks)| writer.add_series(labels, chunks).expect("valid"));
    writer.finish().expect("in memory").expect("not empty");
    let dir = dir();
    let read = |name: &str| disk.read(&dir.join(name)).expect("written");
    Files { meta: read("meta.json"), index: read("index"), segment: read("chunks/000001") }
}

fn dir() -> PathBuf {
    Path::new(PARENT).join(Ulid(1).to_string())
}

fn chunks(i: i64) -> Vec<Chunk> {
    let mut encoder = ChunkEncoder::default();
    for n in 0..6 {
        let time = 1000 * n + i;
        let histogram = Histogram {
            count: 3 * n as u64,
            sum: n as f64,
            positive_spans: vec![Span { offset: 0, length: 2 }],
            positive_deltas: vec![n, n],
            ..Histogram::default()
        };
        match i {
            0 if n > 2 => encoder.push_histogram(time, &HistogramValue::Integer(histogram.into())).expect("valid"),
            1 => {
                let float = HistogramValue::Float(histogram.to_float().into());
                encoder.push_histogram(time, &float).expect("valid");
            }
            _ => encoder.push_float(time, n as f64 * 0.5),
        }
    }
    encoder.finish()
}

/// The index of a block.
pub mod index {
    use super::*;

    /// One as we write it.
    pub fn seeds() -> Vec<Vec<u8>> {
        let index = files().index;
        let disk = MemDisk::default();
        store_header(&disk, &index).expect("a good index");
        let header = disk.read(Path::new(HEADER)).expect("just written");
        vec![chosen(AS_IT_IS, &index), chosen(SEALED, &index), chosen(STORED_HEADER, &header)]
    }

    /// Reads the bytes.
    pub fn check(bytes: &[u8]) {
        thread_local!(static FILES: Files = files());
        let (choice, bytes) = choice(bytes);
        let mut bytes = bytes.to_vec();
        if choice == STORED_HEADER {
            return open_header(&mut bytes);
        }
        if choice != AS_IT_IS {
            reseal::index(&mut bytes);
        }
        check_block(Files { index: bytes, ..FILES.with(Files::clone) });
    }
}

/// A chunk segment of a block.
pub mod segment {
    use super::*;

    /// One as we write it.
    pub fn seeds() -> Vec<Vec<u8>> {
        let segment = files().segment;
        vec![chosen(AS_IT_IS, &segment), chosen(SEALED, &segment)]
    }

    /// Reads the bytes.
    pub fn check(bytes: &[u8]) {
        thread_local!(static FILES: Files = files());
        let (choice, bytes) = choice(bytes);
        let mut bytes = bytes.to_vec();
        if choice != AS_IT_IS {
            reseal::segment(&mut bytes);
        }
        check_block(Files { segment: bytes, ..FILES.with(Files::clone) });
    }
}

fn check_block(files: Files) {
    let memory = MemDisk::default();
    let disk: Arc<dyn Disk> = Arc::new(memory);
    let dir = dir();
    disk.create_dir_all(&dir.join("chunks")).expect("in memory");
    for (name, bytes) in [("meta.json", &files.meta), ("index", &files.index), ("chunks/000001", &files.segment)] {
        disk.create(&dir.join(name)).and_then(|file| file.append(bytes)).expect("in memory");
    }
    if let Ok(block) = LocalBlock::open(&*disk, &dir) {
        read(&Arc::new(block));
    }
    let verified = verify_block(&*disk, &dir, &mut |_, _| ());
    let _ = analyze_block(&*disk, &dir, 10, &mut |_, _| ());
    check_header(&*disk, &files.index);
    // Whatever is salvaged is a good block, and of an intact one everything is.
    let salvaged = Path::new("/salvaged");
    disk.create_dir_all(salvaged).expect("in memory");
    let report = salvage_block(&disk, &dir, Some(salvaged), Ulid(2), &mut |_, _| ());
    let new = salvaged.join(Ulid(2).to_string());
    if disk.exists(&new) {
        let salvaged = verify_block(&*disk, &new, &mut |_, _| ());
        assert!(salvaged.is_intact(), "{salvaged:?} of {report:?}");
    }
    if verified.is_intact() {
        let report = report.expect("an intact block can be salvaged");
        assert!(report.losses.is_empty(), "{report:?}");
    }
}

fn read(block: &Arc<LocalBlock>) {
    let regex = |name: &str, value: &str| Matcher::new(MatchOp::Regex, name, value).expect("a regex");
    let selectors = [
        vec![],
        vec![Matcher::equal("__name__", "m0")],
        vec![regex("i", "[1-3]"), Matcher::new(MatchOp::NotEqual, "__name__", "m1").expect("no regex")],
        vec![Matcher::new(MatchOp::NotRegex, "none", ".+").expect("a regex"), regex("z", ".*")],
    ];
    let mut columns = Columns::default();
    for matchers in &selectors {
        let Ok(select) = block.select(matchers, QueryRange { min: 1500, max: 4500 }) else { continue };
        for series in select {
            let Ok(series) = series else { break };
            if decode_series(&series.chunks, QueryRange::ALL, &mut columns).is_ok() {
                cut_columns(&mut columns, &series.deleted);
                assert!(columns.float_timestamps.is_sorted_by(|a, b| a < b));
            }
        }
    }
    for name in block.label_names(&[]).unwrap_or_default() {
        let _ = block.label_values(&name, &[]);
        let _ = block.label_values(&name, &selectors);
    }
    let _ = block.series(&selectors);
}

const HEADER: &str = "/headers/header";

/// Stores the store-gateway's copy of an index' tables; gives them as they were read from the index.
fn store_header(disk: &dyn Disk, index: &[u8]) -> Option<IndexHeader> {
    let len = index.len() as u64;
    let tail = Toc::range(len).ok()?;
    let toc = Toc::parse(len, &index[tail.start as usize..]).ok()?;
    let HeaderRanges { symbols, postings_table } = HeaderRanges::of(&toc);
    let part = |range: Range<u64>| Some(Bytes::from(index.get(range.start as usize..range.end as usize)?.to_vec()));
    let (symbols, postings_table) = (part(symbols)?, part(postings_table)?);
    disk.create_dir_all(Path::new("/headers")).expect("in memory");
    let parsed = IndexHeader::parse(toc, &symbols, &postings_table).ok()?;
    IndexHeader::store(disk, Path::new(HEADER), &toc, &symbols, &postings_table).expect("in memory");
    Some(parsed)
}

/// The copy says what the index says.
fn check_header(disk: &dyn Disk, index: &[u8]) {
    let Some(parsed) = store_header(disk, index) else { return };
    let opened = IndexHeader::open(disk, Path::new(HEADER)).expect("what was stored");
    assert_eq!(tables(&opened), tables(&parsed));
}

/// Names, the number of their values, and the values; the number of symbols.
type Tables = (Vec<(String, u32, Vec<String>)>, u32);

fn tables(header: &IndexHeader) -> Tables {
    let names = header.label_names().map(|(name, count)| {
        let mut values = Vec::new();
        let _ = header.label_values(name, &mut |value| values.push(value.to_owned()));
        (name.to_owned(), count, values)
    });
    (names.collect(), header.symbol_count())
}

fn open_header(bytes: &mut [u8]) {
    reseal::stored_header(bytes);
    let disk = MemDisk::default();
    disk.create_dir_all(Path::new("/headers")).expect("in memory");
    disk.create(Path::new(HEADER)).and_then(|file| file.append(bytes)).expect("in memory");
    if let Ok(header) = IndexHeader::open(&disk, Path::new(HEADER)) {
        tables(&header);
        let mut labels = header.labels_reader();
        let _ = labels.labels_of(0, &[(0, 1), (2, u32::MAX)]);
    }
}
