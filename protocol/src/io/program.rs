//! What all programs of this system do alike: log to standard error, print an error once with its causes, exit 1.

use std::future::Future;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

/// How a program logs to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// A line for a person.
    Plain,
    /// An object a line, for a collector of logs.
    Json,
}

impl Log {
    /// What `--json` of a service means.
    #[must_use]
    pub fn json(is_json: bool) -> Self {
        if is_json { Self::Json } else { Self::Plain }
    }
}

/// Run a program's work. Clap itself exits with 2 for a command line that is not understood.
pub async fn main(log: Log, work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let filter = EnvFilter::try_from_env("COE_LOG").unwrap_or_else(|_| EnvFilter::new("info,quinn=error"));
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match log {
        Log::Plain => lines.with_ansi(colours).init(),
        Log::Json => lines.json().flatten_event(true).init(),
    }
    let Err(error) = work.await else { return ExitCode::SUCCESS };
    match log {
        Log::Plain => eprintln!("error: {error:#}"),
        Log::Json => tracing::error!("{error:#}"),
    }
    ExitCode::FAILURE
}
