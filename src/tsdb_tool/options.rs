//! What the commands can be told.

use std::path::PathBuf;

use skald_model::{Matcher, QueryRange};
use ulid::Ulid;

use super::ToolError;
use crate::query_frontend::params::parse_time;
use crate::settings::{setting_enum, settings};

setting_enum! {
    /// Who reads the output.
    pub enum Format {
        /// People.
        Human = "human",
        /// Programs: one JSON object a line.
        Json = "json",
    }
}

settings! {
    /// What `skald tsdb` looks at, and how.
    pub struct Options {
        /// How the output looks: for people, or one JSON object a line.
        pub format: Format = Format::Human,
        /// Only the blocks of this tenant.
        pub tenant: String = String::new(),
        /// Only these blocks, by their names.
        pub block: Vec<String> = Vec::new(),
        /// Only samples (of `list`, `analyze`, `verify` and `repair`: only blocks) from this time on: Unix seconds or
        /// RFC 3339. Empty is from the beginning.
        pub start: String = String::new(),
        /// Only samples (or blocks) up to this time. Empty is to the end.
        pub end: String = String::new(),
        /// Which series `dump` prints: a selector, such as `{job="node"}`. Empty is all.
        pub select: String = String::new(),
        /// How long the lists of `analyze` are.
        pub top: usize = 10,
        /// Lets `repair` write: the new block takes the place of the damaged one, which in a local directory is kept
        /// as `<name>.damaged` and in a bucket is marked for deletion. Without it, `repair` says what would be saved
        /// and what is lost. Refused in the data directory of a running process.
        pub write: bool = false,
        /// Where a bucket's blocks are brought to while they are looked at. `none` is the system's directory for
        /// temporary files.
        pub work_dir: Option<PathBuf> = None,
    }
}

impl Options {
    fn time(name: &'static str, value: &str, default: i64) -> Result<i64, ToolError> {
        if value.is_empty() {
            return Ok(default);
        }
        parse_time(value).map_err(|why| ToolError::Option { name, value: value.to_owned(), why })
    }

    /// The time range asked for.
    pub(super) fn range(&self) -> Result<QueryRange, ToolError> {
        let min = Self::time("start", &self.start, QueryRange::ALL.min)?;
        let max = Self::time("end", &self.end, QueryRange::ALL.max)?;
        Ok(QueryRange { min, max })
    }

    /// The names of the blocks asked for.
    pub(super) fn blocks(&self) -> Result<Vec<Ulid>, ToolError> {
        let parse = |name: &String| {
            let why = "is not the name of a block (26 letters and digits)".to_owned();
            Ulid::from_string(name).map_err(|_| ToolError::Option { name: "block", value: name.clone(), why })
        };
        self.block.iter().map(parse).collect()
    }

    /// What series have to satisfy.
    pub(super) fn matchers(&self) -> Result<Vec<Matcher>, ToolError> {
        if self.select.is_empty() {
            return Ok(Vec::new());
        }
        skald_promql::parse::parse_matchers(&self.select).map_err(|error| ToolError::Option {
            name: "select",
            value: self.select.clone(),
            why: error.to_string(),
        })
    }
}
