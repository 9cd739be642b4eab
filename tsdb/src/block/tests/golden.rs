//! Blocks that Prometheus wrote.
#![expect(clippy::disallowed_methods, reason = "reads stored files")]

use std::io::Read;
use std::path::PathBuf;

use serde_json::Value;
use skald_model::{Columns, MatchOp, Matcher, QueryRange};

use super::*;
use crate::decode::decode_series;
use crate::disk::{MemDisk, RealDisk};

/// A set of golden blocks, when this machine has them.
fn golden(set: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden").join(set);
    if !dir.exists() {
        println!("skipped: no golden blocks here");
        return None;
    }
    Some(dir)
}

fn open_all(set: &str) -> Vec<Arc<LocalBlock>> {
    let Some(dir) = golden(set) else { return Vec::new() };
    let dirs = RealDisk.list(&dir.join("blocks")).unwrap().into_iter().map(|entry| dir.join("blocks").join(entry.name));
    dirs.map(|dir| Arc::new(LocalBlock::open(&RealDisk, &dir).unwrap())).collect()
}

fn lines(path: &Path) -> Vec<Value> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::read(path).unwrap().as_slice()).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn golden_blocks_are_intact() {
    for set in ["blocks-backfill", "blocks-head"] {
        for block in open_all(set) {
            let report = verify_block(&RealDisk, block.dir(), &mut |_, _| {});
            assert!(report.is_intact(), "{:?}: {:#?}", block.dir(), report.problems);
            assert!(report.counted.num_samples > 0);
        }
    }
}

/// Merged over the blocks and after deletions, each series has as many samples as Prometheus found, and the same ends.
#[test]
fn golden_series_have_the_samples_prometheus_found() {
    for (set, file, floats) in [
        ("blocks-backfill", "float-series.jsonl.gz", true),
        ("blocks-head", "float-series.jsonl.gz", true),
        ("blocks-head", "histogram-series.jsonl.gz", false),
    ] {
        let Some(dir) = golden(set) else { return };
        let mut found = BTreeMap::new();
        for series in merged_naively(&open_all(set)) {
            let mut columns = Columns::default();
            decode_series(&series.chunks, QueryRange::ALL, &mut columns).unwrap();
            cut_columns(&mut columns, &series.deleted);
            let times = if floats { columns.float_timestamps } else { columns.histogram_timestamps };
            if let (Some(&first), Some(&last)) = (times.first(), times.last()) {
                found.insert(series.labels, (times.len() as u64, first, last));
            }
        }
        let expected: BTreeMap<Labels, _> = lines(&dir.join(file))
            .iter()
            .map(|line| {
                let pairs = line["metric"]
                    .as_object()
                    .unwrap()
                    .iter()
                    .map(|(n, v)| (n.clone(), v.as_str().unwrap().to_owned()));
                let time = |name: &str| line[name].as_i64().unwrap();
                (Labels::from_pairs(pairs), (line["samples"].as_u64().unwrap(), time("first_ms"), time("last_ms")))
            })
            .collect();
        assert_eq!(found, expected, "{set}/{file}");
    }
}

#[test]
fn matchers_agree_with_walking_all_series() {
    for block in open_all("blocks-backfill") {
        let all = block.series(&[]).unwrap();
        for (op, name, value) in [
            (MatchOp::Equal, "__name__", "up"),
            (MatchOp::Regex, "instance", "10\\.0\\.0\\.[12].*"),
            (MatchOp::NotRegex, "instance", ".+"),
            (MatchOp::NotEqual, "job", "api"),
            (MatchOp::Equal, "le", ""),
            (MatchOp::Regex, "le", ".*5"),
            (MatchOp::Regex, "__name__", "rpc_.*|odd_labels"),
        ] {
            let matcher = Matcher::new(op, name, value).unwrap();
            let expected: Vec<_> =
                all.iter().filter(|l| matcher.matches(l.get(name).unwrap_or_default())).cloned().collect();
            assert_eq!(block.series(&[vec![matcher.clone()]]).unwrap(), expected, "{matcher}");
        }
    }
}

