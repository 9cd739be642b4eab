//! Puts a process together: which services its target names, who asks whom, in which order they start and stop.
//!
//! Start: HTTP listens first, so that `/ready` and `/metrics` tell how the rest is coming along; the ingester replays its
//! log; whoever asks others comes after them; gRPC listens once all it serves is there, and only then are the other HTTP
//! paths answered, and the rings told that this process serves. Stop: the rings are told, both servers take nothing new and
//! finish what is under way, then the services end in reverse order, the ingester with its log synced.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::response::Response;
use axum::routing::any;
use futures::FutureExt;
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use skald_ring::{Instance, InstanceState, Replica, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;

use crate::bucket::index_cache::IndexCache;
use crate::bucket::{self, Bucket, ObservedBucket};
use crate::compactor::{self, Compactor};
use crate::config::{Config, Role};
use crate::distributor::{self, Distributor, Elections, HaTracker};
use crate::error::{ErrorKind, ServiceError};
use crate::grpc::{CallBounds, Channels, Peer};
use crate::http::{Frame, FrameMetrics, Link, Pages, ProcessMetrics, prometheus_error, serve};
use crate::ingester::client::IngesterClient;
use crate::ingester::grpc::GrpcIngesterClient;
use crate::ingester::repair::{self, Repaired};
use crate::ingester::series_limits::{SeriesCounts, SeriesLimits};
use crate::ingester::{self, Ingester};
use crate::limits::TenantLimits;
use crate::membership::{self, Ingesters, Registration, RingRole, Rings, StoreGateways};
use crate::querier::blocks::BlockFinder;
use crate::querier::client::QuerierClient;
use crate::querier::grpc::GrpcQuerierClient;
use crate::querier::offers::Offers;
use crate::querier::{self, Querier};
use crate::query_frontend::QueryFrontend;
use crate::query_frontend::queriers::Queriers;
use crate::query_scheduler::client::SchedulerClient;
use crate::query_scheduler::grpc::GrpcSchedulerClient;
use crate::query_scheduler::{self, Scheduler, Schedulers};
use crate::runtime::Runtime;
use crate::runtime_config::{self, RuntimeConfig};
use crate::services::{ServiceFailed, Services};
use crate::settings::HostPort;
use crate::store_gateway::client::StoreGatewayClient;
use crate::store_gateway::grpc::GrpcStoreGatewayClient;
use crate::store_gateway::{self, StoreGateway};
use crate::tls::{ServerTls, ServerTlsConfig};

/// Why a process could not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A service did not start.
    #[error(transparent)]
    Service(#[from] ServiceFailed),
    /// A setting is missing or contradicts another one.
    #[error("{0}")]
    Setting(String),
}

/// The services, in the order in which they start.
const ORDER: [&str; 15] = [
    "http",
    "runtime-config",
    "rings",
    "clock",
    "object-storage",
    "compactor",
    "store-gateway",
    "ingester",
    "query-scheduler",
    "querier",
    "query-frontend",
    "distributor",
    "grpc",
    "membership",
    "repair",
];

/// What `/` links to besides the pages every process has.
const LINKS: [Link; 9] = [
    Link { path: "/ring", title: "Replica groups of ingesters; /<role>/ring has the members of each ring" },
    Link { path: "/distributor/ha_tracker", title: "Of each pair of Prometheus, the replica that is elected" },
    Link { path: "/distributor/all_user_stats", title: "Tenants of the distributor: what they wrote" },
    Link { path: "/memberlist", title: "Processes that gossip with each other" },
    Link { path: "/ingester/losses", title: "Samples that the last start of the ingester could not bring back" },
    Link { path: "/ingester/repair", title: "How the ingester compares itself with its replica group" },
    Link { path: "/ingester/tenants", title: "Tenants of the ingester: series, blocks, newest sample" },
    Link { path: "/runtime_config?mode=diff", title: "Limits of single tenants, as they are in force" },
    Link { path: "/prometheus/api/v1/status/buildinfo", title: "What the query API says of itself" },
];

/// What the querier of this process is called where no other is known.
const HERE: &str = "here";

/// How long a process that is one of several goes on when it is asked to stop.
const DRAINED_WITHIN: Duration = Duration::from_secs(3);

/// What the parts of a process share while they are put together.
struct App {
    config: Config,
    limits: TenantLimits,
    runtime: Runtime,
    channels: Channels,
    services: Services,
    registry: Arc<RwLock<Registry>>,
    http: Router,
    grpc: Option<Routes>,
    rings: Option<Arc<Rings>>,
    loops: Vec<AbortOnDropHandle<()>>,
    /// The ingester of this process.
    ingester: Option<Ingester>,
    /// The query-scheduler of this process.
    scheduler: Option<Scheduler>,
    /// Cancelled when this process takes nothing new.
    draining: CancellationToken,
}

/// What is gossiped besides the rings.
struct Gossiped {
    elections: Arc<dyn Store<Elections>>,
    series_counts: Arc<dyn Store<SeriesCounts>>,
}

/// Object storage and the readers of its bucket indexes.
struct Storage {
    bucket: Arc<dyn Bucket>,
    indexes: Arc<IndexCache>,
}

/// Runs the services of `config.target` until `stop` completes and everything has ended.
pub async fn run(config: Config, runtime: Runtime, stop: impl Future<Output = ()>) -> Result<(), AppError> {
    let services = Services::new(runtime.clock.clone(), &ORDER);
    let registry = Arc::new(RwLock::new(Registry::default()));
    ProcessMetrics::register(&mut registry.write(), runtime.clock.as_ref());
    let frame = Frame::new(runtime.clock.clone(), FrameMetrics::new(&mut registry.write()));
    let pages = Pages::new(services.clone(), registry.clone(), &config, &LINKS).routes();
    let gate = Gate::new(frame.http(pages.clone().route("/{*path}", any(starting))));
    let (stopping, _) = watch::channel(false);
    let channels =
        Channels::new(config.grpc_client.clone(), &runtime, &mut registry.write()).map_err(AppError::Setting)?;
    let tls = App::tls(&runtime, &config.server.http_tls_config, "server.http_tls_config")?;
    let listener = services.start("http", runtime.net.listen(&config.server.http_listen_address.to_string())).await?;
    tracing::info!(address = listener.local_address(), "serving HTTP");
    let http = {
        let (gate, server, clock) = (gate.clone(), config.server.clone(), runtime.clock.clone());
        let stop = stopped(stopping.subscribe());
        tokio::spawn(async move { serve(listener, tls, move || gate.router(), &server, clock, stop).await })
    };

    let limits = TenantLimits::new(config.limits.clone());
    let mut app = App {
        config,
        limits,
        runtime,
        channels,
        services: services.clone(),
        registry,
        http: pages,
        grpc: None,
        rings: None,
        loops: Vec::new(),
        ingester: None,
        scheduler: None,
        draining: CancellationToken::new(),
    };
    let mut stop = Box::pin(stop);
    let begun = tokio::select! {
        begun = app.start(&frame, &gate, &stopping) => begun.map(Some),
        () = &mut stop => Ok(None),
    };
    let grpc = match begun {
        Ok(Some(grpc)) => {
            tracing::info!("ready");
            stop.await;
            app.drain().await;
            Some(grpc)
        }
        Ok(None) => None,
        Err(error) => {
            services.stop(app.config.server.graceful_shutdown_timeout).await;
            return Err(error);
        }
    };
    let _ = stopping.send(true);
    let _ = http.await;
    if let Some(grpc) = grpc {
        let _ = grpc.await;
    }
    app.ship_before_leaving().await;
    app.loops.clear();
    for failed in services.stop(app.config.server.graceful_shutdown_timeout).await {
        tracing::error!(service = failed.name, why = failed.why, "did not end well");
    }
    if let Some(rings) = &app.rings {
        rings.leave().await;
    }
    tracing::info!("stopped");
    Ok(())
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the process.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

impl App {
    /// Starts every service of the target but HTTP; the handle is the gRPC server's.
    async fn start(
        &mut self,
        frame: &Frame,
        gate: &Gate,
        stopping: &watch::Sender<bool>,
    ) -> Result<tokio::task::JoinHandle<()>, AppError> {
        self.start_runtime_config().await?;
        let (rings, gossiped) = self.start_rings().await?;
        let storage = self.start_storage().await?;
        self.start_compactor(&storage, &rings).await?;
        let store_gateways = self.start_store_gateway(&storage, &rings).await?;
        let ingester = self.start_ingester(&storage, &rings, gossiped.series_counts).await?;
        let client = ingester.as_ref().map(|(ingester, _)| Arc::new(ingester.clone()) as Arc<dyn IngesterClient>);
        let ingesters = self.follow_ingesters(&rings, client);
        self.start_query_scheduler(&rings).await?;
        let querier = self.start_querier(&storage, &rings, ingesters.clone(), store_gateways).await?;
        self.start_query_frontend(&rings, querier).await?;
        self.start_distributor(&rings, ingesters.clone(), gossiped.elections).await?;
        // Before the last service runs: a process that is ready answers.
        gate.open(frame.http(std::mem::take(&mut self.http)));
        let grpc = self.start_grpc(frame, stopping).await?;
        let mut repaired = None;
        if let Some((ingester, registration)) = ingester {
            repaired = Some((ingester.repaired(), registration.clone()));
            self.begin_repair(ingester, &registration, &rings, ingesters);
        }
        self.services.start("membership", rings.activate().map(Ok::<_, io::Error>)).await?;
        match repaired {
            Some((repaired, registration)) => self.await_repair(repaired, registration, rings),
            None => self.start_nothing("repair").await?,
        }
        Ok(grpc)
    }

    fn includes(&self, role: Role) -> bool {
        self.config.target.includes(role)
    }

    fn serve_grpc<S>(&mut self, service: S)
    where
        S: tower::Service<http::Request<tonic::body::Body>, Error = std::convert::Infallible>
            + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.grpc = Some(match self.grpc.take() {
            None => Routes::new(service),
            Some(routes) => routes.add_service(service),
        });
    }

    /// Runs a loop that ends only with the process.
    fn spawn_loop(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let services = self.services.clone();
        self.loops.push(AbortOnDropHandle::new(tokio::spawn(async move {
            let ended = tokio::spawn(work);
            let abort = AbortOnDropHandle::new(ended);
            let why = abort.await.err().map_or("its loop ended".to_owned(), |e| e.to_string());
            tracing::error!(service = name, why, "a service broke");
            services.fail(name, why);
        })));
    }

    /// Before whoever asks for limits.
    async fn start_runtime_config(&mut self) -> Result<(), AppError> {
        let opened = RuntimeConfig::open(
            self.config.runtime_config.clone(),
            self.limits.clone(),
            self.runtime.clock.clone(),
            self.runtime.disk.clone(),
            &mut self.registry.write(),
        );
        let opened = self.services.start("runtime-config", async { opened.map_err(AppError::Setting) }).await?;
        let opened = Arc::new(opened);
        let routes = runtime_config::routes(opened.clone(), self.config.multitenancy_enabled);
        self.http = std::mem::take(&mut self.http).merge(routes);
        let pool = self.runtime.background_pool.clone();
        self.spawn_loop("runtime-config", async move { opened.run(&pool).await });
        Ok(())
    }

    /// Before whoever is in a ring.
    async fn start_rings(&mut self) -> Result<(Arc<Rings>, Gossiped), AppError> {
        let metrics = membership::Metrics::new(&mut self.registry.write());
        let opened = async {
            let open_more = |replica: &Replica| {
                Ok(Gossiped { elections: replica.open("ha-tracker")?, series_counts: replica.open("series-counts")? })
            };
            let rings = Rings::open(&self.config, &self.runtime, metrics, open_more).await;
            rings.map_err(AppError::Setting)
        };
        let (rings, gossiped) = self.services.start("rings", opened).await?;
        let rings = Arc::new(rings);
        self.http = std::mem::take(&mut self.http).merge(membership::routes(rings.clone()));
        let running = rings.clone();
        self.spawn_loop("rings", async move { running.run().await });
        self.rings = Some(rings.clone());
        self.start_nothing("clock").await?;
        let (services, mut faults) = (self.services.clone(), rings.clock_watch().watch());
        self.spawn_loop("clock", async move {
            // The sender lives as long as the process.
            while faults.changed().await.is_ok() {
                let why = faults.borrow_and_update().as_ref().map(|fault| fault.text.clone());
                services.impede("clock", why);
            }
        });
        Ok((rings, gossiped))
    }

    /// The ingesters as this process reaches them, now and later.
    fn follow_ingesters(&self, rings: &Arc<Rings>, local: Option<Arc<dyn IngesterClient>>) -> Arc<ArcSwap<Ingesters>> {
        let (rings, channels) = (rings.clone(), self.channels.clone());
        let keeper = rings.ingesters().clone();
        Ingesters::follow(&keeper, move |instance| match &local {
            Some(local) if rings.is_own(instance) => Some(local.clone()),
            _ => Some(Arc::new(GrpcIngesterClient::new(peer(&channels, instance)?))),
        })
    }

    async fn start_storage(&mut self) -> Result<Storage, AppError> {
        let (config, runtime) = (&self.config, &self.runtime);
        let opened = async {
            if let Some(bucket) = &runtime.bucket {
                return Ok(bucket.clone());
            }
            let opened = bucket::open(&config.blocks_storage, &config.data_dir, runtime.disk.as_ref())?;
            Ok::<Arc<dyn Bucket>, bucket::opening::OpenError>(Arc::new(opened))
        };
        let opened = self.services.start("object-storage", opened).await?;
        let bucket: Arc<dyn Bucket> =
            Arc::new(ObservedBucket::new(opened, runtime.clock.clone(), &mut self.registry.write()));
        let index_config = config.blocks_storage.bucket_index.clone();
        let indexes = Arc::new(IndexCache::new(bucket.clone(), runtime.clock.clone(), index_config));
        Ok(Storage { bucket, indexes })
    }

    async fn start_compactor(&mut self, storage: &Storage, rings: &Arc<Rings>) -> Result<(), AppError> {
        if self.includes(Role::Compactor) {
            self.register(rings, RingRole::Compactor)?;
            let owner = rings.clone();
            let owns: compactor::Ownership = Arc::new(move |tenant| owner.is_compactor_of(tenant));
            let (bucket, clock) = (storage.bucket.clone(), self.runtime.clock.clone());
            let compactor =
                Compactor::new(bucket, clock, self.config.compactor.clone(), owns, &mut self.registry.write());
            let compactor = Arc::new(compactor);
            self.http = std::mem::take(&mut self.http).merge(compactor::routes(compactor.clone()));
            let rings = rings.clone();
            self.spawn_loop("compactor", async move {
                // Before, it owns nothing.
                rings.activated().await;
                compactor.run().await;
            });
        }
        self.start_nothing("compactor").await
    }

    /// The store-gateways as this process reaches them, now and later.
    async fn start_store_gateway(
        &mut self,
        storage: &Storage,
        rings: &Arc<Rings>,
    ) -> Result<Arc<ArcSwap<StoreGateways>>, AppError> {
        let mut local: Option<Arc<dyn StoreGatewayClient>> = None;
        if self.includes(Role::StoreGateway) {
            self.register(rings, RingRole::StoreGateway)?;
            let owner = rings.clone();
            let owns: store_gateway::Ownership = Arc::new(move |tenant, block| owner.serves_block(tenant, block));
            let gateway = StoreGateway::new(
                storage.bucket.clone(),
                storage.indexes.clone(),
                owns,
                self.runtime.clone(),
                &self.config.store_gateway,
                &self.config.data_dir,
                &mut self.registry.write(),
            );
            let client: Arc<dyn StoreGatewayClient> = Arc::new(gateway.clone());
            self.serve_grpc(store_gateway::grpc::server(client.clone()));
            self.spawn_loop("store-gateway", async move { gateway.run().await });
            local = Some(client);
        }
        self.start_nothing("store-gateway").await?;
        let (rings, channels) = (rings.clone(), self.channels.clone());
        let keeper = rings.instances(RingRole::StoreGateway).clone();
        Ok(StoreGateways::follow(&keeper, move |instance| match &local {
            Some(local) if rings.is_own(instance) => Some(local.clone()),
            _ => Some(Arc::new(GrpcStoreGatewayClient::new(peer(&channels, instance)?))),
        }))
    }

    fn register(&self, rings: &Rings, role: RingRole) -> Result<Registration, AppError> {
        rings.register(role).map_err(AppError::Setting)
    }

    async fn start_ingester(
        &mut self,
        storage: &Storage,
        rings: &Arc<Rings>,
        series_counts: Arc<dyn Store<SeriesCounts>>,
    ) -> Result<Option<(Ingester, Registration)>, AppError> {
        if !self.includes(Role::Ingester) {
            self.start_nothing("ingester").await?;
            return Ok(None);
        }
        let registration = self.register(rings, RingRole::Ingester)?;
        let services = self.services.clone();
        let surroundings = ingester::Surroundings {
            bucket: storage.bucket.clone(),
            indexes: storage.indexes.clone(),
            index_refresh_interval: self.config.blocks_storage.bucket_index.refresh_interval,
            limits: self.limits.clone(),
            runtime: self.runtime.clone(),
            metrics: ingester::Metrics::new(&mut self.registry.write()),
        };
        let progress = move |progress| services.progress("ingester", progress);
        let (config, data_dir) = (self.config.ingester.clone(), self.config.data_dir.clone());
        let opening = async move { Ingester::open(config, &data_dir, surroundings, progress).await };
        let ingester = self.services.start("ingester", opening).await?;
        self.serve_grpc(ingester::grpc::server(Arc::new(ingester.clone())));
        self.http = std::mem::take(&mut self.http).merge(ingester.clone().routes());
        let (running, closing) = (ingester.clone(), ingester.clone());
        self.spawn_loop("ingester", async move { running.run().await });
        self.ingester = Some(ingester.clone());
        let (telling, teller, told) = (rings.clone(), ingester.clone(), registration.clone());
        self.spawn_loop("ingester", async move { telling.tell_shipped(&told, || teller.is_shipped()).await });
        ingester.watch_clock(rings.clock_watch().clone());
        if !rings.is_alone() {
            ingester.guard_reads();
            let keeper = rings.ingesters().clone();
            ingester.share_series_limits(SeriesLimits::new(
                series_counts,
                Arc::new(move || keeper.view()),
                registration.id(),
                self.runtime.rng.next_u64(),
                self.runtime.clock.clone(),
                self.limits.clone(),
            ));
            let comparing = ingester.clone();
            self.spawn_loop("ingester", async move { comparing.compare_series_limits().await });
        }
        self.services.on_stop("ingester", move || async move { closing.close().await.map_err(|e| e.to_string()) });
        Ok(Some((ingester, registration)))
    }

    /// Lets the ingester compare itself with the other members of its group.
    fn begin_repair(
        &mut self,
        ingester: Ingester,
        registration: &Registration,
        rings: &Rings,
        ingesters: Arc<ArcSwap<Ingesters>>,
    ) {
        let others = if rings.is_alone() { 0 } else { usize::from(self.config.ring.replication_factor).max(1) - 1 };
        if others == 0 {
            // Known together with everything else about this process.
            registration.set_repaired(true);
        }
        let own = registration.id();
        let name = own.as_str().to_owned();
        let group = move || repair::Group { others, peers: ingesters.load().others_of_group(&own) };
        self.spawn_loop("repair", async move { ingester.repair_forever(&name, group).await });
    }

    /// Keeps the process from being ready until its ingester counts for reads. It serves meanwhile: the others of its group
    /// may wait for it as well.
    fn await_repair(&mut self, mut repaired: watch::Receiver<Repaired>, registration: Registration, rings: Arc<Rings>) {
        let services = self.services.clone();
        self.loops.push(AbortOnDropHandle::new(tokio::spawn(async move {
            let waiting = services.clone();
            let started = async move {
                loop {
                    let now = repaired.borrow_and_update().clone();
                    match now {
                        Repaired::Yes => break rings.announce_repaired(&registration).await,
                        Repaired::No { reason } => waiting.progress("repair", reason),
                    }
                    repaired.changed().await?;
                }
                Ok::<_, watch::error::RecvError>(())
            };
            // That it failed is told, and keeps the process from being ready.
            let _ = services.start("repair", started).await;
        })));
    }

    async fn start_querier(
        &mut self,
        storage: &Storage,
        rings: &Rings,
        ingesters: Arc<ArcSwap<Ingesters>>,
        store_gateways: Arc<ArcSwap<StoreGateways>>,
    ) -> Result<Option<Arc<dyn QuerierClient>>, AppError> {
        let mut client: Option<Arc<dyn QuerierClient>> = None;
        if self.includes(Role::Querier) {
            let config: querier::Config = self.config.querier.clone();
            let lookback = rings.lookback();
            let zone = rings.zone().to_owned();
            let shards = rings.tenant_shards().clone();
            let neighbours = querier::Neighbours { ingesters, store_gateways, zone, lookback, shards };
            let blocks = BlockFinder::new(storage.indexes.clone(), self.runtime.clock.clone());
            let metrics = querier::Metrics::new(&mut self.registry.write());
            let querier = Querier::new(config, neighbours, blocks, self.runtime.clone(), metrics);
            let querier: Arc<dyn QuerierClient> = Arc::new(querier);
            self.serve_grpc(querier::grpc::server(querier.clone()));
            self.offer_slots(rings)?;
            client = Some(querier);
        }
        self.start_nothing("querier").await?;
        Ok(client)
    }

    async fn start_query_frontend(
        &mut self,
        rings: &Rings,
        local: Option<Arc<dyn QuerierClient>>,
    ) -> Result<(), AppError> {
        if self.includes(Role::QueryFrontend) {
            let config = self.config.query_frontend.clone();
            let queriers = Arc::new(self.queriers(rings, local)?);
            let multitenancy = self.config.multitenancy_enabled;
            let limits = self.limits.clone();
            let promql = self.config.promql.clone();
            let frontend = QueryFrontend::new(config, promql, limits, multitenancy, queriers, self.runtime.clone());
            let routes = Arc::new(frontend).router();
            let http = std::mem::take(&mut self.http);
            self.http = match self.config.api.prometheus_http_prefix.as_str() {
                "" | "/" => http.merge(routes),
                prefix => http.nest(prefix, routes),
            };
        }
        self.start_nothing("query-frontend").await
    }

    /// The queriers that the query-frontend of this process asks.
    fn queriers(&self, rings: &Rings, local: Option<Arc<dyn QuerierClient>>) -> Result<Queriers, AppError> {
        let config = &self.config.query_frontend;
        let scheduler: Arc<dyn SchedulerClient> = match &self.scheduler {
            Some(scheduler) if self.queries_stay_here() => Arc::new(scheduler.clone()),
            _ => {
                let addresses = self.schedulers(rings, &config.scheduler_addresses, "query_frontend", |state| {
                    state == InstanceState::Active
                })?;
                Arc::new(Schedulers::new(addresses, self.channels.clone()))
            }
        };
        let channels = self.channels.clone();
        let querier_at = move |address: &str| -> Result<Arc<dyn QuerierClient>, ServiceError> {
            match &local {
                Some(local) if address == HERE => Ok(local.clone()),
                _ => {
                    let peer = channels.to(address).map_err(|e| ServiceError::internal(e.to_string()))?;
                    Ok(Arc::new(GrpcQuerierClient::new(peer)))
                }
            }
        };
        let (within, clock) = (config.recent_queries_within, self.runtime.clock.clone());
        Ok(Queriers::new(scheduler, Arc::new(querier_at), within, clock, &mut self.registry.write()))
    }

    /// Whether queries are asked, scheduled and answered in this process alone.
    fn queries_stay_here(&self) -> bool {
        let named = [&self.config.query_frontend.scheduler_addresses, &self.config.querier.scheduler_addresses];
        self.includes(Role::QueryFrontend) && self.includes(Role::Querier) && named.iter().all(|list| list.is_empty())
    }

    /// The query-schedulers that the settings name, or those of the ring in such states, now and later.
    fn schedulers(
        &self,
        rings: &Rings,
        named: &[String],
        section: &str,
        wanted: fn(InstanceState) -> bool,
    ) -> Result<query_scheduler::Addresses, AppError> {
        let addresses = Arc::new(ArcSwap::from_pointee(named.to_vec()));
        if !named.is_empty() {
            return Ok(addresses);
        }
        if rings.is_alone() {
            let text = format!(
                "this process does not both take and evaluate queries, so {section}.scheduler_addresses must name \
                 query-schedulers, or memberlist.bind_address let it find them"
            );
            return Err(AppError::Setting(text));
        }
        let known = addresses.clone();
        rings.instances(RingRole::QueryScheduler).listen(move |ring| {
            let there = ring.members().iter().filter(|member| wanted(member.instance.state) && member.healthy);
            let there: Vec<String> = there.map(|member| member.instance.grpc_address.clone()).collect();
            if there != **known.load() {
                known.store(Arc::new(there));
            }
        });
        Ok(addresses)
    }

    async fn start_query_scheduler(&mut self, rings: &Rings) -> Result<(), AppError> {
        if self.queries_stay_here() || self.includes(Role::QueryScheduler) {
            let metrics = query_scheduler::Metrics::new(&mut self.registry.write());
            let scheduler = Scheduler::new(&self.config.query_scheduler, self.runtime.clock.clone(), metrics);
            if self.queries_stay_here() {
                // As long as the process lives.
                std::mem::forget(scheduler.offered(HERE, self.querier_slots()));
            } else {
                self.register(rings, RingRole::QueryScheduler)?;
                self.serve_grpc(query_scheduler::grpc::server(scheduler.clone()));
            }
            self.scheduler = Some(scheduler);
        }
        self.start_nothing("query-scheduler").await
    }

    fn querier_slots(&self) -> u32 {
        u32::try_from(self.config.querier.max_concurrent).unwrap_or(u32::MAX)
    }

    /// Tells the query-schedulers of the querier of this process.
    fn offer_slots(&mut self, rings: &Rings) -> Result<(), AppError> {
        if self.queries_stay_here() {
            return Ok(());
        }
        let config = &self.config.querier;
        // One that is about to leave still has those who wait there.
        let there = |state| state != InstanceState::Left;
        let schedulers = self.schedulers(rings, &config.scheduler_addresses, "querier", there)?;
        let (listen, instance) = (&self.config.server.grpc_listen_address, &self.config.instance.address);
        let address = match (instance.as_str(), listen.host()) {
            // The query-scheduler sees where it is called from.
            ("", "0.0.0.0" | "::") => format!(":{}", listen.port()),
            ("", _) => listen.to_string(),
            (host, _) => HostPort::new(host, listen.port()).to_string(),
        };
        let channels = self.channels.clone();
        let scheduler_at = move |address: &str| -> io::Result<Arc<dyn SchedulerClient>> {
            Ok(Arc::new(GrpcSchedulerClient::new(channels.to(address)?)))
        };
        let offers = Offers {
            address,
            slots: self.querier_slots(),
            schedulers,
            scheduler_at: Arc::new(scheduler_at),
            clock: self.runtime.clock.clone(),
            stopping: self.draining.clone(),
        };
        self.spawn_loop("querier", offers.run());
        Ok(())
    }

    /// Between being asked to stop and taking no more requests.
    async fn drain(&self) {
        self.services.begin_stop("http");
        self.draining.cancel();
        let is_front = self.includes(Role::Distributor) || self.includes(Role::QueryFrontend);
        let delay = match self.config.server.shutdown_delay {
            Some(delay) => delay,
            None if is_front && !self.includes(Role::All) => DRAINED_WITHIN,
            None => Duration::ZERO,
        };
        let waiting = async {
            if !delay.is_zero() {
                self.runtime.clock.sleep(delay).await;
            }
        };
        let announcing = async {
            if let Some(rings) = &self.rings {
                rings.announce_stop().await;
            }
        };
        tokio::join!(waiting, announcing);
        if let Some(scheduler) = &self.scheduler {
            scheduler.stop();
        }
    }

    async fn start_distributor(
        &mut self,
        rings: &Arc<Rings>,
        ingesters: Arc<ArcSwap<Ingesters>>,
        elections: Arc<dyn Store<Elections>>,
    ) -> Result<(), AppError> {
        if self.includes(Role::Distributor) {
            self.register(rings, RingRole::Distributor)?;
            let distributors = rings.instances(RingRole::Distributor).clone();
            let clock = self.runtime.clock.clone();
            let ha_tracker = HaTracker::new(self.config.distributor.ha_tracker.clone(), elections, clock);
            let ha_tracker = Arc::new(ha_tracker);
            let running = ha_tracker.clone();
            self.spawn_loop("ha-tracker", async move { running.run().await });
            let distributor = Distributor::new(
                self.config.distributor.clone(),
                self.limits.clone(),
                ingesters,
                Arc::new(move || distributors.view().active()),
                rings.tenant_shards().clone(),
                ha_tracker,
                &self.runtime,
                &mut self.registry.write(),
            )
            .with_clock_watch(rings.clock_watch().clone());
            let routes = distributor::routes(Arc::new(distributor), self.config.multitenancy_enabled);
            self.http = std::mem::take(&mut self.http).merge(routes);
        }
        self.start_nothing("distributor").await
    }

    /// An ingester that goes for good has everything in object storage before. However long that takes: who asked for it may
    /// ask the process to end at once.
    async fn ship_before_leaving(&self) {
        let (Some(ingester), Some(rings)) = (&self.ingester, &self.rings) else { return };
        if !ingester.leaves_for_good() {
            return;
        }
        let failed = ingester.flush_and_ship(&[]).await;
        if failed.is_empty() {
            rings.leave_for_good();
        } else {
            let failed = failed.join("; ");
            tracing::error!(
                failed,
                "this ingester keeps its place: not all it holds is in object storage; start it again"
            );
        }
    }

    /// A service whose parts need no time to start, or that this process does not have.
    async fn start_nothing(&self, name: &'static str) -> Result<(), AppError> {
        Ok(self.services.start(name, async { Ok::<_, io::Error>(()) }).await?)
    }

    /// TLS of a listener.
    fn tls(
        runtime: &Runtime,
        config: &ServerTlsConfig,
        section: &'static str,
    ) -> Result<Option<Arc<ServerTls>>, AppError> {
        ServerTls::open(config, section, runtime.disk.clone(), runtime.clock.clone()).map_err(AppError::Setting)
    }

    async fn start_grpc(
        &mut self,
        frame: &Frame,
        stopping: &watch::Sender<bool>,
    ) -> Result<tokio::task::JoinHandle<()>, AppError> {
        let tls = Self::tls(&self.runtime, &self.config.server.grpc_tls_config, "server.grpc_tls_config")?;
        let address = self.config.server.grpc_listen_address.to_string();
        let listener = self.services.start("grpc", self.runtime.net.listen(&address)).await?;
        tracing::info!(address = listener.local_address(), "serving gRPC");
        let calls = self.config.server.grpc_max_in_flight_calls as usize;
        let bounds = CallBounds::new(self.runtime.clock.clone(), calls);
        let router = frame.grpc(self.grpc.take().unwrap_or_default(), bounds);
        let (server, clock) = (self.config.server.clone(), self.runtime.clock.clone());
        let stop = stopped(stopping.subscribe());
        Ok(tokio::spawn(async move { serve(listener, tls, move || router.clone(), &server, clock, stop).await }))
    }
}

/// The way to an instance; its address is told when it makes no sense.
fn peer(channels: &Channels, instance: &Instance) -> Option<Peer> {
    channels
        .to(&instance.grpc_address)
        .inspect_err(|error| tracing::warn!(instance = %instance.id, %error, "an address in the ring makes no sense"))
        .ok()
}

async fn starting() -> Response {
    let message = "this process is starting; /ready tells how far it is";
    prometheus_error(&ServiceError::new(ErrorKind::Unavailable, "starting", message))
}

/// The router behind the HTTP listener, replaced once the services are there.
#[derive(Clone)]
struct Gate {
    router: Arc<ArcSwap<Mutex<Router>>>,
}

impl Gate {
    fn new(router: Router) -> Self {
        Self { router: Arc::new(ArcSwap::from_pointee(Mutex::new(router))) }
    }

    /// Replaces the router.
    fn open(&self, router: Router) {
        self.router.store(Arc::new(Mutex::new(router)));
    }

    /// The router that answers now.
    fn router(&self) -> Router {
        self.router.load().lock().clone()
    }
}
