//! `cargo xtask coe-image`: sample images of an operating system, which boot on BIOS, UEFI and Secure Boot; no loop devices, no mounts.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use clap::Args;

use crate::netboot::{self, initramfs, package};
use crate::setup::{self, tool};
use crate::{sample, shell};

const MIB: u64 = 1 << 20;
/// The first partition holds what a PC BIOS loads, the second what UEFI loads; the last is the root and can grow.
const BIOS_AT: u64 = MIB;
const ESP_AT: u64 = 2 * MIB;
const ESP_LEN: u64 = 40 * MIB;
const ROOT_AT: u64 = ESP_AT + ESP_LEN;
/// What a virtual machine's disk and network need.
const MICRO_MODULES: &[&str] =
    &["drivers/virtio", "drivers/block/virtio_blk", "drivers/net/virtio_net", "drivers/nvme/host", "drivers/ata/ahci"];
/// (program, package) for making images.
pub const NEEDS: &[(&str, &str)] =
    &[("grub-mkimage", "grub-common"), ("mkfs.vfat", "dosfstools"), ("mcopy", "mtools"), ("sfdisk", "fdisk")];

/// Build a sample image that boots on BIOS, UEFI and Secure Boot
#[derive(Args)]
pub struct CoeImage {
    /// A tiny one for tests: kernel, busybox, and what coe-stash needs
    #[arg(long, required = true)]
    micro: bool,
    /// Where it goes
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

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
    fs::write(root.join("boot/grub/grub.cfg"), GRUB)?;
    Ok(())
}

/// How GRUB starts either image.
const GRUB: &str = "set timeout=0\nsearch --no-floppy --label coe-root --set=root\n\
linux /boot/vmlinuz console=tty0 console=ttyS0,115200 panic=10 quiet root=LABEL=coe-root\ninitrd /boot/initrd.img\nboot\n";

/// What UEFI starts: Debian's signed shim and GRUB, which Secure Boot lets pass.
fn esp(work: &Path) -> anyhow::Result<PathBuf> {
    let esp = work.join("esp");
    sample::empty(&esp, ESP_LEN)?;
    shell::output(tool("mkfs.vfat").args(["-n", "ESP", "-i", "C0EC0E01"]).arg(&esp))?;
    let config = work.join("grub.cfg");
    fs::write(&config, GRUB)?;
    let files = [
        (package("shim-signed")?.join("usr/lib/shim/shimx64.efi.signed"), "::/EFI/BOOT/BOOTX64.EFI"),
        (
            package("grub-efi-amd64-signed")?.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"),
            "::/EFI/BOOT/grubx64.efi",
        ),
        (config, "::/EFI/debian/grub.cfg"),
    ];
    shell::output(tool("mmd").arg("-i").arg(&esp).args(["::/EFI", "::/EFI/BOOT", "::/EFI/debian"]))?;
    for (from, to) in files {
        shell::output(tool("mcopy").arg("-i").arg(&esp).arg(&from).arg(to))?;
    }
    Ok(esp)
}

/// What a PC BIOS starts: GRUB's boot sector in the MBR, the rest of it in a partition of its own.
fn bios(disk: &Path, work: &Path) -> anyhow::Result<()> {
    let grub = package("grub-pc-bin")?.join("usr/lib/grub/i386-pc");
    let core = work.join("core.img");
    let modules = [
        "biosdisk",
        "part_gpt",
        "ext2",
        "normal",
        "linux",
        "search",
        "search_label",
        "configfile",
        "serial",
        "terminal",
    ];
    let mut make = Command::new("grub-mkimage");
    make.arg("-d").arg(&grub).args(["-O", "i386-pc", "-p", "(hd0,gpt3)/boot/grub", "-o"]).arg(&core).args(modules);
    shell::output(&mut make)?;
    let mut core = fs::read(core)?;
    let mut boot = fs::read(grub.join("boot.img"))?;
    let first = BIOS_AT / 512;
    // Where the boot sector finds the first sector of the core (grub-core/boot/i386/pc/boot.S, kernel_sector at 0x5c).
    boot[0x5c..0x64].copy_from_slice(&first.to_le_bytes());
    // Where that sector finds the others: sector, count, segment to load to (diskboot.S, blocklist_default_start).
    let sectors = core.len().div_ceil(512) as u16 - 1;
    core[500..508].copy_from_slice(&(first + 1).to_le_bytes());
    core[508..510].copy_from_slice(&sectors.to_le_bytes());
    core[510..512].copy_from_slice(&0x820u16.to_le_bytes());
    let disk = OpenOptions::new().write(true).open(disk)?;
    // The protective MBR's partition table lies behind byte 440.
    disk.write_all_at(&boot[..440], 0)?;
    disk.write_all_at(&core, BIOS_AT)?;
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
    assemble(out, &root, 400 * MIB, work.path())
}

/// Put a root's folder on a disk that boots.
fn assemble(out: &Path, root: &Path, root_len: u64, work: &Path) -> anyhow::Result<()> {
    let ext4 = work.join("ext4");
    sample::ext4(&ext4, root_len, root)?;
    shell::output(tool("e2label").arg(&ext4).arg("coe-root"))?;
    let _ = fs::remove_file(out);
    sample::empty(out, ROOT_AT + root_len + MIB)?;
    let script = format!(
        "label: gpt\nstart={}, size={}, type=21686148-6449-6E6F-744E-656564454649, name=bios\nstart={}, size={}, type=U, name=ESP\nstart={}, size={}, type=L, name=root\n",
        BIOS_AT / 512,
        (ESP_AT - BIOS_AT) / 512,
        ESP_AT / 512,
        ESP_LEN / 512,
        ROOT_AT / 512,
        root_len / 512
    );
    sample::partition(out, &script)?;
    sample::place(&esp(work)?, out, ESP_AT)?;
    sample::place(&ext4, out, ROOT_AT)?;
    bios(out, work)
}

impl CoeImage {
    /// Run it.
    ///
    /// # Errors
    /// See [`micro`].
    pub fn run(&self) -> anyhow::Result<()> {
        let out = self.out.clone().unwrap_or_else(|| shell::target_dir().join("micro.img"));
        micro(&out, 0)?;
        println!("{}; publish it: coe-ctl publish {}", out.display(), out.display());
        Ok(())
    }
}
