//! Space: choosing regions, giving dead ones back, and making the file larger or smaller while it is in use.

use std::collections::BTreeSet;
use std::io;

use images::fragment::FragmentId;
use protocol::message::store::Owner;

use super::{Purpose, Region, Store, StoreError, recover, write_new_region};
use crate::format::{Content, FileHeader, RecordHeader, RegionHeader, RegionState, table_len};
use crate::limits::{RECORD_ALIGN, RECORD_HEADER_LEN, REGION_HEAD_LEN, REGIONS_MAX, REGIONS_MIN, SPARES};
use crate::storage::Storage;

/// Regions with less dead space than this part of them are not worth copying for the sake of new records. The emptiest comes first, so
/// this only counts where a stash is full.
const WORTH_COPYING: u64 = 16;

/// Regions that are copied for the sake of one record, at most.
const COPIES_MAX: usize = 8;

/// Regions by which the file may be larger than what is granted, until it is made smaller again.
const BORROWED_MAX: u32 = 8;

/// How far making the file smaller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrinking {
    /// So many regions must still be emptied.
    Left(u32),
    /// It is smaller.
    Done,
}

impl<S: Storage> Store<S> {
    fn limit(&self) -> u32 {
        self.shrinking.unwrap_or(self.file.regions)
    }

    /// Find free regions, unless enough are known.
    fn look_for_free(&mut self) {
        if self.free_to_stay() > SPARES {
            return;
        }
        self.free = (0..self.file.regions).filter(|number| self.is_free(*number)).take(64).collect();
    }

    pub(super) fn is_free(&self, number: u32) -> bool {
        !self.books.doubtful.contains(&number) && self.books.regions.get(&number).is_none_or(|r| self.is_dead(r))
    }

    /// Free regions that stay when the file is made smaller.
    fn free_to_stay(&self) -> usize {
        self.free.range(..self.limit()).count()
    }

    /// The region that the next record of an owner goes to. New fragments leave the spare regions alone; deletions may use all but the
    /// last of them, and that one is for copying: so even a stash that is full to the brim gives space back.
    pub(super) fn region_for(&mut self, owner: Owner, content: &Content, purpose: Purpose) -> Result<u32, StoreError> {
        if content.record_len() + REGION_HEAD_LEN + table_len(1) > self.layout.region_len {
            return Err(StoreError::Reservation("the fragment is larger than a region".into()));
        }
        for _ in 0..COPIES_MAX {
            self.look_for_free();
            // Deletions, or a power cut in the middle of copying, took spare regions: they come first.
            if !self.is_copying
                && self.free_to_stay() < SPARES
                && (self.stretch(owner, SPARES)? || self.make_room(owner, Purpose::Store, 0)?)
            {
                continue;
            }
            let open = self.open_with_room(Some(owner), content)?;
            self.look_for_free();
            let free = if purpose == Purpose::Store { self.free_to_stay() } else { self.free.len() };
            if let Some(number) = open
                && (purpose == Purpose::Free || free >= SPARES)
            {
                return Ok(number);
            }
            let may_open = match purpose {
                Purpose::Free => free > 1 || (self.is_copying && free > 0),
                Purpose::Store => open.is_none() && free > SPARES && self.may_have_more(owner),
            };
            if may_open {
                return self.open_region(owner);
            }
            if purpose == Purpose::Free
                && let Some(other) = self.open_with_room(None, content)?
            {
                return Ok(other);
            }
            if purpose == Purpose::Store && open.is_none() && self.stretch(owner, SPARES + 1)? {
                continue;
            }
            if self.is_copying || !self.make_room(owner, purpose, content.record_len())? {
                break;
            }
        }
        // A power cut in the middle of copying leaves two halves, and may leave no room to go on.
        if purpose == Purpose::Free && self.borrow()? {
            if !self.is_copying {
                for _ in 0..COPIES_MAX {
                    if self.free_to_stay() >= SPARES || !self.make_room(owner, Purpose::Store, 0)? {
                        break;
                    }
                    self.look_for_free();
                }
            }
            return match self.open_with_room(Some(owner), content)? {
                Some(number) => Ok(number),
                None => self.open_region(owner),
            };
        }
        Err(StoreError::Full)
    }

