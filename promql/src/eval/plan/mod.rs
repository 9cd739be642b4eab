//! Turns the syntax tree into operators and opens every select.
//!
//! Here: the query as a whole and its instant selectors. [`window`] has the range vectors, [`call`] the functions,
//! [`aggregate`], [`binary`] and [`scalar`] what their names say.

mod aggregate;
mod binary;
mod call;
mod scalar;
mod window;

use skald_model::{Columns, METRIC_NAME, MatchOp, Matcher, QueryRange};

use super::EvalParams;
use super::duration;
use super::env::{Counted, Env};
use super::error::EvalError;
use super::grid::{Grid, TimeShift};
use super::instant_function::Negate;
use super::merge::{Disjoint, Repeat};
use super::operator::VectorPlan;
use super::reader::SeriesReader;
use super::result::{Root, RootPlan};
use super::selector::{InstantSelector, Yields};
use crate::ast::{AtModifier, Duration, EdgeMode, Expr, Span, ValueType, VectorSelector};
use crate::source::{Hints, Queryable, Select};

/// Deepest nesting the engine follows; the parser refuses earlier.
const MAX_DEPTH: usize = 1100;
/// Times beyond this (either way) are refused: sums of a few of them stay far from overflow.
const MAX_TIME: i64 = i64::MAX / 1024;

/// Most steps of the query or of one subquery.
const MAX_STEPS: usize = 100_000_000;

/// Plans a query.
pub(crate) fn plan(
    query: &Expr,
    params: &EvalParams,
    source: &dyn Queryable,
    env: &mut Env<'_>,
) -> Result<Root, EvalError> {
    if params.start_ms.abs() > MAX_TIME || params.end_ms.abs() > MAX_TIME || params.step_ms < 0 {
        return Err(EvalError::BadData("the query's time range is out of bounds".to_owned()));
    }
    if params.end_ms < params.start_ms {
        return Err(EvalError::BadData("end timestamp must not be before start time".to_owned()));
    }
    let instant = params.step_ms == 0;
    let grid = if instant {
        Grid::instant(params.start_ms)
    } else {
        Grid::range(params.start_ms, params.end_ms, params.step_ms)
    };
    check_steps(grid, query.span(), env)?;
    if params.per_step_stats {
        env.stats.queryable_samples_per_step = vec![0; grid.count];
    }
    let mut planner = Planner { params, source, env, depth: 0, counted: Counted::Step, counts_only: false };
    let plan = match query.value_type() {
        ValueType::Scalar => RootPlan::Scalar(planner.scalar(query, grid)?),
        ValueType::String => RootPlan::String(planner.string(query)?),
        ValueType::Vector => {
            RootPlan::Vector { operator: planner.vector(query, grid, "")?.operator, collected: Vec::new() }
        }
        ValueType::Matrix if instant => {
            let input = Box::new(planner.window(query, grid, "")?);
            RootPlan::Matrix { input, collected: Vec::new(), charge: planner.env.charge() }
        }
        ValueType::Matrix => {
            let text = "invalid expression type \"range vector\" for range query, must be Scalar or instant Vector";
            return Err(EvalError::BadData(text.to_owned()));
        }
    };
    Ok(Root { plan, grid, instant, span: query.span() })
}

pub(crate) struct Planner<'a, 'e, 'q> {
    pub(crate) params: &'a EvalParams,
    source: &'a dyn Queryable,
    pub(crate) env: &'e mut Env<'q>,
    depth: usize,
    /// How the samples of the part being planned count.
    counted: Counted,
    /// Of native histograms the part being planned needs counts and sums only.
    counts_only: bool,
}

