//! File systems that grow with their disk, on disks that hold nothing else; looked at from outside, by their own tools.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::scenarios::{DISK_LEN, deploy_unnamed, know};
use super::{DiskKind, Firmware, Lab};
use crate::setup::tool;
use crate::{sample, shell};

const MIB: u64 = 1 << 20;
/// Type of Windows' reserved partition, of its data, of its recovery partition.
const WINDOWS: [&str; 3] = [
    "E3C9E316-0B5C-4DB8-817D-F92DF00215AE",
    "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
    "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC",
];
/// (program, package) for making and checking them.
pub const NEEDS: &[(&str, &str)] = &[
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ntfs", "ntfs-3g"),
    ("sfdisk", "fdisk"),
    ("sgdisk", "gdisk"),
];

/// A partition: its type, its length in MiB, its file system as a file.
type Part = (&'static str, u64, Option<PathBuf>);

/// A partition in the first MiB, as some tools put one for a PC BIOS: such a disk is named only after its first blocks are written.
const EARLY: &str = "start=34, size=2014, type=21686148-6449-6E6F-744E-656564454649\n";

fn disk(path: &Path, early: &str, parts: &[Part]) -> anyhow::Result<()> {
    let len: u64 = parts.iter().map(|(_, len, _)| len).sum();
    sample::empty(path, (len + 2) * MIB)?;
    let mut start = 1;
    let lines = parts.iter().map(|(kind, len, _)| {
        let line = format!("start={start}MiB, size={len}MiB, type={kind}\n");
        start += len;
        line
    });
    sample::partition(path, &format!("label: gpt\nfirst-lba: 34\n{early}{}", lines.collect::<String>()))?;
    let mut at = MIB;
    for (_, len, contents) in parts {
        if let Some(file) = contents {
            sample::place(file, path, at)?;
        }
        at += len * MIB;
    }
    Ok(())
}

fn ntfs(path: &Path, len: u64, file: &Path) -> anyhow::Result<PathBuf> {
    sample::empty(path, len * MIB)?;
    shell::output(tool("mkfs.ntfs").args(["-F", "-f", "-q"]).arg(path))?;
    shell::output(tool("ntfscp").arg(path).arg(file).arg("/file"))?;
    Ok(path.into())
}

/// Images with XFS, with btrfs, and laid out as Windows does it.
///
/// # Errors
/// If a tool fails.
pub fn images(dir: &Path) -> anyhow::Result<[PathBuf; 3]> {
    let work = tempfile::tempdir_in(dir)?;
    let (folder, file) = (work.path().join("files"), work.path().join("files/file"));
    // As a root has them.
    fs::create_dir_all(folder.join("etc"))?;
    fs::create_dir_all(folder.join("usr"))?;
    fs::write(&file, sample::noise(2, 3_000_000))?;
    let [xfs, btrfs, windows] = ["xfs.img", "btrfs.img", "windows.img"].map(|name| dir.join(name));
    let part = |name: &str| work.path().join(name);
    sample::empty(&part("xfs"), 320 * MIB)?;
    let files = part("xfs-files");
    fs::write(
        &files,
        format!("none\n0 0\nd--755 0 0\nfile ---644 0 0 {}\netc d--755 0 0\n$\nusr d--755 0 0\n$\n$\n", file.display()),
    )?;
    shell::output(tool("mkfs.xfs").arg("-q").arg("-p").arg(&files).arg(part("xfs")))?;
    disk(&xfs, "", &[("L", 320, Some(part("xfs")))])?;
    sample::empty(&part("btrfs"), 160 * MIB)?;
    shell::output(tool("mkfs.btrfs").args(["-q", "--rootdir"]).arg(&folder).arg(part("btrfs")))?;
    disk(&btrfs, EARLY, &[("L", 160, Some(part("btrfs")))])?;
    let (data, recovery) = (ntfs(&part("data"), 96, &file)?, ntfs(&part("recovery"), 24, &file)?);
    let [reserved, basic, winre] = WINDOWS;
    disk(&windows, "", &[(reserved, 16, None), (basic, 96, Some(data)), (winre, 24, Some(recovery))])?;
    Ok([xfs, btrfs, windows])
}

/// A partition of a disk, by number from 1: first byte, bytes, GUID.
fn partition(disk: &Path, number: usize) -> anyhow::Result<(u64, u64, String)> {
    let table: Value = serde_json::from_str(&shell::output(tool("sfdisk").arg("--json").arg(disk))?)?;
    let found = &table["partitiontable"]["partitions"][number - 1];
    let sectors = |field: &str| found[field].as_u64().map(|n| n * 512);
    let uuid = found["uuid"].as_str().unwrap_or_default().to_string();
    Ok((sectors("start").context("a start")?, sectors("size").context("a size")?, uuid))
}

/// Copy a partition into a file of its own.
fn cut_out(disk: &Path, number: usize, to: &Path) -> anyhow::Result<u64> {
    let (start, len, _) = partition(disk, number)?;
    let (from, out) = (File::open(disk)?, File::create(to)?);
    out.set_len(len)?;
    let mut buffer = vec![0; MIB as usize];
    for at in (0..len).step_by(MIB as usize) {
        let here = &mut buffer[..MIB.min(len - at) as usize];
        from.read_exact_at(here, start + at)?;
        if here.iter().any(|b| *b != 0) {
            out.write_all_at(here, at)?;
        }
    }
    Ok(len)
}

/// The number behind a word of what a tool prints.
fn number_behind(text: &str, word: &str) -> anyhow::Result<u64> {
    let rest = text.split_once(word).with_context(|| format!("no {word:?} in {text:?}"))?.1;
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    Ok(digits[..end].parse()?)
}

fn check(kind: &str, image: &Path, disk: &Path) -> anyhow::Result<()> {
    let number = if kind == "xfs" { 1 } else { 2 };
    let verdict = shell::output(tool("sgdisk").arg("--verify").arg(disk))?;
    ensure!(verdict.contains("No problems found"), "{kind}: the table is wrong: {verdict}");
    let file = disk.with_extension("part");
    let len = cut_out(disk, number, &file)?;
    ensure!(len > DISK_LEN - 64 * MIB, "{kind}: the partition has only {len} bytes");
    let has = match kind {
        "xfs" => {
            shell::output(tool("xfs_repair").args(["-n", "-f"]).arg(&file))?;
            let said =
                shell::output(tool("xfs_db").args(["-r", "-f", "-c", "sb 0", "-c", "print dblocks"]).arg(&file))?;
            number_behind(&said, "dblocks")? * 4096
        }
        "btrfs" => {
            shell::output(tool("btrfs").args(["check", "--readonly"]).arg(&file))?;
            let said = shell::output(tool("btrfs").args(["inspect-internal", "dump-super"]).arg(&file))?;
            number_behind(&said, "total_bytes")?
        }
        _ => {
            let said = shell::output(tool("ntfsresize").args(["--info", "--force", "--no-progress-bar"]).arg(&file))?;
            number_behind(&said, "Current volume size:")?
        }
    };
    ensure!(has > len - MIB && has <= len, "{kind}: the file system has {has} bytes of the partition's {len}");
    if kind == "windows" {
        check_recovery(image, disk)?;
    } else {
        ensure!(partition(image, number)?.2 != partition(disk, number)?.2, "{kind}: the partition has no new GUID");
    }
    fs::remove_file(file)?;
    Ok(())
}

/// The recovery partition lies at the end, and its file system is in order and says so.
fn check_recovery(image: &Path, disk: &Path) -> anyhow::Result<()> {
    let ((before, len_before, id), (after, len, id_after)) = (partition(image, 3)?, partition(disk, 3)?);
    ensure!(
        len == len_before && id == id_after && after > before,
        "the recovery partition is at {after}, was at {before}"
    );
    ensure!(after + len > DISK_LEN - 2 * MIB, "the recovery partition is not at the end: {after}");
    let (was, is) = (disk.with_extension("before"), disk.with_extension("after"));
    cut_out(image, 3, &was)?;
    cut_out(disk, 3, &is)?;
    let (mut was_bytes, is_bytes) = (fs::read(&was)?, fs::read(&is)?);
    let place = u32::try_from(after / 512)?.to_le_bytes();
    let copy = was_bytes.len() - 512;
    for at in [0, copy] {
        was_bytes[at + 28..at + 32].copy_from_slice(&place);
    }
    ensure!(was_bytes == is_bytes, "the recovery partition changed on its way");
    let out = Command::new("ntfscat").arg(&is).arg("/file").output()?;
    ensure!(out.stdout == sample::noise(2, 3_000_000), "a file of the recovery partition changed on its way");
    Ok(())
}

/// Install all three at the same time, each on a larger disk.
pub fn grow(lab: &Lab) -> anyhow::Result<()> {
    let mut machines = Vec::new();
    for kind in ["xfs", "btrfs", "windows"] {
        let image = lab.dir().join(kind).with_extension("img");
        let disk = if kind == "xfs" { DiskKind::Scsi } else { DiskKind::Sata };
        let vm = lab.machine(kind, Firmware::Bios).disk_on(disk, DISK_LEN)?;
        know(lab, &vm)?;
        deploy_unnamed(lab, kind, &format!("{kind}:1"), if kind == "windows" { &[] } else { &["--new-guids"] })?;
        let machine = vm.start()?;
        machines.push((kind, image, vm, machine));
    }
    for (kind, image, vm, mut machine) in machines {
        machine.expect("coe: installed; starting", 150)?;
        machine.power_off();
        check(kind, &image, &vm.disks[0].path)?;
    }
    Ok(())
}
