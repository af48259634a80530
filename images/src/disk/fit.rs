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

/// What happens to the room that a larger disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grow {
    /// It stays free.
    Keep,
    /// The last partition gets it, if it is one that people keep files in.
    Last,
}

/// Partition types that grow: Linux file systems, and what Windows keeps files in (UEFI specification 2.10, table 5.7;
/// Discoverable Partitions Specification; Microsoft, "PARTITION_INFORMATION_GPT"). As they lie on the disk.
const GROWING: [[u8; 16]; 4] = [
    // 0FC63DAF-8483-4772-8E79-3D69D8477DE4, Linux data
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4],
    // 4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, Linux root, x86-64
    [0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09],
    // B921B045-1DF0-41C3-AF44-4C6F280D3FAE, Linux root, arm64
    [0x45, 0xb0, 0x21, 0xb9, 0xf0, 0x1d, 0xc3, 0x41, 0xaf, 0x44, 0x4c, 0x6f, 0x28, 0x0d, 0x3f, 0xae],
    // EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, Microsoft basic data
    [0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7],
];
/// Partitions end on this boundary, so that blocks of any medium lie whole within them.
const ALIGN: u64 = 1024 * 1024;

/// Let the last partition reach to the last usable sector, rounded down to [`ALIGN`].
fn grow_last(entries: &mut [u8], entry_len: usize, sector: u64, last_usable: u64) {
    let long = |entry: &[u8], at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8 bytes"));
    let in_use = entries.chunks_exact_mut(entry_len).filter(|e| e[..16].iter().any(|b| *b != 0));
    let Some(last) = in_use.max_by_key(|e| long(e, 40)) else { return };
    let per_align = (ALIGN / sector).max(1);
    let Some(end) = ((last_usable + 1) / per_align * per_align).checked_sub(1) else { return };
    if GROWING.iter().any(|kind| last[..16] == *kind) && end > long(last, 40) {
        last[40..48].copy_from_slice(&end.to_le_bytes());
    }
}

/// What must be written so that the GPT of an image of `image.len()` bytes is right on a disk of `disk_len` bytes. A damaged
/// copy of the table is made good from the other. Nothing when all is right already. The patch of the first sectors comes
/// last.
///
/// # Errors
/// If the image has no readable GPT, or the disk is smaller than the image.
pub fn fit_gpt(image: &dyn ReadAt, sector: SectorSize, disk_len: u64, grow: Grow) -> Result<Vec<Patch>, DiskError> {
    let no_gpt = || DiskError::damaged(Table::Gpt, "there is none to fit");
    let found = headers(image, sector)?.ok_or_else(no_gpt)?;
    let healthy = found.primary.is_some() && found.backup.is_some();
    let found_backup = found.backup.is_some();
    let (header, mut entries) = found.primary.or(found.backup).ok_or_else(no_gpt)?;
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
    if grow == Grow::Last && old_last < last {
        grow_last(&mut entries, header.entry_len() as usize, bytes, backup_entries - 1);
    }
    let header = header.with_entries(&entries);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(kinds: &[([u8; 16], u64)]) -> Vec<u8> {
        let mut entries = vec![0; 128 * 4];
        for (entry, (kind, end)) in entries.chunks_exact_mut(128).zip(kinds) {
            entry[..16].copy_from_slice(kind);
            entry[40..48].copy_from_slice(&end.to_le_bytes());
        }
        entries
    }

    #[test]
    fn the_last_partition_grows_if_it_holds_files() {
        let end = |entries: &[u8], i: usize| u64::from_le_bytes(entries[i * 128 + 40..][..8].try_into().unwrap());
        let other = [7; 16];
        // The last by place, not by number.
        let mut table = entries(&[(GROWING[0], 9_000), (other, 4_000)]);
        grow_last(&mut table, 128, 512, 100_000);
        assert_eq!((end(&table, 0), end(&table, 1)), (98_303, 4_000));
        assert_eq!((98_303 + 1) * 512 % ALIGN, 0);
        // A recovery partition behind it stays, and so does everything else.
        let before = entries(&[(GROWING[3], 4_000), (other, 9_000)]);
        let mut table = before.clone();
        grow_last(&mut table, 128, 512, 100_000);
        assert_eq!(table, before);
        // Nothing shrinks.
        let before = entries(&[(GROWING[1], 100_000)]);
        let mut table = before.clone();
        grow_last(&mut table, 128, 512, 100_000);
        assert_eq!(table, before);
        grow_last(&mut vec![0; 512], 128, 4096, 100_000);
    }
}
