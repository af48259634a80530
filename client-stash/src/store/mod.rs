//! The store: append-only regions in one file. Write, sync, then acknowledge; never overwrite in place; a deletion is a
//! record too; a region is reused only when nothing in it is needed, under a new generation. Until then the space of what is dead
//! in it goes back to the file system, and the file has another region for that.
//!
//! *Guards*: a record that hides an older one of the same fragment (a deletion, or the same put again) must stay as long as the older
//! one is on the medium, or the older one would come back. Each region knows which (region, generation) it hides records of.

mod compact;
mod index;
mod reader;
mod recover;
mod space;

pub use compact::Shrinking;
pub use index::{Index, Place};
pub use reader::Reader;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use images::fragment::{FragmentHeader, FragmentId};
use images::{ArrayId, NodeId};
use protocol::message::store::{OWNER_IMAGES, Owner};

use crate::format::{Content, FileHeader, FileVersion, RecordHeader, RegionHeader, RegionState, encode_table};
use crate::limits::{
    FILE_HEAD_LEN, FILE_HEADER_COPY, PARTITIONS_MAX, RECORD_ALIGN, REGION_HEAD_LEN, REGION_LEN, REGION_LEN_MAX,
    REGIONS_MAX, REGIONS_MIN, SLOT_LEN, SPARES,
};
use crate::storage::Storage;
use recover::Stale;

/// A sequence begins with the session, so that it ascends across sessions whatever was lost.
const SESSION_SHIFT: u32 = 40;

/// Why a stash file does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The medium failed.
    #[error("read the stash file")]
    Io(#[from] io::Error),
    /// No header slot is good.
    #[error("the stash file has no readable header: it is another file, or damaged; move it away and join again")]
    Header,
    /// Made by a version of this program that this one does not know, or that was never released.
    #[error(
        "the stash file has format {0}, and this program reads format 2: use the program that made it, or join again"
    )]
    Version(u16),
    /// A file of another array or another machine.
    #[error("the stash file belongs to member {found} of another place: a stash cannot be copied; join again")]
    Foreign {
        /// Whose it is.
        found: NodeId,
    },
    /// Fewer or more regions than are possible.
    #[error("a stash has {REGIONS_MIN} to {REGIONS_MAX} regions of 64 MiB, not {0}")]
    Size(u32),
}

/// Why something is not stored, deleted or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Every region that its owner may use is in use.
    #[error("the stash is full")]
    Full,
    /// Nothing is reserved for this owner.
    #[error("owner {} has no partition in this stash", .0.0)]
    NoPartition(Owner),
    /// What is asked for does not fit what is in use.
    #[error("{0}")]
    Reservation(String),
    /// The payload is not what its header says.
    #[error("verify the fragment")]
    Fragment(#[from] images::fragment::FragmentError),
    /// The medium failed; nothing was acknowledged.
    #[error("write to the stash file")]
    Io(#[from] io::Error),
    /// The fragment is not here.
    #[error("fragment {0} is not here")]
    NotHere(FragmentId),
    /// It was here, and its record is damaged now.
    #[error("the record of fragment {0} is damaged")]
    Damaged(FragmentId),
}

/// One region as the store knows it.
#[derive(Clone, Debug)]
struct Region {
    header: RegionHeader,
    /// Bytes of every region.
    region_len: u64,
    /// Where the next record goes.
    tail: u64,
    /// Records that its table has, or will have.
    records: u32,
    /// While it is open: where opening the file found records that are torn. No table lists them.
    torn: BTreeSet<u32>,
    /// Fragments that live here.
    live: u32,
    /// Bytes of their records.
    live_bytes: u64,
    /// Deletions.
    deletions: u32,
    /// Bytes of it that the file system has back.
    given_back: u64,
    /// Its table is no good; so nothing more is given back of it.
    has_no_table: bool,
    /// (region, generation) of older records that records here hide.
    guards: BTreeSet<(u32, u64)>,
    /// Nothing more is appended: a write or a sync failed, or something of it cannot be read.
    is_poisoned: bool,
}

/// What lies where.
#[derive(Default)]
struct Books {
    regions: BTreeMap<u32, Region>,
    stale: Stale,
    /// Regions of which something could not be read at opening.
    doubtful: BTreeSet<u32>,
}

/// Where regions begin.
#[derive(Clone, Copy)]
struct Layout {
    region_len: u64,
}

impl Layout {
    fn offset(self, region: u32) -> u64 {
        FILE_HEAD_LEN + u64::from(region) * self.region_len
    }
}

/// An owner's part of a stash, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Partition {
    /// Granted, whole regions.
    pub reserved: u64,
    /// Regions that have records of this owner, less what of them was given back.
    pub used: u64,
    /// Records of fragments that are here.
    pub live: u64,
    /// Records that nobody needs, and that still take space.
    pub dead: u64,
}

