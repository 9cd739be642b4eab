//! The queriers, asked in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::querier::client::QuerierClient;

/// The queriers of a query-frontend; at least one.
pub struct Queriers {
    clients: Vec<Arc<dyn QuerierClient>>,
    turn: AtomicUsize,
}

impl Queriers {
    /// These queriers.
    ///
    /// # Panics
    /// Without any.
    pub fn new(clients: Vec<Arc<dyn QuerierClient>>) -> Self {
        assert!(!clients.is_empty(), "a query-frontend needs a querier");
        Self { clients, turn: AtomicUsize::new(0) }
    }

    /// The querier whose turn it is.
    pub fn next(&self) -> &dyn QuerierClient {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.clients[turn % self.clients.len()].as_ref()
    }
}
