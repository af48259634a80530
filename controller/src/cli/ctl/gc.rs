//! `coe-ctl gc`

use clap::Args;

use super::client::Client;
use super::{Common, table};
use crate::io::api::{GcRequest, SweepResult};

/// Delete at once what no image refers to, such as the rest of an interrupted publication
///
/// The controller does this by itself after a day.
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl gc --dry-run")]
pub struct Gc {
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
    /// Also what images that were cut anew had before, instead of in a day; an installation that began with it fails
    #[arg(long, conflicts_with = "dry_run")]
    superseded: bool,
    #[command(flatten)]
    common: Common,
}

impl SweepResult {
    pub(super) fn print(&self, what: &str, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        println!("{what}: {} segments forgotten, {} fragments and copies deleted", self.segments, self.deleted);
        if self.waiting > 0 {
            println!("{} fragments lie on stashes that are away; they are deleted when these are back", self.waiting);
        }
        if self.is_publishing {
            println!(
                "an image is being published or cut anew: segments that nothing refers to yet are kept until that is done"
            );
        }
        Ok(())
    }
}

impl Gc {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let spinner = table::spinner("collecting garbage");
        let ask = GcRequest { dry_run: self.dry_run, superseded: self.superseded };
        let result: SweepResult = Client::new(&self.common)?.post("/v1/gc", &ask).await?;
        spinner.finish_and_clear();
        result.print(if self.dry_run { "would be collected" } else { "collected" }, self.common.json)?;
        if self.dry_run && !self.common.json {
            println!(
                "stashes were not asked: what they hold that nobody knows (files of before, restored) is collected, too"
            );
        }
        Ok(())
    }
}
