//! Settings: how a service declares them, and how they are read, shown and documented.
//!
//! A service declares its [`Section`] once with `settings!`; from that declaration come the struct, its defaults, the
//! YAML keys, one flag and one environment variable per setting, `--help` and the reference page, so that they cannot
//! drift apart. The values of a running process are put together by [`load()`]:
//!
//! ```text
//! defaults  <  YAML file  <  environment (SKALD_*)  <  flags
//! ```
//!
//! Every source is strict: an unknown key, variable or flag is an error that suggests the nearest known one, and a bad
//! value's error names where it stands, the value and what is expected. Nothing here knows which settings exist
//! (`config.rs` does). Only what [`read_overrides`] reads changes while the process runs.

mod declare;
mod duration;
mod load;
mod records;
mod reference;
mod scalars;
mod section;
mod sizes;
mod suggest;
mod value;
mod yaml;

#[cfg(test)]
mod tests;

pub(crate) use declare::{setting_enum, settings};
pub use duration::{format_duration, parse_duration};
pub use load::{Arguments, Environment, Flag, LoadError, Origin, YamlFile, load, read_flags};
pub use records::{Given, Record, parse_records};
pub use reference::{help, reference};
pub use scalars::{HostPort, Secret};
pub use section::{Entry, Field, Item, Leaf, Ranged, Section, entries};
pub use sizes::ByteSize;
pub use suggest::nearest;
pub use value::{SettingValue, Shown};
pub use yaml::{Comments, changed_yaml, changed_yaml_from, read_overrides, to_yaml};
