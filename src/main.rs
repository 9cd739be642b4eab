//! The `skald` binary: reads the command line, then runs until told to stop.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use prometheus_client::registry::Registry;
use skald::cli::{self, Command};
use skald::config::Config;
use skald::data_dir::DataDir;
use skald::http::{Frame, FrameMetrics, Pages, ProcessMetrics, serve};
use skald::logging;
use skald::runtime::{Clock, Net, SystemClock, TcpNet};
use skald::services::Services;
use skald::settings::Environment;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skald: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = std::env::args_os()
        .skip(1)
        .map(|argument| argument.into_string().map_err(|argument| format!("argument {argument:?} is not UTF-8")))
        .collect::<Result<Vec<String>, String>>()?;
    match cli::command(&arguments, &Environment::of_process()?)? {
        Command::Print(text) => Ok(std::io::stdout().write_all(text.as_bytes())?),
        Command::Run(config) => run_until_stopped(*config),
    }
}

fn run_until_stopped(config: Config) -> Result<(), Box<dyn Error>> {
    logging::start(&config.log);
    // Held until everything has stopped.
    let _data_dir = DataDir::lock(&config.data_dir)?;
    let io = tokio::runtime::Builder::new_multi_thread().thread_name("skald-io").enable_all().build()?;
    io.block_on(serve_pages(config))
}

async fn serve_pages(config: Config) -> Result<(), Box<dyn Error>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let mut registry = Registry::default();
    ProcessMetrics::register(&mut registry, clock.as_ref());
    let frame = Frame::new(clock.clone(), FrameMetrics::new(&mut registry));
    let services = Services::new(clock.clone(), &["http"]);
    let pages = Pages::new(services.clone(), Arc::new(registry), &config, &[]);
    let routes = frame.http(Router::new().merge(pages.routes()));
    let address = config.server.http_listen_address.to_string();
    let listener = services.start("http", TcpNet.listen(&address)).await?;
    tracing::info!(address = listener.local_address(), "serving HTTP");
    let stop = stop_signal()?;
    serve(listener, routes, &config.server, clock, stop).await;
    services.stop(config.server.graceful_shutdown_timeout).await;
    tracing::info!("stopped");
    Ok(())
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
