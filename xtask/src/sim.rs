//! `cargo xtask sim`: the seeded worlds.

use clap::{Args, ValueEnum};

use crate::shell;

/// What can be simulated.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum World {
    /// Placement, stashes and getter under a simulated network
    #[default]
    Fleet,
    /// Directory and key shares while controllers come and go
    Mirror,
    /// One stash whose disk crashes at every boundary and fails in every way
    Stash,
}

/// Run seeds of a simulated world, or replay one
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask sim stash --seeds 2000\n  cargo xtask sim mirror --seed 17\n  cargo xtask sim stash --kill 10000"
)]
pub struct Sim {
    /// Which
    #[arg(value_enum, default_value_t)]
    world: World,
    /// Replay this seed and print every event
    #[arg(long)]
    seed: Option<u64>,
    /// Instead of a simulation: kill a process that writes a real stash file so many times
    #[arg(long, value_name = "TIMES", conflicts_with_all = ["seed", "seeds"])]
    kill: Option<u64>,
    /// Number of seeds to run
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
}

impl Sim {
    /// Run it.
    ///
    /// # Errors
    /// If a seed fails; the output says which.
    pub fn run(&self) -> anyhow::Result<()> {
        if let Some(times) = self.kill {
            let folder = tempfile::tempdir()?;
            let mut command =
                shell::cargo(&["run", "--quiet", "--release", "-p", "tests", "--bin", "stash_writer", "--"]);
            return shell::run(command.args(["--kill", &times.to_string()]).arg(folder.path().join("stash")));
        }
        let mut command = shell::cargo(&["run", "--quiet", "--release", "--package", "tests", "--bin", "sim", "--"]);
        command.arg(match self.world {
            World::Fleet => "fleet",
            World::Mirror => "mirror",
            World::Stash => "stash",
        });
        match self.seed {
            Some(seed) => command.args(["--seed", &seed.to_string()]),
            None => command.args(["--seeds", &self.seeds.to_string()]),
        };
        shell::run(&mut command)
    }
}
