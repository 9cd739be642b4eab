//! What a start could not bring back, as exactly as what is left tells.

use skald_model::QueryRange;

use super::{FrameInfo, HeadId, Held, RecoveryReport, SegmentId};

/// Something acknowledged that may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// What it was.
    pub part: LostPart,
    /// Whose it was; `None` when nobody can tell.
    pub head: Option<HeadId>,
    /// Bytes it took in its file, as far as they are there.
    pub bytes: u64,
    /// At most so many series; `None` is unknown.
    pub series: Option<u64>,
    /// At most so many samples; `None` is unknown.
    pub samples: Option<u64>,
    /// Its samples' times; `None` is unknown, or that there are no samples.
    pub times: Option<QueryRange>,
}

/// What was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostPart {
    /// A damaged place of the log.
    Record {
        /// Its segment.
        segment: SegmentId,
        /// Where in the segment's file.
        offset: u64,
    },
    /// The end of a segment, where no record stands: an append that was interrupted, most of the time, and not
    /// acknowledged then.
    Tail {
        /// Its segment.
        segment: SegmentId,
        /// Where in the segment's file.
        offset: u64,
    },
    /// A segment of the log that is not there, or cannot be read.
    Segment(SegmentId),
    /// A damaged record of a snapshot, or its end, which nothing else has.
    Snapshot(SegmentId),
    /// Samples whose series' definitions were lost.
    Undefined,
    /// Records whose head is unknown, or that make no sense.
    Orphans,
}

impl Loss {
    /// Nothing is known but the place and the size.
    fn unknown(part: LostPart, bytes: u64) -> Self {
        Self { part, head: None, bytes, series: None, samples: None, times: None }
    }

    fn held(part: LostPart, head: HeadId, bytes: u64, held: Held) -> Self {
        let times = QueryRange { min: held.min_time, max: held.max_time };
        let times = (held.samples > 0).then_some(times);
        Self { part, head: Some(head), bytes, series: Some(held.series), samples: Some(held.samples), times }
    }

    fn of_record(part: LostPart, bytes: u64, record: Option<FrameInfo>) -> Self {
        let Some(FrameInfo { kind, head, held }) = record else { return Self::unknown(part, bytes) };
        let has_samples = kind.has_samples();
        match held {
            Some(held) => Self::held(part, head, bytes, held),
            // The first version's headers did not tell; other kinds have no samples.
            None if has_samples => Self { head: Some(head), ..Self::unknown(part, bytes) },
            None => Self::held(part, head, bytes, Held::NOTHING),
        }
    }

    /// Whether a sample of a head at this time may be part of it.
    pub fn may_hold(&self, head: HeadId, time: i64) -> bool {
        let of_head = self.head.is_none_or(|of| of == head);
        let at_time = match (self.times, self.samples) {
            (Some(times), _) => times.contains(time),
            (None, samples) => samples != Some(0),
        };
        of_head && at_time
    }
}

impl RecoveryReport {
    /// What may be missing, part by part. Closed chunks are not in it: the heads know what they lack.
    pub fn losses(&self) -> Vec<Loss> {
        let mut losses = Vec::new();
        let mut named_bytes = 0;
        for damage in &self.damaged {
            named_bytes += damage.len;
            let part = LostPart::Record { segment: damage.segment, offset: damage.offset };
            losses.push(Loss::of_record(part, damage.len, damage.record));
        }
        if let Some(last) = self.damaged.last().filter(|_| named_bytes < self.damaged_bytes) {
            let part = LostPart::Record { segment: last.segment, offset: last.offset + last.len };
            losses.push(Loss::unknown(part, self.damaged_bytes - named_bytes));
        }
        for tail in &self.torn_tails {
            losses.push(Loss::unknown(LostPart::Tail { segment: tail.segment, offset: tail.offset }, tail.len));
        }
        let unreadable = self.unreadable.iter().map(|(segment, _)| segment);
        let gone = self.missing_segments.iter().chain(unreadable);
        losses.extend(gone.map(|segment| Loss::unknown(LostPart::Segment(*segment), 0)));
        for snapshot in self.snapshots.iter().filter(|snapshot| !snapshot.supplied) {
            let part = LostPart::Snapshot(snapshot.segment);
            let held = snapshot.damaged_records.iter().filter(|(_, held)| *held != Held::NOTHING);
            losses.extend(held.map(|(head, held)| Loss::held(part, *head, 0, *held)));
            if snapshot.incomplete {
                losses.push(Loss::unknown(part, snapshot.damaged.iter().map(|(_, len)| len).sum()));
            }
        }
        for (head, held) in &self.undefined {
            losses.push(Loss { series: None, ..Loss::held(LostPart::Undefined, *head, 0, *held) });
        }
        if self.orphan_records > 0 {
            losses.push(Loss::unknown(LostPart::Orphans, 0));
        }
        losses
    }
}
