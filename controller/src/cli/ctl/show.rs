//! `coe-ctl show`

use clap::Args;
use images::manifest::ImageName;

use super::client::Client;
use super::via::{self, Via};
use super::{Common, table};
use crate::io::api::ImageDetail;

/// Show one image in full
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl show debian:12.1")]
pub struct Show {
    /// NAME:TAG
    image: ImageName,
    #[command(flatten)]
    via: Via,
    #[command(flatten)]
    common: Common,
}

impl Show {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let path = format!("/v1/images/{}/{}", self.image.name(), self.image.tag());
        let d: ImageDetail = match self.via.array(&self.common).await? {
            Some(array) => {
                via::roots(&array, Some(&self.image)).await?.iter().map(ImageDetail::of).collect::<Vec<_>>().remove(0)
            }
            None => Client::new(&self.common)?.get(&path).await?,
        };
        if self.common.json {
            println!("{}", serde_json::to_string(&d)?);
            return Ok(());
        }
        println!("image      {}", d.info.image);
        println!("content    {}   (compare with `coe-ctl digest DISK`)", d.info.content);
        if let Some(sha256) = &d.source_sha256 {
            println!("sha256     {sha256}");
        }
        println!("manifest   {}", d.manifest);
        println!(
            "disk       {}, {} in use, sectors of {} bytes",
            table::size(d.info.disk_len),
            table::size(d.info.in_use),
            d.sector_size
        );
        println!("segments   {}, {} of chunks, {} sealed", d.segments, table::size(d.data), table::size(d.info.sealed));
        println!("table      {}{}", d.table, d.damage.map_or(String::new(), |what| format!("   damaged: {what}")));
        let row = |p: &crate::io::api::PartitionInfo| {
            vec![p.number.to_string(), p.offset.to_string(), table::size(p.len), p.kind.clone(), p.name.clone()]
        };
        if !d.partitions.is_empty() {
            println!();
            table::print(
                &["PARTITION", "OFFSET", "SIZE", "TYPE", "NAME"],
                &d.partitions.iter().map(row).collect::<Vec<_>>(),
            );
        }
        Ok(())
    }
}
