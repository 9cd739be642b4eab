//! The partial results of shards, made one.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::aggregate::fold::Fold;
use super::aggregate::partial::PartialGroup;
use super::annotations::Annotations;
use super::context::Charge;
use super::env::{Env, Said};
use super::error::EvalError;
use super::explain::NodeCost;
use super::operator::Operator;
use super::output::QueryStats;
use super::points::StepSeries;
use crate::ast::Span;
use crate::plan::{NodeId, Plan};

/// What a shard of an aggregation yields.
#[derive(Debug, Clone, Default)]
pub struct FragmentOutput {
    /// Its groups, unfinished.
    pub groups: Vec<PartialGroup>,
    /// Warnings and infos.
    pub annotations: Annotations,
    /// What it took.
    pub stats: QueryStats,
    /// What each node of the fragment took, by its id, if that was measured.
    pub explain: Option<Vec<NodeCost>>,
}

/// The answer of a fragment, some time.
pub type FragmentFuture = Pin<Box<dyn Future<Output = Result<FragmentOutput, EvalError>> + Send>>;

/// Evaluates fragments of a plan, in this process or in others.
pub trait FragmentRunner: Send + Sync {
    /// Starts the evaluation of a fragment, whose root is an aggregation, as [`super::evaluate_fragment`] does it.
    /// Dropping the future cancels it.
    fn run(&self, fragment: Plan) -> FragmentFuture;
}

impl std::fmt::Debug for dyn FragmentRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FragmentRunner")
    }
}

fn heap_bytes(output: &FragmentOutput) -> usize {
    output.groups.iter().map(PartialGroup::heap_bytes).sum()
}

/// A shard.
pub(crate) enum PartialInput {
    /// Evaluated in this query.
    Here(Box<Fold>),
    /// Evaluated as a query of its own; these are its nodes in this one.
    Elsewhere(FragmentFuture, Vec<NodeId>),
    /// Taken in.
    Done,
}

/// Makes the groups of shards one, in the order of the shards.
pub(crate) struct Combine {
    inputs: Vec<PartialInput>,
    /// What came of the inputs that were ready before their turn.
    outputs: Vec<Option<FragmentOutput>>,
    next: usize,
    fold: Fold,
    /// Holds what has come from elsewhere and is not taken in.
    charge: Charge,
    held: usize,
    span: Span,
}

impl Combine {
    pub(crate) fn new(inputs: Vec<PartialInput>, fold: Fold, charge: Charge, span: Span) -> Self {
        let outputs = inputs.iter().map(|_| None).collect();
        Self { inputs, outputs, next: 0, fold, charge, held: 0, span }
    }

    fn poll_inputs(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Result<(), EvalError> {
        for (input, output) in self.inputs.iter_mut().zip(&mut self.outputs) {
            let polled = match input {
                PartialInput::Done => continue,
                PartialInput::Here(fold) => fold
                    .poll_partial(cx, env)
                    .map(|groups| groups.map(|groups| FragmentOutput { groups, ..FragmentOutput::default() })),
                PartialInput::Elsewhere(future, _) => future.as_mut().poll(cx),
            };
            if let Poll::Ready(outcome) = polled {
                let outcome = outcome?;
                if let (PartialInput::Elsewhere(_, nodes), Some(explain), Some(costs)) =
                    (&*input, &env.explain, &outcome.explain)
                {
                    nodes.iter().zip(costs).for_each(|(id, cost)| explain.node(*id).take_in(cost));
                }
                self.held += heap_bytes(&outcome);
                self.charge.resize(self.held, self.span)?;
                *output = Some(outcome);
                *input = PartialInput::Done;
            }
        }
        Ok(())
    }
}

impl Operator for Combine {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        if self.next < self.inputs.len() {
            self.poll_inputs(cx, env)?;
        }
        while let Some(output) = self.outputs.get_mut(self.next) {
            let Some(output) = output.take() else { return Poll::Pending };
            let bytes = heap_bytes(&output);
            env.take_in(Said { annotations: output.annotations, stats: output.stats, ..Said::default() });
            for group in output.groups {
                self.fold.add_partial(group, env)?;
            }
            self.held -= bytes;
            self.charge.resize(self.held, self.span)?;
            self.next += 1;
        }
        let series = ready!(self.fold.poll_next(cx, env))?;
        Poll::Ready(Ok(series))
    }
}
