//! Partition tables: reading them, refusing what they contradict, and fitting a GPT to a larger disk.

mod fit;
mod gpt_table;
mod header;
mod mbr_table;

pub use fit::{Fitting, Grow, Move, Patch, fit_gpt};

use std::io::{self, Read, Seek, SeekFrom, Write};

use serde::{Deserialize, Serialize};

/// A disk's bytes, wherever they are.
pub trait ReadAt {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fill `buffer` from `offset`.
    ///
    /// # Errors
    /// The device's own, or `UnexpectedEof` beyond its end.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let to = from.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.get(from..to).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Logical sector size of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SectorSize {
    /// 512 bytes, or 512 emulated.
    B512,
    /// 4096 bytes native.
    B4096,
}

impl SectorSize {
    /// Bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// From bytes, if it is one of the two.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }
}

/// Which partition table a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Table {
    /// None: a file system, or anything else, fills the disk.
    None,
    /// Master boot record.
    Mbr,
    /// GUID partition table (UEFI specification, chapter 5).
    Gpt,
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Mbr => "mbr",
            Self::Gpt => "gpt",
        })
    }
}

/// What is wrong with a table that can be read all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Damage {
    /// The primary GPT is unreadable; the backup is good.
    PrimaryGpt,
    /// The backup GPT is unreadable; the primary is good.
    BackupGpt,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Number, from 1; logical partitions of an MBR start at 5.
    pub number: u32,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Type: a GUID, or two hexadecimal digits for an MBR.
    pub kind: String,
    /// Name, as GPT keeps one.
    pub name: String,
}

/// A disk's partition table, read and checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Which table.
    pub table: Table,
    /// Sector size that the table counts in.
    pub sector_size: SectorSize,
    /// Partitions in the table's order.
    pub partitions: Vec<Partition>,
    /// What is wrong with it.
    pub damage: Option<Damage>,
}

/// Why a disk's table cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The device failed.
    #[error("read the partition table")]
    Read(#[from] io::Error),
    /// The table speaks of more bytes than there are.
    #[error("the image is truncated: its {table} partition table needs {needed} bytes, and there are {have}")]
    Truncated {
        /// Which table.
        table: Table,
        /// Bytes that the table describes.
        needed: u64,
        /// Bytes there.
        have: u64,
    },
    /// A table that contradicts itself.
    #[error("the {table} partition table is damaged: {what}")]
    Damaged {
        /// Which table.
        table: Table,
        /// What is wrong.
        what: String,
    },
}

impl DiskError {
    fn damaged(table: Table, what: impl Into<String>) -> Self {
        Self::Damaged { table, what: what.into() }
    }
}

/// Read a disk's partition table. `sector_size` is what the caller knows; without it both are tried.
///
/// # Errors
/// [`DiskError`] for a truncated image and for a table that contradicts itself: guessing would copy the damage.
pub fn read_layout(disk: &dyn ReadAt, sector_size: Option<SectorSize>) -> Result<Layout, DiskError> {
    let candidates = sector_size.map_or(vec![SectorSize::B512, SectorSize::B4096], |s| vec![s]);
    for &size in &candidates {
        if let Some(layout) = gpt_table::read(disk, size)? {
            return Ok(layout);
        }
    }
    if let Some(layout) = mbr_table::read(disk, &candidates)? {
        return Ok(layout);
    }
    Ok(Layout { table: Table::None, sector_size: candidates[0], partitions: Vec::new(), damage: None })
}

fn check_partitions(layout: &Layout, disk_len: u64) -> Result<(), DiskError> {
    let mut by_place: Vec<&Partition> = layout.partitions.iter().collect();
    by_place.sort_by_key(|p| p.offset);
    for p in &by_place {
        let end = p.offset.saturating_add(p.len);
        if end > disk_len {
            return Err(DiskError::Truncated { table: layout.table, needed: end, have: disk_len });
        }
    }
    for pair in by_place.windows(2) {
        if pair[0].offset + pair[0].len > pair[1].offset {
            let what = format!("partitions {} and {} overlap", pair[0].number, pair[1].number);
            return Err(DiskError::damaged(layout.table, what));
        }
    }
    Ok(())
}

/// What the table crates read from: a cursor over [`ReadAt`] that refuses writes.
struct Cursor<'a> {
    disk: &'a dyn ReadAt,
    at: u64,
}

impl std::fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cursor({})", self.at)
    }
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.disk.len().saturating_sub(self.at);
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.disk.read_exact_at(self.at, &mut buffer[..len])?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Write for Cursor<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.disk.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
