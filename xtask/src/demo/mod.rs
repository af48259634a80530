//! `cargo xtask demo`: the main job, start to end, without root.

mod mirror;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use crate::fleet::{Fleet, Plan};
use crate::restless::{Restless, SmallDisk};
use crate::shell::mb;
use crate::{compare, sample, setup, shell};

/// Publish a disk into eight stashes, kill as many as may be lost, install from the rest, and compare
#[derive(Args)]
pub struct Demo {
    /// Use this image instead of a sample
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Files on the sample's root, MB
    #[arg(long, default_value_t = 400, value_name = "MB")]
    sample_mb: u64,
    /// Number of stashes
    #[arg(long, default_value_t = 8)]
    stashes: usize,
    /// Delete the controller's mass storage before the installation
    #[arg(long)]
    without_mass_storage: bool,
    /// Kill the controller and delete its folder; install, recover a new one from the clients, publish and install again
    #[arg(long, conflicts_with_all = ["without_mass_storage", "keep"])]
    controller_dies: bool,
    /// While it runs, one stash is resized all the time, one is unplugged now and then, and one's disk is filled by others
    #[arg(long, conflicts_with_all = ["controller_dies", "keep"])]
    restless: bool,
    /// Leave the array running
    #[arg(long)]
    keep: bool,
    /// Work in this folder instead of a temporary one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

fn step(text: &str) {
    println!("\n== {text}");
}

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or(0.0)
}

impl Demo {
    /// Run it.
    ///
    /// # Errors
    /// If anything fails, or the installed disk is not the image.
    pub fn run(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        setup::need(setup::DISKS)?;
        step("build the release binaries");
        let bin = shell::build(true)?;
        let temporary = tempfile::Builder::new().prefix("coe-demo-").tempdir()?;
        let dir = self.dir.clone().unwrap_or_else(|| temporary.path().to_path_buf());
        std::fs::create_dir_all(&dir)?;

        let image = match &self.image {
            Some(image) => image.canonicalize().with_context(|| format!("find {}", image.display()))?,
            None => {
                step(&format!("make a sample disk with {} MB of this machine's files", self.sample_mb));
                let path = dir.join("sample.img");
                sample::disk(&path, self.sample_mb * 1_000_000)?;
                path
            }
        };
        let len = std::fs::metadata(&image)?.len();
        let sha256 = shell::output(std::process::Command::new("sha256sum").arg(&image))?;
        let sha256 = sha256.split_whitespace().next().context("a digest")?.to_string();
        println!("{}: {}, sha256 {sha256}", image.display(), mb(len as f64));

        step(&format!("start one controller and {} stashes on loopback, in {}", self.stashes, dir.display()));
        let size = format!("{}MiB", (len / self.stashes as u64 * 2 / (1 << 20) + 256).max(512));
        let mut fleet =
            Fleet::start(&bin, &dir.join("array"), &Plan { stashes: self.stashes, size, ..Plan::default() })?;

        if self.controller_dies {
            return mirror::run(&mut fleet, &dir, &image, self.sample_mb);
        }
        let small = if self.restless { SmallDisk::add(&mut fleet)? } else { None };
        let restless = self.restless.then(|| {
            step(
                "stash-0 is resized, stash-1 is unplugged and plugged in, the disk of one more is filled, all the time",
            );
            Restless::start(&bin.join("coe-stash"), &fleet, 0, 1, small.as_ref())
        });
        step("coe-ctl publish");
        let published = fleet.publish(&image, &["--name", "sample", "--sha256", &sha256])?;
        let name = published["image"].as_str().context("an image")?.to_string();
        println!("{name}: content digest {}", published["content"].as_str().unwrap_or_default());
        let lost = if self.restless {
            "no stash, all the same".into()
        } else {
            let verified = fleet.ctl(&["verify"])?;
            println!("verified: {} pieces proven by their holders", verified["pieces_proven"]);
            self.lose(&mut fleet, &published)?
        };
        step("coe-installer, to a larger disk");
        let target = dir.join("installed.img");
        let installed = fleet.install(&name, &target, (len + (64 << 20)).next_multiple_of(1 << 20))?;

        step("compare the installed disk with the image");
        let verdict = compare::installed(&image, &target)?;
        println!("{verdict}");
        if let Some(restless) = restless {
            let counts = restless.stop()?;
            step("the owners stop; every holder proves its pieces");
            println!("{counts:?}");
            fleet.wait_until_up(fleet.stashes.len())?;
            let verified = fleet.ctl(&["verify"])?;
            println!("verified: {} pieces proven, {} problems", verified["pieces_proven"], verified["problem_count"]);
            if verified["problem_count"] != 0 {
                bail!("pieces that were acknowledged are lost: {}", verified["problems"]);
            }
        }
        summary(&published, &installed, &lost, start);
        drop((fleet.running(), small));
        if self.keep {
            let kept = if self.dir.is_some() { dir } else { temporary.keep() };
            keep(fleet, &bin, &kept, &name);
        }
        Ok(())
    }

