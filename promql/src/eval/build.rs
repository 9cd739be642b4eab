//! Turns a plan's nodes into operators and opens every select.
//!
//! A node that several others use becomes one operator behind a [`Tee`].

use super::EvalError;
use super::absent::{Absent, Watched};
use super::aggregate::fold::Fold;
use super::aggregate::gather::{CountValues, Quantile};
use super::aggregate::partial::is_divisible;
use super::aggregate::select::{LimitK, LimitRatio, TopK};
use super::binary::arithmetic::Operation;
use super::binary::set::SetOperator;
use super::binary::vector_scalar::VectorScalar;
use super::binary::vector_vector::VectorVector;
use super::combine::{Combine, PartialInput};
use super::date::{self, EvaluationTime, WithoutStart};
use super::env::Env;
use super::explain::Measured;
use super::group_index::{GroupIndex, LabelSubset};
use super::histogram_function::{HistogramNumber, HistogramOperator, Question};
use super::info::{Info, InfoSelection};
use super::instant_function::{FloatFunction, MapFloats, Negate, VectorOf};
use super::label_function::{IneffectiveSort, Relabel, RelabelOperator, Sort, SortBy, is_label_name};
use super::merge::{Disjoint, Merge, Repeat, Unique};
use super::operator::{Nothing, Operator};
use super::range_function::{RangeCall, RangeFunction, RangeOperator};
use super::reader::SeriesReader;
use super::result::{Root, RootPlan};
use super::scalar::{OfVector, ScalarPlan};
use super::selector::InstantSelect;
use super::series_operator::SeriesOperator;
use super::tee::Tee;
use super::window::{WindowInput, WindowShape, WindowSource};
use crate::ast::{AggregateOp, BinaryOp, EdgeMode, Span, ValueType};
use crate::functions::Function;
use crate::plan::{Node, NodeId, Op, Plan, Selector};
use crate::source::{Hints, Queryable, Select};

/// Makes a plan ready to run. All selects are opened.
pub(crate) fn build(plan: &Plan, source: &dyn Queryable, env: &mut Env<'_>) -> Result<Root, EvalError> {
    let root = plan.root();
    let top = match Builder::build(plan, source, env, false)? {
        Built::Scalar(scalar) => RootPlan::Scalar(scalar),
        Built::Text(text) => RootPlan::String(text),
        Built::Vector(operator) => RootPlan::Vector { operator, collected: Vec::new() },
        Built::Window(input) => {
            RootPlan::Matrix { input: Box::new(input), collected: Vec::new(), charge: env.charge() }
        }
        Built::Partial(_) => return Err(not_a("vector")),
    };
    Ok(Root { plan: top, grid: root.grid, instant: plan.instant, span: root.span })
}

/// Makes a fragment ready to run: an aggregation whose groups are to be left unfinished.
pub(crate) fn build_fragment(plan: &Plan, source: &dyn Queryable, env: &mut Env<'_>) -> Result<Box<Fold>, EvalError> {
    match Builder::build(plan, source, env, true)? {
        Built::Partial(fold) => Ok(fold),
        _ => Err(not_a("shard")),
    }
}

/// What becomes of a node.
enum Built {
    Vector(Box<dyn Operator>),
    /// An aggregation whose groups are left unfinished.
    Partial(Box<Fold>),
    Window(WindowInput),
    Scalar(ScalarPlan),
    Text(String),
}

struct Builder<'a, 'e, 'q> {
    plan: &'a Plan,
    source: &'a dyn Queryable,
    env: &'e mut Env<'q>,
    /// The nodes made so far that nobody has taken as an input.
    built: Vec<Option<Built>>,
    /// Of the nodes that are used several times.
    tees: Vec<Option<Tee>>,
    wanted: Vec<Wanted>,
}

/// What is wanted of a node.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    /// It is evaluated here.
    here: bool,
    /// Its groups are left unfinished.
    partial: bool,
    /// Nobody looks at the metric name of what it yields, so that it need not be dropped.
    nameless: bool,
}

