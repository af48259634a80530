//! Opening a stash file: which records were acknowledged, and where the next one goes.
//!
//! A sealed region is read from its table; an open one, or one whose table is damaged, by walking its records and verifying their
//! payloads: a torn copy must not hide the whole one that it was made from. A record behind the tail that a crash left is
//! never taken: records of a region ascend in sequence, and a sequence begins with the session. Nothing here writes, so a
//! second crash finds what the first one left.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::iter::Peekable;
use std::{io, vec};

use images::fragment::FragmentId;

use super::index::{Index, Place};
use super::{Books, Layout, Region};
use crate::format::{Content, FileHeader, RecordHeader, RegionHeader, RegionState, decode_table, table_len};
use crate::limits::{FILE_HEADER_SLOTS, RECORD_ALIGN, RECORD_HEADER_LEN, REGION_HEAD_LEN, SLOT_LEN};
use crate::storage::Storage;

/// The newest good file header, and the highest version that any slot has.
pub(super) fn file_header(storage: &impl Storage) -> io::Result<(Option<FileHeader>, u16)> {
    let (mut best, mut version): (Option<FileHeader>, u16) = (None, 0);
    let (len, mut failed) = (storage.len()?, None);
    for offset in FILE_HEADER_SLOTS {
        let mut bytes = [0; SLOT_LEN as usize];
        if len < offset + SLOT_LEN {
            continue;
        }
        if let Err(error) = read_twice(storage, offset, &mut bytes) {
            failed = Some(error);
            continue;
        }
        version = version.max(FileHeader::version(&bytes).unwrap_or(0));
        if let Some(header) = FileHeader::decode(&bytes)
            && best.as_ref().is_none_or(|b| b.write < header.write)
        {
            best = Some(header);
        }
    }
    match (best, failed) {
        (None, Some(error)) => Err(error),
        (best, _) => Ok((best, version)),
    }
}

/// Records of several regions in the order of their sequence. A region is read when its turn comes: its records are younger than its
/// generation, so only those that were open at the same time are in memory together.
#[derive(Default)]
struct InOrder {
    regions: BTreeMap<u32, Peekable<vec::IntoIter<RecordHeader>>>,
    /// (sequence, region) of the first record that is left of each.
    next: BinaryHeap<Reverse<(u64, u32)>>,
}

impl InOrder {
    fn add(&mut self, region: u32, records: Vec<RecordHeader>) {
        self.regions.insert(region, records.into_iter().peekable());
        self.queue(region);
    }

    fn queue(&mut self, region: u32) {
        match self.regions.get_mut(&region).and_then(Peekable::peek) {
            Some(first) => self.next.push(Reverse((first.sequence, region))),
            None => drop(self.regions.remove(&region)),
        }
    }

    /// Whether a record comes before all of a region of this generation.
    fn has_before(&self, generation: u64) -> bool {
        self.next.peek().is_some_and(|Reverse((sequence, _))| *sequence < generation)
    }
}

impl Iterator for InOrder {
    type Item = RecordHeader;

    fn next(&mut self) -> Option<RecordHeader> {
        let Reverse((_, region)) = self.next.pop()?;
        let record = self.regions.get_mut(&region)?.next();
        self.queue(region);
        record
    }
}

/// Everything behind the file header: the index, the books of what lies where, and the newest session of any record.
pub(super) fn regions(storage: &impl Storage, file: &FileHeader) -> io::Result<(Index, Books, u32)> {
    let layout = Layout { region_len: file.region_len.into() };
    let (mut index, mut books, mut headers) = (Index::default(), Books::default(), Vec::new());
    let len = storage.len()?;
    for number in 0..file.regions {
        // Another program may have cut the file off: what is left counts.
        if layout.offset(number) + REGION_HEAD_LEN > len {
            break;
        }
        let mut unreadable = false;
        headers.extend(region_header(storage, layout, number, &mut unreadable));
        if unreadable {
            books.doubtful.insert(number);
        }
    }
    headers.sort_unstable_by_key(|header| header.generation);
    let (mut bad, mut records, mut newest) = (Vec::new(), InOrder::default(), 0);
    let mut headers = headers.into_iter().peekable();
    loop {
        while let Some(header) = headers.next_if(|header| !records.has_before(header.generation)) {
            let (whole, torn) = read_region(storage, layout, &header, &mut books);
            bad.extend(torn);
            records.add(header.index, whole);
        }
        let Some(record) = records.next() else { break };
        newest = newest.max(record.sequence >> super::SESSION_SHIFT);
        let place = Place::new(record.region, record.offset, record.content.record_len());
        books.apply(&mut index, record.content.id(), matches!(record.content, Content::Put(_)), place);
    }
    index.report_missing(bad);
    // What cannot be read may hold older records of anything: whatever could hide them stays.
    let doubtful: BTreeSet<(u32, u64)> = books.doubtful.iter().map(|number| (*number, 0)).collect();
    books.regions.values_mut().for_each(|region| region.guards.extend(&doubtful));
    Ok((index, books, newest as u32))
}

