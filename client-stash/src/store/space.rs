//! Space of what is dead, without copying what is not: blocks of dead records go back to the file system, and the file gets another
//! region for as many. It then is longer than its size, with holes, and takes no more than its size on the medium.
//!
//! What is given back is dead for good on the medium: only what a sync acknowledged counts as dead. A region whose records hide those of
//! others keeps the headers of its dead ones; any other one gets a table without them.

use std::collections::BTreeSet;
use std::io;

use protocol::message::store::{OWNER_IMAGES, Owner};

use super::{Region, Store, StoreError, recover, write_region_header};
use crate::format::{RecordHeader, RegionHeader, RegionState, encode_table, table_len};
use crate::limits::{RECORD_ALIGN, REGION_HEAD_LEN, REGIONS_MAX, SPARES};
use crate::storage::Storage;

/// A region with less than this part of it to give back is left alone.
const WORTH_GIVING_BACK: u64 = 256;

/// Regions that share two syncs while space is given back.
const AT_A_TIME: usize = 8;

/// The file has up to so many times the regions that its size is: opening it reads the table of each.
const LONGER_MAX: u32 = 2;

impl Region {
    /// Bytes that it takes on the medium.
    pub(super) fn held(&self) -> u64 {
        self.region_len - self.given_back
    }

    /// Where the room between its last record and its table ends, in bytes.
    fn table_at(&self) -> u64 {
        self.region_len - table_len(self.records as usize)
    }

    /// Bytes that could still be given back: of each dead record all but its first block, and what is behind the last one.
    fn to_give_back(&self) -> u64 {
        let dead = u64::from(self.records.saturating_sub(self.live));
        let kept = REGION_HEAD_LEN + self.live_bytes + dead * RECORD_ALIGN;
        self.table_at().saturating_sub(kept + self.given_back)
    }
}

impl<S: Storage> Store<S> {
    /// Bytes of regions that the file takes on the medium.
    pub(super) fn held(&self) -> u64 {
        let given_back: u64 = self.books.regions.values().map(|r| r.given_back).sum();
        u64::from(self.file.regions) * self.layout.region_len - given_back
    }

    /// Bytes of the regions that are in use.
    fn in_use(&self) -> u64 {
        self.books.regions.values().filter(|r| !self.is_dead(r)).map(Region::held).sum()
    }

    /// Bytes of the regions that an owner uses.
    pub(super) fn held_of(&self, owner: Owner) -> u64 {
        let used = |r: &&Region| r.header.owner == owner && !self.is_dead(r);
        self.books.regions.values().filter(used).map(Region::held).sum()
    }

    fn budget(&self) -> u64 {
        u64::from(self.size) * self.layout.region_len
    }

    /// Bytes that are granted to an owner.
    pub(super) fn reserved(&self, owner: Owner) -> u64 {
        u64::from(self.file.partitions.get(&owner).copied().unwrap_or(0)) * self.layout.region_len
    }

    /// Whether an owner may have another region.
    pub(super) fn may_have_more(&self, owner: Owner) -> bool {
        self.held_of(owner) + self.layout.region_len <= self.reserved(owner)
    }

    /// Have so many free regions without copying, one of them for an owner if they are more than the spare ones. Says whether anything
    /// changed.
    pub(super) fn stretch(&mut self, owner: Owner, free: usize) -> Result<bool, StoreError> {
        if !self.can_punch || self.shrinking.is_some() {
            return Ok(false);
        }
        let wanted = free as u64 * self.layout.region_len;
        let fits =
            |store: &Self| store.in_use() + wanted <= store.budget() && (free <= SPARES || store.may_have_more(owner));
        let given_back = self.trim_until(fits);
        if !fits(self) {
            return Ok(false);
        }
        let is_longest = self.file.regions >= (self.size * LONGER_MAX).min(REGIONS_MAX);
        if self.free.len() >= free || is_longest {
            return Ok(given_back > 0);
        }
        self.append_region()
    }

    /// Give back everything that can be, until the file takes no more than its size.
    pub(super) fn trim(&mut self) {
        self.trim_until(|store| store.held() <= store.budget());
        // What fails is not given back, and that is all.
        let _ = self.make_up_for(None);
    }

