//! What makes an installed disk this machine's own: its name, its identity, its place in the array.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::first_blocks::FIRST_LEN;
use crate::io::install::Proven;
use anyhow::{Context as _, bail};
use images::disk::Layout;
use protocol::message::boot::{Deployment, StashJoin};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Where the root file system is mounted meanwhile.
const ROOT: &str = "/run/target";
/// File systems that a root can have.
const ROOT_FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Run a tool of the installer environment.
fn tool(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let out = Command::new(program).args(args).output().with_context(|| format!("start {program}"))?;
    if !out.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// A mounted file system; unmounted when this is dropped.
struct Mounted;

impl Mounted {
    fn new(device: &Path, kind: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(ROOT)?;
        mount(device, ROOT, kind, MountFlags::NOATIME, None).with_context(|| format!("mount {}", device.display()))?;
        Ok(Self)
    }
}

impl Mounted {
    /// Have everything on the disk, and let go. Only here does a disk that failed meanwhile say so.
    fn finish(self) -> anyhow::Result<()> {
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
fn partitions(disk: &Path) -> Vec<PathBuf> {
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
fn grow_file_system(disk: &Path, image: &Layout) -> anyhow::Result<()> {
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
fn mount_root(disk: &Path) -> Option<Mounted> {
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

fn write(path: &str, contents: &str, mode: u32) -> anyhow::Result<()> {
    let path = Path::new(ROOT).join(path);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::write(&path, contents).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// What two machines from one image must not share: systemd makes a new machine id from an empty file, sshd's package new keys.
fn forget_identity() -> anyhow::Result<()> {
    let root = Path::new(ROOT);
    if root.join("etc/machine-id").exists() {
        write("etc/machine-id", "", 0o444)?;
        let _ = fs::remove_file(root.join("var/lib/dbus/machine-id"));
    }
    let _ = fs::remove_file(root.join("var/lib/systemd/random-seed"));
    let mut keys = 0;
    for entry in fs::read_dir(root.join("etc/ssh")).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(entry.path())?;
            keys += 1;
        }
    }
    if keys > 0 {
        write("etc/systemd/system/coe-ssh-keys.service", SSH_KEYS_UNIT, 0o644)?;
        enable("coe-ssh-keys.service", "multi-user.target")?;
    }
    Ok(())
}

const SSH_KEYS_UNIT: &str = "[Unit]\nDescription=Make this machine's own SSH host keys\nBefore=ssh.service\nConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n\n\
[Service]\nType=oneshot\nExecStart=/usr/bin/ssh-keygen -A\n\n[Install]\nWantedBy=multi-user.target\n";

/// What may name partitions by their GUIDs, below a root, a `/boot` or a system partition.
const NAMING_PARTITIONS: [&str; 8] = [
    "etc/fstab",
    "etc/crypttab",
    "etc/kernel/cmdline",
    "etc/default/grub",
    "boot/grub/grub.cfg",
    "boot/grub2/grub.cfg",
    "grub/grub.cfg",
    "grub2/grub.cfg",
];
/// Folders in which each file may.
const NAMING_FOLDERS: [&str; 4] = ["etc/default/grub.d", "boot/loader/entries", "loader/entries", "EFI/debian"];
/// File systems in which that can be.
const NAMING_FILE_SYSTEMS: [&str; 4] = ["ext4", "xfs", "btrfs", "vfat"];

/// Name partitions by their new GUIDs wherever this disk's systems name them.
fn rename_partitions(disk: &Path, renamed: &[(uuid::Uuid, uuid::Uuid)]) -> anyhow::Result<()> {
    if renamed.is_empty() {
        return Ok(());
    }
    for device in partitions(disk) {
        let mounted = NAMING_FILE_SYSTEMS.iter().find_map(|kind| Mounted::new(&device, kind).ok());
        let Some(mounted) = mounted else { continue };
        rename_in_mounted(renamed)?;
        mounted.finish()?;
    }
    Ok(())
}

fn rename_in_mounted(renamed: &[(uuid::Uuid, uuid::Uuid)]) -> anyhow::Result<()> {
    let root = Path::new(ROOT);
    let in_folder = |folder: &&str| fs::read_dir(root.join(folder)).into_iter().flatten().flatten().map(|e| e.path());
    let files = NAMING_PARTITIONS.iter().map(|name| root.join(name)).chain(NAMING_FOLDERS.iter().flat_map(in_folder));
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let mut new = text.clone();
        for (old, guid) in renamed {
            let (old, guid) = (old.to_string(), guid.to_string());
            new = new.replace(&old, &guid).replace(&old.to_uppercase(), &guid);
        }
        if new != text {
            fs::write(&path, new).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

fn enable(unit: &str, target: &str) -> anyhow::Result<()> {
    let wants = Path::new(ROOT).join(format!("etc/systemd/system/{target}.wants"));
    fs::create_dir_all(&wants)?;
    let link = wants.join(unit);
    if !link.exists() {
        symlink(format!("/etc/systemd/system/{unit}"), link)?;
    }
    Ok(())
}

const STASH_UNIT: &str = "[Unit]\nDescription=Stash of the array\nWants=network-online.target\nAfter=network-online.target\n\n\
[Service]\nEnvironmentFile=/etc/coe-stash/join.env\nExecStartPre=/bin/sh -c 'test -e /var/lib/coe-stash/settings.json || /usr/local/bin/coe-stash join \"$COE_STASH_TICKET\" --size \"$COE_STASH_SIZE\"'\n\
ExecStart=/usr/local/bin/coe-stash serve\nRestart=on-failure\nRestartSec=10\nStateDirectory=coe-stash\nStateDirectoryMode=0700\nProtectHome=true\nPrivateTmp=true\n\
NoNewPrivileges=true\n\n[Install]\nWantedBy=multi-user.target\n";

/// Leave the stash service with the right to join.
fn leave_stash(stash: &StashJoin) -> anyhow::Result<()> {
    let binary = Path::new(ROOT).join("usr/local/bin/coe-stash");
    fs::create_dir_all(binary.parent().context("a folder")?)?;
    fs::copy("/usr/bin/coe-stash", &binary).context("copy coe-stash to the disk")?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    let text = format!("COE_STASH_TICKET={}\nCOE_STASH_SIZE={}\n", stash.ticket, stash.size);
    write("etc/coe-stash/join.env", &text, 0o600)?;
    write("etc/systemd/system/coe-stash.service", STASH_UNIT, 0o644)?;
    enable("coe-stash.service", "multi-user.target")
}

/// cloud-init's data source "NoCloud" (cloud-init documentation).
fn leave_cloud_init(deployment: &Deployment, user_data: &str) -> anyhow::Result<()> {
    let name = deployment.hostname.as_ref().unwrap_or(&deployment.host);
    let meta = format!("instance-id: coe-{}\nlocal-hostname: {name}\n", deployment.id);
    write("var/lib/cloud/seed/nocloud/meta-data", &meta, 0o600)?;
    write("var/lib/cloud/seed/nocloud/user-data", user_data, 0o600)
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
fn show_partitions(disk: &str, layout: &Layout) -> anyhow::Result<()> {
    read_table_again(disk)?;
    for p in &layout.partitions {
        let [number, start, len] = [u64::from(p.number), p.offset / 512, p.len / 512].map(|n| n.to_string());
        tool("addpart", &[disk, &number, &start, &len])?;
    }
    tool("udevadm", &["settle", "--timeout=20"])
}

/// Whether an image can be named before it can boot: not if a partition begins in what is held back to the end.
pub(super) fn can_come_first(image: &Layout) -> bool {
    !image.partitions.is_empty() && image.partitions.iter().all(|p| p.offset >= FIRST_LEN)
}

/// Make a proven disk this machine's own before it can boot.
pub(super) fn prepare(disk: &Path, image: &Layout, deployment: &Deployment, proven: &Proven<'_>) -> anyhow::Result<()> {
    let shown = disk.display().to_string();
    show_partitions(&shown, proven.layout)?;
    name(disk, image, deployment, proven.renamed)?;
    tool("udevadm", &["settle", "--timeout=20"])
}

/// The same where the disk can boot already.
pub(super) fn finish(
    disk: &Path,
    image: &Layout,
    deployment: &Deployment,
    renamed: &[(uuid::Uuid, uuid::Uuid)],
) -> anyhow::Result<()> {
    read_table_again(&disk.display().to_string())?;
    name(disk, image, deployment, renamed)
}

fn name(
    disk: &Path,
    image: &Layout,
    deployment: &Deployment,
    renamed: &[(uuid::Uuid, uuid::Uuid)],
) -> anyhow::Result<()> {
    grow_file_system(disk, image).context("let the last file system grow")?;
    let is_asked = deployment.hostname.is_some() || deployment.user_data.is_some() || deployment.stash.is_some();
    rename_partitions(disk, renamed)?;
    let Some(mounted) = mount_root(disk) else {
        if !renamed.is_empty() {
            bail!(
                "no Linux root file system was found on it, so nobody knows what names its partitions: deploy without --new-guids"
            );
        }
        if is_asked {
            bail!("the image was installed, but no Linux root file system was found on it to name the machine in");
        }
        return Ok(());
    };
    forget_identity()?;
    if let Some(name) = &deployment.hostname {
        write("etc/hostname", &format!("{name}\n"), 0o644)?;
    }
    if let Some(user_data) = &deployment.user_data {
        leave_cloud_init(deployment, user_data)?;
    }
    if let Some(stash) = &deployment.stash {
        leave_stash(stash)?;
    }
    mounted.finish()?;
    rustix::fs::sync();
    tool("blockdev", &["--flushbufs", &disk.display().to_string()])
}
