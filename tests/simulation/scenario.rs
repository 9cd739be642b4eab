//! One seed: a cluster under misfortune, then in calm, with senders and readers that know what has to hold.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use serde_json::Value;
use skald::runtime::{Clock, Rng};
use tokio::time::Instant;

use crate::book::{Book, TENANTS, series_name};
use crate::cluster::{Cluster, Process, Variant, ZONES};
use crate::gossip::TICK;
use crate::http::{Answer, Request, ask};
use crate::misfortune;
use crate::network::HostNet;
use crate::sender;

/// Series of each sender.
const SERIES: usize = 4;
/// How long misfortune goes on.
const STORM: Duration = Duration::from_secs(75);
/// Within this after the last misfortune everything has to be well again.
const CALM_WITHIN: Duration = Duration::from_secs(240);

/// What one seed came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub acknowledged: u64,
    pub refused: u64,
    pub queries: u64,
    pub failed_queries: u64,
    pub samples_read: u64,
    /// Of all that happened, in order.
    pub digest: u64,
}

/// What all parts of a run share.
pub struct Scene {
    pub cluster: Cluster,
    pub book: RefCell<Book>,
    net: HostNet,
    begun: Instant,
    seed: u64,
    trace: RefCell<Vec<String>>,
    digest: RefCell<std::hash::DefaultHasher>,
    wrong: RefCell<Option<String>>,
    pub is_storm: Cell<bool>,
    outcome: RefCell<Outcome>,
    /// Times of scrapes of the pair in calm, and how many were taken by replica.
    pair_taken: Cell<[u64; 2]>,
    pub is_over: Cell<bool>,
}

/// Runs a seed. An error says what was wrong, and how it came to that.
pub fn run(seed: u64, variant: Variant) -> (Outcome, Vec<String>, Result<(), String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    runtime.block_on(async move {
        let scene = Scene::new(seed, variant);
        let what = scene.play().await;
        let mut outcome = scene.outcome.borrow().clone();
        outcome.acknowledged = scene.book.borrow().acknowledged;
        outcome.digest = scene.digest.borrow().finish();
        (outcome, scene.trace.take(), what)
    })
}

/// Settings of every process that differ from seed to seed.
fn settings(rng: &Rng) -> String {
    let sync = if rng.next_u64().is_multiple_of(3) { "every-batch" } else { "interval" };
    let (retention, optional) = if rng.next_u64().is_multiple_of(2) { ("2m", "1m") } else { ("13h", "12h") };
    let split = if rng.next_u64().is_multiple_of(3) { "30m" } else { "none" };
    format!(
        "ingester: {{wal: {{sync: {sync}}}, local_retention: {retention}, head_compaction_interval: 5s, ship_interval: 5s, \
         repair_interval: 30s}}\n\
         querier: {{store_optional_within: {optional}}}\n\
         query_frontend: {{query_timeout: 30s, split_interval: {split}}}\n\
         distributor: {{remote_timeout: 4s, ha_tracker: {{update_timeout: 2s, failover_timeout: 8s}}}}\n\
         limits: {{accept_ha_samples: true}}\n\
         blocks_storage: {{bucket_index: {{refresh_interval: 5s}}}}\n\
         compactor: {{cleanup_interval: 10s}}\n"
    )
}

impl Scene {
    fn new(seed: u64, variant: Variant) -> Self {
        let cluster = Cluster::new(seed, variant, &settings(&Rng::seeded(seed ^ 3)));
        let client = cluster.network.add_host("client");
        let net = HostNet { network: cluster.network.clone(), life: cluster.network.begin_life(client) };
        Self {
            cluster,
            book: RefCell::default(),
            net,
            begun: Instant::now(),
            seed,
            trace: RefCell::default(),
            digest: RefCell::default(),
            wrong: RefCell::default(),
            is_storm: Cell::new(false),
            outcome: RefCell::default(),
            pair_taken: Cell::new([0; 2]),
            is_over: Cell::new(false),
        }
    }

    /// Chance for one part of the run.
    pub fn rng(&self, part: u64) -> Rng {
        Rng::seeded(self.seed.wrapping_mul(0x9E37_79B9).wrapping_add(part << 40))
    }

    /// Notes what happens.
    pub fn note(&self, what: impl Into<String>) {
        let line = format!("{:9.3} s  {}", self.begun.elapsed().as_secs_f64(), what.into());
        line.hash(&mut *self.digest.borrow_mut());
        if std::env::var_os("SIMULATION_TRACE").is_some() {
            println!("{line}");
        }
        self.trace.borrow_mut().push(line);
    }