    /// Give back the space of dead records, where there is most of it first, until something holds. The answer is in bytes.
    fn trim_until(&mut self, is_enough: impl Fn(&Self) -> bool) -> u64 {
        if is_enough(self) {
            return 0;
        }
        let (before, worth) = (self.held(), self.layout.region_len / WORTH_GIVING_BACK);
        if self.forget_what_is_hidden().is_err() || is_enough(self) {
            return 0;
        }
        let is_worth_it = |r: &&Region| {
            let is_idle = r.header.state == RegionState::Sealed && !self.books.doubtful.contains(&r.header.index);
            is_idle && !r.has_no_table && !self.is_dead(r) && r.to_give_back() >= worth
        };
        let mut regions: Vec<(u64, u32)> =
            self.books.regions.values().filter(is_worth_it).map(|r| (r.to_give_back(), r.header.index)).collect();
        regions.sort_unstable_by(|a, b| b.cmp(a));
        // A region that only this process knows to be sealed would be walked after a power cut, with a part of its records.
        if !regions.is_empty() && self.sync().is_err() {
            return 0;
        }
        for some in regions.chunks(AT_A_TIME) {
            let numbers = some.iter().map(|(_, number)| *number);
            // What fails is not given back, and that is all.
            if self.trim_regions(numbers).is_err() || !self.can_punch || is_enough(self) {
                break;
            }
        }
        before.saturating_sub(self.held())
    }

    /// Give back what is dead in some regions. Where nothing in a region hides records of others, dead records are taken out of its
    /// table, too, and then nothing needs to hide them any more; elsewhere their headers stay.
    fn trim_regions(&mut self, numbers: impl Iterator<Item = u32>) -> io::Result<()> {
        let mut cleaned = Vec::new();
        for number in numbers {
            let region = &self.books.regions[&number];
            // Where there is no good table, the headers of records are all there is; it will be emptied some day.
            let Some(records) = recover::read_table(&*self.storage, self.layout, &region.header) else {
                self.books.regions.get_mut(&number).expect("just read").has_no_table = true;
                continue;
            };
            let hides = region.guards.iter().any(|guard| self.books.is_needed(number, *guard));
            let is_live = |record: &RecordHeader| {
                let place = self.place(record.content.id());
                place.is_some_and(|p| (p.region, p.offset()) == (number, record.offset.into()))
            };
            let kept: Vec<(RecordHeader, u64)> = records
                .iter()
                .map(|record| (*record, if is_live(record) { record.content.record_len() } else { RECORD_ALIGN }))
                .filter(|(record, _)| hides || is_live(record))
                .collect();
            let (mut at, mut given_back) = (REGION_HEAD_LEN, 0);
            let ends = kept.iter().map(|(record, len)| (u64::from(record.offset), u64::from(record.offset) + len));
            for (next, end) in ends.chain([(region.table_at(), 0)]) {
                if next > at && !self.storage.punch(self.layout.offset(number) + at, next - at)? {
                    self.can_punch = false;
                    return Ok(());
                }
                given_back += next.saturating_sub(at);
                at = end;
            }
            let is_less = kept.len() < records.len();
            if let Some(region) = self.books.regions.get_mut(&number) {
                region.given_back = given_back;
            }
            if is_less {
                cleaned.push((number, kept.into_iter().map(|(record, _)| record).collect::<Vec<_>>()));
            }
        }
        self.write_less(&cleaned)
    }

    /// Have tables of what is kept. A crash in between leaves a region whose table is no good, and walking it finds the same.
    fn write_less(&mut self, cleaned: &[(u32, Vec<RecordHeader>)]) -> io::Result<()> {
        if cleaned.is_empty() {
            return Ok(());
        }
        // Nothing that is dead is found by walking from here on.
        self.sync()?;
        let mut headers = Vec::new();
        for (number, records) in cleaned {
            let old = self.books.regions[number].header;
            let header = RegionHeader { records: records.len() as u32, write: old.write + 1, ..old };
            let table = encode_table(header.generation, records);
            let at = self.layout.offset(*number) + self.layout.region_len - table.len() as u64;
            let written = self.storage.write_all_at(at, &table);
            written.and_then(|()| write_region_header(&*self.storage, self.layout, &header)).inspect_err(|_| {
                self.failures += 1;
            })?;
            headers.push(header);
        }
        self.sync()?;
        for header in headers {
            let own = (header.index, header.generation);
            for region in self.books.regions.values_mut() {
                region.guards.remove(&own);
            }
            if let Some(region) = self.books.regions.get_mut(&header.index) {
                (region.header, region.records) = (header, header.records);
            }
            self.books.forget_stale(|region, generation| (region, generation) == own);
        }
        Ok(())
    }

