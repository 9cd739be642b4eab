//! What every call that is served passes through: so many per connection, and no longer than its caller waits.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::Status;

use super::deadline::{Deadline, Timed, passed, timeout_of};
use crate::error::{ErrorKind, ServiceError};
use crate::http::OpenCalls;
use crate::runtime::Clock;

/// Bounds of the calls that are served.
#[derive(Clone)]
pub struct CallBounds {
    clock: Arc<dyn Clock>,
    /// Most calls of one connection at the same time.
    per_connection: usize,
}

impl CallBounds {
    /// So many calls per connection.
    pub fn new(clock: Arc<dyn Clock>, per_connection: usize) -> Self {
        Self { clock, per_connection }
    }

    /// Binds the calls of these routes.
    pub fn around(self, routes: Router) -> Router {
        routes.layer(from_fn_with_state(self, serve))
    }
}

async fn serve(State(bounds): State<CallBounds>, mut request: Request, next: Next) -> Response {
    let open = match request.extensions().get::<OpenCalls>() {
        None => None,
        Some(calls) => match calls.open(bounds.per_connection) {
            Some(open) => Some(open),
            None => return Status::from(too_many(bounds.per_connection)).into_http(),
        },
    };
    let timeout = timeout_of(request.headers());
    let mut timer = timeout.map(|timeout| (bounds.clock.sleep(timeout), timeout));
    if let Some(timeout) = timeout {
        request.extensions_mut().insert(Deadline(bounds.clock.monotonic().saturating_add(timeout)));
    }
    let answering = next.run(request);
    // Whatever loses is dropped, and with it the work.
    let response = match &mut timer {
        None => answering.await,
        Some((timer, timeout)) => tokio::select! {
            biased;
            response = answering => response,
            () = timer => return Status::from(passed(*timeout)).into_http(),
        },
    };
    response.map(|body| axum::body::Body::new(Timed::new(body, timer, open)))
}

fn too_many(most: usize) -> ServiceError {
    let text =
        format!("{most} calls of one connection are under way, the most allowed (server.grpc_max_in_flight_calls)");
    ServiceError::new(ErrorKind::Unavailable, "grpc-in-flight-limit", text)
}
