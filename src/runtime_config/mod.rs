//! Settings that change while the process runs: tenants' limits, from a file that is read again and again.
//!
//! A file that cannot be read or is wrong stops a start; later it changes nothing, is told, and the limits stay what they
//! were. A file is taken whole or not at all.

mod pages;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use skald_tsdb::disk::Disk;

use crate::limits::{Limits, TenantLimits};
use crate::runtime::{Clock, Pool};
use crate::settings::{ByteSize, read_overrides, settings};
use crate::tenant::TenantId;

pub use pages::routes;

/// A larger file is refused before it is read: it would hold a hundred thousand tenants with ten settings each.
const MAX_FILE: ByteSize = ByteSize::mib(64);

settings! {
    /// Settings that change while the process runs.
    pub struct Config {
        /// File with limits of single tenants, in place of those in `limits`. It holds `overrides:`, there one section for each
        /// tenant, and in it the settings of `limits` that differ. It is checked as the settings are: at the start an error
        /// keeps the process from running, later it is told (log, `/runtime_config`,
        /// `skald_runtime_config_last_reload_successful`), and the limits stay what they were.
        pub file: Option<PathBuf> = None,
        /// How often the file is read. Smaller takes changes up sooner.
        pub period: Duration = Duration::from_secs(10) => Duration::from_millis(100)..,
    }
}

/// Keeps tenants' limits as the file has them.
pub struct RuntimeConfig {
    config: Config,
    limits: TenantLimits,
    clock: Arc<dyn Clock>,
    disk: Arc<dyn Disk>,
    successful: Gauge,
    last: Mutex<Last>,
}

/// What the last look at the file gave.
#[derive(Debug, Clone, Default)]
struct Last {
    /// What the limits are from.
    text: Arc<str>,
    /// Why the file that is there now was not taken.
    error: Option<String>,
}

impl RuntimeConfig {
    /// Reads the file for the first time, if there is one; `limits` are changed by it from now on.
    pub fn open(
        config: Config,
        limits: TenantLimits,
        clock: Arc<dyn Clock>,
        disk: Arc<dyn Disk>,
        registry: &mut Registry,
    ) -> Result<Self, String> {
        let successful = Gauge::default();
        registry.register(
            "skald_runtime_config_last_reload_successful",
            "Whether the file of runtime settings that is there now is in force",
            successful.clone(),
        );
        let opened = Self { config, limits, clock, disk, successful, last: Mutex::default() };
        opened.reload();
        let error = opened.last.lock().error.clone();
        error.map_or(Ok(opened), Err)
    }

    /// Reads the file again and again, on `pool`: a large one takes long. Does not end.
    pub async fn run(self: Arc<Self>, pool: &Pool) {
        loop {
            self.clock.sleep(self.config.period).await;
            let this = self.clone();
            if let Err(lost) = pool.run(move || this.reload()).await {
                tracing::error!(%lost, "the runtime settings could not be read");
            }
        }
    }

    /// Reads the file and takes what is new in it.
    fn reload(&self) {
        let outcome = read(&self.config, self.disk.as_ref()).and_then(|text| match text {
            Some(text) if text != *self.last.lock().text => Ok(Some((self.parse(&text)?, text))),
            _ => Ok(None),
        });
        let mut last = self.last.lock();
        self.successful.set(i64::from(outcome.is_ok()));
        match outcome {
            Ok(read) => {
                if last.error.take().is_some() {
                    tracing::info!("the runtime settings can be read again");
                }
                if let Some((overrides, text)) = read {
                    tracing::info!(tenants = overrides.len(), "runtime settings read");
                    self.limits.set_overrides(overrides);
                    last.text = text.into();
                }
            }
            Err(error) => {
                if last.error.as_ref() != Some(&error) {
                    tracing::error!(error, "the runtime settings were not taken, those before stay in force");
                }
                last.error = Some(error);
            }
        }
    }

    fn parse(&self, text: &str) -> Result<HashMap<TenantId, Arc<Limits>>, String> {
        parse(&self.config, self.limits.default_limits(), text)
    }
}

/// Whether the file, if there is one, is fine; `limits` are those of everybody else.
pub fn check(config: &Config, limits: &Limits, disk: &dyn Disk) -> Result<(), String> {
    read(config, disk)?.map_or(Ok(()), |text| parse(config, limits, &text).map(|_| ()))
}

fn read(config: &Config, disk: &dyn Disk) -> Result<Option<String>, String> {
    let Some(path) = &config.file else { return Ok(None) };
    let failed = |error: std::io::Error| format!("cannot read {} (runtime_config.file): {error}", path.display());
    let file = disk.open(path).map_err(failed)?;
    let len = file.len().map_err(failed)?;
    if len > MAX_FILE.as_u64() {
        return Err(format!("{} (runtime_config.file) has {len} bytes, the limit is {MAX_FILE}", path.display()));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    String::from_utf8(bytes).map(Some).map_err(|_| format!("{} (runtime_config.file) is not UTF-8", path.display()))
}

fn parse(config: &Config, limits: &Limits, text: &str) -> Result<HashMap<TenantId, Arc<Limits>>, String> {
    let name = config.file.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let overrides = read_overrides(limits, "overrides", &name, text).map_err(|error| error.to_string())?;
    let tenant = |(tenant, limits): (String, Limits)| {
        let id = TenantId::new(&tenant).map_err(|error| format!("{name}: overrides.{tenant}: {error}"))?;
        Ok((id, Arc::new(limits)))
    };
    overrides.into_iter().map(tenant).collect()
}
