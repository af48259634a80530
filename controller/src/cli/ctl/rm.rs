//! `coe-ctl rm`

use clap::Args;
use images::manifest::ImageName;

use super::client::Client;
use super::{Common, table};
use crate::io::api::SweepResult;

/// Remove an image; what only it used is deleted
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl rm debian:12.1")]
pub struct Rm {
    /// NAME:TAG
    image: ImageName,
    #[command(flatten)]
    common: Common,
}

impl Rm {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let path = format!("/v1/images/{}/{}", self.image.name(), self.image.tag());
        let spinner = table::spinner("removing");
        let result: SweepResult = Client::new(&self.common)?.delete(&path).await?;
        spinner.finish_and_clear();
        result.print(&format!("removed {}", self.image), self.common.json)
    }
}
