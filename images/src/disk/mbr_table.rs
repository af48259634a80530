//! Reading an MBR with the `mbrman` crate, after its chain of logical partitions was found sane.

use mbrman::MBR;

use super::{Cursor, DiskError, Layout, Partition, ReadAt, SectorSize, Table, check_partitions};

const PROTECTIVE: u8 = 0xEE;
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// More logical partitions than any system numbers; a longer chain is a loop or an attack.
const LOGICAL_MAX: usize = 128;

struct Entry {
    active: u8,
    kind: u8,
    first: u32,
    sectors: u32,
}

fn entries(sector: &[u8; 512]) -> [Entry; 4] {
    std::array::from_fn(|i| {
        let e = &sector[446 + 16 * i..462 + 16 * i];
        let word = |at: usize| u32::from_le_bytes([e[at], e[at + 1], e[at + 2], e[at + 3]]);
        Entry { active: e[0], kind: e[4], first: word(8), sectors: word(12) }
    })
}

/// The boot sector of a FAT, exFAT or NTFS file system ends in 55 AA too, with boot code where the entries would be.
fn is_file_system(sector: &[u8; 512]) -> bool {
    &sector[3..11] == b"NTFS    "
        || &sector[3..11] == b"EXFAT   "
        || &sector[54..57] == b"FAT"
        || &sector[82..85] == b"FAT"
}

/// The MBR of a disk, or `None` where there is none.
pub(super) fn read(disk: &dyn ReadAt, candidates: &[SectorSize]) -> Result<Option<Layout>, DiskError> {
    let mut first = [0; 512];
    if disk.len() < 512 {
        return Ok(None);
    }
    disk.read_exact_at(0, &mut first)?;
    let used: Vec<Entry> = entries(&first).into_iter().filter(|e| e.kind != 0).collect();
    let plausible = used.iter().all(|e| matches!(e.active, 0 | 0x80) && e.first > 0 && e.sectors > 0);
    if first[510..] != [0x55, 0xAA] || is_file_system(&first) || used.is_empty() || !plausible {
        return Ok(None);
    }
    let sector = guess_sector_size(disk, &used, candidates)?;
    for extended in used.iter().filter(|e| EXTENDED.contains(&e.kind)) {
        check_chain(disk, sector, extended)?;
    }
    let mbr = MBR::read_from(&mut Cursor { disk, at: 0 }, sector.bytes() as u32)
        .map_err(|e| DiskError::damaged(Table::Mbr, e.to_string()))?;
    let partitions = mbr
        .iter()
        .filter(|(_, p)| p.is_used() && !p.is_extended() && p.sys != PROTECTIVE)
        .map(|(number, p)| Partition {
            number: number as u32,
            offset: u64::from(p.starting_lba) * sector.bytes(),
            len: u64::from(p.sectors) * sector.bytes(),
            kind: format!("{:02x}", p.sys),
            name: String::new(),
        })
        .collect();
    let layout = Layout { table: Table::Mbr, sector_size: sector, partitions, damage: None };
    check_partitions(&layout, disk.len())?;
    Ok(Some(layout))
}

/// An MBR does not say what its sectors are. The right size is the one at which partitions start with something.
fn guess_sector_size(disk: &dyn ReadAt, used: &[Entry], candidates: &[SectorSize]) -> Result<SectorSize, DiskError> {
    let mut best = (0, candidates[0]);
    for &size in candidates {
        let mut hits = 0;
        for entry in used {
            let offset = u64::from(entry.first) * size.bytes();
            if offset + 4096 <= disk.len() {
                let mut start = [0; 4096];
                disk.read_exact_at(offset, &mut start)?;
                hits += usize::from(!crate::extent::is_zero(&start));
            }
        }
        if hits > best.0 {
            best = (hits, size);
        }
    }
    Ok(best.1)
}

/// Walk the extended boot records with checked arithmetic: each must lie behind the one before it and on the disk.
fn check_chain(disk: &dyn ReadAt, sector: SectorSize, extended: &Entry) -> Result<(), DiskError> {
    let damaged = |what: &str| DiskError::damaged(Table::Mbr, what);
    let mut relative = 0u32;
    for _ in 0..LOGICAL_MAX {
        let lba = extended.first.checked_add(relative).ok_or_else(|| damaged("logical partitions out of range"))?;
        let offset = u64::from(lba) * sector.bytes();
        if offset + 512 > disk.len() {
            return Err(DiskError::Truncated { table: Table::Mbr, needed: offset + 512, have: disk.len() });
        }
        let mut bytes = [0; 512];
        disk.read_exact_at(offset, &mut bytes)?;
        if bytes[510..] != [0x55, 0xAA] {
            // An empty extended partition needs no record; anything later must be one.
            return if relative == 0 { Ok(()) } else { Err(damaged("a logical partition's record is missing")) };
        }
        let [partition, next, ..] = entries(&bytes);
        let end = lba.checked_add(partition.first).and_then(|start| start.checked_add(partition.sectors));
        end.ok_or_else(|| damaged("a logical partition is out of range"))?;
        if next.first == 0 {
            return Ok(());
        }
        if next.first <= relative {
            return Err(damaged("logical partitions form a loop"));
        }
        relative = next.first;
    }
    Err(damaged("too many logical partitions"))
}
