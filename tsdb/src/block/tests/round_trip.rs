//! What is written is read back.

use proptest::prelude::*;
use skald_model::{MatchOp, Matcher, QueryRange};

use super::*;
use crate::SeriesChunks;
use crate::disk::MemDisk;

fn chunks() -> impl Strategy<Value = Vec<Chunk>> {
    let samples = proptest::collection::btree_map(0_i64..500, any::<f64>(), 1..40);
    (samples, 1_usize..9).prop_map(|(samples, per_chunk)| {
        let samples: Vec<_> = samples.into_iter().collect();
        samples.chunks(per_chunk).map(floats).collect()
    })
}

fn content() -> impl Strategy<Value = Content> {
    let labels = proptest::collection::btree_map("[A-Za-c_]{1,2}", "[a-c]{1,2}|é|.{1,20}", 1..5);
    proptest::collection::btree_map(labels.prop_map(Labels::from_pairs), chunks(), 1..60)
}

fn read(block: &Arc<LocalBlock>, matchers: &[Matcher], range: QueryRange) -> Vec<SeriesChunks> {
    block.select(matchers, range).unwrap().collect::<Result<_, _>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_written_block_reads_back(
        content in content(),
        segment_len in prop_oneof![Just(u64::MAX), 9_u64..3000],
        min in 0_i64..500,
        len in 0_i64..200,
        value in "[a-c]{1,2}",
    ) {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
        let parent = Path::new("/blocks");
        let meta = write(&disk, parent, new_block(7, 0, 500), &content, segment_len);
        let dir = parent.join(meta.ulid.to_string());
        let block = Arc::new(LocalBlock::open(&*disk, &dir).unwrap());
        prop_assert_eq!(block.meta(), &meta);

        let all: Content = read(&block, &[], QueryRange::ALL).into_iter().map(|s| (s.labels, s.chunks)).collect();
        prop_assert_eq!(&all, &content);
        let chunks = || content.values().flatten();
        prop_assert_eq!(meta.stats.num_series, content.len() as u64);
        prop_assert_eq!(meta.stats.num_chunks, chunks().count() as u64);
        prop_assert_eq!(meta.stats.num_samples, chunks().map(|c| u64::from(c.num_samples())).sum::<u64>());

        let range = QueryRange { min, max: min + len };
        let matchers = [
            Matcher::new(MatchOp::NotEqual, "a", value.clone()).unwrap(),
            Matcher::new(MatchOp::Regex, "b", format!("{value}.*|")).unwrap(),
        ];
        let of = |labels: &Labels, name: &str| labels.get(name).unwrap_or_default().to_owned();
        let matching = |labels: &Labels| matchers.iter().all(|m| m.matches(&of(labels, m.name())));
        let expected: Vec<Labels> = content
            .iter()
            .filter(|(labels, chunks)| {
                matching(labels) && chunks.iter().any(|c| c.min_time <= range.max && range.min <= c.max_time)
            })
            .map(|(labels, _)| labels.clone())
            .collect();
        let found: Vec<Labels> = read(&block, &matchers, range).into_iter().map(|s| s.labels).collect();
        prop_assert_eq!(found, expected);

        let selector = [matchers.to_vec()];
        let series: Vec<Labels> = content.keys().filter(|l| matching(l)).cloned().collect();
        prop_assert_eq!(&block.series(&selector).unwrap(), &series);
        let sorted = |mut texts: Vec<String>| { texts.sort(); texts.dedup(); texts };
        let names = |series: &mut dyn Iterator<Item = &Labels>| {
            sorted(series.flat_map(|l| l.iter().map(|(n, _)| n.to_owned())).collect())
        };
        prop_assert_eq!(block.label_names(&selector).unwrap(), names(&mut series.iter()));
        prop_assert_eq!(block.label_names(&[]).unwrap(), names(&mut content.keys()));
        let values = |series: &mut dyn Iterator<Item = &Labels>| {
            sorted(series.filter_map(|l| l.get("a").map(str::to_owned)).collect())
        };
        prop_assert_eq!(block.label_values("a", &selector).unwrap(), values(&mut series.iter()));
        prop_assert_eq!(block.label_values("a", &[]).unwrap(), values(&mut content.keys()));
    }
}
