//! Plans aggregations.

use skald_model::METRIC_NAME;

use super::Planner;
use super::scalar::literal;
use crate::ast::{Aggregate, AggregateOp};
use crate::eval::aggregate;
use crate::eval::aggregate::fold::Fold;
use crate::eval::aggregate::gather::{CountValues, Quantile};
use crate::eval::aggregate::select::{LimitK, LimitRatio, TopK};
use crate::eval::error::EvalError;
use crate::eval::grid::Grid;
use crate::eval::group_index::{GroupIndex, LabelSubset};
use crate::eval::label_function::is_label_name;
use crate::eval::operator::{Operator, VectorPlan};

impl Planner<'_, '_, '_> {
    pub(super) fn aggregate(&mut self, aggregate: &Aggregate, grid: Grid) -> Result<VectorPlan, EvalError> {
        let op = aggregate.op;
        let child = self.vector(&aggregate.expr, grid, aggregate::name(op))?;
        let subset = if aggregate.without {
            LabelSubset::without(&aggregate.grouping)
        } else {
            LabelSubset::only(&aggregate.grouping)
        };
        let mut has_name = subset.has_name();
        let inner_span = aggregate.expr.span();
        let index = GroupIndex::new(subset.clone());
        let parameter = || {
            let text = format!("aggregation {:?} needs a parameter", aggregate::name(op));
            aggregate.param.as_deref().ok_or(EvalError::Internal(text))
        };
        let (steps, instant) = (grid.count, grid.count == 1);
        let operator: Box<dyn Operator> = match op {
            AggregateOp::Topk | AggregateOp::Bottomk => {
                let k = self.scalar(parameter()?, grid)?;
                let largest = op == AggregateOp::Topk;
                let charge = self.env.charge();
                Box::new(TopK::new(child.operator, index, k, largest, steps, inner_span, charge, instant))
            }
            AggregateOp::Limitk => {
                let k = self.scalar(parameter()?, grid)?;
                Box::new(LimitK::new(child.operator, index, k, steps, self.env.charge(), inner_span))
            }
            AggregateOp::LimitRatio => {
                let parameter = parameter()?;
                let (ratio, span) = (self.scalar(parameter, grid)?, parameter.span());
                Box::new(LimitRatio { child: child.operator, ratio, steps, span, checked: false })
            }
            AggregateOp::Quantile => {
                let parameter = parameter()?;
                let q = self.scalar(parameter, grid)?;
                Box::new(Quantile::new(child.operator, index, q, steps, parameter.span(), inner_span))
            }
            AggregateOp::CountValues => {
                let literal = literal(parameter()?)?;
                let label = literal.value.clone();
                if !is_label_name(&label) {
                    return Err(EvalError::Execution(format!("invalid label name {literal}")));
                }
                has_name |= label == METRIC_NAME;
                let subset = if aggregate.without {
                    subset
                } else {
                    let mut labels = aggregate.grouping.clone();
                    labels.push(label.clone());
                    LabelSubset::only(&labels)
                };
                let charge = self.env.charge();
                Box::new(CountValues::new(child.operator, subset, label, steps, inner_span, charge))
            }
            _ => Box::new(Fold::new(child.operator, op, index, steps, inner_span)),
        };
        let picks =
            matches!(op, AggregateOp::Topk | AggregateOp::Bottomk | AggregateOp::Limitk | AggregateOp::LimitRatio);
        if picks {
            return Ok(VectorPlan { operator, ..child });
        }
        Ok(VectorPlan { operator, unique_without_name: !has_name, split: false })
    }
}
