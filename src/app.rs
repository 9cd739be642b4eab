//! Puts a process together: which services its target names, who asks whom, in which order they start and stop.
//!
//! Start: HTTP listens first, so that `/ready` and `/metrics` tell how the rest is coming along; the ingester replays its
//! log; whoever asks others comes after them; gRPC listens once all it serves is there, and only then are the other HTTP
//! paths answered. Stop: both servers take nothing new and finish what is under way, then the services end in reverse
//! order, the ingester with its log synced.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::response::Response;
use axum::routing::any;
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use skald_ring::GroupId;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;

use crate::bucket::index_cache::IndexCache;
use crate::bucket::{self, Bucket, ObservedBucket};
use crate::compactor::{self, Compactor};
use crate::config::{Config, Role};
use crate::distributor::{self, Distributor, Ingesters, ReplicaGroup};
use crate::error::{ErrorKind, ServiceError};
use crate::grpc::{CallBounds, Channels, Peer};
use crate::http::{Frame, FrameMetrics, Link, Pages, ProcessMetrics, prometheus_error, serve};
use crate::ingester::client::IngesterClient;
use crate::ingester::grpc::GrpcIngesterClient;
use crate::ingester::{self, Ingester};
use crate::limits::TenantLimits;
use crate::querier::blocks::BlockFinder;
use crate::querier::client::QuerierClient;
use crate::querier::grpc::GrpcQuerierClient;
use crate::querier::{self, IngesterGroup, Querier};
use crate::query_frontend::QueryFrontend;
use crate::runtime::Runtime;
use crate::runtime_config::{self, RuntimeConfig};
use crate::services::{ServiceFailed, Services};
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
const ORDER: [&str; 10] = [
    "http",
    "runtime-config",
    "object-storage",
    "compactor",
    "store-gateway",
    "ingester",
    "querier",
    "query-frontend",
    "distributor",
    "grpc",
];

