//! Sample disks, made of this machine's own files, without root, loop devices or mounts.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;

use crate::setup::tool;
use crate::shell;

const MIB: u64 = 1 << 20;

/// Copy files below `from` until `budget` bytes are there; deterministic for an unchanged machine.
fn collect(from: &Path, to: &Path, budget: &mut u64) -> anyhow::Result<()> {
    let mut entries: Vec<_> =
        fs::read_dir(from).with_context(|| format!("read {}", from.display()))?.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (Ok(meta), target) = (entry.metadata(), to.join(entry.file_name())) else {
            continue;
        };
        if meta.is_dir() {
            fs::create_dir_all(&target)?;
            collect(&entry.path(), &target, budget)?;
        } else if meta.is_file() && meta.len() <= *budget && fs::copy(entry.path(), &target).is_ok() {
            *budget -= meta.len();
        }
        if *budget < 4096 {
            break;
        }
    }
    Ok(())
}

/// A folder with about `len` bytes of this machine's own programs and libraries.
///
/// # Errors
/// If files cannot be copied.
pub fn tree(folder: &Path, len: u64) -> anyhow::Result<()> {
    let mut budget = len;
    for source in ["/usr/bin", "/usr/lib", "/usr/share"] {
        let target = folder.join(&source[1..]);
        fs::create_dir_all(&target)?;
        collect(Path::new(source), &target, &mut budget)?;
    }
    Ok(())
}

/// An empty file of a length.
///
/// # Errors
/// The file system's.
pub fn empty(path: &Path, len: u64) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    Ok(file.set_len(len)?)
}

/// Write a partition table from a script of `sfdisk`.
///
/// # Errors
/// If `sfdisk` refuses it.
pub fn partition(disk: &Path, script: &str) -> anyhow::Result<()> {
    let mut child = tool("sfdisk").arg("--quiet").arg(disk).stdin(Stdio::piped()).spawn().context("start sfdisk")?;
    child.stdin.take().context("sfdisk reads a script")?.write_all(script.as_bytes())?;
    anyhow::ensure!(child.wait()?.success(), "sfdisk refused the table");
    Ok(())
}

/// Copy a file's data, without its holes, into a disk at an offset.
///
/// # Errors
/// The file system's.
pub fn place(part: &Path, disk: &Path, offset: u64) -> anyhow::Result<()> {
    let mut from = File::open(part)?;
    let mut to = OpenOptions::new().write(true).open(disk)?;
    let mut buffer = vec![0; MIB as usize];
    let mut at = 0;
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        if buffer[..len].iter().any(|&b| b != 0) {
            to.seek(SeekFrom::Start(offset + at))?;
            to.write_all(&buffer[..len])?;
        }
        at += len as u64;
    }
}

/// A FAT file system in a file, with a few files.
///
/// # Errors
/// If the tools fail.
pub fn fat(path: &Path, len: u64, sector: u64) -> anyhow::Result<()> {
    empty(path, len)?;
    shell::output(tool("mkfs.vfat").args(["-n", "ESP", "-i", "C0EC0E00", "-S", &sector.to_string()]).arg(path))?;
    let image = path.as_os_str();
    shell::output(tool("mmd").arg("-i").arg(image).args(["::/EFI", "::/EFI/BOOT"]))?;
    shell::output(tool("mcopy").arg("-i").arg(image).args(["/bin/sh", "::/EFI/BOOT/BOOTX64.EFI"]))?;
    Ok(())
}

/// An ext4 file system in a file, with a folder's contents.
///
/// # Errors
/// If the tools fail.
pub fn ext4(path: &Path, len: u64, contents: &Path) -> anyhow::Result<()> {
    empty(path, len)?;
    let ids = "hash_seed=00000000-0000-0000-0000-00000000c0e0";
    let mut command = tool("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-U", "00000000-0000-0000-0000-00000000c0e1", "-E", ids, "-d"]);
    shell::output(command.arg(contents).arg(path))?;
    Ok(())
}

/// The sample disk of the demo: GPT, an EFI system partition, an ext4 root with about `files_len` bytes of files, and as much
/// free space again.
///
/// # Errors
/// If the tools fail.
pub fn disk(path: &Path, files_len: u64) -> anyhow::Result<()> {
    let work = tempfile::tempdir_in(path.parent().unwrap_or(Path::new(".")))?;
    let in_work = |name: &str| -> PathBuf { work.path().join(name) };
    let (esp_len, root_len) = (64 * MIB, (files_len * 2).next_multiple_of(MIB) + 64 * MIB);
    tree(&in_work("root"), files_len)?;
    fat(&in_work("esp"), esp_len, 512)?;
    ext4(&in_work("ext4"), root_len, &in_work("root"))?;
    empty(path, MIB + esp_len + root_len + 2 * MIB)?;
    let script = format!(
        "label: gpt\nstart=1MiB, size={}MiB, type=U, name=ESP\nsize={}MiB, type=L, name=root\n",
        esp_len / MIB,
        root_len / MIB
    );
    partition(path, &script)?;
    place(&in_work("esp"), path, MIB)?;
    place(&in_work("ext4"), path, MIB + esp_len)
}

/// Bytes that nobody can compress or guess, from a seed: a simple xorshift is enough for that.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    out.truncate(len);
    out
}
