//! What one tenant may do: each service declares what it enforces, here they stand together as one section.

use crate::distributor;
use crate::settings::{Field, Section};

/// Limits of every tenant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limits {
    /// Enforced by the distributor.
    pub distributor: distributor::Limits,
}

/// The services' limits side by side, under their own names.
impl Section for Limits {
    fn about(&self) -> &'static str {
        "What each tenant may do.\n"
    }

    fn fields(&mut self) -> Vec<Field<'_>> {
        self.distributor.fields()
    }

    fn check(&self) -> Result<(), String> {
        self.distributor.check()
    }
}
