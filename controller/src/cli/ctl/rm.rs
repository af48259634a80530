//! `coe-ctl rm`

use clap::Args;
use images::manifest::ImageName;

use super::Common;
use super::client::Client;
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
        let result: SweepResult = Client::new(&self.common)?.delete(&path).await?;
        result.print(&format!("removed {}", self.image), self.common.json)
    }
}
