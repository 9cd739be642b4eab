//! The processes of a cluster: real ones, by `app::run`, on simulated machines.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use skald::app;
use skald::bucket::mem::MemBucket;
use skald::config::Config;
use skald::runtime::{Clock, Pool, Rng, Runtime};
use skald::settings::{Environment, YamlFile, load};
use skald_tsdb::disk::{Disk, MemDisk};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::clock::HostClock;
use crate::disk::HostDisk;
use crate::gossip::{Gossip, HostGossip};
use crate::network::{HostId, HostNet, Life, Network};

/// The zones.
pub const ZONES: usize = 3;
/// Where each process keeps its data, on its own disk.
const DATA_DIR: &str = "/data";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How the cluster is put together: as it should be, or broken so that the simulation must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Sound,
    /// Distributors acknowledge what one ingester has.
    QuorumOfOne,
    /// Ingesters count for reads as soon as they run, and never compare themselves.
    NoRepair,
    /// Two members of each replica group are in one zone.
    SameZone,
}

impl Variant {
    pub const BROKEN: [Self; 3] = [Self::QuorumOfOne, Self::NoRepair, Self::SameZone];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::QuorumOfOne => "quorum-of-one",
            Self::NoRepair => "no-repair",
            Self::SameZone => "same-zone",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::Sound].into_iter().chain(Self::BROKEN).find(|variant| variant.name() == name)
    }
}

/// A process and its machine.
pub struct Process {
    pub name: String,
    pub target: &'static str,
    pub zone: usize,
    pub host: HostId,
    pub disk: MemDisk,
    pub clock: HostClock,
    config: Config,
    state: Mutex<ProcessState>,
}

#[derive(Default)]
struct ProcessState {
    running: Option<Running>,
    starts: u64,
    boots: u64,
    /// When it starts again by itself.
    restart_at: Option<Instant>,
    /// Lost something acknowledged, and was not ready since.
    owes: bool,
}

struct Running {
    life: Arc<Life>,
    disk: HostDisk,
    task: JoinHandle<Result<(), app::AppError>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Process {
    pub fn is_ingester(&self) -> bool {
        self.target == "ingester"
    }

    pub fn http(&self) -> String {
        format!("{}:9009", self.name)
    }

    pub fn is_running(&self) -> bool {
        self.state.lock().running.is_some()
    }

    pub fn owes(&self) -> bool {
        self.state.lock().owes
    }

    pub fn set_owes(&self, owes: bool) {
        self.state.lock().owes = owes;
    }

    pub fn restart_at(&self, at: Instant) {
        self.state.lock().restart_at = Some(at);
    }

    /// Lets it die in one of its next changes to its disk.
    pub fn light_fuse(&self, changes: u64) {
        if let Some(running) = &self.state.lock().running {
            running.disk.light_fuse(changes);
        }
    }

    /// Lets it live on after all.
    pub fn put_fuse_out(&self) {
        if let Some(running) = &self.state.lock().running {
            running.disk.put_fuse_out();
        }
    }

    /// Files of its write-ahead log.
    fn log_files(&self) -> Vec<std::path::PathBuf> {
        let dir = Path::new(DATA_DIR).join("wal");
        let files = self.disk.list(&dir).unwrap_or_default();
        files.into_iter().filter(|file| !file.is_dir).map(|file| dir.join(file.name)).collect()
    }

    /// Flips bytes in the middle of its newest log, or loses the whole disk. It must not run.
    pub fn damage_disk(&self, rng: &Rng) -> &'static str {
        self.set_owes(true);
        // What is in the way of writing it anew goes first.
        self.disk.set_free_bytes(None);
        self.disk.set_failing_syncs(false);
        let files = self.log_files();
        let damaged = files.last().filter(|_| rng.next_u64().is_multiple_of(2));
        let read = damaged.and_then(|path| Some((path, self.disk.read(path).ok()?)));
        if let Some((path, mut bytes)) = read.filter(|(_, bytes)| bytes.len() > 100) {
            let at = rng.next_u64() as usize % bytes.len();
            bytes[at..].iter_mut().take(40).for_each(|byte| *byte ^= 0x5A);
            let rewritten = self.disk.create(path).and_then(|file| file.append(&bytes).and_then(|()| file.sync()));
            assert!(rewritten.is_ok());
            return "its log damaged";
        }
        let _ = self.disk.remove_dir_all(Path::new(DATA_DIR));
        "its disk lost"
    }

    /// Loses what was not synced, as when the power is cut. It must not run.
    pub fn cut_power(&self) {
        self.set_owes(true);
        self.disk.crash();
        self.state.lock().boots += 1;
    }
}

/// All of them.
pub struct Cluster {
    pub processes: Vec<Process>,
    pub network: Arc<Network>,
    pub gossip: Arc<Gossip>,
    pub bucket: MemBucket,
    pub clock: HostClock,
    seed: u64,
}

fn zone_name(zone: usize) -> String {
    format!("zone-{}", ["a", "b", "c"][zone % ZONES])
}

