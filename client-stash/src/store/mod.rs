//! The store: append-only regions in one file. Write, sync, then acknowledge; never overwrite in place; a deletion is a
//! record too; a region is reused only when wholly dead, under a new generation.

mod index;
mod recover;

pub use index::{Index, Place};

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use images::fragment::{FragmentHeader, FragmentId};
use images::{ArrayId, NodeId};
use protocol::message::store::Owner;

use crate::format::{FileHeader, RecordHeader, RecordKind, RegionHeader, RegionState, encode_table, table_len};
use crate::limits::{
    FILE_HEAD_LEN, RECORD_HEADER_LEN, REGION_HEAD_LEN, REGION_LEN, REGIONS_MAX, REGIONS_MIN, SLOT_LEN,
};
use crate::storage::Storage;

/// Why a stash file does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The medium failed.
    #[error("read the stash file")]
    Io(#[from] io::Error),
    /// Neither header slot is good.
    #[error("the stash file has no readable header: it is another file, or damaged; move it away and join again")]
    Header,
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
    /// Every region is in use.
    #[error("the stash is full")]
    Full,
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
    /// Where the next record goes.
    tail: u64,
    records: Vec<(u32, RecordHeader)>,
    /// Fragments that live here.
    live: u32,
    /// (region, generation) of what deletions here killed: they must stay as long as their victims are on the medium.
    kills: Vec<(u32, u64)>,
    /// A sync failed: nothing more is appended.
    poisoned: bool,
}

/// How full a stash is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes offered.
    pub capacity: u64,
    /// Bytes of regions in use.
    pub used: u64,
    /// Live fragments.
    pub fragments: u64,
}

/// Reads while the store writes.
pub struct Reader<S> {
    storage: Arc<S>,
    index: Arc<RwLock<Index>>,
}

impl<S> Clone for Reader<S> {
    fn clone(&self) -> Self {
        Self { storage: self.storage.clone(), index: self.index.clone() }
    }
}

/// The store. One owner writes; [`Store::reader`] reads beside it.
pub struct Store<S> {
    storage: Arc<S>,
    file: FileHeader,
    regions: BTreeMap<u32, Region>,
    index: Arc<RwLock<Index>>,
    next_sequence: u64,
    /// Records written since the last sync; the index does not know them yet.
    fresh: Vec<(RecordHeader, Place)>,
    /// Syncs that failed.
    failures: u64,
}

fn region_offset(index: u32) -> u64 {
    FILE_HEAD_LEN + u64::from(index) * REGION_LEN
}

fn write_file_header(storage: &impl Storage, header: &FileHeader) -> io::Result<()> {
    storage.write_all_at(u64::from(header.session % 2) * SLOT_LEN, &header.encode())?;
    storage.sync()
}

impl<S: Storage> Store<S> {
    /// Make a new, empty stash file.
    ///
    /// # Errors
    /// [`OpenError::Size`], or the medium's.
    pub fn create(storage: S, array: ArrayId, node: NodeId, regions: u32) -> Result<Self, OpenError> {
        if !(REGIONS_MIN..=REGIONS_MAX).contains(&regions) {
            return Err(OpenError::Size(regions));
        }
        storage.allocate(0, FILE_HEAD_LEN)?;
        let header = FileHeader { array, node, regions, session: 0 };
        write_file_header(&storage, &header)?;
        Self::open(storage, array, node)
    }

    /// Open a stash file and find everything that was acknowledged.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is changed on the medium before the file is known to be this member's.
    pub fn open(storage: S, array: ArrayId, node: NodeId) -> Result<Self, OpenError> {
        let mut file = recover::file_header(&storage)?.ok_or(OpenError::Header)?;
        if file.array != array || file.node != node {
            return Err(OpenError::Foreign { found: file.node });
        }
        file.session += 1;
        write_file_header(&storage, &file)?;
        let recovered = recover::regions(&storage, &file)?;
        Ok(Self {
            storage: Arc::new(storage),
            file,
            regions: recovered.regions,
            index: Arc::new(RwLock::new(recovered.index)),
            next_sequence: recovered.next_sequence,
            fresh: Vec::new(),
            failures: 0,
        })
    }

    /// A handle that reads.
    #[must_use]
    pub fn reader(&self) -> Reader<S> {
        Reader { storage: self.storage.clone(), index: self.index.clone() }
    }