/// How full a stash is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that may be in use: what is reserved for owners.
    pub capacity: u64,
    /// Bytes that the whole file takes on its medium.
    pub file: u64,
    /// Bytes of regions in use.
    pub used: u64,
    /// Live fragments.
    pub fragments: u64,
    /// Each owner's part.
    pub partitions: BTreeMap<u32, Partition>,
    /// Regions of which something cannot be read.
    pub unreadable_regions: u32,
    /// Syncs and writes that failed since the start.
    pub failures: u64,
    /// Counts up each time the file is opened.
    pub session: u32,
}

/// The store. One owner writes; [`Store::reader`] reads beside it.
pub struct Store<S> {
    storage: Arc<S>,
    file: FileHeader,
    layout: Layout,
    books: Books,
    index: Arc<RwLock<Index>>,
    next_sequence: u64,
    /// Records written since the last sync; the index does not know them yet.
    fresh: Vec<RecordHeader>,
    /// Regions that take more records.
    open: BTreeSet<u32>,
    /// Regions that are free, or some of them.
    free: BTreeSet<u32>,
    /// Regions whose records must be read again: a sync failed while they were written.
    suspects: BTreeSet<u32>,
    /// Regions of which the file takes the space. It may have more, of which parts were given back.
    size: u32,
    /// Whether the medium takes space back, as far as that is known.
    can_punch: bool,
    /// While the file is made smaller: the number of regions that stay.
    shrinking: Option<u32>,
    /// A region is being emptied: what is written may use the last free one.
    is_copying: bool,
    failures: u64,
}

/// Regions that are granted to owners, and the spare ones.
fn entitled(file: &FileHeader) -> u32 {
    file.partitions.values().fold(SPARES as u32, |sum, regions| sum.saturating_add(*regions)).min(REGIONS_MAX)
}

fn write_file_header(storage: &impl Storage, header: &FileHeader) -> io::Result<()> {
    let (slot, bytes) = (header.write % 2 * SLOT_LEN, header.encode());
    storage.write_all_at(slot, &bytes)?;
    storage.write_all_at(FILE_HEADER_COPY + slot, &bytes)?;
    storage.sync()
}

/// What records are for: whoever frees space may use the last of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Store,
    Free,
}

impl<S: Storage> Store<S> {
    /// Make a new, empty stash file, with all its space reserved. All but two regions, which are needed to give space back, are granted
    /// to the array's images.
    ///
    /// # Errors
    /// [`OpenError::Size`], or the medium's.
    pub fn create(storage: S, array: ArrayId, node: NodeId, regions: u32) -> Result<Self, OpenError> {
        Self::create_with(storage, array, node, regions, REGION_LEN)
    }

