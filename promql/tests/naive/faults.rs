//! Queries that are stopped, starved or given broken sources: no panic, the error that was to be expected, and nothing
//! held afterwards.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use skald_model::{Columns, Labels, QueryRange};
use skald_promql::ast::Expr;
use skald_promql::eval::{EvalError, EvalParams, Interrupt, QueryContext, evaluate};
use skald_promql::parse::{ParseOptions, parse_expr};
use skald_promql::source::{Queryable, Select, SeriesBatch, SeriesSource, SourceError};
use skald_promql::testing::{MemStorage, block_on};

use crate::compare::{Verdict, answer_of, engine, same};
use crate::evaluator::Answer;
use crate::queries::Queries;
use crate::random::Random;
use crate::value::{Fail, Res};
use crate::world::World;
use crate::{params, setting};

/// What goes wrong, after so many batches were read or series decoded.
#[derive(Clone)]
enum Fault {
    Unavailable,
    Corrupt,
    Cancel(Interrupt),
    TimeOut(Interrupt),
}

/// Storage whose sources wait at random, and at some point do worse.
struct Faulty {
    storage: MemStorage,
    steps: Arc<AtomicU64>,
    after: u64,
    fault: Fault,
}

impl Faulty {
    fn source(&self) -> FaultySource {
        let (steps, fault) = (Arc::clone(&self.steps), self.fault.clone());
        FaultySource { inner: None, steps, after: self.after, fault, waits: 1 }
    }
}

impl Queryable for Faulty {
    fn select(&self, select: Select) -> Box<dyn SeriesSource> {
        Box::new(FaultySource { inner: Some(self.storage.select(select)), ..self.source() })
    }
}

struct FaultySource {
    inner: Option<Box<dyn SeriesSource>>,
    steps: Arc<AtomicU64>,
    after: u64,
    fault: Fault,
    waits: u64,
}

/// Counts a step; from the fatal one on it fails.
fn step(steps: &AtomicU64, after: u64, fault: &Fault) -> Result<u64, SourceError> {
    let step = steps.fetch_add(1, Ordering::Relaxed);
    if step >= after {
        match fault {
            Fault::Unavailable => return Err(SourceError::Unavailable("gone".to_owned())),
            Fault::Corrupt => return Err(SourceError::Corrupt("broken".to_owned())),
            Fault::Cancel(interrupt) => interrupt.cancel(),
            Fault::TimeOut(interrupt) => interrupt.time_out(),
        }
    }
    Ok(step)
}

impl SeriesSource for FaultySource {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Box<dyn SeriesBatch>>, SourceError>> {
        if self.waits > 0 {
            self.waits -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.waits = match step(&self.steps, self.after, &self.fault) {
            Ok(step) => step.wrapping_mul(0x9E37_79B9) % 3,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let Some(inner) = &mut self.inner else { return Poll::Ready(Ok(None)) };
        let (steps, after, fault) = (Arc::clone(&self.steps), self.after, self.fault.clone());
        inner.poll_batch(cx).map_ok(|batch| {
            batch.map(|inner| Box::new(FaultyBatch { inner, steps, after, fault }) as Box<dyn SeriesBatch>)
        })
    }
}

struct FaultyBatch {
    inner: Box<dyn SeriesBatch>,
    steps: Arc<AtomicU64>,
    after: u64,
    fault: Fault,
}

impl SeriesBatch for FaultyBatch {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn labels(&self, i: usize) -> &Labels {
        self.inner.labels(i)
    }

    fn decode(&self, i: usize, range: QueryRange, out: &mut Columns) -> Result<(), SourceError> {
        step(&self.steps, self.after, &self.fault)?;
        self.inner.decode(i, range, out)
    }

