//! A GPT of 4096-byte sectors, written byte by byte from the tables of the UEFI specification (chapter 5): no tool of Debian 12 makes one
//! in a file, and the code under test must not judge itself.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use xtask::sample;

const MIB: u64 = 1 << 20;

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

/// A header sector at `my`, whose twin is at `other`, on a disk whose last sector is `last`.
#[must_use]
pub fn header(my: u64, other: u64, entries_at: u64, last: u64, entries: &[u8]) -> Vec<u8> {
    let mut h = vec![0; 4096];
    h[..8].copy_from_slice(b"EFI PART");
    h[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
    h[12..16].copy_from_slice(&92u32.to_le_bytes());
    h[24..32].copy_from_slice(&my.to_le_bytes());
    h[32..40].copy_from_slice(&other.to_le_bytes());
    h[40..48].copy_from_slice(&6u64.to_le_bytes());
    h[48..56].copy_from_slice(&(last - 5).to_le_bytes());
    h[56..72].copy_from_slice(&[7; 16]);
    h[72..80].copy_from_slice(&entries_at.to_le_bytes());
    h[80..84].copy_from_slice(&128u32.to_le_bytes());
    h[84..88].copy_from_slice(&128u32.to_le_bytes());
    h[88..92].copy_from_slice(&crc32(entries).to_le_bytes());
    let crc = crc32(&h[..92]);
    h[16..20].copy_from_slice(&crc.to_le_bytes());
    h
}

/// A disk with one partition of noise.
///
/// # Panics
/// If the file cannot be written.
pub fn write(path: &Path) {
    let len = 64 * MIB;
    sample::empty(path, len).unwrap();
    let disk = fs::OpenOptions::new().write(true).open(path).unwrap();
    let last = len / 4096 - 1;
    let mut entries = vec![0; 128 * 128];
    entries[..16].copy_from_slice(&[
        0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D, 0xE4,
    ]);
    entries[16..32].copy_from_slice(&[9; 16]);
    entries[32..40].copy_from_slice(&256u64.to_le_bytes());
    entries[40..48].copy_from_slice(&(last - 300).to_le_bytes());
    let mut mbr = vec![0; 512];
    mbr[450] = 0xEE;
    mbr[454..458].copy_from_slice(&1u32.to_le_bytes());
    mbr[458..462].copy_from_slice(&(last as u32).to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xAA]);
    disk.write_all_at(&mbr, 0).unwrap();
    disk.write_all_at(&header(1, last, 2, last, &entries), 4096).unwrap();
    disk.write_all_at(&entries, 2 * 4096).unwrap();
    disk.write_all_at(&entries, (last - 4) * 4096).unwrap();
    disk.write_all_at(&header(last, 1, last - 4, last, &entries), last * 4096).unwrap();
    disk.write_all_at(&sample::noise(4, 9 * MIB as usize), MIB).unwrap();
}
