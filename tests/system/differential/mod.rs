//! Show 2: random queries, asked of Debian's Prometheus 2.42 and of Skald over the same blocks: no difference.
//!
//! `SKALD_DIFFERENTIAL_QUERIES` is how many, `SKALD_DIFFERENTIAL_SEED` decides data and queries (it is printed; always the
//! same one by default, so that what breaks is what changed). The show:
//! `SKALD_DIFFERENTIAL_QUERIES=20000 cargo test --test system differential -- --nocapture`
//!
//! [`series`] makes the data and writes it as blocks, [`grammar`] makes queries ([`query`] is their tree), [`rules`] let pass
//! what both versions answer alike and derive [`facts`], which say how exactly; [`answer`] compares. On a difference the
//! query is shrunk and printed with both answers. A tenth as many queries with a mistake follow ([`broken`]).
//!
//! # What is compared
//!
//! Status, type of the result, labels, times, the order of a matrix and, by value, of a sorted vector; errors with type and
//! message, but for the label sets they name, whose choice is a hash map's in 2.42. Values are equal as text, unless
//! rounding may differ: sums and means, which 3.x compensates and 2.42 adds up in the order of a hash map, and the
//! logarithms and exponentials of another library, within 1e-12; trigonometry, powers and deviations, which enlarge
//! rounding, within 1e-9. NaN and the infinities are always compared as text. To know which is which, most metrics are
//! multiples of 1/8, whose sums are exact in any order.
//!
//! # Differences between 2.42 and 3.x, and how they are kept out
//!
//! - 2.42 includes a window's left edge, and the step of a subquery on it. Samples lie at 1 modulo 4 ms; no left edge does,
//!   and no left edge of a subquery at 0, where its steps are. Right edges do hit samples, and left ones pass 1 ms beside.
//! - A rate looks for a counter's zero before, not after, it looks how far the first sample is from the edge, and never for
//!   a histogram's. Counters begin at 0 or are large beside their increase; only those are resampled by a subquery.
//! - 2.42 knows histograms only in selectors, `rate`, `increase`, `delta`, `sum`, `+`, sets, counting and their own functions;
//!   elsewhere it takes them for 0. It forgets that one is a gauge, takes stale markers of another encoding for samples, and
//!   lists the samples of a range with the buckets of another series. 3.x interpolates exponentially inside buckets, so
//!   `histogram_quantile` is asked of classic ones, `histogram_fraction` of bounds between buckets.
//! - Of classic histograms 2.42 keeps apart what differs in name alone, and 3.x ignores differences below 1e-12: of inexact
//!   buckets only inner quantiles are asked.
//! - Sums near 0, and of a negative zero alone; means of numbers of both signs; `stddev` of infinities; regressions and
//!   deviations over them: compensation and the first step differ.
//! - `topk` and `bottomk` keep others of equal values, as 2.42 takes one out and puts one in where 3.x replaces, and replace
//!   NaN by NaN: they get numbers of many digits, all finite. A NaN as parameter has another error, and so has one far below
//!   0. `quantile`, `min`, `max` get no zeros of both signs.
//! - What jumps (rounding, comparison, `%`, counting values, dates, changes) gets no inexact numbers, comparison excepted
//!   with a number of many digits. Dates get what fits an integer: Go leaves the rest to the machine.
//! - `atan2` keeps the name in 2.42. `holt_winters` has another name. A sign over series that its loss of the name makes alike,
//!   but never at one time, is an error in 2.42; so are comparisons that match several elements only in 3.x, where they fail.
//! - Bugs of 2.42: a window fixed by `@` moves with the steps when another parameter varies; `count_values by` spoils its
//!   labels from the second step on; a matrix of a subquery is not sorted. Of both: `timestamp` forgets an offset beside `@`.
//! - Of two errors either may come first, as 3.x looks at texts before it evaluates: at most one place may fail. An error
//!   under a subquery without steps is met by 3.x only. 2.42 does not say `invalid parameter "query"` of range queries.
//! - `.` and newlines, names that are not identifiers: none occur. Go's `exp` ends a bit below the largest number.

