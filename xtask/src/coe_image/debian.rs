//! Debian with systemd, as an organisation would begin its own image: network by DHCP, SSH, cloud-init, nothing of one machine in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use super::{MIB, NEEDS, assemble, grub_config};
use crate::netboot::SUITE;
use crate::{setup, shell};

/// What an image is made by: another text may make another image.
pub const DEBIAN_RECIPE: &str = include_str!("debian.rs");
/// Packages beside the kernel and what `minbase` has.
const PACKAGES: &str = "ca-certificates,cloud-init,dbus,e2fsprogs,iproute2,libgcc-s1,openssh-server,systemd-sysv,systemd-resolved,udev,zstd";
/// Nobody reads these on a sample.
const LEFT_OUT: [&str; 4] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];
/// Free space in the image, beside a quarter of what is used.
const SPARE: u64 = 200 * MIB;

const NETWORK: &str = "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n";
const FSTAB: &str = "LABEL=coe-root / ext4 errors=remount-ro 0 1\nLABEL=ESP /boot/efi vfat umask=0077,nofail 0 1\n";
/// What the installer leaves on the disk, or nothing; no search for a cloud.
const CLOUD: &str = "datasource_list: [NoCloud, None]\nnetwork: {config: disabled}\n";

/// What lets machines of one image be told apart must not be in it.
fn nobodys_own(root: &Path) -> anyhow::Result<()> {
    fs::write(root.join("etc/machine-id"), "")?;
    for entry in fs::read_dir(root.join("etc/ssh"))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(entry.path())?;
        }
    }
    for file in ["var/lib/dbus/machine-id", "var/lib/systemd/random-seed"] {
        let _ = fs::remove_file(root.join(file));
    }
    Ok(())
}

fn configure(root: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(root.join("boot/efi"))?;
    fs::write(root.join("etc/fstab"), FSTAB)?;
    fs::write(root.join("etc/hostname"), "coe-debian\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
    fs::write(root.join("etc/systemd/network/80-wired.network"), NETWORK)?;
    fs::write(root.join("etc/cloud/cloud.cfg.d/90-coe.cfg"), CLOUD)?;
    shell::output(Command::new("systemctl").arg("--root").arg(root).args([
        "enable",
        "systemd-networkd",
        "systemd-networkd-wait-online",
        "systemd-resolved",
        "ssh",
    ]))?;
    nobodys_own(root)
}

/// `/boot/vmlinuz-6.1.0-…`, seen from the image's root.
fn boot_file(root: &Path, beginning: &str) -> anyhow::Result<String> {
    let mut names = fs::read_dir(root.join("boot"))?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let name = names.find(|name| name.starts_with(beginning));
    Ok(format!("/boot/{}", name.with_context(|| format!("the image has no {beginning}… in /boot"))?))
}

/// Build the image.
///
/// # Errors
/// If this is not root, whose files an image's are; if a package is missing or a tool fails.
pub fn debian(flavour: &str, out: &Path) -> anyhow::Result<()> {
    if !setup::is_root() {
        bail!("an image's files belong to root, so only root can make them: sudo cargo xtask coe-image");
    }
    setup::need(NEEDS)?;
    setup::need(&[("mmdebstrap", "mmdebstrap")])?;
    let work = tempfile::Builder::new().prefix("coe-image-").tempdir_in(out.parent().unwrap_or(Path::new(".")))?;
    let root = work.path().join("root");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES},linux-image-{flavour}")]);
    mmdebstrap.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    shell::output(mmdebstrap.arg(SUITE).arg(&root)).context("make Debian's root")?;
    configure(&root)?;
    let (kernel, initrd) = (boot_file(&root, "vmlinuz-")?, boot_file(&root, "initrd.img-")?);
    let used = shell::output(Command::new("du").args(["--summarize", "--block-size=1"]).arg(&root))?;
    let used: u64 =
        used.split_whitespace().next().and_then(|n| n.parse().ok()).context("the size of the image's files")?;
    let root_len = (used + used / 4 + SPARE).next_multiple_of(MIB);
    let new = out.with_extension("new");
    assemble(&new, &root, root_len, &grub_config(&kernel, &initrd), work.path())?;
    Ok(fs::rename(new, out)?)
}
