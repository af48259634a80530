//! Stashes whose owners are not quiet: one is resized all the time, one is unplugged and plugged in again, the disk of one is filled
//! and emptied by others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::fleet::Fleet;
use crate::{setup, shell};

/// How long a state lasts: long enough for a stash to notice, and for its disk to be given space back.
const LASTS: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

/// What was done to them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Resized, larger and smaller.
    pub resized: u64,
    /// Unplugged.
    pub unplugged: u64,
    /// Disk filled.
    pub filled: u64,
    /// Times that a stash gave space back to a full disk.
    pub gave_back: u64,
}

/// Owners at work, until they are told to stop.
pub struct Restless {
    stop: Arc<AtomicBool>,
    owners: Vec<JoinHandle<anyhow::Result<Counts>>>,
}

/// A file system of its own, with a stash on it.
pub struct SmallDisk {
    /// Number of the stash.
    pub stash: usize,
    at: PathBuf,
}

impl SmallDisk {
    /// Add a stash of 512 MiB on a disk of 900 MiB, of which 128 MiB are to stay free. `None` without root.
    ///
    /// # Errors
    /// If it cannot be mounted, or does not join.
    pub fn add(fleet: &mut Fleet) -> anyhow::Result<Option<Self>> {
        if !setup::is_root() {
            println!("NOTE: not root, so no small disk can be mounted: nobody's disk is filled");
            return Ok(None);
        }
        let stash = fleet.stashes.len();
        let at = fleet.dir().join(format!("stash-{stash}"));
        fs::create_dir_all(&at)?;
        shell::output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=900m", "tmpfs"]).arg(&at))?;
        let small = Self { stash, at };
        fleet.add_stash("512MiB")?;
        fleet.kill_stash(stash);
        let settings = small.at.join("settings.json");
        let mut value: Value = serde_json::from_slice(&fs::read(&settings)?)?;
        value["min_free"] = (128 * MIB).into();
        fs::write(&settings, serde_json::to_vec(&value)?)?;
        fleet.start_stash(stash)?;
        Ok(Some(small))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.at).status();
    }
}

fn resize(program: &Path, dir: &Path, stop: &AtomicBool) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    for size in ["768MiB", "512MiB", "1GiB", "1152MiB"].iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // It may be too full for that just now; then it says so and stays as it is.
        let done = Command::new(program).args(["resize", size, "--json", "--dir"]).arg(dir).output()?;
        counts.resized += u64::from(done.status.success());
        std::thread::sleep(LASTS / 10);
    }
    Ok(counts)
}

fn unplug(dir: &Path, stop: &AtomicBool) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let (here, away) = (dir.join(".stash"), dir.join(".unplugged"));
    while !stop.load(Ordering::Relaxed) {
        fs::rename(&here, &away).context("unplug")?;
        std::thread::sleep(LASTS);
        fs::rename(&away, &here).context("plug in")?;
        counts.unplugged += 1;
        std::thread::sleep(LASTS);
    }
    Ok(counts)
}

fn fill(dir: &Path, stop: &AtomicBool) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let (filler, stash) = (dir.join("filler"), dir.join(".stash"));
    while !stop.load(Ordering::Relaxed) {
        let before = fs::metadata(&stash)?.len();
        // 350 MiB beside 512 of the stash leave less than seven tenths of what is to stay free.
        fs::write(&filler, vec![1; (350 * MIB) as usize]).context("fill the disk")?;
        std::thread::sleep(2 * LASTS);
        counts.gave_back += u64::from(fs::metadata(&stash)?.len() < before);
        fs::remove_file(&filler)?;
        counts.filled += 1;
        std::thread::sleep(2 * LASTS);
    }
    Ok(counts)
}

impl Restless {
    /// Let the owners of two stashes, and of one on a small disk, begin. `program` is `coe-stash`.
    #[must_use]
    pub fn start(program: &Path, fleet: &Fleet, resized: usize, unplugged: usize, filled: Option<&SmallDisk>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let dir = |stash: usize| fleet.stashes[stash].dir.clone();
        let mut owners = Vec::new();
        let (program, at, flag) = (program.to_path_buf(), dir(resized), stop.clone());
        owners.push(std::thread::spawn(move || resize(&program, &at, &flag)));
        let (at, flag) = (dir(unplugged), stop.clone());
        owners.push(std::thread::spawn(move || unplug(&at, &flag)));
        if let Some(small) = filled {
            let (at, flag) = (dir(small.stash), stop.clone());
            owners.push(std::thread::spawn(move || fill(&at, &flag)));
        }
        Self { stop, owners }
    }

    /// Tell them to stop; everything is plugged in, and no disk is full, when this returns.
    ///
    /// # Errors
    /// What went wrong for them.
    ///
    /// # Panics
    /// If one panicked.
    pub fn stop(self) -> anyhow::Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Counts::default();
        for owner in self.owners {
            let counts = owner.join().expect("an owner does not panic")?;
            sum.resized += counts.resized;
            sum.unplugged += counts.unplugged;
            sum.filled += counts.filled;
            sum.gave_back += counts.gave_back;
        }
        Ok(sum)
    }
}
