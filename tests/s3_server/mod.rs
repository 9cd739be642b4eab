//! An S3 endpoint on a directory, with signature checks: what tests need of S3.
//!
//! Its conditional writes are not atomic: no oracle for races.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The bucket that exists.
pub const BUCKET: &str = "metrics";
/// The access key that is let in.
pub const ACCESS_KEY: &str = "skald-test";
/// Its secret.
pub const SECRET_KEY: &str = "skald-test-secret";

/// A listening endpoint, before [`S3Server::serve`].
pub struct S3Server {
    listener: TcpListener,
    service: S3Service,
}

impl S3Server {
    /// Serves what lies below `root`, where each directory is a bucket; creates [`BUCKET`].
    pub async fn bind(root: &Path, address: &str) -> io::Result<Self> {
        let bucket: PathBuf = root.join(BUCKET);
        create_dir_all(&bucket)?;
        let files = s3s_fs::FileSystem::new(root).map_err(|e| io::Error::other(format!("{e:?}")))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        Ok(Self { listener: listen(address).await?, service: builder.build() })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers requests until the task is dropped.
    pub async fn serve(self) -> io::Result<()> {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = self.listener.accept().await?;
            let service = self.service.clone();
            connections.spawn(async move {
                // A client that goes away is no matter here.
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
            });
            while connections.try_join_next().is_some() {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a real server for real clients")]
async fn listen(address: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

#[expect(clippy::disallowed_methods, reason = "the server's own storage is real")]
fn create_dir_all(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}
