//! Turns the syntax tree into plan nodes.
//!
//! Here: the query as a whole and its instant selectors. [`window`] has the range vectors, [`call`] the functions,
//! [`aggregate`], [`binary`] and [`scalar`] what their names say, [`share`] what is computed once for several places.

mod aggregate;
mod binary;
mod call;
mod duration;
mod scalar;
mod share;
mod window;

use std::ops::Range;

use skald_model::{METRIC_NAME, MatchOp, Matcher, QueryRange};

use self::share::Classes;
use super::{Counted, Grid, Node, NodeId, Op, Plan, Selector, TimeShift, Yields};
use crate::ast::{AtModifier, Duration, EdgeMode, Expr, Span, ValueType, VectorSelector};
use crate::eval::{EvalError, EvalParams};

/// Deepest nesting the planner follows; the parser refuses earlier.
pub(super) const MAX_DEPTH: usize = 1100;
/// Times beyond this (either way) are refused: sums of a few of them stay far from overflow.
pub(super) const MAX_TIME: i64 = i64::MAX / 1024;

impl Plan {
    /// Plans a query.
    pub fn of(query: &Expr, params: &EvalParams) -> Result<Self, EvalError> {
        Self::of_steps(query, params, None)
    }

    /// Plans a part of a range query: some of its steps, counted from 0; all of them if `None`.
    ///
    /// The parts of a query that together have each of its steps once give its answer: no step's values depend on
    /// another step. `@ start()`, `range()` and the like stay those of the whole query.
    pub fn of_steps(query: &Expr, params: &EvalParams, steps: Option<Range<usize>>) -> Result<Self, EvalError> {
        if params.start_ms.abs() > MAX_TIME || params.end_ms.abs() > MAX_TIME || params.step_ms < 0 {
            return Err(EvalError::BadData("the query's time range is out of bounds".to_owned()));
        }
        if params.end_ms < params.start_ms {
            return Err(EvalError::BadData("end timestamp must not be before start time".to_owned()));
        }
        duration::check(query, params)?;
        let instant = params.step_ms == 0;
        let whole = if instant {
            Grid::instant(params.start_ms)
        } else {
            Grid::range(params.start_ms, params.end_ms, params.step_ms)
        };
        let grid = match steps {
            None => whole,
            Some(steps) if steps.start < steps.end && steps.end <= whole.count => whole.part(steps),
            Some(_) => return Err(EvalError::BadData("the query does not have these steps".to_owned())),
        };
        if query.value_type() == ValueType::Matrix && !instant {
            let text = "invalid expression type \"range vector\" for range query, must be Scalar or instant Vector";
            return Err(EvalError::BadData(text.to_owned()));
        }
        let plan = Plan {
            nodes: Vec::new(),
            root: 0,
            instant,
            delayed_name_removal: params.delayed_name_removal,
            type_and_unit_labels: params.type_and_unit_labels,
            per_step_stats: params.per_step_stats,
            twins: Vec::new(),
        };
        let mut planner = Planner {
            params,
            plan,
            classes: Classes::default(),
            depth: 0,
            counted: Counted::Step(1),
            counts_only: false,
            keeps_all: false,
        };
        planner.plan.root = match query.value_type() {
            ValueType::Scalar => planner.scalar(query, grid)?,
            ValueType::String => planner.string(query, grid)?,
            ValueType::Vector => planner.vector(query, grid, "")?.id,
            ValueType::Matrix => planner.window(query, grid, "")?.id,
        };
        planner.finish_sharing();
        Ok(planner.plan)
    }
}

struct Planner<'a> {
    params: &'a EvalParams,
    plan: Plan,
    classes: Classes,
    depth: usize,
    /// How the samples of the part being planned count.
    counted: Counted,
    /// Of native histograms the part being planned needs counts and sums only.
    counts_only: bool,
    /// What is being planned is the operand of an operator that keeps all series of a side anyway.
    keeps_all: bool,
}

/// A node that yields series, with what the planner knows of them.
#[derive(Debug, Clone, Copy)]
struct Planned {
    id: NodeId,
    /// No two series have equal labels once their metric names are dropped, except halves of one series.
    unique_without_name: bool,
    /// Halves of one series may come as several.
    split: bool,
}

