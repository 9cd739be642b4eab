//! `skald tsdb list`: the blocks and what they say about themselves.

use serde_json::json;

use super::{Tool, ToolError, table};
use crate::settings::format_duration;

impl Tool<'_> {
    pub(super) async fn list(&mut self) -> Result<bool, ToolError> {
        let header = ["TENANT", "BLOCK", "FROM", "UNTIL", "LENGTH", "SERIES", "SAMPLES", "CHUNKS", "SIZE", "LEVEL"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        let mut all_sound = true;
        for block in self.blocks.clone() {
            let tenant = block.tenant.as_ref().map(|tenant| tenant.as_str().to_owned());
            let meta = match self.place.meta(&block).await {
                Ok(meta) => meta,
                Err(error) => {
                    all_sound = false;
                    if self.is_json() {
                        self.print_json(&json!({
                            "tenant": tenant, "ulid": block.ulid.to_string(), "error": error.to_string(),
                        }))?;
                    } else {
                        eprintln!("skald: {error}");
                    }
                    continue;
                }
            };
            let files = meta.thanos.iter().flat_map(|thanos| &thanos.files);
            let size: u64 = match files.map(|file| file.size_bytes).sum() {
                0 => self.place.local_size(&block)?,
                size => size,
            };
            if self.is_json() {
                self.print_json(&json!({
                    "tenant": tenant, "ulid": block.ulid.to_string(), "minTime": meta.min_time, "maxTime": meta.max_time,
                    "stats": meta.stats, "compaction": meta.compaction, "bytes": size,
                    "labels": meta.thanos.as_ref().map(|thanos| &thanos.labels),
                }))?;
                continue;
            }
            let length = u64::try_from(meta.max_time.saturating_sub(meta.min_time)).unwrap_or(0);
            rows.push(vec![
                tenant.unwrap_or_else(|| "-".to_owned()),
                block.ulid.to_string(),
                table::time(meta.min_time),
                table::time(meta.max_time),
                format_duration(std::time::Duration::from_millis(length)),
                meta.stats.num_series.to_string(),
                meta.stats.num_samples.to_string(),
                meta.stats.num_chunks.to_string(),
                table::bytes(size),
                meta.compaction.level.to_string(),
            ]);
        }
        if !self.is_json() {
            table::write(self.out, &rows)?;
        }
        Ok(all_sound)
    }
}
