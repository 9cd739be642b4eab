//! What each node of a plan costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use super::context::Clock;
use super::env::Env;
use super::error::EvalError;
use super::operator::Operator;
use super::points::StepSeries;
use crate::plan::{NodeId, Plan};

/// What a node of a plan cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeCost {
    /// Time spent in the node and its inputs on the query's own thread, waiting for sources not counted.
    pub time: Duration,
    /// Time workers spent on pieces of the node, the query's own thread among them.
    pub worker_time: Duration,
    /// Series it yielded.
    pub series: u64,
    /// Values it yielded, over all series and steps.
    pub points: u64,
    /// Bytes of what it yielded.
    pub bytes: u64,
    /// Series it read from its source.
    pub series_read: u64,
    /// Samples it decoded.
    pub samples_read: u64,
    /// Encoded bytes it read from its source.
    pub bytes_read: u64,
}

/// Where the costs of a plan's nodes are noted.
#[derive(Debug)]
pub(crate) struct Explain {
    nodes: Vec<Arc<NodeReport>>,
    clock: Clock,
}

impl Explain {
    pub(crate) fn new(plan: &Plan, clock: &Clock) -> Self {
        Self { nodes: plan.nodes.iter().map(|_| Arc::default()).collect(), clock: clock.clone() }
    }

    pub(crate) fn node(&self, id: NodeId) -> Arc<NodeReport> {
        Arc::clone(&self.nodes[id as usize])
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    pub(crate) fn costs(&self) -> Vec<NodeCost> {
        self.nodes.iter().map(|node| node.cost()).collect()
    }
}

/// What a node costs, so far.
#[derive(Debug, Default)]
pub(crate) struct NodeReport {
    nanos: AtomicU64,
    worker_nanos: AtomicU64,
    series: AtomicU64,
    points: AtomicU64,
    bytes: AtomicU64,
    series_read: AtomicU64,
    samples_read: AtomicU64,
    bytes_read: AtomicU64,
}

fn add(to: &AtomicU64, more: u64) {
    to.fetch_add(more, Ordering::Relaxed);
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl NodeReport {
    pub(crate) fn read_bytes(&self, bytes: usize) {
        add(&self.bytes_read, bytes as u64);
    }

    pub(crate) fn read_series(&self, series: u64, samples: u64) {
        add(&self.series_read, series);
        add(&self.samples_read, samples);
    }

    /// Adds what the node cost in another process.
    pub(crate) fn take_in(&self, cost: &NodeCost) {
        add(&self.nanos, nanos(cost.time));
        self.worked(cost.worker_time);
        add(&self.series, cost.series);
        add(&self.points, cost.points);
        add(&self.bytes, cost.bytes);
        self.read_series(cost.series_read, cost.samples_read);
        add(&self.bytes_read, cost.bytes_read);
    }

    pub(crate) fn worked(&self, time: Duration) {
        add(&self.worker_nanos, nanos(time));
    }

    fn cost(&self) -> NodeCost {
        let get = |from: &AtomicU64| from.load(Ordering::Relaxed);
        NodeCost {
            time: Duration::from_nanos(get(&self.nanos)),
            worker_time: Duration::from_nanos(get(&self.worker_nanos)),
            series: get(&self.series),
            points: get(&self.points),
            bytes: get(&self.bytes),
            series_read: get(&self.series_read),
            samples_read: get(&self.samples_read),
            bytes_read: get(&self.bytes_read),
        }
    }
}

/// Measures an operator.
pub(crate) struct Measured {
    child: Box<dyn Operator>,
    report: Arc<NodeReport>,
    clock: Clock,
}

impl Measured {
    pub(crate) fn new(child: Box<dyn Operator>, report: Arc<NodeReport>, clock: Clock) -> Self {
        Self { child, report, clock }
    }
}

impl Operator for Measured {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        let begun = self.clock.now();
        let polled = self.child.poll_next(cx, env);
        add(&self.report.nanos, nanos(self.clock.now().saturating_sub(begun)));
        if let Poll::Ready(Ok(Some(series))) = &polled {
            add(&self.report.series, 1);
            add(&self.report.points, series.points.len() as u64);
            add(&self.report.bytes, (series.points.heap_bytes() + series.labels.as_bytes().len()) as u64);
        }
        polled
    }
}
