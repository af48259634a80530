//! Byte layouts of the stash file. All integers are little endian; every structure ends in or carries a check sum, and a
//! structure that does not decode is treated as absent, never as an error of its own.
//!
//! Records and tables contain fragment headers, which end in a CRC-32C of their own. Another CRC around those would not notice that
//! one is exchanged for another: what ends in its own CRC leaves the same remainder, whatever it says. So theirs is a BLAKE3.

use std::collections::BTreeMap;

use images::fragment::{FragmentHeader, FragmentId};
use images::limits::FRAGMENT_HEADER_LEN;
use images::{ArrayId, NodeId, SegmentId};
use protocol::message::store::Owner;

use crate::limits::{
    PARTITIONS_MAX, RECORD_ALIGN, RECORD_HEADER_LEN, REGION_LEN_MAX, REGION_LEN_MIN, SLOT_LEN, TABLE_HEADER_LEN,
};

/// Versions of the file format: one line each for what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FileVersion {
    /// First format; nothing that was released wrote it.
    V1 = 1,
    /// Partitions, two copies of the file header, records that know their owner and their place.
    V2 = 2,
}

const FILE_MAGIC: [u8; 8] = *b"COESTASH";
const REGION_MAGIC: [u8; 4] = *b"CRGN";
const RECORD_MAGIC: [u8; 4] = *b"CREC";
const TABLE_MAGIC: [u8; 4] = *b"CTBL";
const FRAGMENT_AT: usize = RECORD_HEADER_LEN - FRAGMENT_HEADER_LEN;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Put the CRC of all bytes before it into the last four.
fn seal<const N: usize>(mut bytes: [u8; N]) -> [u8; N] {
    let crc = crc32c::crc32c(&bytes[..N - 4]);
    bytes[N - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn is_sealed(bytes: &[u8]) -> bool {
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    crc == crc32c::crc32c(body).to_le_bytes()
}

/// The first bytes of a BLAKE3.
fn check<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes().first_chunk().expect("a BLAKE3 is longer")
}

/// The file's own header, in two slots, both of them twice; the one with the highest `write` counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// The array it serves.
    pub array: ArrayId,
    /// The member whose file it is: a file copied to another machine is noticed.
    pub node: NodeId,
    /// Number of regions.
    pub regions: u32,
    /// Bytes of a region.
    pub region_len: u32,
    /// Counts up each time the file is opened; records carry it, so that what a crash left behind the tail never counts.
    pub session: u32,
    /// Counts header writes.
    pub write: u64,
    /// Regions that are reserved for each owner.
    pub partitions: BTreeMap<Owner, u32>,
}

impl FileHeader {
    /// One slot.
    #[must_use]
    pub fn encode(&self) -> [u8; SLOT_LEN as usize] {
        let mut out = [0; SLOT_LEN as usize];
        out[..8].copy_from_slice(&FILE_MAGIC);
        out[8..10].copy_from_slice(&(FileVersion::V2 as u16).to_le_bytes());
        out[16..48].copy_from_slice(&self.array.0);
        out[48..64].copy_from_slice(&self.node.0);
        out[64..68].copy_from_slice(&self.regions.to_le_bytes());
        out[68..72].copy_from_slice(&self.region_len.to_le_bytes());
        out[72..76].copy_from_slice(&self.session.to_le_bytes());
        out[76..80].copy_from_slice(&(self.partitions.len() as u32).to_le_bytes());
        out[80..88].copy_from_slice(&self.write.to_le_bytes());
        for (i, (owner, reserved)) in self.partitions.iter().enumerate() {
            let at = 96 + i * 8;
            out[at..at + 4].copy_from_slice(&owner.0.to_le_bytes());
            out[at + 4..at + 8].copy_from_slice(&reserved.to_le_bytes());
        }
        seal(out)
    }