    /// A region is about to take its whole space again, or none is: where the file then takes more than its size, other free ones give
    /// theirs back, all but the spare ones.
    pub(super) fn make_up_for(&mut self, number: Option<u32>) -> io::Result<()> {
        let again = number.and_then(|number| self.books.regions.get(&number)).map_or(0, |r| r.given_back);
        let len = self.layout.region_len - REGION_HEAD_LEN;
        let mut too_much = (self.held() + again).saturating_sub(self.budget());
        if too_much == 0 || !self.can_punch {
            return Ok(());
        }
        let is_free = |r: &&Region| self.is_dead(r) && Some(r.header.index) != number && r.given_back < len;
        let free: Vec<(u32, u64)> =
            self.books.regions.values().filter(is_free).map(|r| (r.header.index, len - r.given_back)).collect();
        let mut some = Vec::new();
        // The one that is about to be used is a spare one, too.
        let kept = if number.is_some() { SPARES - 1 } else { SPARES };
        for (number, gives) in free.into_iter().skip(kept) {
            if too_much > 0 {
                some.push(number);
            }
            too_much = too_much.saturating_sub(gives);
        }
        // Of what is in them a part may stay after a power cut, and it must not be the older part.
        self.forget_free(&some)?;
        for number in some {
            if !self.storage.punch(self.layout.offset(number) + REGION_HEAD_LEN, len)? {
                self.can_punch = false;
                break;
            }
            if let Some(region) = self.books.regions.get_mut(&number) {
                region.given_back = len;
            }
        }
        Ok(())
    }

    fn forget_free(&mut self, numbers: &[u32]) -> io::Result<()> {
        if numbers.is_empty() {
            return Ok(());
        }
        self.begin_anew(numbers, OWNER_IMAGES, RegionState::Sealed)
    }

    /// Free regions whose records others have to hide: then they need not.
    fn forget_what_is_hidden(&mut self) -> io::Result<()> {
        let hidden: BTreeSet<(u32, u64)> = self.books.regions.values().flat_map(|r| r.guards.iter().copied()).collect();
        let is_hidden = |r: &&Region| self.is_dead(r) && hidden.contains(&(r.header.index, r.header.generation));
        let free: Vec<u32> = self.books.regions.values().filter(is_hidden).map(|r| r.header.index).collect();
        self.forget_free(&free)
    }

    /// Make the file longer by a region.
    pub(super) fn append_region(&mut self) -> Result<bool, StoreError> {
        let regions = self.file.regions;
        if self.reserve_until(regions + 1)?.is_err() {
            return Ok(false);
        }
        // What an earlier, longer file had there may still be on the medium: it does not count before the region does.
        self.forget_free(&[regions])?;
        let counted = self.change_header(|file| file.regions = regions + 1);
        if counted.is_err() {
            self.books.regions.remove(&regions);
        }
        counted?;
        self.free.insert(regions);
        Ok(true)
    }

    /// Whether the file takes more space than it should: it had to, to give space back after a power cut.
    #[must_use]
    pub fn has_borrowed(&mut self) -> bool {
        if self.shrinking.is_some() || self.file.regions <= self.size || self.held() <= self.budget() {
            return false;
        }
        self.trim();
        // Less than a region is not worth copying anything.
        self.held() >= self.budget() + self.layout.region_len
    }

    /// Cut off free regions at the end of a file that is longer than its size.
    ///
    /// # Errors
    /// The medium's.
    pub fn retract(&mut self) -> Result<(), StoreError> {
        if self.shrinking.is_some() || self.file.regions <= self.size {
            return Ok(());
        }
        self.settle();
        let free = (0..self.file.regions).filter(|number| self.is_free(*number)).count();
        let at_the_end = (self.size..self.file.regions).rev().take_while(|number| self.is_free(*number)).count();
        // One more than the spare ones, so that the next record does not make it longer again.
        let gone = at_the_end.min(free.saturating_sub(SPARES + 1));
        if gone == 0 { Ok(()) } else { self.cut_off(self.file.regions - gone as u32, |_| {}) }
    }
}
