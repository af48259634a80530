//! `coe-ctl deploy`

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::{Local, NaiveTime, TimeDelta, Utc};
use clap::{Args, Subcommand};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use protocol::size;

use super::client::Client;
use super::{Common, table};
use crate::io::api::{DeployInfo, DeployRequest, Numbers};
use crate::io::unix_s;

/// Install an image on machines that boot from the network
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  coe-ctl deploy debian:12.1 --host lab-03\n  coe-ctl deploy debian --group lab --wipe --disk smallest-ssd --hostname 'lab-{n:02}' --at 22:00 --wake\n  coe-ctl deploy debian:12.1 --auto-approve\n  coe-ctl deploy watch"
)]
pub struct Deploy {
    #[command(subcommand)]
    command: Option<Command>,
    /// NAME:TAG, or NAME for the newest
    #[arg(required = true)]
    image: Option<String>,
    /// Machine: name, UUID, serial number or Ethernet address
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// All machines of a group
    #[arg(long)]
    group: Option<String>,
    /// Approve and install whoever is new, for two hours or --for
    #[arg(long, conflicts_with_all = ["hosts", "group", "hostname"])]
    auto_approve: bool,
    /// How long --auto-approve holds; 0 ends it
    #[arg(long = "for", value_name = "MINUTES", default_value_t = 120, requires = "auto_approve")]
    minutes: u64,
    /// All on the disk may be destroyed; without this a disk that holds anything is refused
    #[arg(long)]
    wipe: bool,
    /// Which disk: serial=…, wwn=…, smallest-ssd, or only (the default: it must be the only one)
    #[arg(long, value_name = "WHICH")]
    disk: Option<String>,
    /// New GUIDs for the disk and its partitions; files of the root that name partitions are changed
    #[arg(long)]
    new_guids: bool,
    /// The machine's name; {n} is its number, {n:02} with zeros, {name} what it is called here
    #[arg(long, value_name = "PATTERN")]
    hostname: Option<String>,
    /// user-data for cloud-init
    #[arg(long, value_name = "FILE")]
    cloud_init: Option<PathBuf>,
    /// What each machine offers to the array as a stash; none without this
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    stash: Option<u64>,
    /// Not before this time of day, here: the next 22:00
    #[arg(long, value_name = "HH:MM")]
    at: Option<String>,
    /// Wake the machines, now or at the time of --at (wake-on-LAN)
    #[arg(long)]
    wake: bool,
    /// Give a shell on the machine's console if it fails
    #[arg(long)]
    rescue: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Command {
    List(List),
    Watch(Watch),
    Cancel(Cancel),
    Retry(Retry),
}

/// List deployments
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl deploy list")]
struct List {
    #[command(flatten)]
    common: Common,
}

/// Watch deployments that are not over yet, until all are
#[derive(Args)]
#[command(
    after_help = "Example:\n  coe-ctl deploy watch\n\nExit code 0: all are deployed (or installed, where no stash joins). 1: one stopped or was cancelled."
)]
struct Watch {
    #[command(flatten)]
    common: Common,
}

/// Call deployments off
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl deploy cancel 3")]
struct Cancel {
    /// Numbers, as `coe-ctl deploy list` shows them
    #[arg(required = true)]
    ids: Vec<u32>,
    #[command(flatten)]
    common: Common,
}

/// Start deployments that stopped again
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl deploy retry 3")]
struct Retry {
    /// Numbers, as `coe-ctl deploy list` shows them
    #[arg(required = true)]
    ids: Vec<u32>,
    #[command(flatten)]
    common: Common,
}

/// The next time that clocks here show this, seconds since 1970.
fn next(at: &str) -> anyhow::Result<u64> {
    let time = NaiveTime::parse_from_str(at, "%H:%M").with_context(|| format!("--at is HH:MM, not {at:?}"))?;
    let now = Local::now();
    for day in 0..3 {
        let date = now.date_naive() + TimeDelta::days(day);
        // A time that a change of clocks leaves out does not come that day.
        if let Some(then) = date.and_time(time).and_local_timezone(Local).earliest().filter(|t| *t > now) {
            return Ok(then.with_timezone(&Utc).timestamp().max(0).unsigned_abs());
        }
    }
    bail!("{at} does not come")
}

fn what(d: &DeployInfo) -> String {
    let limit = d.limit.as_ref().map_or(String::new(), |l| format!(", limited by {l}"));
    match (&d.why, &d.stage) {
        (Some(why), _) => format!("stopped: {why}"),
        (None, Some(stage)) if d.state == "installing" => format!("{stage} {:.0} MB/s{limit}", d.rate / 1e6),
        _ => d.state.clone(),
    }
}

