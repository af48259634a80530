//! Fitting a GPT to a disk that is larger than the image: the backup moves to the real end, and both headers say so.

use super::gpt_table::headers;
use super::{DiskError, ReadAt, SectorSize, Table};

/// Bytes to write at an offset of the target disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub bytes: Vec<u8>,
}

/// What must be written so that the GPT of an image of `image.len()` bytes is right on a disk of `disk_len` bytes. A damaged
/// copy of the table is made good from the other. Nothing when all is right already. The patch of the first sectors comes
/// last.
///
/// # Errors
/// If the image has no readable GPT, or the disk is smaller than the image.
pub fn fit_gpt(image: &dyn ReadAt, sector: SectorSize, disk_len: u64) -> Result<Vec<Patch>, DiskError> {
    let no_gpt = || DiskError::damaged(Table::Gpt, "there is none to fit");
    let found = headers(image, sector)?.ok_or_else(no_gpt)?;
    let healthy = found.primary.is_some() && found.backup.is_some();
    let found_backup = found.backup.is_some();
    let (header, entries) = found.primary.or(found.backup).ok_or_else(no_gpt)?;
    if disk_len < image.len() {
        return Err(DiskError::Truncated { table: Table::Gpt, needed: image.len(), have: disk_len });
    }
    let bytes = sector.bytes();
    let last = disk_len / bytes - 1;
    let is_primary = header.my_lba() == 1;
    let old_last = if is_primary { header.alternate_lba() } else { header.my_lba() };
    if healthy && old_last == last {
        return Ok(Vec::new());
    }
    let backup_entries = last - header.entries_sectors();
    let primary_entries = if is_primary { header.entries_lba() } else { 2 };
    let primary = header.placed(1, last, primary_entries, backup_entries - 1);
    let backup = header.placed(last, 1, backup_entries, backup_entries - 1);

    let mut patches = Vec::new();
    if found_backup && old_last < backup_entries {
        // The old backup must go: tools that scan for headers would find two.
        let len = (header.entries_sectors() + 1) * bytes;
        patches.push(Patch { offset: (old_last + 1) * bytes - len, bytes: vec![0; len as usize] });
    }
    patches.push(Patch { offset: backup_entries * bytes, bytes: entries.clone() });
    patches.push(Patch { offset: last * bytes, bytes: backup.to_sector() });
    patches.push(Patch { offset: primary_entries * bytes, bytes: entries });
    patches.push(Patch { offset: bytes, bytes: primary.to_sector() });
    patches.extend(protective_mbr(image, last)?);
    Ok(patches)
}

/// The protective MBR's one entry covers the whole disk, or as much as 32 bits can say (UEFI specification, table 5.4). A
/// hybrid MBR is somebody's own work and stays as it is.
fn protective_mbr(image: &dyn ReadAt, last: u64) -> Result<Option<Patch>, DiskError> {
    let mut sector = vec![0; 512];
    image.read_exact_at(0, &mut sector)?;
    let others_empty = sector[462..510].iter().all(|&b| b == 0);
    if sector[510..] != [0x55, 0xAA] || sector[450] != 0xEE || !others_empty {
        return Ok(None);
    }
    sector[458..462].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    Ok(Some(Patch { offset: 0, bytes: sector }))
}
