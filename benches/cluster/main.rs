//! What a whole cluster costs, and whether its tenants disturb each other: every role a process of its own on loopback, as
//! `deploy/local/cluster` starts them (3 zones of ingesters, replication factor 3).
//!
//! ```text
//! cargo bench --bench cluster -- ingest [--series 200000] [--rounds 60] [--compression none|gzip|zstd]
//! cargo bench --bench cluster -- isolation [--pairs 5] [--seconds 10] [--single yes]
//! ```
//!
//! `ingest` sends like `benches/ingest.rs` (series of 10 labels, 2,000 of them a request) to both distributors, and prints CPU
//! seconds per million acknowledged samples of each role and of all together, for new series and for existing ones, and how
//! many bytes a sample takes from the sender to a distributor and from there to the ingesters of other zones.
//!
//! `isolation` measures how long one tenant's writes take, quiet and while another tenant, who may write 10,000 samples
//! a second, sends 200,000; pairs of both in turns. `--single yes` takes one process with all roles.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures the real machine")]

mod ingest;
mod isolation;
mod processes;

#[path = "../load"]
mod load {
    pub mod pods;
    pub mod send;
    pub type Error = Box<dyn std::error::Error + Send + Sync>;
}

use load::Error;

/// The value of an argument, or what it is without.
fn argument<T: std::str::FromStr>(words: &[String], name: &str, default: T) -> Result<T, Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match words.iter().position(|word| word == name) {
        None => Ok(default),
        Some(at) => Ok(words.get(at + 1).ok_or_else(|| format!("{name} needs a value"))?.parse()?),
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    // The client wants to know who would do TLS, which nobody does here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some("ingest") => ingest::run(&words).await,
        Some("isolation") => isolation::run(&words).await,
        _ => Err("ingest or isolation?".into()),
    }
}