impl Planner<'_, '_, '_> {
    /// Plans an expression that yields a vector; `above` is the function or aggregation it is given to.
    pub(crate) fn vector(&mut self, expr: &Expr, grid: Grid, above: &str) -> Result<VectorPlan, EvalError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(EvalError::BadData("the query is nested too deeply".to_owned()));
        }
        let plan = if grid.count > 1 && is_step_invariant(expr) {
            let counted = self.counted;
            if counted == Counted::Step {
                self.counted = Counted::EveryStep(grid.count);
            }
            let once = self.varying_vector(expr, Grid { count: 1, ..grid }, above)?;
            self.counted = counted;
            VectorPlan { operator: Box::new(Repeat::new(once.operator, grid.count, expr.span())), ..once }
        } else {
            self.varying_vector(expr, grid, above)?
        };
        self.depth -= 1;
        Ok(plan)
    }

    /// Plans an expression of whose native histograms only counts and sums are used, or all.
    pub(super) fn vector_of_counts(
        &mut self,
        counts_only: bool,
        expr: &Expr,
        grid: Grid,
        above: &str,
    ) -> Result<VectorPlan, EvalError> {
        let outer = std::mem::replace(&mut self.counts_only, counts_only);
        let plan = self.vector(expr, grid, above);
        self.counts_only = outer;
        plan
    }

    fn varying_vector(&mut self, expr: &Expr, grid: Grid, above: &str) -> Result<VectorPlan, EvalError> {
        match expr {
            Expr::Paren(paren) => self.vector(&paren.expr, grid, above),
            Expr::Vector(selector) => self.selector(selector, grid, Yields::Value, above),
            Expr::Unary(unary) if !unary.negative => self.vector(&unary.expr, grid, above),
            Expr::Unary(unary) => {
                let child = self.vector(&unary.expr, grid, "")?;
                let negate =
                    VectorPlan { operator: Box::new(Negate { child: child.operator, span: unary.span }), ..child };
                Ok(self.dropped_names(negate, unary.span))
            }
            Expr::Binary(binary) => self.binary(binary, grid),
            Expr::Call(call) => self.call(call, grid),
            Expr::Aggregate(aggregate) => self.aggregate(aggregate, grid),
            Expr::Matrix(_) | Expr::Subquery(_) | Expr::Number(_) | Expr::String(_) => {
                Err(EvalError::Internal("the expression is not an instant vector".to_owned()))
            }
        }
    }

    /// After an operator that dropped the metric names at once: refuses what has become equal at one step.
    fn dropped_names(&self, plan: VectorPlan, span: Span) -> VectorPlan {
        if plan.unique_without_name || self.env.names.delayed {
            return plan;
        }
        let operator = Box::new(Disjoint::new(plan.operator, self.env.charge(), span));
        VectorPlan { operator, unique_without_name: true, split: true }
    }

    fn selector(
        &mut self,
        selector: &VectorSelector,
        grid: Grid,
        yields: Yields,
        above: &str,
    ) -> Result<VectorPlan, EvalError> {
        if selector.edges == EdgeMode::Anchored {
            let text = "anchored modifier can only be used with a range selector";
            return Err(EvalError::Execution(text.to_owned()));
        }
        let smoothed = selector.edges == EdgeMode::Smoothed && yields == Yields::Value;
        let shift = self.shift(selector.at, selector.offset.as_ref())?;
        let lookback = self.params.lookback_ms;
        let range = QueryRange {
            min: shift.apply(grid.time(0)).saturating_sub(lookback).saturating_add(1),
            max: shift.apply(grid.last()).saturating_add(if smoothed { lookback } else { 0 }),
        };
        let reader = self.open(selector, range, 0, above);
        let operator = InstantSelector {
            reader,
            grid,
            shift,
            lookback,
            yields,
            smoothed,
            counted: self.counted,
            span: selector.span,
            columns: Columns::default(),
        };
        let unique_without_name = has_one_name(selector);
        let plan = VectorPlan { operator: Box::new(operator), unique_without_name, split: false };
        if yields != Yields::Timestamp {
            return Ok(plan);
        }
        Ok(self.dropped_names(plan, selector.span))
    }

    fn open(&mut self, selector: &VectorSelector, range: QueryRange, range_ms: i64, above: &str) -> SeriesReader {
        self.open_matchers(selector.matchers.clone(), selector.span, range, range_ms, above)
    }

    fn open_matchers(
        &mut self,
        matchers: Vec<Matcher>,
        span: Span,
        range: QueryRange,
        range_ms: i64,
        above: &str,
    ) -> SeriesReader {
        let hints = Hints { step_ms: self.params.step_ms, range_ms, function: above.to_owned() };
        let source = self.source.select(Select { matchers, range, hints });
        SeriesReader::new(source, range, self.env.charge(), span).with_counts_only(self.counts_only)
    }

    fn shift(&self, at: Option<AtModifier>, offset: Option<&Duration>) -> Result<TimeShift, EvalError> {
        let at = at.map(|at| match at {
            AtModifier::Timestamp(time) => time.clamp(-MAX_TIME, MAX_TIME),
            AtModifier::Start => self.params.start_ms,
            AtModifier::End => self.params.end_ms,
        });
        let offset = offset.map_or(Ok(0), |offset| duration::any(offset, self.params))?;
        Ok(TimeShift { at, offset })
    }
}

/// The expression inside any parentheses.
fn without_parens(expr: &Expr) -> &Expr {
    match expr {
        Expr::Paren(paren) => without_parens(&paren.expr),
        _ => expr,
    }
}

/// Refuses an evaluation whose steps alone are more than the query may hold, before anything is sized by them.
fn check_steps(grid: Grid, span: Span, env: &Env<'_>) -> Result<(), EvalError> {
    if grid.count > MAX_STEPS {
        return Err(EvalError::TooManySamples);
    }
    env.charge().grow(grid.count * size_of::<f64>(), span)
}

/// Whether a selector can only find series of one metric name.
fn has_one_name(selector: &VectorSelector) -> bool {
    selector.matchers.iter().any(|m| m.name() == METRIC_NAME && m.op() == MatchOp::Equal)
}

/// Whether an expression has the same value at every step.
pub(crate) fn is_step_invariant(expr: &Expr) -> bool {
    match expr {
        Expr::Number(_) | Expr::String(_) => true,
        Expr::Paren(paren) => is_step_invariant(&paren.expr),
        Expr::Unary(unary) => is_step_invariant(&unary.expr),
        Expr::Vector(selector) => selector.at.is_some(),
        Expr::Matrix(matrix) => matrix.selector.at.is_some(),
        Expr::Subquery(subquery) => subquery.at.is_some(),
        Expr::Binary(binary) => is_step_invariant(&binary.lhs) && is_step_invariant(&binary.rhs),
        Expr::Aggregate(aggregate) => {
            is_step_invariant(&aggregate.expr) && aggregate.param.as_deref().is_none_or(is_step_invariant)
        }
        Expr::Call(call) => {
            let looks_at_time = matches!(
                call.function.name,
                "time"
                    | "timestamp"
                    | "predict_linear"
                    | "start_timestamp"
                    | "days_in_month"
                    | "day_of_month"
                    | "day_of_week"
                    | "day_of_year"
                    | "hour"
                    | "minute"
                    | "month"
                    | "year"
            );
            !looks_at_time && call.args.iter().all(is_step_invariant)
        }
    }
}