    /// How full it is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let head = |r: &Region| {
            if r.header.state == RegionState::Sealed { REGION_LEN } else { r.tail }
        };
        Usage {
            capacity: u64::from(self.file.regions) * REGION_LEN,
            used: self.regions.values().filter(|r| !self.is_dead(r)).map(head).sum(),
            fragments: self.reader().index().len() as u64,
        }
    }

    /// Store fragments, with one sync for all of them. `Ok` for one means that it is durable.
    pub fn put(&mut self, items: Vec<(Owner, FragmentHeader, Bytes)>) -> Vec<Result<(), StoreError>> {
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
        let last = self.fresh.iter().rev().find(|(r, _)| r.fragment.id == header.id).map(|(r, _)| r);
        let held = match last {
            Some(record) => (record.kind == RecordKind::Put).then_some(record.fragment),
            // What the index says may have rotted, or been torn by a power cut: only a read can acknowledge it again.
            None => self.reader().get(header.id).ok().map(|(held, _)| held),
        };
        if held == Some(*header) {
            return Ok(());
        }
        if held.is_some() {
            // The same piece of another geometry: the old one goes first, so that it cannot come back.
            self.append(owner, RecordKind::Delete, header, &[])?;
        }
        self.append(owner, RecordKind::Put, header, payload)
    }

    /// Delete fragments, with one sync for all of them.
    ///
    /// # Errors
    /// [`StoreError`]; then none counts as deleted, though some may be.
    pub fn delete(&mut self, fragments: &[FragmentId]) -> Result<(), StoreError> {
        let before = self.failures;
        for id in fragments {
            let place = self.reader().index().get(id);
            if let (Some(place), Some(header)) = (place, self.held(*id)) {
                let owner = self.regions[&place.region].header.owner;
                self.append(owner, RecordKind::Delete, &header, &[])?;
            }
        }
        self.commit()?;
        if self.failures == before { Ok(()) } else { Err(StoreError::Io(io::Error::other("a sync failed"))) }
    }

    /// The header of a fragment that is here.
    fn held(&self, id: FragmentId) -> Option<FragmentHeader> {
        let place = self.reader().index().get(&id)?;
        let records = &self.regions[&place.region].records;
        let at = records.binary_search_by_key(&place.offset, |(offset, _)| *offset).ok()?;
        Some(records[at].1.fragment)
    }

    fn append(
        &mut self,
        owner: Owner,
        kind: RecordKind,
        fragment: &FragmentHeader,
        payload: &[u8],
    ) -> Result<(), StoreError> {
        let mut record = RecordHeader {
            kind,
            fragment: *fragment,
            sequence: self.next_sequence,
            generation: 0,
            session: self.file.session,
        };
        let number = self.region_for(owner, &record)?;
        let region = self.regions.get_mut(&number).expect("just chosen");
        record.generation = region.header.generation;
        let offset = region.tail as u32;
        let mut bytes = Vec::with_capacity(record.record_len() as usize);
        bytes.extend_from_slice(&record.encode());
        bytes.extend_from_slice(payload);
        bytes.resize(record.record_len() as usize, 0);
        self.storage.write_all_at(region_offset(number) + u64::from(offset), &bytes)?;
        region.tail += record.record_len();
        region.records.push((offset, record));
        self.next_sequence += 1;
        self.fresh.push((record, Place { region: number, offset }));
        Ok(())
    }

    /// The owner's open region with room for a record of `len` bytes; seals a full one and opens the next.
    fn region_for(&mut self, owner: Owner, record: &RecordHeader) -> Result<u32, StoreError> {
        let open = self
            .regions
            .iter()
            .find(|(_, r)| r.header.owner == owner && r.header.state == RegionState::Open && !r.poisoned);
        if let Some((&number, region)) = open {
            if region.tail + record.record_len() + table_len(region.records.len() + 1) <= REGION_LEN {
                return Ok(number);
            }
            self.seal(number)?;
        }
        self.open_region(owner, record.kind)
    }

    /// Write the table, make it durable, then say so in the header: a crash in between leaves an open region.
    fn seal(&mut self, number: u32) -> io::Result<()> {
        let region = &self.regions[&number];
        let table = encode_table(region.header.generation, &region.records);
        self.storage.write_all_at(region_offset(number) + REGION_LEN - table.len() as u64, &table)?;
        // The index must know every record of the region before anybody asks whether the region is dead.
        self.commit()?;
        let region = self.regions.get_mut(&number).expect("just read");
        region.header.state = RegionState::Sealed;
        region.header.records = region.records.len() as u32;
        region.header.write += 1;
        write_region_header(&*self.storage, &region.header)
    }

    fn open_region(&mut self, owner: Owner, kind: RecordKind) -> Result<u32, StoreError> {
        let is_free = |i: &u32| self.regions.get(i).is_none_or(|r| self.is_dead(r));
        let mut free = (0..self.file.regions).filter(is_free);
        let number = free.next().ok_or(StoreError::Full)?;
        // The last region is for deletions: without one a full stash could never give anything back.
        if kind == RecordKind::Put && free.next().is_none() {
            return Err(StoreError::Full);
        }
        let old = self.regions.get(&number).map(|r| r.header);
        let header = RegionHeader {
            index: number,
            state: RegionState::Open,
            owner,
            generation: old.map_or(1, |h| h.generation + 1),
            write: old.map_or(0, |h| h.write + 1),
            records: 0,
        };
        self.storage.allocate(region_offset(number), REGION_LEN)?;
        write_region_header(&*self.storage, &header)?;
        // Durable before anything relies on the old records being gone.
        self.storage.sync()?;
        self.regions.insert(number, Region::new(header));
        Ok(number)
    }

    /// Whether nothing in a region is needed: no live fragment, and no deletion whose victim is still on the medium.
    fn is_dead(&self, region: &Region) -> bool {
        let needed = |&(victim, generation): &(u32, u64)| {
            victim != region.header.index
                && self.regions.get(&victim).is_some_and(|r| r.header.generation == generation)
        };
        let idle = region.header.state == RegionState::Sealed || region.poisoned;
        idle && region.live == 0 && !region.kills.iter().any(needed)
    }

    /// Sync, then let the index know. A failed sync poisons the regions that were written: what they took since the last
    /// good sync is not acknowledged, and nobody can tell what of it is there.
    fn commit(&mut self) -> io::Result<()> {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.storage.sync() {
            self.failures += 1;
            for (_, place) in fresh {
                if let Some(region) = self.regions.get_mut(&place.region) {
                    region.poisoned = true;
                }
            }
            return Err(error);
        }
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for (record, place) in &fresh {
            index::apply(&mut index, &mut self.regions, record, *place);
        }
        Ok(())
    }

    /// Give a file handle back, for tests that crash and open again.
    #[must_use]
    pub fn storage(&self) -> Arc<S> {
        self.storage.clone()
    }
}

