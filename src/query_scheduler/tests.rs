//! The queue under random lives of queriers and requests, and schedulers over a network in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use proptest::prelude::*;
use tokio_util::task::AbortOnDropHandle;

use super::client::{Ask, Reads, SchedulerClient, Turn};
use super::grpc::{GrpcSchedulerClient, server};
use super::queue::{Item, Queue};
use super::*;
use crate::error::{ErrorKind, ServiceError};
use crate::grpc::{CallBounds, Channels};
use crate::http::{self, Frame, FrameMetrics};
use crate::runtime::{Clock, MemNet, Net, SystemClock};
use crate::tenant::TenantId;

fn tenant(number: usize) -> TenantId {
    TenantId::new(&format!("tenant-{number}")).unwrap()
}

fn item(id: u64) -> Item<()> {
    Item { id, not: Vec::new(), payload: () }
}

/// What happens to a queue.
#[derive(Debug, Clone)]
enum Event {
    Ask {
        tenant: usize,
        store: bool,
    },
    /// The n-th of those that wait goes away.
    Cancel(usize),
    /// The n-th of those that run is done.
    Finish(usize),
    Join {
        querier: usize,
        slots: u32,
    },
    /// The n-th offer changes its slots, or stops taking more.
    Change(usize, u32),
    Crash(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0..4_usize, any::<bool>()).prop_map(|(tenant, store)| Event::Ask { tenant, store }),
        2 => any::<usize>().prop_map(Event::Cancel),
        6 => any::<usize>().prop_map(Event::Finish),
        2 => (0..3_usize, 1..6_u32).prop_map(|(querier, slots)| Event::Join { querier, slots }),
        1 => (any::<usize>(), 0..6_u32).prop_map(|(offer, slots)| Event::Change(offer, slots)),
        1 => any::<usize>().prop_map(Event::Crash),
    ]
}

/// What the queue should know: requests that wait with their tenants, those that run, and offers.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<u64, (usize, bool)>,
    running: BTreeSet<u64>,
    ran: BTreeSet<u64>,
    offers: Vec<u64>,
}

const MOST: usize = 20;

impl Model {
    fn assign(&mut self, queue: &mut Queue<()>) {
        while let Some(assigned) = queue.assign() {
            assert!(self.waiting.remove(&assigned.id).is_some(), "{} did not wait", assigned.id);
            assert!(self.ran.insert(assigned.id), "{} runs twice", assigned.id);
            self.running.insert(assigned.id);
        }
    }

