//! Who a request belongs to.

use std::fmt;
use std::sync::Arc;

use crate::error::{ErrorKind, ServiceError};

/// The HTTP header (and gRPC metadata key) that names the tenant.
pub const TENANT_HEADER: &str = "x-scope-orgid";
/// The tenant of requests without the header, when multitenancy is off.
pub const ANONYMOUS: &str = "anonymous";
/// Longest tenant id in bytes.
pub const MAX_TENANT_ID_LENGTH: usize = 150;

/// A checked tenant id: 1 to 150 of `A-Z a-z 0-9 ! - _ . * ' ( )`, and none of the names object storage reserves.
/// So it is safe as a path component, a label value and an object key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Checks `id`.
    pub fn new(id: &str) -> Result<Self, ServiceError> {
        let refuse =
            |reason: &'static str, message: String| Err(ServiceError::new(ErrorKind::BadData, reason, message));
        if id.is_empty() {
            return refuse("tenant-id-empty", "the tenant id is empty; send one in the X-Scope-OrgID header".into());
        }
        if id.len() > MAX_TENANT_ID_LENGTH {
            return refuse(
                "tenant-id-too-long",
                format!("the tenant id has {} bytes, more than the limit of {MAX_TENANT_ID_LENGTH}", id.len()),
            );
        }
        if let Some(c) = id.chars().find(|c| !(c.is_ascii_alphanumeric() || "!-_.*'()".contains(*c))) {
            return refuse("tenant-id-invalid", format!("the tenant id {id:?} contains {c:?}, which is not allowed"));
        }
        if matches!(id, "." | ".." | "__skald_cluster" | "__mimir_cluster" | "__markers__" | "user-index.json.gz") {
            return refuse("tenant-id-invalid", format!("the tenant id {id:?} is reserved"));
        }
        Ok(Self(id.into()))
    }

    /// The tenant of requests without a header, when multitenancy is off.
    pub fn anonymous() -> Self {
        Self(ANONYMOUS.into())
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tenant of a request: its header, or [`ANONYMOUS`] when there is none and multitenancy is off.
    pub fn of_request(headers: &http::HeaderMap, multitenancy_enabled: bool) -> Result<Self, ServiceError> {
        let mut values = headers.get_all(TENANT_HEADER).iter();
        let Some(first) = values.next() else {
            if multitenancy_enabled {
                return Err(ServiceError::new(
                    ErrorKind::Unauthenticated,
                    "no-tenant-id",
                    "no tenant: send the X-Scope-OrgID header (multitenancy_enabled is true)",
                ));
            }
            return Ok(Self::anonymous());
        };
        if values.next().is_some() {
            return Err(ServiceError::new(
                ErrorKind::BadData,
                "tenant-id-invalid",
                "more than one X-Scope-OrgID header; send exactly one",
            ));
        }
        match first.to_str() {
            Ok(id) => Self::new(id),
            Err(_) => Err(ServiceError::new(
                ErrorKind::BadData,
                "tenant-id-invalid",
                format!("the tenant id {:?} is not plain ASCII", String::from_utf8_lossy(first.as_bytes())),
            )),
        }
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        for good in ["a", "team-1_x.y", "!*'()", &"x".repeat(150)] {
            assert_eq!(TenantId::new(good).unwrap().as_str(), good);
        }
        for (bad, reason) in [
            ("", "tenant-id-empty"),
            ("..", "tenant-id-invalid"),
            ("a/b", "tenant-id-invalid"),
            ("a|b", "tenant-id-invalid"),
            ("ä", "tenant-id-invalid"),
            ("a\0", "tenant-id-invalid"),
            (&"x".repeat(151), "tenant-id-too-long"),
        ] {
            assert_eq!(TenantId::new(bad).unwrap_err().reason, reason, "{bad:?}");
        }
    }

    #[test]
    fn requests_without_a_header() {
        let headers = http::HeaderMap::new();
        assert_eq!(TenantId::of_request(&headers, false).unwrap(), TenantId::anonymous());
        assert_eq!(TenantId::of_request(&headers, true).unwrap_err().kind, ErrorKind::Unauthenticated);
    }
}
