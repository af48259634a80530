//! The micro image: kernel, busybox, and what coe-stash needs. It builds and boots in seconds.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::{MIB, NEEDS, assemble, grub_config};
use crate::netboot::{self, initramfs, package};
use crate::{sample, setup, shell};

/// What a virtual machine's disk and network need.
const MICRO_MODULES: &[&str] =
    &["drivers/virtio", "drivers/block/virtio_blk", "drivers/net/virtio_net", "drivers/nvme/host", "drivers/ata/ahci"];
/// The first program of the micro image's initramfs: find the root, go there.
const MICRO_INITRD: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in virtio_pci virtio_blk virtio_net nvme ahci sd_mod; do modprobe $module 2> /dev/null; done
tries=0
while root=$(findfs LABEL=coe-root 2> /dev/null); [ -z "$root" ] && [ $tries -lt 50 ]; do tries=$((tries + 1)); usleep 200000; done
mount -t ext4 -o ro "$root" /root || { echo "coe-micro: NO ROOT"; exec sh; }
mount --move /dev /root/dev
umount /proc /sys
exec switch_root /root /sbin/init
"#;

/// The micro image's init: says who it is, joins the array.
const MICRO_INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/local/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
mount -o remount,rw /
hostname "$(cat /etc/hostname)"
[ -s /etc/machine-id ] || cat /proc/sys/kernel/random/uuid | tr -d - > /etc/machine-id
say() { echo "coe-micro: $*" > /dev/console; }
root=$(awk '$2 == "/" && $1 != "rootfs" { print $1 }' /proc/mounts)
say "UP $(hostname) root $root blocks $(df -k / | awk 'NR == 2 { print $2 }')"
ip link set lo up
for nic in /sys/class/net/e[a-z]*; do
    [ -e "$nic" ] || continue
    nic=$(basename "$nic")
    ip link set "$nic" up
    udhcpc -i "$nic" -n -q -t 10 -T 1 -s /etc/udhcpc.script > /dev/null 2>&1 && say "NETWORK $nic"
done
if [ -x /usr/local/bin/coe-stash ] && [ -e /etc/coe-stash/join.env ]; then
    . /etc/coe-stash/join.env
    [ -e /var/lib/coe-stash/settings.json ] ||
        coe-stash join "$COE_STASH_TICKET" --size "$COE_STASH_SIZE" --min-free 1MiB > /tmp/join 2>&1
    say "STASH $(tail -n 1 /tmp/join)"
    coe-stash serve > /dev/console 2>&1 &
fi
say READY
while true; do sleep 3600; done
"#;

const UDHCPC: &str = r#"#!/bin/busybox sh
[ "$1" = bound ] && ip addr replace "$ip/${mask:-24}" dev "$interface"
exit 0
"#;

fn executable(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::create_dir_all(path.parent().context("a folder")?)?;
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn micro_root(root: &Path, work: &Path) -> anyhow::Result<()> {
    let busybox = package("busybox-static")?.join("bin/busybox");
    let (kernel, release) = netboot::kernel("cloud-amd64")?;
    for folder in [
        "bin",
        "sbin",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "boot/grub",
        "etc",
        "usr/bin",
        "usr/local/bin",
        "var/lib",
        "lib64",
        "root",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(&busybox, root.join("bin/busybox"))?;
    for applet in shell::output(Command::new(&busybox).arg("--list"))?.lines().filter(|a| *a != "busybox") {
        let _ = symlink("busybox", root.join("bin").join(applet));
    }
    executable(&root.join("sbin/init"), MICRO_INIT)?;
    executable(&root.join("etc/udhcpc.script"), UDHCPC)?;
    fs::write(root.join("etc/hostname"), "coe-micro\n")?;
    fs::write(root.join("etc/machine-id"), "")?;
    // What a dynamic program needs.
    for library in ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"] {
        let from = Path::new("/lib/x86_64-linux-gnu").join(library);
        fs::create_dir_all(root.join("lib/x86_64-linux-gnu"))?;
        fs::copy(&from, root.join("lib/x86_64-linux-gnu").join(library))
            .with_context(|| format!("copy {}", from.display()))?;
    }
    symlink("../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", root.join("lib64/ld-linux-x86-64.so.2"))?;
    let initrd = work.join("initrd");
    fs::create_dir_all(initrd.join("bin"))?;
    fs::copy(&busybox, initrd.join("bin/busybox"))?;
    executable(&initrd.join("init"), MICRO_INITRD)?;
    initramfs::copy_modules(&kernel, &release, MICRO_MODULES, &initrd)?;
    initramfs::write(&[initrd], &root.join("boot/initrd.img"))?;
    fs::copy(kernel.join(format!("boot/vmlinuz-{release}")), root.join("boot/vmlinuz"))?;
    Ok(())
}

/// Build the micro image, with so many bytes in it that nobody needs.
///
/// # Errors
/// If a package is missing or a tool fails.
pub fn micro(out: &Path, extra: usize) -> anyhow::Result<()> {
    setup::need(NEEDS)?;
    let work = tempfile::Builder::new().prefix("coe-image-").tempdir()?;
    let root = work.path().join("root");
    micro_root(&root, work.path())?;
    fs::write(root.join("var/lib/filler"), sample::noise(1, extra))?;
    assemble(out, &root, 400 * MIB, &grub_config("/boot/vmlinuz", "/boot/initrd.img"), work.path())
}
