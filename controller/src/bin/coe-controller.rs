//! `coe-controller`: directs an array.

use clap::Parser as _;
use controller::cli::controller::Cli;
use protocol::io::program;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    program::main(cli.log(), cli.run()).await
}
