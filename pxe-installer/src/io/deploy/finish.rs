//! What makes an installed disk this machine's own: its name, its identity, its place in the array.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, bail};
use images::disk::Layout;
use protocol::message::boot::{Deployment, StashJoin};

use super::partitions::{Mounted, ROOT, grow, mount_root, partitions, read_table_again, show_partitions, tool};
use crate::first_blocks::FIRST_LEN;
use crate::io::install::Proven;

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

/// A user of its own, who may write its own folder, speak on the network, and nothing else; behind everything else on disk and processor.
/// `systemd.exec(5)` has the words.
const STASH_UNIT: &str = "[Unit]
Description=Stash of the array
Wants=network-online.target
After=network-online.target
ConditionPathExists=!/var/lib/coe-stash/left

[Service]
EnvironmentFile=/etc/coe-stash/join.env
ExecStartPre=/bin/sh -c 'test -e /var/lib/coe-stash/settings.json || /usr/local/bin/coe-stash join \"$COE_STASH_TICKET\" --size \"$COE_STASH_SIZE\"'
ExecStart=/usr/local/bin/coe-stash serve
Restart=on-failure
RestartSec=10
DynamicUser=yes
StateDirectory=coe-stash
StateDirectoryMode=0700
UMask=0077
IOSchedulingClass=idle
CPUSchedulingPolicy=idle
Nice=10
ProtectHome=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
";

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
    grow(disk, image).context("let the last file system grow")?;
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
