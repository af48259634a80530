//! `cargo xtask bench`: measured, never asserted. Results go into `docs/benchmarks.md`.

mod boot;
mod controller;
mod delta;
mod foreground;
mod pipeline;
mod repair;
mod stash;

use clap::Subcommand;

/// Measure
#[derive(Subcommand)]
pub enum Bench {
    /// Both pipelines against their ceilings
    Pipeline(pipeline::Pipeline),
    /// A second version against casync
    Delta(delta::Delta),
    /// Boot files over a shaped link
    Boot(boot::Boot),
    /// Memory and time of a controller with many segments
    Controller(controller::Controller),
    /// Bytes and spreading of the directory
    Directory,
    /// What a program in the foreground loses to stashes on its disk
    Foreground(foreground::Foreground),
    /// Bytes and seconds of replacing stashes
    Repair(repair::Repair),
    /// Speed, memory and wear of a stash file, against plain files
    Stash(stash::Stash),
}

impl Bench {
    /// Run it.
    ///
    /// # Errors
    /// If anything fails.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Pipeline(args) => args.run(),
            Self::Delta(args) => args.run(),
            Self::Boot(args) => args.run(),
            Self::Controller(args) => args.run(),
            Self::Foreground(args) => args.run(),
            Self::Repair(args) => args.run(),
            Self::Stash(args) => args.run(),
            Self::Directory => crate::shell::run(&mut crate::shell::cargo(&[
                "run",
                "--quiet",
                "--release",
                "-p",
                "tests",
                "--bin",
                "directory",
            ])),
        }
    }
}

/// The middle of some numbers.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
