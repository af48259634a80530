//! `coe-bootd`: answers machines that boot from the network.

use clap::Parser as _;
use protocol::io::program;
use pxe_installer::cli::bootd::Cli;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    program::main(cli.log(), cli.run()).await
}
