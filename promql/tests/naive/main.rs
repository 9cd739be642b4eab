//! Random queries over random data: the engine against a model written for this test alone.
//!
//! The model ([`evaluator`]) works out one step at a time by plain recursion over the syntax tree, with vectors and
//! maps, from the semantics, and never calls the engine. `scripts` checks the model itself with Prometheus' scripts.
//!
//! `SKALD_NAIVE_QUERIES` is the number of queries, `SKALD_NAIVE_SEED` the seed of the first world (printed); a failure
//! prints the seed of its world, and `SKALD_NAIVE_SEED=that SKALD_NAIVE_QUERIES=1` repeats it.

#![allow(clippy::print_stdout, reason = "seeds and counts are what a long run is read for")]

mod aggregate;
mod binary;
mod buckets;
mod calls;
mod compare;
mod dates;
mod edges;
mod evaluator;
mod faults;
mod floats;
mod histogram;
mod info;
mod parser;
mod queries;
mod random;
mod ranges;
mod scripts;
mod shrink;
mod trim;
mod value;
mod ways;
mod world;

use std::collections::BTreeMap;

use skald_promql::eval::EvalParams;
use skald_promql::parse::{ParseOptions, parse_expr};

use crate::compare::check;
use crate::queries::Queries;
use crate::random::Random;
use crate::shrink::{Case, shrunk};
use crate::world::{INTERVAL, World};

/// Queries about one world.
const PER_WORLD: u64 = 25;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn params(random: &mut Random, world: &World) -> EvalParams {
    let (from, to) = (world.start - INTERVAL, world.end + 2 * INTERVAL);
    let start =
        if random.chance(50) { world.start + INTERVAL * random.between(0, 20) } else { random.between(from, to) };
    let mut params = EvalParams::instant(start);
    if random.chance(60) {
        let step = random.one_of(&[INTERVAL, 10_000, 20_000, 60_000, 7_001, 120_000]);
        let end = start + step * random.between(0, 8) + random.one_of(&[0, 0, 3_000]);
        params = EvalParams::range(start, end, step);
    }
    EvalParams {
        lookback_ms: random.one_of(&[300_000, 300_000, 20_000, 45_000]),
        default_subquery_step_ms: random.one_of(&[60_000, 15_000]),
        delayed_name_removal: random.chance(50),
        ..params
    }
}

#[test]
fn engine_and_model_agree() {
    let (seed, queries) = (setting("SKALD_NAIVE_SEED", 1), setting("SKALD_NAIVE_QUERIES", 3000));
    println!("SKALD_NAIVE_SEED={seed} SKALD_NAIVE_QUERIES={queries}");
    let mut verdicts: BTreeMap<String, u64> = BTreeMap::new();
    let mut failures = Vec::new();
    for i in 0..queries.div_ceil(PER_WORLD) {
        let mut random = Random::new(seed + i);
        let world = World::new(&mut random);
        let storage = world.storage().with_batch_size(random.one_of(&[1, 3, 128]));
        for _ in 0..PER_WORLD {
            let params = params(&mut random, &world);
            let (start, end) = (world.start, world.end);
            let text = Queries { random: &mut random, start, end }.query();
            let query = match parse_expr(&text, &ParseOptions::ALL) {
                Ok(query) => query,
                Err(error) => {
                    *verdicts.entry(format!("not parsed: {error}")).or_default() += 1;
                    println!("{text}");
                    continue;
                }
            };
            match check(&query, &params, &world.data, &storage) {
                Ok(verdict) => *verdicts.entry(format!("{verdict:?}")).or_default() += 1,
                Err(difference) => {
                    let case = Case { query, params, data: world.data.clone() };
                    failures.push((seed + i, text, case, difference));
                }
            }
        }
    }
    verdicts.iter().for_each(|(verdict, count)| println!("{count:8} {verdict}"));
    failures.sort_by_key(|(_, text, ..)| text.len());
    let count = failures.len();
    for (seed, text, case, difference) in failures.into_iter().take(setting("SKALD_NAIVE_SHOWN", 5) as usize) {
        println!("seed {seed}: {text}\n  {:?}", case.params);
        println!("  {}", difference.chars().take(900).collect::<String>());
        if setting("SKALD_NAIVE_SHRINK", 1) == 1 {
            println!("  shrunk: {}", shrunk(case));
        }
    }
    assert!(count == 0, "{count} of {queries} differ");
}
