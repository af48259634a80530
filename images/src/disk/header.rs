//! The raw GPT header (UEFI specification 2.10, table 5.5): enough of it to distrust it before anybody else parses it, and
//! to write it anew at another place.

use std::io;

use super::{ReadAt, SectorSize};
use crate::limits::GPT_ENTRIES_MAX;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_LEN: usize = 92;
const ENTRY_LEN_MIN: u32 = 128;
const ENTRY_LEN_MAX: u32 = 4096;

/// A header with a good checksum and the sector that it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawHeader {
    bytes: [u8; HEADER_LEN],
    sector: SectorSize,
}

/// What a sector holds where a header should be.
pub(super) enum Probe {
    /// Not a header, or one with a wrong checksum.
    Absent,
    /// A good checksum over numbers that cannot be true.
    Insane(&'static str),
    /// A header.
    Good(RawHeader),
}

impl RawHeader {
    pub(super) fn probe(disk: &dyn ReadAt, sector: SectorSize, lba: u64) -> io::Result<Probe> {
        let Some(offset) = lba.checked_mul(sector.bytes()).filter(|at| at + sector.bytes() <= disk.len()) else {
            return Ok(Probe::Absent);
        };
        let mut bytes = [0; HEADER_LEN];
        disk.read_exact_at(offset, &mut bytes)?;
        let header = Self { bytes, sector };
        if &bytes[..8] != SIGNATURE || header.word(12) as usize != HEADER_LEN || header.word(16) != header.crc() {
            return Ok(Probe::Absent);
        }
        if header.my_lba() != lba {
            return Ok(Probe::Insane("a header names another place as its own"));
        }
        if header.entry_count() > GPT_ENTRIES_MAX
            || !(ENTRY_LEN_MIN..=ENTRY_LEN_MAX).contains(&header.entry_len())
            || !header.entry_len().is_power_of_two()
        {
            return Ok(Probe::Insane("an impossible number or size of entries"));
        }
        let entries_end = header.entries_lba().checked_add(header.entries_sectors());
        if header.first_usable() > header.last_usable()
            || header.last_usable() > u64::MAX / 4096 - 1
            || header.alternate_lba() > u64::MAX / 4096 - 1
            || entries_end.is_none_or(|end| end > u64::MAX / 4096)
        {
            return Ok(Probe::Insane("usable sectors out of range"));
        }
        Ok(Probe::Good(header))
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }

    fn crc(&self) -> u32 {
        let mut bytes = self.bytes;
        bytes[16..20].fill(0);
        crc32fast::hash(&bytes)
    }

    pub(super) fn my_lba(&self) -> u64 {
        self.long(24)
    }
    pub(super) fn alternate_lba(&self) -> u64 {
        self.long(32)
    }
    pub(super) fn first_usable(&self) -> u64 {
        self.long(40)
    }
    pub(super) fn last_usable(&self) -> u64 {
        self.long(48)
    }
    pub(super) fn entries_lba(&self) -> u64 {
        self.long(72)
    }
    pub(super) fn entry_count(&self) -> u32 {
        self.word(80)
    }
    pub(super) fn entry_len(&self) -> u32 {
        self.word(84)
    }

    /// Bytes of the entry array.
    pub(super) fn entries_len(&self) -> usize {
        self.entry_count() as usize * self.entry_len() as usize
    }

    /// Sectors of the entry array.
    pub(super) fn entries_sectors(&self) -> u64 {
        (self.entries_len() as u64).div_ceil(self.sector.bytes())
    }

    /// The entry array, if it lies on the disk and matches its checksum.
    pub(super) fn read_entries(&self, disk: &dyn ReadAt) -> io::Result<Option<Vec<u8>>> {
        let offset = self.entries_lba() * self.sector.bytes();
        if offset.checked_add(self.entries_len() as u64).is_none_or(|end| end > disk.len()) {
            return Ok(None);
        }
        let mut entries = vec![0; self.entries_len()];
        disk.read_exact_at(offset, &mut entries)?;
        Ok((crc32fast::hash(&entries) == self.word(88)).then_some(entries))
    }

    /// The same header for another place, with its checksum.
    pub(super) fn placed(&self, my_lba: u64, alternate_lba: u64, entries_lba: u64, last_usable: u64) -> Self {
        let mut new = self.clone();
        new.bytes[24..32].copy_from_slice(&my_lba.to_le_bytes());
        new.bytes[32..40].copy_from_slice(&alternate_lba.to_le_bytes());
        new.bytes[48..56].copy_from_slice(&last_usable.to_le_bytes());
        new.bytes[72..80].copy_from_slice(&entries_lba.to_le_bytes());
        let crc = new.crc();
        new.bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        new
    }

    /// The same header for other entries of the same number and size; [`RawHeader::placed`] makes its checksum.
    pub(super) fn with_entries(&self, entries: &[u8]) -> Self {
        let mut new = self.clone();
        new.bytes[88..92].copy_from_slice(&crc32fast::hash(entries).to_le_bytes());
        new
    }

    /// The same header with another GUID of the disk; [`RawHeader::placed`] makes its checksum.
    pub(super) fn with_disk_guid(&self, guid: [u8; 16]) -> Self {
        let mut new = self.clone();
        new.bytes[56..72].copy_from_slice(&guid);
        new
    }

    /// One whole sector.
    pub(super) fn to_sector(&self) -> Vec<u8> {
        let mut sector = self.bytes.to_vec();
        sector.resize(self.sector.bytes() as usize, 0);
        sector
    }
}
