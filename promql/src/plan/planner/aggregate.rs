//! Plans aggregations.

use skald_model::METRIC_NAME;

use super::{Planned, Planner, without_parens};
use crate::ast::{Aggregate, AggregateOp, Expr, ValueType};
use crate::eval::{EvalError, aggregate_name, is_label_name};
use crate::plan::{Grid, NodeId, Op};

impl Planner<'_> {
    pub(super) fn aggregate(&mut self, aggregate: &Aggregate, grid: Grid) -> Result<Planned, EvalError> {
        let op = aggregate.op;
        let child = self.vector(&aggregate.expr, grid, aggregate_name(op))?;
        let mut inputs = vec![(child.id, aggregate.expr.span())];
        let mut has_name = !aggregate.without && aggregate.grouping.iter().any(|label| label == METRIC_NAME);
        if let Some(parameter) = &aggregate.param {
            let id = self.parameter(op, parameter, grid)?;
            if let Op::Text(label) = &self.plan.node(id).op {
                has_name |= label == METRIC_NAME;
            }
            inputs.push((id, parameter.span()));
        }
        let op = Op::Aggregate { op, grouping: aggregate.grouping.clone(), without: aggregate.without };
        let id = self.push(op, &inputs, grid, ValueType::Vector, aggregate.span);
        let picks = matches!(
            aggregate.op,
            AggregateOp::Topk | AggregateOp::Bottomk | AggregateOp::Limitk | AggregateOp::LimitRatio
        );
        if picks {
            return Ok(Planned { id, ..child });
        }
        Ok(Planned { id, unique_without_name: !has_name, split: false })
    }

    fn parameter(&mut self, op: AggregateOp, parameter: &Expr, grid: Grid) -> Result<NodeId, EvalError> {
        if op != AggregateOp::CountValues {
            return self.scalar(parameter, grid);
        }
        if let Expr::String(literal) = without_parens(parameter)
            && !is_label_name(&literal.value)
        {
            return Err(EvalError::Execution(format!("invalid label name {literal}")));
        }
        self.string(parameter, grid)
    }
}
