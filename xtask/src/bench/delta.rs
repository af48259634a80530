//! `cargo xtask bench delta`: what a second version of an image costs, against casync on the same pair of images.
//!
//! The userlands are Debian's own packages. The first version is Debian 12 with Git and Python; the second has the programs, Git,
//! Python and Perl of Debian 13 in their place. "In place" rewrites just the changed files in the first version's file system, as
//! a package upgrade does; "made anew" makes the file system again from the newer tree, as image pipelines do.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use clap::Args;

use crate::fleet::{Fleet, Plan};
use crate::{sample, setup, shell};

/// New bytes of a second version: after a package upgrade in place, and with its file system made anew
#[derive(Args)]
pub struct Delta {
    /// zstd level
    #[arg(long, default_value_t = 2)]
    level: u32,
    /// Work in this folder, and use the userlands that an earlier run left there
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Packages beside the essential ones.
const PACKAGES: &str = "git,python3,perl,vim-tiny,openssh-client,gcc-12-base,less,curl";
/// What the upgrade brings from the newer release.
const UPGRADED: &[&str] =
    &["usr/bin", "usr/lib/git-core", "usr/lib/python3", "usr/lib/python3.11", "usr/lib/python3.13", "usr/share/perl"];
const IMAGE_LEN: u64 = 1400 << 20;

fn userland(suite: &str, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        return Ok(());
    }
    println!("unpacking Debian {suite}");
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=extract", "--mode=root", "--include", PACKAGES, suite]).arg(to);
    shell::output(&mut command).map(drop)
}

/// All files and links below a folder, by their path in it.
fn files(root: &Path, below: &Path, out: &mut BTreeMap<PathBuf, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(below)?.flatten() {
        let path = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files(root, &path, out)?;
        } else if kind.is_file() {
            out.insert(path.strip_prefix(root)?.to_path_buf(), path);
        }
    }
    Ok(())
}

/// The second tree: the first, with what is upgraded taken from the newer release.
fn upgrade(old: &Path, newer: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        return Ok(());
    }
    shell::output(Command::new("cp").arg("-a").arg(old).arg(to))?;
    for part in UPGRADED {
        let _ = fs::remove_dir_all(to.join(part));
        if newer.join(part).exists() {
            shell::output(Command::new("cp").arg("-a").arg(newer.join(part)).arg(to.join(part)))?;
        }
    }
    Ok(())
}

/// Rewrite what differs between two trees in an ext4 image of the first. The answer is the number of files.
fn upgrade_in_place(image: &Path, old: &Path, new: &Path) -> anyhow::Result<usize> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    files(old, old, &mut before)?;
    files(new, new, &mut after)?;
    let mut script = Vec::new();
    let mut count = 0;
    for path in before.keys().filter(|p| !after.contains_key(*p)) {
        writeln!(script, "rm \"/{}\"", path.display())?;
        count += 1;
    }
    for (path, source) in &after {
        let same = before.get(path).is_some_and(|b| fs::read(b).ok() == fs::read(source).ok());
        if same {
            continue;
        }
        let (folder, name) = (path.parent().context("a folder")?, path.file_name().context("a name")?);
        if before.contains_key(path) {
            writeln!(script, "rm \"/{}\"", path.display())?;
        }
        let mut at = PathBuf::new();
        for part in folder {
            at.push(part);
            if !old.join(&at).exists() {
                writeln!(script, "mkdir \"/{}\"", at.display())?;
            }
        }
        writeln!(script, "cd \"/{}\"\nwrite \"{}\" \"{}\"", folder.display(), source.display(), name.display())?;
        count += 1;
    }
    let commands = image.with_extension("debugfs");
    fs::write(&commands, script)?;
    shell::output(setup::tool("debugfs").args(["-w", "-f"]).arg(&commands).arg(image))?;
    Ok(count)
}

fn store_len(store: &Path) -> u64 {
    let entries = fs::read_dir(store).into_iter().flatten().flatten();
    entries.map(|e| if e.path().is_dir() { store_len(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) }).sum()
}

/// Bytes that casync adds to a store for an image, at its default of 64 KiB average chunks.
fn casync(store: &Path, image: &Path) -> anyhow::Result<u64> {
    let before = store_len(store);
    let index = image.with_extension("caibx");
    let mut command = Command::new("casync");
    command.args(["make", "--chunk-size=65536", "--store"]).arg(store).arg(&index).arg(image);
    shell::output(&mut command)?;
    Ok(store_len(store) - before)
}

impl Delta {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        setup::need(setup::DISKS)?;
        setup::need(setup::RIVALS)?;
        setup::need(&[("mmdebstrap", "mmdebstrap"), ("debugfs", "e2fsprogs")])?;
        let bin = shell::build(true)?;
        let temporary = tempfile::Builder::new().prefix("coe-delta-").tempdir()?;
        let dir = self.dir.clone().unwrap_or_else(|| temporary.path().to_path_buf());
        let at = |name: &str| dir.join(name);
        fs::create_dir_all(&dir)?;
        userland("bookworm", &at("old"))?;
        userland("trixie", &at("newer"))?;
        upgrade(&at("old"), &at("newer"), &at("new"))?;

        let (first, in_place, anew) = (at("first.img"), at("in-place.img"), at("anew.img"));
        sample::ext4(&first, IMAGE_LEN, &at("old"))?;
        shell::output(Command::new("cp").args(["--sparse=always"]).arg(&first).arg(&in_place))?;
        let changed = upgrade_in_place(&in_place, &at("old"), &at("new"))?;
        sample::ext4(&anew, IMAGE_LEN, &at("new"))?;
        println!("{changed} files differ");

        println!("\n{:<24} {:>12} {:>12} {:>7}", "MB stored and sent", "coe", "casync", "ratio");
        for (name, second) in [("upgraded in place", &in_place), ("file system made anew", &anew)] {
            let array = at("array");
            let plan = Plan { stashes: 4, size: "3GiB".into(), ..Plan::default() };
            let fleet = Fleet::start(&bin, &array, &plan)?;
            let publish = |image: &Path| -> anyhow::Result<f64> {
                let level = self.level.to_string();
                let p = fleet.publish(image, &["--name", "delta", "--level", &level])?;
                p["sealed"].as_f64().context("bytes")
            };
            let store = at("store.castr");
            let ours = (publish(&first)?, publish(second)?);
            let theirs = (casync(&store, &first)? as f64, casync(&store, second)? as f64);
            if second == &in_place {
                print("the first version", ours.0, theirs.0);
            }
            print(name, ours.1, theirs.1);
            drop(fleet);
            fs::remove_dir_all(&array)?;
            fs::remove_dir_all(&store)?;
        }
        Ok(())
    }
}

fn print(name: &str, ours: f64, theirs: f64) {
    println!("{name:<24} {:>12.1} {:>12.1} {:>7.2}", ours / 1e6, theirs / 1e6, ours / theirs);
}