/// The records of a region, and the fragments of those whose payload is not what it should be: torn, and never acknowledged, or rotten.
/// The region comes into the books.
fn read_region(
    storage: &impl Storage,
    layout: Layout,
    header: &RegionHeader,
    books: &mut Books,
) -> (Vec<RecordHeader>, Vec<FragmentId>) {
    let number = header.index;
    let mut is_doubtful = books.doubtful.contains(&number);
    let table = match header.state {
        // Free, and begun anew: what is in it is of no generation that counts.
        RegionState::Sealed if header.records == 0 => Some(Vec::new()),
        RegionState::Sealed => read_table(storage, layout, header),
        RegionState::Open => None,
    };
    let (records, bad) = match table {
        Some(records) => (records, Vec::new()),
        None => whole(storage, layout, walk(storage, layout, header, layout.region_len, &mut is_doubtful)),
    };
    if is_doubtful {
        books.doubtful.insert(number);
    }
    let mut region = Region::new(*header, layout);
    region.tail = records.last().map_or(REGION_HEAD_LEN, RecordHeader::end);
    region.records = records.len() as u32;
    // Those behind the tail are written over.
    let torn = bad.iter().map(|record| record.offset);
    region.torn = torn.filter(|offset| u64::from(*offset) < region.tail).collect();
    region.is_poisoned = is_doubtful;
    books.regions.insert(number, region);
    let bad: Vec<FragmentId> = bad.iter().map(|record| record.content.id()).collect();
    for id in &bad {
        books.stale.entry(*id).or_default().insert((number, header.generation));
    }
    (records, bad)
}

/// A region's header, if it has one. It is doubtful if nothing of it can be read.
fn region_header(storage: &impl Storage, layout: Layout, number: u32, is_doubtful: &mut bool) -> Option<RegionHeader> {
    let (mut header, mut good) = (None::<RegionHeader>, 0);
    for slot in 0..2 {
        let mut bytes = [0; SLOT_LEN as usize];
        match read_twice(storage, layout.offset(number) + slot * SLOT_LEN, &mut bytes) {
            Ok(()) => good += 1,
            Err(_) => *is_doubtful = true,
        }
        let decoded = RegionHeader::decode(&bytes).filter(|h| h.index == number);
        if let Some(decoded) = decoded
            && header.is_none_or(|h| h.write < decoded.write)
        {
            header = Some(decoded);
        }
    }
    // A record proves its region's generation, even where the header that said so is gone.
    let first = record_at(storage, layout, number, REGION_HEAD_LEN).ok().flatten();
    if let Some(first) = first.filter(|first| header.is_none_or(|h| h.generation < first.generation)) {
        let write = header.map_or(0, |h| h.write + 1);
        let (owner, generation) = (first.owner, first.generation);
        header = Some(RegionHeader { index: number, state: RegionState::Open, owner, generation, write, records: 0 });
    }
    let header = header?;
    // One slot that cannot be read is no loss: the other one, or the first record, says as much.
    *is_doubtful = good == 0;
    Some(header)
}

/// The table of a sealed region, if it can be read and is good.
pub(super) fn read_table(storage: &impl Storage, layout: Layout, header: &RegionHeader) -> Option<Vec<RecordHeader>> {
    let len = table_len(header.records as usize);
    if len > layout.region_len - REGION_HEAD_LEN {
        return None;
    }
    let mut bytes = vec![0; len as usize];
    let at = layout.region_len - len;
    read_twice(storage, layout.offset(header.index) + at, &mut bytes).ok()?;
    // Good check sums are no proof that a file was written by this program.
    let is_possible = |records: &Vec<RecordHeader>| {
        records.iter().all(|r| r.region == header.index && r.end() <= at)
            && records.is_sorted_by(|a, b| a.sequence < b.sequence && a.end() <= b.offset.into())
    };
    decode_table(&bytes, header.generation, header.records as usize).filter(is_possible)
}

