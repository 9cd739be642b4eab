//! Random data: counters, gauges and histograms with resets, gaps, stale markers, NaN and infinities; label sets that
//! join and collide.

use skald_model::{Columns, Labels, ResetHint, stale_nan};
use skald_promql::testing::MemStorage;

use crate::histogram::{Buckets, CUSTOM, Hist, bound};
use crate::random::Random;
use crate::value::{Data, Sample, V};

/// Usual distance of two samples.
pub const INTERVAL: i64 = 15_000;

/// What a query is asked about.
pub struct World {
    pub data: Data,
    /// First and last time with samples.
    pub start: i64,
    pub end: i64,
}

pub const FLOAT_METRICS: [&str; 4] = ["c_total", "d_total", "g", "w"];
pub const HIST_METRICS: [&str; 4] = ["h", "hg", "k", "hk"];

impl World {
    pub fn new(random: &mut Random) -> Self {
        let start = random.one_of(&[0, 0, -300_000, 1_700_000_000_000, 1_709_164_700_000]);
        let samples = random.between(8, 40);
        let end = start + samples * INTERVAL;
        let mut data = Data::new();
        for metric in ["c_total", "d_total", "g", "w", "h", "hg", "k", "hk", "mix"] {
            for _ in 0..random.between(1, 5) {
                let labels = labels(random, metric);
                let values = series(random, metric, start, end);
                data.push((labels, values));
            }
        }
        for _ in 0..random.between(1, 3) {
            data.extend(classic(random, start, end));
        }
        for metric in ["target_info", "build_info"] {
            for _ in 0..random.between(0, 3) {
                let mut labels = labels(random, metric);
                for name in ["version", "region"] {
                    if random.chance(70) {
                        labels = crate::value::set_label(&labels, name, random.one_of(&["1", "2"]));
                    }
                }
                let kind = if random.chance(3) { "h" } else { "info" };
                let values = series(random, kind, start, end);
                data.push((labels, values));
            }
        }
        data.sort_by(|a, b| a.0.cmp(&b.0));
        data.dedup_by(|a, b| a.0 == b.0);
        Self { data, start, end }
    }

    pub fn storage(&self) -> MemStorage {
        MemStorage::new(self.data.iter().map(|(labels, samples)| (labels.clone(), columns(samples))))
    }
}

pub fn columns(samples: &[Sample]) -> Columns {
    let mut columns = Columns::default();
    for s in samples {
        match &s.v {
            V::F(value) => columns.push_float(s.t, *value),
            V::H(h) => columns.push_histogram(s.t, h.to_model()),
        }
    }
    columns
}

fn labels(random: &mut Random, metric: &str) -> Labels {
    let mut pairs = vec![("__name__", metric)];
    if random.chance(90) {
        pairs.push(("instance", random.one_of(&["a", "b", "c"])));
    }
    if random.chance(80) {
        pairs.push(("job", random.one_of(&["1", "2"])));
    }
    if random.chance(40) {
        pairs.push(("zone", random.one_of(&["x9", "x10"])));
    }
    Labels::from_pairs(pairs)
}

/// Times with jitter and gaps.
fn times(random: &mut Random, start: i64, end: i64) -> Vec<i64> {
    let jitter = random.one_of(&[0, 0, 1, 3000]);
    let gaps = random.one_of(&[0, 5, 30]);
    let mut all: Vec<i64> = Vec::new();
    let mut t = start + random.one_of(&[0, 0, 7_000]);
    if random.chance(15) {
        t += INTERVAL * random.between(1, 15);
    }
    while t <= end {
        let at = t + random.between(0, jitter);
        if !random.chance(gaps) && all.last().is_none_or(|last| *last < at) {
            all.push(at);
        }
        t += if random.chance(2) { INTERVAL * random.between(2, 10) } else { INTERVAL };
    }
    if random.chance(10) {
        all.truncate(all.len() / 2);
    }
    all
}

fn series(random: &mut Random, metric: &str, start: i64, end: i64) -> Vec<Sample> {
    let times = times(random, start, end);
    let odd = random.one_of(&[0, 0, 0, 5, 20]);
    let stale = random.one_of(&[0, 0, 5, 15]);
    let mut float = Float::new(random, metric);
    let mut hist = HistSource::new(random, metric);
    let value = |random: &mut Random, t: i64| {
        let is_hist = match metric {
            "h" | "hg" | "k" | "hk" => !random.chance(1),
            "mix" => random.chance(50),
            _ => false,
        };
        let mut v = if is_hist { V::hist(hist.next(random)) } else { V::F(float.next(random, odd)) };
        if random.chance(stale) {
            v = match v {
                V::F(_) => V::F(stale_nan()),
                V::H(h) => V::hist(Hist { sum: stale_nan(), ..Hist::empty(h.schema) }),
            };
        }
        Sample { t, v }
    };
    let mut value = value;
    times.into_iter().map(|t| value(random, t)).collect()
}

struct Float {
    kind: usize,
    value: f64,
    resets: u64,
}

impl Float {
    fn new(random: &mut Random, metric: &str) -> Self {
        let kind = match metric {
            "c_total" | "d_total" => random.weighted(&[5, 2]),
            "info" => 5,
            _ => 2 + random.weighted(&[5, 3, 3]),
        };
        Self { kind, value: random.between(0, 50) as f64, resets: random.one_of(&[0, 3, 20]) }
    }

