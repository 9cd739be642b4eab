//! What the operating system knows of this process, under the names every Prometheus client library uses.
#![expect(clippy::disallowed_methods, reason = "/proc is not a disk: its files have no length and no faults to inject")]

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use rustix::time::{ClockId, clock_gettime};

use crate::runtime::Clock;

/// Memory, CPU time, open files and the start of this process; read at each scrape.
#[derive(Debug)]
pub struct ProcessMetrics {
    start_seconds: f64,
}

impl ProcessMetrics {
    /// Registers the metrics of the process, which counts as started now, and its build.
    pub fn register(registry: &mut Registry, clock: &dyn Clock) {
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("skald_build", "The version of this process", version);
        let start_seconds = clock.now_ms() as f64 / 1000.0;
        registry.register_collector(Box::new(ProcessMetrics { start_seconds }));
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        counter(&mut encoder, "process_cpu_seconds", "User and system CPU time spent in seconds", cpu_seconds)?;
        gauge(
            &mut encoder,
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds",
            self.start_seconds,
        )?;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let sizes = [
            ("VmRSS:", "process_resident_memory_bytes", "Resident memory size in bytes"),
            ("VmHWM:", "process_resident_memory_peak_bytes", "Largest resident memory size so far in bytes"),
            ("VmSize:", "process_virtual_memory_bytes", "Virtual memory size in bytes"),
        ];
        for (field, name, help) in sizes {
            if let Some(kib) = field_of(&status, field) {
                gauge(&mut encoder, name, help, kib * 1024.0)?;
            }
        }
        if let Some(threads) = field_of(&status, "Threads:") {
            gauge(&mut encoder, "process_threads", "Number of threads of the process", threads)?;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One of them is the listing itself.
            let open = files.count().saturating_sub(1) as f64;
            gauge(&mut encoder, "process_open_fds", "Number of open file descriptors", open)?;
        }
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        if let Some(most) = field_of(&limits, "Max open files") {
            gauge(&mut encoder, "process_max_fds", "Maximum number of open file descriptors", most)?;
        }
        Ok(())
    }
}

/// The first number behind `field` at the beginning of a line.
fn field_of(text: &str, field: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> Result<(), fmt::Error> {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> Result<(), fmt::Error> {
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ManualClock;

    #[test]
    fn the_process_is_measured() {
        let mut registry = Registry::default();
        ProcessMetrics::register(&mut registry, &ManualClock::at(1_500));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("process_start_time_seconds 1.5\n"), "{text}");
        let value = |name: &str| field_of(&text, &format!("{name} ")).unwrap_or_else(|| panic!("{name} in {text}"));
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!((1.0..=value("process_max_fds")).contains(&value("process_open_fds")));
        assert!(value("process_threads") >= 1.0);
    }
}
