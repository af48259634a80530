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
    /// Log one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

impl Serve {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        service::run(self.which.folder()).await
    }
}
