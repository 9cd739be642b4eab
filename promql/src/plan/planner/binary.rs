//! Plans binary operators with a vector on at least one side.

use skald_model::METRIC_NAME;

use super::{Planned, Planner};
use crate::ast::{Binary, BinaryOp, Cardinality, Expr, ValueType, VectorMatching};
use crate::eval::{EvalError, keeps_name};
use crate::plan::{Grid, Op};

impl Planner<'_> {
    pub(super) fn binary(&mut self, binary: &Binary, grid: Grid) -> Result<Planned, EvalError> {
        match (binary.lhs.value_type(), binary.rhs.value_type()) {
            (ValueType::Scalar, _) => self.vector_scalar(binary, &binary.rhs, true, grid),
            (_, ValueType::Scalar) => self.vector_scalar(binary, &binary.lhs, false, grid),
            _ => self.vector_vector(binary, grid),
        }
    }

    fn vector_scalar(
        &mut self,
        binary: &Binary,
        vector: &Expr,
        scalar_left: bool,
        grid: Grid,
    ) -> Result<Planned, EvalError> {
        let scalar = if scalar_left { &binary.lhs } else { &binary.rhs };
        let child = self.vector_of_counts(false, vector, grid, "")?;
        let vector = (child.id, vector.span());
        let scalar = (self.scalar(scalar, grid)?, scalar.span());
        let inputs = if scalar_left { [scalar, vector] } else { [vector, scalar] };
        let op = Op::Binary { op: binary.op, return_bool: binary.return_bool, matching: None, many_unique: false };
        let id = self.push(op, &inputs, grid, ValueType::Vector, binary.span);
        let planned = Planned { id, ..child };
        let drops = !keeps_name(binary.op) || binary.return_bool;
        Ok(if drops { self.dropped_names(planned, grid, binary.span) } else { planned })
    }

    fn vector_vector(&mut self, binary: &Binary, grid: Grid) -> Result<Planned, EvalError> {
        let keeps_all = std::mem::replace(&mut self.keeps_all, true);
        let lhs = self.vector_of_counts(false, &binary.lhs, grid, "")?;
        let rhs = self.vector_of_counts(false, &binary.rhs, grid, "")?;
        self.keeps_all = keeps_all;
        let inputs = [(lhs.id, binary.lhs.span()), (rhs.id, binary.rhs.span())];
        let matching = binary.matching.clone().unwrap_or_else(|| VectorMatching {
            cardinality: Cardinality::OneToOne,
            labels: Vec::new(),
            on: false,
            include: Vec::new(),
            fill_left: None,
            fill_right: None,
        });
        let (op, return_bool, span) = (binary.op, binary.return_bool, binary.span);
        // Elements that only their names tell apart do not meet then.
        let on_name = matching.on && matching.labels.iter().any(|label| label == METRIC_NAME);
        if matches!(op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless) {
            let op = Op::Binary { op, return_bool, matching: Some(matching), many_unique: false };
            let id = self.push(op, &inputs, grid, ValueType::Vector, span);
            let (unique_without_name, split) = if binary.op == BinaryOp::Or {
                // Elements of the right side have another match key than every one of the left at that step, but two
                // series that never meet may have equal labels.
                (lhs.unique_without_name && rhs.unique_without_name && !on_name, true)
            } else {
                (lhs.unique_without_name, lhs.split)
            };
            return Ok(Planned { id, unique_without_name, split });
        }
        let many = if matching.cardinality == Cardinality::OneToMany { rhs } else { lhs };
        let one_to_one = matching.cardinality == Cardinality::OneToOne;
        let keeps_labels = matching.include.is_empty();
        let filled = matching.fill_left.is_some() || matching.fill_right.is_some();
        let many_unique = many.unique_without_name && !many.split;
        let op = Op::Binary { op, return_bool, matching: Some(matching), many_unique };
        let mut id = self.push(op, &inputs, grid, ValueType::Vector, span);
        // Pairs of different match groups can have equal labels then.
        let collide = on_name || filled || !keeps_labels;
        if collide && (!self.params.delayed_name_removal || grid.count > 1) {
            id = self.push(Op::Disjoint, &[(id, span)], grid, ValueType::Vector, span);
        }
        let unique_without_name = (one_to_one && !on_name) || (many.unique_without_name && keeps_labels && !filled);
        Ok(Planned { id, unique_without_name, split: true })
    }
}