    /// The same with regions of another length: tests fill small ones sooner.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_with(
        storage: S,
        array: ArrayId,
        node: NodeId,
        regions: u32,
        region_len: u64,
    ) -> Result<Self, OpenError> {
        if !(REGIONS_MIN..=REGIONS_MAX).contains(&regions) || region_len > REGION_LEN_MAX {
            return Err(OpenError::Size(regions));
        }
        storage.allocate(0, FILE_HEAD_LEN + u64::from(regions) * region_len)?;
        let partitions = BTreeMap::from([(OWNER_IMAGES, regions - SPARES as u32)]);
        let header =
            FileHeader { array, node, regions, region_len: region_len as u32, session: 0, write: 0, partitions };
        write_file_header(&storage, &header)?;
        Self::open(storage, array, node)
    }

    /// Open a stash file and find everything that was acknowledged.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is changed on the medium before the file is known to be this member's.
    pub fn open(storage: S, array: ArrayId, node: NodeId) -> Result<Self, OpenError> {
        let (file, version) = recover::file_header(&storage)?;
        let mut file = match file {
            Some(file) => file,
            None if version != 0 && version != FileVersion::V2 as u16 => return Err(OpenError::Version(version)),
            None => return Err(OpenError::Header),
        };
        if file.array != array || file.node != node {
            return Err(OpenError::Foreign { found: file.node });
        }
        // What a killed process wrote becomes durable, and what never reached the medium is not shown any more: from here on, what is
        // read is what is there.
        storage.sync()?;
        storage.forget(0, storage.len()?);
        let (index, books, newest) = recover::regions(&storage, &file)?;
        // Of a file that was cut off, the space is reserved again; where there is none now, writing will say so.
        let whole = FILE_HEAD_LEN + u64::from(file.regions) * u64::from(file.region_len);
        if storage.len()? < whole {
            let _ = storage.allocate(0, whole);
        }
        (file.session, file.write) = (file.session.max(newest) + 1, file.write + 1);
        write_file_header(&storage, &file)?;
        let is_open = |r: &&Region| r.header.state == RegionState::Open && !r.is_poisoned;
        let open = books.regions.values().filter(is_open).map(|r| r.header.index).collect();
        let mut store = Self {
            size: entitled(&file),
            can_punch: true,
            open,
            storage: Arc::new(storage),
            layout: Layout { region_len: file.region_len.into() },
            books,
            index: Arc::new(RwLock::new(index)),
            next_sequence: (u64::from(file.session) << SESSION_SHIFT) + 1,
            file,
            fresh: Vec::new(),
            free: BTreeSet::new(),
            suspects: BTreeSet::new(),
            shrinking: None,
            is_copying: false,
            failures: 0,
        };
        if store.file.regions > store.size {
            // How much of it was given back is not written anywhere: what is given back again is counted.
            store.trim();
        }
        Ok(store)
    }

    /// A handle that reads.
    #[must_use]
    pub fn reader(&self) -> Reader<S> {
        Reader::new(self.storage.clone(), self.layout, self.index.clone())
    }

    /// Give a file handle back, for tests that crash and open again.
    #[must_use]
    pub fn storage(&self) -> Arc<S> {
        self.storage.clone()
    }

    /// How full it is.
    pub fn usage(&mut self) -> Usage {
        self.settle();
        let region_len = self.layout.region_len;
        let mut partitions: BTreeMap<u32, Partition> = BTreeMap::new();
        for (owner, reserved) in &self.file.partitions {
            partitions.entry(owner.0).or_default().reserved = u64::from(*reserved) * region_len;
        }
        for region in self.books.regions.values().filter(|r| !self.is_dead(r)) {
            let partition = partitions.entry(region.header.owner.0).or_default();
            partition.used += region.held();
            partition.live += region.live_bytes;
            // Of what was given back, some may have been room behind the last record.
            let taken = region.held().min(region.tail) - REGION_HEAD_LEN;
            partition.dead += taken.saturating_sub(region.live_bytes);
        }
        let granted: u32 = self.file.partitions.values().sum();
        let kept = self.shrinking.map_or(0, |regions| (granted + SPARES as u32).saturating_sub(regions));
        let reserved: u64 = partitions.values().map(|p| p.reserved).sum();
        Usage {
            capacity: reserved.saturating_sub(u64::from(kept) * region_len),
            file: FILE_HEAD_LEN + self.held(),
            used: partitions.values().map(|p| p.live + p.dead).sum(),
            fragments: self.index().len() as u64,
            partitions,
            unreadable_regions: self.books.doubtful.len() as u32,
            failures: self.failures,
            session: self.file.session,
        }
    }

    /// Grant an owner so many regions, or fewer than before, or none any more.
    ///
    /// # Errors
    /// [`StoreError::Reservation`] if others have them, or this owner uses more.
    pub fn reserve(&mut self, owner: Owner, regions: u32) -> Result<(), StoreError> {
        self.settle();
        let mut partitions = self.file.partitions.clone();
        partitions.insert(owner, regions);
        let granted: u64 = partitions.values().map(|r| u64::from(*r)).sum();
        let possible = u64::from(self.shrinking.unwrap_or(self.size)) - SPARES as u64;
        if granted > possible {
            let others = granted - u64::from(regions);
            return Err(StoreError::Reservation(format!(
                "others have {others} of {possible} regions of {} MiB: {regions} more are not there",
                self.layout.region_len >> 20
            )));
        }
        let used = self.held_of(owner).div_ceil(self.layout.region_len);
        if used > regions.into() {
            return Err(StoreError::Reservation(format!("its owner uses {used} regions, {regions} are not enough")));
        }
        if regions == 0 {
            partitions.remove(&owner);
        }
        if partitions.len() > PARTITIONS_MAX {
            return Err(StoreError::Reservation(format!("a stash has at most {PARTITIONS_MAX} partitions")));
        }
        self.change_header(|file| file.partitions = partitions)
    }

    fn change_header(&mut self, change: impl FnOnce(&mut FileHeader)) -> Result<(), StoreError> {
        let mut file = self.file.clone();
        change(&mut file);
        file.write += 1;
        self.commit()?;
        write_file_header(&*self.storage, &file).inspect_err(|_| self.failures += 1)?;
        self.file = file;
        Ok(())
    }

    /// Store fragments, with one sync for all of them. `Ok` for one means that it is durable.
    pub fn put(&mut self, items: Vec<(Owner, FragmentHeader, Bytes)>) -> Vec<Result<(), StoreError>> {
        self.settle();
        let before = self.failures;
        let write = |(owner, header, payload): (Owner, FragmentHeader, Bytes)| self.write_one(owner, &header, &payload);
        let mut results: Vec<_> = items.into_iter().map(write).collect();
        let _ = self.commit();
        // A sync may have failed in between, too, when a region was full: nobody can tell which of them it took along.
        if self.failures != before {
            for result in results.iter_mut().filter(|r| r.is_ok()) {
                *result = Err(StoreError::Io(io::Error::other("a sync failed")));
            }
        }
        results
    }

    fn write_one(&mut self, owner: Owner, header: &FragmentHeader, payload: &Bytes) -> Result<(), StoreError> {
        header.verify(payload)?;
        if !self.file.partitions.contains_key(&owner) {
            return Err(StoreError::NoPartition(owner));
        }
        let content = Content::Put(*header);
        let place = self.place(header.id);
        if let Some(fresh) = self.fresh.iter().rev().find(|r| r.content.id() == header.id) {
            if fresh.content == content && fresh.owner == owner {
                return Ok(());
            }
        } else if let Some(place) = place {
            let holder = self.books.regions.get(&place.region).map(|r| r.header.owner);
            if holder.is_some_and(|holder| holder != owner) {
                return Err(StoreError::Reservation("another owner's partition has this fragment".into()));
            }
            // What the index says may have rotted, been torn by a power cut, or be deleted by a record that nobody acknowledged:
            // only a read, and nothing newer on the medium, can acknowledge it again.
            let is_last = !self.books.stale.contains_key(&header.id);
            if is_last && self.reader().get(header.id).is_ok_and(|(held, _)| held == *header) {
                return Ok(());
            }
            self.settle();
        }
        self.append(owner, content, payload, Purpose::Store).map(drop)
    }

    /// Delete fragments, with one sync for all of them.
    ///
    /// # Errors
    /// [`StoreError`]; then none counts as deleted, though some may be.
    pub fn delete(&mut self, fragments: &[FragmentId]) -> Result<(), StoreError> {
        self.settle();
        let before = self.failures;
        for id in fragments {
            let place = self.place(*id);
            if place.is_some() || self.books.stale.contains_key(id) {
                let owner = place.and_then(|p| self.books.regions.get(&p.region)).map(|r| r.header.owner);
                self.append(owner.unwrap_or(OWNER_IMAGES), Content::Delete(*id), &[], Purpose::Free)?;
            }
        }
        self.commit()?;
        if self.failures == before { Ok(()) } else { Err(StoreError::Io(io::Error::other("a sync failed"))) }
    }

    /// What was damaged, and the array has heard of it: forget it for good, so that it is not found again. Those that were stored anew
    /// meanwhile stay.
    ///
    /// # Errors
    /// As [`Store::delete`].
    pub fn bury(&mut self, fragments: &[FragmentId]) -> Result<(), StoreError> {
        self.settle();
        let gone: Vec<FragmentId> = fragments.iter().filter(|id| self.place(**id).is_none()).copied().collect();
        self.delete(&gone)
    }

    /// Read again, past everything that is remembered, what lies where a sync failed. The answer is the number of fragments that are
    /// damaged; readers tell which.
    pub fn examine(&mut self) -> usize {
        let suspects = std::mem::take(&mut self.suspects);
        if suspects.is_empty() {
            return 0;
        }
        let reader = self.reader();
        let inside = |(id, place): (&FragmentId, &Place)| suspects.contains(&place.region).then_some(*id);
        let fragments: Vec<FragmentId> = self.index().iter().filter_map(inside).collect();
        let damaged = fragments.into_iter().filter(|id| matches!(reader.examine(*id), Err(StoreError::Damaged(_))));
        let count = damaged.count();
        self.settle();
        count
    }

    fn index(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, id: FragmentId) -> Option<Place> {
        self.index().get(&id)
    }

    /// Learn what readers found damaged.
    fn settle(&mut self) {
        let orphans = self.index.write().unwrap_or_else(PoisonError::into_inner).take_orphans();
        for (id, place) in orphans {
            self.books.orphan(id, place);
        }
    }

    fn append(&mut self, owner: Owner, content: Content, payload: &[u8], purpose: Purpose) -> Result<u32, StoreError> {
        let number = self.region_for(owner, &content, purpose)?;
        let region = self.books.regions.get_mut(&number).expect("just chosen");
        let record = RecordHeader {
            content,
            owner,
            sequence: self.next_sequence,
            generation: region.header.generation,
            region: number,
            offset: region.tail as u32,
        };
        let len = content.record_len();
        let mut bytes = Vec::with_capacity(len as usize);
        bytes.extend_from_slice(&record.encode());
        bytes.extend_from_slice(payload);
        bytes.resize(len as usize, 0);
        self.next_sequence += 1;
        let at = self.layout.offset(number) + region.tail;
        if let Err(error) = self.storage.write_all_at(at, &bytes) {
            // Parts of it may be there.
            self.books.stale.entry(content.id()).or_default().insert((number, record.generation));
            if error.kind() == io::ErrorKind::StorageFull {
                return Err(StoreError::Full);
            }
            self.fresh.push(record);
            self.distrust();
            return Err(error.into());
        }
        if !payload.is_empty() {
            // Its header is read again when the region is sealed.
            self.storage.will_sync(at + RECORD_ALIGN, len - RECORD_ALIGN);
        }
        region.tail += len;
        region.records += 1;
        self.fresh.push(record);
        Ok(number)
    }

    /// Write the table, make it durable, then say so in the header: a crash in between leaves an open region. The table is made of
    /// what the region says, so a record that is not where it was written is noticed here.
    fn seal(&mut self, number: u32) -> io::Result<()> {
        let written = self.write_table(number);
        if written.is_err() {
            self.poison(number);
            self.suspects.insert(number);
            self.failures += 1;
        }
        written?;
        // The index must know every record of the region before anybody asks whether the region is dead.
        self.commit()?;
        let region = &self.books.regions[&number];
        let (state, records) = (RegionState::Sealed, region.records);
        let header = RegionHeader { state, records, write: region.header.write + 1, ..region.header };
        // Where that fails, a part of the slot may be written: the other one must stay, so nothing is ever written to this region again.
        write_region_header(&*self.storage, self.layout, &header).inspect_err(|_| {
            self.poison(number);
            self.failures += 1;
        })?;
        self.open.remove(&number);
        let region = self.books.regions.get_mut(&number).expect("just read");
        region.header = header;
        region.torn.clear();
        Ok(())
    }

    fn write_table(&self, number: u32) -> io::Result<()> {
        let region = &self.books.regions[&number];
        let records = self.walk(region)?;
        if records.len() != region.records as usize {
            let (found, written) = (records.len(), region.records);
            return Err(io::Error::other(format!("region {number} has {found} records, {written} were written")));
        }
        let table = encode_table(region.header.generation, &records);
        let at = self.layout.offset(number) + self.layout.region_len - table.len() as u64;
        self.storage.write_all_at(at, &table)
    }

    /// The records of a region, by walking it, without those that are torn.
    fn walk(&self, region: &Region) -> io::Result<Vec<RecordHeader>> {
        let mut unreadable = false;
        let mut records = recover::walk(&*self.storage, self.layout, &region.header, region.tail, &mut unreadable);
        records.retain(|record| !region.torn.contains(&record.offset));
        if unreadable { Err(io::Error::other("a record cannot be read")) } else { Ok(records) }
    }

    fn poison(&mut self, number: u32) {
        self.open.remove(&number);
        if let Some(region) = self.books.regions.get_mut(&number) {
            region.is_poisoned = true;
        }
    }

    /// Whether nothing in a region is needed: no live fragment, and nothing that hides what is still on the medium.
    fn is_dead(&self, region: &Region) -> bool {
        let idle = region.header.state == RegionState::Sealed || region.is_poisoned;
        let number = region.header.index;
        idle && region.live == 0
            && !self.books.doubtful.contains(&number)
            && !region.guards.iter().any(|guard| self.books.is_needed(number, *guard))
    }

    /// Sync, then let the index know.
    fn commit(&mut self) -> io::Result<()> {
        if self.fresh.is_empty() {
            return Ok(());
        }
        self.sync()?;
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for record in std::mem::take(&mut self.fresh) {
            let id = record.content.id();
            let place = Place::new(record.region, record.offset, record.content.record_len());
            self.books.apply(&mut index, id, matches!(record.content, Content::Put(_)), place);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let done = self.storage.sync();
        if done.is_err() {
            self.distrust();
        }
        done
    }

    /// A sync or a write failed: nobody can tell what of that which was written since the last good sync is there. Nothing of it is
    /// acknowledged, nothing more goes to its regions, and what follows has to hide it.
    fn distrust(&mut self) {
        self.failures += 1;
        for record in std::mem::take(&mut self.fresh) {
            self.books.stale.entry(record.content.id()).or_default().insert((record.region, record.generation));
            self.poison(record.region);
            self.suspects.insert(record.region);
        }
    }
}

fn write_region_header(storage: &impl Storage, layout: Layout, header: &RegionHeader) -> io::Result<()> {
    storage.write_all_at(layout.offset(header.index) + header.write % 2 * SLOT_LEN, &header.encode())
}

/// Both slots: whatever happens to one of them, the earlier generation is gone.
fn write_new_region(storage: &impl Storage, layout: Layout, header: &RegionHeader) -> io::Result<()> {
    let other = RegionHeader { write: header.write.wrapping_sub(1), ..*header };
    let mut slots = [header.encode(), other.encode()];
    slots.rotate_left((header.write % 2) as usize);
    storage.write_all_at(layout.offset(header.index), &slots.concat())
}

impl Region {
    fn new(header: RegionHeader, layout: Layout) -> Self {
        Self {
            header,
            region_len: layout.region_len,
            tail: REGION_HEAD_LEN,
            records: 0,
            torn: BTreeSet::new(),
            live: 0,
            live_bytes: 0,
            deletions: 0,
            given_back: 0,
            has_no_table: false,
            guards: BTreeSet::new(),
            is_poisoned: false,
        }
    }
}

#[cfg(test)]
mod tests;
