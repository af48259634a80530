//! What fuzzers do with bytes from strangers: each function must survive anything. `cargo xtask fuzz` runs them under libFuzzer; the
//! tests here run them on damaged copies of good input.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use client_stash::format::{FileHeader, RecordHeader, RegionHeader, decode_table};
use client_stash::storage::{SimDisk, Storage as _};
use client_stash::store::Store;
use images::bundle;
use images::disk::{Grow, fit_gpt, read_layout};
use images::fragment::split;
use images::parity::{Codec, Geometry};
use images::{ArrayId, NodeId, SegmentId};
use protocol::machine::{Facts, Mac};
use protocol::message::store::{OWNER_IMAGES, Owner};
use pxe_installer::boot::dhcp::{Config, UefiLoader, decode, mac_of, understand};
use pxe_installer::boot::tftp::{Next, Request, Transfer};
use pxe_installer::boot::{discover, script};

/// A DHCP packet: as a boot server reads it, in both of its ways, and as an installer reads an answer.
pub fn dhcp(packet: &[u8]) {
    let files = ["undionly.kpxe", "snponly.efi", "shimx64.efi", "uki.efi"].map(Into::into).to_vec();
    let config = |is_proxy| Config {
        address: Ipv4Addr::new(10, 0, 0, 1),
        http_port: 7480,
        is_proxy,
        uefi: UefiLoader::Auto,
        files: files.clone(),
    };
    let facts = Facts { macs: vec![Mac([2, 0, 0, 0, 0, 1])], ..Facts::default() };
    let _ = discover::answer(packet, &facts, 1);
    let Some(message) = decode(packet) else { return };
    let _ = mac_of(&message);
    let Some(asked) = understand(&message) else { return };
    for is_proxy in [false, true] {
        let config = config(is_proxy);
        let Ok(file) = config.boot_file(&asked) else { continue };
        for is_boot_port in [false, true] {
            if let Some(reply) = config.proxy(&message, &asked, &file, is_boot_port) {
                use dhcproto::Encodable as _;
                assert!(reply.to_vec().is_ok_and(|bytes| bytes.len() < 1400), "an answer that fits no packet");
            }
        }
    }
}

/// A TFTP conversation: a request, then whatever the client says, each packet with its length in front. Two bytes at the end are the
/// length of the file.
pub fn tftp(conversation: &[u8]) {
    let Some((said, len)) = conversation.split_last_chunk::<2>() else { return };
    let file_len = u64::from(u16::from_le_bytes(*len)) * 97;
    let mut packets = Packets(said);
    let Some(Ok(request)) = packets.next().map(Request::parse) else { return };
    let _ = script::understand(&request.path);
    let mut transfer = Transfer::new(&request, file_len);
    let mut next = transfer.start();
    for packet in packets {
        match &next {
            Next::Blocks(blocks) => {
                assert!(blocks.len() <= 64, "a window is at most 64 blocks");
                for (_, range) in blocks {
                    assert!(range.start <= range.end && range.end <= file_len, "a block that is not in the file");
                }
            }
            Next::Done | Next::GiveUp => return,
            Next::Packet(_) | Next::Wait => {}
        }
        next = if packet.is_empty() { transfer.on_timeout() } else { transfer.on_packet(packet) };
    }
}

struct Packets<'a>(&'a [u8]);

impl<'a> Iterator for Packets<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first()?;
        let (packet, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        self.0 = rest;
        Some(packet)
    }
}

/// The beginning and the end of a disk: its partition tables, and fitting them to one twice as long.
pub fn partition_table(disk: &[u8]) {
    let disk = disk.to_vec();
    let Ok(layout) = read_layout(&disk, None) else { return };
    let mut guid = || [7; 16];
    for grow in [Grow::Keep, Grow::Last] {
        let len = disk.len() as u64 * 2;
        let Ok(fitting) = fit_gpt(&disk, layout.sector_size, len, grow, Some(&mut guid)) else { continue };
        for patch in &fitting.patches {
            assert!(patch.offset + patch.bytes.len() as u64 <= len, "a patch behind the end of the disk");
        }
        if let Some(moved) = fitting.moved {
            assert!(moved.from < moved.to && moved.to + moved.len <= len, "moved behind the end of the disk");
        }
    }
}

/// A boot set in one piece.
pub fn boot_set(bytes: &[u8]) {
    for entry in bundle::unpack(bytes).unwrap_or_default() {
        assert!(bundle::is_plain_name(&entry.name), "a name that is a path");
    }
}

const ARRAY: ArrayId = ArrayId([1; 32]);
const NODE: NodeId = NodeId([2; 16]);

