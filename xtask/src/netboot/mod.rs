//! `cargo xtask netboot`: the boot set (kernel, initramfs, signed loaders) from Debian's packages. The same inputs give the same bytes.

pub mod firmware;
pub mod initramfs;
pub mod modules;
pub mod uki;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use clap::Args;
use sha2::{Digest as _, Sha256};

use crate::{setup, shell};

/// The Debian release that boot sets and images are made of.
pub const SUITE: &str = "bookworm";
/// Real hardware loads it over slow firmware; larger is a mistake.
const INITRAMFS_MAX: u64 = 45_000_000;
/// (program, package) for building a boot set.
pub const NEEDS: &[(&str, &str)] =
    &[("mmdebstrap", "mmdebstrap"), ("zstd", "zstd"), ("depmod", "kmod"), ("strip", "binutils")];
/// Signed loaders: (package, file in it, name in the boot set). shim asks for `grubx64.efi` beside itself.
const LOADERS: &[(&str, &str, &str)] = &[
    ("shim-signed", "usr/lib/shim/shimx64.efi.signed", "shimx64.efi"),
    ("shim-helpers-amd64-signed", "usr/lib/shim/mmx64.efi.signed", "mmx64.efi"),
    ("grub-efi-amd64-signed", "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", "grubx64.efi"),
    ("ipxe", "usr/lib/ipxe/undionly.kpxe", "undionly.kpxe"),
    ("ipxe", "usr/lib/ipxe/snponly.efi", "snponly.efi"),
];

/// Build the boot set from Debian's packages: kernel, initramfs, signed loaders
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask netboot\n  cargo xtask netboot --sign db.key --certificate db.crt\n\nThe same packages give the same bytes, but for uki.efi: a signature contains its time."
)]
pub struct Netboot {
    /// Kernel: amd64 has drivers for real hardware, cloud-amd64 only for virtual machines
    #[arg(long, default_value = "amd64", value_parser = ["amd64", "cloud-amd64"])]
    flavour: String,
    /// Leave out firmware that is not free; some network cards then stay silent
    #[arg(long)]
    free_only: bool,
    /// Also make uki.efi, one file for machines under Secure Boot, signed with this key (PEM) which their firmware knows
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// The key's certificate (PEM) [default: beside the key, ending in .crt or .pem]
    #[arg(long, value_name = "FILE", requires = "sign")]
    certificate: Option<PathBuf>,
    /// Machines that start the signed file take tickets of this array only, whoever answers them (id: `coe-ctl status`)
    #[arg(long, value_name = "ID", requires = "sign")]
    array: Option<String>,
    /// Where the boot set goes
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Folder for what is downloaded and built, which may go at any time.
#[must_use]
pub fn cache() -> PathBuf {
    shell::target_dir().join("netboot")
}

/// Download a package and unpack it; the answer is the folder. A package that is here already is not loaded again.
///
/// # Errors
/// If apt cannot get it.
pub fn package(name: &str) -> anyhow::Result<PathBuf> {
    package_with(&[], name)
}

fn package_with(apt: &[String], name: &str) -> anyhow::Result<PathBuf> {
    let version = shell::output(Command::new("apt-cache").args(apt).args(["policy", name]))?;
    let version = version.lines().find_map(|l| l.trim().strip_prefix("Candidate: ")).map(str::to_owned);
    let version =
        version.with_context(|| format!("apt knows no package {name}: is `apt-get update` done, is this Debian?"))?;
    let folder = cache().join("packages").join(format!("{name}_{}", version.replace(':', "_")));
    if folder.exists() {
        return Ok(folder);
    }
    let work = tempfile::Builder::new().prefix("coe-deb-").tempdir()?;
    shell::output(Command::new("apt-get").args(apt).args(["download", "-q", name]).current_dir(work.path()))?;
    let deb =
        fs::read_dir(work.path())?.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "deb"));
    let deb = deb.with_context(|| format!("apt-get download {name} left no package"))?;
    let unpacked = folder.with_extension("new");
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked)?;
    shell::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
    fs::rename(&unpacked, &folder)?;
    Ok(folder)
}

/// A kernel: its package's folder and its release, such as `6.1.0-56-amd64`.
///
/// # Errors
/// If apt cannot get it.
pub fn kernel(flavour: &str) -> anyhow::Result<(PathBuf, String)> {
    let depends = shell::output(Command::new("apt-cache").args(["depends", &format!("linux-image-{flavour}")]))?;
    let release = depends.lines().find_map(|l| l.trim().strip_prefix("Depends: linux-image-"));
    let release = release.with_context(|| format!("linux-image-{flavour} names no kernel"))?.to_string();
    Ok((package(&format!("linux-image-{release}"))?, release))
}

/// Build a boot set into `out`.
///
/// # Errors
/// If a package is missing, or the initramfs is too large for real hardware.
pub fn build(flavour: &str, free_only: bool, signer: Option<&uki::Signer>, out: &Path) -> anyhow::Result<()> {
    setup::need(NEEDS)?;
    fs::create_dir_all(out)?;
    let bin = shell::build(true)?;
    let (kernel, release) = kernel(flavour)?;
    fs::copy(kernel.join(format!("boot/vmlinuz-{release}")), out.join("vmlinuz"))?;
    for (from, file, name) in LOADERS {
        fs::copy(package(from)?.join(file), out.join(name)).with_context(|| format!("{file} of {from}"))?;
    }
    let initrd = out.join("initrd.img");
    initramfs::build(&kernel, &release, free_only, &bin, &initrd)?;
    let len = fs::metadata(&initrd)?.len();
    if flavour == "amd64" && len > INITRAMFS_MAX {
        bail!("the initramfs has {len} bytes, more than {INITRAMFS_MAX}");
    }
    let uki = out.join("uki.efi");
    match signer {
        Some(signer) => {
            setup::need(uki::NEEDS)?;
            uki::build(&out.join("vmlinuz"), &initrd, signer, &uki)?;
        }
        // One that an earlier run left has another initramfs in it.
        None => drop(fs::remove_file(uki)),
    }
    let mut sums = String::new();
    let mut names: Vec<PathBuf> =
        fs::read_dir(out)?.flatten().map(|e| e.path()).filter(|p| !p.ends_with("SHA256SUMS")).collect();
    names.sort();
    for path in names {
        let digest: String = Sha256::digest(fs::read(&path)?).iter().map(|b| format!("{b:02x}")).collect();
        sums += &format!("{digest}  {}\n", path.file_name().unwrap_or_default().to_string_lossy());
    }
    fs::write(out.join("SHA256SUMS"), sums)?;
    Ok(())
}

impl Netboot {
    /// Run it.
    ///
    /// # Errors
    /// See [`build`].
    pub fn run(&self) -> anyhow::Result<()> {
        let out = self.out.clone().unwrap_or_else(|| shell::target_dir().join("boot-set"));
        let (certificate, array) = (self.certificate.as_deref(), self.array.as_deref());
        let signer = self.sign.as_ref().map(|key| uki::Signer::new(key, certificate, array)).transpose()?;
        build(&self.flavour, self.free_only, signer.as_ref(), &out)?;
        print!("{}", fs::read_to_string(out.join("SHA256SUMS"))?);
        println!("boot set in {}; put it into the array: coe-ctl boot publish {}", out.display(), out.display());
        Ok(())
    }
}