    /// Notes what must not be; the first counts.
    pub fn fail(&self, what: impl Into<String>) {
        let what = what.into();
        self.note(format!("WRONG: {what}"));
        self.wrong.borrow_mut().get_or_insert(what);
    }

    pub fn is_wrong(&self) -> bool {
        self.wrong.borrow().is_some()
    }

    pub async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn of_target(&self, target: &str) -> Vec<&Process> {
        self.cluster.processes.iter().filter(|process| process.target == target).collect()
    }

    /// Lets everything happen, and ends when something is wrong, or all is done.
    async fn play(&self) -> Result<(), String> {
        let ticking = async {
            while !self.is_wrong() {
                self.pause(TICK).await;
                for ended in self.cluster.tick() {
                    if ended.contains("panicked") {
                        self.fail(&ended);
                    }
                    self.note(ended);
                }
            }
        };
        tokio::select! {
            biased;
            () = ticking => {}
            () = self.acts() => {}
        }
        self.wrong.borrow().clone().map_or(Ok(()), Err)
    }

    /// The story: all start; senders and readers go on while misfortunes happen; calm; a zone is lost.
    async fn acts(&self) {
        for process in &self.cluster.processes {
            self.cluster.start(process);
        }
        if !self.all_ready(Duration::from_secs(60)).await {
            return;
        }
        self.note("all are ready");
        self.is_storm.set(true);
        let director = async {
            misfortune::direct(self, STORM).await;
            self.note("calm");
            self.is_storm.set(false);
            let ready = self.all_ready(CALM_WITHIN).await;
            if ready {
                self.pair_taken.set([0; 2]);
                // Elections that parted are told, and both replicas send some more.
                self.pause(Duration::from_secs(15)).await;
            }
            self.is_over.set(true);
            ready
        };
        let senders = futures::future::join_all((0..4).map(|number| self.send_forever(number)));
        let pair = futures::future::join_all((0..2).map(|replica| self.send_as_pair(replica)));
        let readers = futures::future::join_all((0..2).map(|number| self.read_forever(number)));
        let (ready, ..) = tokio::join!(director, senders, pair, readers);
        if !ready || self.is_wrong() {
            return;
        }
        self.check_pair();
        self.all_is_there("in calm").await;
        self.lose_a_zone().await;
    }

    /// Whether all processes are ready in time.
    async fn all_ready(&self, within: Duration) -> bool {
        let begun = Instant::now();
        loop {
            let mut waiting = None;
            for process in &self.cluster.processes {
                match self.ready(process).await {
                    Ok(()) => process.set_owes(false),
                    Err(why) => waiting = Some(format!("{}: {why}", process.name)),
                }
            }
            let Some(waiting) = waiting else { return true };
            if begun.elapsed() > within {
                self.fail(format!("not ready after {} s without misfortune: {waiting}", within.as_secs()));
                return false;
            }
            self.pause(Duration::from_secs(1)).await;
        }
    }

