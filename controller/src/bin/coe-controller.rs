//! `coe-controller`: directs an array.

use clap::Parser as _;
use controller::cli::controller::Cli;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    protocol::io::program::main(Cli::parse().run()).await
}
