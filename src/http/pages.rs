//! The pages every process has: `/`, `/ready`, `/metrics`, `/config`, `/services`.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use parking_lot::RwLock;
use prometheus_client::registry::Registry;

use super::answer::prometheus_error;
use super::exposition::expose;
use crate::error::{ErrorKind, ServiceError};
use crate::services::{Services, Status};
use crate::settings::{Comments, Section, changed_yaml, to_yaml};

/// A link on the page `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Where it leads.
    pub path: &'static str,
    /// What is there.
    pub title: &'static str,
}

const LINKS: [Link; 6] = [
    Link { path: "/ready", title: "Whether this process is ready" },
    Link { path: "/services", title: "The services of this process and their states" },
    Link { path: "/metrics", title: "Metrics of this process" },
    Link { path: "/config", title: "Settings of this process" },
    Link { path: "/config?mode=diff", title: "Settings that differ from their defaults" },
    Link { path: "/config?mode=defaults", title: "Default settings" },
];

/// What the pages show.
pub struct Pages {
    services: Services,
    registry: Arc<RwLock<Registry>>,
    running: String,
    changed: String,
    defaults: String,
    links: Vec<Link>,
}

impl Pages {
    /// Pages about `services`, the metrics of `registry` and the settings `config`; `links` are put behind those of the
    /// pages themselves on `/`.
    pub fn new<S: Section + Clone + Default>(
        services: Services,
        registry: Arc<RwLock<Registry>>,
        config: &S,
        links: &[Link],
    ) -> Pages {
        Pages {
            services,
            registry,
            running: to_yaml(config, Comments::None),
            changed: changed_yaml(config),
            defaults: to_yaml(&S::default(), Comments::None),
            links: LINKS.iter().chain(links).copied().collect(),
        }
    }

    /// The routes of the pages.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/", get(index))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/config", get(config))
            .route("/services", get(services))
            .with_state(Arc::new(self))
    }
}

async fn index(State(pages): State<Arc<Pages>>) -> Html<String> {
    let mut items = String::new();
    for Link { path, title } in &pages.links {
        let _ = writeln!(items, "<li><a href=\"{path}\">{path}</a>: {title}</li>");
    }
    Html(format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Skald</title></head>\n<body>\n\
         <h1>Skald {}</h1>\n<ul>\n{items}</ul>\n</body></html>\n",
        env!("CARGO_PKG_VERSION")
    ))
}

async fn ready(State(pages): State<Arc<Pages>>) -> Response {
    let not_ready = pages.services.not_ready();
    if not_ready.is_empty() {
        return "ready\n".into_response();
    }
    let lines = not_ready.iter().map(describe).collect::<String>();
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{lines}")).into_response()
}

async fn services(State(pages): State<Arc<Pages>>) -> String {
    pages.services.statuses().iter().map(describe).collect()
}

fn describe(status: &Status) -> String {
    let detail = if status.detail.is_empty() { String::new() } else { format!(" ({})", status.detail) };
    format!("{}: {}{detail}\n", status.name, status.state)
}

async fn metrics(State(pages): State<Arc<Pages>>, headers: HeaderMap) -> Response {
    expose(&pages.registry.read(), &headers)
}

#[derive(serde::Deserialize)]
struct ConfigQuery {
    mode: Option<String>,
}

async fn config(State(pages): State<Arc<Pages>>, Query(query): Query<ConfigQuery>) -> Response {
    match query.mode.as_deref() {
        None => pages.running.clone().into_response(),
        Some("diff") => pages.changed.clone().into_response(),
        Some("defaults") => pages.defaults.clone().into_response(),
        Some(other) => {
            let message = format!("mode {other:?} is unknown, expected diff or defaults");
            prometheus_error(&ServiceError::new(ErrorKind::BadData, "bad-parameter", message))
        }
    }
}
