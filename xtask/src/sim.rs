//! `cargo xtask sim`: the seeded worlds.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::shell;

/// What can be simulated.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum World {
    /// Placement, stashes and getter under a simulated network
    #[default]
    Fleet,
    /// Months of repair, catalog and placement, while stashes come, go, fail and lie
    Array,
    /// Directory and key shares while controllers come and go
    Mirror,
    /// One stash whose disk crashes at every boundary and fails in every way
    Stash,
}

/// Run seeds of a simulated world, or replay one
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask sim stash --seeds 2000\n  cargo xtask sim array --seeds 500\n  cargo xtask sim mirror --seed 17\n  cargo xtask sim stash --kill 10000\n  cargo xtask sim fleet --clients 100000 --years 5"
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
    /// `stash`: let each call to the medium fail in turn, which takes a second a seed
    #[arg(long)]
    every_call: bool,
    #[command(flatten)]
    years: Years,
}

/// `sim fleet --clients N`: years of a large fleet, with the product's planner and an abstract network.
#[derive(Args)]
#[command(next_help_heading = "Years of a large fleet")]
struct Years {
    /// Stashes: 20 % always on, 45 % in office hours, 30 % laptops, 5 % rarely
    #[arg(long, value_name = "N")]
    clients: Option<u64>,
    /// Years [default: 5]
    #[arg(long, requires = "clients")]
    years: Option<u64>,
    /// Stashes that go for good in a year, percent [default: 33]
    #[arg(long, requires = "clients", value_name = "PERCENT")]
    departures: Option<f64>,
    /// k [default: 10]
    #[arg(long, requires = "clients")]
    data: Option<u8>,
    /// m [default: 4]
    #[arg(long, requires = "clients")]
    parity: Option<u8>,
    /// Instead of k and m: how often a segment is to be read in the busy hours, as `coe-ctl policy set --readable`
    #[arg(long, requires = "clients", value_name = "PERCENT")]
    readable: Option<f64>,
    /// Days of silence after which a stash is not expected back [default: 14]
    #[arg(long, requires = "clients")]
    gone_after_days: Option<u64>,
    /// Percent of all stashes that are wiped in one hour at the end [default: 30]
    #[arg(long, requires = "clients", value_name = "PERCENT")]
    wiped: Option<u64>,
    /// GiB that each stash holds [default: 20]
    #[arg(long, requires = "clients")]
    gib: Option<u64>,
    /// Draw the curves into this file
    #[arg(long, requires = "clients", value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Years {
    fn args(&self) -> Vec<String> {
        let svg = self.svg.as_ref().map(|file| file.display().to_string());
        let given = [
            ("--clients", self.clients.map(|n| n.to_string())),
            ("--years", self.years.map(|n| n.to_string())),
            ("--departures", self.departures.map(|n| n.to_string())),
            ("--data", self.data.map(|n| n.to_string())),
            ("--parity", self.parity.map(|n| n.to_string())),
            ("--readable", self.readable.map(|n| n.to_string())),
            ("--gone-after-days", self.gone_after_days.map(|n| n.to_string())),
            ("--wiped", self.wiped.map(|n| n.to_string())),
            ("--gib", self.gib.map(|n| n.to_string())),
            ("--svg", svg),
        ];
        given.into_iter().filter_map(|(name, value)| Some([name.into(), value?])).flatten().collect()
    }
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
        if self.years.clients.is_some() {
            let mut command =
                shell::cargo(&["run", "--quiet", "--release", "--package", "tests", "--bin", "fleet_model", "--"]);
            let seed = self.seed.map(|seed| ["--seed".to_string(), seed.to_string()]);
            return shell::run(command.args(self.years.args()).args(seed.into_iter().flatten()));
        }
        let mut command = shell::cargo(&["run", "--quiet", "--release", "--package", "tests", "--bin", "sim", "--"]);
        command.arg(match self.world {
            World::Fleet => "fleet",
            World::Array => "array",
            World::Mirror => "mirror",
            World::Stash => "stash",
        });
        match self.seed {
            Some(seed) => command.args(["--seed", &seed.to_string()]),
            None => command.args(["--seeds", &self.seeds.to_string()]),
        };
        if self.every_call {
            command.arg("--every-call");
        }
        shell::run(&mut command)
    }
}
