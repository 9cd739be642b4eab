//! Plans function calls.

use skald_model::QueryRange;

use super::{Planned, Planner, without_parens};
use crate::ast::{Call, EdgeMode, Expr, Span, ValueType};
use crate::eval::{EvalError, InfoSelection, RangeFunction, absent_labels};
use crate::plan::{Grid, NodeId, Op, TimeShift, Yields};

impl Planner<'_> {
    pub(super) fn call(&mut self, call: &Call, grid: Grid) -> Result<Planned, EvalError> {
        // Every kind is a function of its own, so that the frame of this one, of which nested calls make many, is small.
        let name = call.function.name;
        if let Some(function) = RangeFunction::by_name(name) {
            return self.range_function(call, function, grid);
        }
        match name {
            "vector" => self.vector_of(call, grid),
            "timestamp" => self.timestamp(call, Yields::Timestamp, grid),
            "start_timestamp" => self.timestamp(call, Yields::StartTimestamp, grid),
            "absent" | "absent_over_time" => self.absent(call, grid),
            "histogram_quantile" | "histogram_quantiles" | "histogram_fraction" => self.histogram_call(call, grid),
            "info" => self.info(call, grid),
            "label_replace" | "label_join" => self.label_call(call, grid),
            "sort" | "sort_desc" | "sort_by_label" | "sort_by_label_desc" => self.sort_call(call, grid),
            _ if call.function.return_type == ValueType::Vector => self.map(call, grid),
            _ => Err(EvalError::unsupported(format!("function {name:?}"))),
        }
    }

    /// A function of each value: of floats, of dates, or of histograms.
    fn map(&mut self, call: &Call, grid: Grid) -> Result<Planned, EvalError> {
        let name = call.function.name;
        let [vector, rest @ ..] = &call.args[..] else { return self.map_of_time(call, grid) };
        let counts_only = match name {
            "histogram_count" | "histogram_sum" | "histogram_avg" => true,
            "histogram_stddev" | "histogram_stdvar" => false,
            _ => self.counts_only,
        };
        let child = self.vector_of_counts(counts_only, vector, grid, name)?;
        let mut inputs = vec![(child.id, vector.span())];
        for scalar in rest {
            inputs.push((self.scalar(scalar, grid)?, scalar.span()));
        }
        let id = self.push(Op::Call(call.function), &inputs, grid, ValueType::Vector, call.span);
        Ok(self.dropped_names(Planned { id, ..child }, grid, call.span))
    }

    /// `hour()` and the like: the same of the evaluation time.
    fn map_of_time(&mut self, call: &Call, grid: Grid) -> Result<Planned, EvalError> {
        let Some(vector) = crate::functions::function("vector") else { return Err(unsupported(call)) };
        let time = self.push(Op::Time, &[], grid, ValueType::Scalar, call.span);
        let vector = self.push(Op::Call(vector), &[(time, call.span)], grid, ValueType::Vector, call.span);
        let id = self.push(Op::Call(call.function), &[(vector, call.span)], grid, ValueType::Vector, call.span);
        Ok(one_series(id))
    }

    fn vector_of(&mut self, call: &Call, grid: Grid) -> Result<Planned, EvalError> {
        let [scalar] = &call.args[..] else { return Err(unsupported(call)) };
        let input = (self.scalar(scalar, grid)?, scalar.span());
        Ok(one_series(self.push(Op::Call(call.function), &[input], grid, ValueType::Vector, call.span)))
    }

    /// `timestamp` and `start_timestamp`.
    fn timestamp(&mut self, call: &Call, yields: Yields, grid: Grid) -> Result<Planned, EvalError> {
        let [vector] = &call.args[..] else { return Err(unsupported(call)) };
        let name = call.function.name;
        if let Expr::Vector(selector) = without_parens(vector) {
            return self.selector(selector, grid, yields, name);
        }
        let child = self.vector(vector, grid, name)?;
        let input = (child.id, vector.span());
        let id = self.push(Op::Call(call.function), &[input], grid, ValueType::Vector, call.span);
        let planned = Planned { id, ..child };
        // What was computed did not start at any time: nothing is yielded.
        Ok(if yields == Yields::StartTimestamp { planned } else { self.dropped_names(planned, grid, call.span) })
    }

    fn absent(&mut self, call: &Call, grid: Grid) -> Result<Planned, EvalError> {
        let [arg] = &call.args[..] else { return Err(unsupported(call)) };
        let name = call.function.name;
        let keeps_all = std::mem::replace(&mut self.keeps_all, false);
        let watched = if name == "absent" {
            self.vector(arg, grid, name)?
        } else {
            let window = self.window(arg, grid, name)?;
            self.check_edges(window.id, |_| false, name)?;
            window
        };
        self.keeps_all = keeps_all;
        let op = Op::Absent(absent_labels(without_parens(arg)));
        Ok(one_series(self.push(op, &[(watched.id, arg.span())], grid, ValueType::Vector, call.span)))
    }

    fn histogram_call(&mut self, call: &Call, grid: Grid) -> Result<Planned, EvalError> {
        let mut inputs = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            let id = match arg.value_type() {
                ValueType::Vector => self.vector_of_counts(false, arg, grid, "histogram_quantile")?.id,
                ValueType::String => self.string(arg, grid)?,
                _ => self.scalar(arg, grid)?,
            };
            inputs.push((id, arg.span()));
        }
        let id = self.push(Op::Call(call.function), &inputs, grid, ValueType::Vector, call.span);
        let planned = Planned { id, unique_without_name: false, split: true };
        if call.function.name == "histogram_quantiles" && self.params.delayed_name_removal && grid.count > 1 {
            // The same quantile twice; as in Prometheus an instant query may have that until the names are dropped.
            let id = self.push(Op::Disjoint, &[(id, call.span)], grid, ValueType::Vector, call.span);
            return Ok(Planned { id, ..planned });
        }
        Ok(self.dropped_names(planned, grid, call.span))
    }

    fn label_call(&mut self, call: &Call, grid: Grid) -> Result<Planned, EvalError> {
        let (child, inputs) = self.vector_and_texts(call, grid)?;
        let id = self.push(Op::Call(call.function), &inputs, grid, ValueType::Vector, call.span);
        let _ = child;
        let id = self.push(Op::Disjoint, &[(id, call.span)], grid, ValueType::Vector, call.span);
        Ok(Planned { id, unique_without_name: false, split: true })
    }

    fn sort_call(&mut self, call: &Call, grid: Grid) -> Result<Planned, EvalError> {
        let (child, inputs) = self.vector_and_texts(call, grid)?;
        let id = self.push(Op::Call(call.function), &inputs, grid, ValueType::Vector, call.span);
        Ok(Planned { id, ..child })
    }

    fn vector_and_texts(&mut self, call: &Call, grid: Grid) -> Result<(Planned, Vec<(NodeId, Span)>), EvalError> {
        let [vector, texts @ ..] = &call.args[..] else { return Err(unsupported(call)) };
        let child = self.vector(vector, grid, "")?;
        let mut inputs = vec![(child.id, vector.span())];
        for text in texts {
            inputs.push((self.string(text, grid)?, text.span()));
        }
        Ok((child, inputs))
    }

    fn info(&mut self, call: &Call, grid: Grid) -> Result<Planned, EvalError> {
        let [vector, selection @ ..] = &call.args[..] else { return Err(unsupported(call)) };
        let span = call.span;
        let matchers = match selection.first().map(without_parens) {
            None => Vec::new(),
            Some(Expr::Vector(selector)) => selector.matchers.clone(),
            Some(_) => return Err(EvalError::Execution("expected label selectors only".to_owned())),
        };
        let asked = InfoSelection::new(&matchers)?.matchers();
        let base = self.vector(vector, grid, "info")?;
        // The info series are looked up at the time the base's samples are.
        let shift = self.shift_of(vector)?;
        let range = QueryRange {
            min: shift.apply(grid.time(0)).saturating_sub(self.params.lookback_ms).saturating_add(1),
            max: shift.apply(grid.last()),
        };
        let reads = self.reads(asked, range, shift, "info");
        let op = Op::Select { selector: reads, yields: Yields::InfoTime, smoothed: false };
        let infos = self.push(op, &[], grid, ValueType::Vector, span);
        let inputs = [(base.id, vector.span()), (infos, span)];
        let id = self.push(Op::Info(matchers), &inputs, grid, ValueType::Vector, span);
        Ok(Planned { id, unique_without_name: false, split: true })
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
                outer.then(self.shift_of(&subquery.expr)?)
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

    fn range_function(&mut self, call: &Call, function: RangeFunction, grid: Grid) -> Result<Planned, EvalError> {
        let name = call.function.name;
        let mut window = None;
        let mut inputs = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            let id = if arg.value_type() == ValueType::Matrix {
                let planned = self.window(arg, grid, name)?;
                window = Some(planned);
                planned.id
            } else {
                self.scalar(arg, grid)?
            };
            inputs.push((id, arg.span()));
        }
        let Some(window) = window else {
            return Err(EvalError::Internal(format!("function {name:?} without a range vector")));
        };
        self.check_edges(window.id, |edges| function.allows(edges), name)?;
        let id = self.push(Op::Call(call.function), &inputs, grid, ValueType::Vector, call.span);
        let planned = Planned { id, unique_without_name: window.unique_without_name, split: false };
        if function.keeps_name() || planned.unique_without_name || self.params.delayed_name_removal {
            return Ok(planned);
        }
        let id = self.push(Op::Unique, &[(id, call.span)], grid, ValueType::Vector, call.span);
        Ok(Planned { id, unique_without_name: true, split: false })
    }

    /// Refuses `anchored` and `smoothed` where the function has no meaning for them.
    fn check_edges(&self, window: NodeId, allowed: impl Fn(EdgeMode) -> bool, name: &str) -> Result<(), EvalError> {
        let Op::RangeSelect { edges, .. } = self.plan.node(window).op else { return Ok(()) };
        let (modifier, functions) = match edges {
            EdgeMode::Plain => return Ok(()),
            EdgeMode::Anchored => ("anchored", "changes, delta, increase, rate, resets"),
            EdgeMode::Smoothed => ("smoothed", "delta, increase, rate"),
        };
        if allowed(edges) {
            return Ok(());
        }
        let text = format!("{modifier} modifier can only be used with: {functions} - not with {name}");
        Err(EvalError::Execution(text))
    }
}

fn unsupported(call: &Call) -> EvalError {
    EvalError::unsupported(format!("function {:?}", call.function.name))
}

/// A node that yields at most one series.
fn one_series(id: NodeId) -> Planned {
    Planned { id, unique_without_name: true, split: false }
}
