//! A small S3 endpoint for tests that run a whole `skald`: `s3_server <directory> [address]`.
//!
//! Prints the endpoint, bucket and key it serves, then answers until it is killed.

#[path = "../tests/s3_server/mod.rs"]
mod s3_server;

use std::io::{self, Write};
use std::path::Path;

use s3_server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

#[tokio::main]
async fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "usage: s3_server <directory> [address]");
    let directory = arguments.next().ok_or_else(usage)?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let server = S3Server::bind(Path::new(&directory), &address).await?;
    let address = server.address()?;
    writeln!(
        io::stdout(),
        "endpoint=http://{address} bucket={BUCKET} access_key_id={ACCESS_KEY} secret_access_key={SECRET_KEY}"
    )?;
    io::stdout().flush()?;
    server.serve().await
}
