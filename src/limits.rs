//! What one tenant may do: each service declares what it enforces, here they stand together as one section.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::settings::{Field, Section};
use crate::tenant::TenantId;
use crate::{distributor, ingester, query_frontend};

/// Limits of every tenant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limits {
    /// Enforced by the distributor.
    pub distributor: distributor::Limits,
    /// Enforced by the ingester.
    pub ingester: ingester::Limits,
    /// Enforced by the query-frontend.
    pub query_frontend: query_frontend::Limits,
}

/// The services' limits side by side, under their own names.
impl Section for Limits {
    fn about(&self) -> &'static str {
        "What each tenant may do.\n"
    }

    fn fields(&mut self) -> Vec<Field<'_>> {
        let mut fields = self.distributor.fields();
        fields.extend(self.ingester.fields());
        fields.extend(self.query_frontend.fields());
        fields
    }

    fn check(&self) -> Result<(), String> {
        self.distributor.check()?;
        self.ingester.check()?;
        self.query_frontend.check()
    }
}

/// Which limits are whose. Cloning shares them; they change while the process runs.
#[derive(Debug, Clone, Default)]
pub struct TenantLimits {
    default: Arc<Limits>,
    overrides: Arc<ArcSwap<HashMap<TenantId, Arc<Limits>>>>,
}

impl TenantLimits {
    /// The same limits for everyone.
    pub fn new(default: Limits) -> Self {
        Self { default: Arc::new(default), overrides: Arc::default() }
    }

    /// Other limits for some tenants, in place of those that were there.
    pub fn set_overrides(&self, overrides: HashMap<TenantId, Arc<Limits>>) {
        self.overrides.store(Arc::new(overrides));
    }

    /// The tenants with limits of their own, and these.
    pub fn overrides(&self) -> Arc<HashMap<TenantId, Arc<Limits>>> {
        self.overrides.load_full()
    }

    /// The limits of tenants without their own.
    pub fn default_limits(&self) -> &Limits {
        &self.default
    }

    /// The limits of a tenant, as they are now.
    pub fn of(&self, tenant: &TenantId) -> Arc<Limits> {
        Arc::clone(self.overrides.load().get(tenant).unwrap_or(&self.default))
    }
}
