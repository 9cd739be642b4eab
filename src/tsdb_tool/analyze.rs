//! `skald tsdb analyze`: what a block's bytes and series are spent on.

use std::collections::BTreeMap;

use serde_json::json;
use skald_tsdb::block::{Analysis, Counted, analyze_block};

use super::place::FoundBlock;
use super::{Tool, ToolError, of_block, table};

impl Tool<'_> {
    pub(super) async fn analyze(&mut self) -> Result<bool, ToolError> {
        let mut all_sound = true;
        for block in self.blocks.clone() {
            let copy = self.place.bring(&block, &self.options).await?;
            let progress = self.progress(&block, "analyze");
            let analysis = analyze_block(self.disk.as_ref(), &copy.dir, self.options.top, &mut |done, total| {
                progress.update(done, total);
            });
            drop(progress);
            match analysis.map_err(of_block(&block)) {
                Ok(analysis) if self.is_json() => self.print_json(&as_json(&block, &analysis))?,
                Ok(analysis) => self.print_analysis(&block, &analysis)?,
                Err(error) => {
                    eprintln!("skald: {error}");
                    all_sound = false;
                }
            }
        }
        Ok(all_sound)
    }

    fn print_analysis(&mut self, block: &FoundBlock, analysis: &Analysis) -> Result<(), ToolError> {
        let out = &mut self.out;
        let per = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let chunk_bytes: u64 = analysis.chunks.values().map(|kind| kind.bytes).sum();
        let samples: u64 = analysis.chunks.values().map(|kind| kind.samples).sum();
        writeln!(out, "block {}", block.name())?;
        let (from, until) = (table::time(analysis.meta.min_time), table::time(analysis.meta.max_time));
        writeln!(out, "  {from} to {until}, level {}", analysis.meta.compaction.level)?;
        writeln!(
            out,
            "  {} series, {samples} samples ({:.1} a series), chunks {} ({:.2} bytes a sample), index {} ({:.0} bytes a series)",
            analysis.series,
            per(samples, analysis.series),
            table::bytes(chunk_bytes),
            per(chunk_bytes, samples),
            table::bytes(analysis.index_bytes),
            per(analysis.index_bytes, analysis.series),
        )?;
        writeln!(
            out,
            "  {} label names, {} label pairs, {} symbols, {} postings ({:.1} labels a series)",
            analysis.label_names,
            analysis.label_pairs,
            analysis.symbols,
            analysis.postings,
            per(analysis.postings, analysis.series),
        )?;
        let mut rows = vec![
            ["ENCODING", "CHUNKS", "SAMPLES", "BYTES", "SAMPLES/CHUNK", "BYTES/SAMPLE"].map(String::from).to_vec(),
        ];
        for (name, kind) in &analysis.chunks {
            rows.push(vec![
                name.to_string(),
                kind.chunks.to_string(),
                kind.samples.to_string(),
                kind.bytes.to_string(),
                format!("{:.1}", per(kind.samples, kind.chunks)),
                format!("{:.2}", per(kind.bytes, kind.samples)),
            ]);
        }
        writeln!(out)?;
        table::write(out, &rows)?;
        let mut rows = vec![vec!["SAMPLES IN A CHUNK".to_owned(), "CHUNKS".to_owned()]];
        for (class, &count) in analysis.chunks_by_samples.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (low, high) = ((1_u64 << class) / 2 + 1, 1_u64 << class);
            rows.push(vec![if low >= high { high.to_string() } else { format!("{low} to {high}") }, count.to_string()]);
        }
        writeln!(out)?;
        table::write(out, &rows)?;
        for (title, list) in lists(analysis) {
            writeln!(out, "\n{title}")?;
            let rows: Vec<_> = list.iter().map(|c| vec![c.count.to_string(), c.name.clone()]).collect();
            for row in rows {
                writeln!(out, "  {:>10}  {}", row[0], row[1])?;
            }
        }
        Ok(writeln!(out)?)
    }
}

fn lists(analysis: &Analysis) -> [(&'static str, &[Counted]); 4] {
    [
        ("Values by label name", &analysis.values_by_name),
        ("Bytes of values by label name", &analysis.bytes_by_name),
        ("Series by metric name", &analysis.series_by_metric),
        ("Series by label pair", &analysis.series_by_pair),
    ]
}

fn as_json(block: &FoundBlock, analysis: &Analysis) -> serde_json::Value {
    let list = |list: &[Counted]| -> Vec<serde_json::Value> {
        list.iter().map(|counted| json!({"name": counted.name, "count": counted.count})).collect()
    };
    let chunks: BTreeMap<_, _> = analysis
        .chunks
        .iter()
        .map(|(name, kind)| (*name, json!({"chunks": kind.chunks, "samples": kind.samples, "bytes": kind.bytes})))
        .collect();
    json!({
        "tenant": block.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()),
        "ulid": block.ulid.to_string(),
        "minTime": analysis.meta.min_time,
        "maxTime": analysis.meta.max_time,
        "indexBytes": analysis.index_bytes,
        "series": analysis.series,
        "symbols": analysis.symbols,
        "labelNames": analysis.label_names,
        "labelPairs": analysis.label_pairs,
        "postings": analysis.postings,
        "valuesByName": list(&analysis.values_by_name),
        "bytesByName": list(&analysis.bytes_by_name),
        "seriesByMetric": list(&analysis.series_by_metric),
        "seriesByPair": list(&analysis.series_by_pair),
        "chunks": chunks,
        "chunksBySamples": analysis.chunks_by_samples,
    })
}
