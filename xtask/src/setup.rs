//! Debian packages that a command needs: installed when we are root, named when we are not.

use std::process::Command;

use anyhow::bail;

use crate::shell;

/// (program, package) for making disks and file systems.
pub const DISKS: &[(&str, &str)] = &[
    ("sfdisk", "fdisk"),
    ("mkfs.vfat", "dosfstools"),
    ("mcopy", "mtools"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkntfs", "ntfs-3g"),
];
/// (program, package) for comparing with others.
pub const RIVALS: &[(&str, &str)] = &[("casync", "casync"), ("zstd", "zstd")];

/// A program in the usual folders. `/usr/sbin` counts although it is not everybody's path.
fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| std::path::Path::new(dir).join(program).exists())
}

/// Whether we are root.
#[must_use]
pub fn is_root() -> bool {
    shell::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Make sure that programs are there.
///
/// # Errors
/// If some are missing and we are not root, or installing fails.
pub fn need(programs: &[(&str, &str)]) -> anyhow::Result<()> {
    let mut packages: Vec<&str> =
        programs.iter().filter(|(p, _)| !is_installed(p)).map(|(_, package)| *package).collect();
    packages.dedup();
    install(&packages)
}

/// Make sure that files of packages are there.
///
/// # Errors
/// If some are missing and we are not root, or installing fails.
pub fn need_files(files: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing = files.iter().filter(|(file, _)| !std::path::Path::new(file).exists());
    install(&missing.map(|(_, package)| *package).collect::<Vec<_>>())
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !is_root() {
        bail!(
            "these Debian packages are missing; install them and run this again:\n  sudo apt-get install {}",
            packages.join(" ")
        );
    }
    eprintln!("installing {}", packages.join(" "));
    shell::output(Command::new("apt-get").args(["update", "-q"]))?;
    let install = ["install", "-y", "-q", "--no-install-recommends"];
    shell::output(Command::new("apt-get").args(install).args(packages).env("DEBIAN_FRONTEND", "noninteractive"))?;
    Ok(())
}

/// A command with `/usr/sbin` in its path, where Debian keeps tools for disks.
#[must_use]
pub fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}
