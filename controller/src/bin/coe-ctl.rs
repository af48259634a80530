//! `coe-ctl`: steers an array.

use clap::Parser as _;
use controller::cli::ctl::Cli;
use protocol::io::program::{self, Log};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    program::main(Log::Plain, Cli::parse().run()).await
}
