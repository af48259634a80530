//! Fitting a GPT to a disk that is larger than the image: the backup moves to the real end, and both headers say so. What a person
//! keeps files in may grow, and a recovery partition behind it moves out of its way.

use std::ops::Range;

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
    /// The last partition that people keep files in gets it; recovery and swap partitions behind it move to the end.
    Last,
}

/// Bytes that move on the target disk, towards its end. Both ranges may overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Byte offset in the image.
    pub from: u64,
    /// Byte offset on the disk.
    pub to: u64,
    /// Bytes.
    pub len: u64,
}

/// What must be done so that a table is right: first the move, then the patches in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fitting {
    /// Partitions that move.
    pub moved: Option<Move>,
    /// The patch of the first sectors comes last.
    pub patches: Vec<Patch>,
    /// Partitions' GUIDs that changed, as they lie on the disk: old, new.
    pub renamed: Vec<([u8; 16], [u8; 16])>,
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
/// Partition types that may move: nothing names them by their place. As they lie on the disk.
const MOVING: [[u8; 16]; 2] = [
    // DE94BBA4-06D1-4D40-A16A-BFD50179D6AC, Windows recovery
    [0xa4, 0xbb, 0x94, 0xde, 0xd1, 0x06, 0x40, 0x4d, 0xa1, 0x6a, 0xbf, 0xd5, 0x01, 0x79, 0xd6, 0xac],
    // 0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, Linux swap
    [0x6d, 0xfd, 0x57, 0x06, 0xab, 0xa4, 0xc4, 0x43, 0x84, 0xe5, 0x09, 0x33, 0xc8, 0x4b, 0x4f, 0x4f],
];
/// Partitions end on this boundary, so that blocks of any medium lie whole within them.
const ALIGN: u64 = 1024 * 1024;

/// An entry's first and last sector.
fn place(entry: &[u8]) -> (u64, u64) {
    let long = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8 bytes"));
    (long(32), long(40))
}

/// Let the last partition with files reach to the last usable sector, or to what must stay behind it, which moves. The answer is what
/// moves: first and last sector, and by how many.
fn grow_last(entries: &mut [u8], entry_len: usize, sector: u64, last_usable: u64) -> Option<(u64, u64, u64)> {
    let per_align = (ALIGN / sector).max(1);
    let mut in_use: Vec<&mut [u8]> =
        entries.chunks_exact_mut(entry_len).filter(|e| e[..16].iter().any(|b| *b != 0)).collect();
    in_use.sort_by_key(|e| place(e).0);
    let behind = in_use.iter().rev().take_while(|e| MOVING.iter().any(|kind| e[..16] == *kind)).count();
    let at = in_use.len().checked_sub(behind + 1)?;
    if !GROWING.iter().any(|kind| in_use[at][..16] == *kind) {
        return None;
    }
    let (_, end) = place(in_use.last()?);
    if behind == 0 {
        let new_end = ((last_usable + 1) / per_align * per_align).checked_sub(1).filter(|new| *new > end)?;
        in_use[at][40..48].copy_from_slice(&new_end.to_le_bytes());
        return None;
    }
    // All by the same distance, so that what was aligned stays so.
    let by = last_usable.checked_sub(end)? / per_align * per_align;
    if by == 0 {
        return None;
    }
    let first = place(in_use[at + 1]).0;
    let (_, grown) = place(in_use[at]);
    in_use[at][40..48].copy_from_slice(&(grown + by).to_le_bytes());
    for entry in &mut in_use[at + 1..] {
        let (start, end) = place(entry);
        entry[32..40].copy_from_slice(&(start + by).to_le_bytes());
        entry[40..48].copy_from_slice(&(end + by).to_le_bytes());
    }
    Some((first, end, by))
}