/// What Prometheus wrote, we write again: the same bytes of chunks, and an index of the same meaning.
#[test]
fn golden_blocks_survive_rewriting() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
    for block in open_all("blocks-backfill").into_iter().chain(open_all("blocks-head")) {
        // With the deleted chunks, too.
        let mut content = Content::new();
        let all = block.find(&[]).unwrap();
        let mut copy = |_, entry: &SeriesEntry, labels: &Labels| {
            let wanted: Vec<_> = local::WantedChunk::of_series(&entry.chunks).collect();
            content.insert(labels.clone(), block.chunks(&wanted)?);
            Ok(())
        };
        block.visit_entries(&all, &mut copy).unwrap();
        let (meta, parent) = (block.meta(), Path::new("/again"));
        let new = NewBlock { ulid: meta.ulid, range: meta.range(), compaction: meta.compaction.clone(), thanos: None };
        let written = write(&disk, parent, new, &content, SEGMENT_LEN);
        let dir = parent.join(meta.ulid.to_string());
        assert_eq!(
            (written.stats.num_samples, written.stats.num_chunks),
            (meta.stats.num_samples, meta.stats.num_chunks)
        );
        let report = verify_block(&*disk, &dir, &mut |_, _| {});
        assert!(report.is_intact(), "{:#?}", report.problems);
        let chunks = |disk: &dyn Disk, dir: &Path| disk.read(&segment_path(dir, 0)).unwrap();
        assert!(chunks(&*disk, &dir) == chunks(&RealDisk, block.dir()), "segments differ");
    }
}

/// A header from memory, from its stored copy and from the index itself give the same answers.
#[test]
fn headers_agree_wherever_they_are_read_from() {
    use crate::postings::PostingsSource;
    let disk = MemDisk::default();
    disk.create_dir_all(Path::new("/headers")).unwrap();
    for block in open_all("blocks-backfill") {
        let index = bytes::Bytes::from(RealDisk.read(&block.dir().join(INDEX_FILE)).unwrap());
        let len = index.len() as u64;
        let toc = Toc::parse(len, &index).unwrap();
        let ranges = HeaderRanges::of(&toc);
        let cut = |range: &std::ops::Range<u64>| index.slice(range.start as usize..range.end as usize);
        let (symbols, table) = (cut(&ranges.symbols), cut(&ranges.postings_table));
        let path = Path::new("/headers/index-header");
        IndexHeader::store(&disk, path, &toc, &symbols, &table).unwrap();
        let headers = [IndexHeader::parse(toc, &symbols, &table).unwrap(), IndexHeader::open(&disk, path).unwrap()];
        assert!(headers[1].memory_bytes() < headers[0].memory_bytes());
        for header in &headers {
            assert_eq!(header.label_names().collect::<Vec<_>>(), block.header().label_names().collect::<Vec<_>>());
            for (name, count) in block.header().label_names() {
                let values = |header: &IndexHeader, prefix: &str| {
                    let (mut values, mut lists) = (Vec::new(), Vec::new());
                    let mut take = |value: &str| {
                        values.push(value.to_owned());
                        true
                    };
                    header.scan(name, prefix, &mut take, &mut lists).unwrap();
                    values.into_iter().zip(lists).collect::<Vec<_>>()
                };
                let all = values(header, "");
                assert_eq!(all, values(block.header(), ""));
                assert_eq!(all.len(), count as usize);
                assert!(all.is_sorted_by_key(|(value, _)| value));
                for (value, list) in &all {
                    assert_eq!(header.postings_range(name, value).unwrap().as_ref(), Some(list));
                    let prefix: String = value.chars().take(3).collect();
                    let expected: Vec<_> = all.iter().filter(|(v, _)| v.starts_with(&prefix)).cloned().collect();
                    assert_eq!(values(header, &prefix), expected);
                    assert_eq!(header.postings_range(name, &format!("{value}\0")).unwrap(), None);
                }
            }
            assert_eq!(header.postings_range("no such name", "x").unwrap(), None);
            for number in 0..header.symbol_count() {
                let symbol = header.symbol(number, str::to_owned).unwrap();
                assert_eq!(block.header().symbol(number, str::to_owned).unwrap(), symbol);
            }
            assert!(header.symbol(header.symbol_count(), str::to_owned).is_err());
        }
    }
}