    /// Undo [`FileHeader::encode`].
    #[must_use]
    pub fn decode(slot: &[u8; SLOT_LEN as usize]) -> Option<Self> {
        let partitions = u32_at(slot, 76) as usize;
        let region_len = u64::from(u32_at(slot, 68));
        let possible = slot[..8] == FILE_MAGIC
            && is_sealed(slot)
            && partitions <= PARTITIONS_MAX
            && (REGION_LEN_MIN..=REGION_LEN_MAX).contains(&region_len)
            && region_len.is_multiple_of(RECORD_ALIGN);
        if !possible {
            return None;
        }
        let partition = |i: usize| (Owner(u32_at(slot, 96 + i * 8)), u32_at(slot, 100 + i * 8));
        let header = Self {
            array: ArrayId(slot[16..48].try_into().ok()?),
            node: NodeId(slot[48..64].try_into().ok()?),
            regions: u32_at(slot, 64),
            region_len: region_len as u32,
            session: u32_at(slot, 72),
            write: u64_at(slot, 80),
            partitions: (0..partitions).map(partition).collect(),
        };
        (header.encode() == *slot).then_some(header)
    }

    /// The version of a good slot, whatever it is.
    #[must_use]
    pub fn version(slot: &[u8; SLOT_LEN as usize]) -> Option<u16> {
        (slot[..8] == FILE_MAGIC && is_sealed(slot)).then(|| u16::from_le_bytes([slot[8], slot[9]]))
    }
}

/// What a region is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RegionState {
    /// Records are appended; their place is found by walking them.
    Open = 1,
    /// Full; its table at the end lists its records.
    Sealed = 2,
}

/// A region's header, in two slots; the one with the higher `write` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionHeader {
    /// Its number in the file: a region written to a wrong place is noticed.
    pub index: u32,
    /// State.
    pub state: RegionState,
    /// Whose records it holds: regions are the unit of reservation.
    pub owner: Owner,
    /// Higher each time a region is used anew, and never the same for two of the file; records of another generation are dead.
    pub generation: u64,
    /// Counts header writes.
    pub write: u64,
    /// Records in the table of a sealed region.
    pub records: u32,
}

impl RegionHeader {
    /// One slot.
    #[must_use]
    pub fn encode(&self) -> [u8; SLOT_LEN as usize] {
        let mut out = [0; SLOT_LEN as usize];
        out[..4].copy_from_slice(&REGION_MAGIC);
        out[4] = FileVersion::V2 as u8;
        out[5] = self.state as u8;
        out[8..12].copy_from_slice(&self.index.to_le_bytes());
        out[12..16].copy_from_slice(&self.owner.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.generation.to_le_bytes());
        out[24..32].copy_from_slice(&self.write.to_le_bytes());
        out[32..36].copy_from_slice(&self.records.to_le_bytes());
        seal(out)
    }

    /// Undo [`RegionHeader::encode`].
    #[must_use]
    pub fn decode(slot: &[u8; SLOT_LEN as usize]) -> Option<Self> {
        let state = match slot[5] {
            1 => RegionState::Open,
            2 => RegionState::Sealed,
            _ => return None,
        };
        let header = Self {
            index: u32_at(slot, 8),
            state,
            owner: Owner(u32_at(slot, 12)),
            generation: u64_at(slot, 16),
            write: u64_at(slot, 24),
            records: u32_at(slot, 32),
        };
        (slot[..4] == REGION_MAGIC && is_sealed(slot) && header.encode() == *slot).then_some(header)
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// This fragment is here; its payload follows.
    Put(FragmentHeader),
    /// This fragment is no longer here.
    Delete(FragmentId),
}

impl Content {
    /// Which fragment it is about.
    #[must_use]
    pub fn id(&self) -> FragmentId {
        match self {
            Self::Put(header) => header.id,
            Self::Delete(id) => *id,
        }
    }

