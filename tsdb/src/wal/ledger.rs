//! Which heads there are, and which segment still holds samples of theirs.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;
use skald_model::TimestampMs;
use skald_model::varint::{put_uvarint, put_varint};

use super::frame::{FrameKind, put_frame};
use super::{Cut, Generation, HeadId, HeadState, SegmentId};

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
    /// Heads that are gone but still stand in some segment: replay must not bring them back.
    dropped: BTreeSet<HeadId>,
    segments: BTreeMap<SegmentId, Holdings>,
    next_head: u32,
}

#[derive(Default)]
struct Holdings {
    bytes: u64,
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
        if self.dropped.contains(&head) {
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
            Some(Change::Dropped) => self.apply_dropped(entry.head),
            Some(Change::CutBegun(cut)) => self.apply_cut_begun(entry.head, *cut),
            Some(Change::CutDone(cut)) => self.apply_cut_done(entry.head, *cut),
        }
    }

    pub(super) fn apply_dropped(&mut self, head: HeadId) {
        self.heads.remove(&head);
        self.reserve(head);
        if self.segments.values().any(|holdings| holdings.newest.contains_key(&head)) {
            self.dropped.insert(head);
        }
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
        let segments = &self.segments;
        self.dropped.retain(|head| segments.values().any(|holdings| holdings.newest.contains_key(head)));
    }

    /// Segments older than `current` that hold nothing anybody needs.
    pub(super) fn freeable(&self, current: SegmentId) -> Vec<SegmentId> {
        let needed = |(head, newest): (&HeadId, &Vec<(Generation, TimestampMs)>)| {
            self.heads
                .get(head)
                .is_some_and(|state| newest.iter().any(|(generation, t)| !state.done.covers(*generation, *t)))
        };
        let older = self.segments.range(..current);
        older.filter(|(_, holdings)| !holdings.newest.iter().any(needed)).map(|(segment, _)| *segment).collect()
    }

    /// The frames a new segment starts with: everything needed to read it, and to skip what is in blocks.
    pub(super) fn prologue(&self, segment: SegmentId, out: &mut Vec<u8>) {
        for (head, state) in &self.heads {
            put_frame(out, segment, FrameKind::Head, false, *head, &encode_head(state));
        }
        for head in &self.dropped {
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
