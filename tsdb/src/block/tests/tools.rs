//! Salvaging and analysing blocks.

use std::collections::BTreeMap;

use proptest::prelude::*;
use skald_model::{Columns, QueryRange};

use super::damage::{Harm, block, harm};
use super::*;
use crate::SeriesChunks;
use crate::decode::decode_series;

type Samples = BTreeMap<Labels, BTreeMap<i64, u64>>;

fn samples(series: &[SeriesChunks]) -> Samples {
    let of_series = |series: &SeriesChunks| {
        let mut columns = Columns::default();
        decode_series(&series.chunks, QueryRange::ALL, &mut columns).unwrap();
        let values = columns.float_values.iter().map(|value| value.to_bits());
        (series.labels.clone(), columns.float_timestamps.iter().copied().zip(values).collect())
    };
    series.iter().map(of_series).collect()
}

/// Salvages into `/new`; what the new block holds, which has to be a sound block.
fn salvage(disk: &Arc<dyn Disk>, dir: &Path) -> Result<(SalvageReport, Samples), BlockError> {
    let parent = Path::new("/new");
    disk.create_dir_all(parent).unwrap();
    let report = salvage_block(disk, dir, Some(parent), ulid(99), &mut |done, total| assert!(done <= total))?;
    let Some(written) = &report.written else { return Ok((report, Samples::new())) };
    let new = parent.join(written.ulid.to_string());
    let verified = verify_block(&**disk, &new, &mut |_, _| {});
    assert!(verified.is_intact(), "{:?}", verified.problems);
    assert_eq!(written.stats.num_samples, report.kept.num_samples);
    let opened = Arc::new(LocalBlock::open(&**disk, &new)?);
    let series: Vec<_> = opened.select(&[], QueryRange::ALL)?.collect::<Result<_, _>>()?;
    Ok((report, samples(&series)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn what_is_not_damaged_is_salvaged(file: prop::sample::Index, harm in harm()) {
        let (disk, dir, files, series) = block();
        let path = file.get(&files);
        let mut bytes = disk.read(path).unwrap();
        harm.apply(&mut bytes);
        disk.write_atomically(path, &bytes).unwrap();
        let original = samples(&series);
        let meta_is_gone = path.ends_with(META_FILE);
        let Ok((report, kept)) = salvage(&disk, &dir) else {
            // Nothing can be named without the symbols, the first section of the index.
            prop_assert!(path.ends_with(INDEX_FILE), "{path:?} {harm:?}");
            return Ok(());
        };
        for (labels, samples) in &kept {
            for sample in samples {
                prop_assert_eq!(original[labels].get(sample.0), Some(sample.1));
            }
        }
        // meta.json has no checksum: a damaged time range hides samples.
        if kept != original && !meta_is_gone {
            // A last entry that vanishes with the table of contents shows in the counts alone.
            let is_told = report.loss_count > 0 || report.lost_samples().is_some_and(|lost| lost > 0);
            prop_assert!(is_told, "{path:?} {harm:?}");
        }
        // A byte costs a chunk, an entry, or nothing; never more.
        if let (Harm::Flip(_), false) = (&harm, meta_is_gone) {
            let lost: usize = original.iter().filter(|(labels, samples)| kept.get(*labels) != Some(*samples)).count();
            prop_assert!(lost <= 1, "{path:?} {harm:?}: {lost}");
        }
    }
}

#[test]
fn a_sound_block_is_salvaged_whole_without_its_index_end_and_meta() {
    let (disk, dir, _, series) = block();
    let (report, kept) = salvage(&disk, &dir).unwrap();
    assert_eq!((report.loss_count, kept), (0, samples(&series)));
    assert_eq!(report.lost_samples(), Some(0));

    let (disk, dir, files, series) = block();
    let toc = Toc::parse(disk.read(&files[0]).unwrap().len() as u64, &disk.read(&files[0]).unwrap()).unwrap();
    let index = disk.read(&files[0]).unwrap();
    disk.write_atomically(&files[0], &index[..toc.postings as usize]).unwrap();
    disk.remove_file(&dir.join(META_FILE)).unwrap();
    let (report, kept) = salvage(&disk, &dir).unwrap();
    assert_eq!((report.loss_count, kept), (2, samples(&series)));
}

#[test]
fn analysis_counts_what_is_there() {
    let (disk, dir, files, series) = block();
    let analysis = analyze_block(&*disk, &dir, 3, &mut |done, total| assert!(done <= total)).unwrap();
    assert_eq!((analysis.series, analysis.label_names, analysis.label_pairs), (80, 2, 83));
    assert_eq!((analysis.postings, analysis.symbols), (160, 85));
    let counted = |count, name: &str| Counted { count, name: name.to_owned() };
    assert_eq!(analysis.values_by_name, [counted(80, "a"), counted(3, "b")]);
    assert_eq!(analysis.series_by_pair, [counted(27, "b=w0"), counted(27, "b=w1"), counted(26, "b=w2")]);
    let chunks = analysis.chunks["xor"];
    assert_eq!(chunks.chunks, series.iter().map(|series| series.chunks.len() as u64).sum::<u64>());
    assert_eq!(chunks.samples, analysis.meta.stats.num_samples);
    assert_eq!(analysis.chunks_by_samples.iter().sum::<u64>(), chunks.chunks);
    assert_eq!(analysis.index_bytes, disk.read(&files[0]).unwrap().len() as u64);
}

#[test]
fn chunks_of_more_samples_than_half_a_number_holds_are_counted() {
    let disk: Arc<dyn Disk> = Arc::new(crate::disk::MemDisk::default());
    let times: Vec<i64> = (0..40_000).collect();
    let data = crate::chunk::xor::encode(&times, &vec![1.0; times.len()]).into();
    let chunk = Chunk { min_time: 0, max_time: 39_999, encoding: Encoding::Xor, data };
    let content = Content::from([(Labels::from_pairs([("a", "b")]), vec![chunk])]);
    let meta = write(&disk, Path::new("/large"), new_block(3, 0, 40_000), &content, u64::MAX);
    let dir = Path::new("/large").join(meta.ulid.to_string());
    let analysis = analyze_block(&*disk, &dir, 3, &mut |_, _| ()).unwrap();
    assert_eq!((analysis.chunks["xor"].samples, analysis.chunks_by_samples.len()), (40_000, 17));
}