    /// Bytes that follow the record's header.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Put(header) => header.payload_len(),
            Self::Delete(_) => 0,
        }
    }

    /// Bytes that such a record takes in a region.
    #[must_use]
    pub fn record_len(&self) -> u64 {
        ((RECORD_HEADER_LEN + self.payload_len()) as u64).next_multiple_of(RECORD_ALIGN)
    }
}

/// In front of every payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it says.
    pub content: Content,
    /// Whose record it is.
    pub owner: Owner,
    /// Orders records across regions.
    pub sequence: u64,
    /// The region's generation.
    pub generation: u64,
    /// The region that it was written to; elsewhere it means nothing.
    pub region: u32,
    /// The same for its byte offset in the region.
    pub offset: u32,
}

impl RecordHeader {
    /// Byte offset in its region behind the record.
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + self.content.record_len()
    }

    /// The layout of `docs/formats.md`, section "Record".
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_HEADER_LEN] {
        let mut out = [0; RECORD_HEADER_LEN];
        out[..4].copy_from_slice(&RECORD_MAGIC);
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&self.generation.to_le_bytes());
        out[28..32].copy_from_slice(&self.owner.0.to_le_bytes());
        out[32..36].copy_from_slice(&self.region.to_le_bytes());
        out[36..40].copy_from_slice(&self.offset.to_le_bytes());
        match &self.content {
            Content::Put(header) => {
                out[4] = 1;
                out[FRAGMENT_AT..].copy_from_slice(&header.encode());
            }
            Content::Delete(id) => {
                out[4] = 2;
                out[FRAGMENT_AT..FRAGMENT_AT + 32].copy_from_slice(&id.segment.0);
                out[FRAGMENT_AT + 32] = id.piece;
            }
        }
        let sum: [u8; 8] = check(&[&out[..40], &out[48..]]);
        out[40..48].copy_from_slice(&sum);
        out
    }

    /// Undo [`RecordHeader::encode`].
    #[must_use]
    pub fn decode(bytes: &[u8; RECORD_HEADER_LEN]) -> Option<Self> {
        // Most of what is looked at is no record.
        if bytes[..4] != RECORD_MAGIC {
            return None;
        }
        let about: &[u8; FRAGMENT_HEADER_LEN] = bytes[FRAGMENT_AT..].try_into().ok()?;
        let content = match bytes[4] {
            1 => Content::Put(FragmentHeader::decode(about).ok()?),
            2 => Content::Delete(FragmentId { segment: SegmentId(about[..32].try_into().ok()?), piece: about[32] }),
            _ => return None,
        };
        let header = Self {
            content,
            owner: Owner(u32_at(bytes, 28)),
            sequence: u64_at(bytes, 8),
            generation: u64_at(bytes, 16),
            region: u32_at(bytes, 32),
            offset: u32_at(bytes, 36),
        };
        (header.encode() == *bytes).then_some(header)
    }
}

/// The table at the end of a sealed region: its records, so that opening a stash reads kilobytes a region.
#[must_use]
pub fn encode_table(generation: u64, records: &[RecordHeader]) -> Vec<u8> {
    let mut out = Vec::with_capacity(table_len(records.len()) as usize);
    out.extend_from_slice(&TABLE_MAGIC);
    out.extend_from_slice(&(records.len() as u32).to_le_bytes());
    out.extend_from_slice(&generation.to_le_bytes());
    out.resize(TABLE_HEADER_LEN, 0);
    for record in records {
        out.extend_from_slice(&record.encode());
    }
    let sum: [u8; 16] = check(&[&out[..16], &out[TABLE_HEADER_LEN..]]);
    out[16..32].copy_from_slice(&sum);
    out.resize(table_len(records.len()) as usize, 0);
    out
}

/// Bytes that a table of `records` entries takes, whole blocks.
#[must_use]
pub fn table_len(records: usize) -> u64 {
    ((TABLE_HEADER_LEN + records * RECORD_HEADER_LEN) as u64).next_multiple_of(RECORD_ALIGN)
}

