//! Partitions and file systems of the disk that is installed: making the kernel see them, growing, mounting.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use images::disk::Layout;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Where the root file system is mounted meanwhile.
pub(super) const ROOT: &str = "/run/target";
/// File systems that a root can have.
const ROOT_FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Run a tool of the installer environment.
pub(super) fn tool(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let out = Command::new(program).args(args).output().with_context(|| format!("start {program}"))?;
    if !out.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// A mounted file system; unmounted when this is dropped.
pub(super) struct Mounted;

impl Mounted {
    pub(super) fn new(device: &Path, kind: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(ROOT)?;
        mount(device, ROOT, kind, MountFlags::NOATIME, None).with_context(|| format!("mount {}", device.display()))?;
        Ok(Self)
    }

    /// Have everything on the disk, and let go. Only here does a disk that failed meanwhile say so.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        rustix::fs::syncfs(fs::File::open(ROOT)?)
            .context("make the file system durable: the disk reports write errors")?;
        unmount(ROOT, UnmountFlags::empty()).context("unmount the file system")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(ROOT, UnmountFlags::empty());
    }
}

/// Partitions of a disk, the largest first: a root is seldom small.
pub(super) fn partitions(disk: &Path) -> Vec<PathBuf> {
    let name = disk.file_name().unwrap_or_default();
    let sys = Path::new("/sys/block").join(name);
    let entries = fs::read_dir(&sys).into_iter().flatten().flatten().map(|e| e.path());
    let size =
        |p: &Path| fs::read_to_string(p.join("size")).ok().and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0);
    let mut parts: Vec<PathBuf> = entries.filter(|p| p.join("partition").exists()).collect();
    parts.sort_by_key(|p| std::cmp::Reverse(size(p)));
    parts.iter().filter_map(|p| Some(Path::new("/dev").join(p.file_name()?))).collect()
}

/// What kind of file system a partition holds, by its magic number (kernel, include/uapi/linux/magic.h; NTFS by its boot sector).
fn file_system(device: &Path) -> Option<&'static str> {
    const MAGIC: [(u64, &[u8], &str); 4] = [
        (1080, &[0x53, 0xef], "ext4"),
        (0, b"XFSB", "xfs"),
        (0x1_0040, b"_BHRfS_M", "btrfs"),
        (3, b"NTFS    ", "ntfs"),
    ];
    let file = fs::File::open(device).ok()?;
    let found = MAGIC.iter().find(|(offset, magic, _)| {
        let mut bytes = vec![0; magic.len()];
        file.read_exact_at(&mut bytes, *offset).is_ok() && bytes == *magic
    });
    found.map(|(.., name)| *name)
}

/// The partition that is larger than in the image.
fn grown_partition(disk: &Path, image: &Layout) -> Option<PathBuf> {
    let number = |device: &Path, file: &str| {
        let sys = Path::new("/sys/class/block").join(device.file_name()?).join(file);
        fs::read_to_string(sys).ok()?.trim().parse::<u64>().ok()
    };
    partitions(disk).into_iter().find(|device| {
        let (Some(id), Some(sectors)) = (number(device, "partition"), number(device, "size")) else { return false };
        // The kernel counts in 512 bytes, whatever the disk's sectors are.
        image.partitions.iter().any(|p| u64::from(p.number) == id && p.len < sectors * 512)
    })
}

/// Let the file system of the partition that grew have all of it.
pub(super) fn grow(disk: &Path, image: &Layout) -> anyhow::Result<()> {
    let Some(device) = grown_partition(disk, image) else { return Ok(()) };
    let shown = device.display().to_string();
    match file_system(&device) {
        Some("ext4") => {
            // resize2fs wants to see a check first. Exit code 1 says that something was put right.
            let check = Command::new("e2fsck").args(["-f", "-p", &shown]).output().context("start e2fsck")?;
            if check.status.code().is_none_or(|code| code > 1) {
                bail!("e2fsck {shown}: {}", String::from_utf8_lossy(&check.stdout).trim());
            }
            tool("resize2fs", &[&shown])
        }
        Some("xfs") => {
            let mounted = Mounted::new(&device, "xfs")?;
            tool("xfs_growfs", &[ROOT])?;
            mounted.finish()
        }
        Some("btrfs") => {
            let mounted = Mounted::new(&device, "btrfs")?;
            tool("btrfs", &["filesystem", "resize", "max", ROOT])?;
            mounted.finish()
        }
        Some("ntfs") => tool("ntfsresize", &["--force", "--force", "--no-progress-bar", &shown]),
        _ => Ok(()),
    }
}

/// Mount the file system that holds an operating system.
pub(super) fn mount_root(disk: &Path) -> Option<Mounted> {
    for device in partitions(disk).into_iter().chain([disk.to_path_buf()]) {
        for kind in ROOT_FILE_SYSTEMS {
            let Ok(mounted) = Mounted::new(&device, kind) else { continue };
            if Path::new(ROOT).join("etc").is_dir() && Path::new(ROOT).join("usr").is_dir() {
                return Some(mounted);
            }
            drop(mounted);
        }
    }
    None
}

/// Have the kernel see the new partitions. udev may look at the disk at the same moment, which keeps it busy.
pub(super) fn read_table_again(disk: &str) -> anyhow::Result<()> {
    let mut tries = 0;
    loop {
        tool("udevadm", &["settle", "--timeout=20"])?;
        match tool("blockdev", &["--rereadpt", disk]) {
            Ok(()) => return tool("udevadm", &["settle", "--timeout=20"]),
            Err(error) if tries == 10 => return Err(error),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(500)),
        }
        tries += 1;
    }
}

/// Have the kernel know partitions of a disk that has no table yet (`addpart` of util-linux: BLKPG, in sectors of 512 bytes).
pub(super) fn show_partitions(disk: &str, layout: &Layout) -> anyhow::Result<()> {
    read_table_again(disk)?;
    for p in &layout.partitions {
        let [number, start, len] = [u64::from(p.number), p.offset / 512, p.len / 512].map(|n| n.to_string());
        tool("addpart", &[disk, &number, &start, &len])?;
    }
    tool("udevadm", &["settle", "--timeout=20"])
}
