//! Opening a stash file: which records were acknowledged, and where the next one goes.
//!
//! A sealed region is read from its table; an open one, or one whose table is damaged, by walking its records. A record
//! behind the tail that a crash left is never taken: records of a region ascend in sequence and never go back in session.

use std::collections::BTreeMap;
use std::io;

use super::index::{self, Index, Place};
use super::{Region, region_offset};
use crate::format::{FileHeader, RecordHeader, RegionHeader, RegionState, decode_table, table_len};
use crate::limits::{RECORD_ALIGN, RECORD_HEADER_LEN, REGION_HEAD_LEN, REGION_LEN, SLOT_LEN};
use crate::storage::Storage;

/// What a file holds.
pub(super) struct Recovered {
    pub(super) regions: BTreeMap<u32, Region>,
    pub(super) index: Index,
    pub(super) next_sequence: u64,
}

/// The newer good file header.
pub(super) fn file_header(storage: &impl Storage) -> io::Result<Option<FileHeader>> {
    let mut best: Option<FileHeader> = None;
    for slot in 0..2 {
        let mut bytes = [0; SLOT_LEN as usize];
        if storage.len()? < (slot + 1) * SLOT_LEN {
            continue;
        }
        storage.read_exact_at(slot * SLOT_LEN, &mut bytes)?;
        if let Some(header) = FileHeader::decode(&bytes)
            && best.is_none_or(|b| b.session < header.session)
        {
            best = Some(header);
        }
    }
    Ok(best)
}

/// Everything behind the file header.
pub(super) fn regions(storage: &impl Storage, file: &FileHeader) -> io::Result<Recovered> {
    let mut regions = BTreeMap::new();
    let mut all: Vec<(RecordHeader, Place)> = Vec::new();
    let mut index = Index::default();
    for number in 0..file.regions {
        if region_offset(number) + REGION_LEN > storage.len()? {
            break;
        }
        let Some(header) = region_header(storage, number)? else {
            continue;
        };
        let mut region = Region::new(header);
        region.records = match header.state {
            RegionState::Sealed => match read_table(storage, &header)? {
                Some(records) => records,
                None => walk(storage, &header, file.session)?,
            },
            RegionState::Open => drop_torn_tail(storage, number, walk(storage, &header, file.session)?)?,
        };
        region.tail = region.records.last().map_or(REGION_HEAD_LEN, |(at, r)| u64::from(*at) + r.record_len());
        let place = |&(offset, record): &(u32, RecordHeader)| (record, Place { region: number, offset });
        all.extend(region.records.iter().map(place));
        regions.insert(number, region);
    }
    all.sort_by_key(|(record, _)| record.sequence);
    let next_sequence = all.last().map_or(1, |(record, _)| record.sequence + 1);
    for (record, place) in &all {
        index::apply(&mut index, &mut regions, record, *place);
    }
    Ok(Recovered { regions, index, next_sequence })
}

fn region_header(storage: &impl Storage, number: u32) -> io::Result<Option<RegionHeader>> {
    let mut best: Option<RegionHeader> = None;
    for slot in 0..2 {
        let mut bytes = [0; SLOT_LEN as usize];
        storage.read_exact_at(region_offset(number) + slot * SLOT_LEN, &mut bytes)?;
        let header = RegionHeader::decode(&bytes).filter(|h| h.index == number);
        if let Some(header) = header
            && best.is_none_or(|b| b.write < header.write)
        {
            best = Some(header);
        }
    }
    Ok(best)
}

fn read_table(storage: &impl Storage, header: &RegionHeader) -> io::Result<Option<Vec<(u32, RecordHeader)>>> {
    let len = table_len(header.records as usize);
    if len > REGION_LEN - REGION_HEAD_LEN {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    storage.read_exact_at(region_offset(header.index) + REGION_LEN - len, &mut bytes)?;
    Ok(decode_table(&bytes, header.generation, header.records as usize))
}

/// Walk records from the start. Where one is damaged or cannot be read, the walk goes on at the next boundary: a record is taken
/// only if it is of this generation and in order, so nothing that was left behind a tail counts.
fn walk(storage: &impl Storage, header: &RegionHeader, session: u32) -> io::Result<Vec<(u32, RecordHeader)>> {
    let mut records: Vec<(u32, RecordHeader)> = Vec::new();
    let mut at = REGION_HEAD_LEN;
    let (mut sequence, mut newest) = (0, 0);
    while at + RECORD_HEADER_LEN as u64 <= REGION_LEN {
        let mut bytes = [0; RECORD_HEADER_LEN];
        let read = storage.read_exact_at(region_offset(header.index) + at, &mut bytes);
        let record = read.ok().and_then(|()| RecordHeader::decode(&bytes)).filter(|record| {
            record.generation == header.generation
                && record.sequence > sequence
                && (newest..session).contains(&record.session)
                && at + record.record_len() <= REGION_LEN
        });
        let Some(record) = record else {
            at += RECORD_ALIGN;
            continue;
        };
        (sequence, newest) = (record.sequence, record.session);
        records.push((at as u32, record));
        at += record.record_len();
    }
    Ok(records)
}

/// Records at the end whose payload did not arrive whole were never acknowledged. A damaged one in front of a good one stays:
/// reading it will tell.
fn drop_torn_tail(
    storage: &impl Storage,
    number: u32,
    mut records: Vec<(u32, RecordHeader)>,
) -> io::Result<Vec<(u32, RecordHeader)>> {
    while let Some((offset, record)) = records.last() {
        let mut payload = vec![0; record.payload_len()];
        let at = region_offset(number) + u64::from(*offset) + RECORD_HEADER_LEN as u64;
        storage.read_exact_at(at, &mut payload)?;
        if payload.is_empty() || record.fragment.verify(&payload).is_ok() {
            break;
        }
        records.pop();
    }
    Ok(records)
}
