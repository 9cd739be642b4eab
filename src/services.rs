//! The life of the services in this process: who has started, who is ready, who stops in which order.
//!
//! ```text
//!                    ┌─► Impeded ─┐
//! New ──► Starting ──► Running ◄──┘ ──► Stopping ──► Stopped
//!            │            │            │
//!            └────────────┴────────────┴──► Failed
//! ```
//!
//! The order is declared once, in [`Services::new`]: services start in it and stop in its reverse. The process is ready
//! while all of them are running.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use skald_model::TimestampMs;

use crate::runtime::Clock;

/// Where a service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Its turn to start has not come.
    New,
    /// It is starting: replaying its log, listening, waiting for others.
    Starting,
    /// It does its work.
    Running,
    /// It runs, and must not be relied on for now.
    Impeded,
    /// It finishes what is under way.
    Stopping,
    /// It has ended as asked.
    Stopped,
    /// It could not start, broke, or could not end well.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::New => "New",
            State::Starting => "Starting",
            State::Running => "Running",
            State::Impeded => "Impeded",
            State::Stopping => "Stopping",
            State::Stopped => "Stopped",
            State::Failed => "Failed",
        })
    }
}

/// A service and where it is in its life, as shown to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its name.
    pub name: &'static str,
    /// Its state.
    pub state: State,
    /// When it came into that state.
    pub since: TimestampMs,
    /// How far it is, or what went wrong; often empty.
    pub detail: String,
}

/// A service that did not start or did not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("service {name} failed: {why}")]
pub struct ServiceFailed {
    /// Its name.
    pub name: &'static str,
    /// What went wrong.
    pub why: String,
}

type Stop = Box<dyn FnOnce() -> BoxFuture<'static, Result<(), String>> + Send>;

/// The services of this process. Clones are the same.
#[derive(Clone)]
pub struct Services {
    clock: Arc<dyn Clock>,
    /// In starting order. The lock is never held while a service starts or stops.
    services: Arc<Mutex<Vec<Service>>>,
}

struct Service {
    status: Status,
    stop: Option<Stop>,
}

