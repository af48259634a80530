//! `coe-stash`: keeps pieces of the array on this machine.

use clap::Parser as _;
use client_stash::cli::Cli;
use protocol::io::program;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    program::main(cli.log(), cli.run()).await
}
