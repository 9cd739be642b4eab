//! `skald tsdb repair`: saves what is readable of a damaged block.
//!
//! A block that is intact is left alone. With `--write`, the new block is complete before the old one goes: a crash leaves
//! both, and equal samples of two blocks count once. The data directory of a running process is not written to.

use std::path::{Path, PathBuf};

use serde_json::json;
use skald_tsdb::block::{BlockMeta, SalvageReport, salvage_block, verify_block};

use super::place::{FoundBlock, Place, at_path, key};
use super::{Tool, ToolError, of_block, open_at, table};
use crate::bucket::index::DeletionMarkFile;
use crate::bucket::layout::DELETION_MARK_FILE;
use crate::bucket::upload::upload_block;
use crate::bucket::{Condition, TenantBucket};
use crate::data_dir::DataDir;

/// What bucket tools show as the new block's writer.
const SOURCE: &str = "repair";

impl Tool<'_> {
    pub(super) async fn repair(&mut self) -> Result<bool, ToolError> {
        let mut all_saved = true;
        let _alone = match &self.place {
            Place::Directory { root, .. } if self.options.write => DataDir::lock_around(root)?,
            _ => None,
        };
        for block in self.blocks.clone() {
            let copy = self.place.bring(&block, &self.options).await?;
            let progress = self.progress(&block, "verify");
            let verified = verify_block(self.disk.as_ref(), &copy.dir, &mut |done, total| progress.update(done, total));
            drop(progress);
            if verified.is_intact() {
                self.print_outcome(&block, None, None)?;
                continue;
            }
            // Written beside the damaged one, or, of a bucket, beside the copy.
            let into = self.options.write.then(|| copy.dir.parent().map_or_else(PathBuf::new, Path::to_path_buf));
            let ulid = self.rng.ulid(self.clock.now_ms());
            let progress = self.progress(&block, "repair");
            let salvaged = salvage_block(&self.disk, &copy.dir, into.as_deref(), ulid, &mut |done, total| {
                progress.update(done, total);
            });
            drop(progress);
            match salvaged.map_err(of_block(&block)) {
                Ok(report) => {
                    if let (Some(into), Some(written)) = (&into, &report.written) {
                        self.replace(&block, &copy.dir, into, written).await?;
                    }
                    all_saved &= report.loss_count == 0;
                    self.print_outcome(&block, Some(&report), None)?;
                }
                Err(error) => {
                    all_saved = false;
                    self.print_outcome(&block, None, Some(&error))?;
                }
            }
        }
        Ok(all_saved)
    }

    /// Puts the new block in the place of the damaged one.
    async fn replace(&self, block: &FoundBlock, dir: &Path, into: &Path, written: &BlockMeta) -> Result<(), ToolError> {
        let new = into.join(written.ulid.to_string());
        match &self.place {
            Place::Directory { disk, .. } => {
                let kept = dir.with_file_name(format!("{}.damaged", block.ulid));
                disk.rename(dir, &kept).map_err(at_path(dir))?;
                disk.sync_dir(into).map_err(at_path(into))
            }
            Place::Bucket { root, disk, config, .. } => {
                let tenant = block.tenant.clone().ok_or_else(|| {
                    ToolError::Location(format!("{}: the folder of this block is no tenant's", block.ulid))
                })?;
                let whole = key(root, &block.path, "");
                let prefix = whole.strip_suffix(&format!("{tenant}/{}/", block.ulid)).unwrap_or_default();
                let bucket = open_at(config, prefix.trim_end_matches('/'), disk.as_ref())?;
                let of_tenant = TenantBucket::new(bucket.clone(), tenant);
                upload_block(disk, &self.pool, &new, &of_tenant, written, SOURCE).await?;
                let mark = DeletionMarkFile {
                    id: block.ulid,
                    version: 1,
                    details: format!("damaged; repaired as {}", written.ulid),
                    deletion_time: self.clock.now_ms().div_euclid(1000),
                };
                let mark: bytes::Bytes = serde_json::to_vec(&mark).map_err(std::io::Error::from)?.into();
                bucket.put(&of_tenant.block_key(block.ulid, DELETION_MARK_FILE), mark.clone(), Condition::None).await?;
                bucket.put(&of_tenant.deletion_mark_key(block.ulid), mark, Condition::None).await?;
                Ok(())
            }
        }
    }

    fn print_outcome(
        &mut self,
        block: &FoundBlock,
        report: Option<&SalvageReport>,
        error: Option<&ToolError>,
    ) -> Result<(), ToolError> {
        if self.is_json() {
            let losses = report.iter().flat_map(|report| &report.losses).map(|loss| {
                json!({
                    "file": loss.file.to_string(),
                    "series": loss.series.as_ref().map(ToString::to_string),
                    "minTime": loss.times.map(|(min, _)| min),
                    "maxTime": loss.times.map(|(_, max)| max),
                    "what": loss.what,
                })
            });
            return self.print_json(&json!({
                "tenant": block.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()),
                "ulid": block.ulid.to_string(),
                "intact": report.is_none() && error.is_none(),
                "error": error.map(ToString::to_string),
                "kept": report.map(|report| report.kept),
                "lossCount": report.map(|report| report.loss_count),
                "lostSamples": report.and_then(SalvageReport::lost_samples),
                "losses": losses.collect::<Vec<_>>(),
                "written": report.and_then(|report| report.written.as_ref()).map(|meta| meta.ulid.to_string()),
            }));
        }
        let name = block.name();
        let Some(report) = report else {
            let outcome =
                error.map_or("intact, left alone".to_owned(), |error| format!("nothing can be saved: {error}"));
            return Ok(writeln!(self.out, "{name}: {outcome}")?);
        };
        let kept = report.kept;
        let lost = match report.lost_samples() {
            Some(lost) => format!("{lost} samples"),
            None => "an unknown number of samples".to_owned(),
        };
        writeln!(
            self.out,
            "{name}: {} series with {} samples are readable; lost: {lost}",
            kept.num_series, kept.num_samples
        )?;
        for loss in &report.losses {
            let series = loss.series.as_ref().map(|series| format!("{series} ")).unwrap_or_default();
            let times = loss.times.map(|(min, max)| format!("{} to {}: ", table::time(min), table::time(max)));
            writeln!(self.out, "  {}: {series}{}{}", loss.file, times.unwrap_or_default(), loss.what)?;
        }
        let more = report.loss_count.saturating_sub(report.losses.len() as u64);
        if more > 0 {
            writeln!(self.out, "  and {more} more")?;
        }
        match (&report.written, self.options.write, &self.place) {
            (Some(new), _, Place::Directory { .. }) => {
                writeln!(self.out, "  written as {}; the damaged block is kept as {}.damaged", new.ulid, block.ulid)?;
            }
            (Some(new), _, Place::Bucket { .. }) => {
                writeln!(self.out, "  uploaded as {}; the damaged block is marked for deletion", new.ulid)?;
            }
            (None, true, _) => writeln!(self.out, "  nothing is left to write; the block stays as it is")?,
            (None, false, _) => writeln!(self.out, "  nothing was changed; `--write` puts a new block in its place")?,
        }
        Ok(())
    }
}
