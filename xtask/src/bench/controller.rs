//! `cargo xtask bench controller`: a controller with a large catalog.

use clap::Args;

use crate::shell;

/// Memory and time of a controller with many segments and stashes
#[derive(Args)]
pub struct Controller {
    /// Segments; ten million need 15 GB of disk
    #[arg(long, default_value_t = 1_000_000)]
    segments: u64,
    /// Stashes
    #[arg(long, default_value_t = 20_000)]
    clients: u64,
}

impl Controller {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let bin = shell::build(true)?;
        let dir = tempfile::Builder::new().prefix("coe-controller-bench-").tempdir()?;
        let mut bench =
            shell::cargo(&["run", "--quiet", "--release", "-p", "tests", "--bin", "controller_bench", "--"]);
        let (segments, clients) = (self.segments.to_string(), self.clients.to_string());
        shell::run(bench.arg(bin).arg(dir.path()).args(["--segments", &segments, "--clients", &clients]))
    }
}
