//! What fuzzers do with bytes from strangers: each function must survive anything. `cargo xtask fuzz` runs them under libFuzzer; the
//! tests here run them on damaged copies of good input.

use std::net::Ipv4Addr;

use images::bundle;
use images::disk::{Grow, fit_gpt, read_layout};
use protocol::machine::{Facts, Mac};
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
    fn boot_sets_survive() {
        let entries = ["vmlinuz", "initrd.img"]
            .map(|name| bundle::BundleFile { name: name.into(), bytes: sample::noise(3, 300) })
            .to_vec();
        damaged(&bundle::pack(entries).unwrap(), 5_000, boot_set);
    }
}