    fn check(&self, queue: &Queue<()>) {
        let waiting = queue.waiting(Reads::Recent) + queue.waiting(Reads::Store);
        assert_eq!(waiting, self.waiting.len());
        assert!(queue.running() <= self.running.len());
        // Recent requests wait only when every slot is taken.
        if queue.waiting(Reads::Recent) > 0 {
            assert!(queue.used().iter().all(|(used, slots)| used >= slots), "{:?}", queue.used());
        }
        if queue.waiting(Reads::Store) > 0 {
            assert!(queue.used().iter().all(|(used, slots)| 4 * (used + 1) >= 3 * slots), "{:?}", queue.used());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_is_lost_and_nothing_runs_twice(events in prop::collection::vec(event(), 1..200)) {
        let mut queue = Queue::new(MOST);
        let mut model = Model::default();
        let mut next = 0;
        for event in events {
            next += 1;
            let nth = |set: &mut dyn Iterator<Item = u64>, n: usize| {
                let all: Vec<u64> = set.collect();
                (!all.is_empty()).then(|| all[n % all.len()])
            };
            match event {
                Event::Ask { tenant: number, store } => {
                    let reads = if store { Reads::Store } else { Reads::Recent };
                    let others = model.waiting.values().filter(|(other, _)| *other == number).count();
                    let taken = queue.enqueue(&tenant(number), reads, item(next)).is_ok();
                    prop_assert_eq!(taken, others < MOST);
                    if taken {
                        model.waiting.insert(next, (number, store));
                    }
                }
                Event::Cancel(n) => if let Some(id) = nth(&mut model.waiting.keys().copied(), n) {
                    queue.cancel(id);
                    model.waiting.remove(&id);
                },
                Event::Finish(n) => if let Some(id) = nth(&mut model.running.iter().copied(), n) {
                    queue.release(id);
                    model.running.remove(&id);
                },
                Event::Join { querier, slots } => {
                    queue.offer(next, &querier.to_string().into(), slots);
                    model.offers.push(next);
                }
                Event::Change(n, slots) => if let Some(id) = nth(&mut model.offers.iter().copied(), n) {
                    queue.offer(id, &"?".into(), slots);
                },
                Event::Crash(n) => if let Some(id) = nth(&mut model.offers.iter().copied(), n) {
                    queue.withdraw(id);
                    model.offers.retain(|other| *other != id);
                },
            }
            model.assign(&mut queue);
            model.check(&queue);
        }
        // Whatever happened: with a querier that stays, all that wait get their turn.
        queue.offer(u64::MAX, &"last".into(), 2);
        while !model.waiting.is_empty() {
            let before = model.waiting.len();
            model.assign(&mut queue);
            for id in std::mem::take(&mut model.running) {
                queue.release(id);
            }
            prop_assert!(model.waiting.len() < before, "nobody gets a turn");
        }
        for id in model.running {
            queue.release(id);
        }
        prop_assert_eq!(queue.running(), 0);
        prop_assert!(queue.used().iter().all(|(used, _)| *used == 0));
    }
}

/// The tenants and lanes of the next requests of a full queue, each ending before the next begins.
fn served(queue: &mut Queue<(usize, bool)>, count: usize) -> Vec<(usize, bool)> {
    let mut served = Vec::new();
    for _ in 0..count {
        let assigned = queue.assign().expect("somebody waits");
        served.push(assigned.payload);
        queue.release(assigned.id);
    }
    served
}

fn queue_of(requests: &[(usize, bool, usize)]) -> Queue<(usize, bool)> {
    let mut queue = Queue::new(1000);
    let mut id = 0;
    for (number, store, count) in requests {
        for _ in 0..*count {
            id += 1;
            let reads = if *store { Reads::Store } else { Reads::Recent };
            let item = Item { id, not: Vec::new(), payload: (*number, *store) };
            assert!(queue.enqueue(&tenant(*number), reads, item).is_ok());
        }
    }
    queue
}

#[test]
fn tenants_and_what_they_read_take_turns() {
    let mut queue = queue_of(&[(1, false, 100), (2, false, 3), (3, false, 3)]);
    queue.offer(0, &"q".into(), 1);
    let order: Vec<usize> = served(&mut queue, 9).into_iter().map(|(tenant, _)| tenant).collect();
    assert_eq!(order, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
    assert_eq!(served(&mut queue, 2), [(1, false), (1, false)]);

    let mut queue = queue_of(&[(1, true, 100), (1, false, 2), (2, true, 2)]);
    queue.offer(0, &"q".into(), 1);
    let order = served(&mut queue, 6);
    assert_eq!(order, [(1, false), (1, true), (1, false), (2, true), (1, true), (2, true)]);
}

#[test]
fn the_store_never_takes_all_slots() {
    for (slots, most) in [(1, 1), (2, 1), (3, 2), (4, 3), (20, 15)] {
        let mut queue = queue_of(&[(1, true, 100), (2, false, 1)]);
        queue.offer(0, &"q".into(), slots);
        // The recent one first, so that the rest is the store's.
        assert_eq!(queue.assign().unwrap().payload, (2, false));
        let mut stores = 0;
        while queue.assign().is_some() {
            stores += 1;
        }
        assert_eq!(stores, most.min(slots - 1), "{slots}");
    }
}

#[test]
fn a_request_avoids_the_querier_that_failed_it_while_there_is_another() {
    let mut queue = Queue::new(10);
    queue.offer(0, &"a".into(), 4);
    queue.offer(1, &"b".into(), 1);
    let not_a = |id| Item { id, not: vec!["a".into()], payload: () };
    assert!(queue.enqueue(&tenant(1), Reads::Recent, not_a(1)).is_ok());
    assert!(queue.enqueue(&tenant(1), Reads::Recent, not_a(2)).is_ok());
    assert!(queue.enqueue(&tenant(2), Reads::Recent, item(3)).is_ok());
    assert_eq!(queue.assign().map(|assigned| (assigned.id, assigned.querier.to_string())), Some((1, "b".to_owned())));
    assert_eq!(queue.assign().map(|assigned| (assigned.id, assigned.querier.to_string())), Some((3, "a".to_owned())));
    assert!(queue.assign().is_none(), "it waits for the other querier");
    queue.withdraw(1);
    assert_eq!(
        queue.assign().map(|assigned| assigned.querier.to_string()),
        Some("a".to_owned()),
        "the last one will do"
    );
}

fn scheduler(most: usize) -> Scheduler {
    let config = Config { max_outstanding_requests_per_tenant: most };
    Scheduler::new(&config, Arc::new(SystemClock::default()), Metrics::new(&mut Registry::default()))
}

/// Serves a scheduler until the handle is dropped.
async fn serve(net: &MemNet, address: &str, scheduler: &Scheduler) -> AbortOnDropHandle<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let listener = net.listen(address).await.unwrap();
    let frame = Frame::new(clock.clone(), FrameMetrics::new(&mut Registry::default()));
    let routes = tonic::service::Routes::new(server(scheduler.clone()));
    let router = frame.grpc(routes, CallBounds::new(clock.clone(), 1000));
    let serving = async move {
        let config = http::Config::default();
        http::serve(listener, None, move || router.clone(), &config, clock, std::future::pending()).await;
    };
    AbortOnDropHandle::new(tokio::spawn(serving))
}

fn ask() -> Ask {
    Ask { reads: Reads::Recent, not: Vec::new() }
}

async fn until(what: &str, check: impl Fn() -> bool) {
    let waiting = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Asks for a turn, and goes away when it is dropped.
fn asking(client: &Arc<dyn SchedulerClient>, tenant: &TenantId) -> AbortOnDropHandle<Result<Turn, ServiceError>> {
    let (client, tenant) = (client.clone(), tenant.clone());
    AbortOnDropHandle::new(tokio::spawn(async move { client.turn(&tenant, ask()).await }))
}

/// What every scheduler does, in this process or behind gRPC.
async fn conformance(client: Arc<dyn SchedulerClient>, scheduler: &Scheduler) {
    let (one, two) = (tenant(1), tenant(2));
    let offered = scheduler.offered("querier:9095", 1);
    let first = client.turn(&one, ask()).await.unwrap();
    assert_eq!(&*first.querier, "querier:9095");
    // One waits, a second one of the tenant is too many, another tenant has its own queue.
    let waiting = asking(&client, &one);
    until("it waits", || scheduler.waiting() == 1).await;
    let refused = client.turn(&one, ask()).await.err().unwrap();
    assert_eq!((refused.kind, &*refused.reason), (ErrorKind::TooManyRequests, "too-many-outstanding-requests"));
    let other = asking(&client, &two);
    until("both wait", || scheduler.waiting() == 2).await;
    // One that goes away leaves the queue.
    drop(waiting);
    until("one waits", || scheduler.waiting() == 1).await;
    drop(first);
    drop(other.await.unwrap().unwrap());
    // A querier that takes nothing new, then one that goes.
    offered.set(0);
    let waiting = asking(&client, &one);
    until("it waits", || scheduler.waiting() == 1).await;
    drop(offered);
    let _next = scheduler.offered("another:9095", 2);
    let turn = waiting.await.unwrap().unwrap();
    assert_eq!(&*turn.querier, "another:9095");
    drop(turn);
    until("no slot is held", || scheduler.running() == 0).await;
}

#[tokio::test]
async fn both_clients_conform() {
    let here = scheduler(1);
    conformance(Arc::new(here.clone()), &here).await;
    let (there, net) = (scheduler(1), MemNet::default());
    let _server = serve(&net, "scheduler:9095", &there).await;
    let peer = Channels::plain(Arc::new(net)).to("scheduler:9095").unwrap();
    conformance(Arc::new(GrpcSchedulerClient::new(peer)), &there).await;
}

#[tokio::test]
async fn a_scheduler_that_stops_sends_everybody_to_another() {
    let net = MemNet::default();
    let (first, second) = (scheduler(10), scheduler(10));
    let _servers = [serve(&net, "first:1", &first).await, serve(&net, "second:1", &second).await];
    let channels = Channels::plain(Arc::new(net));
    let addresses: Addresses = Arc::new(arc_swap::ArcSwap::from_pointee(vec!["first:1".to_owned()]));
    let schedulers: Arc<dyn SchedulerClient> = Arc::new(Schedulers::new(addresses.clone(), channels.clone()));
    let of = tenant(1);
    let waiting = asking(&schedulers, &of);
    until("it waits at the first", || first.waiting() == 1).await;
    addresses.store(Arc::new(vec!["first:1".to_owned(), "second:1".to_owned()]));

    // A querier offers its slots over the wire, and both schedulers see it by where it calls from.
    let (slots, watched) = tokio::sync::watch::channel(3);
    let offering: Vec<_> = ["first:1", "second:1"]
        .map(|address| {
            let (client, watched) = (GrpcSchedulerClient::new(channels.to(address).unwrap()), watched.clone());
            AbortOnDropHandle::new(tokio::spawn(async move { client.offer("querier:7", watched).await }))
        })
        .into();
    drop(waiting.await.unwrap().unwrap());
    let held: Vec<_> = futures::future::join_all((0..4).map(|_| schedulers.turn(&of, ask()))).await;
    assert!(held.iter().all(|turn| turn.as_ref().is_ok_and(|turn| &*turn.querier == "querier:7")));
    assert_eq!((first.running(), second.running()), (2, 2), "they are asked in turn");
    slots.send(2).unwrap();
    until("the change is known", || first.used() == [(2, 2)] && second.used() == [(2, 2)]).await;

    // Those that wait there go to the other.
    let waiting = [asking(&schedulers, &of), asking(&schedulers, &of)];
    until("one waits at each", || first.waiting() == 1 && second.waiting() == 1).await;
    first.stop();
    until("both wait at the second", || second.waiting() == 2).await;
    let mut offering = offering.into_iter();
    let ended = offering.next().unwrap().await.unwrap();
    assert!(ended.is_ok() || ended.is_err_and(|e| e.kind == ErrorKind::Unavailable));
    drop(held);
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    for _ in 0..4 {
        schedulers.turn(&of, ask()).await.unwrap();
    }
    addresses.store(Arc::default());
    let none: ServiceError = schedulers.turn(&of, ask()).await.err().unwrap();
    assert_eq!(&*none.reason, "no-query-scheduler");
}