async fn each(common: &Common, ids: &[u32], action: &str, done: &str) -> anyhow::Result<()> {
    let client = Client::new(common)?;
    for id in ids {
        let changed: Numbers = client.post(&format!("/v1/deployments/{id}/{action}"), &()).await?;
        if common.json {
            println!("{}", serde_json::to_string(&changed)?);
        } else {
            println!("deployment {id} {done}");
        }
    }
    Ok(())
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let all: Vec<DeployInfo> = Client::new(&self.common)?.get("/v1/deployments").await?;
        if self.common.json {
            println!("{}", serde_json::to_string(&all)?);
            return Ok(());
        }
        let row = |d: &DeployInfo| {
            let percent = (d.done * 100).checked_div(d.total).map_or("-".into(), |p| format!("{p}%"));
            let since = table::ago(unix_s().saturating_sub(d.since_unix_s));
            vec![d.id.to_string(), d.host.clone(), d.image.clone(), percent, since, what(d)]
        };
        table::print(&["ID", "HOST", "IMAGE", "DONE", "SINCE", "STATE"], &all.iter().map(row).collect::<Vec<_>>());
        Ok(())
    }
}

impl Watch {
    async fn run(self) -> anyhow::Result<()> {
        let client = Client::new(&self.common)?;
        let bars = MultiProgress::new();
        let style = ProgressStyle::with_template("{prefix:16} [{bar:32}] {percent:>3}%  {msg}")?.progress_chars("=> ");
        let mut shown: HashMap<u32, ProgressBar> = HashMap::new();
        let is_over = |d: &DeployInfo| ["installed", "deployed", "cancelled"].contains(&d.state.as_str());
        let mut over_before: Option<HashSet<u32>> = None;
        let all = loop {
            let mut all: Vec<DeployInfo> = client.get("/v1/deployments").await?;
            // What was over before anybody watched is history.
            let before = over_before.get_or_insert_with(|| all.iter().filter(|d| is_over(d)).map(|d| d.id).collect());
            all.retain(|d| !before.contains(&d.id));
            for d in &all {
                let bar = shown.entry(d.id).or_insert_with(|| {
                    bars.add(ProgressBar::new(1)).with_style(style.clone()).with_prefix(d.host.clone())
                });
                bar.set_length(d.total.max(1));
                bar.set_position(if ["installed", "deployed"].contains(&d.state.as_str()) {
                    d.total.max(1)
                } else {
                    d.done
                });
                bar.set_message(what(d));
            }
            if all.iter().all(|d| !["waiting", "installing"].contains(&d.state.as_str())) {
                break all;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        shown.values().for_each(ProgressBar::abandon);
        if self.common.json {
            println!("{}", serde_json::to_string(&all)?);
        } else if all.is_empty() {
            println!("nothing is under way; `coe-ctl deploy list` shows what was");
        } else {
            all.iter().for_each(|d| println!("{:16} {}", d.host, what(d)));
        }
        match all.iter().filter(|d| ["stopped", "cancelled"].contains(&d.state.as_str())).count() {
            0 => Ok(()),
            n => bail!("{n} of {} deployments did not end well", all.len()),
        }
    }
}

impl Deploy {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Some(Command::List(args)) => return args.run().await,
            Some(Command::Watch(args)) => return args.run().await,
            Some(Command::Cancel(args)) => return each(&args.common, &args.ids, "cancel", "cancelled").await,
            Some(Command::Retry(args)) => return each(&args.common, &args.ids, "retry", "starts again").await,
            None => {}
        }
        let read = |path: PathBuf| std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()));
        let request = DeployRequest {
            image: self.image.context("which image?")?,
            hosts: self.hosts,
            group: self.group,
            auto_approve_s: self.auto_approve.then_some(self.minutes * 60),
            disk: self.disk,
            wipe: self.wipe,
            new_guids: self.new_guids,
            hostname: self.hostname,
            user_data: self.cloud_init.map(read).transpose()?,
            stash_size: self.stash.unwrap_or(0),
            rescue: self.rescue,
            not_before_unix_s: self.at.as_deref().map(next).transpose()?.unwrap_or(0),
            wake: self.wake,
        };
        let made: Numbers = Client::new(&self.common)?.post("/v1/deployments", &request).await?;
        if self.common.json {
            println!("{}", serde_json::to_string(&made)?);
        } else if self.auto_approve && self.minutes == 0 {
            println!("new machines wait for approval again");
        } else if self.auto_approve {
            println!("whoever is new gets {} in the next {} minutes", request.image, self.minutes);
        } else {
            println!(
                "{} planned: switch the machines on, to boot from the network; `coe-ctl deploy watch`",
                made.ids.len()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_time_is_within_a_day() {
        let then = next("22:00").unwrap();
        assert!(then > unix_s() && then <= unix_s() + 25 * 3600);
        assert!(next("25:00").is_err() && next("ten").is_err());
    }
}