fn record_at(storage: &impl Storage, layout: Layout, region: u32, at: u64) -> io::Result<Option<RecordHeader>> {
    let mut bytes = [0; RECORD_HEADER_LEN];
    read_twice(storage, layout.offset(region) + at, &mut bytes)?;
    Ok(RecordHeader::decode(&bytes).filter(|record| {
        (record.region, u64::from(record.offset)) == (region, at) && record.end() <= layout.region_len
    }))
}

/// Walk records from the start to `until`. Where one is damaged or cannot be read, the walk goes on at the next boundary: a record is taken
/// only if it is of this generation and in order, so nothing that was left behind a tail counts.
pub(super) fn walk(
    storage: &impl Storage,
    layout: Layout,
    header: &RegionHeader,
    until: u64,
    is_doubtful: &mut bool,
) -> Vec<RecordHeader> {
    let mut records: Vec<RecordHeader> = Vec::new();
    let (mut at, mut newest) = (REGION_HEAD_LEN, 0);
    while at + RECORD_HEADER_LEN as u64 <= until {
        let record = record_at(storage, layout, header.index, at);
        *is_doubtful |= record.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::UnexpectedEof);
        let record =
            record.ok().flatten().filter(|record| record.generation == header.generation && record.sequence > newest);
        let Some(record) = record else {
            at += RECORD_ALIGN;
            continue;
        };
        (newest, at) = (record.sequence, record.end());
        records.push(record);
    }
    records
}

/// Those records whose payload is what it should be, and the others.
fn whole(storage: &impl Storage, layout: Layout, records: Vec<RecordHeader>) -> (Vec<RecordHeader>, Vec<RecordHeader>) {
    let is_whole = |record: &RecordHeader| {
        let Content::Put(header) = &record.content else { return true };
        let mut payload = vec![0; header.payload_len()];
        let at = layout.offset(record.region) + u64::from(record.offset) + RECORD_HEADER_LEN as u64;
        match read_twice(storage, at, &mut payload) {
            Ok(()) => header.verify(&payload).is_ok(),
            // Nobody can tell: reading will.
            Err(error) => error.kind() != io::ErrorKind::UnexpectedEof,
        }
    };
    records.into_iter().partition(is_whole)
}

/// A medium that fails once may have been disturbed; one that fails twice is damaged there.
fn read_twice(storage: &impl Storage, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    storage.read_exact_at(at, buffer).or_else(|_| storage.read_exact_at(at, buffer))
}

impl Books {
    /// Take one record into account. Records come in the order of their sequence.
    pub(super) fn apply(&mut self, index: &mut Index, id: FragmentId, is_put: bool, place: Place) {
        let old = index.set(id, is_put.then_some(place));
        let mut hidden = self.stale.remove(&id).unwrap_or_default();
        if let Some(old) = old
            && let Some(victim) = self.regions.get_mut(&old.region)
        {
            victim.live -= 1;
            victim.live_bytes -= old.record_len();
            hidden.insert((old.region, victim.header.generation));
        }
        if let Some(region) = self.regions.get_mut(&place.region) {
            region.guards.extend(hidden);
            if is_put {
                region.live += 1;
                region.live_bytes += place.record_len();
            } else {
                region.deletions += 1;
            }
        }
    }

    /// Whether a region still has records that another one hides.
    pub(super) fn is_needed(&self, own: u32, (victim, generation): (u32, u64)) -> bool {
        victim != own
            && (self.doubtful.contains(&victim)
                || self.regions.get(&victim).is_some_and(|r| r.header.generation == generation))
    }

    /// Some places have no records any more that something must hide.
    pub(super) fn forget_stale(&mut self, is_gone: impl Fn(u32, u64) -> bool) {
        self.stale.retain(|_, places| {
            places.retain(|(region, generation)| !is_gone(*region, *generation));
            !places.is_empty()
        });
    }

    /// Forget what reading found damaged: it is on the medium, and nothing hides it.
    pub(super) fn orphan(&mut self, id: FragmentId, place: Place) {
        if let Some(region) = self.regions.get_mut(&place.region) {
            region.live -= 1;
            region.live_bytes -= place.record_len();
            self.stale.entry(id).or_default().insert((place.region, region.header.generation));
        }
    }
}

/// Ids with records that lie on the medium and are neither live nor hidden: whatever comes after them must hide them.
pub(super) type Stale = BTreeMap<FragmentId, BTreeSet<(u32, u64)>>;
