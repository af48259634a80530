//! `coe-ctl sweep`

use clap::Args;

use super::client::Client;
use super::{Common, table};
use crate::io::api::SweepResult;

/// Delete at once what no image refers to, such as the rest of an interrupted publication
///
/// The controller does this by itself after a day.
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl sweep")]
pub struct Sweep {
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
        Ok(())
    }
}

impl Sweep {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let spinner = table::spinner("sweeping");
        let result: SweepResult = Client::new(&self.common)?.post("/v1/sweep", &()).await?;
        spinner.finish_and_clear();
        result.print("swept", self.common.json)
    }
}