fn write_region_header(storage: &impl Storage, header: &RegionHeader) -> io::Result<()> {
    storage.write_all_at(region_offset(header.index) + header.write % 2 * SLOT_LEN, &header.encode())
}

impl Region {
    fn new(header: RegionHeader) -> Self {
        Self { header, tail: REGION_HEAD_LEN, records: Vec::new(), live: 0, kills: Vec::new(), poisoned: false }
    }
}

impl<S: Storage> Reader<S> {
    fn index(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that is here, in order.
    #[must_use]
    pub fn inventory(&self) -> Vec<FragmentId> {
        self.index().iter().map(|(id, _)| *id).collect()
    }

    /// Everything that is here, in the order in which it lies in the file.
    #[must_use]
    pub fn in_order_on_disk(&self) -> Vec<FragmentId> {
        let mut all: Vec<(u32, u32, FragmentId)> =
            self.index().iter().map(|(id, place)| (place.region, place.offset, *id)).collect();
        all.sort_unstable();
        all.into_iter().map(|(.., id)| id).collect()
    }

    /// Read a fragment past whatever the system remembers of it, and verify it.
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub fn get_from_medium(&self, id: FragmentId) -> Result<(FragmentHeader, Bytes), StoreError> {
        let place = self.index().get(&id).ok_or(StoreError::NotHere(id))?;
        let len = (RECORD_HEADER_LEN + images::limits::SEALED_MAX) as u64;
        self.storage.forget(region_offset(place.region) + u64::from(place.offset), len);
        self.get(id)
    }

    /// Number of fragments that are here.
    #[must_use]
    pub fn fragments(&self) -> usize {
        self.index().len()
    }

    /// Fragments that were here and are damaged, once each.
    #[must_use]
    pub fn take_damaged(&self) -> Vec<FragmentId> {
        self.index.write().unwrap_or_else(PoisonError::into_inner).take_damaged()
    }

    /// Read a fragment and verify it.
    ///
    /// # Errors
    /// [`StoreError::NotHere`]; [`StoreError::Damaged`] if the medium changed it, and from then on it is not here;
    /// [`StoreError::Io`] if the medium fails, which says nothing of the fragment.
    pub fn get(&self, id: FragmentId) -> Result<(FragmentHeader, Bytes), StoreError> {
        let place = self.index().get(&id).ok_or(StoreError::NotHere(id))?;
        let offset = region_offset(place.region) + u64::from(place.offset);
        let mut head = [0; RECORD_HEADER_LEN];
        self.storage.read_exact_at(offset, &mut head)?;
        let record = RecordHeader::decode(&head).filter(|r| r.kind == RecordKind::Put && r.fragment.id == id);
        if let Some(record) = record {
            let mut payload = vec![0; record.payload_len()];
            self.storage.read_exact_at(offset + RECORD_HEADER_LEN as u64, &mut payload)?;
            if record.fragment.verify(&payload).is_ok() {
                return Ok((record.fragment, payload.into()));
            }
        }
        // The region may have been reused between the look-up and the read; then the index says so by now.
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if index.get(&id) != Some(place) {
            return Err(StoreError::NotHere(id));
        }
        index.mark_damaged(id);
        Err(StoreError::Damaged(id))
    }
}

#[cfg(test)]
mod tests;
