//! `cargo xtask bench repair`: bytes that repair moves against the bytes that were lost, its speed, and what an installation that runs
//! meanwhile loses.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args;

use super::median;
use crate::fleet::{Fleet, Plan, wait_for};
use crate::{sample, shell};

/// Bytes and seconds of replacing stashes, and an installation beside it
#[derive(Args)]
pub struct Repair {
    /// Megabytes of noise in the image
    #[arg(long, default_value_t = 400)]
    size_mb: u64,
    /// k
    #[arg(long, default_value_t = 4)]
    data: u8,
    /// m
    #[arg(long, default_value_t = 4)]
    parity: u8,
    /// Stashes; each case takes some away
    #[arg(long, default_value_t = 16)]
    stashes: usize,
    /// Times that a stash is lost, with an installation before and one beside the repair
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// Bytes of pieces that new holders fetched, and that they kept.
fn bytes(fleet: &Fleet) -> anyhow::Result<(f64, f64)> {
    let info = fleet.ctl(&["repair"])?;
    let number = |what: &str| info[what].as_f64().context("a number");
    Ok((number("fetched")?, number("kept")?))
}

fn install(fleet: &Fleet, target: &Path, len: u64) -> anyhow::Result<f64> {
    let start = Instant::now();
    fleet.install("noise", target, len)?;
    let took = start.elapsed().as_secs_f64();
    std::fs::remove_file(target)?;
    Ok(took)
}

impl Repair {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let bin = shell::build(true)?;
        let dir = tempfile::tempdir()?;
        let plan = Plan { stashes: self.stashes, size: "1GiB".into(), heartbeat_ms: 500, ..Plan::default() };
        let mut fleet = Fleet::start(&bin, &dir.path().join("array"), &plan)?;
        let (image, target) = (dir.path().join("image"), dir.path().join("target"));
        let len = self.size_mb * 1_000_000;
        std::fs::write(&image, sample::noise(7, len as usize))?;
        let (data, parity) = (self.data.to_string(), self.parity.to_string());
        fleet.publish(&image, &["--name", "noise", "--layout", "clients", "--data", &data, "--parity", &parity])?;
        println!("{} MB of noise as {data} + {parity} on {} stashes, one host, one disk", self.size_mb, self.stashes);
        println!("{:<44} {:>8} {:>9} {:>6} {:>6} {:>7}", "case", "lost MB", "moved MB", "ratio", "least", "MB/s");
        let mut next = 0;
        for (what, count, lost) in [
            ("one is drained: its pieces are copied", 1, false),
            ("one is lost", 1, true),
            ("two are lost at the same time", 2, true),
            ("three are lost at the same time", 3, true),
        ] {
            let (fetched, kept) = bytes(&fleet)?;
            let least = if lost { lose(&mut fleet, next..next + count).and_then(|()| least(&fleet))? } else { 1.0 };
            let start = send_away(&fleet, next..next + count, lost)?;
            next += count;
            wait_until_repaired(&fleet)?;
            let took = start.elapsed().as_secs_f64();
            // Who was sent away is no member any more.
            (next - count..next).for_each(|i| fleet.kill_stash(i));
            let (fetched, kept) = {
                let now = bytes(&fleet)?;
                ((now.0 - fetched) / 1e6, (now.1 - kept) / 1e6)
            };
            let (ratio, speed) = (fetched / kept, kept / took);
            println!("{what:<44} {kept:>8.1} {fetched:>9.1} {ratio:>6.2} {least:>6.2} {speed:>7.1}");
        }
        self.beside(&mut fleet, next, &target, len)?;
        fleet.ctl(&["verify"]).map(drop)
    }

    /// What an installation loses while a lost stash is made up for.
    fn beside(&self, fleet: &mut Fleet, first: usize, target: &Path, len: u64) -> anyhow::Result<()> {
        let (mut alone, mut beside, mut repairs) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.rounds {
            fleet.add_stash("1GiB")?;
            fleet.wait_until_up(fleet.running())?;
            wait_until_repaired(fleet)?;
            // Both times one stash is away: what that costs is not repair's.
            lose(fleet, first + round..first + round + 1)?;
            alone.push(install(fleet, target, len)?);
            let start = send_away(fleet, first + round..first + round + 1, true)?;
            wait_for("repair to begin", || fleet.ctl(&["repair"]).is_ok_and(|r| r["health"]["moves"] != 0))?;
            beside.push(install(fleet, target, len)?);
            let was_beside = fleet.ctl(&["repair"])?["health"]["moves"] != 0;
            wait_until_repaired(fleet)?;
            let took = start.elapsed().as_secs_f64();
            println!(
                "round {round}: an installation without a repair {:.2} s, beside a repair {:.2} s; repaired in {took:.1} s{}",
                alone[round],
                beside[round],
                if was_beside { "" } else { ", before the installation ended" }
            );
            repairs.push(took);
        }
        let (alone, beside) = (median(alone), median(beside));
        println!(
            "medians: without {alone:.2} s, beside a repair {beside:.2} s: {:+.1} % (goal: at most 10 %); repaired in {:.1} s",
            (beside / alone - 1.0) * 100.0,
            median(repairs)
        );
        Ok(())
    }
}

/// Bytes that must travel for each that is lost with stashes that are not up, as the groups lie: k + r − 1 pieces for r. Pages of manifests
/// are copies, and small: they are left out.
fn least(fleet: &Fleet) -> anyhow::Result<f64> {
    let explained = fleet.ctl(&["explain", "noise:1"])?;
    let (mut moved, mut lost) = (0.0, 0.0);
    for group in explained["groups"].as_array().context("groups")? {
        let (data, parity) = group["geometry"].as_str().and_then(|g| g.split_once('+')).context("a geometry")?;
        let (data, parity): (f64, f64) = (data.parse()?, parity.parse()?);
        let number = |what: &str| group[what].as_f64().context("a number");
        let gone = data + parity - number("online")?;
        if gone > 0.0 && data > 1.0 {
            let bytes = number("segments")? / data;
            moved += (data + gone - 1.0) * bytes;
            lost += gone * bytes;
        }
    }
    ensure!(lost > 0.0, "nothing was lost");
    Ok(moved / lost)
}

/// Kill stashes, and wait until that is noticed.
fn lose(fleet: &mut Fleet, stashes: Range<usize>) -> anyhow::Result<()> {
    stashes.for_each(|i| fleet.kill_stash(i));
    fleet.wait_until_up(fleet.running())
}

/// Say that they go, or are lost. Answers when.
fn send_away(fleet: &Fleet, stashes: Range<usize>, lost: bool) -> anyhow::Result<Instant> {
    let start = Instant::now();
    let mut remove = vec!["node", "remove"];
    remove.extend(stashes.map(|i| fleet.stashes[i].node.as_str()));
    remove.extend(lost.then_some("--lost"));
    fleet.ctl(&remove)?;
    Ok(start)
}

fn wait_until_repaired(fleet: &Fleet) -> anyhow::Result<()> {
    let start = Instant::now();
    let is_done = || {
        let done = fleet.ctl(&["repair"]).ok()?;
        Some(done["health"]["missing"] == 0 && done["health"]["moves"] == 0)
    };
    while is_done() != Some(true) {
        ensure!(start.elapsed().as_secs() < 600, "not repaired in ten minutes");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Ok(())
}
