//! What the last start could not bring back: told in the log, in metrics and on `/ingester/losses`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use skald_model::QueryRange;
use skald_tsdb::head::LostChunks;
use skald_tsdb::wal::{HeadId, Loss, LostPart, RecoveryReport};

use super::Metrics;
use crate::tenant::TenantId;

/// One thing that may be missing. Counts are the most it can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TenantLoss {
    /// `None` is anybody.
    tenant: Option<String>,
    what: String,
    /// Bytes in the damaged place.
    bytes: u64,
    /// `None` is unknown, here and below.
    series: Option<u64>,
    samples: Option<u64>,
    times: Option<QueryRange>,
}

/// The names of the columns in which a loss is written.
pub(super) const COLUMNS: &str = "tenant\twhat\tseries\tsamples\tfirst_ms\tlast_ms\tbytes";

impl fmt::Display for TenantLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u64>| number.map_or_else(|| "unknown".to_owned(), |number| number.to_string());
        let time = |time: Option<i64>| match time {
            Some(time) => time.to_string(),
            None if self.samples == Some(0) => "-".to_owned(),
            None => "unknown".to_owned(),
        };
        let tenant = self.tenant.as_deref().unwrap_or("unknown");
        let (first, last) = (time(self.times.map(|times| times.min)), time(self.times.map(|times| times.max)));
        let (series, samples) = (number(self.series), number(self.samples));
        write!(f, "{tenant}\t{}\t{series}\t{samples}\t{first}\t{last}\t{}", self.what, self.bytes)
    }
}

/// Everything that snapshots, log and chunk files should have brought back and did not.
pub(super) fn losses(
    report: &RecoveryReport,
    chunks: &BTreeMap<HeadId, LostChunks>,
    owners: &HashMap<HeadId, TenantId>,
) -> Vec<TenantLoss> {
    let name = |head: HeadId| owners.get(&head).map_or_else(|| format!("head {}", head.0), TenantId::to_string);
    let of_log = report.losses().into_iter().map(|loss| {
        let Loss { part, head, bytes, series, samples, times } = loss;
        TenantLoss { tenant: head.map(name), what: describe(part), bytes, series, samples, times }
    });
    let of_chunks = chunks.iter().map(|(head, lost)| TenantLoss {
        tenant: Some(name(*head)),
        what: format!("{} damaged closed chunks", lost.chunks),
        bytes: lost.bytes,
        series: Some(lost.series),
        samples: Some(lost.samples),
        times: lost.times,
    });
    of_log.chain(of_chunks).collect()
}

fn describe(part: LostPart) -> String {
    match part {
        LostPart::Record { segment, offset } => format!("record of log segment {} at {offset}", segment.0),
        LostPart::Tail { segment, offset } => format!("end of log segment {} at {offset}", segment.0),
        LostPart::Segment(segment) => format!("log segment {}", segment.0),
        LostPart::Snapshot(segment) => format!("part of snapshot {}", segment.0),
        LostPart::Undefined => "samples whose definitions were lost".to_owned(),
        LostPart::Orphans => "records that make no sense".to_owned(),
    }
}

/// Says all of it in the process' log, and counts it. The end of a segment is what every crash leaves: an append that
/// nobody was told of.
pub(super) fn tell(losses: &[TenantLoss], metrics: &Metrics) {
    for loss in losses {
        let TenantLoss { tenant, what, bytes, series, samples, times } = loss;
        let tenant = tenant.as_deref().unwrap_or("unknown");
        if what.starts_with("end of") {
            tracing::info!(tenant, what, bytes, "an interrupted append was cut off");
            continue;
        }
        tracing::error!(tenant, what, bytes, ?series, ?samples, ?times, "acknowledged samples may be lost here");
        metrics.restart_lost_samples.inc_by(samples.unwrap_or(0));
        if samples.is_none() {
            metrics.restart_lost_bytes.inc_by(*bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_says_what_is_known() {
        let known = TenantLoss {
            tenant: Some("a".to_owned()),
            what: describe(LostPart::Record { segment: skald_tsdb::wal::SegmentId(3), offset: 20 }),
            bytes: 100,
            series: Some(2),
            samples: Some(5),
            times: Some(QueryRange { min: 10, max: 20 }),
        };
        assert_eq!(known.to_string(), "a\trecord of log segment 3 at 20\t2\t5\t10\t20\t100");
        let unknown = TenantLoss { tenant: None, series: None, samples: None, times: None, ..known };
        assert!(unknown.to_string().ends_with("\tunknown\tunknown\tunknown\tunknown\t100"), "{unknown}");
        assert_eq!(COLUMNS.matches('\t').count(), unknown.to_string().matches('\t').count());
    }
}
