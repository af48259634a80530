//! `coe-ctl images`

use clap::Args;

use super::client::Client;
use super::via::{self, Via};
use super::{Common, table};
use crate::io::api::ImageInfo;
use crate::io::unix_s;

/// List published images
#[derive(Args)]
#[command(
    after_help = "Examples:\n  coe-ctl images --json\n  coe-ctl images --via lab-03:7401    # while the controller is away"
)]
pub struct Images {
    #[command(flatten)]
    via: Via,
    #[command(flatten)]
    common: Common,
}

impl Images {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let images: Vec<ImageInfo> = match self.via.array(&self.common).await? {
            Some(array) => via::roots(&array, None).await?.iter().map(ImageInfo::of).collect(),
            None => Client::new(&self.common)?.get("/v1/images").await?,
        };
        if self.common.json {
            println!("{}", serde_json::to_string(&images)?);
            return Ok(());
        }
        let row = |i: &ImageInfo| {
            vec![
                i.image.clone(),
                table::size(i.disk_len),
                table::size(i.in_use),
                table::size(i.sealed),
                table::ago(unix_s().saturating_sub(i.created_unix_s)),
                i.content[..16].to_string(),
            ]
        };
        table::print(
            &["IMAGE", "DISK", "IN USE", "SEALED", "PUBLISHED", "CONTENT"],
            &images.iter().map(row).collect::<Vec<_>>(),
        );
        Ok(())
    }
}