/// NTFS notes in its first sector, and in a copy in its last one, how many sectors lie in front of it.
fn ntfs_place(
    image: &dyn ReadAt,
    sector: u64,
    places: impl Iterator<Item = (u64, u64)>,
    by: u64,
) -> Result<Vec<Patch>, DiskError> {
    let mut patches = Vec::new();
    for (start, end) in places {
        for at in [start, end] {
            let mut bytes = vec![0; 512];
            image.read_exact_at((at - by) * sector, &mut bytes)?;
            if bytes[3..11] == *b"NTFS    " {
                bytes[28..32].copy_from_slice(&u32::try_from(start).unwrap_or(u32::MAX).to_le_bytes());
                patches.push(Patch { offset: at * sector, bytes });
            }
        }
    }
    Ok(patches)
}

/// A range without those parts of it that lie in another.
fn without(range: Range<u64>, hole: Range<u64>) -> [Range<u64>; 2] {
    [range.start..range.end.min(hole.start.max(range.start)), range.start.max(hole.end.min(range.end))..range.end]
}

/// What must be done so that the GPT of an image of `image.len()` bytes is right on a disk of `disk_len` bytes. A damaged copy of the
/// table is made good from the other. With `guids`, disk and partitions get new ones from it. Nothing when all is right already.
///
/// # Errors
/// If the image has no readable GPT, or the disk is smaller than the image.
pub fn fit_gpt(
    image: &dyn ReadAt,
    sector: SectorSize,
    disk_len: u64,
    grow: Grow,
    guids: Option<&mut dyn FnMut() -> [u8; 16]>,
) -> Result<Fitting, DiskError> {
    let no_gpt = || DiskError::damaged(Table::Gpt, "there is none to fit");
    let found = headers(image, sector)?.ok_or_else(no_gpt)?;
    let healthy = found.primary.is_some() && found.backup.is_some();
    let old_backup = found.backup.as_ref().map(|(header, _)| {
        let entries = header.entries_lba()..header.entries_lba() + header.entries_sectors();
        [entries, header.my_lba()..header.my_lba() + 1]
    });
    let (mut header, mut entries) = found.primary.or(found.backup).ok_or_else(no_gpt)?;
    if disk_len < image.len() {
        return Err(DiskError::Truncated { table: Table::Gpt, needed: image.len(), have: disk_len });
    }
    let (bytes, entry_len) = (sector.bytes(), header.entry_len() as usize);
    let last = disk_len / bytes - 1;
    let is_primary = header.my_lba() == 1;
    let old_last = if is_primary { header.alternate_lba() } else { header.my_lba() };
    if healthy && old_last == last && guids.is_none() {
        return Ok(Fitting::default());
    }
    let backup_entries = last - header.entries_sectors();
    let primary_entries = if is_primary { header.entries_lba() } else { 2 };
    let mut fitting = Fitting::default();
    if grow == Grow::Last
        && old_last < last
        && let Some((first, end, by)) = grow_last(&mut entries, entry_len, bytes, backup_entries - 1)
    {
        let (from, to, len) = (first * bytes, (first + by) * bytes, (end + 1 - first) * bytes);
        fitting.moved = Some(Move { from, to, len });
        let in_use = entries.chunks_exact(entry_len).filter(|e| e[..16].iter().any(|b| *b != 0));
        let moved = in_use.map(place).filter(|(start, _)| *start >= first + by);
        fitting.patches = ntfs_place(image, bytes, moved, by)?;
    }
    if let Some(guids) = guids {
        header = header.with_disk_guid(guids());
        for entry in entries.chunks_exact_mut(entry_len).filter(|e| e[..16].iter().any(|b| *b != 0)) {
            let (old, new) = (entry[16..32].try_into().expect("16 bytes"), guids());
            entry[16..32].copy_from_slice(&new);
            fitting.renamed.push((old, new));
        }
    }
    let header = header.with_entries(&entries);
    let primary = header.placed(1, last, primary_entries, backup_entries - 1);
    let backup = header.placed(last, 1, backup_entries, backup_entries - 1);

    let patches = &mut fitting.patches;
    // The old backup must go, tools that scan for headers would find two; but not what has moved to its place.
    let taken = fitting.moved.map_or(0..0, |m| m.to..m.to + m.len);
    for old in old_backup.into_iter().flatten().filter(|_| old_last < backup_entries) {
        let old = old.start * bytes..old.end * bytes;
        for range in without(old, taken.clone()).into_iter().filter(|range| !range.is_empty()) {
            patches.push(Patch { offset: range.start, bytes: vec![0; (range.end - range.start) as usize] });
        }
    }
    patches.push(Patch { offset: backup_entries * bytes, bytes: entries.clone() });
    patches.push(Patch { offset: last * bytes, bytes: backup.to_sector() });
    patches.push(Patch { offset: primary_entries * bytes, bytes: entries });
    patches.push(Patch { offset: bytes, bytes: primary.to_sector() });
    patches.extend(protective_mbr(image, last)?);
    Ok(fitting)
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

    const OTHER: [u8; 16] = [7; 16];

    /// Entries of (type, first sector, last sector).
    fn entries(kinds: &[([u8; 16], u64, u64)]) -> Vec<u8> {
        let mut entries = vec![0; 128 * 4];
        for (entry, (kind, start, end)) in entries.chunks_exact_mut(128).zip(kinds) {
            entry[..16].copy_from_slice(kind);
            entry[32..40].copy_from_slice(&start.to_le_bytes());
            entry[40..48].copy_from_slice(&end.to_le_bytes());
        }
        entries
    }

    fn places(entries: &[u8]) -> Vec<(u64, u64)> {
        entries.chunks_exact(128).filter(|e| e[0] != 0).map(place).collect()
    }

    #[test]
    fn the_last_partition_grows_if_it_holds_files() {
        // The last by place, not by number.
        let mut table = entries(&[(GROWING[0], 4_096, 9_000), (OTHER, 34, 4_000)]);
        assert_eq!(grow_last(&mut table, 128, 512, 100_000), None);
        assert_eq!(places(&table), [(4_096, 98_303), (34, 4_000)]);
        assert_eq!((98_303 + 1) * 512 % ALIGN, 0);
        // Something unknown behind it stays, and so does everything else.
        let before = entries(&[(GROWING[3], 34, 4_000), (OTHER, 4_096, 9_000)]);
        let mut table = before.clone();
        assert_eq!(grow_last(&mut table, 128, 512, 100_000), None);
        assert_eq!(table, before);
        // Nothing shrinks.
        let before = entries(&[(GROWING[1], 34, 100_000)]);
        let mut table = before.clone();
        grow_last(&mut table, 128, 512, 100_000);
        assert_eq!(table, before);
        grow_last(&mut vec![0; 512], 128, 4096, 100_000);
    }

    #[test]
    fn what_may_move_makes_room() {
        let mut table = entries(&[
            (OTHER, 34, 2_047),
            (GROWING[3], 2_048, 9_000),
            (MOVING[0], 10_240, 12_000),
            (MOVING[1], 12_288, 13_000),
        ]);
        // 100,000 - 13,000 sectors, in whole MiB.
        let by = 86_016;
        assert_eq!(grow_last(&mut table, 128, 512, 100_000), Some((10_240, 13_000, by)));
        let want = [(34, 2_047), (2_048, 9_000 + by), (10_240 + by, 12_000 + by), (12_288 + by, 13_000 + by)];
        assert_eq!(places(&table), want);
        // Too little room to move by anything, or nothing that grows in front.
        for kinds in
            [[(GROWING[3], 34, 9_000), (MOVING[0], 10_240, 99_000)], [(OTHER, 34, 9_000), (MOVING[0], 10_240, 12_000)]]
        {
            let before = entries(&kinds);
            let mut table = before.clone();
            assert_eq!(grow_last(&mut table, 128, 512, 100_000), None);
            assert_eq!(table, before);
        }
    }

    #[test]
    fn the_old_backup_is_erased_around_what_moved_there() {
        assert_eq!(without(10..20, 0..0), [10..10, 10..20]);
        assert_eq!(without(10..20, 12..14), [10..12, 14..20]);
        assert_eq!(without(10..20, 5..14), [10..10, 14..20]);
        assert_eq!(without(10..20, 15..30), [10..15, 20..20]);
        assert_eq!(without(10..20, 0..30), [10..10, 20..20]);
        assert_eq!(without(10..20, 30..40), [10..20, 20..20]);
    }
}
