//! Which kernel modules an installer needs: networks, disks, file systems, and whatever these need.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use anyhow::Context as _;

/// What the installer needs: folders and files under `kernel/`. Everything below a folder counts.
pub const INSTALLER: &[&str] = &[
    "crypto/crc32c_generic",
    "arch/x86/crypto/crc32c-intel",
    "drivers/acpi/nfit",
    "drivers/ata",
    "drivers/block/virtio_blk",
    "drivers/block/loop",
    "drivers/char/hw_random",
    "drivers/firmware/efi",
    "drivers/hid/hid-generic",
    "drivers/hid/usbhid",
    "drivers/hv",
    "drivers/message/fusion",
    "drivers/misc/cardreader",
    "drivers/mmc",
    "drivers/net/ethernet",
    "drivers/net/fjes",
    "drivers/net/hyperv",
    "drivers/net/mdio",
    "drivers/net/phy",
    "drivers/net/usb",
    "drivers/net/virtio_net",
    "drivers/net/vmxnet3",
    "drivers/nvme/host",
    "drivers/pci/controller",
    "drivers/scsi",
    "drivers/ufs",
    "drivers/usb/host",
    "drivers/usb/storage",
    "drivers/virtio",
    "fs/btrfs",
    "fs/efivarfs",
    "fs/ext4",
    "fs/fat",
    "fs/fuse",
    "fs/nls",
    "fs/xfs",
];
/// Large, and never the disk or the network that a client is installed with.
const UNWANTED: &[&str] = &[
    "drivers/net/ethernet/mellanox/mlxsw",
    "drivers/net/ethernet/netronome",
    "drivers/net/ethernet/chelsio/inline_crypto",
    "drivers/net/ethernet/sfc/falcon",
    "drivers/net/ethernet/cavium",
    "drivers/scsi/bfa",
    "drivers/scsi/bnx2fc",
    "drivers/scsi/bnx2i",
    "drivers/scsi/cxgbi",
    "drivers/scsi/fcoe",
    "drivers/scsi/lpfc",
    "drivers/scsi/qedf",
    "drivers/scsi/qedi",
    "drivers/scsi/qla2xxx",
    "drivers/scsi/qla4xxx",
    "drivers/scsi/pcmcia",
    "drivers/scsi/elx",
    "drivers/scsi/csiostor",
];

/// `kernel/drivers/net/a.ko` without its ending, below `kernel/`.
fn plain(path: &str) -> &str {
    path.strip_prefix("kernel/").unwrap_or(path).trim_end_matches(".xz").trim_end_matches(".ko")
}

fn is_in(module: &str, list: &[&str]) -> bool {
    list.iter().any(|want| module.strip_prefix(want).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Paths below the release's folder, with everything that they depend on.
///
/// # Errors
/// If the kernel's list of dependencies cannot be read.
pub fn closure(folder: &Path, wanted: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let list = fs::read_to_string(folder.join("modules.dep")).context("read modules.dep")?;
    let depends: HashMap<&str, Vec<&str>> = list
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(module, needs)| (module, needs.split_whitespace().collect()))
        .collect();
    let is_wanted = |module: &&str| is_in(plain(module), wanted) && !is_in(plain(module), UNWANTED);
    let mut open: Vec<&str> = depends.keys().copied().filter(|m| is_wanted(m)).collect();
    let mut closed = BTreeSet::new();
    while let Some(module) = open.pop() {
        if closed.insert(module.to_string()) {
            open.extend(depends.get(module).into_iter().flatten());
        }
    }
    Ok(closed)
}
