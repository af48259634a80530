//! `cargo xtask bench pipeline`: both pipelines against their ceilings.
//!
//! The ceiling is the cores divided by the CPU that all stages take in all processes: what the machine could do if no core ever
//! waited. It is measured in the same run, so a noisy machine moves both.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use super::median;
use crate::fleet::{Fleet, Plan};
use crate::{sample, setup, shell};

/// MB/s and CPU seconds a GB of each stage of publish and install, beside the ceiling
#[derive(Args)]
pub struct Pipeline {
    /// Files on the sample disk, MB
    #[arg(long, default_value_t = 1000, value_name = "MB")]
    sample_mb: u64,
    /// Runs; medians are printed
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// zstd level
    #[arg(long, default_value_t = 2)]
    level: u32,
    /// Stashes
    #[arg(long, default_value_t = 8)]
    stashes: usize,
    /// Work in this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<std::path::PathBuf>,
}

/// The thread of `coe-stash` that writes and syncs the stash file.
const WRITER_THREAD: &str = "stash-writer";
/// Clock ticks a second in `/proc`: 100 on every Linux that Debian builds.
const TICKS: f64 = 100.0;

/// CPU seconds that a `stat` file in `/proc` tells of.
fn stat_cpu_s(path: &Path) -> Option<f64> {
    let stat = std::fs::read_to_string(path).ok()?;
    // Behind the name, which may hold spaces: state is field 3, utime and stime are 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?) / TICKS)
}

/// CPU seconds of processes so far.
fn cpu_s(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|pid| stat_cpu_s(Path::new(&format!("/proc/{pid}/stat")))).sum()
}

/// CPU seconds so far of the threads that own the stash files: storing, and nothing else.
fn store_cpu_s(stashes: &[u32]) -> f64 {
    let threads = stashes.iter().filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok());
    let threads = threads.flat_map(|dir| dir.flatten().map(|entry| entry.path()));
    let writers = threads.filter(|t| std::fs::read_to_string(t.join("comm")).is_ok_and(|c| c.trim() == WRITER_THREAD));
    writers.filter_map(|thread| stat_cpu_s(&thread.join("stat"))).sum()
}

/// The disk's blocks that are not zero, one behind the other: what zstd gets, so that both see the same bytes.
fn pack(disk: &Path, to: &Path) -> anyhow::Result<u64> {
    let from = File::open(disk)?;
    let mut out = std::io::BufWriter::new(File::create(to)?);
    let len = from.metadata()?.len();
    let (mut at, mut written) = (0, 0);
    let mut buffer = vec![0; 1 << 20];
    while at < len {
        let n = (len - at).min(buffer.len() as u64) as usize;
        from.read_exact_at(&mut buffer[..n], at)?;
        for block in buffer[..n].chunks(4096).filter(|b| b.iter().any(|&x| x != 0)) {
            out.write_all(block)?;
            written += block.len() as u64;
        }
        at += n as u64;
    }
    out.flush()?;
    Ok(written)
}

fn zstd_seconds(file: &Path) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut command = Command::new("zstd");
    command.args(["-q", "-3", "-T2", "-c"]).arg(file).stdout(Stdio::null());
    shell::run(&mut command)?;
    Ok(start.elapsed().as_secs_f64())
}

#[derive(Default)]
struct Side {
    /// (stage, MB/s of one core, CPU-s a GB of image) of each run.
    stages: Vec<Vec<(String, f64)>>,
    mb_s: Vec<f64>,
    ceiling: Vec<f64>,
}

impl Side {
    fn add(&mut self, bytes: f64, wall_s: f64, stages: Vec<(String, f64)>) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let total: f64 = stages.iter().map(|(_, s)| s).sum();
        self.mb_s.push(bytes / 1e6 / wall_s);
        self.ceiling.push(bytes / 1e6 / (total / cores));
        self.stages.push(stages.into_iter().map(|(name, s)| (name, s / (bytes / 1e9))).collect());
    }

    fn print(&self, what: &str) {
        println!("\n{what}: stage, CPU-seconds a GB of image, MB/s that one core could do");
        let names: Vec<&String> = self.stages[0].iter().map(|(name, _)| name).collect();
        for (i, name) in names.iter().enumerate() {
            let cost = median(self.stages.iter().map(|run| run[i].1).collect());
            let speed = if cost < 0.005 { "-".into() } else { format!("{:.0}", 1000.0 / cost) };
            println!("  {name:<44} {cost:>7.2} {speed:>8}");
        }
        let ratios = self.mb_s.iter().zip(&self.ceiling).map(|(a, b)| a / b).collect();
        println!(
            "  whole: {:.0} MB/s; ceiling {:.0} MB/s; ratio {:.2}",
            median(self.mb_s.clone()),
            median(self.ceiling.clone()),
            median(ratios)
        );
    }
}

fn cpu_of(value: &Value) -> f64 {
    value["cpu_s"].as_f64().unwrap_or(0.0)
}