    fn next(&mut self, random: &mut Random, odd: u64) -> f64 {
        if random.chance(odd) {
            let big = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0, 1.7e308, -1.7e308, 5e-324, 1e15];
            return random.one_of(&big);
        }
        if random.chance(self.resets) {
            self.value = 0.0;
        }
        match self.kind {
            0 => self.value += random.between(0, 9) as f64,
            1 => self.value += random.between(0, 1000) as f64 / 7.0,
            2 => self.value = random.between(-4, 4) as f64,
            3 => self.value = random.between(-40, 40) as f64 / 8.0,
            4 => self.value = random.between(-1000, 1000) as f64 / 9.0,
            _ => self.value = 1.0,
        }
        self.value
    }
}

/// A native histogram that grows from sample to sample, or not.
struct HistSource {
    now: Hist,
    gauge: bool,
    restless: u64,
    odd: u64,
    kind: u64,
}

const BOUNDS: [&[f64]; 5] =
    [&[1.0, 2.0, 5.0], &[1.0, 5.0], &[-2.0, 0.0, 2.0], &[0.5, 1.0, 2.0, 3.0], &[f64::NEG_INFINITY, 1.0]];

impl HistSource {
    fn new(random: &mut Random, metric: &str) -> Self {
        let kind = match metric {
            "k" => 1,
            "hk" => 2,
            _ => 0,
        };
        let mut source = Self {
            now: Hist::empty(0),
            gauge: metric == "hg" || random.chance(10),
            restless: random.one_of(&[0, 0, 3, 15]),
            odd: random.one_of(&[0, 0, 0, 10]),
            kind,
        };
        source.restart(random);
        source
    }

    fn restart(&mut self, random: &mut Random) {
        if self.kind == 1 || self.kind == 2 && random.chance(50) {
            self.now = Hist { bounds: random.one_of(&BOUNDS[..4]).to_vec(), ..Hist::empty(CUSTOM) };
            if random.chance(3) {
                self.now.bounds = Vec::new();
            }
            return;
        }
        let zero_threshold = random.one_of(&[0.0, 0.0, 0.001, 0.5, 1.0, 3.0, 2f64.sqrt()]);
        self.now = Hist { zero_threshold, ..Hist::empty(random.one_of(&[0, 0, 0, 1, 2, -1, 3])) };
    }

    fn next(&mut self, random: &mut Random) -> Hist {
        if random.chance(self.restless) {
            self.restart(random);
        }
        if self.gauge || random.chance(4) {
            let emptied = Hist::empty(self.now.schema);
            let (zero_threshold, bounds) = (self.now.zero_threshold, self.now.bounds.clone());
            self.now = Hist { zero_threshold, bounds, ..emptied };
        }
        for _ in 0..random.between(0, 4) {
            self.observe(random);
        }
        let hints = [ResetHint::Unknown, ResetHint::NotReset, ResetHint::Reset, ResetHint::Gauge];
        let hint = if self.gauge { ResetHint::Gauge } else { hints[random.weighted(&[85, 10, 4, 1])] };
        let mut h = self.now.with_hint(hint);
        if random.chance(self.odd) {
            match random.below(5) {
                0 => h.sum = f64::NAN,
                1 => (h.sum, h.count) = (f64::NAN, h.count + 2.0),
                2 => h.count += 3.0,
                3 => h = h.times(0.37).with_hint(hint),
                _ => drop(h.positive.insert(if h.is_custom() { 0 } else { 4 }, 0.0)),
            }
        }
        h
    }

    fn observe(&mut self, random: &mut Random) {
        let count = random.between(1, 4) as f64;
        let h = &mut self.now;
        h.count += count;
        if h.is_custom() {
            let index = random.between(0, h.bounds.len() as i64);
            *h.positive.entry(index).or_insert(0.0) += count;
            h.sum += count * h.bounds.get(index as usize).copied().unwrap_or(9.0).max(-9.0);
            return;
        }
        let index = random.between(-3, 6);
        let value = bound(index, h.schema);
        if value <= h.zero_threshold || random.chance(15) {
            h.zero_count += count;
        } else if random.chance(25) {
            *h.negative.entry(index).or_insert(0.0) += count;
            h.sum -= count * value;
        } else {
            *h.positive.entry(index).or_insert(0.0) += count;
            h.sum += count * value;
        }
    }
}

/// The buckets of one classic histogram; at times not quite a histogram.
fn classic(random: &mut Random, start: i64, end: i64) -> Data {
    let metric = random.one_of(&["b_bucket", "b_bucket", "h"]);
    let labels = labels(random, metric);
    let mut bounds = vec!["0.5", "1", "2.5", "+Inf"];
    match random.below(8) {
        0 => bounds.truncate(3),
        1 => bounds.push("1.0"),
        2 => bounds.push("odd"),
        3 => bounds = vec!["-1", "0", "+Inf"],
        _ => {}
    }
    let times = times(random, start, end);
    let wild = random.chance(15);
    let mut counts = Buckets::new();
    let mut all: Data = Vec::new();
    for (i, le) in bounds.iter().enumerate() {
        all.push((crate::value::set_label(&labels, "le", le), Vec::new()));
        counts.insert(i as i64, 0.0);
    }
    for t in times {
        if random.chance(3) {
            counts.values_mut().for_each(|c| *c = 0.0);
        }
        let mut cumulative = 0.0;
        for (i, (_, samples)) in all.iter_mut().enumerate() {
            let own = counts.entry(i as i64).or_insert(0.0);
            *own += random.between(0, 3) as f64;
            cumulative += *own;
            if wild && random.chance(20) {
                cumulative -= random.between(0, 4) as f64;
            }
            if !random.chance(2) {
                samples.push(Sample { t, v: V::F(cumulative) });
            }
        }
    }
    all
}
