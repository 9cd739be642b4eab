//! Switches, numbers, texts, paths, addresses and secrets as settings.

use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use super::value::{SettingValue, Shown};

impl SettingValue for bool {
    type Bound = ();
    const SWITCH: bool = true;

    fn type_name() -> String {
        "bool".to_owned()
    }

    fn expected() -> String {
        "`true` or `false`".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| String::new())
    }

    fn show(&self) -> Shown {
        Shown::Bare(self.to_string())
    }
}

macro_rules! whole_numbers {
    ($($type:ty: $name:literal, $from:expr, $to:expr;)*) => {$(
        impl SettingValue for $type {
            type Bound = $type;

            fn type_name() -> String {
                $name.to_owned()
            }

            fn expected() -> String {
                format!("a whole number from {} to {}", $from, $to)
            }

            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| String::new())
            }

            fn show(&self) -> Shown {
                Shown::Bare(self.to_string())
            }

            fn bound(&self) -> Option<&Self::Bound> {
                Some(self)
            }

            fn show_bound(bound: &Self::Bound) -> String {
                bound.to_string()
            }
        }
    )*};
}

whole_numbers! {
    u16: "integer", u16::MIN, u16::MAX;
    u32: "integer", u32::MIN, u32::MAX;
    u64: "integer", u64::MIN, u64::MAX;
    usize: "integer", usize::MIN, usize::MAX;
    i64: "integer", i64::MIN, i64::MAX;
    NonZeroU32: "positive integer", 1, u32::MAX;
    NonZeroU64: "positive integer", 1, u64::MAX;
    NonZeroUsize: "positive integer", 1, usize::MAX;
}

impl SettingValue for f64 {
    type Bound = f64;

    fn type_name() -> String {
        "number".to_owned()
    }

    fn expected() -> String {
        "a finite number".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(String::new)
    }

    fn show(&self) -> Shown {
        Shown::Bare(self.to_string())
    }

    fn bound(&self) -> Option<&Self::Bound> {
        Some(self)
    }

    fn show_bound(bound: &Self::Bound) -> String {
        bound.to_string()
    }
}

impl SettingValue for String {
    type Bound = ();

    fn type_name() -> String {
        "text".to_owned()
    }

    fn expected() -> String {
        "text".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn show(&self) -> Shown {
        Shown::Text(self.clone())
    }
}

impl SettingValue for PathBuf {
    type Bound = ();

    fn type_name() -> String {
        "path".to_owned()
    }

    fn expected() -> String {
        "a path".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("a path is not empty".to_owned()) } else { Ok(PathBuf::from(text)) }
    }

    fn show(&self) -> Shown {
        Shown::Text(self.display().to_string())
    }
}

impl SettingValue for SocketAddr {
    type Bound = ();

    fn type_name() -> String {
        "ip:port".to_owned()
    }

    fn expected() -> String {
        "an address as `ip:port`, such as `0.0.0.0:9009`".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| String::new())
    }

    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

/// A host name or IP address with a port; names are resolved when the address is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// An address of a host name or IP address (an IPv6 address without brackets).
    pub fn new(host: impl Into<String>, port: u16) -> HostPort {
        HostPort { host: host.into(), port }
    }

    /// The host name or IP address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostPort { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl SettingValue for HostPort {
    type Bound = ();

    fn type_name() -> String {
        "host:port".to_owned()
    }

    fn expected() -> String {
        "an address as `host:port`, such as `0.0.0.0:9009`".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
        let port = port.parse().map_err(|_| "the port is not a number from 0 to 65535".to_owned())?;
        let host = match host {
            // As Go writes "every address".
            "" => "0.0.0.0",
            host => match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
                Some(ipv6) => ipv6,
                None if host.contains(':') => return Err("an IPv6 address stands in brackets".to_owned()),
                None => host,
            },
        };
        if host.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err("the host holds a character that no host name has".to_owned());
        }
        Ok(HostPort::new(host, port))
    }

    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

/// A password or key: readable by the code that needs it, masked wherever settings are shown.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

/// What stands in place of a secret that is set.
const MASK: &str = "********";

impl Secret {
    /// Keeps `text` secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself, for the one who authenticates with it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether no secret is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "Secret(unset)" } else { "Secret(********)" })
    }
}

impl SettingValue for Secret {
    type Bound = ();

    fn type_name() -> String {
        "secret".to_owned()
    }

    fn expected() -> String {
        "a secret".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        // Somebody starts from a printed configuration: better said now than as a refused login.
        if text == MASK {
            Err("this is the mask of a secret, not the secret".to_owned())
        } else {
            Ok(Secret::new(text))
        }
    }

    fn show(&self) -> Shown {
        Shown::Text(if self.is_empty() { String::new() } else { MASK.to_owned() })
    }
}
