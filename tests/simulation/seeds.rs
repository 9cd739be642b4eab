//! Runs seeds, each in a process of its own, and says what came of them.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cluster::Variant;
use crate::scenario;

/// Seeds of a run of all tests.
const SEEDS: u64 = 60;
/// Among so many seeds each broken variant is noticed.
const SEEDS_OF_VARIANTS: u64 = 12;
/// Longest time of one seed, however busy the machine is.
const LONGEST: Duration = Duration::from_secs(300);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// What a process that ran a seed said.
struct Said {
    passed: bool,
    /// By name, from its last line.
    facts: BTreeMap<String, u64>,
    text: String,
}

/// Runs a seed in another process.
fn run_apart(seed: u64, variant: Variant) -> Said {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["seeds::one_seed", "--exact", "--nocapture", "--test-threads=1"])
        .env("SIMULATION_SEED", seed.to_string())
        .env("SIMULATION_VARIANT", variant.name())
        .env("SIMULATION_TRACE_TAIL", "60")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (done, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        let said = scope.spawn(move || {
            let mut text = String::new();
            let _ = std::io::Read::read_to_string(&mut stdout, &mut text);
            text
        });
        let complained = scope.spawn(move || {
            let mut text = String::new();
            let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
            text
        });
        let pid = rustix::process::Pid::from_child(&child);
        scope.spawn(move || {
            if ended.recv_timeout(LONGEST).is_err() {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        });
        let status = child.wait().unwrap();
        let _ = done.send(());
        let text = said.join().unwrap() + &complained.join().unwrap();
        let facts =
            text.lines().find_map(|line| line.split_once("facts: ")).map(|(_, facts)| facts).unwrap_or_default();
        let facts = facts.split_whitespace().filter_map(|fact| fact.split_once('='));
        let facts = facts.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect();
        Said { passed: status.success(), facts, text }
    })
}

/// Runs seeds, as many at a time as there are processors, until `enough` says that it is.
fn run_many(seeds: impl Iterator<Item = u64> + Send, variant: Variant, enough: impl Fn(u64, &Said) -> bool + Sync) {
    let seeds = Mutex::new(seeds);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let Some(seed) = seeds.lock().next() else { return };
                    let said = run_apart(seed, variant);
                    if enough(seed, &said) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// One seed in this process: how the others run theirs, and how a failure is looked at.
#[test]
fn one_seed() {
    let seed = number("SIMULATION_SEED").unwrap_or(1);
    let variant = std::env::var("SIMULATION_VARIANT").map_or(Variant::Sound, |name| Variant::named(&name).unwrap());
    let panicked = std::sync::Arc::new(AtomicU64::new(0));
    let (counted, hook) = (panicked.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        counted.fetch_add(1, Ordering::Relaxed);
        hook(info);
    }));
    let begun = Instant::now();
    let (outcome, trace, mut what) = scenario::run(seed, variant);
    if what.is_ok() && panicked.load(Ordering::Relaxed) > 0 {
        what = Err("something panicked".to_owned());
    }
    println!(
        "facts: acknowledged={} refused={} queries={} failed_queries={} samples_read={} digest={} ms={}",
        outcome.acknowledged,
        outcome.refused,
        outcome.queries,
        outcome.failed_queries,
        outcome.samples_read,
        outcome.digest,
        begun.elapsed().as_millis()
    );
    if let Err(what) = what {
        let tail = number("SIMULATION_TRACE_TAIL").unwrap_or(u64::MAX) as usize;
        let from = trace.len().saturating_sub(tail);
        println!("{}", trace[from..].join("\n"));
        panic!("SIMULATION_SEED={seed} SIMULATION_VARIANT={}: {what}", variant.name());
    }
}

/// Whatever happens, every acknowledged sample is in every answer that is not an error, and no tenant sees another's.
#[test]
fn nothing_acknowledged_is_missing_whatever_happens() {
    if number("SIMULATION_SEED").is_some() {
        return;
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let first = number("SIMULATION_FIRST_SEED").unwrap_or(0);
    let (begun, failures) = (Instant::now(), Mutex::new(Vec::new()));
    let sums: Mutex<BTreeMap<String, u64>> = Mutex::default();
    run_many(first..first + seeds, Variant::Sound, |seed, said| {
        if !said.passed {
            println!("seed {seed} fails:\n{}", said.text);
            failures.lock().push(seed);
        }
        for (name, value) in said.facts.iter().filter(|(name, _)| *name != "digest") {
            *sums.lock().entry(name.clone()).or_default() += value;
        }
        failures.lock().len() >= 10
    });
    let (failures, sums) = (failures.into_inner(), sums.into_inner());
    println!("{seeds} seeds in {:?}: {sums:?}", begun.elapsed());
    assert!(failures.is_empty(), "run again with SIMULATION_SEED={}: all that fail: {failures:?}", failures[0]);
    // It was no empty show.
    assert!(sums["queries"] > 2 * sums["failed_queries"] && sums["samples_read"] > seeds * 1000, "{sums:?}");
}

/// Clusters that are put together wrongly break their promise, and the simulation notices.
#[test]
fn broken_variants_are_caught() {
    if number("SIMULATION_SEED").is_some() {
        return;
    }
    for variant in Variant::BROKEN {
        let caught = Mutex::new(None);
        run_many(0..SEEDS_OF_VARIANTS, variant, |seed, said| {
            let why = said.text.lines().find(|line| line.contains("WRONG: ")).map(str::to_owned);
            if let Some(why) = why.filter(|_| !said.passed) {
                caught.lock().get_or_insert((seed, why));
            }
            caught.lock().is_some()
        });
        let caught = caught.into_inner();
        println!("{}: {caught:?}", variant.name());
        assert!(caught.is_some(), "{} passes {SEEDS_OF_VARIANTS} seeds", variant.name());
    }
}

/// A seed is the same run every time.
#[test]
fn a_seed_replays() {
    if number("SIMULATION_SEED").is_some() {
        return;
    }
    let digests: Vec<_> = (0..2).map(|_| run_apart(7, Variant::Sound).facts["digest"]).collect();
    assert_eq!(digests[0], digests[1]);
}
