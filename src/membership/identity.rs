//! What this process tells the others of itself.

use std::net::IpAddr;

use skald_ring::{Build, GroupId, GroupRules, Instance, InstanceId, Membership};

use crate::config::Config;
use crate::settings::HostPort;

/// Oldest and newest version of the protocols between services that this build speaks.
const PROTOCOLS: (u32, u32) = (1, 1);

/// What this process tells the others of itself.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) id: InstanceId,
    pub(super) zone: String,
    group: Option<GroupId>,
    grpc_address: String,
    http_address: String,
    /// A number of this process, so that two that claim one id are told apart.
    process: u64,
    /// Where gossip listens and where others reach it; `None` for a process that is alone.
    pub(super) gossip: Option<(HostPort, HostPort)>,
}

fn is_everywhere(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

impl Identity {
    /// The identity that the settings give to the process with this random number; the error says which setting is
    /// missing.
    pub(super) fn of(config: &Config, process: u64) -> Result<Self, String> {
        let settings = &config.instance;
        let id = if settings.id.is_empty() { host_name() } else { settings.id.clone() };
        let id = InstanceId::new(&id).map_err(|error| format!("instance.id: {error}"))?;
        let server = &config.server;
        let host = match settings.address.as_str() {
            "" => server.grpc_listen_address.host(),
            address => address,
        };
        let gossip = match &config.memberlist.bind_address {
            None => None,
            Some(bind) => {
                if is_everywhere(host) {
                    return Err(format!(
                        "instance.address must say where others reach this process: server.grpc_listen_address is {}",
                        server.grpc_listen_address
                    ));
                }
                for (name, address) in [
                    ("memberlist.bind_address", bind),
                    ("server.grpc_listen_address", &server.grpc_listen_address),
                    ("server.http_listen_address", &server.http_listen_address),
                ] {
                    if address.port() == 0 {
                        return Err(format!("{name} has port 0: others could not be told where this process is"));
                    }
                }
                if config.ring.zone_awareness_enabled && settings.availability_zone.is_empty() {
                    return Err("ring.zone_awareness_enabled needs an instance.availability_zone".to_owned());
                }
                let advertised = match &config.memberlist.advertise_address {
                    Some(address) => address.clone(),
                    None if is_everywhere(bind.host()) => HostPort::new(host, bind.port()),
                    None => bind.clone(),
                };
                Some((bind.clone(), advertised))
            }
        };
        Ok(Self {
            id,
            zone: settings.availability_zone.clone(),
            group: settings.replica_group.map(GroupId),
            grpc_address: HostPort::new(host, server.grpc_listen_address.port()).to_string(),
            http_address: HostPort::new(host, server.http_listen_address.port()).to_string(),
            process,
            gossip,
        })
    }

    /// Whether an instance is this process.
    pub(super) fn is_own(&self, instance: &Instance) -> bool {
        instance.id == self.id && instance.process == self.process
    }

    /// What it says in rings without groups.
    pub(super) fn instance(&self) -> Instance {
        Instance {
            grpc_address: self.grpc_address.clone(),
            http_address: self.http_address.clone(),
            zone: self.zone.clone(),
            process: self.process,
            build: Build {
                name: concat!("skald ", env!("CARGO_PKG_VERSION")).to_owned(),
                oldest_protocol: PROTOCOLS.0,
                newest_protocol: PROTOCOLS.1,
            },
            ..Instance::new(self.id.clone())
        }
    }

    /// What it says in the ring of ingesters. One that is `alone` is group 0, whatever its name.
    pub(super) fn ingester(&self, rules: &GroupRules, alone: bool) -> Result<Instance, String> {
        let membership = if alone {
            Membership { group: GroupId(0), index: 0 }
        } else {
            Membership::of(&self.id, self.group, rules)
                .map_err(|error| format!("{error}; set instance.id or instance.replica_group"))?
        };
        Ok(Instance { membership: Some(membership), repaired: false, ..self.instance() })
    }
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "skald".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Environment, YamlFile, load};

    #[track_caller]
    fn check(yaml: &str, expected: Result<&str, &str>) {
        let file = YamlFile { name: "test", text: yaml, expand_env: false };
        let config: Config = load(Some(file), &Environment::default(), &[]).unwrap();
        let found = Identity::of(&config, 1).map(|identity| {
            let gossip = identity.gossip.map_or("alone".to_owned(), |(_, advertised)| advertised.to_string());
            format!("{} {} {} {gossip}", identity.id, identity.grpc_address, identity.http_address)
        });
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn addresses_that_others_can_use() {
        check("instance: {id: a-0}", Ok("a-0 0.0.0.0:9095 0.0.0.0:9009 alone"));
        let gossip = "memberlist: {bind_address: \"0.0.0.0:7946\"}\ninstance: {id: a-0";
        check(
            &format!("{gossip}}}"),
            Err(
                "instance.address must say where others reach this process: server.grpc_listen_address is 0.0.0.0:9095",
            ),
        );
        check(&format!("{gossip}, address: 10.1.2.3}}"), Ok("a-0 10.1.2.3:9095 10.1.2.3:9009 10.1.2.3:7946"));
        check(
            &format!("{gossip}, address: 10.1.2.3}}\nserver: {{grpc_listen_address: \"10.1.2.3:0\"}}"),
            Err("server.grpc_listen_address has port 0: others could not be told where this process is"),
        );
        check(
            &format!("{gossip}, address: 10.1.2.3}}\nring: {{zone_awareness_enabled: true}}"),
            Err("ring.zone_awareness_enabled needs an instance.availability_zone"),
        );
    }
}