    /// Whether a process says that it is ready, or why not.
    pub async fn ready(&self, process: &Process) -> Result<(), String> {
        let answer = self.get(process, "/ready", Duration::from_secs(2)).await?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text().replace('\n', "; ")) }
    }

    async fn get(&self, process: &Process, path: &str, timeout: Duration) -> Result<Answer, String> {
        self.request(process, "GET", path, None, &[], &[], timeout).await
    }

    /// Posts nothing to a process.
    pub async fn post(&self, process: &Process, path: &str) -> Result<Answer, String> {
        self.request(process, "POST", path, None, &[], &[], Duration::from_secs(20)).await
    }

    async fn request(
        &self,
        process: &Process,
        method: &str,
        path: &str,
        tenant: Option<usize>,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout: Duration,
    ) -> Result<Answer, String> {
        let tenant = tenant.map(|tenant| TENANTS[tenant]);
        let request = Request { method, address: &process.http(), path, tenant, headers, body };
        ask(&self.net, request, timeout).await.map_err(|error| error.to_string())
    }

    /// Pushes to one distributor after another until one acknowledges, as Prometheus does. `None` when it is all over.
    async fn push(&self, rng: &Rng, tenant: usize, body: &[u8]) -> Option<u16> {
        let headers = [("Content-Encoding", "snappy"), ("Content-Type", "application/x-protobuf")];
        let distributors = self.of_target("distributor");
        let mut pause = 50;
        loop {
            let distributor = distributors[rng.next_u64() as usize % distributors.len()];
            let timeout = Duration::from_secs(12);
            let answer = self.request(distributor, "POST", "/api/v1/push", Some(tenant), &headers, body, timeout).await;
            match answer {
                Ok(answer) if answer.status / 100 == 2 => return Some(answer.status),
                Ok(answer) if answer.status >= 500 => {}
                Ok(answer) => {
                    let text = format!("a sender would drop this: {} {}", answer.status, answer.text());
                    self.fail(format!("{}: {text}", distributor.name));
                    return None;
                }
                Err(_) => {}
            }
            self.outcome.borrow_mut().refused += 1;
            if self.is_over.get() {
                return None;
            }
            self.pause(Duration::from_millis(pause)).await;
            pause = (pause * 2).min(2000);
        }
    }

    /// A sender of one tenant: a sample of each of its series every second or so, some of them late.
    async fn send_forever(&self, number: usize) {
        let (tenant, rng) = (number % 2, self.rng(100 + number as u64));
        let group = (number / 2).to_string();
        let series: Vec<String> = (0..SERIES).map(|i| i.to_string()).collect();
        let mut first = true;
        while !self.is_over.get() {
            let now = self.cluster.clock.now_ms();
            let mut sent = Vec::new();
            let mut request = sender::Request::default();
            for i in &series {
                let labels = [("__name__", "sim"), ("g", &*group), ("i", &**i)];
                let name = series_name(&labels);
                let mut book = self.book.borrow_mut();
                let mut times = vec![now];
                if first {
                    // An hour and a half of history, across the end of a block's range.
                    times = (0..24).map(|k| now - 5_600_000 + k * 230_000).chain(times).collect();
                } else if rng.next_u64().is_multiple_of(8) {
                    let late = now - 1 - (rng.next_u64() % 300_000) as i64;
                    if book.is_free(tenant, &name, late) {
                        times.insert(0, late);
                    }
                }
                let samples: Vec<(i64, f64)> = times.iter().map(|time| (*time, book.value(tenant))).collect();
                for (time, value) in &samples {
                    book.send(tenant, &name, *time, *value);
                    sent.push((name.clone(), *time));
                }
                request = request.series(&labels, &samples);
            }
            first = false;
            if self.push(&rng, tenant, &request.body()).await.is_some() {
                let mut book = self.book.borrow_mut();
                sent.iter().for_each(|(series, time)| book.acknowledge(tenant, series, *time));
            }
            if self.is_wrong() {
                return;
            }
            self.pause(Duration::from_millis(800 + rng.next_u64() % 2000)).await;
        }
    }

    /// One of a pair of Prometheus that scrape the same: a replica's samples end in its number.
    async fn send_as_pair(&self, replica: usize) {
        let rng = self.rng(200 + replica as u64);
        let name = series_name(&[("__name__", "pair"), ("cluster", "c")]);
        let names = ["x", "y"];
        while !self.is_over.get() {
            let time = self.cluster.clock.now_ms() / 10 * 10 + replica as i64;
            let labels = [("__name__", "pair"), ("__replica__", names[replica]), ("cluster", "c")];
            let value = {
                let mut book = self.book.borrow_mut();
                let value = book.value(0);
                book.send(0, &name, time, value);
                value
            };
            let body = sender::Request::default().series(&labels, &[(time, value)]).body();
            match self.push(&rng, 0, &body).await {
                Some(200) => {
                    self.book.borrow_mut().acknowledge(0, &name, time);
                    let mut taken = self.pair_taken.get();
                    taken[replica] += 1;
                    self.pair_taken.set(taken);
                }
                Some(202) => {}
                Some(other) => self.fail(format!("a pair's scrape was answered {other}")),
                None => {}
            }
            self.pause(Duration::from_millis(3000)).await;
        }
    }

    /// Of a pair one replica is taken, and one only.
    fn check_pair(&self) {
        let taken = self.pair_taken.get();
        self.note(format!("of the pair's scrapes in calm {taken:?} were taken"));
        if taken[0].min(taken[1]) > 0 && taken[0].max(taken[1]) > 0 {
            // One of them may have been elected while the calm began.
            if taken[0].min(taken[1]) > 2 {
                self.fail(format!("both replicas of a pair are taken: {taken:?}"));
            }
        } else if taken == [0; 2] {
            self.fail("no replica of a pair is taken");
        }
    }

    async fn read_forever(&self, number: u64) {
        let rng = self.rng(300 + number);
        while !self.is_over.get() {
            let tenant = (rng.next_u64() % 2) as usize;
            let frontends = self.of_target("query-frontend");
            let frontend = frontends[rng.next_u64() as usize % frontends.len()];
            let wanted: Option<usize> = (!rng.next_u64().is_multiple_of(3)).then(|| (rng.next_u64() % 4) as usize);
            let back = [60_000, 600_000, 7_200_000][rng.next_u64() as usize % 3];
            let upto = self.cluster.clock.now_ms() - (rng.next_u64() % 20_000) as i64;
            let _ = self.query(frontend, tenant, wanted, back, upto).await;
            self.pause(Duration::from_millis(500 + rng.next_u64() % 3000)).await;
        }
    }

    /// Asks for all samples of some series, and checks the answer. An error is one that the reader was told.
    async fn query(
        &self,
        frontend: &Process,
        tenant: usize,
        wanted: Option<usize>,
        back: i64,
        upto: i64,
    ) -> Result<(), String> {
        let selector = match wanted {
            Some(i) => format!("sim{{i=\"{i}\"}}"),
            None => "{__name__=~\"sim|pair\"}".to_owned(),
        };
        let is_wanted = |name: &str| wanted.is_none_or(|i| name.contains(&format!("i={i}")));
        let question = self.book.borrow().question(tenant, upto - back, upto, is_wanted);
        let query = format!("{selector}[{back}ms]");
        let path = form_urlencoded::Serializer::new("/prometheus/api/v1/query?".to_owned())
            .append_pair("query", &query)
            .append_pair("time", &format!("{}.{:03}", upto / 1000, upto % 1000))
            .finish();
        self.outcome.borrow_mut().queries += 1;
        let answer = self.request(frontend, "GET", &path, Some(tenant), &[], &[], Duration::from_secs(60)).await;
        let failed = |why: String| {
            self.outcome.borrow_mut().failed_queries += 1;
            why
        };
        let answer = answer.map_err(failed)?;
        if answer.status != 200 {
            if answer.status < 500 {
                self.fail(format!("{query} was answered {}: {}", answer.status, answer.text()));
            }
            return Err(failed(format!("{}: {}", answer.status, answer.text())));
        }
        let parsed: Value =
            serde_json::from_slice(&answer.body).map_err(|error| error.to_string()).unwrap_or_else(|error| {
                self.fail(format!("{query} was answered with no JSON: {error}"));
                Value::Null
            });
        match self.book.borrow().check(&question, &parsed) {
            Ok(found) => {
                self.outcome.borrow_mut().samples_read += found as u64;
                self.note(format!("{} {query}: {found} samples", frontend.name));
            }
            Err(why) => self.fail(format!("{} {query} at {upto} of {}: {why}", frontend.name, TENANTS[tenant])),
        }
        Ok(())
    }

    /// Everything is readable at every query-frontend that runs, without an error.
    async fn all_is_there(&self, when: &str) {
        let upto = self.cluster.clock.now_ms();
        for frontend in self.of_target("query-frontend").into_iter().filter(|frontend| frontend.is_running()) {
            for tenant in 0..TENANTS.len() {
                if let Err(why) = self.query(frontend, tenant, None, 7_200_000, upto).await {
                    self.fail(format!("{when} {} fails a query: {why}", frontend.name));
                }
            }
        }
    }

    /// A zone goes away without a word: nobody notices.
    async fn lose_a_zone(&self) {
        if self.is_wrong() {
            return;
        }
        let rng = self.rng(400);
        let zone = (rng.next_u64() % ZONES as u64) as usize;
        let silent = rng.next_u64().is_multiple_of(2);
        self.note(format!("zone {zone} is lost{}", if silent { " silently" } else { "" }));
        for process in self.cluster.processes.iter().filter(|process| process.zone == zone) {
            self.cluster.kill(process, silent);
        }
        // Until everybody has noticed.
        self.pause(Duration::from_secs(15)).await;
        self.all_is_there("without a zone").await;
    }

    /// How often each kind of misfortune came.
    pub fn tell(&self, counts: &BTreeMap<&'static str, u64>) {
        self.note(format!("misfortunes: {counts:?}"));
    }
}
