//! All settings of the binary: what is true for the whole process, and each service's section.

use std::path::PathBuf;

use crate::settings::{SettingValue, Shown, setting_enum, settings};
use crate::{
    bucket, compactor, distributor, grpc, http, ingester, limits, logging, membership, querier, query_frontend,
    query_scheduler, runtime_config, store_gateway,
};

settings! {
    /// What the process is and where it keeps its data.
    pub struct Config {
        /// What this process does: `all`, or a comma-separated list of roles.
        pub target: Targets = Targets::all(),
        /// Directory of everything kept on this machine: the write-ahead log, blocks not uploaded yet, caches, and with the
        /// default storage the bucket itself. Only one process uses it at a time.
        pub data_dir: PathBuf = PathBuf::from("./data"),
        /// Whether every request has to name its tenant in the `X-Scope-OrgID` header. `false` takes a request without
        /// the header as one of the tenant `anonymous`; `true` refuses it with 401.
        pub multitenancy_enabled: bool = false,
        /// The servers.
        pub server: http::Config,
        /// How other processes are called.
        pub grpc_client: grpc::Config,
        /// The HTTP API.
        pub api: http::ApiConfig,
        /// How processes find each other.
        pub memberlist: membership::GossipSettings,
        /// This process, as others see it.
        pub instance: membership::InstanceSettings,
        /// Who is where.
        pub ring: membership::RingSettings,
        /// The distributor.
        pub distributor: distributor::Config,
        /// Limits of tenants.
        pub limits: limits::Limits,
        /// Settings that change while the process runs.
        pub runtime_config: runtime_config::Config,
        /// Object storage.
        pub blocks_storage: bucket::Config,
        /// The ingester.
        pub ingester: ingester::Config,
        /// The querier.
        pub querier: querier::Config,
        /// The query-frontend.
        pub query_frontend: query_frontend::Config,
        /// The query-scheduler.
        pub query_scheduler: query_scheduler::Config,
        /// PromQL.
        pub promql: query_frontend::PromqlConfig,
        /// The store-gateway.
        pub store_gateway: store_gateway::Config,
        /// The compactor.
        pub compactor: compactor::Config,
        /// Logs.
        pub log: logging::Config,
    }
    check |config| {
        let kept = config.ingester.local_retention;
        if config.querier.store_optional_within > kept {
            return Err(format!(
                "`querier.store_optional_within` ({:?}) must not exceed `ingester.local_retention` ({kept:?}): ingesters \
                 would not hold what the store is not asked for",
                config.querier.store_optional_within
            ));
        }
        if config.querier.query_store_after > kept {
            return Err(format!(
                "`querier.query_store_after` ({:?}) must not exceed `ingester.local_retention` ({kept:?}): between them \
                 samples would be found nowhere",
                config.querier.query_store_after
            ));
        }
        Ok(())
    };
}

setting_enum! {
    /// A part of Skald that can run as a process of its own.
    pub enum Role {
        /// Every role below, in one process.
        All = "all",
        /// Takes remote write, checks it against the limits and sends it to the ingesters.
        Distributor = "distributor",
        /// Keeps the newest samples in memory and in its log, and uploads them as blocks.
        Ingester = "ingester",
        /// Evaluates queries over ingesters and blocks.
        Querier = "querier",
        /// Takes queries, checks them and hands them to the queriers.
        QueryFrontend = "query-frontend",
        /// Shares the queriers fairly among tenants.
        QueryScheduler = "query-scheduler",
        /// Reads the blocks in object storage.
        StoreGateway = "store-gateway",
        /// Tends the blocks in object storage: writes each tenant's bucket index.
        Compactor = "compactor",
    }
}

/// The roles of a process: not empty, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets(Vec<Role>);

impl Targets {
    /// Every role.
    pub fn all() -> Targets {
        Targets(vec![Role::All])
    }

    /// Whether the process has `role`.
    pub fn includes(&self, role: Role) -> bool {
        self.0.contains(&Role::All) || self.0.contains(&role)
    }
}

impl SettingValue for Targets {
    type Bound = ();
    const LIST: bool = true;

    fn type_name() -> String {
        "list of roles".to_owned()
    }

    fn expected() -> String {
        format!("a comma-separated list, each {}", Role::expected())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut roles = Vec::new();
        for name in text.split(',').map(str::trim) {
            let role = Role::parse(name)?;
            if roles.contains(&role) {
                return Err(format!("`{role}` stands twice"));
            }
            roles.push(role);
        }
        Ok(Targets(roles))
    }

    fn show(&self) -> Shown {
        Shown::List(self.0.iter().map(Role::to_string).collect())
    }

    fn choices() -> Vec<(&'static str, &'static str)> {
        Role::choices()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Environment, YamlFile, entries, load, read_flags};

    #[test]
    fn roles_are_checked() {
        let both = Targets::parse("querier, ingester").unwrap();
        assert!(both.includes(Role::Querier) && both.includes(Role::Ingester) && !both.includes(Role::Compactor));
        assert!(Role::ALL.iter().all(|role| Targets::all().includes(*role)));
        for wrong in ["", "ingester,ingester", "ingester,", "ingestor"] {
            assert!(Targets::parse(wrong).is_err(), "{wrong}");
        }
        let file = YamlFile { name: "f", text: "target: [ingester, store-gatewy]", expand_env: false };
        let error = load::<Config>(Some(file), &Environment::default(), &[]).unwrap_err().to_string();
        assert!(error.contains("did you mean `store-gateway`?"), "{error}");
    }

    /// Flags and variables fold several spellings into one name: no two settings may meet there.
    #[test]
    fn every_setting_has_names_of_its_own() {
        let entries = entries(&Config::default());
        let mut flags: Vec<String> = entries.iter().map(|entry| entry.flag()).collect();
        let mut variables: Vec<String> = entries.iter().map(|entry| entry.variable()).collect();
        for names in [&mut flags, &mut variables] {
            names.sort();
            names.dedup();
            assert_eq!(names.len(), entries.len());
        }
        for entry in &entries {
            assert!(!entry.docs.is_empty(), "{} is not described", entry.path);
        }
    }

    #[test]
    fn every_default_is_accepted_as_a_flag() {
        let known = entries(&Config::default());
        let arguments: Vec<String> = known.iter().map(|e| format!("--{}={}", e.flag(), e.value)).collect();
        let flags = read_flags(&arguments, &known, &[]).unwrap().flags;
        assert_eq!(load::<Config>(None, &Environment::default(), &flags), Ok(Config::default()));
    }
}
