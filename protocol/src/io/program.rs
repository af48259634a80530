//! What all programs of this system do alike: log to standard error, print an error once with its causes, exit 1.

use std::future::Future;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

/// Run a program's work. Clap itself exits with 2 for a command line that is not understood.
pub async fn main(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let filter = EnvFilter::try_from_env("COE_LOG").unwrap_or_else(|_| EnvFilter::new("info,quinn=error"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_target(false).with_ansi(colours).init();
    match work.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