mod answer;
mod broken;
pub mod chance;
mod facts;
mod grammar;
mod query;
mod rules;
mod series;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt;

use self::answer::{Reply, Terms, difference};
use self::chance::Chance;
use self::grammar::{AGGREGATIONS, FUNCTIONS, Grammar, Question};
use self::query::{Dialect, Expr, When, duration, respelled};
use crate::golden::copy_dir;
use crate::process::{Process, Skald, answer_of, free_port, http_client, installed, wait_for};

/// Questions under way at a time.
const CONCURRENT: usize = 8;
/// Differences after which a run ends.
const ENOUGH: usize = 12;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// A Prometheus on copies of the blocks.
pub struct Prometheus {
    _process: Process,
    pub url: String,
}

impl Prometheus {
    pub async fn start(dir: &Path) -> Prometheus {
        std::fs::write(dir.join("prometheus.yml"), "global: {}\n").unwrap();
        let port = free_port();
        let arguments = [
            format!("--config.file={}", dir.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", dir.join("prometheus").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            format!("--query.lookback-delta={}", duration(rules::LOOKBACK_MS)),
            "--enable-feature=native-histograms".to_owned(),
        ];
        let process = Process::start("prometheus", &arguments, &dir.join("prometheus.log"));
        let url = format!("http://127.0.0.1:{port}");
        let client = http_client();
        wait_for("Prometheus is ready", 30, async || {
            client.get(format!("{url}/-/ready")).send().await.ok().filter(|answer| answer.status().is_success())
        })
        .await;
        Prometheus { _process: process, url }
    }
}

/// Both sides.
struct Pair {
    client: reqwest::Client,
    old: String,
    new: String,
}

impl Pair {
    async fn ask_one(&self, base: &str, query: &str, when: When, spelling: u64) -> Reply {
        let (path, times) = when.request(spelling);
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("query", query).extend_pairs(times.iter().map(|(name, value)| (*name, value.as_str())));
        let request = self.client.post(format!("{base}{path}")).body(form.finish());
        let request = request.header("Content-Type", "application/x-www-form-urlencoded");
        let answer = answer_of(request).await.unwrap_or_else(|error| panic!("{base} does not answer {query}: {error}"));
        let body = serde_json::from_str(&answer.body).unwrap_or_default();
        Reply { status: answer.status, body, text: answer.body }
    }

    async fn ask(&self, expr: &Expr, when: When, spelling: u64) -> (Reply, Reply) {
        let [old, new] = [Dialect::Old, Dialect::New].map(|dialect| respelled(&expr.text(dialect), spelling));
        self.ask_texts(&old, &new, when, spelling).await
    }

    async fn ask_texts(&self, old: &str, new: &str, when: When, spelling: u64) -> (Reply, Reply) {
        futures::join!(self.ask_one(&self.old, old, when, spelling), self.ask_one(&self.new, new, when, spelling))
    }

    /// What differs in the answers to a question, if it may be asked.
    async fn difference(&self, expr: &Expr, when: When) -> Option<String> {
        let facts = rules::check(expr, when).ok()?;
        let (old, new) = self.ask(expr, when, 0).await;
        difference(&old, &new, terms(expr, when, facts.precision))
    }

    /// The smallest question found that still differs.
    async fn shrink(&self, mut expr: Expr, mut when: When) -> (Expr, When) {
        let mut tries = 0;
        'smaller: loop {
            let mut candidates: Vec<(Expr, When)> = expr.shrunk().into_iter().map(|expr| (expr, when)).collect();
            if let When::Range { start_ms, end_ms, step_ms } = when {
                let steps = (end_ms - start_ms) / step_ms;
                let range = |first: i64, last: i64| {
                    (
                        expr.clone(),
                        When::Range {
                            start_ms: start_ms + first * step_ms,
                            end_ms: start_ms + last * step_ms,
                            step_ms,
                        },
                    )
                };
                if steps > 0 {
                    candidates.extend([
                        range(0, steps / 2),
                        range(steps / 2, steps),
                        range(0, steps - 1),
                        range(1, steps),
                    ]);
                }
            }
            candidates.sort_by_key(|(expr, _)| expr.text(Dialect::New).len());
            for (smaller, at) in candidates {
                if smaller == expr && at == when {
                    continue;
                }
                tries += 1;
                if tries > 600 {
                    break 'smaller;
                }
                if self.difference(&smaller, at).await.is_some() {
                    (expr, when) = (smaller, at);
                    continue 'smaller;
                }
            }
            break;
        }
        (expr, when)
    }
}