impl Builder<'_, '_, '_> {
    /// Makes the nodes in their order, inputs first: no recursion, however deep the plan.
    fn build(plan: &Plan, source: &dyn Queryable, env: &mut Env<'_>, partial: bool) -> Result<Built, EvalError> {
        plan.check()?;
        for node in &plan.nodes {
            // Refused before anything is sized by it.
            env.charge().grow(node.grid.count.saturating_mul(size_of::<f64>()), node.span)?;
        }
        if plan.per_step_stats {
            let steps = plan.counted_steps();
            env.charge().grow(steps.saturating_mul(size_of::<u64>()), plan.root().span)?;
            env.stats.queryable_samples_per_step = vec![0; steps];
        }
        let elsewhere = env.context.fragments().is_some();
        let uses = plan.uses();
        let mut wanted = vec![Wanted::default(); plan.nodes.len()];
        wanted[plan.root as usize] = Wanted { here: true, partial, nameless: false };
        for (id, node) in plan.nodes.iter().enumerate().rev().filter(|(_, node)| !node.inputs.is_empty()) {
            let combines = matches!(node.op, Op::Combine { .. });
            if wanted[id].here && !(combines && elsewhere) {
                let groups = groups_by_labels_only(&node.op);
                for input in node.inputs.iter().map(|input| *input as usize) {
                    wanted[input] = Wanted { here: true, partial: combines, nameless: groups && uses[input] == 1 };
                }
            }
        }
        let tees = uses.iter().map(|uses| (*uses > 1).then(Tee::unset)).collect();
        let built = plan.nodes.iter().map(|_| None).collect();
        let mut builder = Builder { plan, source, env, built, tees, wanted };
        for (id, node) in plan.nodes.iter().enumerate() {
            if builder.wanted[id].here {
                builder.built[id] = Some(builder.node(id as NodeId, node)?);
            }
        }
        builder.built[plan.root as usize].take().ok_or_else(|| not_a("root"))
    }

    fn node(&mut self, id: NodeId, node: &Node) -> Result<Built, EvalError> {
        Ok(match node.value_type {
            ValueType::Scalar => Built::Scalar(self.make_scalar(node)?),
            ValueType::String => match &node.op {
                Op::Text(text) => Built::Text(text.clone()),
                _ => return Err(not_a("string")),
            },
            ValueType::Matrix => Built::Window(self.make_window(id, node)?),
            ValueType::Vector if self.wanted[id as usize].partial => match &node.op {
                Op::Aggregate { op, grouping, without } if is_divisible(*op) => {
                    let child = self.vector(node.inputs[0])?;
                    let (steps, span) = (node.grid.count, node.input_spans[0]);
                    Built::Partial(Box::new(Fold::new(Some(child), *op, subset(grouping, *without), steps, span)))
                }
                _ => return Err(not_a("shard")),
            },
            ValueType::Vector => {
                let mut operator = self.operator(id, node)?;
                if let Some(explain) = &self.env.explain {
                    operator = Box::new(Measured::new(operator, explain.node(id), explain.clock()));
                }
                if let Some(tee) = &self.tees[id as usize] {
                    tee.set(operator, node.span);
                    operator = Box::new(tee.reader().ok_or_else(|| not_a("vector"))?);
                }
                Built::Vector(operator)
            }
        })
    }

    /// The operator of an input that yields series.
    fn vector(&mut self, id: NodeId) -> Result<Box<dyn Operator>, EvalError> {
        match self.built[id as usize].take() {
            Some(Built::Vector(operator)) => Ok(operator),
            _ => match self.tees[id as usize].as_ref().and_then(Tee::reader) {
                Some(reader) => Ok(Box::new(reader)),
                None => Err(not_a("vector")),
            },
        }
    }

    fn window(&mut self, id: NodeId) -> Result<WindowInput, EvalError> {
        match self.built[id as usize].take() {
            Some(Built::Window(input)) => Ok(input),
            _ => Err(not_a("range vector")),
        }
    }

    fn scalar(&mut self, id: NodeId) -> Result<ScalarPlan, EvalError> {
        match self.built[id as usize].take() {
            Some(Built::Scalar(scalar)) => Ok(scalar),
            _ => Err(not_a("scalar")),
        }
    }

    fn text(&mut self, id: NodeId) -> Result<String, EvalError> {
        match self.built[id as usize].take() {
            Some(Built::Text(text)) => Ok(text),
            _ => Err(not_a("string")),
        }
    }

    fn operator(&mut self, id: NodeId, node: &Node) -> Result<Box<dyn Operator>, EvalError> {
        let plan = self.plan;
        let (grid, span) = (node.grid, node.span);
        Ok(match &node.op {
            Op::Select { selector, yields, smoothed } => {
                let reader = self.open(id, selector, 0);
                let select = InstantSelect {
                    grid,
                    shift: selector.shift,
                    lookback: selector.lookback_ms,
                    yields: *yields,
                    smoothed: *smoothed,
                    counted: selector.counted,
                    span,
                };
                Box::new(SeriesOperator::new(reader, std::sync::Arc::new(select), grid.count))
            }
            Op::Repeat => Box::new(Repeat::new(self.vector(node.inputs[0])?, grid.count, span)),
            Op::Negate => Box::new(Negate { child: self.vector(node.inputs[0])?, span }),
            Op::Disjoint => Box::new(Disjoint::new(self.vector(node.inputs[0])?, self.env.charge(), span)),
            Op::Unique => Box::new(Unique::new(self.vector(node.inputs[0])?)),
            Op::Merge => Box::new(Merge::new(self.vector(node.inputs[0])?, span)),
            Op::Absent(labels) => {
                let input = node.inputs[0];
                let watched = if plan.node(input).value_type == ValueType::Vector {
                    Watched::Vector(self.vector(input)?)
                } else {
                    Watched::Window(Box::new(self.window(input)?))
                };
                Box::new(Absent::new(watched, labels.clone(), grid, span))
            }
            Op::Info(matchers) => {
                let selection = InfoSelection::new(matchers)?;
                let (base, infos) = (self.vector(node.inputs[0])?, self.vector(node.inputs[1])?);
                Box::new(Info::new(base, infos, selection, grid, self.env.charge(), span))
            }
            Op::Aggregate { op, grouping, without } => self.aggregate(node, *op, grouping, *without)?,
            Op::Combine { op, grouping, without } => {
                let runner = self.env.context.fragments().cloned();
                let mut inputs = Vec::with_capacity(node.inputs.len());
                for input in &node.inputs {
                    inputs.push(match (&runner, self.built[*input as usize].take()) {
                        (Some(runner), _) => {
                            PartialInput::Elsewhere(runner.run(plan.fragment(*input)), plan.needed_by(*input))
                        }
                        (None, Some(Built::Partial(fold))) => PartialInput::Here(fold),
                        _ => return Err(not_a("shard")),
                    });
                }
                let fold = Fold::new(None, *op, subset(grouping, *without), grid.count, node.input_spans[0]);
                Box::new(Combine::new(inputs, fold, self.env.charge(), span))
            }
            Op::Binary { op, return_bool, matching, many_unique } => {
                let operation = Operation { op: *op, return_bool: *return_bool };
                let Some(matching) = matching else { return self.vector_scalar(node, operation) };
                let sides = (self.vector(node.inputs[0])?, self.vector(node.inputs[1])?);
                let charge = self.env.charge();
                if matches!(op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless) {
                    let subset = if matching.on {
                        LabelSubset::only(&matching.labels)
                    } else {
                        LabelSubset::without(&matching.labels)
                    };
                    let index = GroupIndex::new(subset);
                    return Ok(Box::new(SetOperator::new(sides, *op, index, grid.count, charge, span)));
                }
                let matching = matching.clone();
                Box::new(VectorVector::new(sides, *many_unique, operation, matching, grid.count, charge, span))
            }
            Op::Call(function) => self.call(id, node, function)?,
            Op::Number(_) | Op::Text(_) | Op::Time | Op::RangeSelect { .. } | Op::Subquery { .. } => {
                return Err(not_a("vector"));
            }
        })
    }

    fn vector_scalar(&mut self, node: &Node, operation: Operation) -> Result<Box<dyn Operator>, EvalError> {
        let scalar_left = self.plan.node(node.inputs[0]).value_type == ValueType::Scalar;
        let (scalar, vector) = if scalar_left { (0, 1) } else { (1, 0) };
        let child = self.vector(node.inputs[vector])?;
        let scalar = self.scalar(node.inputs[scalar])?;
        Ok(Box::new(VectorScalar { child, scalar, operation, scalar_left, span: node.span }))
    }

    fn aggregate(
        &mut self,
        node: &Node,
        op: AggregateOp,
        grouping: &[String],
        without: bool,
    ) -> Result<Box<dyn Operator>, EvalError> {
        let steps = node.grid.count;
        let subset = subset(grouping, without);
        let (inner_span, parameter_span) = (node.input_spans[0], node.input_spans.last().copied());
        let parameter_span = parameter_span.unwrap_or(node.span);
        let child = self.vector(node.inputs[0])?;
        let parameter = node.inputs.get(1).copied();
        let scalar = |builder: &mut Self| parameter.map_or(Err(not_a("scalar")), |id| builder.scalar(id));
        let charge = self.env.charge();
        Ok(match op {
            AggregateOp::Topk | AggregateOp::Bottomk => {
                let (k, largest) = (scalar(self)?, op == AggregateOp::Topk);
                let index = GroupIndex::new(subset);
                Box::new(TopK::new(child, index, k, largest, steps, node.span, charge, steps == 1))
            }
            AggregateOp::Limitk => {
                let k = scalar(self)?;
                Box::new(LimitK::new(child, GroupIndex::new(subset), k, steps, charge, inner_span))
            }
            AggregateOp::LimitRatio => {
                let ratio = scalar(self)?;
                Box::new(LimitRatio { child, ratio, steps, span: parameter_span, checked: false })
            }
            AggregateOp::Quantile => {
                let q = scalar(self)?;
                Box::new(Quantile::new(child, GroupIndex::new(subset), q, steps, parameter_span, inner_span))
            }
            AggregateOp::CountValues => {
                let label = parameter.map_or(Err(not_a("string")), |id| self.text(id))?;
                if !is_label_name(&label) {
                    return Err(EvalError::Execution(format!("invalid label name {label:?}")));
                }
                let subset = if without {
                    subset
                } else {
                    let mut labels = grouping.to_vec();
                    labels.push(label.clone());
                    LabelSubset::only(&labels)
                };
                Box::new(CountValues::new(child, subset, label, steps, inner_span, charge))
            }
            _ => Box::new(Fold::new(Some(child), op, subset, steps, inner_span)),
        })
    }

    fn call(&mut self, id: NodeId, node: &Node, function: &'static Function) -> Result<Box<dyn Operator>, EvalError> {
        let (grid, span, name) = (node.grid, node.span, function.name);
        if let Some(function) = RangeFunction::by_name(name) {
            return self.range_function(node, function, self.wanted[id as usize].nameless);
        }
        if let Some(function) = FloatFunction::by_name(name) {
            let child = self.vector(node.inputs[0])?;
            let scalars = node.inputs[1..].iter().map(|id| self.scalar(*id)).collect::<Result<_, _>>()?;
            return Ok(Box::new(MapFloats { child, function, scalars }));
        }
        if let Some(part) = date::by_name(name) {
            let child = self.vector(node.inputs[0])?;
            return Ok(Box::new(MapFloats { child, function: FloatFunction::Plain(part), scalars: Vec::new() }));
        }
        if let Some(number) = HistogramNumber::by_name(name) {
            return Ok(Box::new(HistogramNumber { child: self.vector(node.inputs[0])?, number }));
        }
        Ok(match name {
            "vector" => Box::new(VectorOf::new(self.scalar(node.inputs[0])?, grid.count, span)),
            "start_timestamp" => Box::new(WithoutStart { child: self.vector(node.inputs[0])? }),
            "timestamp" => Box::new(EvaluationTime { child: self.vector(node.inputs[0])?, grid }),
            "histogram_quantile" | "histogram_quantiles" | "histogram_fraction" => {
                self.histogram_question(node, name)?
            }
            "label_replace" | "label_join" => {
                let child = self.vector(node.inputs[0])?;
                Box::new(RelabelOperator { child, relabel: self.relabel(node, name)?, span })
            }
            "sort" | "sort_desc" | "sort_by_label" | "sort_by_label_desc" => self.sort(node, name)?,
            _ => return Err(EvalError::unsupported(format!("function {name:?}"))),
        })
    }

    fn range_function(
        &mut self,
        node: &Node,
        function: RangeFunction,
        nameless: bool,
    ) -> Result<Box<dyn Operator>, EvalError> {
        let (mut input, mut scalars) = (None, Vec::new());
        for id in &node.inputs {
            if self.plan.node(*id).value_type == ValueType::Matrix {
                input = Some(self.window(*id)?);
            } else {
                scalars.push(self.scalar(*id)?);
            }
        }
        let input = input.ok_or_else(|| not_a("range vector"))?;
        let call = RangeCall {
            function,
            window: input.shape,
            scalars: Vec::new(),
            parameter_span: node.input_spans[0],
            grid: node.grid,
            drops_name: !function.keeps_name() && !nameless,
        };
        Ok(Box::new(RangeOperator::new(input, call, scalars)))
    }

    fn histogram_question(&mut self, node: &Node, name: &str) -> Result<Box<dyn Operator>, EvalError> {
        let spanned = |builder: &mut Self, i: usize| Ok((builder.scalar(node.inputs[i])?, node.input_spans[i]));
        let (vector, question) = match (name, node.inputs.len()) {
            ("histogram_quantile", 2) => {
                let (q, span) = spanned(self, 0)?;
                (1, Question::Quantile(q, span))
            }
            ("histogram_quantiles", count @ 3..) => {
                let label = self.text(node.inputs[1])?;
                let quantiles = (2..count).map(|i| spanned(self, i)).collect::<Result<_, EvalError>>()?;
                (0, Question::Quantiles { label, quantiles })
            }
            ("histogram_fraction", 3) => {
                let (lower, upper) = (self.scalar(node.inputs[0])?, self.scalar(node.inputs[1])?);
                (2, Question::Fraction { lower, upper })
            }
            _ => return Err(EvalError::unsupported(format!("function {name:?}"))),
        };
        let child = self.vector(node.inputs[vector])?;
        let span = node.input_spans[vector];
        Ok(Box::new(HistogramOperator::new(child, question, node.grid, span)))
    }

    fn relabel(&mut self, node: &Node, name: &str) -> Result<Relabel, EvalError> {
        let texts = node.inputs[1..].iter().map(|id| self.text(*id)).collect::<Result<Vec<_>, _>>()?;
        match (name, <[String; 4]>::try_from(texts)) {
            ("label_replace", Ok([target, replacement, source, pattern])) => {
                let env = &mut *self.env;
                Relabel::replace(target, replacement, source, &pattern, &mut |bytes| env.charge_kept(bytes, node.span))
            }
            ("label_join", texts) => {
                let mut texts = texts.map_or_else(|texts| texts, Vec::from).into_iter();
                let (Some(target), Some(separator)) = (texts.next(), texts.next()) else {
                    return Err(EvalError::unsupported(format!("function {name:?}")));
                };
                Relabel::join(target, separator, texts.collect())
            }
            _ => Err(EvalError::unsupported(format!("function {name:?}"))),
        }
    }

    fn sort(&mut self, node: &Node, name: &str) -> Result<Box<dyn Operator>, EvalError> {
        let labels = node.inputs[1..].iter().map(|id| self.text(*id)).collect::<Result<_, _>>()?;
        let by = match name {
            "sort" => SortBy::Value { descending: false },
            "sort_desc" => SortBy::Value { descending: true },
            "sort_by_label" => SortBy::Labels { labels, descending: false },
            _ => SortBy::Labels { labels, descending: true },
        };
        let child = self.vector(node.inputs[0])?;
        if node.grid.count == 1 && self.plan.instant {
            return Ok(Box::new(Sort::new(child, by)));
        }
        let floats_only = matches!(by, SortBy::Value { .. });
        Ok(Box::new(IneffectiveSort { child, floats_only, span: node.span }))
    }

    fn make_window(&mut self, id: NodeId, node: &Node) -> Result<WindowInput, EvalError> {
        let (source, shape) = match &node.op {
            Op::RangeSelect { selector, range_ms, edges } => {
                let reader = self.open(id, selector, *range_ms);
                let shape = WindowShape {
                    range: *range_ms,
                    shift: selector.shift,
                    edges: *edges,
                    lookback: selector.lookback_ms,
                    span: node.span,
                    counted: selector.counted,
                };
                (WindowSource::Selector(reader), shape)
            }
            Op::Subquery { range_ms, shift, counted } => {
                let input = node.inputs[0];
                let child = self.vector(input)?;
                let shape = WindowShape {
                    range: *range_ms,
                    shift: *shift,
                    edges: EdgeMode::Plain,
                    lookback: 0,
                    span: node.span,
                    counted: *counted,
                };
                let (grid, charge) = (self.plan.node(input).grid, self.env.charge());
                // Without a step nothing below is looked at, not even for errors.
                let child = if grid.count == 0 { Box::new(Nothing) } else { child };
                (WindowSource::Subquery { child, grid, charge }, shape)
            }
            _ => return Err(not_a("range vector")),
        };
        Ok(WindowInput { source, shape })
    }

    fn make_scalar(&mut self, node: &Node) -> Result<ScalarPlan, EvalError> {
        let sides = |builder: &mut Self| -> Result<(Box<ScalarPlan>, Box<ScalarPlan>), EvalError> {
            let [lhs, rhs] = node.inputs[..] else { return Err(not_a("scalar")) };
            Ok((Box::new(builder.scalar(lhs)?), Box::new(builder.scalar(rhs)?)))
        };
        Ok(match &node.op {
            Op::Number(value) => ScalarPlan::constant(*value),
            Op::Time => ScalarPlan::Time(node.grid),
            Op::Negate => ScalarPlan::Negate(Box::new(self.scalar(node.inputs[0])?)),
            Op::Binary { op, .. } => {
                let (lhs, rhs) = sides(self)?;
                ScalarPlan::Binary { op: *op, lhs, rhs }
            }
            Op::Call(function) => match function.name {
                name @ ("min_of" | "max_of") => {
                    let (lhs, rhs) = sides(self)?;
                    ScalarPlan::Extreme { max: name == "max_of", lhs, rhs }
                }
                "scalar" => {
                    let child = self.vector(node.inputs[0])?;
                    ScalarPlan::OfVector(Box::new(OfVector::new(child, node.grid)))
                }
                name => return Err(EvalError::unsupported(format!("function {name:?}"))),
            },
            _ => return Err(not_a("scalar")),
        })
    }

    fn open(&mut self, id: NodeId, selector: &Selector, range_ms: i64) -> SeriesReader {
        let hints = Hints { step_ms: selector.step_ms, range_ms, function: selector.above.clone() };
        let (matchers, range, shard) = (selector.matchers.clone(), selector.range, selector.shard);
        let select = Select { matchers, range, shard, hints };
        let source = self.source.select(select);
        let read = self.env.explain.as_ref().map(|explain| explain.node(id));
        let span: Span = self.plan.node(id).span;
        SeriesReader::new(source, selector.range, self.env.charge(), span)
            .with_counts_only(selector.counts_only)
            .with_report(read)
    }
}

fn subset(grouping: &[String], without: bool) -> LabelSubset {
    if without { LabelSubset::without(grouping) } else { LabelSubset::only(grouping) }
}

/// Whether an aggregation puts series into groups by labels that have nothing to do with the metric name, and forgets
/// theirs.
fn groups_by_labels_only(op: &Op) -> bool {
    use AggregateOp as A;
    let Op::Aggregate { op, grouping, without: false } = op else { return false };
    let forgets = is_divisible(*op) || matches!(op, A::Stddev | A::Stdvar | A::Quantile);
    forgets && !grouping.iter().any(|label| label.starts_with("__"))
}

fn not_a(what: &str) -> EvalError {
    EvalError::Internal(format!("a node of the plan is not a {what}"))
}
