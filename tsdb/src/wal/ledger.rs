//! Which heads there are, and which segment still holds samples of theirs.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use skald_model::TimestampMs;
use skald_model::varint::{put_uvarint, put_varint};

use super::frame::{FrameKind, put_frame};
use super::snapshot::{KEPT, Keep};
use super::{Cut, Generation, HeadId, HeadState, SegmentId, Snapshot};

/// A commit's effect on the ledger, applied when its group was written.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) head: HeadId,
    /// Newest sample and its generation.
    pub(super) newest: Option<(Generation, TimestampMs)>,
    pub(super) definition_bytes: usize,
    pub(super) change: Option<Change>,
}

/// A change of a head's state.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Defined(HeadState),
    Dropped,
    CutBegun(Cut),
    CutDone(Cut),
}

#[derive(Default)]
pub(super) struct Ledger {
    heads: BTreeMap<HeadId, HeadState>,
    /// Heads that are gone, and the segment in which they went: as long as they may stand in some segment or snapshot,
    /// replay must not bring them back.
    dropped: BTreeMap<HeadId, SegmentId>,
    segments: BTreeMap<SegmentId, Holdings>,
    /// The complete snapshots, ascending.
    pub(super) snapshots: Vec<Snapshot>,
    /// What keeps the files they refer to.
    pub(super) keeps: BTreeMap<SegmentId, Keep>,
    /// Where the log begins: snapshots make what was before superfluous. Zero while they never did.
    begins: SegmentId,
    next_head: u32,
}

#[derive(Default)]
struct Holdings {
    bytes: u64,
    /// Nobody has read what it holds, because a snapshot made that unnecessary.
    unread: bool,
    /// Per head and generation the newest sample; a head has few generations in a segment.
    newest: HashMap<HeadId, Vec<(Generation, TimestampMs)>, foldhash::fast::FixedState>,
}

impl Ledger {
    pub(super) fn new_head(&mut self) -> HeadId {
        self.next_head += 1;
        HeadId(self.next_head)
    }

    /// Makes sure that `head` is not given out again.
    pub(super) fn reserve(&mut self, head: HeadId) {
        self.next_head = self.next_head.max(head.0);
    }

    pub(super) fn generation(&self, head: HeadId) -> Generation {
        self.heads.get(&head).map_or(Generation(0), |state| state.generation)
    }

    pub(super) fn heads(&self) -> Vec<(HeadId, HeadState)> {
        self.heads.iter().map(|(head, state)| (*head, state.clone())).collect()
    }

    /// Takes a head's state over from a log that is read back; the newer of two states wins part by part.
    pub(super) fn restore(&mut self, head: HeadId, state: &HeadState) {
        self.reserve(head);
        if self.dropped.contains_key(&head) {
            return;
        }
        let known = self.heads.entry(head).or_insert_with(|| state.clone());
        if known.definition.is_empty() {
            known.definition.clone_from(&state.definition);
        }
        known.generation = known.generation.max(state.generation);
        known.boundary = known.boundary.max(state.boundary);
        if state.done.generation > known.done.generation {
            known.done = state.done;
        }
    }

    pub(super) fn apply(&mut self, segment: SegmentId, entry: &Entry) {
        if let Some((generation, newest)) = entry.newest {
            self.hold(segment, entry.head, generation, newest);
        }
        match &entry.change {
            None => {}
            Some(Change::Defined(state)) => self.restore(entry.head, state),
            Some(Change::Dropped) => self.apply_dropped(entry.head, segment),
            Some(Change::CutBegun(cut)) => self.apply_cut_begun(entry.head, *cut),
            Some(Change::CutDone(cut)) => self.apply_cut_done(entry.head, *cut),
        }
    }

    pub(super) fn apply_dropped(&mut self, head: HeadId, segment: SegmentId) {
        self.heads.remove(&head);
        self.reserve(head);
        if self.may_stand(head, segment) {
            self.dropped.insert(head, segment);
        }
    }

    /// Whether a head that went in `segment` may stand somewhere.
    fn may_stand(&self, head: HeadId, segment: SegmentId) -> bool {
        self.segments.values().any(|holdings| holdings.unread || holdings.newest.contains_key(&head))
            || self.snapshots.first().is_some_and(|oldest| oldest.segment <= segment)
    }

    pub(super) fn apply_cut_begun(&mut self, head: HeadId, cut: Cut) {
        if let Some(state) = self.heads.get_mut(&head) {
            state.generation = state.generation.max(cut.generation);
            state.boundary = state.boundary.max(cut.up_to);
        }
    }

    pub(super) fn apply_cut_done(&mut self, head: HeadId, cut: Cut) {
        if let Some(state) = self.heads.get_mut(&head)
            && cut.generation > state.done.generation
        {
            state.done = cut;
        }
    }

