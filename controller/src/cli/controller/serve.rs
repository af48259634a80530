//! `coe-controller serve`

use clap::Args;

use super::Which;
use crate::io::service;

/// Serve the array until stopped
#[derive(Args)]
#[command(after_help = "Example:\n  coe-controller serve --dir /var/lib/coe-controller")]
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
