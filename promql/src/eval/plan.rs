//! Turns the syntax tree into operators and opens every select.

use skald_model::{Columns, METRIC_NAME, MatchOp, Matcher, QueryRange};

use super::EvalParams;
use super::absent::{Absent, Watched, asked_labels};
use super::aggregate;
use super::aggregate::fold::Fold;
use super::aggregate::gather::{CountValues, Quantile};
use super::aggregate::select::{LimitK, LimitRatio, TopK};
use super::binary::arithmetic::{self, Operation, keeps_name};
use super::binary::set::SetOperator;
use super::binary::vector_scalar::VectorScalar;
use super::binary::vector_vector::VectorVector;
use super::date::{self, EvaluationTime};
use super::duration;
use super::env::{Counted, Env};
use super::error::EvalError;
use super::grid::{Grid, TimeShift};
use super::group_index::{GroupIndex, LabelSubset};
use super::histogram_function::{HistogramNumber, HistogramOperator, Question};
use super::info::{self, Info, InfoSelection};
use super::instant_function::{FloatFunction, MapFloats, Negate, VectorOf};
use super::label_function::{IneffectiveSort, Relabel, RelabelOperator, Sort, SortBy};
use super::merge::{Disjoint, Merge, Repeat, Unique};
use super::operator::{Operator, VectorPlan};
use super::range_function::{RangeFunction, RangeOperator};
use super::reader::SeriesReader;
use super::result::{Root, RootPlan};
use super::scalar::{OfVector, ScalarPlan};
use super::selector::{InstantSelector, Yields};
use super::window::{WindowInput, WindowSource};
use crate::ast::{
    Aggregate, AggregateOp, AtModifier, Binary, BinaryOp, Call, Cardinality, Duration, EdgeMode, Expr, Span, Subquery,
    ValueType, VectorMatching, VectorSelector,
};
use crate::source::{Hints, Queryable, Select};

