//! `cargo xtask sim`: the seeded world.

use clap::Args;

use crate::shell;

/// Run seeds of the simulated fleet, or replay one
#[derive(Args)]
pub struct Sim {
    /// Replay this seed and print every event
    #[arg(long)]
    seed: Option<u64>,
    /// The mirror link: directory and key shares, instead of fragments
    #[arg(long)]
    mirror: bool,
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
        let mut command = shell::cargo(&["run", "--quiet", "--release", "--package", "tests", "--bin", "sim", "--"]);
        match self.seed {
            Some(seed) => command.args(["--seed", &seed.to_string()]),
            None => command.args(["--seeds", &self.seeds.to_string()]),
        };
        if self.mirror {
            command.arg("--mirror");
        }
        shell::run(&mut command)
    }
}
