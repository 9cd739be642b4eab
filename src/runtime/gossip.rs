//! How what a process knows of its cluster gets to the others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use skald_ring::Replica;
use skald_ring::store::gossip::{Gossip, GossipConfig};

use super::Clock;
use crate::settings::HostPort;

/// How a process takes part in gossip.
pub struct Participant {
    /// Its name among the others.
    pub node: String,
    /// Where it listens.
    pub bind: HostPort,
    /// Where others reach it.
    pub advertised: HostPort,
    /// Between packets of changes.
    pub gossip_interval: Duration,
    /// Others that get each.
    pub gossip_nodes: usize,
    /// Between exchanges of everything with one other.
    pub push_pull_interval: Duration,
    /// What it tells, and where what it hears goes.
    pub replica: Arc<Replica>,
    /// For what expires.
    pub clock: Arc<dyn Clock>,
}

/// How processes gossip: by sockets, or in a simulation.
pub trait Gossiping: Send + Sync + 'static {
    /// Begins to take part, alone until it has joined somebody or somebody has joined it.
    fn start(&self, participant: Participant) -> BoxFuture<'static, Result<Box<dyn Participation>, String>>;
}

/// A process that takes part.
pub trait Participation: Send + Sync {
    /// Where others reach it, for people.
    fn address(&self) -> String;
    /// Joins each of these, itself left out: exchanges everything with it.
    fn join<'a>(&'a self, members: &'a [HostPort]) -> BoxFuture<'a, Joined>;
    /// Who is thought to live, this one included.
    fn members(&self) -> BoxFuture<'_, Vec<Member>>;
    /// How many are thought to live, this one included. Call it every few seconds: how often something has to be told
    /// follows from it.
    fn count_members(&self) -> BoxFuture<'_, usize>;
    /// Takes leave of the others, for at most `timeout`.
    fn stop(&self, timeout: Duration) -> BoxFuture<'_, Result<(), String>>;
}

/// Somebody who takes part, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub node: String,
    /// Where it is reached.
    pub address: String,
}

/// What became of joining some others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joined {
    /// How many were met.
    pub met: usize,
    /// Why not the others.
    pub failures: Vec<String>,
}

/// Gossip over sockets, with the operating system's names and addresses.
#[derive(Debug, Clone, Copy, Default)]
pub struct SocketGossip;

impl Gossiping for SocketGossip {
    fn start(&self, participant: Participant) -> BoxFuture<'static, Result<Box<dyn Participation>, String>> {
        Box::pin(async move {
            let mut config = GossipConfig::new(participant.node, resolve_one(&participant.bind).await?);
            config.advertise_address = Some(resolve_one(&participant.advertised).await?);
            config.gossip_interval = participant.gossip_interval;
            config.gossip_nodes = participant.gossip_nodes;
            config.push_pull_interval = participant.push_pull_interval;
            let clock = participant.clock;
            let gossip = Gossip::start(config, participant.replica, move || clock.now_ms()).await;
            Ok(Box::new(gossip.map_err(|error| error.to_string())?) as Box<dyn Participation>)
        })
    }
}

impl Participation for Gossip {
    fn address(&self) -> String {
        Gossip::address(self).to_string()
    }

    fn join<'a>(&'a self, members: &'a [HostPort]) -> BoxFuture<'a, Joined> {
        Box::pin(async move {
            let mut addresses = Vec::new();
            let mut joined = Joined::default();
            for member in members {
                match resolve(member).await {
                    Ok(found) => addresses.extend(found),
                    Err(why) => joined.failures.push(why),
                }
            }
            addresses.sort_unstable();
            addresses.dedup();
            addresses.retain(|address| *address != Gossip::address(self));
            let joins = addresses.iter().map(|address| Gossip::join(self, *address));
            for outcome in futures::future::join_all(joins).await {
                match outcome {
                    Ok(()) => joined.met += 1,
                    Err(error) => joined.failures.push(error.to_string()),
                }
            }
            joined
        })
    }

    fn members(&self) -> BoxFuture<'_, Vec<Member>> {
        Box::pin(async move {
            let peers = Gossip::members(self).await;
            peers.into_iter().map(|peer| Member { node: peer.node, address: peer.address.to_string() }).collect()
        })
    }

    fn count_members(&self) -> BoxFuture<'_, usize> {
        Box::pin(Gossip::count_members(self))
    }

    fn stop(&self, timeout: Duration) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { Gossip::stop(self, timeout).await.map_err(|error| error.to_string()) })
    }
}

async fn resolve(address: &HostPort) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host((address.host(), address.port())).await;
    Ok(found.map_err(|error| format!("{address} is not found: {error}"))?.collect())
}

async fn resolve_one(address: &HostPort) -> Result<SocketAddr, String> {
    resolve(address).await?.into_iter().next().ok_or_else(|| format!("{address} has no address"))
}
