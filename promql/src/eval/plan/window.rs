//! Plans range vectors.

use skald_model::QueryRange;

use super::{Planner, check_steps, has_one_name};
use crate::ast::{EdgeMode, Expr, MatrixSelector, Subquery};
use crate::eval::duration;
use crate::eval::env::Counted;
use crate::eval::error::EvalError;
use crate::eval::grid::Grid;
use crate::eval::merge::Merge;
use crate::eval::operator::Operator;
use crate::eval::window::{WindowInput, WindowSource};

impl Planner<'_, '_, '_> {
    /// Plans an expression that yields a range vector.
    pub(crate) fn window(&mut self, expr: &Expr, grid: Grid, above: &str) -> Result<WindowInput, EvalError> {
        match expr {
            Expr::Paren(paren) => self.window(&paren.expr, grid, above),
            Expr::Matrix(matrix) => self.range_selector(matrix, grid, above),
            Expr::Subquery(subquery) => self.subquery(subquery, grid),
            _ => Err(EvalError::Internal("the expression is not a range vector".to_owned())),
        }
    }

    fn range_selector(&mut self, matrix: &MatrixSelector, grid: Grid, above: &str) -> Result<WindowInput, EvalError> {
        let range = duration::positive(&matrix.range, self.params)?;
        let shift = self.shift(matrix.selector.at, matrix.selector.offset.as_ref())?;
        let lookback = self.params.lookback_ms;
        let (before, after) = match matrix.selector.edges {
            EdgeMode::Plain => (0, 0),
            EdgeMode::Anchored => (lookback, 0),
            EdgeMode::Smoothed => (lookback, lookback),
        };
        let left_edge = shift.apply(grid.time(0)).saturating_sub(range);
        let needed = QueryRange {
            min: left_edge.saturating_sub(before).saturating_add(1),
            max: shift.apply(grid.last()).saturating_add(after),
        };
        let reader = self.open(&matrix.selector, needed, range, above);
        Ok(WindowInput {
            source: WindowSource::Selector(reader),
            range,
            shift,
            edges: matrix.selector.edges,
            lookback: self.params.lookback_ms,
            span: matrix.span,
            counted: self.counted,
            unique_without_name: has_one_name(&matrix.selector),
        })
    }

    fn subquery(&mut self, subquery: &Subquery, grid: Grid) -> Result<WindowInput, EvalError> {
        let range = duration::positive(&subquery.range, self.params)?;
        let step = match &subquery.step {
            Some(step) => duration::positive(step, self.params)?,
            None => self.params.default_subquery_step_ms.max(1),
        };
        let shift = self.shift(subquery.at, subquery.offset.as_ref())?;
        // The inner steps are multiples of the step, whatever the outer ones are; the window is left-open.
        let left_edge = shift.apply(grid.time(0)).saturating_sub(range);
        let mut first = left_edge / step * step;
        while first <= left_edge {
            first = first.saturating_add(step);
        }
        let inner = Grid::range(first, shift.apply(grid.last()), step);
        check_steps(inner, subquery.span, self.env)?;
        let outer_counted = std::mem::replace(&mut self.counted, Counted::No);
        let child = self.vector_of_counts(false, &subquery.expr, inner, "")?;
        self.counted = outer_counted;
        let operator: Box<dyn Operator> =
            if child.split { Box::new(Merge::new(child.operator, subquery.span)) } else { child.operator };
        Ok(WindowInput {
            source: WindowSource::Subquery { child: operator, grid: inner, charge: self.env.charge() },
            range,
            shift,
            edges: EdgeMode::Plain,
            lookback: self.params.lookback_ms,
            span: subquery.span,
            counted: self.counted,
            unique_without_name: child.unique_without_name,
        })
    }
}

/// Refuses `anchored` and `smoothed` where the function has no meaning for them.
pub(super) fn check_edges(input: &WindowInput, allowed: bool, name: &str) -> Result<(), EvalError> {
    let (modifier, functions) = match input.edges {
        EdgeMode::Plain => return Ok(()),
        EdgeMode::Anchored => ("anchored", "changes, delta, increase, rate, resets"),
        EdgeMode::Smoothed => ("smoothed", "delta, increase, rate"),
    };
    if allowed {
        return Ok(());
    }
    Err(EvalError::Execution(format!("{modifier} modifier can only be used with: {functions} - not with {name}")))
}
