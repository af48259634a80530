//! `coe-stash`: keeps pieces of the array on this machine.

use clap::Parser as _;
use client_stash::cli::Cli;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    protocol::io::program::main(Cli::parse().run()).await
}
