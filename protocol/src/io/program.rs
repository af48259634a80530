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

/// Whoever reads what is printed may have seen enough: `… | head -1` is no failure of the program.
fn end_quietly_on_broken_pipes() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>();
        if said.is_some_and(|said| said.starts_with("failed printing to stdout") && said.contains("Broken pipe")) {
            std::process::exit(BROKEN_PIPE);
        }
        before(panic);
    }));
}

/// What a shell says of a program that SIGPIPE ended.
const BROKEN_PIPE: i32 = 141;

/// Run a program's work. Clap itself exits with 2 for a command line that is not understood.
pub async fn main(log: Log, work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let filter = EnvFilter::try_from_env("COE_LOG").unwrap_or_else(|_| EnvFilter::new("info,quinn=error"));
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match log {
        Log::Plain => lines.with_ansi(colours).init(),
        Log::Json => lines.json().flatten_event(true).init(),
    }
    end_quietly_on_broken_pipes();
    let Err(error) = work.await else { return ExitCode::SUCCESS };
    match log {
        Log::Plain => eprintln!("error: {error:#}"),
        Log::Json => tracing::error!("{error:#}"),
    }
    ExitCode::FAILURE
}
