//! The initramfs: a small Debian, the installer, and the drivers of real machines.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::{SUITE, cache, firmware, modules, package};
use crate::shell;

/// Debian packages in the initramfs, with what they depend on.
const PACKAGES: &str =
    "base-files,btrfs-progs,busybox-static,e2fsprogs,iproute2,kmod,libc6,libgcc-s1,ntfs-3g,udev,xfsprogs";
/// What nobody looks at in an initramfs.
const LEFT_OUT: &[&str] = &[
    "boot",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/bash-completion",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/common-licenses",
    "usr/share/perl5",
    "usr/share/initramfs-tools",
    "lib/systemd/network",
    "lib/systemd/system",
    "lib/udev/hwdb.d",
    "usr/include",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/bin/perl",
    "usr/share/python3",
    "var",
];
/// What packages bring along for programs that an installer does not run: beginnings of paths.
const LEFT_OUT_FROM: &[&str] = &[
    "usr/bin/dpkg",
    "usr/bin/pdb3",
    "usr/bin/py",
    "usr/lib/python3",
    "usr/lib/valgrind",
    "usr/lib/x86_64-linux-gnu/libdb-",
    "usr/lib/x86_64-linux-gnu/libicu",
    "usr/lib/x86_64-linux-gnu/libsqlite3",
    "usr/lib/x86_64-linux-gnu/libstdc++",
    "usr/sbin/xfs_db",
    "usr/sbin/xfs_scrub",
];
/// zstd level: the kernel decompresses all alike, and a smaller file loads faster.
const LEVEL: &str = "-17";

/// The Debian part, made once for each list of packages.
fn userland() -> anyhow::Result<PathBuf> {
    let folder = cache().join("userland");
    let stamp = cache().join("userland.packages");
    if folder.exists() && fs::read_to_string(&stamp).is_ok_and(|s| s == PACKAGES) {
        return Ok(folder);
    }
    let _ = fs::remove_file(&stamp);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(cache())?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=extract", &format!("--include={PACKAGES}"), SUITE]).arg(&folder);
    shell::output(&mut command).context("make the userland of the initramfs")?;
    fs::write(stamp, PACKAGES)?;
    Ok(folder)
}

fn strip(from: &Path, to: &Path) -> anyhow::Result<()> {
    shell::output(Command::new("strip").arg("-o").arg(to).arg(from)).map(drop)
}

/// Copy modules with what they depend on to `to/lib/modules`, and index them.
///
/// # Errors
/// If a tool is missing or fails.
pub fn copy_modules(kernel: &Path, release: &str, wanted: &[&str], to: &Path) -> anyhow::Result<()> {
    let from = kernel.join("lib/modules").join(release);
    // The package has no modules.dep; depmod makes it where the package was unpacked.
    shell::output(crate::setup::tool("depmod").arg("-b").arg(kernel).arg(release))?;
    let modules = to.join("lib/modules").join(release);
    for module in modules::closure(&from, wanted)? {
        let target = modules.join(&module);
        fs::create_dir_all(target.parent().context("a module has a folder")?)?;
        fs::copy(from.join(&module), target)?;
    }
    for list in ["modules.builtin", "modules.order", "modules.builtin.modinfo"] {
        fs::copy(from.join(list), modules.join(list))?;
    }
    shell::output(crate::setup::tool("depmod").arg("-b").arg(to).arg(release)).map(drop)
}

/// Lay out what goes in beside the userland.
fn overlay(kernel: &Path, release: &str, bin: &Path, to: &Path) -> anyhow::Result<()> {
    copy_modules(kernel, release, modules::INSTALLER, to)?;
    let ours = shell::root().join("pxe-installer/initramfs");
    fs::create_dir_all(to.join("etc"))?;
    fs::create_dir_all(to.join("usr/bin"))?;
    fs::copy(ours.join("init"), to.join("init"))?;
    fs::copy(ours.join("udhcpc.script"), to.join("etc/udhcpc.script"))?;
    fs::copy(package("util-linux")?.join("usr/bin/addpart"), to.join("usr/bin/addpart"))?;
    strip(&bin.join("coe-installer"), &to.join("usr/bin/coe-installer"))?;
    strip(&bin.join("coe-stash"), &to.join("usr/bin/coe-stash"))
}

