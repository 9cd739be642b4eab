//! Cuts plans by series: an aggregation over the series of one select becomes one over each shard of them, and a
//! [`Op::Combine`] that makes the partial results one.

use super::{Node, NodeId, Op, Plan, SeriesShard};
use crate::ast::ValueType;
use crate::eval::is_divisible;

impl Plan {
    /// The same query, its aggregations cut into `count` shards where that is possible: where each value aggregated
    /// comes of one series alone.
    #[must_use]
    pub fn sharded(&self, count: u32) -> Self {
        let mut sharded = Self { nodes: Vec::with_capacity(self.nodes.len()), ..self.clone() };
        sharded.nodes.clear();
        let uses = self.uses();
        let mut moved: Vec<NodeId> = Vec::with_capacity(self.nodes.len());
        for (id, node) in self.nodes.iter().enumerate() {
            let first = sharded.nodes.len() as NodeId;
            let new = match &node.op {
                Op::Aggregate { op, grouping, without }
                    if count > 1 && is_divisible(*op) && self.is_cuttable(node.inputs[0], &uses) =>
                {
                    let shards = (0..count).map(|index| {
                        let shard = SeriesShard { index, count };
                        let input = self.copy_shard(node.inputs[0], shard, &mut sharded.nodes);
                        sharded.nodes.push(Node { inputs: vec![input], ..node.clone() });
                        sharded.nodes.len() as NodeId - 1
                    });
                    let inputs: Vec<NodeId> = shards.collect();
                    let op = Op::Combine { op: *op, grouping: grouping.clone(), without: *without };
                    let input_spans = vec![node.input_spans[0]; inputs.len()];
                    sharded.nodes.push(Node { op, inputs, input_spans, ..node.clone() });
                    sharded.nodes.len() as NodeId - 1
                }
                _ => {
                    let inputs = node.inputs.iter().map(|input| moved[*input as usize]).collect();
                    sharded.nodes.push(Node { inputs, ..node.clone() });
                    first
                }
            };
            moved.push(new);
            debug_assert_eq!(moved.len(), id + 1);
        }
        sharded.root = moved[self.root as usize];
        sharded.without_unused()
    }

    /// Whether each series a node yields comes of one series of one select, whatever the others.
    fn is_cuttable(&self, id: NodeId, uses: &[u32]) -> bool {
        let node = self.node(id);
        if uses[id as usize] > 1 {
            return false;
        }
        let vectors = || node.inputs.iter().filter(|id| self.is_of_series(**id));
        match &node.op {
            Op::Select { .. } | Op::RangeSelect { .. } => true,
            Op::Negate | Op::Repeat => vectors().all(|id| self.is_cuttable(*id, uses)),
            // Scalars are evaluated once per shard, which must be cheap.
            Op::Binary { matching: None, .. } => self.inputs_are_cuttable(node, uses),
            Op::Call(function) => {
                let alone = !matches!(
                    function.name,
                    "vector"
                        | "histogram_quantile"
                        | "histogram_quantiles"
                        | "histogram_fraction"
                        | "label_replace"
                        | "label_join"
                        | "sort"
                        | "sort_desc"
                        | "sort_by_label"
                        | "sort_by_label_desc"
                );
                alone && node.value_type == ValueType::Vector && self.inputs_are_cuttable(node, uses)
            }
            // The check for equal labels needs all series; a subquery may hold anything.
            _ => false,
        }
    }

    fn is_of_series(&self, id: NodeId) -> bool {
        matches!(self.node(id).value_type, ValueType::Vector | ValueType::Matrix)
    }

    fn inputs_are_cuttable(&self, node: &Node, uses: &[u32]) -> bool {
        node.inputs
            .iter()
            .all(|id| if self.is_of_series(*id) { self.is_cuttable(*id, uses) } else { self.is_plain_scalar(*id) })
    }

    /// Whether a scalar needs no series.
    fn is_plain_scalar(&self, id: NodeId) -> bool {
        let node = self.node(id);
        !self.is_of_series(id) && node.inputs.iter().all(|id| self.is_plain_scalar(*id))
    }

    /// Copies a node and its inputs, their selects reduced to a shard.
    fn copy_shard(&self, id: NodeId, shard: SeriesShard, nodes: &mut Vec<Node>) -> NodeId {
        let node = self.node(id);
        let inputs = node.inputs.iter().map(|input| self.copy_shard(*input, shard, nodes)).collect();
        let mut copy = Node { inputs, ..node.clone() };
        if let Op::Select { selector, .. } | Op::RangeSelect { selector, .. } = &mut copy.op {
            selector.shard = Some(shard);
        }
        nodes.push(copy);
        nodes.len() as NodeId - 1
    }

    /// The part of the plan that a node needs, that node the root: a plan of its own.
    #[must_use]
    pub fn fragment(&self, root: NodeId) -> Self {
        Self { root, ..self.clone() }.without_unused()
    }

    /// Whether the plan needs no series once its shards are evaluated elsewhere, and has shards.
    pub fn needs_only_fragments(&self) -> bool {
        let mut needed = vec![false; self.nodes.len()];
        needed[self.root as usize] = true;
        let mut has_shards = false;
        for (id, node) in self.nodes.iter().enumerate().rev() {
            if !needed[id] {
                continue;
            }
            match node.op {
                Op::Combine { .. } => has_shards = true,
                Op::Select { .. } | Op::RangeSelect { .. } => return false,
                _ => node.inputs.iter().for_each(|input| needed[*input as usize] = true),
            }
        }
        has_shards
    }

    /// The nodes that a node needs, itself among them, in order: those of [`Plan::fragment`].
    pub(crate) fn needed_by(&self, root: NodeId) -> Vec<NodeId> {
        let needed = self.needed(root);
        (0..self.nodes.len() as NodeId).filter(|id| needed[*id as usize]).collect()
    }

    fn needed(&self, root: NodeId) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        needed[root as usize] = true;
        for (id, node) in self.nodes.iter().enumerate().rev() {
            if needed[id] {
                node.inputs.iter().for_each(|input| needed[*input as usize] = true);
            }
        }
        needed
    }

    /// Without the nodes that the root does not need.
    fn without_unused(self) -> Self {
        let needed = self.needed(self.root);
        let mut moved = vec![0; self.nodes.len()];
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for (id, node) in self.nodes.into_iter().enumerate().filter(|(id, _)| needed[*id]) {
            moved[id] = nodes.len() as NodeId;
            let inputs = node.inputs.iter().map(|input| moved[*input as usize]).collect();
            nodes.push(Node { inputs, ..node });
        }
        Self { nodes, root: moved[self.root as usize], ..self }
    }
}