impl Services {
    /// Declares the services, in the order in which they start.
    pub fn new(clock: Arc<dyn Clock>, order: &[&'static str]) -> Services {
        let since = clock.now_ms();
        let status = |name: &&'static str| Status { name, state: State::New, since, detail: String::new() };
        let services = order.iter().map(|name| Service { status: status(name), stop: None }).collect();
        Services { clock, services: Arc::new(Mutex::new(services)) }
    }

    /// Runs the start of the service `name`; it is running once that has succeeded.
    ///
    /// # Panics
    /// When `name` was not declared, or something later in the order has already started: a mistake in the program.
    pub async fn start<T, E: fmt::Display>(
        &self,
        name: &'static str,
        start: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ServiceFailed> {
        let out_of_turn = {
            let services = self.services.lock();
            services.iter().skip_while(|service| service.status.name != name).any(|s| s.status.state != State::New)
        };
        assert!(!out_of_turn, "{name} starts out of turn");
        self.enter(name, State::Starting, String::new());
        match start.await {
            Ok(started) => {
                self.enter(name, State::Running, String::new());
                Ok(started)
            }
            Err(error) => {
                let why = error.to_string();
                self.enter(name, State::Failed, why.clone());
                Err(ServiceFailed { name, why })
            }
        }
    }

    /// Says how the service `name` stops. Without this, stopping it takes nothing.
    pub fn on_stop<F>(&self, name: &'static str, stop: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let stop: Stop = Box::new(move || stop().boxed());
        self.with(name, |service| service.stop = Some(stop));
    }

    /// Says how far a service is, for those who wait for it: `replayed 3 of 10 segments`.
    pub fn progress(&self, name: &'static str, detail: impl Into<String>) {
        let detail = detail.into();
        self.with(name, |service| service.status.detail = detail);
    }

    /// Says why the process is not to be relied on while the service `name` runs, or with `None` that it is again. Changes
    /// nothing of one that does not run.
    pub fn impede(&self, name: &'static str, why: Option<String>) {
        let since = self.clock.now_ms();
        self.with(name, |service| {
            if matches!(service.status.state, State::Running | State::Impeded) {
                let state = if why.is_some() { State::Impeded } else { State::Running };
                service.status = Status { name, state, since, detail: why.unwrap_or_default() };
            }
        });
    }

    /// Marks a service as broken: the process is no longer ready.
    pub fn fail(&self, name: &'static str, why: impl Into<String>) {
        self.enter(name, State::Failed, why.into());
    }

    /// The service `name` begins to stop, and the process is ready no more; [`Services::stop`] ends it.
    pub fn begin_stop(&self, name: &'static str) {
        self.enter(name, State::Stopping, "draining".to_owned());
    }

    /// Stops all services that have started, the last first, each within `timeout`. Goes on past those that fail, and
    /// returns them.
    pub async fn stop(&self, timeout: Duration) -> Vec<ServiceFailed> {
        let names: Vec<&'static str> = self.services.lock().iter().rev().map(|service| service.status.name).collect();
        let mut failed = Vec::new();
        for name in names {
            let stop = self.with(name, |service| {
                let started = !matches!(service.status.state, State::New | State::Stopped);
                started.then(|| (service.status.state, service.stop.take()))
            });
            let Some((before, stop)) = stop.flatten() else { continue };
            if before == State::Failed && stop.is_none() {
                continue;
            }
            self.enter(name, State::Stopping, String::new());
            let stopped = match stop {
                None => Ok(()),
                Some(stop) => tokio::select! {
                    stopped = stop() => stopped,
                    () = self.clock.sleep(timeout) => {
                        Err(format!("did not stop within {}", crate::settings::format_duration(timeout)))
                    }
                },
            };
            match stopped {
                Ok(()) => self.enter(name, State::Stopped, String::new()),
                Err(why) => {
                    self.enter(name, State::Failed, why.clone());
                    failed.push(ServiceFailed { name, why });
                }
            }
        }
        failed
    }

    /// Every service, in starting order.
    pub fn statuses(&self) -> Vec<Status> {
        self.services.lock().iter().map(|service| service.status.clone()).collect()
    }

    /// The services that keep the process from being ready; empty when it is.
    pub fn not_ready(&self) -> Vec<Status> {
        let mut statuses = self.statuses();
        statuses.retain(|status| status.state != State::Running);
        statuses
    }

    fn enter(&self, name: &'static str, state: State, detail: String) {
        let since = self.clock.now_ms();
        match state {
            State::Failed => tracing::error!(service = name, error = %detail, "service failed"),
            _ => tracing::debug!(service = name, %state, "service changed state"),
        }
        self.with(name, |service| service.status = Status { name, state, since, detail });
    }

    fn with<T>(&self, name: &'static str, change: impl FnOnce(&mut Service) -> T) -> Option<T> {
        let mut services = self.services.lock();
        let service = services.iter_mut().find(|service| service.status.name == name);
        assert!(service.is_some(), "service {name} was not declared");
        service.map(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ManualClock;

    fn services(order: &[&'static str]) -> (Services, ManualClock) {
        let clock = ManualClock::at(1_000);
        (Services::new(Arc::new(clock.clone()), order), clock)
    }

    async fn start(services: &Services, name: &'static str) {
        services.start(name, async { Ok::<_, String>(()) }).await.unwrap();
    }

    fn states(services: &Services) -> Vec<State> {
        services.statuses().into_iter().map(|status| status.state).collect()
    }

    #[tokio::test]
    async fn ready_once_all_run_and_stopped_in_reverse() {
        let (services, _) = services(&["bucket", "ingester", "http"]);
        assert_eq!(services.not_ready().len(), 3);
        let order = Arc::new(Mutex::new(Vec::new()));
        for name in ["bucket", "ingester", "http"] {
            start(&services, name).await;
            let order = order.clone();
            services.on_stop(name, move || async move {
                order.lock().push(name);
                Ok(())
            });
        }
        assert_eq!(services.not_ready(), []);
        assert_eq!(services.stop(Duration::from_secs(1)).await, []);
        assert_eq!(*order.lock(), ["http", "ingester", "bucket"]);
        assert_eq!(states(&services), [State::Stopped; 3]);
        assert_eq!(services.not_ready().len(), 3);
    }

    #[tokio::test]
    async fn a_failed_start_is_told_and_the_others_stop() {
        let (services, _) = services(&["bucket", "ingester", "http"]);
        start(&services, "bucket").await;
        let failed = services.start("ingester", async { Err::<(), _>("disk full") }).await.unwrap_err();
        assert_eq!(failed.to_string(), "service ingester failed: disk full");
        let not_ready = services.not_ready();
        assert_eq!((not_ready[0].name, not_ready[0].detail.as_str()), ("ingester", "disk full"));
        assert_eq!(services.stop(Duration::from_secs(1)).await, []);
        assert_eq!(states(&services), [State::Stopped, State::Failed, State::New]);
    }

    #[tokio::test]
    async fn a_service_that_does_not_stop_is_given_up() {
        let (services, clock) = services(&["bucket", "http"]);
        start(&services, "bucket").await;
        start(&services, "http").await;
        services.on_stop("http", futures::future::pending);
        let stopping = services.stop(Duration::from_secs(5));
        let advance = async {
            while states(&services)[1] != State::Stopping {
                tokio::task::yield_now().await;
            }
            tokio::task::yield_now().await;
            clock.advance(Duration::from_secs(6));
        };
        let (failed, ()) = tokio::join!(stopping, advance);
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].why, "did not stop within 5s");
        assert_eq!(states(&services), [State::Stopped, State::Failed]);
    }

    #[tokio::test]
    async fn a_broken_service_makes_the_process_unready_but_is_still_stopped() {
        let (services, _) = services(&["ingester"]);
        start(&services, "ingester").await;
        services.on_stop("ingester", || async { Ok(()) });
        services.fail("ingester", "log is gone");
        assert_eq!(services.not_ready()[0].detail, "log is gone");
        services.stop(Duration::from_secs(1)).await;
        assert_eq!(states(&services), [State::Stopped]);
    }

    #[tokio::test]
    #[should_panic(expected = "bucket starts out of turn")]
    async fn the_order_is_kept() {
        let (services, _) = services(&["bucket", "ingester"]);
        start(&services, "ingester").await;
        start(&services, "bucket").await;
    }
}
