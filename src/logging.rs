//! Logs: structured fields and a short sentence, as text for people or as JSON for machines, on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;

use crate::settings::{SettingValue, Shown, setting_enum, settings};

setting_enum! {
    /// How a log line looks.
    pub enum Format {
        /// One line for people: time, level, origin, sentence, fields.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

settings! {
    /// Log lines, written to standard error.
    pub struct Config {
        /// What is logged: `error`, `warn`, `info`, `debug` or `trace`, also for single modules, as in
        /// `info,skald::ingester=debug`. More than `info` costs CPU on every request.
        pub level: Filter = Filter::info(),
        /// How a log line looks.
        pub format: Format = Format::Text,
    }
}

/// Which log lines are written: a level, or a comma-separated list of `module=level`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(String);

impl Filter {
    fn info() -> Filter {
        Filter("info".to_owned())
    }
}

impl SettingValue for Filter {
    type Bound = ();

    fn type_name() -> String {
        "log filter".to_owned()
    }

    fn expected() -> String {
        "`error`, `warn`, `info`, `debug`, `trace`, or a list such as `info,skald::ingester=debug`".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        // The filter takes any single word for the name of a module: `inof` would silence everything.
        for directive in text.split(',').filter(|directive| !directive.contains('=')) {
            if !LEVELS.contains(&directive.trim()) {
                return Err(format!("`{directive}` is not a level"));
            }
        }
        EnvFilter::builder().parse(text).map_err(|error| error.to_string())?;
        Ok(Filter(text.to_owned()))
    }

    fn show(&self) -> Shown {
        Shown::Text(self.0.clone())
    }
}

/// Starts logging for the whole process, panics included. A second call has no effect.
pub fn start(config: &Config) {
    let filter = EnvFilter::builder().parse_lossy(&config.level.0);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match config.format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            location = panic.location().map(tracing::field::display),
            backtrace = %std::backtrace::Backtrace::capture(),
            "panicked: {}",
            panic.payload_as_str().unwrap_or("a value that is not text"),
        );
    }));
}

/// Keeps log lines that every request could cause to a few a second.
#[derive(Debug)]
pub struct LogLimit {
    per_second: u64,
    /// The second that is counted in, and the lines asked for in it.
    counted: Mutex<(u64, u64)>,
}

/// What [`LogLimit::ask`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogTurn {
    /// Write the line; this many before it were not written.
    Write {
        /// Lines of the last counted second that were kept back.
        suppressed: u64,
    },
    /// Do not write the line.
    KeepBack,
}

impl LogLimit {
    /// Lets `per_second` lines pass each second.
    pub const fn new(per_second: u64) -> LogLimit {
        LogLimit { per_second, counted: Mutex::new((0, 0)) }
    }

    /// Whether a line may be written at the monotonic time `now`.
    pub fn ask(&self, now: Duration) -> LogTurn {
        let mut counted = self.counted.lock();
        let (second, lines) = *counted;
        let suppressed = if second == now.as_secs() { 0 } else { lines.saturating_sub(self.per_second) };
        let lines = if second == now.as_secs() { lines + 1 } else { 1 };
        *counted = (now.as_secs(), lines);
        if lines <= self.per_second { LogTurn::Write { suppressed } } else { LogTurn::KeepBack }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_passes_some_lines_a_second_and_counts_the_rest() {
        let limit = LogLimit::new(2);
        let at = |ms| limit.ask(Duration::from_millis(ms));
        let write = |suppressed| LogTurn::Write { suppressed };
        assert_eq!([at(0), at(1), at(2), at(999)], [write(0), write(0), LogTurn::KeepBack, LogTurn::KeepBack]);
        assert_eq!([at(1000), at(1001), at(1002)], [write(2), write(0), LogTurn::KeepBack]);
        assert_eq!(at(5000), write(1));
    }

    #[test]
    fn filters_are_checked() {
        for good in ["info", "off", "warn,skald=debug", "info,skald::ingester=trace,hyper=warn"] {
            assert_eq!(Filter::parse(good), Ok(Filter(good.to_owned())));
        }
        for wrong in ["inof", "", "info,debgu", "skald=loud"] {
            assert!(Filter::parse(wrong).is_err(), "{wrong}");
        }
    }
}