/// Everything below a folder, in the order of names, as paths relative to it.
fn walk(root: &Path, below: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(root.join(below))?.flatten().map(|e| below.join(e.file_name())).collect();
    entries.sort();
    for path in entries {
        let text = path.to_string_lossy();
        if LEFT_OUT.iter().any(|out| path.starts_with(out)) || LEFT_OUT_FROM.iter().any(|out| text.starts_with(out)) {
            continue;
        }
        found.push(path.clone());
        if fs::symlink_metadata(root.join(&path))?.is_dir() {
            walk(root, &path, found)?;
        }
    }
    Ok(())
}

/// Write files into an archive, all as root's and from the epoch's start: the same files give the same bytes.
fn archive(roots: &[PathBuf], out: &mut impl io::Write) -> anyhow::Result<()> {
    let mut inode = 1;
    let mut seen = std::collections::BTreeSet::new();
    for root in roots {
        let mut paths = Vec::new();
        walk(root, Path::new(""), &mut paths)?;
        for path in paths {
            let full = root.join(&path);
            let meta = fs::symlink_metadata(&full)?;
            if meta.is_dir() && !seen.insert(path.clone()) {
                continue;
            }
            let contents = if meta.is_symlink() {
                fs::read_link(&full)?.into_os_string().into_encoded_bytes()
            } else if meta.is_file() {
                fs::read(&full)?
            } else if meta.is_dir() {
                Vec::new()
            } else {
                continue;
            };
            let name = path.to_str().with_context(|| format!("{} is not text", path.display()))?;
            let mode = meta.mode() & 0o170_000 | meta.permissions().mode() & 0o755;
            let entry = cpio::newc::Builder::new(name).ino(inode).mode(mode).mtime(0).nlink(1);
            let mut writer = entry.write(&mut *out, u32::try_from(contents.len())?);
            writer.write_all(&contents)?;
            writer.finish()?;
            inode += 1;
        }
    }
    // The kernel wants a console before anything is mounted.
    let console =
        cpio::newc::Builder::new("dev/console").ino(inode).mode(0o020_600).nlink(1).rdev_major(5).rdev_minor(1);
    console.write(&mut *out, 0).finish()?;
    cpio::newc::trailer(out)?;
    Ok(())
}

/// Build the installer's.
///
/// # Errors
/// If a tool is missing or fails.
pub fn build(kernel: &Path, release: &str, free_only: bool, bin: &Path, to: &Path) -> anyhow::Result<()> {
    let userland = userland()?;
    let work = tempfile::Builder::new().prefix("coe-initramfs-").tempdir()?;
    overlay(kernel, release, bin, work.path())?;
    if !free_only {
        firmware::copy(work.path())?;
    }
    write(&[userland, work.path().to_path_buf()], to)
}

/// Archive and compress folders, laid over each other.
///
/// # Errors
/// If zstd is missing or fails.
pub fn write(roots: &[PathBuf], to: &Path) -> anyhow::Result<()> {
    let mut zstd = Command::new("zstd");
    zstd.args(["-q", "-f", "-T0", LEVEL, "-o"]).arg(to).stdin(Stdio::piped());
    let mut child = zstd.spawn().context("start zstd")?;
    let mut out = io::BufWriter::new(child.stdin.take().context("zstd has an input")?);
    archive(roots, &mut out)?;
    out.flush()?;
    drop(out);
    if !child.wait()?.success() {
        bail!("zstd failed");
    }
    File::open(to)?.sync_all()?;
    Ok(())
}
