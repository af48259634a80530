//! `coe-stash limit`

use anyhow::Context as _;
use clap::Args;
use protocol::pace::{DAY, minute_of_day};
use protocol::size;

use super::Which;
use crate::io::control::{self, Ask};
use crate::manners;

/// Set how fast the stash may be, by time of day
#[derive(Args)]
#[command(
    after_help = "Examples:\n  coe-stash limit --network 5MB --disk 20MB --from 08:00 --to 18:00\n  coe-stash limit --clear\n\nLimits add up: \
                  at any time the smallest that holds counts. Without a limit it is as fast as it can, behind everything else that the machine does."
)]
pub struct Limit {
    /// Bytes a second over the network, both ways together
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    network: Option<u64>,
    /// Bytes a second from and to the disk
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    disk: Option<u64>,
    /// From this hour on, local time
    #[arg(long, value_parser = minute_of_day, default_value = "00:00", value_name = "HH:MM")]
    from: u16,
    /// Until this hour
    #[arg(long, value_parser = minute_of_day, default_value = "24:00", value_name = "HH:MM")]
    to: u16,
    /// Forget all limits first
    #[arg(long)]
    clear: bool,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

impl Limit {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let folder = self.which.folder();
        let mut settings = folder.settings()?;
        let before = settings.limits.clone();
        if self.clear {
            settings.limits.clear();
        }
        if self.network.is_some() || self.disk.is_some() {
            let limit = manners::Limit { from: self.from, to: self.to, network: self.network, disk: self.disk };
            settings.limits.push(limit);
        }
        if settings.limits != before {
            match control::ask(folder.path(), Ask::Limit(settings.limits.clone()))? {
                Some(_) => {}
                None => folder.save_settings(&settings).context("keep the limits for when the service runs")?,
            }
        }
        if self.json {
            println!("{}", serde_json::to_string(&settings.limits)?);
            return Ok(());
        }
        if settings.limits.is_empty() {
            println!("no limits");
        }
        for limit in &settings.limits {
            println!("{}", said(limit));
        }
        Ok(())
    }
}

/// A limit in words.
fn said(limit: &manners::Limit) -> String {
    let hour = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    let rate = |bytes: Option<u64>| bytes.map_or("any".into(), |b| format!("{:.1} MB/s", b as f64 / 1e6));
    let when = match (limit.from, limit.to) {
        (from, to) if from % DAY == to % DAY => "always     ".into(),
        (from, to) => format!("{}-{}", hour(from), hour(to)),
    };
    format!("{when}  network {}, disk {}", rate(limit.network), rate(limit.disk))
}
