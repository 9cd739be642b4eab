//! What a listener speaks.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use skald_tsdb::disk::Disk;
use tokio_rustls::TlsAcceptor;

use super::files::Renewed;
use super::{Pem, provider};
use crate::runtime::{BoxIo, Clock};
use crate::settings::{setting_enum, settings};

setting_enum! {
    /// Whether a client has to show a certificate.
    pub enum ClientAuth {
        /// No client is asked for a certificate.
        None = "NoClientCert",
        /// A client may show one; it must then be signed by an authority of `client_ca_file`.
        IfGiven = "VerifyClientCertIfGiven",
        /// Every client must show one that is signed by an authority of `client_ca_file`.
        Required = "RequireAndVerifyClientCert",
    }
}

settings! {
    /// TLS of a listener; off without a certificate. The files are read again within seconds after they change, so that
    /// certificates can be renewed without a restart; connections that are there stay.
    pub struct ServerTlsConfig {
        /// Certificate of the server in PEM, followed by those between it and its authority.
        pub cert_file: Option<PathBuf> = None,
        /// Private key of the certificate, in PEM.
        pub key_file: Option<PathBuf> = None,
        /// Authorities (PEM) that sign clients' certificates. With it every client must show a certificate, unless
        /// `client_auth_type` says otherwise.
        pub client_ca_file: Option<PathBuf> = None,
        /// Whether clients have to show a certificate, where there is a `client_ca_file`.
        pub client_auth_type: ClientAuth = ClientAuth::Required,
    }
    check |config| match (&config.cert_file, &config.key_file, &config.client_ca_file) {
        (Some(_), None, _) => Err("`cert_file` needs the `key_file` of its private key".to_owned()),
        (None, Some(_), _) => Err("`key_file` needs the `cert_file` of its certificate".to_owned()),
        (None, None, Some(_)) => Err("`client_ca_file` needs `cert_file` and `key_file`: TLS is off without them".to_owned()),
        _ => Ok(()),
    };
}

/// TLS of a listener.
pub struct ServerTls {
    acceptors: Renewed<TlsAcceptor>,
}

impl ServerTls {
    /// What the settings of `section` say; `None` is plain text.
    pub fn open(
        config: &ServerTlsConfig,
        section: &'static str,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Arc<Self>>, String> {
        let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) else { return Ok(None) };
        let ca = config.client_ca_file.clone().filter(|_| config.client_auth_type != ClientAuth::None);
        let mut paths = vec![cert.clone(), key.clone()];
        paths.extend(ca);
        let (named, optional) = (paths.clone(), config.client_auth_type == ClientAuth::IfGiven);
        let make = move |contents: &[Vec<u8>]| acceptor(section, &named, contents, optional);
        Ok(Some(Arc::new(Self { acceptors: Renewed::open(paths, disk, clock, make)? })))
    }

    /// Shakes hands with a client.
    pub async fn accept(&self, io: BoxIo) -> io::Result<BoxIo> {
        let acceptor = self.acceptors.current();
        Ok(Box::new(acceptor.accept(io).await?))
    }
}

fn acceptor(section: &str, paths: &[PathBuf], contents: &[Vec<u8>], optional: bool) -> Result<TlsAcceptor, String> {
    let settings = ["cert_file", "key_file", "client_ca_file"].map(|name| format!("{section}.{name}"));
    let pem = |i: usize| Pem { path: &paths[i], setting: &settings[i], bytes: &contents[i] };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("{section}: {e}"))?;
    let builder = if paths.len() > 2 {
        let roots = Arc::new(pem(2).roots()?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let verifier = if optional { verifier.allow_unauthenticated() } else { verifier };
        builder.with_client_cert_verifier(verifier.build().map_err(|e| pem(2).wrong(e))?)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder
        .with_single_cert(pem(0).certificates()?, pem(1).key()?)
        .map_err(|e| pem(1).wrong(format!("it does not fit the certificate {}: {e}", paths[0].display())))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
