//! The `skald` binary: reads the command line, then runs until told to stop.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use skald::app;
use skald::cli::{self, Command};
use skald::config::Config;
use skald::data_dir::DataDir;
use skald::logging;
use skald::runtime::{Pool, Rng, Runtime, SocketGossip, SystemClock, TcpNet};
use skald::settings::Environment;
use skald::tsdb_tool;
use skald_tsdb::disk::RealDisk;
use tokio::signal::unix::{SignalKind, signal};

/// What queries free goes back to the system within the second; glibc's arenas kept gigabytes for good, since a query's
/// last small allocations pin the tops of their heaps (ARCHITECTURE.md, "Memory").
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Settings that jemalloc reads before `main`: freed pages are returned after 200 ms, by a thread of its own.
#[expect(unsafe_code, reason = "jemalloc finds its settings by this symbol; it is a text that ends with a zero byte")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8; 59] = b"background_thread:true,dirty_decay_ms:200,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    match run() {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("skald: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = std::env::args_os()
        .skip(1)
        .map(|argument| argument.into_string().map_err(|argument| format!("argument {argument:?} is not UTF-8")))
        .collect::<Result<Vec<String>, String>>()?;
    match cli::command(&arguments, &Environment::of_process()?)? {
        Command::Print(text) => std::io::stdout().write_all(text.as_bytes())?,
        Command::Run(config) => run_until_stopped(*config)?,
        Command::Tsdb(call) => return run_tool(*call),
    }
    Ok(ExitCode::SUCCESS)
}

fn run_tool(call: tsdb_tool::Call) -> Result<ExitCode, Box<dyn Error>> {
    let pool = Pool::new("skald-tsdb", 1)?;
    let io = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let is_sound = io.block_on(tsdb_tool::run(call, pool, &mut out))?;
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_until_stopped(config: Config) -> Result<(), Box<dyn Error>> {
    logging::start(&config.log);
    // Held until everything has stopped.
    let _data_dir = DataDir::lock(&config.data_dir)?;
    // One TLS provider for all that speaks TLS; an error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = Runtime {
        clock: Arc::new(SystemClock::default()),
        rng: Arc::new(Rng::from_os()),
        disk: Arc::new(RealDisk),
        net: Arc::new(TcpNet),
        gossip: Arc::new(SocketGossip),
        bucket: None,
        ingest_pool: Pool::new("skald-ingest", cpus)?,
        query_pool: Pool::new("skald-query", cpus)?,
        background_pool: Pool::new("skald-background", cpus.div_ceil(2))?,
    };
    // Queries are parsed here, and a tree may have a thousand levels: the stack is that of the pools.
    let mut io = tokio::runtime::Builder::new_multi_thread();
    let io = io.thread_name("skald-io").thread_stack_size(8 << 20).enable_all().build()?;
    io.block_on(async { Ok(app::run(config, runtime, stop_signal()?).await?) })
}

/// Completes when the process is asked to stop; asked once more, it ends at once.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut asked = async move || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    Ok(async move {
        let signal = asked().await;
        tracing::info!(signal, "stopping");
        tokio::spawn(async move {
            let signal = asked().await;
            tracing::warn!(signal, "asked to stop again: ending at once");
            std::process::exit(1);
        });
    })
}