/// What `/` links to besides the pages every process has.
const LINKS: [Link; 4] = [
    Link { path: "/ingester/losses", title: "Samples that the last start of the ingester could not bring back" },
    Link { path: "/ingester/tenants", title: "Tenants of the ingester: series, blocks, newest sample" },
    Link { path: "/runtime_config?mode=diff", title: "Limits of single tenants, as they are in force" },
    Link { path: "/prometheus/api/v1/status/buildinfo", title: "What the query API says of itself" },
];

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
    loops: Vec<AbortOnDropHandle<()>>,
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
        loops: Vec::new(),
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
    app.loops.clear();
    for failed in services.stop(app.config.server.graceful_shutdown_timeout).await {
        tracing::error!(service = failed.name, why = failed.why, "did not end well");
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
        let storage = self.start_storage().await?;
        self.start_compactor(&storage).await?;
        let store_gateways = self.start_store_gateway(&storage).await?;
        let ingester = self.start_ingester(&storage).await?;
        let querier = self.start_querier(&storage, ingester.clone(), store_gateways).await?;
        self.start_query_frontend(querier).await?;
        self.start_distributor(ingester).await?;
        // Before the last service runs: a process that is ready answers.
        gate.open(frame.http(std::mem::take(&mut self.http)));
        self.start_grpc(frame, stopping).await
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
        self.spawn_loop("runtime-config", async move { opened.run().await });
        Ok(())
    }

    async fn start_storage(&mut self) -> Result<Storage, AppError> {
        let (config, runtime) = (&self.config, &self.runtime);
        let opened = async { bucket::open(&config.blocks_storage, &config.data_dir, runtime.disk.as_ref()) };
        let opened = self.services.start("object-storage", opened).await?;
        let bucket: Arc<dyn Bucket> =
            Arc::new(ObservedBucket::new(Arc::new(opened), runtime.clock.clone(), &mut self.registry.write()));
        let index_config = config.blocks_storage.bucket_index.clone();
        let indexes = Arc::new(IndexCache::new(bucket.clone(), runtime.clock.clone(), index_config));
        Ok(Storage { bucket, indexes })
    }

    async fn start_compactor(&mut self, storage: &Storage) -> Result<(), AppError> {
        if self.includes(Role::Compactor) {
            let owns: compactor::Ownership = Arc::new(|_| true);
            let (bucket, clock) = (storage.bucket.clone(), self.runtime.clock.clone());
            let compactor =
                Compactor::new(bucket, clock, self.config.compactor.clone(), owns, &mut self.registry.write());
            let compactor = Arc::new(compactor);
            self.http = std::mem::take(&mut self.http).merge(compactor::routes(compactor.clone()));
            self.spawn_loop("compactor", async move { compactor.run().await });
        }
        self.start_nothing("compactor").await
    }

    /// The store-gateways queriers of this process ask: its own, or those of the settings.
    async fn start_store_gateway(&mut self, storage: &Storage) -> Result<Vec<Arc<dyn StoreGatewayClient>>, AppError> {
        let mut clients: Vec<Arc<dyn StoreGatewayClient>> = Vec::new();
        for address in &self.config.querier.store_gateway_addresses {
            clients.push(Arc::new(GrpcStoreGatewayClient::new(self.channel(address)?)));
        }
        if self.includes(Role::StoreGateway) {
            let owns: store_gateway::Ownership = Arc::new(|_, _| true);
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
            if clients.is_empty() {
                clients.push(client);
            }
        }
        self.start_nothing("store-gateway").await?;
        Ok(clients)
    }

    async fn start_ingester(&mut self, storage: &Storage) -> Result<Option<Arc<dyn IngesterClient>>, AppError> {
        if !self.includes(Role::Ingester) {
            self.start_nothing("ingester").await?;
            return Ok(None);
        }
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
        let client: Arc<dyn IngesterClient> = Arc::new(ingester.clone());
        self.serve_grpc(ingester::grpc::server(client.clone()));
        self.http = std::mem::take(&mut self.http).merge(ingester.clone().routes());
        let running = ingester.clone();
        self.spawn_loop("ingester", async move { running.run().await });
        self.services.on_stop("ingester", move || async move { ingester.close().await.map_err(|e| e.to_string()) });
        Ok(Some(client))
    }

    /// The groups of ingesters that the settings name, or the one of this process.
    fn ingester_groups(&self, local: Option<Arc<dyn IngesterClient>>) -> Result<Vec<IngesterGroup>, AppError> {
        let config = &self.config.ingester_client;
        if config.addresses.is_empty() {
            let local = local.ok_or_else(|| {
                let text = "this process runs no ingester, so ingester_client.addresses must name some";
                AppError::Setting(text.to_owned())
            })?;
            return Ok(vec![IngesterGroup { members: vec![local] }]);
        }
        let client = |address: &String| -> Result<Arc<dyn IngesterClient>, AppError> {
            Ok(Arc::new(GrpcIngesterClient::new(self.channel(address)?)))
        };
        config
            .addresses
            .chunks(config.replication_factor)
            .map(|group| Ok(IngesterGroup { members: group.iter().map(client).collect::<Result<_, _>>()? }))
            .collect()
    }

    async fn start_querier(
        &mut self,
        storage: &Storage,
        ingester: Option<Arc<dyn IngesterClient>>,
        store_gateways: Vec<Arc<dyn StoreGatewayClient>>,
    ) -> Result<Option<Arc<dyn QuerierClient>>, AppError> {
        let mut client: Option<Arc<dyn QuerierClient>> = None;
        if self.includes(Role::Querier) {
            let config: querier::Config = self.config.querier.clone();
            if store_gateways.is_empty() {
                let text = "this process runs no store-gateway, so querier.store_gateway_addresses must name some";
                return Err(AppError::Setting(text.to_owned()));
            }
            let groups = self.ingester_groups(ingester)?;
            let blocks = BlockFinder::new(storage.indexes.clone(), self.runtime.clock.clone());
            let metrics = querier::Metrics::new(&mut self.registry.write());
            let runtime = self.runtime.clone();
            let querier = Querier::new(config, groups, store_gateways, blocks, runtime, metrics);
            let querier: Arc<dyn QuerierClient> = Arc::new(querier);
            self.serve_grpc(querier::grpc::server(querier.clone()));
            client = Some(querier);
        }
        self.start_nothing("querier").await?;
        Ok(client)
    }

    async fn start_query_frontend(&mut self, local: Option<Arc<dyn QuerierClient>>) -> Result<(), AppError> {
        if self.includes(Role::QueryFrontend) {
            let config = self.config.query_frontend.clone();
            let mut queriers: Vec<Arc<dyn QuerierClient>> = Vec::new();
            for address in &config.querier_addresses {
                queriers.push(Arc::new(GrpcQuerierClient::new(self.channel(address)?)));
            }
            if queriers.is_empty() {
                queriers.extend(local);
            }
            if queriers.is_empty() {
                let text = "this process runs no querier, so query_frontend.querier_addresses must name some";
                return Err(AppError::Setting(text.to_owned()));
            }
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

    async fn start_distributor(&mut self, ingester: Option<Arc<dyn IngesterClient>>) -> Result<(), AppError> {
        if self.includes(Role::Distributor) {
            let groups = self.ingester_groups(ingester)?.into_iter().zip(0..);
            let groups = groups.map(|(group, id)| ReplicaGroup { id: GroupId(id), replicas: group.members });
            let ingesters = Ingesters::new(groups.collect()).map_err(|e| AppError::Setting(e.to_string()))?;
            let distributor = Distributor::new(
                self.config.distributor.clone(),
                self.limits.clone(),
                Arc::new(ArcSwap::from_pointee(ingesters)),
                &self.runtime,
                &mut self.registry.write(),
            );
            let routes = distributor::routes(Arc::new(distributor), self.config.multitenancy_enabled);
            self.http = std::mem::take(&mut self.http).merge(routes);
        }
        self.start_nothing("distributor").await
    }

    /// A service whose parts need no time to start, or that this process does not have.
    async fn start_nothing(&self, name: &'static str) -> Result<(), AppError> {
        Ok(self.services.start(name, async { Ok::<_, io::Error>(()) }).await?)
    }

    fn channel(&self, address: &str) -> Result<Peer, AppError> {
        self.channels.to(address).map_err(|e| AppError::Setting(e.to_string()))
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