    pub(super) fn head(&self, head: HeadId) -> Option<&HeadState> {
        self.heads.get(&head)
    }

    pub(super) fn hold(&mut self, segment: SegmentId, head: HeadId, generation: Generation, newest: TimestampMs) {
        let of_head = self.segments.entry(segment).or_default().newest.entry(head).or_default();
        match of_head.iter_mut().find(|(g, _)| *g == generation) {
            Some((_, t)) => *t = newest.max(*t),
            None => of_head.push((generation, newest)),
        }
    }

    pub(super) fn set_bytes(&mut self, segment: SegmentId, bytes: u64) {
        self.segments.entry(segment).or_default().bytes = bytes;
    }

    /// Number of segments and their bytes.
    pub(super) fn totals(&self) -> (usize, u64) {
        (self.segments.len(), self.segments.values().map(|holdings| holdings.bytes).sum())
    }

    pub(super) fn forget(&mut self, segment: SegmentId) {
        self.segments.remove(&segment);
        let mut dropped = std::mem::take(&mut self.dropped);
        dropped.retain(|head, segment| self.may_stand(*head, *segment));
        self.dropped = dropped;
    }

    /// Notes a segment that is not read.
    pub(super) fn skip(&mut self, segment: SegmentId, bytes: u64) {
        let holdings = self.segments.entry(segment).or_default();
        (holdings.bytes, holdings.unread) = (bytes, true);
    }

    /// Bytes of the segments that the newest snapshot lacks.
    pub(super) fn bytes_since_snapshot(&self) -> u64 {
        let from = self.snapshots.last().map_or(SegmentId(0), |newest| newest.segment);
        self.segments.range(from..).map(|(_, holdings)| holdings.bytes).sum()
    }

    /// Of two snapshots the older makes the log before it superfluous: should the newer one be damaged, it and the log
    /// from there are as good.
    pub(super) fn let_log_begin(&mut self) {
        if let Some(older) = self.snapshots.len().checked_sub(KEPT) {
            self.begun_at(self.snapshots[older].segment);
        }
    }

    /// Takes over where the log begins from one that is read back.
    pub(super) fn begun_at(&mut self, segment: SegmentId) {
        self.begins = self.begins.max(segment);
    }

    /// Whether the log goes back to its first segment, but for what is in blocks.
    pub(super) fn is_from_the_start(&self) -> bool {
        self.begins == SegmentId(0)
    }

    /// Segments older than `current` that hold nothing anybody needs.
    pub(super) fn freeable(&self, current: SegmentId) -> Vec<SegmentId> {
        let needed = |(head, newest): (&HeadId, &Vec<(Generation, TimestampMs)>)| {
            self.heads
                .get(head)
                .is_some_and(|state| newest.iter().any(|(generation, t)| !state.done.covers(*generation, *t)))
        };
        let is_needed = |holdings: &Holdings| holdings.unread || holdings.newest.iter().any(needed);
        let older = self.segments.range(..current);
        let freeable = older.filter(|(segment, holdings)| **segment < self.begins || !is_needed(holdings));
        freeable.map(|(segment, _)| *segment).collect()
    }

    /// The frames a new segment starts with: everything needed to read it, and to skip what is in blocks.
    pub(super) fn prologue(&self, segment: SegmentId, out: &mut Vec<u8>) {
        for (head, state) in &self.heads {
            put_frame(out, segment, FrameKind::Head, false, *head, &encode_head(state));
        }
        for head in self.dropped.keys() {
            put_frame(out, segment, FrameKind::HeadDropped, false, *head, &[]);
        }
        self.put_segments(segment, out);
    }

    /// The record that lists the segments which exist, `current` included.
    pub(super) fn put_segments(&self, current: SegmentId, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        for id in self.segments.range(..current).map(|(id, _)| *id).chain([current]) {
            put_uvarint(&mut payload, id.0);
        }
        put_frame(out, current, FrameKind::Segments, false, HeadId(0), &payload);
        if !self.is_from_the_start() {
            payload.clear();
            put_uvarint(&mut payload, self.begins.0);
            put_frame(out, current, FrameKind::LogBegins, false, HeadId(0), &payload);
        }
    }
}

pub(super) fn encode_head(state: &HeadState) -> Vec<u8> {
    let mut payload = Vec::with_capacity(state.definition.len() + 24);
    put_uvarint(&mut payload, u64::from(state.generation.0));
    put_varint(&mut payload, state.boundary);
    put_uvarint(&mut payload, u64::from(state.done.generation.0));
    put_varint(&mut payload, state.done.up_to);
    payload.extend_from_slice(&state.definition);
    payload
}
