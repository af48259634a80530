//! `cargo xtask`: see `cargo xtask --help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, ci, coe_image, demo, fuzz, lab, netboot, sim, tidy};

/// Build, run, test and measure everything
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Ci(ci::Ci),
    Tidy(tidy::Tidy),
    Sim(sim::Sim),
    Fuzz(fuzz::Fuzz),
    Netboot(netboot::Netboot),
    CoeImage(coe_image::CoeImage),
    #[command(subcommand)]
    Lab(lab::LabCommand),
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => args.run(),
        Command::Ci(args) => args.run(),
        Command::Tidy(args) => args.run(),
        Command::Sim(args) => args.run(),
        Command::Fuzz(args) => args.run(),
        Command::Netboot(args) => args.run(),
        Command::CoeImage(args) => args.run(),
        Command::Lab(args) => args.run(),
        Command::Bench(args) => args.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
