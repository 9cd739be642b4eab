//! Finds parts of a query that are equal, so that they are computed once.
//!
//! Shared are aggregations, whose results are small, and the operands of operators between vectors, which keep a side of
//! their input anyway. What streams into an aggregation is read anew at each place: keeping it for the second place
//! would cost series × steps where the query needs groups × steps.

use std::hash::{BuildHasher, Hash, Hasher};
use std::mem::discriminant;

use hashbrown::HashMap;
use skald_model::Matcher;

use super::{Planned, Planner};
use crate::plan::{Counted, Node, NodeId, Op, Selector, TimeShift};

/// Numbers for nodes: equal ones compute the same, whatever their places in the query.
#[derive(Default)]
pub(super) struct Classes {
    hasher: foldhash::fast::RandomState,
    /// The class of each node; its number is the id of the first of its kind, or of one that was dropped since.
    of_node: Vec<NodeId>,
    /// What each node's class was looked up by.
    hashes: Vec<u64>,
    by_hash: HashMap<u64, Vec<NodeId>, foldhash::fast::RandomState>,
    /// Nodes that may be shared, by class.
    shared: HashMap<NodeId, Planned, foldhash::fast::RandomState>,
    /// How many places more than one each node stands for, if any.
    more_places: HashMap<NodeId, u32, foldhash::fast::RandomState>,
}

impl Classes {
    fn hash(&self, node: &Node) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hash_op(&node.op, &mut hasher);
        (node.grid.start, node.grid.step, node.grid.count).hash(&mut hasher);
        node.inputs.iter().for_each(|id| hasher.write_u32(self.of_node[*id as usize]));
        hasher.finish()
    }
}

/// What tells most operations apart; the rest is left to their comparison.
fn hash_op(op: &Op, hasher: &mut impl Hasher) {
    discriminant(op).hash(hasher);
    match op {
        Op::Number(number) => number.to_bits().hash(hasher),
        Op::Text(text) => text.hash(hasher),
        Op::Select { selector, yields, smoothed } => {
            (yields, smoothed).hash(hasher);
            hash_selector(selector, hasher);
        }
        Op::RangeSelect { selector, range_ms, edges } => {
            (range_ms, discriminant(edges)).hash(hasher);
            hash_selector(selector, hasher);
        }
        Op::Subquery { range_ms, shift, .. } => {
            range_ms.hash(hasher);
            hash_shift(*shift, hasher);
        }
        Op::Call(function) => function.name.hash(hasher),
        Op::Aggregate { op, grouping, without } | Op::Combine { op, grouping, without } => {
            (discriminant(op), grouping, without).hash(hasher);
        }
        Op::Binary { op, return_bool, matching, .. } => {
            (discriminant(op), return_bool).hash(hasher);
            matching.iter().for_each(|matching| matching.labels.hash(hasher));
        }
        Op::Info(matchers) => hash_matchers(matchers, hasher),
        Op::Time | Op::Repeat | Op::Negate | Op::Absent(_) | Op::Disjoint | Op::Unique | Op::Merge => {}
    }
}

fn hash_selector(selector: &Selector, hasher: &mut impl Hasher) {
    hash_matchers(&selector.matchers, hasher);
    hash_shift(selector.shift, hasher);
    (selector.range.min, selector.range.max, &selector.above).hash(hasher);
}

fn hash_matchers(matchers: &[Matcher], hasher: &mut impl Hasher) {
    for matcher in matchers {
        (discriminant(&matcher.op()), matcher.name(), matcher.value()).hash(hasher);
    }
}

fn hash_shift(shift: TimeShift, hasher: &mut impl Hasher) {
    (shift.at, shift.offset).hash(hasher);
}

impl Planner<'_> {
    /// Gives a new node, not yet among the nodes, its class.
    pub(super) fn classify(&mut self, node: &Node) {
        let hash = self.classes.hash(node);
        let nodes = &self.plan.nodes;
        let of_node = &self.classes.of_node;
        let classes = |node: &Node| node.inputs.iter().map(|id| of_node[*id as usize]).collect::<Vec<_>>();
        let equal = |other: &NodeId| {
            nodes
                .get(*other as usize)
                .is_some_and(|other| other.op == node.op && other.grid == node.grid && classes(other) == classes(node))
        };
        let known = self.classes.by_hash.entry(hash).or_default();
        let own = nodes.len() as NodeId;
        let class = known.iter().copied().find(equal);
        if class.is_none() {
            known.push(own);
        }
        self.classes.of_node.push(class.unwrap_or(own));
        self.classes.hashes.push(hash);
    }

    /// If the same as `planned`, whose nodes begin at `start`, is computed elsewhere already and may be shared, that
    /// takes its place.
    pub(super) fn share(&mut self, planned: Planned, start: usize) -> Planned {
        if !self.keeps_all {
            return planned;
        }
        let class = self.classes.of_node[planned.id as usize];
        let Some(&earlier) = self.classes.shared.get(&class) else {
            self.classes.shared.insert(class, planned);
            return planned;
        };
        if earlier.id != planned.id {
            self.note_twins(earlier.id, planned.id);
            self.forget_nodes(start);
        }
        earlier
    }

    /// Drops the nodes from `start` on: nothing outside uses them.
    fn forget_nodes(&mut self, start: usize) {
        let classes = &mut self.classes;
        for (id, hash) in classes.hashes.drain(start..).enumerate() {
            let id = (start + id) as NodeId;
            classes.more_places.remove(&id);
            let class = classes.of_node[id as usize];
            if classes.shared.get(&class).is_some_and(|shared| shared.id == id) {
                classes.shared.remove(&class);
            }
            // A class has the number of its first node: that number will be given to another.
            if class == id
                && let Some(ids) = classes.by_hash.get_mut(&hash)
            {
                ids.retain(|other| *other != id);
            }
        }
        classes.of_node.truncate(start);
        self.plan.nodes.truncate(start);
    }

    /// Has the samples of what is computed once count at every place, and puts the twins in order.
    pub(super) fn finish_sharing(&mut self) {
        for (id, more) in &self.classes.more_places {
            match self.plan.nodes[*id as usize].op.counted_mut() {
                Some(Counted::Step(times) | Counted::EveryStep(_, times)) => *times += more,
                Some(Counted::No) | None => {}
            }
        }
        self.plan.twins.sort_unstable_by_key(|(a, b)| (a.start, a.end, b.start, b.end));
        self.plan.twins.dedup();
    }

    /// What is said of `first` and its inputs will be said of `second`, which it replaces, and its samples count for
    /// both.
    fn note_twins(&mut self, first: NodeId, second: NodeId) {
        let mut pairs = vec![(first, second)];
        while let Some((a, b)) = pairs.pop() {
            if a == b {
                continue;
            }
            let (first, second) = (&self.plan.nodes[a as usize], &self.plan.nodes[b as usize]);
            let spans = std::iter::once((first.span, second.span));
            let inputs = first.input_spans.iter().copied().zip(second.input_spans.iter().copied());
            self.plan.twins.extend(spans.chain(inputs).filter(|(a, b)| a != b));
            pairs.extend(first.inputs.iter().copied().zip(second.inputs.iter().copied()));
            let places = 1 + self.classes.more_places.get(&b).copied().unwrap_or(0);
            *self.classes.more_places.entry(a).or_default() += places;
        }
    }
}

impl Op {
    fn counted_mut(&mut self) -> Option<&mut Counted> {
        match self {
            Self::Select { selector, .. } | Self::RangeSelect { selector, .. } => Some(&mut selector.counted),
            Self::Subquery { counted, .. } => Some(counted),
            _ => None,
        }
    }
}
