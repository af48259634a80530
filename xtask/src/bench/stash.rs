//! `cargo xtask bench stash`: a stash file against plain files on the same disk.

use std::path::PathBuf;

use clap::Args;

use crate::shell;

/// Speed, memory and wear of a stash file, against plain files
#[derive(Args)]
pub struct Stash {
    /// MB to put and get
    #[arg(long, default_value_t = 1500)]
    mb: u64,
    /// Runs, of which the median counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// On the disk of this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Stash {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let temporary = tempfile::Builder::new().prefix("coe-stash-bench-").tempdir()?;
        let dir = self.dir.as_deref().unwrap_or(temporary.path());
        let mut bench = shell::cargo(&["run", "--quiet", "--release", "-p", "tests", "--bin", "stash_bench", "--"]);
        shell::run(bench.arg(dir).args([self.mb.to_string(), self.runs.to_string()]))
    }
}
