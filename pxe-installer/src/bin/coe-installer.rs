//! `coe-installer`: builds a disk from an image in the array.

use clap::Parser as _;
use pxe_installer::cli::Cli;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    protocol::io::program::main(Cli::parse().run()).await
}
