//! `skald tsdb verify`: every checksum, every sample, and whether a block's parts agree.

use serde_json::json;
use skald_tsdb::block::verify_block;

use super::{Tool, ToolError};

impl Tool<'_> {
    pub(super) async fn verify(&mut self) -> Result<bool, ToolError> {
        let mut damaged = 0;
        for block in self.blocks.clone() {
            let copy = self.place.bring(&block, &self.options).await?;
            let progress = self.progress(&block, "verify");
            let report = verify_block(self.disk.as_ref(), &copy.dir, &mut |done, total| progress.update(done, total));
            drop(progress);
            damaged += usize::from(!report.is_intact());
            if self.is_json() {
                let problems = report.problems.iter().map(|problem| {
                    json!({
                        "file": problem.file.to_string(),
                        "series": problem.series.as_ref().map(ToString::to_string),
                        "what": problem.what,
                    })
                });
                self.print_json(&json!({
                    "tenant": block.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()),
                    "ulid": block.ulid.to_string(),
                    "intact": report.is_intact(),
                    "counted": report.counted,
                    "problemCount": report.problem_count,
                    "problems": problems.collect::<Vec<_>>(),
                }))?;
                continue;
            }
            let counted = report.counted;
            if report.is_intact() {
                let (series, samples) = (counted.num_series, counted.num_samples);
                writeln!(self.out, "{}: intact, {series} series, {samples} samples", block.name())?;
                continue;
            }
            writeln!(self.out, "{}: {} problems", block.name(), report.problem_count)?;
            for problem in &report.problems {
                writeln!(self.out, "  {problem}")?;
            }
            let more = report.problem_count.saturating_sub(report.problems.len() as u64);
            if more > 0 {
                writeln!(self.out, "  and {more} more")?;
            }
            writeln!(self.out, "  `skald tsdb repair` shows what can be saved")?;
        }
        if !self.is_json() && self.blocks.len() > 1 {
            writeln!(self.out, "{} blocks, {damaged} damaged", self.blocks.len())?;
        }
        Ok(damaged == 0)
    }
}
