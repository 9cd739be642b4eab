//! Plans binary operators with a vector on at least one side.

use super::Planner;
use crate::ast::{Binary, BinaryOp, Cardinality, Expr, ValueType, VectorMatching};
use crate::eval::binary::arithmetic::{self, Operation, keeps_name};
use crate::eval::binary::set::SetOperator;
use crate::eval::binary::vector_scalar::VectorScalar;
use crate::eval::binary::vector_vector::VectorVector;
use crate::eval::error::EvalError;
use crate::eval::grid::Grid;
use crate::eval::group_index::{GroupIndex, LabelSubset};
use crate::eval::operator::VectorPlan;

impl Planner<'_, '_, '_> {
    pub(super) fn binary(&mut self, binary: &Binary, grid: Grid) -> Result<VectorPlan, EvalError> {
        match (binary.lhs.value_type(), binary.rhs.value_type()) {
            (ValueType::Scalar, _) => self.vector_scalar(binary, &binary.rhs, &binary.lhs, true, grid),
            (_, ValueType::Scalar) => self.vector_scalar(binary, &binary.lhs, &binary.rhs, false, grid),
            _ => self.vector_vector(binary, grid),
        }
    }

    fn vector_scalar(
        &mut self,
        binary: &Binary,
        vector: &Expr,
        scalar: &Expr,
        scalar_left: bool,
        grid: Grid,
    ) -> Result<VectorPlan, EvalError> {
        let child = self.vector_of_counts(false, vector, grid, "")?;
        let operation = Operation { op: binary.op, return_bool: binary.return_bool };
        let scalar = self.scalar(scalar, grid)?;
        let operator = VectorScalar { child: child.operator, scalar, operation, scalar_left, span: binary.span };
        let plan = VectorPlan { operator: Box::new(operator), ..child };
        let drops = !keeps_name(binary.op) || binary.return_bool;
        Ok(if drops { self.dropped_names(plan, binary.span) } else { plan })
    }

    fn vector_vector(&mut self, binary: &Binary, grid: Grid) -> Result<VectorPlan, EvalError> {
        let above = arithmetic::symbol(binary.op);
        let lhs = self.vector_of_counts(false, &binary.lhs, grid, above)?;
        let rhs = self.vector_of_counts(false, &binary.rhs, grid, above)?;
        let matching = binary.matching.clone().unwrap_or_else(|| VectorMatching {
            cardinality: Cardinality::OneToOne,
            labels: Vec::new(),
            on: false,
            include: Vec::new(),
            fill_left: None,
            fill_right: None,
        });
        let charge = self.env.charge();
        let sides = (lhs.operator, rhs.operator);
        if matches!(binary.op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless) {
            let subset =
                if matching.on { LabelSubset::only(&matching.labels) } else { LabelSubset::without(&matching.labels) };
            let index = GroupIndex::new(subset);
            let operator = SetOperator::new(sides, binary.op, index, grid.count, charge, binary.span);
            let (unique_without_name, split) = if binary.op == BinaryOp::Or {
                // Elements of the right side have another match key than every one of the left at that step, but two
                // series that never meet may have equal labels.
                (lhs.unique_without_name && rhs.unique_without_name, true)
            } else {
                (lhs.unique_without_name, lhs.split)
            };
            return Ok(VectorPlan { operator: Box::new(operator), unique_without_name, split });
        }
        let many = match matching.cardinality {
            Cardinality::OneToMany => (rhs.unique_without_name, rhs.split),
            _ => (lhs.unique_without_name, lhs.split),
        };
        let one_to_one = matching.cardinality == Cardinality::OneToOne;
        let keeps_labels = matching.include.is_empty();
        let filled = matching.fill_left.is_some() || matching.fill_right.is_some();
        let operation = Operation { op: binary.op, return_bool: binary.return_bool };
        let many_unique = many.0 && !many.1;
        let operator = VectorVector::new(sides, many_unique, operation, matching, grid.count, charge, binary.span);
        Ok(VectorPlan {
            operator: Box::new(operator),
            unique_without_name: one_to_one || (many.0 && keeps_labels && !filled),
            split: true,
        })
    }
}
