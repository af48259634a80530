//! `coe-stash serve`

use clap::Args;

use super::Which;
use crate::io::service;

/// Serve the stash until stopped
#[derive(Args)]
#[command(after_help = "Example:\n  coe-stash serve --dir /var/lib/coe-stash")]
pub struct Serve {
    #[command(flatten)]
    which: Which,
    /// This machine has a new system, or a new name: its folder was not copied from another one
    #[arg(long)]
    same_machine: bool,
    /// Log one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

impl Serve {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        service::run(self.which.folder(), self.same_machine).await
    }
}
