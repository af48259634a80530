//! The firmware's boot entry for the installed disk, and the next start from it.
//!
//! The entry goes behind the one that this boot came from: a machine that boots from the network first goes on doing so, and finds its
//! disk right behind it.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use efivar::boot::{BootEntry, BootEntryAttributes, EFIHardDrive, EFIHardDriveType, FilePath, FilePathList};
use efivar::efi::{Variable, VariableFlags};
use efivar::{VarManager, system};
use images::disk::{Layout, Table};

/// What firmware shows in its menu.
const DESCRIPTION: &str = "Installed system (coe)";
/// What every UEFI image has on its system partition, with or without an entry (UEFI specification 2.10, 3.5.1.1).
const LOADER: &str = "\\EFI\\BOOT\\BOOTX64.EFI";
/// Type of a system partition (UEFI specification 2.10, table 5.7).
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// Entries that are looked at; firmware has far fewer.
const ENTRIES_MAX: u16 = 256;

/// The GUID that a partition has on this disk, from the name that udev gives it.
fn partition_guid(device: &Path) -> anyhow::Result<uuid::Uuid> {
    for link in fs::read_dir("/dev/disk/by-partuuid").context("look at the disk's partitions")?.flatten() {
        if fs::canonicalize(link.path()).is_ok_and(|to| to == device) {
            return link.file_name().to_string_lossy().parse().context("a partition's GUID");
        }
    }
    anyhow::bail!("{} has no GUID", device.display())
}

/// Sixteen-bit numbers of a variable; none if it is not there.
fn numbers(manager: &dyn VarManager, name: &str) -> Vec<u16> {
    let bytes = manager.read(&Variable::new(name)).map(|(bytes, _)| bytes).unwrap_or_default();
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// A boot order in which `new` comes right behind `booted`, or first if nobody knows what booted.
fn order_with(mut order: Vec<u16>, new: u16, booted: Option<u16>) -> Vec<u16> {
    order.retain(|id| *id != new);
    let at = booted.and_then(|b| order.iter().position(|id| *id == b)).map_or(0, |at| at + 1);
    order.insert(at, new);
    order
}

/// Make the entry, and have the next start from the disk. Says whether there was one to make.
pub(super) fn make(disk: &Path, layout: &Layout) -> anyhow::Result<bool> {
    let esp = layout.partitions.iter().find(|p| layout.table == Table::Gpt && p.kind.eq_ignore_ascii_case(ESP));
    let Some(esp) = esp.filter(|_| Path::new("/sys/firmware/efi/efivars").exists()) else { return Ok(false) };
    let name = disk.display().to_string();
    let separator = if name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
    let device = format!("{name}{separator}{}", esp.number);
    let sector = layout.sector_size.bytes();
    let entry = BootEntry {
        attributes: BootEntryAttributes::LOAD_OPTION_ACTIVE,
        description: DESCRIPTION.into(),
        file_path_list: Some(FilePathList {
            file_path: FilePath { path: LOADER.into() },
            hard_drive: EFIHardDrive {
                partition_number: esp.number,
                partition_start: esp.offset / sector,
                partition_size: esp.len / sector,
                partition_sig: partition_guid(Path::new(&device))?,
                // 2: the disk has a GPT.
                format: 2,
                sig_type: EFIHardDriveType::Gpt,
            },
        }),
        optional_data: Vec::new(),
    };
    let mut manager = system();
    let existing = |id: u16| BootEntry::read(&*manager, &Variable::new(&format!("Boot{id:04X}"))).ok();
    let ours = (0..ENTRIES_MAX).find(|id| existing(*id).is_some_and(|e| e.description == DESCRIPTION));
    let is_free = |id: &u16| manager.read(&Variable::new(&format!("Boot{id:04X}"))).is_err();
    let id = ours.or_else(|| (0..ENTRIES_MAX).find(is_free)).context("the firmware has no room for a boot entry")?;
    let booted = numbers(&*manager, "BootCurrent").first().copied();
    let order = order_with(numbers(&*manager, "BootOrder"), id, booted);
    manager.add_boot_entry(id, entry).context("write the boot entry")?;
    manager.set_boot_order(order).context("write the boot order")?;
    let next = manager.write(&Variable::new("BootNext"), VariableFlags::default(), &id.to_le_bytes());
    next.context("choose the disk for the next start")?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_comes_behind_what_booted() {
        assert_eq!(order_with(vec![1, 2, 3], 9, Some(2)), [1, 2, 9, 3]);
        assert_eq!(order_with(vec![9, 1, 2], 9, Some(1)), [1, 9, 2]);
        assert_eq!(order_with(vec![1, 2], 9, None), [9, 1, 2]);
        assert_eq!(order_with(vec![], 9, Some(7)), [9]);
    }
}
