//! Plans function calls.

use skald_model::{Columns, FloatHistogram, QueryRange};

use super::window::check_edges;
use super::{Planner, without_parens};
use crate::ast::{Call, Expr, Span, ValueType};
use crate::eval::absent::{Absent, Watched, asked_labels};
use crate::eval::date::{self, DatePart, EvaluationTime, WithoutStart};
use crate::eval::error::EvalError;
use crate::eval::grid::{Grid, TimeShift};
use crate::eval::histogram_function::{HistogramNumber, HistogramOperator, Question};
use crate::eval::info::{self, Info, InfoSelection};
use crate::eval::instant_function::{FloatFunction, MapFloats, VectorOf};
use crate::eval::label_function::{IneffectiveSort, Relabel, RelabelOperator, Sort, SortBy};
use crate::eval::merge::{Disjoint, Unique};
use crate::eval::operator::{Operator, VectorPlan};
use crate::eval::range_function::{RangeFunction, RangeOperator};
use crate::eval::scalar::ScalarPlan;
use crate::eval::selector::{InstantSelector, Yields};

impl Planner<'_, '_, '_> {
    pub(super) fn call(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        // Every kind is a function of its own, so that the frame of this one, of which nested calls make many, is small.
        let name = call.function.name;
        if let Some(function) = FloatFunction::by_name(name) {
            return self.float_function(call, function, grid);
        }
        if let Some(function) = RangeFunction::by_name(name) {
            return self.range_function(call, function, grid);
        }
        if let Some(part) = date::by_name(name) {
            return self.date_function(call, part, grid);
        }
        if let Some(number) = HistogramNumber::by_name(name) {
            return self.histogram_number(call, number, grid);
        }
        match name {
            "vector" => self.vector_of(call, grid),
            "timestamp" => self.timestamp(call, grid),
            "start_timestamp" => self.start_timestamp(call, grid),
            "absent" | "absent_over_time" => self.absent(call, grid),
            "histogram_quantile" | "histogram_quantiles" | "histogram_fraction" => self.histogram_call(call, grid),
            "info" => self.info(call, grid),
            "label_replace" | "label_join" => self.label_call(call, grid),
            "sort" | "sort_desc" | "sort_by_label" | "sort_by_label_desc" => self.sort_call(call, grid),
            _ => Err(unsupported(call)),
        }
    }

    fn float_function(&mut self, call: &Call, function: FloatFunction, grid: Grid) -> Result<VectorPlan, EvalError> {
        let [vector, scalars @ ..] = &call.args[..] else { return Err(unsupported(call)) };
        let child = self.vector(vector, grid, call.function.name)?;
        let scalars = scalars.iter().map(|s| self.scalar(s, grid)).collect::<Result<_, _>>()?;
        let operator = Box::new(MapFloats { child: child.operator, function, scalars });
        Ok(self.dropped_names(VectorPlan { operator, ..child }, call.span))
    }

    fn date_function(&mut self, call: &Call, part: DatePart, grid: Grid) -> Result<VectorPlan, EvalError> {
        let child = match call.args.first() {
            Some(vector) => self.vector(vector, grid, call.function.name)?,
            None => one_series(VectorOf::new(ScalarPlan::Time(grid), grid.count, call.span)),
        };
        let function = FloatFunction::Plain(part);
        let operator = Box::new(MapFloats { child: child.operator, function, scalars: Vec::new() });
        Ok(self.dropped_names(VectorPlan { operator, ..child }, call.span))
    }

    fn histogram_number(
        &mut self,
        call: &Call,
        number: fn(&FloatHistogram) -> f64,
        grid: Grid,
    ) -> Result<VectorPlan, EvalError> {
        let [vector] = &call.args[..] else { return Err(unsupported(call)) };
        let name = call.function.name;
        let counts_only = !matches!(name, "histogram_stddev" | "histogram_stdvar");
        let child = self.vector_of_counts(counts_only, vector, grid, name)?;
        let operator = Box::new(HistogramNumber { child: child.operator, number });
        Ok(self.dropped_names(VectorPlan { operator, ..child }, call.span))
    }

    fn vector_of(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        let [scalar] = &call.args[..] else { return Err(unsupported(call)) };
        let scalar = self.scalar(scalar, grid)?;
        Ok(one_series(VectorOf::new(scalar, grid.count, call.span)))
    }

    fn timestamp(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        let [vector] = &call.args[..] else { return Err(unsupported(call)) };
        if let Expr::Vector(selector) = without_parens(vector) {
            return self.selector(selector, grid, Yields::Timestamp, "timestamp");
        }
        let child = self.vector(vector, grid, "timestamp")?;
        let operator = Box::new(EvaluationTime { child: child.operator, grid });
        Ok(self.dropped_names(VectorPlan { operator, ..child }, call.span))
    }

    fn start_timestamp(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        let [vector] = &call.args[..] else { return Err(unsupported(call)) };
        if let Expr::Vector(selector) = without_parens(vector) {
            return self.selector(selector, grid, Yields::StartTimestamp, "start_timestamp");
        }
        // What was computed did not start at any time.
        let child = self.vector(vector, grid, "start_timestamp")?;
        Ok(VectorPlan { operator: Box::new(WithoutStart { child: child.operator }), ..child })
    }

    fn absent(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        let [arg] = &call.args[..] else { return Err(unsupported(call)) };
        let name = call.function.name;
        let labels = asked_labels(without_parens(arg));
        let watched = if name == "absent" {
            Watched::Vector(self.vector(arg, grid, name)?.operator)
        } else {
            let input = self.window(arg, grid, name)?;
            check_edges(&input, false, name)?;
            Watched::Window(Box::new(input))
        };
        Ok(one_series(Absent::new(watched, labels, grid, call.span)))
    }

    fn histogram_call(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        let (vector, question) = match (call.function.name, &call.args[..]) {
            ("histogram_quantile", [q, vector]) => (vector, Question::Quantile(self.scalar(q, grid)?, q.span())),
            ("histogram_quantiles", [vector, label, quantiles @ ..]) => {
                let label = self.string(label)?;
                let quantile = |q: &Expr, planner: &mut Self| Ok((planner.scalar(q, grid)?, q.span()));
                let quantiles = quantiles.iter().map(|q| quantile(q, self)).collect::<Result<_, EvalError>>()?;
                (vector, Question::Quantiles { label, quantiles })
            }
            ("histogram_fraction", [lower, upper, vector]) => {
                let (lower, upper) = (self.scalar(lower, grid)?, self.scalar(upper, grid)?);
                (vector, Question::Fraction { lower, upper })
            }
            _ => return Err(unsupported(call)),
        };
        self.histogram_question(vector, question, grid, call.span)
    }

    fn label_call(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        let (vector, relabel) = match (call.function.name, &call.args[..]) {
            ("label_replace", [vector, target, replacement, source, pattern]) => {
                let [target, replacement, source, pattern] =
                    [target, replacement, source, pattern].map(|text| self.string(text));
                (vector, Relabel::replace(target?, replacement?, source?, &pattern?)?)
            }
            ("label_join", [vector, target, separator, sources @ ..]) => {
                let (target, separator) = (self.string(target)?, self.string(separator)?);
                let sources = sources.iter().map(|s| self.string(s)).collect::<Result<_, _>>()?;
                (vector, Relabel::join(target, separator, sources)?)
            }
            _ => return Err(unsupported(call)),
        };
        self.relabel(vector, relabel, grid, call.span)
    }

    fn sort_call(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        let [vector, labels @ ..] = &call.args[..] else { return Err(unsupported(call)) };
        let labels = labels.iter().map(|l| self.string(l)).collect::<Result<_, _>>()?;
        let by = match call.function.name {
            "sort" => SortBy::Value { descending: false },
            "sort_desc" => SortBy::Value { descending: true },
            "sort_by_label" => SortBy::Labels { labels, descending: false },
            _ => SortBy::Labels { labels, descending: true },
        };
        self.sort(vector, by, grid, call.span)
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

    fn info(&mut self, call: &Call, grid: Grid) -> Result<VectorPlan, EvalError> {
        let [vector, selection @ ..] = &call.args[..] else { return Err(unsupported(call)) };
        let span = call.span;
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
        let operator = Info::new(base.operator, Box::new(infos), selection, grid, self.env.charge(), span);
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
        let operator = Box::new(RelabelOperator { child: child.operator, relabel, span });
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

fn unsupported(call: &Call) -> EvalError {
    EvalError::unsupported(format!("function {:?}", call.function.name))
}

/// An operator that yields at most one series.
fn one_series(operator: impl Operator + 'static) -> VectorPlan {
    VectorPlan { operator: Box::new(operator), unique_without_name: true, split: false }
}