/// A stash file with something of everything: sealed and open regions, deletions, two owners, several sessions.
///
/// # Panics
/// If a disk in memory fails.
#[must_use]
pub fn small_stash() -> SimDisk {
    let disk = Arc::new(SimDisk::default());
    let other = Owner(9);
    let codec = Codec::new(Geometry::new(2, 1).expect("a geometry"));
    let mut store = Store::create_with(disk.clone(), ARRAY, NODE, 7, 64 * 1024).expect("an empty disk");
    store.reserve(OWNER_IMAGES, 3).and_then(|()| store.reserve(other, 2)).expect("room for both");
    for i in 0..18u8 {
        let sealed = Bytes::from(vec![i; 500 + 1500 * usize::from(i)]);
        let (header, payload) = split(&codec, SegmentId::of(&sealed), &sealed).remove(usize::from(i % 3));
        let owner = if i.is_multiple_of(3) { other } else { OWNER_IMAGES };
        store.put(vec![(owner, header, payload)]).remove(0).expect("room for it");
        if i.is_multiple_of(5) {
            store.delete(&[header.id]).expect("room for a deletion");
        }
        if i.is_multiple_of(8) {
            drop(store);
            store = Store::open(disk.clone(), ARRAY, NODE).expect("what was just written");
        }
    }
    let three: Vec<_> = store.reader().inventory().into_iter().step_by(4).take(3).collect();
    store.delete(&three).expect("room for deletions");
    disk.copy()
}

/// A stash file that was full again and again, with half of everything deleted each time: dead records are holes, and it is longer than its
/// size.
///
/// # Panics
/// If a disk in memory fails, or there are no holes.
#[must_use]
pub fn stash_with_holes() -> SimDisk {
    let disk = Arc::new(SimDisk::default());
    let codec = Codec::new(Geometry::new(2, 1).expect("a geometry"));
    let mut store = Store::create_with(disk.clone(), ARRAY, NODE, 7, 64 * 1024).expect("an empty disk");
    for i in 0..90u8 {
        let sealed = Bytes::from(vec![i; 9_000 + 100 * usize::from(i)]);
        let (header, payload) = split(&codec, SegmentId::of(&sealed), &sealed).remove(usize::from(i % 3));
        if store.put(vec![(OWNER_IMAGES, header, payload.clone())]).remove(0).is_err() {
            let half: Vec<_> = store.reader().inventory().into_iter().step_by(2).collect();
            store.delete(&half).expect("room for deletions");
            store.put(vec![(OWNER_IMAGES, header, payload)]).remove(0).expect("room for it");
        }
    }
    assert!(disk.bytes_given_back() > 0 && disk.len().expect("a disk in memory") > 8 * 64 * 1024);
    disk.copy()
}

/// A file as its blocks that are not zero: length, then (block number, 4096 bytes) each.
///
/// # Panics
/// If a disk in memory fails.
#[must_use]
pub fn patches_of(disk: &SimDisk) -> Vec<u8> {
    let len = disk.len().expect("a disk in memory");
    let mut out = len.to_le_bytes().to_vec();
    for block in 0..len / 4096 {
        let mut bytes = [0; 4096];
        disk.read_exact_at(block * 4096, &mut bytes).expect("a disk in memory");
        if bytes != [0; 4096] {
            out.extend_from_slice(&(block as u32).to_le_bytes());
            out.extend_from_slice(&bytes);
        }
    }
    out
}

/// Undo [`patches_of`].
///
/// # Panics
/// If it is not what that writes.
#[must_use]
pub fn stash_from_patches(patches: &[u8]) -> SimDisk {
    let (len, blocks) = patches.split_first_chunk().expect("a length");
    let disk = SimDisk::default();
    disk.allocate(0, u64::from_le_bytes(*len)).and_then(|()| disk.sync()).expect("a disk in memory");
    for block in blocks.chunks_exact(4 + 4096) {
        let (number, bytes) = block.split_first_chunk().expect("a number");
        disk.overwrite(u64::from(u32::from_le_bytes(*number)) * 4096, bytes);
    }
    disk
}

/// Damage to a stash file: (block, offset in it, byte) each, in five bytes, at one of two files that were whole; the first byte says which. It
/// opens or says why not, never gives wrong bytes, and goes on.
pub fn stash_file(damage: &[u8]) {
    static WHOLE: OnceLock<[SimDisk; 2]> = OnceLock::new();
    let Some((which, damage)) = damage.split_first() else { return };
    let disk = WHOLE.get_or_init(|| [small_stash(), stash_with_holes()])[usize::from(which % 2)].copy();
    let regions = disk.len().expect("a disk in memory") / 4096;
    for change in damage.chunks_exact(5) {
        let block = u64::from(u16::from_le_bytes([change[0], change[1]])) % regions;
        let at = block * 4096 + u64::from(u16::from_le_bytes([change[2], change[3]])) % 4096;
        disk.overwrite(at, &change[4..]);
    }
    let Ok(mut store) = Store::open(disk, ARRAY, NODE) else { return };
    for id in store.reader().inventory() {
        if let Ok((header, payload)) = store.reader().get(id) {
            assert!(header.id == id && header.verify(&payload).is_ok(), "wrong bytes");
        }
    }
    let damaged = store.reader().take_damaged();
    let _ = store.bury(&damaged);
    let left = store.reader().inventory();
    let _ = store.delete(&left);
    let _ = store.usage();
}

