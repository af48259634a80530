//! `coe-installer`: builds a disk from an image in the array.

use clap::Parser as _;
use protocol::io::program::{self, Log};
use pxe_installer::cli::Cli;

/// Threads that decompress, write and read back. Each keeps buffers of some megabytes, and the whole program stays below 256 MiB.
const BLOCKING_THREADS: usize = 6;

fn main() -> std::process::ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).min(BLOCKING_THREADS))
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(program::main(Log::Plain, Cli::parse().run())),
        Err(error) => {
            eprintln!("error: start threads: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
