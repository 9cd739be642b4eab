//! One query, many ways to the same answer: on several threads, from small batches, in shards, step by step, in two
//! halves of the time.

use std::sync::Arc;

use skald_promql::ast::Expr;
use skald_promql::eval::{EvalParams, QueryContext, Workers, evaluate, evaluate_plan};
use skald_promql::parse::{ParseOptions, parse_expr};
use skald_promql::plan::Plan;
use skald_promql::testing::block_on;

use crate::compare::{Verdict, answer_of, engine, is_ordered, same};
use crate::evaluator::Answer;
use crate::queries::Queries;
use crate::random::Random;
use crate::value::{Fail, Res};
use crate::world::World;
use crate::{params, setting};

struct Threads;

impl Workers for Threads {
    fn threads(&self) -> usize {
        3
    }

    #[expect(clippy::disallowed_methods, reason = "the crate has no pool")]
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        std::thread::spawn(work);
    }
}

fn in_threads(query: &Expr, params: &EvalParams, world: &World) -> Res<Answer> {
    let context = QueryContext::unlimited().with_workers(Arc::new(Threads));
    let storage = world.storage().with_batch_size(2).with_pending();
    let result = block_on(evaluate(query, params, &storage, &context));
    let result = result.map_err(|e| Fail { kind: e.error_type(), text: e.to_string() });
    result.map(|output| answer_of(&output.value))
}

fn in_shards(query: &Expr, params: &EvalParams, world: &World, count: u32) -> Res<Answer> {
    let plan = Plan::of(query, params).map(|plan| plan.sharded(count));
    let (storage, context) = (world.storage(), QueryContext::unlimited());
    let result = plan.and_then(|plan| block_on(evaluate_plan(&plan, &storage, &context)));
    let result = result.map_err(|e| Fail { kind: e.error_type(), text: e.to_string() });
    result.map(|output| answer_of(&output.value))
}

/// The answers of several evaluations together; the first refusal is the refusal of all.
fn together(query: &Expr, parts: Vec<EvalParams>, world: &World) -> Res<Answer> {
    let storage = world.storage();
    let mut all = Vec::new();
    for params in parts {
        match engine(query, &params, &storage)? {
            Answer::Points(points) => all.extend(points),
            text => return Ok(text),
        }
    }
    Ok(Answer::Points(all))
}

/// What depends on the query's whole range, or on an order that nobody promises or that only instant queries have.
const OF_ALL_STEPS: &[&str] = &["start()", "end()", "range()", "step()", "info(", "topk", "bottomk", "limitk", "sort"];

#[test]
fn every_way_leads_to_the_same_answer() {
    let (seed, queries) = (setting("SKALD_NAIVE_SEED", 1), setting("SKALD_NAIVE_QUERIES", 3000) / 6);
    for i in 0..queries.div_ceil(10) {
        let mut random = Random::new((seed + i) ^ 0x57E9);
        let world = World::new(&mut random);
        for _ in 0..10 {
            let params = params(&mut random, &world);
            let (start, end) = (world.start, world.end);
            let text = Queries { random: &mut random, start, end }.query();
            let Ok(query) = parse_expr(&text, &ParseOptions::ALL) else { continue };
            let plain = engine(&query, &params, &world.storage());
            let seen = |way: &str, got: Res<Answer>, exact: bool| {
                match same(&got, &plain) {
                    Ok(Verdict::Close) if exact => {}
                    Ok(_) => return,
                    // Sums of histograms of odd layouts depend on their order, as in Prometheus.
                    Err(_) if !exact && !is_ordered(&query, &params, &world.data) => return,
                    Err(difference) => println!("{difference}"),
                }
                panic!("seed {}, {way}: {text}\n{params:?}\n{:?}\nplain: {:?}", seed + i, short(&got), short(&plain));
            };
            seen("threads", in_threads(&query, &params, &world), true);
            let shards = random.between(2, 5) as u32;
            if !OF_ALL_STEPS[4..].iter().any(|word| text.contains(word)) {
                seen("shards", in_shards(&query, &params, &world, shards), false);
            }
            if params.step_ms == 0 || plain.is_err() || OF_ALL_STEPS.iter().any(|word| text.contains(word)) {
                continue;
            }
            let times: Vec<i64> = (params.start_ms..=params.end_ms).step_by(params.step_ms as usize).collect();
            let range = |part: &[i64]| EvalParams { start_ms: part[0], end_ms: part[part.len() - 1], ..params.clone() };
            let instant = |t: &i64| EvalParams { step_ms: 0, ..range(&[*t]) };
            seen("step by step", together(&query, times.iter().map(instant).collect(), &world), true);
            let (first, second) = times.split_at(times.len() / 2);
            let halves = [first, second].into_iter().filter(|part| !part.is_empty()).map(range).collect();
            seen("in halves", together(&query, halves, &world), true);
        }
    }
}

fn short(answer: &Res<Answer>) -> String {
    format!("{answer:?}").chars().take(2000).collect()
}
