//! Settings of the servers.

use std::fmt;
use std::time::Duration;

use crate::settings::{ByteSize, HostPort, SettingValue, Shown, settings};
use crate::tls::ServerTlsConfig;

settings! {
    /// Where this process listens, and how it stops.
    pub struct Config {
        /// Where HTTP is served: remote write, queries and the pages for people. `127.0.0.1:9009` keeps it to this
        /// machine.
        pub http_listen_address: HostPort = HostPort::new("0.0.0.0", 9009),
        /// Where the other Skald processes reach this one by gRPC. It is not meant for users: whoever reaches it is
        /// trusted.
        pub grpc_listen_address: HostPort = HostPort::new("0.0.0.0", 9095),
        /// Longest time requests under way get to finish after a stop was asked for; then their connections are cut.
        /// Longer delays restarts, shorter fails slow queries.
        pub graceful_shutdown_timeout: Duration = Duration::from_secs(30) => ..=Duration::from_secs(3600),
        /// Time between being asked to stop and taking no more requests: `/ready` says 503, and all goes on, so that whoever
        /// sends requests here learns in time to send them elsewhere. `none` is 3 seconds for distributors and query-frontends,
        /// and nothing for the others and for `target: all`; members of a cluster wait for `memberlist.announce_delay` at least.
        pub shutdown_delay: Option<Duration> = None,
        /// Longest time a connection may take to send the headers of its next request, idle time included. Longer lets
        /// connections that ask for nothing hold their memory longer; shorter makes clients connect more often.
        pub http_header_timeout: Duration = Duration::from_secs(120) => Duration::from_millis(100)..,
        /// Largest total size of a request's headers, its path and query included; more is answered with 431. Whatever
        /// this says, a path with its query is at most 64KiB (414 beyond): longer queries go by POST.
        pub http_max_header_size: ByteSize = ByteSize::kib(256) => ByteSize::kib(8)..=ByteSize::mib(16),
        /// Calls that one gRPC connection may have under way at the same time; further ones fail at once with
        /// `grpc-in-flight-limit`. Other processes multiplex all their calls over one connection, so this is what one of
        /// them can ask for.
        pub grpc_max_in_flight_calls: u32 = 2000 => 1..=100_000,
        /// TLS of the HTTP listener.
        pub http_tls_config: ServerTlsConfig,
        /// TLS of the gRPC listener.
        pub grpc_tls_config: ServerTlsConfig,
    }
    check |config| {
        let (http, grpc) = (&config.http_listen_address, &config.grpc_listen_address);
        if http.port() == grpc.port() && http.port() != 0 && http.host() == grpc.host() {
            return Err(format!("`http_listen_address` and `grpc_listen_address` are both {http}, expected different ones"));
        }
        Ok(())
    };
}

settings! {
    /// Paths of the HTTP API.
    pub struct ApiConfig {
        /// What stands before the paths of Prometheus' HTTP API: queries are at `<prefix>/api/v1/query`. Empty puts them
        /// at `/api/v1/query`.
        pub prometheus_http_prefix: HttpPrefix = HttpPrefix("/prometheus".to_owned()),
    }
}

/// The beginning of a URL path: empty, or `/` and names without a `/` at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpPrefix(String);

impl HttpPrefix {
    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HttpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SettingValue for HttpPrefix {
    type Bound = ();

    fn type_name() -> String {
        "url path".to_owned()
    }

    fn expected() -> String {
        "a path such as `/prometheus`, or nothing".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let trimmed = text.trim_end_matches('/');
        let is_name =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.~".contains(c));
        match trimmed.strip_prefix('/') {
            None if trimmed.is_empty() => Ok(HttpPrefix(String::new())),
            None => Err("it begins with `/`".to_owned()),
            Some(names) if names.split('/').all(is_name) => Ok(HttpPrefix(trimmed.to_owned())),
            Some(_) => Err("its parts hold letters, digits and `-_.~`".to_owned()),
        }
    }

    fn show(&self) -> Shown {
        Shown::Text(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        let parse = |text| HttpPrefix::parse(text).map(|prefix| prefix.0).ok();
        assert_eq!(parse("/prometheus/"), Some("/prometheus".to_owned()));
        assert_eq!(parse("/"), Some(String::new()));
        assert_eq!(parse(""), Some(String::new()));
        assert_eq!(parse("/a/b"), Some("/a/b".to_owned()));
        for wrong in ["a", "/{x}", "/a//b", "/a b", "/*"] {
            assert_eq!(parse(wrong), None);
        }
    }
}
