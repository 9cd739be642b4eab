//! Plans range vectors.

use skald_model::QueryRange;

use super::{Planned, Planner, duration, has_one_name};
use crate::ast::{EdgeMode, Expr, MatrixSelector, Subquery, ValueType};
use crate::eval::EvalError;
use crate::plan::{Counted, Grid, Op};

impl Planner<'_> {
    /// Plans an expression that yields a range vector.
    pub(super) fn window(&mut self, expr: &Expr, grid: Grid, above: &str) -> Result<Planned, EvalError> {
        match expr {
            Expr::Paren(paren) => self.window(&paren.expr, grid, above),
            Expr::Matrix(matrix) => self.range_selector(matrix, grid, above),
            Expr::Subquery(subquery) => self.subquery(subquery, grid),
            _ => Err(EvalError::Internal("the expression is not a range vector".to_owned())),
        }
    }

    fn range_selector(&mut self, matrix: &MatrixSelector, grid: Grid, above: &str) -> Result<Planned, EvalError> {
        let range_ms = duration::positive(&matrix.range, self.params)?;
        let selector = &matrix.selector;
        let shift = self.shift(selector.at, selector.offset.as_ref())?;
        let lookback = self.params.lookback_ms;
        let (before, after) = match selector.edges {
            EdgeMode::Plain => (0, 0),
            EdgeMode::Anchored => (lookback, 0),
            EdgeMode::Smoothed => (lookback, lookback),
        };
        let left_edge = shift.apply(grid.time(0)).saturating_sub(range_ms);
        let needed = QueryRange {
            min: left_edge.saturating_sub(before).saturating_add(1),
            max: shift.apply(grid.last()).saturating_add(after),
        };
        let reads = self.reads(selector.matchers.clone(), needed, shift, above);
        let op = Op::RangeSelect { selector: reads, range_ms, edges: selector.edges };
        let id = self.push(op, &[], grid, ValueType::Matrix, matrix.span);
        Ok(Planned { id, unique_without_name: has_one_name(selector), split: false })
    }

    fn subquery(&mut self, subquery: &Subquery, grid: Grid) -> Result<Planned, EvalError> {
        let range_ms = duration::positive(&subquery.range, self.params)?;
        let step = match &subquery.step {
            Some(step) => duration::positive(step, self.params)?,
            None => self.params.default_subquery_step_ms.max(1),
        };
        let shift = self.shift(subquery.at, subquery.offset.as_ref())?;
        // The inner steps are multiples of the step, whatever the outer ones are; the window is left-open.
        let left_edge = shift.apply(grid.time(0)).saturating_sub(range_ms);
        let mut first = left_edge / step * step;
        while first <= left_edge {
            first = first.saturating_add(step);
        }
        let inner = Grid::range(first, shift.apply(grid.last()), step);
        let counted = std::mem::replace(&mut self.counted, Counted::No);
        let keeps_all = std::mem::replace(&mut self.keeps_all, false);
        let child = self.vector_of_counts(false, &subquery.expr, inner, "")?;
        (self.counted, self.keeps_all) = (counted, keeps_all);
        let (span, inner_span) = (subquery.span, subquery.expr.span());
        let series = if child.split {
            self.push(Op::Merge, &[(child.id, inner_span)], inner, ValueType::Vector, span)
        } else {
            child.id
        };
        let op = Op::Subquery { range_ms, shift, counted };
        let id = self.push(op, &[(series, inner_span)], grid, ValueType::Matrix, span);
        // Series whose steps do not meet are in one window nevertheless.
        let unique_without_name = child.unique_without_name && !child.split;
        Ok(Planned { id, unique_without_name, split: false })
    }
}
