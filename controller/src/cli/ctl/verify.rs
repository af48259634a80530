//! `coe-ctl verify`

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use images::manifest::ImageName;

use super::client::Client;
use super::via::{self, Via};
use super::{Common, table};
use crate::io::api::{VerifyRequest, VerifyStarted};
use crate::io::verify::Verification;

/// Let every holder prove that it holds its pieces
///
/// Exits with 1 if anything is not as it should be.
#[derive(Args)]
#[command(after_help = "Examples:\n  coe-ctl verify\n  coe-ctl verify debian:12.1 --deep")]
pub struct Verify {
    /// NAME:TAG [default: everything]
    image: Option<ImageName>,
    /// Also read every copy on mass storage
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    via: Via,
    #[command(flatten)]
    common: Common,
}

impl Verify {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let v = match self.via.array(&self.common).await? {
            Some(_) if self.deep => bail!("--deep reads the controller's mass storage, which no stash has"),
            Some(array) => via::verify(&array, self.image.as_ref()).await?,
            None => self.ask_controller().await?,
        };
        if self.common.json {
            println!("{}", serde_json::to_string(&v)?);
        } else {
            print(&v);
        }
        if let Some(error) = v.error {
            bail!("verification stopped: {error}");
        }
        if v.problem_count > 0 {
            bail!("{} problems; {} segments are unreadable now", v.problem_count, v.unreadable);
        }
        Ok(())
    }

    async fn ask_controller(&self) -> anyhow::Result<Verification> {
        let client = Client::new(&self.common)?;
        let request = VerifyRequest { image: self.image.as_ref().map(ToString::to_string), deep: self.deep };
        let started: VerifyStarted = client.post("/v1/verify", &request).await?;
        let bar = table::bar(1, "verify");
        let v = loop {
            let v: Verification = client.get(&format!("/v1/verify/{}", started.job)).await?;
            bar.set_length(v.segments.max(1));
            bar.set_position(v.done);
            if v.finished {
                break v;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        bar.finish_and_clear();
        Ok(v)
    }
}

fn print(v: &Verification) {
    println!(
        "{} segments: {} pieces proven by their holders, {} copies on mass storage",
        v.done, v.pieces_proven, v.copies_proven
    );
    let row = |p: &crate::io::verify::Problem| {
        vec![
            p.segment[..16].to_string(),
            p.piece.map_or("copy".into(), |i| i.to_string()),
            p.node.clone().unwrap_or_else(|| "mass storage".into()),
            p.what.clone(),
        ]
    };
    if !v.problems.is_empty() {
        table::print(
            &["SEGMENT", "PIECE", "HOLDER", "PROBLEM"],
            &v.problems.iter().take(40).map(row).collect::<Vec<_>>(),
        );
        if v.problem_count > 40 {
            println!("… and {} more (--json lists up to 1000)", v.problem_count - 40);
        }
    }
}
