//! What a member should have, against what it says that it has.

use std::collections::BTreeSet;

use images::fragment::FragmentId;
use images::{NodeId, wire};
use redb::ReadableTable as _;

use super::records::{MoveRecord, PendingRecord, SegmentRecord, TrashKey};
use super::tables::{MOVES, PENDING, SEGMENTS, TRASH, VACANT};
use super::{Catalog, Change, Result};

impl Catalog {
    /// Fragments that a member should have: those of its seats, unless it was allowed to drop them.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn expected_at(&self, node: NodeId) -> Result<BTreeSet<FragmentId>> {
        let vacant = self.vacant()?;
        let mut expected = BTreeSet::new();
        for (id, group) in self.groups()? {
            let seats = group.members.iter().enumerate().filter(|(_, member)| **member == node);
            let pieces: Vec<u8> =
                seats.map(|(piece, _)| piece as u8).filter(|piece| !vacant.contains(&(id, *piece))).collect();
            if pieces.is_empty() {
                continue;
            }
            for segment in self.segments_of(id)? {
                expected.extend(pieces.iter().map(|&piece| FragmentId { segment, piece }));
            }
        }
        Ok(expected)
    }
}

impl Change<'_> {
    /// A member has these. Those that nobody needs there are trash from now on; how many that are. What is known is looked at in this transaction:
    /// a fragment that is on its way, or moves, is needed.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn note_orphans(&self, node: NodeId, fragments: &[FragmentId]) -> Result<u64> {
        let mut orphans = 0;
        for fragment in fragments {
            let key = TrashKey::Fragment { node, segment: fragment.segment, piece: fragment.piece };
            if !self.is_needed_at(node, fragment)? && self.0.open_table(TRASH)?.get(key.encode())?.is_none() {
                self.put_trash(&key)?;
                orphans += 1;
            }
        }
        Ok(orphans)
    }

    fn is_needed_at(&self, node: NodeId, fragment: &FragmentId) -> Result<bool> {
        let FragmentId { segment, piece } = *fragment;
        let pending = self.0.open_table(PENDING)?.get(segment.0)?.map(|v| wire::decode::<PendingRecord>(v.value()));
        if pending.transpose()?.is_some_and(|pending| pending.sent.contains(&(piece, node))) {
            return Ok(true);
        }
        let record = self.0.open_table(SEGMENTS)?.get(segment.0)?.map(|v| wire::decode::<SegmentRecord>(v.value()));
        let Some(record) = record.transpose()? else { return Ok(false) };
        let moves = self.0.open_table(MOVES)?;
        let under_way = moves.get((record.group.0, piece))?.map(|v| wire::decode::<MoveRecord>(v.value()));
        if under_way.transpose()?.is_some_and(|under_way| under_way.to == node || under_way.via == Some(node)) {
            return Ok(true);
        }
        let group = self.group(record.group)?;
        let is_seat = group.is_some_and(|group| group.members.get(usize::from(piece)) == Some(&node));
        Ok(is_seat && self.0.open_table(VACANT)?.get((record.group.0, piece))?.is_none())
    }
}
