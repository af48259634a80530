//! `cargo xtask coe-image`: sample images of an operating system, which boot on BIOS, UEFI and Secure Boot; no loop devices, no mounts.

mod debian;
mod micro;

pub use debian::{DEBIAN_RECIPE, debian};
pub use micro::micro;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::netboot::package;
use crate::setup::tool;
use crate::{sample, shell};

const MIB: u64 = 1 << 20;
/// The first partition holds what a PC BIOS loads, the second what UEFI loads; the last is the root and can grow.
const BIOS_AT: u64 = MIB;
const ESP_AT: u64 = 2 * MIB;
const ESP_LEN: u64 = 40 * MIB;
const ROOT_AT: u64 = ESP_AT + ESP_LEN;
/// (program, package) for making images.
pub const NEEDS: &[(&str, &str)] =
    &[("grub-mkimage", "grub-common"), ("mkfs.vfat", "dosfstools"), ("mcopy", "mtools"), ("sfdisk", "fdisk")];

/// Build a sample image of Debian with systemd, which boots on BIOS, UEFI and Secure Boot
#[derive(Args)]
#[command(after_help = "Examples:\n  sudo cargo xtask coe-image --out debian.img\n  cargo xtask coe-image --micro")]
pub struct CoeImage {
    /// A tiny one for tests instead: kernel, busybox, and what coe-stash needs
    #[arg(long)]
    micro: bool,
    /// Kernel: amd64 has drivers for real hardware, cloud-amd64 only for virtual machines
    #[arg(long, default_value = "amd64", value_parser = ["amd64", "cloud-amd64"], conflicts_with = "micro")]
    flavour: String,
    /// Where it goes
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// How GRUB starts an image, from BIOS and from UEFI alike.
fn grub_config(kernel: &str, initrd: &str) -> String {
    format!(
        "set timeout=0\nsearch --no-floppy --label coe-root --set=root\n\
         linux {kernel} console=tty0 console=ttyS0,115200 panic=10 quiet root=LABEL=coe-root\ninitrd {initrd}\nboot\n"
    )
}

/// What UEFI starts: Debian's signed shim and GRUB, which Secure Boot lets pass.
fn esp(grub: &str, work: &Path) -> anyhow::Result<PathBuf> {
    let esp = work.join("esp");
    sample::empty(&esp, ESP_LEN)?;
    shell::output(tool("mkfs.vfat").args(["-n", "ESP", "-i", "C0EC0E01"]).arg(&esp))?;
    let config = work.join("grub.cfg");
    fs::write(&config, grub)?;
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

/// Put a root's folder on a disk that boots with this configuration of GRUB.
fn assemble(out: &Path, root: &Path, root_len: u64, grub: &str, work: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(root.join("boot/grub"))?;
    fs::write(root.join("boot/grub/grub.cfg"), grub)?;
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
    sample::place(&esp(grub, work)?, out, ESP_AT)?;
    sample::place(&ext4, out, ROOT_AT)?;
    bios(out, work)
}

impl CoeImage {
    /// Run it.
    ///
    /// # Errors
    /// If a package is missing or a tool fails.
    pub fn run(&self) -> anyhow::Result<()> {
        let name = if self.micro { "micro.img" } else { "debian.img" };
        let out = self.out.clone().unwrap_or_else(|| shell::target_dir().join(name));
        if self.micro {
            micro(&out, 0)?;
        } else {
            debian(&self.flavour, &out)?;
        }
        println!("{}; publish it: coe-ctl publish {}", out.display(), out.display());
        Ok(())
    }
}
