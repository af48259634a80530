//! Runs seeds of the world, or replays one.

use std::ops::Range;
use std::process::ExitCode;

use clap::Parser;
use tests::world::{self, ArrayStats, Failure, MirrorStats, StashStats, Stats};
use xtask::sim::World;

#[derive(Parser)]
struct Cli {
    #[arg(value_enum, default_value_t)]
    world: World,
    /// Replay this seed and print every event
    #[arg(long)]
    seed: Option<u64>,
    /// Number of seeds to run, from 0
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// `stash`: let each call to the medium fail in turn
    #[arg(long)]
    every_call: bool,
}

/// Run seeds on all cores, and print what they add up to.
fn all<S: Default + std::fmt::Debug + Send>(
    seeds: Range<u64>,
    replay: &str,
    run: impl Fn(u64) -> Result<S, Failure> + Sync,
    add: impl Fn(&mut S, &S) + Sync,
) -> ExitCode {
    let (count, cores) = (seeds.end - seeds.start, std::thread::available_parallelism().map_or(1, usize::from));
    let some = |core: usize| {
        let mut sum = S::default();
        for seed in seeds.clone().skip(core).step_by(cores) {
            add(&mut sum, &run(seed).map_err(|failure| (seed, failure))?);
        }
        Ok(sum)
    };
    let (some, mut sum, mut failed) = (&some, S::default(), None);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..cores).map(|core| scope.spawn(move || some(core))).collect();
        for core in running {
            match core.join().unwrap_or_else(|_| Err((0, Failure("a seed panicked: see above".into())))) {
                Ok(stats) => add(&mut sum, &stats),
                Err(failure) => failed = Some(failure),
            }
        }
    });
    if let Some((seed, failure)) = failed {
        eprintln!("seed {seed} fails: {}\nreplay it: {replay} --seed {seed}", failure.0);
        return ExitCode::FAILURE;
    }
    println!("{count} seeds: {sum:?}");
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (seeds, log) = match cli.seed {
        Some(seed) => (seed..seed + 1, true),
        None => (0..cli.seeds, false),
    };
    match cli.world {
        World::Fleet => all(seeds, "cargo xtask sim", |seed| world::run(seed, log), Stats::add),
        World::Array => all(seeds, "cargo xtask sim array", |seed| world::run_array(seed, log), ArrayStats::add),
        World::Mirror => all(seeds, "cargo xtask sim mirror", |seed| world::run_mirror(seed, log), MirrorStats::add),
        World::Stash if cli.every_call => {
            let replay = "cargo xtask sim stash --every-call";
            all(seeds, replay, |seed| world::run_stash_every_call(seed, log), StashStats::add)
        }
        World::Stash => all(seeds, "cargo xtask sim stash", |seed| world::run_stash(seed, log), StashStats::add),
    }
}