/// Undo [`encode_table`].
#[must_use]
pub fn decode_table(bytes: &[u8], generation: u64, records: usize) -> Option<Vec<RecordHeader>> {
    let used = bytes.get(..TABLE_HEADER_LEN + records.checked_mul(RECORD_HEADER_LEN)?)?;
    let good = used[..4] == TABLE_MAGIC
        && u32_at(used, 4) as usize == records
        && u64_at(used, 8) == generation
        && used[16..32] == check::<16>(&[&used[..16], &used[TABLE_HEADER_LEN..]]);
    if !good {
        return None;
    }
    let entry = |e: &[u8]| RecordHeader::decode(e.try_into().ok()?);
    used[TABLE_HEADER_LEN..].chunks_exact(RECORD_HEADER_LEN).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::FragmentDigest;
    use images::parity::Geometry;

    fn record(sequence: u64) -> RecordHeader {
        let id = FragmentId { segment: SegmentId([3; 32]), piece: 1 };
        let header = FragmentHeader {
            id,
            geometry: Geometry::new(2, 1).unwrap(),
            sealed_len: 1000,
            digest: FragmentDigest([4; 32]),
        };
        let content = if sequence.is_multiple_of(2) { Content::Delete(id) } else { Content::Put(header) };
        RecordHeader { content, owner: Owner(6), sequence, generation: 7, region: 5, offset: 8192 }
    }

    fn every_flip_is_noticed<const N: usize, T: PartialEq>(bytes: [u8; N], decode: fn(&[u8; N]) -> Option<T>) {
        assert!(decode(&bytes).is_some());
        for at in 0..N {
            let mut changed = bytes;
            changed[at] ^= 4;
            assert!(decode(&changed).is_none(), "byte {at}");
        }
    }

    #[test]
    fn headers_round_trip_and_notice_every_flip() {
        let file = FileHeader {
            array: ArrayId([1; 32]),
            node: NodeId([2; 16]),
            regions: 9,
            region_len: 1 << 20,
            session: 4,
            write: 11,
            partitions: (1..=PARTITIONS_MAX as u32).map(|i| (Owner(i), i * 3)).collect(),
        };
        assert_eq!(FileHeader::decode(&file.encode()).as_ref(), Some(&file));
        every_flip_is_noticed(file.encode(), FileHeader::decode);
        let region =
            RegionHeader { index: 3, state: RegionState::Sealed, owner: Owner(1), generation: 5, write: 6, records: 2 };
        assert_eq!(RegionHeader::decode(&region.encode()), Some(region));
        every_flip_is_noticed(region.encode(), RegionHeader::decode);
        for record in [record(1), record(2)] {
            assert_eq!(RecordHeader::decode(&record.encode()), Some(record));
            every_flip_is_noticed(record.encode(), RecordHeader::decode);
        }
    }

    #[test]
    fn another_fragment_in_the_same_record_is_noticed() {
        let RecordHeader { content: Content::Put(mut header), .. } = record(1) else { unreachable!("it is odd") };
        header.id.segment = SegmentId([9; 32]);
        let mut bytes = record(1).encode();
        bytes[FRAGMENT_AT..].copy_from_slice(&header.encode());
        assert_eq!(RecordHeader::decode(&bytes), None);
    }

    #[test]
    fn tables_round_trip_and_notice_flips() {
        let records = vec![record(1), record(2)];
        let bytes = encode_table(7, &records);
        assert_eq!(decode_table(&bytes, 7, 2), Some(records));
        assert_eq!(decode_table(&bytes, 8, 2), None);
        assert_eq!(decode_table(&bytes, 7, 3), None);
        assert_eq!(decode_table(&bytes, 7, usize::MAX), None);
        for at in 0..TABLE_HEADER_LEN + 2 * RECORD_HEADER_LEN {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(decode_table(&changed, 7, 2), None, "byte {at}");
        }
    }
}
