//! A unified kernel image: kernel, initramfs and command line in one file that UEFI starts, signed as a whole (UAPI group, "Unified
//! Kernel Image"). For organisations whose machines know their key; it needs no GRUB, and so no `next-server`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::package;
use crate::shell;

/// (program, package) for signing.
pub const NEEDS: &[(&str, &str)] = &[("sbsign", "sbsigntool"), ("objcopy", "binutils")];
/// systemd's stub unpacks the sections and starts the kernel.
const STUB: (&str, &str) = ("systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxx64.efi.stub");
/// Sections begin at multiples of this in memory, as the stub's own do.
const ALIGN: u64 = 4096;

/// The key that signs, and its certificate, both PEM.
pub struct Signer {
    key: PathBuf,
    certificate: PathBuf,
    /// The only array whose tickets machines take that start the signed file.
    array: Option<String>,
}

impl Signer {
    /// With a key, and its certificate: given, or beside the key with `.crt` or `.pem` instead of its ending.
    ///
    /// # Errors
    /// If a file is not there.
    pub fn new(key: &Path, certificate: Option<&Path>, array: Option<&str>) -> anyhow::Result<Self> {
        ensure!(key.exists(), "there is no key {}", key.display());
        let beside =
            || ["crt", "pem"].map(|ending| key.with_extension(ending)).into_iter().find(|p| p != key && p.exists());
        let certificate = certificate.map(Path::to_path_buf).or_else(beside);
        let certificate = certificate.with_context(|| {
            format!("which certificate belongs to {}? Give --certificate FILE (PEM)", key.display())
        })?;
        ensure!(certificate.exists(), "there is no certificate {}", certificate.display());
        let is_id = |id: &str| id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
        ensure!(array.is_none_or(is_id), "an array's id is 64 hexadecimal digits, as `coe-ctl status` shows them");
        Ok(Self { key: key.into(), certificate, array: array.map(Into::into) })
    }
}

/// Where the stub's last section ends in memory. `objdump -h` prints a line for each: number, name, size, address, …
fn end_of(stub: &Path) -> anyhow::Result<u64> {
    let listed = shell::output(Command::new("objdump").arg("-h").arg(stub))?;
    let end = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u64::from_str_radix(words.get(at)?, 16).ok();
        words.first()?.parse::<u32>().ok()?;
        Some(number(2)? + number(3)?)
    };
    listed.lines().filter_map(end).max().context("the stub has no sections")
}

/// Put kernel and initramfs together, and sign the whole.
///
/// # Errors
/// If a tool fails, or the key does not fit its certificate.
pub fn build(kernel: &Path, initrd: &Path, signer: &Signer, to: &Path) -> anyhow::Result<()> {
    let stub = package(STUB.0)?.join(STUB.1);
    let work = tempfile::Builder::new().prefix("coe-uki-").tempdir()?;
    let osrel = work.path().join("osrel");
    fs::write(&osrel, "ID=coe-installer\nPRETTY_NAME=coe-installer\n")?;
    // The same for every machine: what one is told, its installer asks the boot server for.
    let options = work.path().join("options");
    let for_all = fs::read_to_string(shell::root().join("pxe-installer/initramfs/kernel-options"))?;
    let array = signer.array.as_ref().map_or(String::new(), |id| format!(" coe.array={id}"));
    fs::write(&options, format!("{}{array}", for_all.trim()))?;
    let sections =
        [(".osrel", osrel), (".cmdline", options), (".linux", kernel.to_path_buf()), (".initrd", initrd.to_path_buf())];
    let unsigned = work.path().join("uki.efi");
    let mut objcopy = Command::new("objcopy");
    let mut at = end_of(&stub)?;
    for (name, file) in &sections {
        at = at.next_multiple_of(ALIGN);
        objcopy.arg("--add-section").arg(format!("{name}={}", file.display()));
        objcopy.arg("--change-section-vma").arg(format!("{name}={at:#x}"));
        at += fs::metadata(file)?.len();
    }
    shell::output(objcopy.arg(&stub).arg(&unsigned)).context("put the signed boot file together")?;
    let mut sign = Command::new("sbsign");
    sign.arg("--key").arg(&signer.key).arg("--cert").arg(&signer.certificate).arg("--output").arg(to).arg(&unsigned);
    shell::output(&mut sign).context("sign the boot file; a key with a passphrase must be decrypted first")?;
    let verified = shell::output(Command::new("sbverify").arg("--cert").arg(&signer.certificate).arg(to))?;
    if !verified.contains("verification OK") {
        bail!("{} does not belong to {}", signer.key.display(), signer.certificate.display());
    }
    Ok(())
}