/// Whether the elements of an instant answer come in a defined order.
fn is_ordered(expr: &Expr, when: When) -> bool {
    match expr {
        Expr::Paren(of) => is_ordered(of, when),
        Expr::Call { name: "sort" | "sort_desc", .. } => when.is_instant(),
        Expr::Aggregate { op: "topk" | "bottomk", grouping: None, .. } => when.is_instant(),
        _ => false,
    }
}

fn terms(expr: &Expr, when: When, precision: facts::Precision) -> Terms {
    Terms { precision, ordered: is_ordered(expr, when), sorted: !when.is_instant() }
}

/// What was asked and answered.
#[derive(Default)]
struct Tally {
    asked: usize,
    filled: usize,
    empty: usize,
    errors: BTreeMap<String, usize>,
    /// How often a word occurs in a query with a filled answer.
    words: BTreeMap<String, usize>,
    overloads: usize,
}

impl Tally {
    fn count(&mut self, expr: &Expr, old: &Reply) {
        self.asked += 1;
        if old.is_error() {
            let message = old.body["error"].as_str().unwrap_or_default();
            let kind = message.split(['{', '"', ':']).next().unwrap_or_default().to_owned();
            *self.errors.entry(kind).or_default() += 1;
        } else if old.is_empty() {
            self.empty += 1;
        } else {
            self.filled += 1;
            for word in expr.words().into_iter().collect::<BTreeSet<String>>() {
                *self.words.entry(word).or_default() += 1;
            }
        }
    }

    /// Functions and aggregations that no filled answer had.
    fn unseen(&self) -> Vec<&'static str> {
        let seen = |word: &str| self.words.contains_key(word);
        let functions = FUNCTIONS.iter().filter(|name| !seen(&format!("{name}()")));
        let aggregations = AGGREGATIONS
            .iter()
            .filter(|op| ![op.to_string(), format!("{op} by"), format!("{op} without")].iter().any(|w| seen(w)));
        functions.chain(aggregations).copied().collect()
    }
}

/// Asks queries with a mistake; what the sides say differently of them.
async fn mistakes(pair: &Pair, grammar: &Grammar<'_>, count: usize) -> Vec<String> {
    let mut different = Vec::new();
    let mut messages: BTreeSet<String> = BTreeSet::new();
    for _ in 0..count {
        let question = grammar.question();
        let Some(text) = broken::broken(&question.expr, grammar.chance) else { continue };
        let (old, new) = pair.ask_texts(&text, &text, question.when, 0).await;
        if !old.is_error() {
            // The mistake was none.
            continue;
        }
        let terms = terms(&question.expr, question.when, facts::Precision::Exact);
        if let Some(what) = difference(&old, &new, terms) {
            different.push(format!("{what}\n  query      {text}\n"));
        }
        messages.insert(answer::kind_of_refusal(&old));
    }
    println!("refused in {} ways: {messages:?}", messages.len());
    different.truncate(ENOUGH);
    different
}

