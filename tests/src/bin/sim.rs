//! Runs seeds of the world, or replays one.

use std::process::ExitCode;

use clap::Parser;
use tests::world::{self, MirrorStats, Stats};

#[derive(Parser)]
struct Cli {
    /// Replay this seed and print every event
    #[arg(long)]
    seed: Option<u64>,
    /// Number of seeds to run, from 0
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The mirror link
    #[arg(long)]
    mirror: bool,
}

fn mirror(seeds: std::ops::Range<u64>, log: bool) -> ExitCode {
    let mut sum = MirrorStats::default();
    for seed in seeds.clone() {
        match world::run_mirror(seed, log) {
            Ok(stats) => sum.add(&stats),
            Err(failure) => {
                eprintln!("seed {seed} fails: {}\nreplay it: cargo xtask sim --mirror --seed {seed}", failure.0);
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{} seeds: {sum:?}", seeds.end - seeds.start);
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (seeds, log) = match cli.seed {
        Some(seed) => (seed..seed + 1, true),
        None => (0..cli.seeds, false),
    };
    if cli.mirror {
        return mirror(seeds, log);
    }
    let mut sum = Stats::default();
    for seed in seeds.clone() {
        match world::run(seed, log) {
            Ok(s) => {
                sum.messages += s.messages;
                sum.lost += s.lost;
                sum.crashes += s.crashes;
                sum.lies += s.lies;
                sum.acknowledged += s.acknowledged;
                sum.short += s.short;
                sum.read += s.read;
                sum.unreadable += s.unreadable;
                sum.hedged += s.hedged;
            }
            Err(failure) => {
                eprintln!("seed {seed} fails: {}\nreplay it: cargo xtask sim --seed {seed}", failure.0);
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{} seeds: {sum:?}", seeds.end - seeds.start);
    ExitCode::SUCCESS
}
