//! Reading a GPT with the `gpt` crate, after the raw headers were found sane.

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;

use super::header::{Probe, RawHeader};
use super::{Cursor, Damage, DiskError, Layout, Partition, ReadAt, SectorSize, Table, check_partitions};

/// The primary and backup header with their entries; `None` for one that is unreadable.
pub(super) struct Headers {
    pub(super) primary: Option<(RawHeader, Vec<u8>)>,
    pub(super) backup: Option<(RawHeader, Vec<u8>)>,
}

/// Both headers, as far as they are good. `None` when the disk has no trace of a GPT.
pub(super) fn headers(disk: &dyn ReadAt, sector: SectorSize) -> Result<Option<Headers>, DiskError> {
    let sectors = disk.len() / sector.bytes();
    if sectors < 3 {
        return Ok(None);
    }
    let good = |lba: u64| -> Result<Option<(RawHeader, Vec<u8>)>, DiskError> {
        match RawHeader::probe(disk, sector, lba)? {
            Probe::Absent => Ok(None),
            Probe::Insane(what) => Err(DiskError::damaged(Table::Gpt, what)),
            Probe::Good(header) => Ok(header.read_entries(disk)?.map(|entries| (header, entries))),
        }
    };
    let primary = good(1)?;
    if let Some((header, _)) = &primary {
        let needed = header.last_usable().max(header.alternate_lba()) + 1;
        if needed > sectors {
            let bytes = sector.bytes();
            return Err(DiskError::Truncated { table: Table::Gpt, needed: needed * bytes, have: disk.len() });
        }
    }
    // A file may be longer than the disk it holds; then the primary says where its backup is.
    let backup_lba = primary.as_ref().map_or(sectors - 1, |(header, _)| header.alternate_lba());
    let backup = good(backup_lba)?;
    Ok((primary.is_some() || backup.is_some()).then_some(Headers { primary, backup }))
}

/// The GPT of a disk, or `None` where there is none.
pub(super) fn read(disk: &dyn ReadAt, sector: SectorSize) -> Result<Option<Layout>, DiskError> {
    let Some(headers) = headers(disk, sector)? else {
        return gone(disk, sector);
    };
    let block = match sector {
        SectorSize::B512 => LogicalBlockSize::Lb512,
        SectorSize::B4096 => LogicalBlockSize::Lb4096,
    };
    let table = GptConfig::new()
        .writable(false)
        .only_valid_headers(false)
        .logical_block_size(block)
        .open_from_device(Cursor { disk, at: 0 })
        .map_err(|e| DiskError::damaged(Table::Gpt, e.to_string()))?;
    let mut partitions = Vec::new();
    for (&number, entry) in table.partitions() {
        let len = entry.last_lba.checked_sub(entry.first_lba).map(|sectors| sectors.saturating_add(1));
        let bytes = |sectors: u64| sectors.checked_mul(sector.bytes());
        let (Some(offset), Some(len)) = (bytes(entry.first_lba), len.and_then(bytes)) else {
            return Err(DiskError::damaged(Table::Gpt, format!("partition {number} ends before it starts")));
        };
        let kind = entry.part_type_guid.guid.to_string();
        partitions.push(Partition { number, offset, len, kind, name: entry.name.clone() });
    }
    let damage = match (&headers.primary, &headers.backup) {
        (None, _) => Some(Damage::PrimaryGpt),
        (_, None) => Some(Damage::BackupGpt),
        _ => None,
    };
    let layout = Layout { table: Table::Gpt, sector_size: sector, partitions, damage };
    check_partitions(&layout, disk.len())?;
    Ok(Some(layout))
}

/// No good header: either there never was a GPT, or both copies are lost. A protective MBR (type 0xEE) tells the two apart.
fn gone(disk: &dyn ReadAt, sector: SectorSize) -> Result<Option<Layout>, DiskError> {
    let mut first = [0; 512];
    if disk.len() < 512 {
        return Ok(None);
    }
    disk.read_exact_at(0, &mut first)?;
    let protective = first[510..] == [0x55, 0xAA] && first[450] == 0xEE;
    let mut signature = [0; 8];
    if protective && disk.len() >= 2 * sector.bytes() {
        disk.read_exact_at(sector.bytes(), &mut signature)?;
    }
    if &signature == b"EFI PART" {
        return Err(DiskError::damaged(Table::Gpt, "neither the primary nor the backup has a good checksum"));
    }
    Ok(None)
}
