//! `coe-ctl`: steers an array.

use clap::Parser as _;
use controller::cli::ctl::Cli;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    protocol::io::program::main(Cli::parse().run()).await
}