impl Planner<'_> {
    /// Plans an expression that yields a vector; `above` is the function or aggregation it is given to.
    fn vector(&mut self, expr: &Expr, grid: Grid, above: &str) -> Result<Planned, EvalError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(EvalError::BadData("the query is nested too deeply".to_owned()));
        }
        let planned = if grid.count > 1 && is_step_invariant(expr) {
            let counted = self.counted;
            if let Counted::Step(times) = counted {
                self.counted = Counted::EveryStep(grid.count, times);
            }
            let once = self.varying_vector(expr, Grid { count: 1, ..grid }, above)?;
            self.counted = counted;
            let id = self.push(Op::Repeat, &[(once.id, expr.span())], grid, ValueType::Vector, expr.span());
            Planned { id, ..once }
        } else {
            self.varying_vector(expr, grid, above)?
        };
        self.depth -= 1;
        Ok(planned)
    }

    /// Plans an expression of whose native histograms only counts and sums are used, or all.
    fn vector_of_counts(
        &mut self,
        counts_only: bool,
        expr: &Expr,
        grid: Grid,
        above: &str,
    ) -> Result<Planned, EvalError> {
        let outer = std::mem::replace(&mut self.counts_only, counts_only);
        let planned = self.vector(expr, grid, above);
        self.counts_only = outer;
        planned
    }

    fn varying_vector(&mut self, expr: &Expr, grid: Grid, above: &str) -> Result<Planned, EvalError> {
        match expr {
            Expr::Paren(paren) => self.vector(&paren.expr, grid, above),
            Expr::Vector(selector) => {
                let start = self.plan.nodes.len();
                let planned = self.selector(selector, grid, Yields::Value, above)?;
                Ok(self.share(planned, start))
            }
            Expr::Unary(unary) if !unary.negative => self.vector(&unary.expr, grid, above),
            Expr::Unary(unary) => {
                let child = self.vector(&unary.expr, grid, "")?;
                let input = (child.id, unary.expr.span());
                let id = self.push(Op::Negate, &[input], grid, ValueType::Vector, unary.span);
                Ok(self.dropped_names(Planned { id, ..child }, grid, unary.span))
            }
            Expr::Binary(binary) => self.binary(binary, grid),
            Expr::Call(call) => {
                let start = self.plan.nodes.len();
                let planned = self.call(call, grid)?;
                Ok(self.share(planned, start))
            }
            Expr::Aggregate(aggregate) => {
                let start = self.plan.nodes.len();
                let keeps_all = std::mem::replace(&mut self.keeps_all, false);
                let planned = self.aggregate(aggregate, grid)?;
                self.keeps_all = true;
                let planned = self.share(planned, start);
                self.keeps_all = keeps_all;
                Ok(planned)
            }
            Expr::Matrix(_) | Expr::Subquery(_) | Expr::Number(_) | Expr::String(_) => {
                Err(EvalError::Internal("the expression is not an instant vector".to_owned()))
            }
        }
    }

    /// After an operator that dropped the metric names at once: refuses what has become equal at one step.
    fn dropped_names(&mut self, planned: Planned, grid: Grid, span: Span) -> Planned {
        if planned.unique_without_name || self.params.delayed_name_removal {
            return planned;
        }
        let id = self.push(Op::Disjoint, &[(planned.id, span)], grid, ValueType::Vector, span);
        Planned { id, unique_without_name: true, split: true }
    }

    fn selector(
        &mut self,
        selector: &VectorSelector,
        grid: Grid,
        yields: Yields,
        above: &str,
    ) -> Result<Planned, EvalError> {
        // `anchored` has no meaning for an instant selector, and does nothing, as in Prometheus.
        let smoothed = selector.edges == EdgeMode::Smoothed && yields == Yields::Value;
        let shift = self.shift(selector.at, selector.offset.as_ref())?;
        let lookback = self.params.lookback_ms;
        let range = QueryRange {
            min: shift.apply(grid.time(0)).saturating_sub(lookback).saturating_add(1),
            max: shift.apply(grid.last()).saturating_add(if smoothed { lookback } else { 0 }),
        };
        let reads = self.reads(selector.matchers.clone(), range, shift, above);
        let op = Op::Select { selector: reads, yields, smoothed };
        let id = self.push(op, &[], grid, ValueType::Vector, selector.span);
        let planned = Planned { id, unique_without_name: has_one_name(selector), split: false };
        if !matches!(yields, Yields::Timestamp | Yields::StartTimestamp) {
            return Ok(planned);
        }
        Ok(self.dropped_names(planned, grid, selector.span))
    }

    fn reads(&self, matchers: Vec<Matcher>, range: QueryRange, shift: TimeShift, above: &str) -> Selector {
        Selector {
            matchers,
            range,
            shift,
            lookback_ms: self.params.lookback_ms,
            counted: self.counted,
            counts_only: self.counts_only,
            above: above.to_owned(),
            step_ms: self.params.step_ms,
            shard: None,
        }
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

    fn push(&mut self, op: Op, inputs: &[(NodeId, Span)], grid: Grid, value_type: ValueType, span: Span) -> NodeId {
        let (inputs, input_spans) = inputs.iter().copied().unzip();
        let node = Node { op, inputs, input_spans, grid, value_type, span };
        self.classify(&node);
        self.plan.nodes.push(node);
        // The parser allows far fewer than 2^32 nodes.
        (self.plan.nodes.len() - 1) as NodeId
    }
}

/// The expression inside any parentheses.
fn without_parens(expr: &Expr) -> &Expr {
    match expr {
        Expr::Paren(paren) => without_parens(&paren.expr),
        _ => expr,
    }
}

/// Whether a selector can only find series of one metric name.
fn has_one_name(selector: &VectorSelector) -> bool {
    selector.matchers.iter().any(|m| m.name() == METRIC_NAME && m.op() == MatchOp::Equal)
}

/// Whether an expression has the same value at every step.
fn is_step_invariant(expr: &Expr) -> bool {
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