    fn heap_bytes(&self) -> usize {
        self.inner.heap_bytes()
    }
}

/// A query with what it answers undisturbed.
struct Undisturbed<'a> {
    query: &'a Expr,
    params: &'a EvalParams,
    plain: &'a Res<Answer>,
}

impl Undisturbed<'_> {
    /// Evaluates once more. What comes is the undisturbed answer, or an error that `expected` says yes to.
    fn check(&self, source: &dyn Queryable, context: &QueryContext, expected: impl Fn(&EvalError) -> bool) -> bool {
        let result = block_on(evaluate(self.query, self.params, source, context));
        let disturbed = match &result {
            Ok(output) => {
                let verdict = same(&Ok(answer_of(&output.value)), self.plain);
                assert!(matches!(verdict, Ok(Verdict::Equal | Verdict::Empty)), "{}: {verdict:?}", self.query);
                false
            }
            Err(error) if expected(error) => true,
            Err(error) => {
                let own = matches!(self.plain, Err(Fail { kind, .. }) if *kind == error.error_type());
                assert!(own, "{}: unexpected {error:?}, undisturbed: {:?}", self.query, self.plain);
                false
            }
        };
        drop(result);
        assert_eq!(context.bytes(), 0, "{}: something is held afterwards", self.query);
        disturbed
    }
}

#[test]
fn disturbed_queries_end_as_they_should() {
    let (seed, queries) = (setting("SKALD_NAIVE_SEED", 1), setting("SKALD_NAIVE_QUERIES", 3000) / 6);
    let mut disturbed = [0; 4];
    for i in 0..queries.div_ceil(10) {
        let mut random = Random::new((seed + i) ^ 0xFA17);
        let world = World::new(&mut random);
        let storage = world.storage().with_batch_size(random.one_of(&[1, 2, 5]));
        for _ in 0..10 {
            let params = params(&mut random, &world);
            let (start, end) = (world.start, world.end);
            let text = Queries { random: &mut random, start, end }.query();
            let Ok(query) = parse_expr(&text, &ParseOptions::ALL) else { continue };
            let plain = engine(&query, &params, &storage);
            let undisturbed = Undisturbed { query: &query, params: &params, plain: &plain };

            let memory = random.one_of(&[0, 10, 1000, 5_000, 20_000]) + random.below(2000) as usize;
            let context = QueryContext::new(Some(memory), None, Interrupt::default());
            let starved = |e: &EvalError| matches!(e, EvalError::MemoryLimit { .. });
            disturbed[0] += u32::from(undisturbed.check(&storage, &context, starved));

            let samples = random.below(200) as usize;
            let context = QueryContext::new(None, Some(samples), Interrupt::default());
            let starved = |e: &EvalError| matches!(e, EvalError::TooManySamples);
            disturbed[1] += u32::from(undisturbed.check(&storage, &context, starved));

            let interrupt = Interrupt::default();
            let fault = match random.below(4) {
                0 => Fault::Unavailable,
                1 => Fault::Corrupt,
                2 => Fault::Cancel(interrupt.clone()),
                _ => Fault::TimeOut(interrupt.clone()),
            };
            let expected = |e: &EvalError| match &fault {
                Fault::Unavailable => matches!(e, EvalError::Source(SourceError::Unavailable(_))),
                Fault::Corrupt => matches!(e, EvalError::Source(SourceError::Corrupt(_))),
                Fault::Cancel(_) => matches!(e, EvalError::Canceled),
                Fault::TimeOut(_) => matches!(e, EvalError::Timeout),
            };
            let (storage, steps) = (storage.clone(), Arc::default());
            let faulty = Faulty { storage, steps, after: random.below(30), fault: fault.clone() };
            let context = QueryContext::new(None, None, interrupt);
            disturbed[2] += u32::from(undisturbed.check(&faulty, &context, expected));

            disturbed[3] += u32::from(dropped_half_way(&query, &params, &world, random.below(6)));
        }
    }
    println!(
        "disturbed: memory {}, samples {}, faults {}, dropped {}",
        disturbed[0], disturbed[1], disturbed[2], disturbed[3]
    );
    assert!(queries < 100 || disturbed.iter().all(|count| *count > 10), "{disturbed:?}");
}

/// Polls so often, then drops the future; whether it was not through by then.
fn dropped_half_way(query: &Expr, params: &EvalParams, world: &World, polls: u64) -> bool {
    struct Nobody;
    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }
    let (storage, context) = (world.storage().with_batch_size(1).with_pending(), QueryContext::unlimited());
    let waker = Waker::from(Arc::new(Nobody));
    let pending = {
        let mut future = pin!(evaluate(query, params, &storage, &context));
        (0..polls).all(|_| future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending())
    };
    assert_eq!(context.bytes(), 0, "{query}: something is held after the future is dropped");
    pending
}
