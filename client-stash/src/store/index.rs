//! Where each fragment is: a cache of what the regions say.

use std::collections::BTreeMap;

use images::fragment::FragmentId;

use crate::limits::RECORD_ALIGN;

/// A record's place. Small: there is one for each fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Region number.
    pub region: u32,
    block: u16,
    blocks: u16,
}

impl Place {
    pub(super) fn new(region: u32, offset: u32, record_len: u64) -> Self {
        let blocks = |bytes: u64| (bytes / RECORD_ALIGN) as u16;
        Self { region, block: blocks(offset.into()), blocks: blocks(record_len) }
    }

    /// Byte offset in the region.
    #[must_use]
    pub fn offset(&self) -> u64 {
        u64::from(self.block) * RECORD_ALIGN
    }

    /// Bytes that the record takes.
    #[must_use]
    pub fn record_len(&self) -> u64 {
        u64::from(self.blocks) * RECORD_ALIGN
    }
}

/// Live fragments and their places.
#[derive(Debug, Default)]
pub struct Index {
    places: BTreeMap<FragmentId, Place>,
    /// What readers found damaged and the store does not know yet.
    orphans: Vec<(FragmentId, Place)>,
    /// The same, for the controller.
    damaged: Vec<FragmentId>,
}

impl Index {
    /// Where a fragment is.
    #[must_use]
    pub fn get(&self, id: &FragmentId) -> Option<Place> {
        self.places.get(id).copied()
    }

    /// Number of live fragments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&FragmentId, &Place)> {
        self.places.iter()
    }

    /// Those behind one, in order.
    pub fn iter_behind(&self, after: Option<FragmentId>) -> impl Iterator<Item = &FragmentId> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.places.range((after.map_or(Unbounded, Excluded), Unbounded)).map(|(id, _)| id)
    }

    pub(super) fn set(&mut self, id: FragmentId, place: Option<Place>) -> Option<Place> {
        match place {
            Some(place) => self.places.insert(id, place),
            None => self.places.remove(&id),
        }
    }

    /// It can no longer be served; the store and the controller will hear of it.
    pub(super) fn mark_damaged(&mut self, id: FragmentId) {
        if let Some(place) = self.places.remove(&id) {
            self.orphans.push((id, place));
            self.damaged.push(id);
        }
    }

    /// Of these no good record was found; those that are not here after all are told to the controller.
    pub(super) fn report_missing(&mut self, ids: Vec<FragmentId>) {
        let missing = ids.into_iter().filter(|id| !self.places.contains_key(id));
        self.damaged.extend(missing);
    }

    pub(super) fn take_damaged(&mut self) -> Vec<FragmentId> {
        std::mem::take(&mut self.damaged)
    }

    pub(super) fn take_orphans(&mut self) -> Vec<(FragmentId, Place)> {
        std::mem::take(&mut self.orphans)
    }
}