    /// Regions that are granted to owners, and the spare ones.
    #[must_use]
    pub fn entitled(&self) -> u32 {
        super::entitled(&self.file)
    }

    /// Have another region for a while, whatever space the file takes.
    fn borrow(&mut self) -> Result<bool, StoreError> {
        let most = u64::from(self.size + BORROWED_MAX) * self.layout.region_len;
        if self.held() + self.layout.region_len > most || self.file.regions >= REGIONS_MAX {
            return Ok(false);
        }
        self.append_region()
    }

    /// An open region with room for a record, of an owner or of anybody. Those of that owner that are as good as full are sealed.
    fn open_with_room(&mut self, owner: Option<Owner>, content: &Content) -> io::Result<Option<u32>> {
        let Some(owner) = owner else {
            let has_room = |number: &&u32| self.books.regions[*number].room() >= content.record_len();
            return Ok(self.open.iter().find(has_room).copied());
        };
        let mut own: Vec<(u32, u64)> = self.own_open(owner).map(|n| (n, self.books.regions[&n].room())).collect();
        if let Some((number, _)) = own.iter().find(|(_, room)| *room >= content.record_len()) {
            return Ok(Some(*number));
        }
        // What still has some room may take smaller ones; but one such region is enough.
        own.sort_by_key(|(_, room)| *room);
        let keep = own.last().filter(|(_, room)| *room >= self.layout.region_len / 8).map(|(number, _)| *number);
        for (number, _) in own.into_iter().filter(|(number, _)| Some(*number) != keep) {
            self.seal(number)?;
        }
        Ok(None)
    }

