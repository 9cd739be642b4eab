//! What gRPC clients speak.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use skald_tsdb::disk::Disk;
use tokio_rustls::TlsConnector;

use super::files::Renewed;
use super::{Pem, provider};
use crate::runtime::{BoxIo, Clock};
use crate::settings::settings;

settings! {
    /// TLS of gRPC clients. The files are read again within seconds after they change.
    pub struct ClientTlsConfig {
        /// Speak TLS to the gRPC listeners of other processes, which need `server.grpc_tls_config` then.
        pub tls_enabled: bool = false,
        /// Authorities (PEM) that sign the servers' certificates. Needed with `tls_enabled`.
        pub tls_ca_path: Option<PathBuf> = None,
        /// Certificate (PEM) to show to servers that ask for one.
        pub tls_cert_path: Option<PathBuf> = None,
        /// Private key of that certificate (PEM).
        pub tls_key_path: Option<PathBuf> = None,
        /// Name that the servers' certificates have to bear. `none` is the host of the address that is called.
        pub tls_server_name: Option<String> = None,
    }
    check |config| match (&config.tls_ca_path, &config.tls_cert_path, &config.tls_key_path) {
        (None, ..) if config.tls_enabled => {
            Err("`tls_enabled` needs the `tls_ca_path` of the authority that signs the servers' certificates".to_owned())
        }
        (_, Some(_), None) => Err("`tls_cert_path` needs the `tls_key_path` of its private key".to_owned()),
        (_, None, Some(_)) => Err("`tls_key_path` needs the `tls_cert_path` of its certificate".to_owned()),
        (Some(_), ..) if !config.tls_enabled => Err("`tls_ca_path` has no effect without `tls_enabled`".to_owned()),
        (_, Some(_), _) if !config.tls_enabled => Err("`tls_cert_path` has no effect without `tls_enabled`".to_owned()),
        _ => Ok(()),
    };
}

/// The section the settings stand in, for messages.
const SECTION: &str = "grpc_client.tls";

/// TLS of clients.
pub struct ClientTls {
    connectors: Renewed<TlsConnector>,
    server_name: Option<String>,
}

impl ClientTls {
    /// What the settings say; `None` is plain text.
    pub fn open(
        config: &ClientTlsConfig,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Arc<Self>>, String> {
        let Some(ca) = config.tls_ca_path.as_ref().filter(|_| config.tls_enabled) else { return Ok(None) };
        let mut paths = vec![ca.clone()];
        paths.extend(config.tls_cert_path.clone());
        paths.extend(config.tls_key_path.clone());
        let named = paths.clone();
        let connectors = Renewed::open(paths, disk, clock, move |contents| connector(&named, contents))?;
        Ok(Some(Arc::new(Self { connectors, server_name: config.tls_server_name.clone() })))
    }

    /// Shakes hands with the server at `address` (`host:port`).
    pub async fn connect(&self, address: &str, io: BoxIo) -> io::Result<BoxIo> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = self.server_name.as_deref().unwrap_or(host.trim_start_matches('[').trim_end_matches(']'));
        let name = ServerName::try_from(name.to_owned()).map_err(|e| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name of a server: {e}"))
        })?;
        let connector = self.connectors.current();
        Ok(Box::new(connector.connect(name, io).await?))
    }
}

fn connector(paths: &[PathBuf], contents: &[Vec<u8>]) -> Result<TlsConnector, String> {
    let settings = ["tls_ca_path", "tls_cert_path", "tls_key_path"].map(|name| format!("{SECTION}.{name}"));
    let pem = |i: usize| Pem { path: &paths[i], setting: &settings[i], bytes: &contents[i] };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("{SECTION}: {e}"))?
        .with_root_certificates(pem(0).roots()?);
    let mut config = if paths.len() > 1 {
        builder
            .with_client_auth_cert(pem(1).certificates()?, pem(2).key()?)
            .map_err(|e| pem(2).wrong(format!("it does not fit the certificate {}: {e}", paths[1].display())))?
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// What an operator can do about a handshake that failed with this text; empty when nothing is known.
pub(crate) fn advice(text: &str) -> &'static str {
    let known = [
        (
            "UnknownIssuer",
            "; the file of grpc_client.tls.tls_ca_path must hold the authority that signed the server's certificate",
        ),
        ("not valid for name", "; set grpc_client.tls.tls_server_name to a name that the server's certificate bears"),
        ("expired", "; renew the server's certificate"),
        (
            "CertificateRequired",
            "; the server asks for a certificate: set grpc_client.tls.tls_cert_path and tls_key_path",
        ),
        ("UnknownCA", "; the server's client_ca_file must hold the authority that signed this client's certificate"),
        (
            "InvalidContentType",
            "; the server speaks no TLS: set its server.grpc_tls_config, or turn grpc_client.tls.tls_enabled off",
        ),
    ];
    known.iter().find(|(said, _)| text.contains(said)).map_or("", |(_, advice)| advice)
}
