//! Where each fragment is: a cache of what the regions say.

use std::collections::BTreeMap;

use images::fragment::FragmentId;

use super::Region;
use crate::format::{RecordHeader, RecordKind};

/// A record's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Region number.
    pub region: u32,
    /// Byte offset in the region.
    pub offset: u32,
}

/// Live fragments and their places.
#[derive(Debug, Default)]
pub struct Index {
    places: BTreeMap<FragmentId, Place>,
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

    /// It can no longer be served; the controller will hear of it.
    pub(super) fn mark_damaged(&mut self, id: FragmentId) {
        if self.places.remove(&id).is_some() {
            self.damaged.push(id);
        }
    }

    pub(super) fn take_damaged(&mut self) -> Vec<FragmentId> {
        std::mem::take(&mut self.damaged)
    }
}

/// Take one record into account. Records come in the order of their sequence.
pub(super) fn apply(index: &mut Index, regions: &mut BTreeMap<u32, Region>, record: &RecordHeader, place: Place) {
    let old = match record.kind {
        RecordKind::Put => index.places.insert(record.fragment.id, place),
        RecordKind::Delete => index.places.remove(&record.fragment.id),
    };
    if let Some(old) = old {
        let victim = regions.get_mut(&old.region).expect("the index names regions that exist");
        victim.live = victim.live.saturating_sub(1);
        let killed = (old.region, victim.header.generation);
        if let Some(region) = regions.get_mut(&place.region) {
            region.kills.push(killed);
        }
    }
    if record.kind == RecordKind::Put {
        regions.get_mut(&place.region).expect("a record lies in a region").live += 1;
    }
}
