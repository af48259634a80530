//! The first blocks of a disk, held back: without them firmware finds no boot code and no partition table, so a disk that is
//! not proven yet never boots.

use std::io;

use images::disk::{Patch, ReadAt};
use protocol::message::boot::Finishing;

/// Bytes held back. A GPT with its entries, boot code behind an MBR, and the gap in front of the first partition all lie within.
pub const FIRST_LEN: u64 = 1024 * 1024;

/// What first blocks tell of an installation that was about to make a disk bootable when it was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutOff {
    /// They are all there: it had come to its end.
    AtTheEnd,
    /// Only the very first are not.
    BeforeIt,
    /// Somebody else wrote them.
    SomebodyElses,
}

/// Bytes at the very beginning that are written last of all.
pub const HEAD_LEN: usize = 4096;

/// BLAKE3 of the head of first blocks, and of what is behind it.
#[must_use]
pub fn digests(first: &[u8]) -> ([u8; 32], [u8; 32]) {
    let (head, rest) = first.split_at(first.len().min(HEAD_LEN));
    (*blake3::hash(head).as_bytes(), *blake3::hash(rest).as_bytes())
}

/// Look at first blocks; `finishing` says what they were to become.
#[must_use]
pub fn cut_off(now: &[u8], finishing: &Finishing) -> CutOff {
    let (head, rest) = digests(now);
    if rest != finishing.rest {
        CutOff::SomebodyElses
    } else if head == finishing.head {
        CutOff::AtTheEnd
    } else if now.iter().take(HEAD_LEN).all(|b| *b == 0) {
        CutOff::BeforeIt
    } else {
        CutOff::SomebodyElses
    }
}

/// The first blocks in memory, as they will be.
pub struct FirstBlocks(Vec<u8>);

impl FirstBlocks {
    /// For a disk image of `disk_len` bytes; all zero.
    #[must_use]
    pub fn new(disk_len: u64) -> Self {
        Self(vec![0; disk_len.min(FIRST_LEN) as usize])
    }

    /// Keep what belongs here; the rest, with its offset, is for the disk.
    pub fn keep<'a>(&mut self, offset: u64, bytes: &'a [u8]) -> (u64, &'a [u8]) {
        let len = self.0.len() as u64;
        if offset >= len {
            return (offset, bytes);
        }
        let here = bytes.len().min((len - offset) as usize);
        self.0[offset as usize..offset as usize + here].copy_from_slice(&bytes[..here]);
        (offset + here as u64, &bytes[here..])
    }

    /// Apply patches; those parts that lie behind the first blocks come back.
    pub fn patch(&mut self, patches: Vec<Patch>) -> Vec<Patch> {
        let rest = patches.into_iter().map(|patch| {
            let (offset, bytes) = self.keep(patch.offset, &patch.bytes);
            Patch { offset, bytes: bytes.to_vec() }
        });
        rest.filter(|patch| !patch.bytes.is_empty()).collect()
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A disk as it will be: its first blocks from memory, the rest from the disk.
pub struct Overlay<'a> {
    /// Held back.
    pub first: &'a FirstBlocks,
    /// Written.
    pub disk: &'a dyn ReadAt,
    /// Length of the image; the disk may be longer.
    pub len: u64,
}

impl ReadAt for Overlay<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read_exact_at(offset, buffer)?;
        let first = self.first.bytes();
        if offset < first.len() as u64 {
            let here = buffer.len().min(first.len() - offset as usize);
            buffer[..here].copy_from_slice(&first[offset as usize..offset as usize + here]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_tells_where_its_installation_was_cut_off() {
        let done: Vec<u8> = (0..20_000u32).map(|i| i as u8).collect();
        let (head, rest) = digests(&done);
        let last = Finishing { serial: "S".into(), head, rest };
        assert_eq!(cut_off(&done, &last), CutOff::AtTheEnd);
        let mut half = done.clone();
        half[..HEAD_LEN].fill(0);
        assert_eq!(cut_off(&half, &last), CutOff::BeforeIt);
        half[7] = 1;
        assert_eq!(cut_off(&half, &last), CutOff::SomebodyElses);
        let mut other = done;
        other[10_000] ^= 1;
        assert_eq!(cut_off(&other, &last), CutOff::SomebodyElses);
        other[..HEAD_LEN].fill(0);
        assert_eq!(cut_off(&other, &last), CutOff::SomebodyElses, "a file system may lie behind empty sectors");
    }

    #[test]
    fn splits_at_the_boundary_and_reads_through() {
        let mut first = FirstBlocks::new(FIRST_LEN * 2);
        let data = [7; 100];
        assert_eq!(first.keep(FIRST_LEN - 60, &data), (FIRST_LEN, &data[..40]));
        assert_eq!(first.keep(FIRST_LEN, &data), (FIRST_LEN, &data[..]));
        assert_eq!(first.keep(0, &data).1.len(), 0);
        let disk = vec![1; FIRST_LEN as usize * 2];
        let overlay = Overlay { first: &first, disk: &disk, len: FIRST_LEN * 2 };
        let mut out = [0; 4];
        overlay.read_exact_at(FIRST_LEN - 2, &mut out).unwrap();
        assert_eq!(out, [7, 7, 1, 1]);
        assert!(overlay.read_exact_at(FIRST_LEN * 2 - 3, &mut out).is_err());
        let rest = first.patch(vec![Patch { offset: FIRST_LEN - 1, bytes: vec![9; 3] }]);
        assert_eq!(rest, [Patch { offset: FIRST_LEN, bytes: vec![9; 2] }]);
        assert_eq!(first.bytes().last(), Some(&9));
    }
}
