//! Whether a plan that came from elsewhere can be run.

use super::{Node, NodeId, Op, Plan};
use crate::ast::{AggregateOp, BinaryOp, ValueType};
use crate::eval::EvalError;

/// Most steps of the query or of one subquery.
pub(crate) const MAX_STEPS: usize = 100_000_000;
/// Deepest chain of nodes: what the planner makes of the deepest expression it takes.
const MAX_DEPTH: u32 = 4 * super::planner::MAX_DEPTH as u32;
/// Most nodes: several times what the parser allows.
pub const MAX_NODES: usize = 400_000;

impl Plan {
    /// Refuses what [`Plan::of`] would not have made and what could not be run: unknown inputs, wrong types, depths that
    /// would exhaust a stack.
    pub fn check(&self) -> Result<(), EvalError> {
        if self.nodes.len() > MAX_NODES {
            return Err(refuse(format!("it has {} nodes, more than {MAX_NODES}", self.nodes.len())));
        }
        if self.root as usize >= self.nodes.len() {
            return Err(refuse("its root is missing".to_owned()));
        }
        let mut depths: Vec<u32> = Vec::with_capacity(self.nodes.len());
        for (id, node) in self.nodes.iter().enumerate() {
            let mut inputs = node.inputs.iter().map(|input| depths.get(*input as usize).copied());
            let depth = inputs.try_fold(0, |deepest, depth| depth.map(|depth| u32::max(deepest, depth)));
            let depth = depth.ok_or_else(|| refuse(format!("an input of node {id} does not stand before it")))?;
            if depth >= MAX_DEPTH {
                return Err(refuse("it is nested too deeply".to_owned()));
            }
            depths.push(depth + 1);
            self.check_node(id as NodeId, node)?;
        }
        let shared = self
            .uses()
            .into_iter()
            .zip(&self.nodes)
            .any(|(uses, node)| uses > 1 && node.value_type != ValueType::Vector);
        if shared {
            return Err(refuse("something that is not a vector is used twice".to_owned()));
        }
        Ok(())
    }

    fn check_node(&self, id: NodeId, node: &Node) -> Result<(), EvalError> {
        if node.grid.count > MAX_STEPS || node.counted_steps() > MAX_STEPS {
            return Err(EvalError::TooManySamples);
        }
        let grids = node.inputs.iter().all(|input| {
            let input = self.node(*input);
            match node.op {
                Op::Repeat => input.grid.count == 1,
                Op::Subquery { .. } => true,
                _ => input.grid == node.grid || matches!(input.op, Op::Text(_) | Op::Number(_)),
            }
        });
        let times = node.grid.step >= 0 && (node.grid.step > 0 || node.grid.count <= 1);
        let spans = node.input_spans.len() == node.inputs.len();
        if grids && times && spans && self.types_fit(node) {
            return Ok(());
        }
        Err(refuse(format!("its node {id} does not fit its inputs")))
    }

    fn types_fit(&self, node: &Node) -> bool {
        use ValueType as T;
        let inputs: Vec<T> = node.inputs.iter().map(|id| self.node(*id).value_type).collect();
        match (&node.op, &inputs[..], node.value_type) {
            (Op::Number(_) | Op::Time, [], T::Scalar) => true,
            (Op::Text(_), [], T::String) => true,
            (Op::Select { .. }, [], T::Vector) | (Op::RangeSelect { .. }, [], T::Matrix) => true,
            (Op::Subquery { .. }, [T::Vector], T::Matrix) => true,
            (Op::Repeat | Op::Disjoint | Op::Unique | Op::Merge, [T::Vector], T::Vector) => true,
            (Op::Negate, [input @ (T::Scalar | T::Vector)], output) => *input == output,
            (Op::Absent(_), [T::Vector | T::Matrix], T::Vector) => true,
            (Op::Info(_), [T::Vector, T::Vector], T::Vector) => {
                matches!(self.node(node.inputs[1]).op, Op::Select { .. })
            }
            (Op::Aggregate { op: AggregateOp::CountValues, .. }, [T::Vector, T::String], T::Vector) => true,
            (Op::Aggregate { op, .. }, [T::Vector, T::Scalar], T::Vector) => takes_scalar(*op),
            (Op::Aggregate { op, .. }, [T::Vector], T::Vector) => !takes_scalar(*op) && *op != AggregateOp::CountValues,
            (Op::Combine { op, grouping, without }, [T::Vector, ..], T::Vector) => {
                let same = Op::Aggregate { op: *op, grouping: grouping.clone(), without: *without };
                node.inputs.iter().all(|id| self.node(*id).op == same && self.node(*id).inputs.len() == 1)
            }
            (Op::Binary { op, matching, .. }, [T::Vector, T::Vector], T::Vector) => {
                let sets = matches!(op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless);
                matching.is_some() || sets
            }
            (Op::Binary { op, .. }, [lhs, rhs], output) => {
                let sets = matches!(op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless);
                let widest = if [lhs, rhs].contains(&&T::Vector) { T::Vector } else { T::Scalar };
                let sides = [lhs, rhs].iter().all(|side| matches!(side, T::Scalar | T::Vector));
                !sets && sides && widest == output
            }
            (Op::Call(function), inputs, output) => {
                let count = (function.min_args()..=function.max_args().unwrap_or(usize::MAX)).contains(&inputs.len());
                let types = inputs.iter().enumerate().all(|(i, input)| function.arg_type(i) == Some(*input));
                count && types && function.return_type == output && !inputs.is_empty()
            }
            _ => false,
        }
    }
}

fn takes_scalar(op: AggregateOp) -> bool {
    use AggregateOp as A;
    matches!(op, A::Topk | A::Bottomk | A::Limitk | A::LimitRatio | A::Quantile)
}

fn refuse(why: String) -> EvalError {
    EvalError::BadData(format!("the plan cannot be run: {why}"))
}