    fn lose(&self, fleet: &mut Fleet, published: &Value) -> anyhow::Result<String> {
        let geometry = published["geometry"].as_str().unwrap_or_default();
        let may_lose: usize = geometry.split_once('+').and_then(|(_, m)| m.parse().ok()).unwrap_or(0);
        step(&format!("kill {may_lose} of {} stashes (SIGKILL): {geometry} survives that", self.stashes));
        for number in 0..may_lose {
            // Not the first ones only: one from each end.
            let victim = if number % 2 == 0 { number / 2 } else { self.stashes - 1 - number / 2 };
            println!("stash-{victim} ({})", fleet.stashes[victim].node);
            fleet.kill_stash(victim);
        }
        let mut lost = format!("{may_lose} of {} stashes", self.stashes);
        if self.without_mass_storage {
            std::fs::remove_dir_all(fleet.mass_storage_dir()).context("delete the mass storage")?;
            println!("and deleted the controller's mass storage");
            lost += " and the whole mass storage";
        }
        if fleet.running() == 0 {
            bail!("no stash is left: use more --stashes");
        }
        Ok(lost)
    }
}

fn summary(published: &Value, installed: &Value, lost: &str, start: Instant) {
    let p = |field| number(published, field);
    let i = |field| number(installed, field);
    let rate = |bytes: f64, s: f64| format!("{:.0} MB/s", bytes / 1e6 / s.max(1e-9));
    println!("\n== summary");
    println!(
        "publish    read {} in use of {}; {} unique; {} stored (sealed); {} sent to stashes as {}",
        mb(p("in_use")),
        mb(p("disk_len")),
        mb(p("unique")),
        mb(p("sealed")),
        mb(p("spread")),
        published["geometry"].as_str().unwrap_or_default()
    );
    println!(
        "           {} of {} chunks were known; {:.1} s, {}",
        p("known_chunks"),
        p("chunks"),
        p("took_s"),
        rate(p("in_use"), p("took_s"))
    );
    let stages = published["stages"].as_object().cloned().unwrap_or_default();
    let per_stage = |value: &Value, name: &str| {
        format!("{name} {} ({:.2} s)", rate(number(value, "bytes"), number(value, "cpu_s")), number(value, "cpu_s"))
    };
    let listed: Vec<String> = stages.iter().map(|(name, v)| per_stage(v, name)).collect();
    println!("           one core's speed (CPU time): {}", listed.join(", "));
    println!("lost       {lost}");
    println!(
        "install    {} pieces fetched, {} hedged, {} of {} segments rebuilt by parity",
        i("pieces"),
        i("hedged"),
        i("rebuilt"),
        i("segments")
    );
    let parts: Vec<String> =
        ["verify", "assemble", "open", "decompress", "write"].iter().map(|n| per_stage(&installed[*n], n)).collect();
    println!("           one core's speed (CPU time): {}", parts.join(", "));
    println!(
        "           fetch, verify and write {:.1} s, {}; flush {:.1} s; read back and compare {:.1} s",
        i("write_s"),
        rate(i("written"), i("write_s")),
        i("flush_s"),
        i("compare_s")
    );
    println!("whole run  {:.0} s, building included", start.elapsed().as_secs_f64());
    println!("RESULT     the installed disk is the image");
}

fn keep(fleet: Fleet, bin: &Path, dir: &Path, name: &str) {
    let home = fleet.dir().join("home");
    let pids: Vec<String> = fleet.pids().iter().map(ToString::to_string).collect();
    println!("\nThe array is still running. Try:");
    println!("  export COE_HOME={} PATH={}:$PATH", home.display(), bin.display());
    println!("  coe-ctl status; coe-ctl nodes; coe-ctl show {name}; coe-ctl verify");
    println!("  truncate -s 8G /tmp/disk.img && coe-installer --image {name} --disk /tmp/disk.img");
    println!("Stop it: kill {}; rm -r {}", pids.join(" "), dir.display());
    fleet.keep();
}