impl Pipeline {
    /// Run it.
    ///
    /// # Errors
    /// If anything fails.
    pub fn run(&self) -> anyhow::Result<()> {
        setup::need(setup::DISKS)?;
        setup::need(setup::RIVALS)?;
        let bin = shell::build(true)?;
        let temporary = tempfile::Builder::new().prefix("coe-bench-").tempdir()?;
        let dir = self.dir.clone().unwrap_or_else(|| temporary.path().to_path_buf());
        let image = dir.join("sample.img");
        sample::disk(&image, self.sample_mb * 1_000_000)?;
        let packed = dir.join("packed");
        let in_use = pack(&image, &packed)? as f64;
        let (mut publish, mut install, mut against_zstd) = (Side::default(), Side::default(), Vec::new());
        for run in 0..self.runs {
            let array = dir.join(format!("array-{run}"));
            let zstd_mb_s = in_use / 1e6 / zstd_seconds(&packed)?;
            let plan = Plan { stashes: self.stashes, size: "2GiB".into(), ..Plan::default() };
            let fleet = Fleet::start(&bin, &array, &plan)?;
            against_zstd.push(self.publish(&fleet, &image, in_use, &mut publish)? / zstd_mb_s);
            self.install(&fleet, &image, &dir.join("target.img"), &mut install)?;
            drop(fleet);
            std::fs::remove_dir_all(&array).context("clean up")?;
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        println!(
            "{:.0} MB in use, {} stashes, zstd level {}, {cores} cores, median of {} runs",
            in_use / 1e6,
            self.stashes,
            self.level,
            self.runs
        );
        publish.print("publish");
        println!("  against `zstd -3 -T2` over the same bytes: {:.2} of its speed", median(against_zstd));
        install.print("install");
        Ok(())
    }

    fn publish(&self, fleet: &Fleet, image: &Path, in_use: f64, side: &mut Side) -> anyhow::Result<f64> {
        let pids = fleet.pids();
        let (controller, stashes) = pids.split_at(1);
        let used = || (cpu_s(controller), cpu_s(stashes), store_cpu_s(stashes));
        let before = used();
        let p = fleet.publish(image, &["--name", "bench", "--level", &self.level.to_string()])?;
        let after = used();
        let store = after.2 - before.2;
        let encode = cpu_of(&fleet.ctl(&["status"])?["encode"]);
        let s = &p["stages"];
        let own: f64 = ["read", "chunk", "hash", "pack", "compress", "seal"].iter().map(|n| cpu_of(&s[*n])).sum();
        let wall_s = p["took_s"].as_f64().context("a time")?;
        side.add(
            in_use,
            wall_s,
            vec![
                ("read, find zeros".into(), cpu_of(&s["read"])),
                ("chunk".into(), cpu_of(&s["chunk"])),
                ("hash".into(), cpu_of(&s["hash"])),
                ("pack".into(), cpu_of(&s["pack"])),
                ("compress".into(), cpu_of(&s["compress"])),
                ("seal, name segment".into(), cpu_of(&s["seal"])),
                ("send (the rest of coe-ctl)".into(), cpu_of(&p) - own),
                ("encode, name fragments (controller)".into(), encode),
                ("receive, mass storage, send (controller)".into(), after.0 - before.0 - encode),
                ("receive, verify (rest of the stashes)".into(), after.1 - before.1 - store),
                ("store (stash files, all stashes)".into(), store),
            ],
        );
        Ok(in_use / 1e6 / wall_s)
    }

    fn install(&self, fleet: &Fleet, image: &Path, target: &Path, side: &mut Side) -> anyhow::Result<()> {
        let len = std::fs::metadata(image)?.len();
        let pids = fleet.pids();
        let before = cpu_s(&pids);
        let i = fleet.install("bench:1", target, len)?;
        let others = cpu_s(&pids) - before;
        let names = ["verify", "assemble", "open", "decompress", "write", "compare"];
        let own: f64 = names.iter().map(|n| cpu_of(&i[*n])).sum();
        let written = i["written"].as_f64().context("bytes")?;
        let wall_s = i["took_s"].as_f64().context("a time")?;
        side.add(
            written,
            wall_s,
            vec![
                ("read, send (all stashes, controller)".into(), others),
                ("fetch (the rest of coe-installer)".into(), cpu_of(&i) - own),
                ("verify fragments".into(), cpu_of(&i["verify"])),
                ("assemble, name segment".into(), cpu_of(&i["assemble"])),
                ("open".into(), cpu_of(&i["open"])),
                ("decompress".into(), cpu_of(&i["decompress"])),
                ("write".into(), cpu_of(&i["write"])),
                ("read back, compare".into(), cpu_of(&i["compare"])),
            ],
        );
        println!("install: write {:.2} s, flush {:.2} s, compare {:.2} s", i["write_s"], i["flush_s"], i["compare_s"]);
        std::fs::remove_file(target)?;
        Ok(())
    }
}