fn short(text: &str) -> String {
    text.chars().take(1500).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn random_queries_are_answered_as_prometheus_does() {
    if !installed("prometheus") {
        return;
    }
    let count = from_environment("SKALD_DIFFERENTIAL_QUERIES").unwrap_or(2000) as usize;
    let seed = from_environment("SKALD_DIFFERENTIAL_SEED").unwrap_or(7);
    println!("SKALD_DIFFERENTIAL_SEED={seed} SKALD_DIFFERENTIAL_QUERIES={count}");

    let dir = tempfile::tempdir().unwrap();
    let written = series::write_blocks(&dir.path().join("data/blocks/anonymous"), &Chance::seeded(seed));
    copy_dir(&dir.path().join("data/blocks/anonymous"), &dir.path().join("prometheus"));
    println!("{} samples of {} series", written.samples, written.series);
    let prometheus = Prometheus::start(dir.path()).await;
    let lookback = format!("--query-frontend.lookback-delta={}", duration(rules::LOOKBACK_MS));
    let flags = [
        "--blocks-storage.bucket-index.refresh-interval=200ms",
        "--compactor.cleanup-interval=1s",
        "--limits.promql-experimental-functions=true",
        &lookback,
    ];
    let skald = Skald::start(dir.path(), &flags).await;
    let pair = Pair { client: http_client(), old: prometheus.url.clone(), new: skald.url("/prometheus") };
    let last = Expr::Selector(query::Selector {
        naming: query::Naming::Plain,
        metrics: vec![0],
        matchers: vec![],
        shift: query::Shift::default(),
    });
    let middle = When::Instant { time_ms: series::BEGIN_MS + series::LENGTH_MS * 3 / 4 };
    wait_for("Skald finds the blocks", 30, async || {
        let (old, new) = pair.ask(&last, middle, 0).await;
        (!old.is_empty() && !new.is_empty()).then_some(())
    })
    .await;

    let chance = Chance::seeded(seed.wrapping_add(1));
    let grammar = Grammar { chance: &chance, times: &written.times };
    let begun = Instant::now();
    let mut tally = Tally::default();
    let mut differences: Vec<(Question, String, Reply, Reply)> = Vec::new();
    let questions = futures::stream::iter((0..count).map(|_| grammar.question()));
    let mut answers = questions
        .map(|question| async {
            let (old, new) = pair.ask(&question.expr, question.when, question.spelling).await;
            (question, old, new)
        })
        .buffer_unordered(CONCURRENT);
    while let Some((question, old, new)) = answers.next().await {
        if old.is_overload() {
            tally.overloads += 1;
            continue;
        }
        tally.count(&question.expr, &old);
        if let Some(what) = difference(&old, &new, terms(&question.expr, question.when, question.facts.precision)) {
            differences.push((question, what, old, new));
            if differences.len() >= ENOUGH {
                break;
            }
        }
    }
    drop(answers);
    let elapsed: Duration = begun.elapsed();
    println!(
        "{} queries in {elapsed:.1?}: {} with results, {} without, {} errors on both sides, {} too large for Prometheus",
        tally.asked,
        tally.filled,
        tally.empty,
        tally.errors.values().sum::<usize>(),
        tally.overloads
    );
    println!("errors: {:?}", tally.errors);
    println!("in queries with results: {:?}", tally.words);
    let number = differences.len();
    let mut report = Vec::new();
    for (question, what, old, new) in differences {
        let (expr, when) = pair.shrink(question.expr.clone(), question.when).await;
        let small = pair.ask(&expr, when, 0).await;
        let small_what = pair.difference(&expr, when).await.unwrap_or_default();
        report.push(format!(
            "{what}\n  query      {}\n  when       {:?} ({:?})\n  Prometheus {}\n  Skald      {}\n  smaller    {small_what}\n  query      {}\n  when       {:?}\n  Prometheus {}\n  Skald      {}\n",
            respelled(&question.expr.text(Dialect::New), question.spelling),
            question.when,
            question.facts.precision,
            short(&old.text),
            short(&new.text),
            expr.text(Dialect::New),
            when.request(0),
            short(&small.0.text),
            short(&small.1.text),
        ));
    }
    let wrong = mistakes(&pair, &grammar, count / 10).await;
    report.extend(wrong);
    assert!(report.is_empty(), "{}\n{number} differ; SKALD_DIFFERENTIAL_SEED={seed}", report.join("\n"));
    if count >= 5000 {
        assert_eq!(tally.unseen(), Vec::<&str>::new(), "no query with results had them");
    }
}
