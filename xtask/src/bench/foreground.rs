//! `cargo xtask bench foreground`: what a program in the foreground loses while stashes on the same disk are read, or scrub.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;

use super::median;
use crate::fleet::{Fleet, Plan};
use crate::{sample, shell};

/// A program that reads and syncs, alone and beside stashes that serve or scrub
///
/// Stashes run behind everything else on disk and processor, as their unit has them (`--plain`: as they are). The controller and whoever asks stand for
/// other machines, and take only processor time that nobody wants.
#[derive(Args)]
pub struct Foreground {
    /// Without the unit's I/O class and scheduling policy
    #[arg(long)]
    plain: bool,
    /// Megabytes of noise that the stashes hold
    #[arg(long, default_value_t = 600)]
    size_mb: u64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Measurements of each kind, taken in turns
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

const FILE_LEN: u64 = 1 << 30;
const READ_LEN: usize = 64 << 10;
const WRITE_LEN: usize = 256 << 10;
/// open(2): past the cache.
const O_DIRECT: i32 = 0x4000;
/// Reads for each write that is synced.
const READS_A_WRITE: u64 = 10;

/// Reads at random places past the cache, and every now and then a write that is synced: operations in a second.
fn work(read: &File, write: &File, seconds: u64) -> anyhow::Result<f64> {
    let mut buffer = vec![0; READ_LEN + 4096];
    let start = buffer.as_ptr().align_offset(4096);
    let bytes = vec![7; WRITE_LEN];
    let (begun, mut count, mut state) = (Instant::now(), 0u64, 1u64);
    while begun.elapsed() < Duration::from_secs(seconds) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 33) % (FILE_LEN / READ_LEN as u64) * READ_LEN as u64;
        read.read_exact_at(&mut buffer[start..start + READ_LEN], at)?;
        count += 1;
        if count.is_multiple_of(READS_A_WRITE) {
            write.write_all_at(&bytes, 0)?;
            write.sync_data()?;
        }
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// A command that is run again and again, until this is dropped.
struct Again(Child);

impl Again {
    fn start(program: &Path, env: &[(&str, &Path)], args: &str) -> anyhow::Result<Self> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("while chrt --idle 0 {} {args} >/dev/null 2>&1; do :; done", program.display()));
        command.envs(env.iter().copied()).stdout(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg("--").arg(format!("-{}", self.0.id())).status();
        let _ = self.0.wait();
    }
}

/// Put all threads of a process behind everything else on the processor and, if it `reads`, on the disk.
fn stand_back(pid: u32, reads: bool) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = entry?.file_name();
        shell::output(Command::new("chrt").args(["--idle", "--pid", "0"]).arg(&thread))?;
        if reads {
            shell::output(Command::new("ionice").args(["--class", "3", "--pid"]).arg(&thread))?;
        }
    }
    Ok(())
}

impl Foreground {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let bin = shell::build(true)?;
        let dir = tempfile::tempdir_in(shell::target_dir())?;
        let plan = Plan { stashes: 3, size: "2GiB".into(), ..Plan::default() };
        let fleet = Fleet::start(&bin, &dir.path().join("array"), &plan)?;
        let image = dir.path().join("image");
        std::fs::write(&image, sample::noise(7, (self.size_mb * 1_000_000) as usize))?;
        fleet.publish(&image, &["--layout", "clients", "--data", "2", "--parity", "1"])?;
        let (file, own) = (dir.path().join("file"), dir.path().join("own"));
        std::fs::write(&file, sample::noise(8, FILE_LEN as usize))?;
        let read = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(&file).context("read past the cache")?;
        let write = File::create(&own)?;
        write.sync_all()?;
        println!(
            "{} MB on 3 stashes; the program reads 64 KiB at random, and syncs 256 KiB after every {READS_A_WRITE}",
            self.size_mb
        );
        let pids = fleet.pids();
        for (at, pid) in pids.iter().enumerate() {
            let is_stash = at > 0;
            if !is_stash || !self.plain {
                stand_back(*pid, is_stash)?;
            }
        }
        let (mut alone, mut served, mut scrubbed) = (Vec::new(), Vec::new(), Vec::new());
        let home = fleet.dir().join("home");
        for _ in 0..self.rounds {
            alone.push(work(&read, &write, self.seconds)?);
            {
                let _again = Again::start(&bin.join("coe-ctl"), &[("COE_HOME", &home)], "verify")?;
                served.push(work(&read, &write, self.seconds)?);
            }
            {
                let each = |stash: &crate::fleet::Stash| {
                    Again::start(&bin.join("coe-stash"), &[("COE_STASH_DIR", &stash.dir)], "scrub --now")
                };
                let _again = fleet.stashes.iter().map(each).collect::<Result<Vec<_>, _>>()?;
                scrubbed.push(work(&read, &write, self.seconds)?);
            }
        }
        let (alone, served, scrubbed) = (median(alone), median(served), median(scrubbed));
        println!("alone: {alone:.0} operations a second");
        for (what, rate) in
            [("while all pieces are proven again and again", served), ("while all three scrub", scrubbed)]
        {
            println!("{what}: {rate:.0}, loses {:.1} % (goal: at most 5 %)", (1.0 - rate / alone) * 100.0);
        }
        Ok(())
    }
}
