//! Certificates made for tests, in a directory in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use skald_tsdb::disk::{Disk, MemDisk};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::runtime::{BoxIo, Clock, ManualClock, SystemClock};

/// A directory with an authority and what it signs.
#[derive(Clone)]
pub(crate) struct Authority {
    pub disk: Arc<dyn Disk>,
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
}

impl Authority {
    /// A new one, its own certificate in `<name>.pem`.
    pub fn new(disk: Arc<dyn Disk>, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        disk.create_dir_all(Path::new("/tls")).unwrap();
        disk.write_atomically(&path(name), issuer.pem().as_bytes()).unwrap();
        Self { disk, issuer: Arc::new(issuer) }
    }

    /// Writes `<file>.pem` and `<file>-key.pem`, for a host.
    pub fn sign(&self, file: &str, host: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &*self.issuer).unwrap();
        self.disk.write_atomically(&path(file), certificate.pem().as_bytes()).unwrap();
        self.disk.write_atomically(&path(&format!("{file}-key")), key.serialize_pem().as_bytes()).unwrap();
    }
}

/// `/tls/<name>.pem`
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("/tls/{name}.pem"))
}

/// A server with the certificate `file`, that asks for clients' if there is an authority of theirs.
pub(crate) fn server(
    disk: &Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    file: &str,
    client_ca: Option<&str>,
) -> Arc<ServerTls> {
    let config = ServerTlsConfig {
        cert_file: Some(path(file)),
        key_file: Some(path(&format!("{file}-key"))),
        client_ca_file: client_ca.map(path),
        ..ServerTlsConfig::default()
    };
    ServerTls::open(&config, "server.test_tls_config", disk.clone(), clock).unwrap().unwrap()
}

/// A client that trusts an authority and has the certificate `file`.
pub(crate) fn client(disk: &Arc<dyn Disk>, ca: &str, file: Option<&str>, name: Option<&str>) -> Arc<ClientTls> {
    let config = ClientTlsConfig {
        tls_enabled: true,
        tls_ca_path: Some(path(ca)),
        tls_cert_path: file.map(path),
        tls_key_path: file.map(|file| path(&format!("{file}-key"))),
        tls_server_name: name.map(str::to_owned),
    };
    ClientTls::open(&config, disk.clone(), Arc::new(SystemClock::default())).unwrap().unwrap()
}

/// Shakes hands and sends a word there and back.
async fn talk(server: &ServerTls, client: &ClientTls, address: &str) -> Result<(), String> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let serving = async {
        let mut io = server.accept(Box::new(far) as BoxIo).await?;
        let mut word = [0; 4];
        io.read_exact(&mut word).await?;
        io.write_all(&word).await?;
        io.flush().await
    };
    let asking = async {
        let mut io = client.connect(address, Box::new(near)).await?;
        io.write_all(b"ping").await?;
        io.flush().await?;
        let mut word = [0; 4];
        io.read_exact(&mut word).await
    };
    let (_, asked) = tokio::join!(serving, asking);
    asked.map(drop).map_err(|e| format!("{e}{}", advice(&e.to_string())))
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(MemDisk::default())
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

#[tokio::test]
async fn those_who_know_each_other_talk_and_others_are_told_why_not() {
    let disk = disk();
    let ours = Authority::new(disk.clone(), "ours");
    let theirs = Authority::new(disk.clone(), "theirs");
    ours.sign("server", "localhost");
    ours.sign("client", "someone");
    theirs.sign("stranger", "someone");
    let open = server(&disk, clock(), "server", None);
    let closed = server(&disk, clock(), "server", Some("ours"));
    let trusting = client(&disk, "ours", None, None);
    assert_eq!(talk(&open, &trusting, "localhost:1").await, Ok(()));
    assert_eq!(talk(&open, &client(&disk, "ours", None, Some("localhost")), "10.0.0.1:1").await, Ok(()));
    assert_eq!(talk(&closed, &client(&disk, "ours", Some("client"), None), "localhost:1").await, Ok(()));

    let refused = [
        (&open, client(&disk, "theirs", None, None), "localhost:1", "tls_ca_path must hold the authority"),
        (&open, trusting.clone(), "elsewhere:1", "set grpc_client.tls.tls_server_name"),
        (&closed, trusting, "localhost:1", "set grpc_client.tls.tls_cert_path"),
    ];
    for (server, client, address, expected) in refused {
        let why = talk(server, &client, address).await.unwrap_err();
        assert!(why.contains(expected), "{why}");
    }
    assert!(talk(&closed, &client(&disk, "ours", Some("stranger"), None), "localhost:1").await.is_err());
}

#[tokio::test]
async fn a_certificate_is_renewed_by_replacing_its_files() {
    let disk = disk();
    let before = Authority::new(disk.clone(), "before");
    let after = Authority::new(disk.clone(), "after");
    before.sign("server", "localhost");
    let manual = ManualClock::at(0);
    let server = server(&disk, Arc::new(manual.clone()), "server", None);
    let (old, new) = (client(&disk, "before", None, None), client(&disk, "after", None, None));
    assert_eq!(talk(&server, &old, "localhost:1").await, Ok(()));

    after.sign("server", "localhost");
    assert_eq!(talk(&server, &old, "localhost:1").await, Ok(()), "the files are not read at every handshake");
    manual.advance(files::LOOK_EVERY);
    assert_eq!(talk(&server, &new, "localhost:1").await, Ok(()));

    // Half of a change, or rubbish, changes nothing.
    disk.write_atomically(&path("server"), b"-----BEGIN CERTIFICATE-----\n").unwrap();
    manual.advance(files::LOOK_EVERY);
    assert_eq!(talk(&server, &new, "localhost:1").await, Ok(()));
    before.sign("server", "localhost");
    manual.advance(files::LOOK_EVERY + Duration::from_millis(1));
    assert_eq!(talk(&server, &old, "localhost:1").await, Ok(()));
}

#[test]
fn wrong_files_are_named() {
    let disk = disk();
    let authority = Authority::new(disk.clone(), "ca");
    authority.sign("a", "localhost");
    authority.sign("b", "localhost");
    disk.write_atomically(&path("empty"), b"").unwrap();
    let check = |cert: &str, key: &str, ca: Option<&str>, expected: &[&str]| {
        let config = ServerTlsConfig {
            cert_file: Some(path(cert)),
            key_file: Some(path(key)),
            client_ca_file: ca.map(path),
            ..ServerTlsConfig::default()
        };
        let error = ServerTls::open(&config, "server.x", disk.clone(), clock()).err().expect("an error");
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    check("none", "a-key", None, &["cannot read /tls/none.pem"]);
    check("empty", "a-key", None, &["/tls/empty.pem (server.x.cert_file): it holds no certificate"]);
    check("a", "empty", None, &["/tls/empty.pem (server.x.key_file): it holds no private key"]);
    check("a", "b-key", None, &["/tls/b-key.pem (server.x.key_file): it does not fit the certificate /tls/a.pem"]);
    check("a", "a-key", Some("empty"), &["server.x.client_ca_file"]);
    let plain = ServerTls::open(&ServerTlsConfig::default(), "server.x", disk.clone(), clock()).unwrap();
    assert!(plain.is_none());
}