/// Deepest nesting the engine follows; the parser refuses earlier.
const MAX_DEPTH: usize = 500;
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
    fn vector_of_counts(
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

    /// Plans an expression that yields a range vector.
    pub(crate) fn window(&mut self, expr: &Expr, grid: Grid, above: &str) -> Result<WindowInput, EvalError> {
        match expr {
            Expr::Paren(paren) => self.window(&paren.expr, grid, above),
            Expr::Matrix(matrix) => {
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
            Expr::Subquery(subquery) => self.subquery(subquery, grid),
            _ => Err(EvalError::Internal("the expression is not a range vector".to_owned())),
        }
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

    fn aggregate(&mut self, aggregate: &Aggregate, grid: Grid) -> Result<VectorPlan, EvalError> {
        let op = aggregate.op;
        let child = self.vector(&aggregate.expr, grid, aggregate::name(op))?;
        let subset = if aggregate.without {
            LabelSubset::without(&aggregate.grouping)
        } else {
            LabelSubset::only(&aggregate.grouping)
        };
        let has_name = subset.has_name();
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
                let label = self.string(parameter()?)?;
                if label.is_empty() || label.contains('\u{FFFD}') {
                    return Err(EvalError::Execution(format!("invalid label name {label:?}")));
                }
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

    fn call(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        let name = call.function.name;
        let steps = grid.count;
        if let Some(function) = FloatFunction::by_name(name)
            && let [vector, scalars @ ..] = &call.args[..]
        {
            let child = self.vector(vector, grid, name)?;
            let scalars = scalars.iter().map(|s| self.scalar(s, grid)).collect::<Result<_, _>>()?;
            let operator = Box::new(MapFloats { child: child.operator, function, scalars });
            return Ok(self.dropped_names(VectorPlan { operator, ..child }, call.span));
        }
        if let Some(function) = RangeFunction::by_name(name) {
            return self.range_function(call, function, grid);
        }
        if let Some(part) = date::by_name(name) {
            let function = FloatFunction::Plain(part);
            let child = match &call.args[..] {
                [] => {
                    let scalar = ScalarPlan::Time(grid);
                    let operator = Box::new(VectorOf { scalar, steps, span: call.span, done: false });
                    VectorPlan { operator, unique_without_name: true, split: false }
                }
                [vector, ..] => self.vector(vector, grid, name)?,
            };
            let operator = Box::new(MapFloats { child: child.operator, function, scalars: Vec::new() });
            return Ok(self.dropped_names(VectorPlan { operator, ..child }, call.span));
        }
        if let Some(number) = HistogramNumber::by_name(name)
            && let [vector] = &call.args[..]
        {
            let counts_only = !matches!(name, "histogram_stddev" | "histogram_stdvar");
            let child = self.vector_of_counts(counts_only, vector, grid, name)?;
            let operator = Box::new(HistogramNumber { child: child.operator, number });
            return Ok(self.dropped_names(VectorPlan { operator, ..child }, call.span));
        }
        match (name, &call.args[..]) {
            ("vector", [scalar]) => {
                let scalar = self.scalar(scalar, grid)?;
                let operator = Box::new(VectorOf { scalar, steps, span: call.span, done: false });
                Ok(VectorPlan { operator, unique_without_name: true, split: false })
            }
            ("timestamp", [vector]) => {
                if let Expr::Vector(selector) = without_parens(vector) {
                    return self.selector(selector, grid, Yields::Timestamp, name);
                }
                let child = self.vector(vector, grid, name)?;
                let operator = Box::new(EvaluationTime { child: child.operator, grid });
                Ok(self.dropped_names(VectorPlan { operator, ..child }, call.span))
            }
            ("absent", [vector]) => {
                let labels = asked_labels(without_parens(vector));
                let watched = Watched::Vector(self.vector(vector, grid, name)?.operator);
                let operator = Box::new(Absent::new(watched, labels, grid, call.span));
                Ok(VectorPlan { operator, unique_without_name: true, split: false })
            }
            ("absent_over_time", [window]) => {
                let labels = asked_labels(without_parens(window));
                let input = self.window(window, grid, name)?;
                check_edges(&input, false, name)?;
                let watched = Watched::Window(Box::new(input));
                let operator = Box::new(Absent::new(watched, labels, grid, call.span));
                Ok(VectorPlan { operator, unique_without_name: true, split: false })
            }
            ("histogram_quantile", [q, vector]) => {
                let question = Question::Quantile(self.scalar(q, grid)?, q.span());
                self.histogram_question(vector, question, grid, call.span)
            }
            ("histogram_quantiles", [vector, label, quantiles @ ..]) => {
                let label = self.string(label)?;
                let quantiles = quantiles
                    .iter()
                    .map(|q| Ok((self.scalar(q, grid)?, q.span())))
                    .collect::<Result<_, EvalError>>()?;
                self.histogram_question(vector, Question::Quantiles { label, quantiles }, grid, call.span)
            }
            ("histogram_fraction", [lower, upper, vector]) => {
                let question =
                    Question::Fraction { lower: self.scalar(lower, grid)?, upper: self.scalar(upper, grid)? };
                self.histogram_question(vector, question, grid, call.span)
            }
            ("info", [vector, selection @ ..]) => self.info(vector, selection, grid, call.span),
            ("label_replace", [vector, target, replacement, source, pattern]) => {
                let texts = [target, replacement, source, pattern].map(|text| self.string(text));
                let [target, replacement, source, pattern] = texts;
                let relabel = Relabel::replace(target?, replacement?, source?, &pattern?)?;
                self.relabel(vector, relabel, grid, call.span)
            }
            ("label_join", [vector, target, separator, sources @ ..]) => {
                let (target, separator) = (self.string(target)?, self.string(separator)?);
                let sources = sources.iter().map(|s| self.string(s)).collect::<Result<_, _>>()?;
                self.relabel(vector, Relabel::join(target, separator, sources)?, grid, call.span)
            }
            ("sort" | "sort_desc", [vector]) => {
                self.sort(vector, SortBy::Value { descending: name == "sort_desc" }, grid, call.span)
            }
            ("sort_by_label" | "sort_by_label_desc", [vector, labels @ ..]) => {
                let labels = labels.iter().map(|l| self.string(l)).collect::<Result<_, _>>()?;
                let by = SortBy::Labels { labels, descending: name == "sort_by_label_desc" };
                self.sort(vector, by, grid, call.span)
            }
            _ => Err(EvalError::unsupported(format!("function {name:?}"))),
        }
    }

    fn histogram_question(
        &mut self,
        vector: &Expr,
        question: Question,
        grid: Grid,
        span: Span,
    ) -> Result<VectorPlan, EvalError> {
        let child = self.vector_of_counts(false, vector, grid, "histogram_quantile")?;
        let operator = HistogramOperator::new(child.operator, question, grid, vector.span(), self.env);
        let plan = VectorPlan { operator: Box::new(operator), unique_without_name: false, split: true };
        Ok(self.dropped_names(plan, span))
    }

    fn info(&mut self, vector: &Expr, selection: &[Expr], grid: Grid, span: Span) -> Result<VectorPlan, EvalError> {
        let matchers = match selection.first().map(without_parens) {
            None => &[][..],
            Some(Expr::Vector(selector)) => &selector.matchers[..],
            Some(_) => return Err(EvalError::Execution("expected label selectors only".to_owned())),
        };
        let selection = InfoSelection::new(matchers)?;
        let base = self.vector(vector, grid, "info")?;
        // The info series are looked up at the time the base's samples are.
        let shift = self.shift_of(vector)?;
        let lookback = self.params.lookback_ms;
        let range = QueryRange {
            min: shift.apply(grid.time(0)).saturating_sub(lookback).saturating_add(1),
            max: shift.apply(grid.last()),
        };
        let reader = self.open_matchers(selection.matchers(), span, range, 0, "info");
        let infos = InstantSelector {
            reader,
            grid,
            shift,
            lookback,
            yields: Yields::InfoTime,
            smoothed: false,
            counted: self.counted,
            span,
            columns: Columns::default(),
        };
        let operator = Info::new(base.operator, Box::new(infos), selection, grid, span);
        Ok(VectorPlan { operator: Box::new(operator), unique_without_name: false, split: true })
    }

    /// How the first selector of an expression shifts the evaluation time, the subqueries around it included.
    fn shift_of(&self, expr: &Expr) -> Result<TimeShift, EvalError> {
        Ok(match expr {
            Expr::Paren(paren) => self.shift_of(&paren.expr)?,
            Expr::Unary(unary) => self.shift_of(&unary.expr)?,
            Expr::Vector(selector) => self.shift(selector.at, selector.offset.as_ref())?,
            Expr::Matrix(matrix) => self.shift(matrix.selector.at, matrix.selector.offset.as_ref())?,
            Expr::Subquery(subquery) => {
                let outer = self.shift(subquery.at, subquery.offset.as_ref())?;
                info::then(outer, self.shift_of(&subquery.expr)?)
            }
            Expr::Aggregate(aggregate) => self.shift_of(&aggregate.expr)?,
            Expr::Binary(binary) if binary.lhs.value_type() == ValueType::Scalar => self.shift_of(&binary.rhs)?,
            Expr::Binary(binary) => self.shift_of(&binary.lhs)?,
            Expr::Call(call) => {
                let arg = call.args.iter().find(|a| matches!(a.value_type(), ValueType::Vector | ValueType::Matrix));
                arg.map_or(Ok(TimeShift::default()), |arg| self.shift_of(arg))?
            }
            Expr::Number(_) | Expr::String(_) => TimeShift::default(),
        })
    }

    fn relabel(&mut self, vector: &Expr, relabel: Relabel, grid: Grid, span: Span) -> Result<VectorPlan, EvalError> {
        let child = self.vector(vector, grid, "")?;
        let operator = Box::new(RelabelOperator { child: child.operator, relabel });
        let operator = Box::new(Disjoint::new(operator, self.env.charge(), span));
        Ok(VectorPlan { operator, unique_without_name: false, split: true })
    }

    fn sort(&mut self, vector: &Expr, by: SortBy, grid: Grid, span: Span) -> Result<VectorPlan, EvalError> {
        let child = self.vector(vector, grid, "")?;
        let operator: Box<dyn Operator> = if grid.count == 1 && self.params.step_ms == 0 {
            Box::new(Sort::new(child.operator, by))
        } else {
            let floats_only = matches!(by, SortBy::Value { .. });
            Box::new(IneffectiveSort { child: child.operator, floats_only, span })
        };
        Ok(VectorPlan { operator, ..child })
    }

    fn range_function(&mut self, call: &Call, function: RangeFunction, grid: Grid) -> Result<VectorPlan, EvalError> {
        let name = call.function.name;
        let (mut window, mut scalars) = (None, Vec::new());
        for arg in &call.args {
            if arg.value_type() == ValueType::Matrix {
                window = Some(self.window(arg, grid, name)?);
            } else {
                scalars.push(self.scalar(arg, grid)?);
            }
        }
        let Some(input) = window else {
            return Err(EvalError::Internal(format!("function {name:?} without a range vector")));
        };
        check_edges(&input, function.allows(input.edges), name)?;
        let unique_without_name = input.unique_without_name;
        let operator = RangeOperator {
            input,
            function,
            scalars,
            parameter_span: call.args.first().map_or(call.span, Expr::span),
            grid,
            columns: Columns::default(),
            scratch: Vec::new(),
        };
        let plan = VectorPlan { operator: Box::new(operator), unique_without_name, split: false };
        if function.keeps_name() || unique_without_name || self.env.names.delayed {
            return Ok(plan);
        }
        let operator = Box::new(Unique::new(plan.operator));
        Ok(VectorPlan { operator, unique_without_name: true, split: false })
    }
}

/// Refuses `anchored` and `smoothed` where the function has no meaning for them.
fn check_edges(input: &WindowInput, allowed: bool, name: &str) -> Result<(), EvalError> {
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
