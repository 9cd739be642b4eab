//! TLS of servers and clients: certificates from files, which are read again when they change.
//!
//! [`ServerTls`] is what a listener speaks, [`ClientTls`] what gRPC clients speak; both turn one byte stream of
//! [`crate::runtime::Net`] into another, so that whoever uses them needs to know nothing of it. [`files`] keeps what was made
//! of the files in step with them: a certificate is renewed by replacing its files.
//!
//! Absent: object storage speaks TLS by the library that talks to it.

mod client;
mod files;
mod server;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use client::advice;
pub use client::{ClientTls, ClientTlsConfig};
pub use server::{ClientAuth, ServerTls, ServerTlsConfig};

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What a file of PEM is: its path as the settings name it, its setting, and its bytes.
struct Pem<'a> {
    path: &'a Path,
    setting: &'a str,
    bytes: &'a [u8],
}

impl Pem<'_> {
    fn wrong(&self, why: impl std::fmt::Display) -> String {
        format!("{} ({}): {why}", self.path.display(), self.setting)
    }

    /// The certificates of the file, at least one.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.bytes).collect();
        let certificates = read.map_err(|e| self.wrong(format!("it is no PEM file of certificates: {e}")))?;
        if certificates.is_empty() {
            return Err(self.wrong("it holds no certificate, expected PEM with `BEGIN CERTIFICATE`"));
        }
        Ok(certificates)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, String> {
        PrivateKeyDer::from_pem_slice(self.bytes).map_err(|e| self.wrong(format!("it holds no private key: {e}")))
    }

    /// The authorities of the file.
    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|e| self.wrong(e))?;
        }
        Ok(roots)
    }
}

/// The one provider of cryptography in the tree.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