    /// Take a free region, and its whole space. Where that was given back and is not to be had again, others still have theirs.
    fn reserve_free(&mut self) -> Result<u32, StoreError> {
        for number in self.free.clone() {
            // What is not given back now is given back some other time.
            let _ = self.make_up_for(Some(number));
            match self.storage.allocate(self.layout.offset(number), self.layout.region_len) {
                Ok(()) => {
                    self.free.remove(&number);
                    if let Some(region) = self.books.regions.get_mut(&number) {
                        region.given_back = 0;
                    }
                    return Ok(number);
                }
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Full)
    }

    fn open_region(&mut self, owner: Owner) -> Result<u32, StoreError> {
        let number = self.reserve_free()?;
        self.begin_anew(&[number], owner, RegionState::Open)?;
        self.open.insert(number);
        Ok(number)
    }

    /// Have nothing in free regions, under a new generation.
    pub(super) fn begin_anew(&mut self, numbers: &[u32], owner: Owner, state: RegionState) -> io::Result<()> {
        let mut headers = Vec::new();
        for number in numbers {
            let header = RegionHeader {
                index: *number,
                state,
                owner,
                generation: self.next_sequence,
                write: self.books.regions.get(number).map_or(1, |r| r.header.write + 2),
                records: 0,
            };
            self.next_sequence += 1;
            let mut written = write_new_region(&*self.storage, self.layout, &header);
            if state == RegionState::Sealed {
                // Both slots may be torn when it is opened: then its first record must not say that the old generation is there.
                // A hole needs no space on a full disk.
                let first = self.layout.offset(*number) + REGION_HEAD_LEN;
                let is_hole = self.can_punch && self.storage.punch(first, RECORD_ALIGN).is_ok_and(|can| can);
                if !is_hole {
                    written = written.and_then(|()| self.storage.write_all_at(first, &[0; RECORD_ALIGN as usize]));
                }
            }
            written.inspect_err(|_| self.failures += 1)?;
            headers.push(header);
        }
        // Durable before anything relies on the old records being gone.
        self.sync()?;
        for header in headers {
            let given_back = self.books.regions.get(&header.index).map_or(0, |r| r.given_back);
            self.books.regions.insert(header.index, Region { given_back, ..Region::new(header, self.layout) });
            self.books.forget_stale(|region, generation| region == header.index && generation != header.generation);
        }
        Ok(())
    }

    /// Copy what is needed in the region that is most worth it elsewhere: for new fragments one of their owner, or of others if their
    /// deletions took the spare regions. Says whether there was one.
    fn make_room(&mut self, owner: Owner, purpose: Purpose, len: u64) -> Result<bool, StoreError> {
        self.commit()?;
        self.look_for_free();
        let in_free = if self.free.is_empty() { 0 } else { self.layout.region_len - REGION_HEAD_LEN };
        // Deletions took spare regions: unless one becomes free, nothing new can be taken.
        let must_win = purpose == Purpose::Store && self.free_to_stay() < SPARES;
        // Where it is copied to there must be room for the record that this is about, or nothing is won.
        let least = REGION_HEAD_LEN + len + 2 * RECORD_ALIGN;
        let worth = match purpose {
            Purpose::Store => least.max(self.layout.region_len / WORTH_COPYING),
            Purpose::Free => least,
        };
        let may_have_more = self.may_have_more(owner);
        let is_eligible = |r: &&Region| {
            let is_idle = r.header.state == RegionState::Sealed || r.is_poisoned;
            let number = r.header.index;
            if !is_idle || self.books.doubtful.contains(&number) || self.is_dead(r) || number >= self.limit() {
                return false;
            }
            // An owner that may have more is kept from it by the number of regions, and those of others count as well.
            if purpose == Purpose::Store && !must_win && r.header.owner != owner && !may_have_more {
                return false;
            }
            let in_open = self.own_open(r.header.owner).map(|open| self.books.regions[&open].room()).max();
            let needed = self.needed_bytes(r);
            // Tables of more records take more.
            let fits = |room: u64| needed + 2 * RECORD_ALIGN <= room;
            fits(in_open.unwrap_or(0)) || (fits(in_free) && needed + worth <= self.layout.region_len)
        };
        let mut victims: Vec<&Region> = self.books.regions.values().filter(is_eligible).collect();
        victims.sort_by_key(|r| self.needed_bytes(r));
        let Some(victim) = victims.first() else { return Ok(false) };
        if must_win {
            // One region more is free only if one fits what is open, or two fit one, or some fit what is open and one fewer than they are.
            let in_open = self.own_open(victim.header.owner).map(|open| self.books.regions[&open].room()).max();
            let owns = |r: &&&Region| r.header.owner == victim.header.owner;
            let (mut needed, mut room) = (0, in_open.unwrap_or(0));
            let wins = victims.iter().filter(owns).take(COPIES_MAX).enumerate().any(|(before, region)| {
                needed += self.needed_bytes(region) + 2 * RECORD_ALIGN;
                let fits = needed <= room || (before == 1 && needed <= in_free + RECORD_ALIGN);
                // No record takes more than a sixteenth of a region, so no more than that is left over at the end of one.
                room += in_free / 16 * 15;
                fits
            });
            if !wins {
                return Ok(false);
            }
        }
        let count = if purpose == Purpose::Store && !must_win && !may_have_more {
            self.enough_for_a_region(owner, &victims, worth)
        } else {
            Some(1)
        };
        let Some(count) = count else { return Ok(false) };
        let victims: Vec<u32> = victims[..count].iter().map(|region| region.header.index).collect();
        victims.into_iter().try_for_each(|number| self.empty(number))?;
        Ok(true)
    }

    /// Where an owner has all the space that it may have: how many of the regions that are most worth it have to be copied until it may
    /// have another one, with some room in it.
    fn enough_for_a_region(&self, owner: Owner, victims: &[&Region], worth: u64) -> Option<usize> {
        let (len, reserved) = (self.layout.region_len, self.reserved(owner));
        let in_open = self.own_open(owner).map(|open| self.books.regions[&open].room()).max();
        let (mut needed, mut held) = (0, self.held_of(owner));
        for (i, region) in victims.iter().take(COPIES_MAX).enumerate() {
            needed += self.needed_bytes(region) + 2 * RECORD_ALIGN;
            held -= region.held();
            // No record takes more than a sixteenth of a region, so no more than that is left over at the end of one.
            let new = (needed + worth).div_ceil((len - REGION_HEAD_LEN) / 16 * 15);
            if held + new * len <= reserved || in_open.is_some_and(|room| i == 0 && needed <= room) {
                return Some(i + 1);
            }
        }
        None
    }

    /// Bytes that emptying a region takes elsewhere: records, and their entries in a table.
    fn needed_bytes(&self, region: &Region) -> u64 {
        let hides = region.guards.iter().any(|guard| self.books.is_needed(region.header.index, *guard));
        let deletions = if hides { u64::from(region.deletions) } else { 0 };
        let entries = (u64::from(region.live) + deletions) * RECORD_HEADER_LEN as u64;
        region.live_bytes + deletions * RECORD_ALIGN + entries
    }

    fn own_open(&self, owner: Owner) -> impl Iterator<Item = u32> {
        let is_own = move |number: &&u32| self.books.regions[number].header.owner == owner;
        self.open.range(..self.limit()).filter(is_own).copied()
    }

    /// Copy everything that is needed out of a region; then it is dead. What turns out to be damaged is lost, and reported.
    fn empty(&mut self, number: u32) -> Result<(), StoreError> {
        self.is_copying = true;
        let done = self.copy_out(number);
        self.is_copying = false;
        done
    }

    fn copy_out(&mut self, number: u32) -> Result<(), StoreError> {
        self.commit()?;
        if self.open.contains(&number) {
            self.seal(number)?;
        }
        let Some(region) = self.books.regions.get(&number) else { return Ok(()) };
        let (header, owner) = (region.header, region.header.owner);
        let own = (number, header.generation);
        let needed: BTreeSet<(u32, u64)> =
            region.guards.iter().filter(|guard| self.books.is_needed(number, **guard)).copied().collect();
        let records = self.records_of(number);
        let reader = self.reader();
        // Regions that get records which hide what this one hides.
        let mut heirs = BTreeSet::new();
        let mut unsynced = 0;
        for record in &records {
            let id = record.content.id();
            // What a power cut tears takes room until the region is used anew: little at a time.
            if unsynced > self.layout.region_len / 8 {
                self.commit()?;
                unsynced = 0;
            }
            unsynced += record.content.record_len();
            let place = self.place(id);
            let is_live = place.is_some_and(|p| (p.region, p.offset()) == (number, record.offset.into()));
            match record.content {
                Content::Put(header) if is_live => match reader.get(id) {
                    Ok((_, payload)) => {
                        heirs.insert(self.append(owner, Content::Put(header), &payload, Purpose::Free)?);
                    }
                    // Just found, and known to the array as soon as it asks.
                    Err(StoreError::Damaged(_) | StoreError::NotHere(_)) => self.settle(),
                    // The medium may be away for a moment: then nothing is copied, and nothing lost.
                    Err(error) => return Err(error),
                },
                _ if needed.is_empty() => {}
                // It does not live here. If it lives elsewhere, that record hides what this one hid.
                _ if place.is_some() => heirs.extend(place.map(|p| p.region)),
                // Written once, however many records say so.
                _ if self.fresh.iter().any(|r| r.content == Content::Delete(id)) => {}
                Content::Delete(_) => drop(heirs.insert(self.delete_again(owner, id)?)),
                Content::Put(_) if self.books.stale.get(&id).is_some_and(|places| places.contains(&own)) => {
                    heirs.insert(self.delete_again(owner, id)?);
                }
                Content::Put(_) => {}
            }
        }
        // What was found damaged just now hid something, too.
        if !needed.is_empty() {
            let is_here = |(id, places): (&FragmentId, &BTreeSet<(u32, u64)>)| places.contains(&own).then_some(*id);
            let damaged: Vec<FragmentId> = self.books.stale.iter().filter_map(is_here).collect();
            for id in damaged {
                if self.place(id).is_none() && !self.fresh.iter().any(|r| r.content.id() == id) {
                    heirs.insert(self.delete_again(owner, id)?);
                }
            }
        }
        self.commit()?;
        for (other, region) in &mut self.books.regions {
            if *other != number && (heirs.contains(other) || region.guards.contains(&own)) {
                region.guards.extend(&needed);
            }
        }
        if let Some(region) = self.books.regions.get_mut(&number) {
            region.guards.clear();
        }
        Ok(())
    }

    fn delete_again(&mut self, owner: Owner, id: FragmentId) -> Result<u32, StoreError> {
        self.append(owner, Content::Delete(id), &[], Purpose::Free)
    }

    /// A region's records: from its table, or by walking it.
    fn records_of(&self, number: u32) -> Vec<RecordHeader> {
        let (layout, header) = (self.layout, &self.books.regions[&number].header);
        let is_sealed = header.state == RegionState::Sealed;
        let table = is_sealed.then(|| recover::read_table(&*self.storage, layout, header)).flatten();
        table.unwrap_or_else(|| recover::walk(&*self.storage, layout, header, layout.region_len, &mut false))
    }

    /// Make the file larger; what is added is granted to an owner. The space is reserved on the disk before anything changes.
    ///
    /// # Errors
    /// If it is not larger, or the disk has no room.
    pub fn grow(&mut self, regions: u32, owner: Owner) -> Result<(), StoreError> {
        let (now, size) = (self.file.regions, self.size);
        if self.shrinking.is_some() {
            return Err(StoreError::Reservation("it is being made smaller".into()));
        }
        if regions <= size || regions > REGIONS_MAX {
            return Err(StoreError::Reservation(format!("it has {size} regions, and can have up to {REGIONS_MAX}")));
        }
        // A file that is longer than its size has them already, and takes their space as it needs it.
        if regions > now {
            self.reserve_until(regions)?.map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull => StoreError::Full,
                _ => error.into(),
            })?;
            self.sync()?;
        }
        self.change_header(|file| {
            file.regions = regions.max(now);
            *file.partitions.entry(owner).or_default() += regions - size;
        })?;
        self.size = regions;
        Ok(())
    }

    /// Reserve the space of more regions behind the last one. Why that cannot be is the inner answer; then the file is as long as before.
    pub(super) fn reserve_until(&mut self, regions: u32) -> io::Result<io::Result<()>> {
        // What an earlier, larger file left behind must not come back.
        let end = self.layout.offset(self.file.regions);
        if self.storage.len()? > end {
            self.storage.truncate(end)?;
        }
        let reserved = self.storage.allocate(end, self.layout.offset(regions) - end);
        if reserved.is_err() {
            // It may have reserved a part.
            self.storage.truncate(end)?;
        }
        Ok(reserved)
    }

    /// Begin to make the file smaller, at the expense of an owner. Until it is done ([`Store::shrink_some`]) everything stays readable.
    ///
    /// # Errors
    /// [`StoreError::Reservation`] if the owner has less than that, [`StoreError::Full`] if what lives here does not fit any more.
    pub fn begin_shrink(&mut self, regions: u32, owner: Owner) -> Result<(), StoreError> {
        self.settle();
        let gone = self.entitled().saturating_sub(regions);
        let reserved = self.file.partitions.get(&owner).copied().unwrap_or(0);
        // A file that borrowed a region can be made as large as it should be.
        if regions < REGIONS_MIN || regions > self.size || regions >= self.file.regions {
            return Err(StoreError::Reservation(format!(
                "it has {} regions; it can have {REGIONS_MIN} or more, and fewer than now",
                self.size
            )));
        }
        if reserved < gone {
            return Err(StoreError::Reservation(format!(
                "{gone} regions less is more than the {reserved} that its images have; others own the rest"
            )));
        }
        if self.excess(regions) > 0 {
            return Err(StoreError::Full);
        }
        self.shrinking = Some(regions);
        self.free.clear();
        Ok(())
    }

    /// Bytes of records that must go before everything fits so many regions.
    #[must_use]
    pub fn excess(&self, regions: u32) -> u64 {
        let usable = self.usable().saturating_mul(u64::from(regions.saturating_sub(SPARES as u32)));
        self.live_bytes().saturating_sub(usable)
    }

    /// Bytes of a region that count on: it is full when its table does not fit, or the next record does not, and the eighth part of it
    /// is more than both.
    fn usable(&self) -> u64 {
        self.layout.region_len / 8 * 7
    }

    fn live_bytes(&self) -> u64 {
        self.books.regions.values().map(|r| r.live_bytes).sum()
    }

    /// Regions that what lives here needs, the spare ones included.
    #[must_use]
    pub fn least_regions(&self) -> u32 {
        let needed = self.live_bytes().div_ceil(self.usable()) + SPARES as u64;
        (needed.min(self.size.into()) as u32).max(REGIONS_MIN)
    }

    /// Bytes of regions that what lives here needs, when all that is dead has given way.
    #[must_use]
    pub fn needed(&self) -> u64 {
        (u128::from(self.live_bytes()) * u128::from(self.layout.region_len) / u128::from(self.usable())) as u64
    }

    /// Regions of which the file takes the space, or what it is being made to have.
    #[must_use]
    pub fn region_count(&self) -> u32 {
        self.shrinking.unwrap_or(self.size)
    }

    /// Whether the file is being made smaller.
    #[must_use]
    pub fn is_shrinking(&self) -> bool {
        self.shrinking.is_some()
    }

    /// Stop making the file smaller.
    pub fn stop_shrinking(&mut self) {
        self.shrinking = None;
    }

    /// Empty one more region of those that go. When there are none left, the file is cut off.
    ///
    /// # Errors
    /// [`StoreError`]; then it is still as large as before, and can be tried again.
    pub fn shrink_some(&mut self, owner: Owner) -> Result<Shrinking, StoreError> {
        self.settle();
        let Some(regions) = self.shrinking else { return Ok(Shrinking::Done) };
        let goes = |r: &&Region| r.header.index >= regions && (r.live > 0 || !self.is_dead(r));
        let left: Vec<u32> = self.books.regions.values().filter(goes).map(|r| r.header.index).collect();
        if let Some(number) = left.last() {
            self.look_for_free();
            let region = &self.books.regions[number];
            let (holder, needed) = (region.header.owner, self.needed_bytes(region) + 2 * RECORD_ALIGN);
            while self.free_to_stay() == 0
                && self.own_open(holder).all(|open| self.books.regions[&open].room() < needed)
            {
                if !self.make_room(holder, Purpose::Store, 0)? {
                    return Err(StoreError::Full);
                }
                self.look_for_free();
            }
            self.empty(*number)?;
            let is_unreadable = self.books.doubtful.remove(number);
            if is_unreadable && let Some(region) = self.books.regions.get_mut(number) {
                region.is_poisoned = true;
            }
            return Ok(Shrinking::Left(left.len() as u32 - 1));
        }
        self.look_for_free();
        if self.free_to_stay() < SPARES {
            if !self.make_room(owner, Purpose::Store, 0)? {
                return Err(StoreError::Full);
            }
            // It may have been copied to where the file will end.
            return Ok(Shrinking::Left(1));
        }
        let gone = self.entitled().saturating_sub(regions);
        self.cut_off(regions, |file| {
            if let Some(reserved) = file.partitions.get_mut(&owner) {
                *reserved = reserved.saturating_sub(gone);
            }
        })?;
        Ok(Shrinking::Done)
    }

    /// End the file behind so many regions; nothing is in the others.
    pub(super) fn cut_off(&mut self, regions: u32, change: impl FnOnce(&mut FileHeader)) -> Result<(), StoreError> {
        self.change_header(|file| {
            file.regions = regions;
            change(file);
        })?;
        self.size = self.size.min(regions);
        self.shrinking = None;
        self.books.regions.retain(|number, _| *number < regions);
        self.books.doubtful.retain(|number| *number < regions);
        self.open.retain(|number| *number < regions);
        self.free.retain(|number| *number < regions);
        self.books.forget_stale(|region, _| region >= regions);
        self.storage.truncate(self.layout.offset(regions))?;
        Ok(self.sync()?)
    }
}

impl Region {
    /// Bytes that the next record may take.
    fn room(&self) -> u64 {
        self.region_len.saturating_sub(self.tail + table_len(self.records as usize + 1))
    }
}
