//! Turns the syntax tree into operators and opens every select.

use skald_model::{Columns, METRIC_NAME, MatchOp, QueryRange};

use super::EvalParams;
use super::binary::arithmetic::is_comparison;
use super::binary::vector_scalar::VectorScalar;
use super::duration;
use super::env::Env;
use super::error::EvalError;
use super::grid::{Grid, TimeShift};
use super::instant_function::{FloatFunction, MapFloats, Negate, VectorOf};
use super::merge::{Merge, Repeat};
use super::operator::VectorPlan;
use super::reader::SeriesReader;
use super::result::{Root, RootPlan};
use super::scalar::{OfVector, ScalarPlan};
use super::selector::{InstantSelector, Yields};
use super::window::{WindowInput, WindowSource};
use crate::ast::{AtModifier, Binary, Call, Duration, EdgeMode, Expr, Span, ValueType, VectorSelector};
use crate::source::{Hints, Queryable, Select};

/// Deepest nesting the engine follows; the parser refuses earlier.
const MAX_DEPTH: usize = 500;
/// Times beyond this (either way) are refused: sums of a few of them stay far from overflow.
const MAX_TIME: i64 = i64::MAX / 1024;

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
    let mut planner = Planner { params, source, env, depth: 0 };
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
}

impl Planner<'_, '_, '_> {
    /// Plans an expression that yields a vector; `above` is the function or aggregation it is given to.
    pub(crate) fn vector(&mut self, expr: &Expr, grid: Grid, above: &str) -> Result<VectorPlan, EvalError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(EvalError::BadData("the query is nested too deeply".to_owned()));
        }
        let plan = if grid.count > 1 && is_step_invariant(expr) {
            let once = self.varying_vector(expr, Grid { count: 1, ..grid }, above)?;
            VectorPlan { operator: Box::new(Repeat::new(once.operator, grid.count, expr.span())), ..once }
        } else {
            self.varying_vector(expr, grid, above)?
        };
        self.depth -= 1;
        Ok(plan)
    }

    fn varying_vector(&mut self, expr: &Expr, grid: Grid, above: &str) -> Result<VectorPlan, EvalError> {
        match expr {
            Expr::Paren(paren) => self.vector(&paren.expr, grid, above),
            Expr::Vector(selector) => self.selector(selector, grid, Yields::Value, above),
            Expr::Unary(unary) if !unary.negative => self.vector(&unary.expr, grid, above),
            Expr::Unary(unary) => {
                let child = self.vector(&unary.expr, grid, "")?;
                let unique = child.unique_without_name;
                let negate = VectorPlan { operator: Box::new(Negate { child: child.operator }), ..child };
                Ok(self.dropped_names(negate, unique, unary.span))
            }
            Expr::Binary(binary) => self.binary(binary, grid),
            Expr::Call(call) => self.call(call, grid),
            Expr::Aggregate(aggregate) => Err(EvalError::unsupported(format!("aggregation {:?}", aggregate.op))),
            Expr::Matrix(_) | Expr::Subquery(_) | Expr::Number(_) | Expr::String(_) => {
                Err(EvalError::Internal("the expression is not an instant vector".to_owned()))
            }
        }
    }

    /// After an operator that dropped the metric names at once: joins or refuses what has become equal.
    fn dropped_names(&self, plan: VectorPlan, unique: bool, span: Span) -> VectorPlan {
        if unique || self.env.names.delayed {
            return plan;
        }
        let operator = Box::new(Merge::new(plan.operator, span));
        VectorPlan { operator, unique_without_name: true, split: false }
    }

    fn selector(
        &mut self,
        selector: &VectorSelector,
        grid: Grid,
        yields: Yields,
        above: &str,
    ) -> Result<VectorPlan, EvalError> {
        if selector.edges != EdgeMode::Plain {
            return Err(EvalError::unsupported("the smoothed modifier"));
        }
        let shift = self.shift(selector.at, selector.offset.as_ref())?;
        let lookback = self.params.lookback_ms;
        let range = QueryRange {
            min: shift.apply(grid.time(0)).saturating_sub(lookback).saturating_add(1),
            max: shift.apply(grid.last()),
        };
        let reader = self.open(selector, range, 0, above);
        let operator =
            InstantSelector { reader, grid, shift, lookback, yields, span: selector.span, columns: Columns::default() };
        let unique_without_name = has_one_name(selector);
        let plan = VectorPlan { operator: Box::new(operator), unique_without_name, split: false };
        if yields == Yields::Value {
            return Ok(plan);
        }
        Ok(self.dropped_names(plan, unique_without_name, selector.span))
    }

    fn open(&mut self, selector: &VectorSelector, range: QueryRange, range_ms: i64, above: &str) -> SeriesReader {
        let hints = Hints { step_ms: self.params.step_ms, range_ms, function: above.to_owned() };
        let source = self.source.select(Select { matchers: selector.matchers.clone(), range, hints });
        SeriesReader::new(source, range, self.env.charge(), selector.span)
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

    /// Plans an expression that yields a range vector.
    pub(crate) fn window(&mut self, expr: &Expr, grid: Grid, above: &str) -> Result<WindowInput, EvalError> {
        match expr {
            Expr::Paren(paren) => self.window(&paren.expr, grid, above),
            Expr::Matrix(matrix) => {
                if matrix.selector.edges != EdgeMode::Plain {
                    return Err(EvalError::unsupported("the anchored and smoothed modifiers"));
                }
                let range = duration::positive(&matrix.range, self.params)?;
                let shift = self.shift(matrix.selector.at, matrix.selector.offset.as_ref())?;
                let needed = QueryRange {
                    min: shift.apply(grid.time(0)).saturating_sub(range).saturating_add(1),
                    max: shift.apply(grid.last()),
                };
                let reader = self.open(&matrix.selector, needed, range, above);
                Ok(WindowInput {
                    source: WindowSource::Selector(reader),
                    range,
                    shift,
                    edges: matrix.selector.edges,
                    lookback: self.params.lookback_ms,
                    span: matrix.span,
                    unique_without_name: has_one_name(&matrix.selector),
                })
            }
            _ => Err(EvalError::unsupported("a subquery")),
        }
    }

    /// Plans an expression that yields a scalar.
    pub(crate) fn scalar(&mut self, expr: &Expr, grid: Grid) -> Result<ScalarPlan, EvalError> {
        Ok(match expr {
            Expr::Number(number) => ScalarPlan::constant(number.value),
            Expr::Paren(paren) => self.scalar(&paren.expr, grid)?,
            Expr::Unary(unary) => {
                let inner = self.scalar(&unary.expr, grid)?;
                if unary.negative { ScalarPlan::Negate(Box::new(inner)) } else { inner }
            }
            Expr::Binary(binary) => ScalarPlan::Binary {
                op: binary.op,
                lhs: Box::new(self.scalar(&binary.lhs, grid)?),
                rhs: Box::new(self.scalar(&binary.rhs, grid)?),
            },
            Expr::Call(call) => match (call.function.name, &call.args[..]) {
                ("time", []) => ScalarPlan::Time(grid),
                ("pi", []) => ScalarPlan::constant(std::f64::consts::PI),
                ("start", []) => ScalarPlan::constant(self.params.start_ms as f64 / 1000.0),
                ("end", []) => ScalarPlan::constant(self.params.end_ms as f64 / 1000.0),
                ("step", []) => ScalarPlan::constant(self.params.step_ms as f64 / 1000.0),
                ("range", []) => {
                    ScalarPlan::constant(self.params.end_ms.saturating_sub(self.params.start_ms) as f64 / 1000.0)
                }
                (name @ ("min_of" | "max_of"), [lhs, rhs]) => ScalarPlan::Extreme {
                    max: name == "max_of",
                    lhs: Box::new(self.scalar(lhs, grid)?),
                    rhs: Box::new(self.scalar(rhs, grid)?),
                },
                ("scalar", [vector]) => {
                    let child = self.vector(vector, grid, "scalar")?.operator;
                    ScalarPlan::OfVector(Box::new(OfVector::new(child, grid)))
                }
                (name, _) => return Err(EvalError::unsupported(format!("function {name:?}"))),
            },
            _ => return Err(EvalError::Internal("the expression is not a scalar".to_owned())),
        })
    }

    /// The text of an expression that yields a string.
    pub(crate) fn string(&mut self, expr: &Expr) -> Result<String, EvalError> {
        match expr {
            Expr::String(literal) => Ok(literal.value.clone()),
            Expr::Paren(paren) => self.string(&paren.expr),
            _ => Err(EvalError::Internal("the expression is not a string".to_owned())),
        }
    }

    fn binary(&mut self, binary: &Binary, grid: Grid) -> Result<VectorPlan, EvalError> {
        let scalar_left = match (binary.lhs.value_type(), binary.rhs.value_type()) {
            (ValueType::Scalar, _) => true,
            (_, ValueType::Scalar) => false,
            _ => return Err(EvalError::unsupported("an operator between vectors")),
        };
        let (vector, scalar) = if scalar_left { (&binary.rhs, &binary.lhs) } else { (&binary.lhs, &binary.rhs) };
        let child = self.vector(vector, grid, "")?;
        let operator = VectorScalar {
            child: child.operator,
            scalar: self.scalar(scalar, grid)?,
            op: binary.op,
            scalar_left,
            return_bool: binary.return_bool,
            span: binary.span,
        };
        let drops = !is_comparison(binary.op) || binary.return_bool;
        let plan = VectorPlan { operator: Box::new(operator), ..child };
        let unique = plan.unique_without_name;
        Ok(if drops { self.dropped_names(plan, unique, binary.span) } else { plan })
    }

    fn call(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        let name = call.function.name;
        if let Some(function) = FloatFunction::by_name(name)
            && let [vector, scalars @ ..] = &call.args[..]
        {
            let child = self.vector(vector, grid, name)?;
            let scalars = scalars.iter().map(|s| self.scalar(s, grid)).collect::<Result<_, _>>()?;
            let unique = child.unique_without_name;
            let operator = Box::new(MapFloats { child: child.operator, function, scalars });
            return Ok(self.dropped_names(VectorPlan { operator, ..child }, unique, call.span));
        }
        match (name, &call.args[..]) {
            ("vector", [scalar]) => {
                let scalar = self.scalar(scalar, grid)?;
                let operator = Box::new(VectorOf { scalar, steps: grid.count, span: call.span, done: false });
                Ok(VectorPlan { operator, unique_without_name: true, split: false })
            }
            _ => Err(EvalError::unsupported(format!("function {name:?}"))),
        }
    }
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