impl Cluster {
    /// Three zones with two ingesters each, two distributors, two query-frontends, two queriers with query-schedulers, two
    /// store-gateways, one of them with the compactor. Nothing runs yet.
    pub fn new(seed: u64, variant: Variant, settings: &str) -> Self {
        let (network, gossip) = (Network::new(seed ^ 1), Gossip::new(seed ^ 2));
        let start = Instant::now();
        let mut placed: Vec<(String, &'static str, usize)> = Vec::new();
        for zone in 0..ZONES {
            for ordinal in 0..2 {
                let name = match variant {
                    // Without zones three numbers in a row are a group, wherever they are.
                    Variant::SameZone => format!("ingester-{}", zone * 2 + ordinal),
                    _ => format!("ingester-{}-{ordinal}", zone_name(zone)),
                };
                placed.push((name, "ingester", zone));
            }
        }
        for number in 0..2 {
            placed.push((format!("distributor-{number}"), "distributor", number));
            placed.push((format!("query-frontend-{number}"), "query-frontend", number + 1));
            placed.push((format!("querier-{number}"), "querier, query-scheduler", number + 1));
        }
        placed.push(("store-0".to_owned(), "store-gateway, compactor", 2));
        placed.push(("store-1".to_owned(), "store-gateway", 0));
        let members: Vec<String> = placed.iter().step_by(3).map(|(name, ..)| format!("\"{name}:7946\"")).collect();
        let members = members.join(", ");
        let processes = placed.into_iter().map(|(name, target, zone)| {
            let factor = match (variant, target) {
                (Variant::QuorumOfOne, "distributor") | (Variant::NoRepair, "ingester") => 1,
                _ => 3,
            };
            let mut yaml = format!(
                "target: [{target}]\ndata_dir: {DATA_DIR}\nmultitenancy_enabled: true\n\
                 server: {{http_listen_address: \"{name}:9009\", grpc_listen_address: \"{name}:9095\"}}\n\
                 instance: {{id: {name}, availability_zone: {}}}\n\
                 memberlist: {{bind_address: \"{name}:7946\", join_members: [{members}], rejoin_interval: 20s}}\n\
                 ring: {{replication_factor: {factor}, zone_awareness_enabled: {}, heartbeat_period: 2s, \
                 heartbeat_timeout: 10s, store_gateway_replication_factor: 2}}\n",
                zone_name(zone),
                variant != Variant::SameZone,
            );
            let _ = writeln!(yaml, "{settings}");
            let file = YamlFile { name: "simulation", text: &yaml, expand_env: false };
            let config =
                load(Some(file), &Environment::default(), &[]).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
            Process {
                host: network.add_host(&name),
                name,
                target,
                zone,
                disk: MemDisk::default(),
                clock: HostClock::new(start),
                config,
                state: Mutex::default(),
            }
        });
        let processes = processes.collect();
        Self { processes, network, gossip, bucket: MemBucket::default(), clock: HostClock::new(start), seed }
    }

    /// Starts a process that does not run.
    pub fn start(&self, process: &Process) {
        let mut state = process.state.lock();
        if state.running.is_some() {
            return;
        }
        state.starts += 1;
        state.restart_at = None;
        let life = self.network.begin_life(process.host);
        let disk = HostDisk::new(process.disk.clone(), life.clone());
        let boot = format!("boot {}", state.boots);
        let written = process
            .disk
            .create_dir_all(Path::new("/proc/sys/kernel/random"))
            .and_then(|()| process.disk.create_dir_all(Path::new(DATA_DIR)))
            .and_then(|()| process.disk.write_atomically(Path::new(BOOT_ID), boot.as_bytes()));
        // On a full disk the old one stays, as if it were the same boot: which is so.
        drop(written);
        let mixed = self.seed.wrapping_mul(1_000_003).wrapping_add(process.host as u64 * 1009 + state.starts);
        let runtime = Runtime {
            clock: Arc::new(process.clock.clone()),
            rng: Arc::new(Rng::seeded(mixed)),
            disk: Arc::new(disk.clone()),
            net: Arc::new(HostNet { network: self.network.clone(), life: life.clone() }),
            gossip: Arc::new(HostGossip { gossip: self.gossip.clone(), life: life.clone() }),
            bucket: Some(Arc::new(self.bucket.clone())),
            ingest_pool: Pool::inline(),
            query_pool: Pool::inline(),
            background_pool: Pool::inline(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        // Only being asked is a stop; that nobody can ask any more is the end of the simulation.
        let stopped = async move {
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let task = tokio::spawn(app::run(process.config.clone(), runtime, stopped));
        state.running = Some(Running { life, disk, task, stop: Some(stop) });
    }

    /// Ends a process at once; silently, when its machine goes along.
    pub fn kill(&self, process: &Process, silent: bool) {
        if let Some(running) = process.state.lock().running.take() {
            self.network.kill(&running.life, silent);
            running.task.abort();
        }
    }

    /// Asks a process to stop.
    pub fn stop(&self, process: &Process) {
        if let Some(running) = &mut process.state.lock().running
            && let Some(stop) = running.stop.take()
        {
            let _ = stop.send(());
        }
    }

    /// Lets what is due happen, every [`crate::gossip::TICK`]: messages move, processes that ended are gone, and start
    /// again when it is time. Says which ended.
    pub fn tick(&self) -> Vec<String> {
        self.gossip.pass(crate::gossip::TICK);
        self.bucket.set_now(self.clock.now_ms());
        self.bucket.take_calls();
        let mut ended = Vec::new();
        for process in &self.processes {
            let mut state = process.state.lock();
            let Some(running) = &mut state.running else {
                let due = state.restart_at.is_some_and(|at| at <= Instant::now());
                drop(state);
                if due {
                    self.start(process);
                    ended.push(format!("{} starts", process.name));
                }
                continue;
            };
            if running.life.is_dead() {
                drop(state);
                self.kill(process, false);
                ended.push(format!("{} died writing", process.name));
            } else if let Some(outcome) = (&mut running.task).now_or_never() {
                ended.push(match outcome {
                    Ok(Ok(())) => format!("{} has stopped", process.name),
                    Ok(Err(error)) => format!("{} ended: {error}", process.name),
                    Err(error) => format!("{} panicked: {error}", process.name),
                });
                drop(state);
                self.kill(process, false);
            }
        }
        ended
    }

    pub fn after(duration: Duration) -> Instant {
        Instant::now() + duration
    }
}