/// Every structure of the file, from any bytes: what decodes encodes to the same.
pub fn stash_structures(bytes: &[u8]) {
    let mut slot = [0; 4096];
    let len = bytes.len().min(4096);
    slot[..len].copy_from_slice(&bytes[..len]);
    assert!(FileHeader::decode(&slot).is_none_or(|header| header.encode() == slot));
    assert!(RegionHeader::decode(&slot).is_none_or(|header| header.encode() == slot));
    if let Some(record) = slot.first_chunk() {
        assert!(RecordHeader::decode(record).is_none_or(|header| header.encode() == *record));
    }
    for records in [0, 1, 2, 27, usize::MAX] {
        let _ = decode_table(bytes, 7, records);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xtask::sample;

    /// Good input, with bytes changed, cut off, and repeated in other places.
    fn damaged(good: &[u8], rounds: u64, target: fn(&[u8])) {
        target(good);
        for seed in 1..=rounds {
            let noise = sample::noise(seed, 64);
            let mut bytes = good.to_vec();
            for chunk in noise.chunks_exact(4).take(1 + seed as usize % 8) {
                let at = usize::from(u16::from_le_bytes([chunk[0], chunk[1]])) % bytes.len();
                bytes[at] = chunk[2];
            }
            bytes.truncate(bytes.len() - seed as usize % 3 * (usize::from(noise[63]) % bytes.len()) / 2);
            target(&bytes);
        }
    }

    #[test]
    fn dhcp_survives() {
        let facts = Facts { macs: vec![Mac([2, 0, 0, 0, 0, 1])], ..Facts::default() };
        damaged(&discover::question(&facts, 1).unwrap(), 20_000, dhcp);
    }

    #[test]
    fn tftp_survives() {
        let request = b"\0\x01vmlinuz\0octet\0windowsize\x0016\0blksize\x001468\0";
        let mut conversation = vec![request.len() as u8];
        conversation.extend_from_slice(request);
        for block in 0..40u8 {
            conversation.extend_from_slice(&[4, 0, 4, 0, block]);
        }
        conversation.extend_from_slice(&1000u16.to_le_bytes());
        damaged(&conversation, 20_000, tftp);
    }

    #[test]
    fn partition_tables_survive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        sample::empty(&path, 4 << 20).unwrap();
        let script = "label: gpt\nsize=1MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7\nsize=1MiB, type=DE94BBA4-06D1-4D40-A16A-BFD50179D6AC\n";
        sample::partition(&path, script).unwrap();
        let disk = std::fs::read(&path).unwrap();
        // Only what holds the table is worth damaging; the rest is zeros.
        for seed in 0..3_000u64 {
            let mut bytes = disk.clone();
            for chunk in sample::noise(seed, 16).chunks_exact(4) {
                let at = usize::from(u16::from_le_bytes([chunk[0], chunk[1]])) % (34 * 512);
                bytes[at] = chunk[2];
            }
            partition_table(&bytes);
        }
        partition_table(&disk);
    }

    #[test]
    fn stash_files_survive() {
        stash_file(&[0]);
        stash_file(&[1]);
        for seed in 0..300 {
            let mut damage = sample::noise(seed, 5 * (1 + seed as usize % 12));
            for change in damage.chunks_exact_mut(5) {
                // Most of the file is headers and records at its beginning; most of a block is payload.
                (change[1], change[3]) = (change[1] % 2, change[3] % 2);
            }
            stash_file(&[&[seed as u8], damage.as_slice()].concat());
        }
    }

    #[test]
    fn stash_structures_survive() {
        let header = FileHeader {
            array: ARRAY,
            node: NODE,
            regions: 9,
            region_len: 64 << 20,
            session: 4,
            write: 11,
            partitions: (1..4).map(|i| (Owner(i), i)).collect(),
        };
        damaged(&header.encode(), 5_000, stash_structures);
    }

    #[test]
    fn boot_sets_survive() {
        let entries = ["vmlinuz", "initrd.img"]
            .map(|name| bundle::BundleFile { name: name.into(), bytes: sample::noise(3, 300) })
            .to_vec();
        damaged(&bundle::pack(entries).unwrap(), 5_000, boot_set);
    }
}
