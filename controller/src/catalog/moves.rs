//! Members of groups that are replaced, fragments to be made anew, and what is thought of members.
//!
//! A move is noted before its first byte travels, with everybody who may get one. It ends in one transaction: the new member stands in the
//! group, and what the old one has is trash; or it is given up, and what the new one has is trash.

use std::collections::{BTreeMap, BTreeSet};

use images::{GroupId, NodeId, SegmentId, wire};
use redb::{ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};

use super::records::{MoveRecord, SegmentRecord, Standing, TrashKey};
use super::tables::{DAMAGED, GROUP_SEGMENTS, GROUPS, LOST_COPIES, MOVES, NODES, SEGMENTS, STANDINGS, VACANT};
use super::{Catalog, CatalogError, Change, Result};

/// A piece of a group.
pub type Seat = (GroupId, u8);

impl Catalog {
    /// All moves under way.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn moves(&self) -> Result<BTreeMap<Seat, MoveRecord>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(MOVES)?;
        let row = |row: std::result::Result<(redb::AccessGuard<'_, (u32, u8)>, redb::AccessGuard<'_, &[u8]>), _>| {
            let (key, value) = row?;
            let (group, piece) = key.value();
            Ok(((GroupId(group), piece), wire::decode(value.value())?))
        };
        table.iter()?.map(row).collect()
    }

    /// Pieces of groups that their holders were allowed to drop.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn vacant(&self) -> Result<BTreeSet<Seat>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(VACANT)?;
        let seat = |(group, piece)| (GroupId(group), piece);
        table.iter()?.map(|row| Ok(seat(row?.0.value()))).collect()
    }

    /// Whether the holder of a piece was allowed to drop it.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn is_vacant(&self, (group, piece): Seat) -> Result<bool> {
        Ok(self.0.begin_read()?.open_table(VACANT)?.get((group.0, piece))?.is_some())
    }

    /// The segments of a group.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn segments_of(&self, group: GroupId) -> Result<Vec<SegmentId>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(GROUP_SEGMENTS)?;
        let all = table.range((group.0, [0; 32])..=(group.0, [u8::MAX; 32]))?;
        all.map(|row| Ok(SegmentId(row?.0.value().1))).collect()
    }

    /// Fragments to be made anew at their holders: segment and piece.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn damaged(&self) -> Result<Vec<(SegmentId, u8)>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(DAMAGED)?;
        let row = |(segment, piece)| (SegmentId(segment), piece);
        table.iter()?.map(|found| Ok(row(found?.0.value()))).collect()
    }

    /// Some segments whose copy on mass storage is gone, from an id on, and around.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn lost_copies(&self, from: &SegmentId, most: usize) -> Result<Vec<SegmentId>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(LOST_COPIES)?;
        let around = table.range(from.0..)?.chain(table.range(..from.0)?);
        around.take(most).map(|row| Ok(SegmentId(row?.0.value()))).collect()
    }

    /// Whether a copy on mass storage is gone.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn is_lost_copy(&self, id: &SegmentId) -> Result<bool> {
        Ok(self.0.begin_read()?.open_table(LOST_COPIES)?.get(id.0)?.is_some())
    }

    /// How many these are.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn lost_copy_count(&self) -> Result<u64> {
        Ok(self.0.begin_read()?.open_table(LOST_COPIES)?.len()?)
    }

    /// What is thought of members.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn standings(&self) -> Result<BTreeMap<NodeId, Standing>> {
        Ok(self.all(STANDINGS)?.into_iter().map(|(node, standing)| (NodeId(node), standing)).collect())
    }

    /// What is thought of a member.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn standing(&self, node: NodeId) -> Result<Standing> {
        Ok(self.get(STANDINGS, node.0)?.unwrap_or_default())
    }
}

impl Change<'_> {
    /// What is thought of a member.
    pub(super) fn standing(&self, node: NodeId) -> Result<Standing> {
        let table = self.0.open_table(STANDINGS)?;
        let found = table.get(node.0)?.map(|v| wire::decode(v.value())).transpose()?;
        Ok(found.unwrap_or_default())
    }

    /// Change what is thought of a member.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn change_standing(&self, node: NodeId, work: impl FnOnce(&mut Standing)) -> Result<Standing> {
        let before = self.standing(node)?;
        let mut standing = before.clone();
        work(&mut standing);
        self.0.open_table(STANDINGS)?.insert(node.0, wire::encode(&standing).as_slice())?;
        if standing.clone().without_silence() != before.without_silence() {
            self.note()?;
        }
        Ok(standing)
    }

    /// A machine was installed anew, and this is its stash now: the one that it had before is gone with what it held. Those that
    /// `is_heard` are not: it has several.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn succeed(&self, node: NodeId, host: u32, is_heard: impl Fn(NodeId) -> bool) -> Result<Vec<NodeId>> {
        let mut before = Vec::new();
        for row in self.0.open_table(STANDINGS)?.iter()? {
            let (id, standing) = row?;
            let (id, standing): (NodeId, Standing) = (NodeId(id.value()), wire::decode(standing.value())?);
            if standing.host == Some(host) && id != node && !standing.lost && !is_heard(id) {
                before.push(id);
            }
        }
        for id in &before {
            self.change_standing(*id, |standing| (standing.removed, standing.lost) = (true, true))?;
        }
        self.change_standing(node, |standing| standing.host = Some(host))?;
        Ok(before)
    }

    /// A member of a group is to be replaced.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if the group is not what the plan was made for.
    pub fn begin_move(&self, (group, piece): Seat, new: &MoveRecord) -> Result<()> {
        let stale = || CatalogError::Conflict("the group changed meanwhile".into());
        let members = self.group(group)?.ok_or_else(stale)?.members;
        let mut table = self.0.open_table(MOVES)?;
        let mut targets = BTreeSet::new();
        for row in table.range((group.0, 0)..=(group.0, u8::MAX))? {
            let other: MoveRecord = wire::decode(row?.1.value())?;
            targets.insert(other.to);
        }
        // A mass-storage device may have several.
        let is_free =
            new.from != new.to && (self.is_device(new.to)? || !members.contains(&new.to) && !targets.contains(&new.to));
        if members.get(usize::from(piece)) != Some(&new.from)
            || !is_free
            || table.get((group.0, piece))?.is_some()
            || self.0.open_table(NODES)?.get(new.to.0)?.is_none()
        {
            return Err(stale());
        }
        table.insert((group.0, piece), wire::encode(new).as_slice())?;
        Ok(())
    }

    fn take_move(&self, (group, piece): Seat) -> Result<Option<MoveRecord>> {
        let mut table = self.0.open_table(MOVES)?;
        let found = table.remove((group.0, piece))?.map(|v| wire::decode(v.value())).transpose()?;
        Ok(found)
    }

    fn segments_in(&self, group: GroupId) -> Result<Vec<SegmentId>> {
        let table = self.0.open_table(GROUP_SEGMENTS)?;
        let all = table.range((group.0, [0; 32])..=(group.0, [u8::MAX; 32]))?;
        all.map(|row| Ok(SegmentId(row?.0.value().1))).collect()
    }

    /// The new member holds its piece of these segments, durably. If those are all of the group, it is its member from now on; else nothing
    /// changes, and the answer is what is missing.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if there is no such move any more.
    pub fn finish_move(&self, seat: Seat, done: &MoveRecord, has: &BTreeSet<SegmentId>) -> Result<Vec<SegmentId>> {
        let (group_id, piece) = seat;
        let gone = || CatalogError::Conflict("this move was given up meanwhile".into());
        let stored = self.0.open_table(MOVES)?.get((group_id.0, piece))?.map(|v| wire::decode::<MoveRecord>(v.value()));
        if stored.transpose()?.as_ref() != Some(done) || !self.standing(done.to)?.is_durable() {
            return Err(gone());
        }
        let mut group = self.group(group_id)?.ok_or_else(gone)?;
        let segments = self.segments_in(group_id)?;
        let missing: Vec<SegmentId> = segments.iter().filter(|id| !has.contains(id)).copied().collect();
        if !missing.is_empty() {
            return Ok(missing);
        }
        self.take_move(seat)?;
        let before = group.members.clone();
        group.members[usize::from(piece)] = done.to;
        let geometry = group.geometry;
        self.note_members(group_id, Some((geometry, &before)), Some((geometry, &group.members)))?;
        self.0.open_table(GROUPS)?.insert(group_id.0, wire::encode(&group).as_slice())?;
        self.trash_piece(&segments, piece, [Some(done.from), done.via])?;
        self.0.open_table(VACANT)?.remove((group_id.0, piece))?;
        let mut damaged = self.0.open_table(DAMAGED)?;
        for segment in &segments {
            // Whatever was damaged there is whole here.
            damaged.remove((segment.0, piece))?;
        }
        self.bump_epoch()?;
        Ok(Vec::new())
    }

    /// A holder may drop its piece of a group before anybody else has it.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if somebody else holds it by now, or another piece of the group is damaged.
    pub fn vacate(&self, (group, piece): Seat, node: NodeId) -> Result<()> {
        let members = self.group(group)?.map(|g| g.members).unwrap_or_default();
        if members.get(usize::from(piece)) != Some(&node) {
            return Err(CatalogError::Conflict("the group changed meanwhile".into()));
        }
        let segments = self.segments_in(group)?;
        let mut damaged = self.0.open_table(DAMAGED)?;
        for segment in &segments {
            damaged.remove((segment.0, piece))?;
            if damaged.range((segment.0, 0)..=(segment.0, u8::MAX))?.next().is_some() {
                return Err(CatalogError::Conflict("another piece of the group is damaged".into()));
            }
        }
        drop(damaged);
        self.0.open_table(VACANT)?.insert((group.0, piece), ())?;
        self.trash_piece(&segments, piece, [Some(node), None])
    }

    /// A group has nothing any more that anybody could have dropped.
    pub(super) fn forget_vacant(&self, group: GroupId) -> Result<()> {
        self.0.open_table(VACANT)?.retain_in((group.0, 0)..=(group.0, u8::MAX), |_, ()| false)?;
        Ok(())
    }

    /// A holder that was allowed to drop its piece has room for it again, and is to have it again.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn occupy(&self, (group, piece): Seat) -> Result<()> {
        if self.0.open_table(VACANT)?.remove((group.0, piece))?.is_none() {
            return Ok(());
        }
        let mut damaged = self.0.open_table(DAMAGED)?;
        self.segments_in(group)?.iter().try_for_each(|segment| Ok(damaged.insert((segment.0, piece), ()).map(drop)?))
    }

    /// A move is not carried on: what it put anywhere is trash.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn give_up_move(&self, seat: Seat) -> Result<()> {
        let Some(old) = self.take_move(seat)? else { return Ok(()) };
        self.trash_piece(&self.segments_in(seat.0)?, seat.1, [Some(old.to), old.via])
    }

    /// A piece is trash at these; at who is no member any more it is gone anyway.
    fn trash_piece(&self, segments: &[SegmentId], piece: u8, at: [Option<NodeId>; 2]) -> Result<()> {
        for node in at.into_iter().flatten() {
            if self.is_member(node)? {
                for segment in segments {
                    self.put_trash(&TrashKey::Fragment { node, segment: *segment, piece })?;
                }
            }
        }
        Ok(())
    }

    /// A segment goes while its group's members are being replaced.
    pub(super) fn trash_moved(&self, group: GroupId, segment: &SegmentId) -> Result<()> {
        let mut found = Vec::new();
        for row in self.0.open_table(MOVES)?.range((group.0, 0)..=(group.0, u8::MAX))? {
            let (key, value) = row?;
            found.push((key.value().1, wire::decode::<MoveRecord>(value.value())?));
        }
        found.into_iter().try_for_each(|(piece, under_way)| {
            self.trash_piece(std::slice::from_ref(segment), piece, [Some(under_way.to), under_way.via])
        })
    }

    /// A holder has lost a fragment. Only what it should hold counts.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn note_damage(&self, node: NodeId, segment: SegmentId, piece: u8) -> Result<bool> {
        let record = self.0.open_table(SEGMENTS)?.get(segment.0)?.map(|v| wire::decode::<SegmentRecord>(v.value()));
        let Some(record) = record.transpose()? else { return Ok(false) };
        let members = self.group(record.group)?.map(|group| group.members).unwrap_or_default();
        let is_vacant = self.0.open_table(VACANT)?.get((record.group.0, piece))?.is_some();
        let is_holder = !is_vacant && members.get(usize::from(piece)) == Some(&node);
        if is_holder {
            self.0.open_table(DAMAGED)?.insert((segment.0, piece), ())?;
        }
        Ok(is_holder)
    }

    /// A holder was asked to make a fragment anew, and has proven it, or has failed to although it says that it has it. Says whether it is
    /// still its holder: if not, that says nothing of it.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn mend_damage(&self, node: NodeId, segment: SegmentId, piece: u8, is_proven: bool) -> Result<()> {
        let is_holder = self.note_damage(node, segment, piece)?;
        if is_holder && is_proven {
            self.0.open_table(DAMAGED)?.remove((segment.0, piece))?;
        } else if is_holder {
            self.change_standing(node, |standing| standing.distrusted = true)?;
        }
        Ok(())
    }

    /// A copy on mass storage is gone. Only one that should be there counts.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn note_lost_copy(&self, id: &SegmentId) -> Result<()> {
        let record = self.0.open_table(SEGMENTS)?.get(id.0)?.map(|v| wire::decode::<SegmentRecord>(v.value()));
        if record.transpose()?.is_some_and(|record| record.on_mass_storage) {
            self.0.open_table(LOST_COPIES)?.insert(id.0, ())?;
        }
        Ok(())
    }

    /// Mass storage has a copy of it, and keeps it.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn keep_copy(&self, id: &SegmentId) -> Result<()> {
        let mut table = self.0.open_table(SEGMENTS)?;
        let record = table.get(id.0)?.map(|v| wire::decode::<SegmentRecord>(v.value())).transpose()?;
        let Some(before) = record else { return Ok(()) };
        let record = SegmentRecord { on_mass_storage: true, ..before.clone() };
        table.insert(id.0, wire::encode(&record).as_slice())?;
        self.note_segment(id, Some(&before), Some(&record))?;
        self.0.open_table(super::PENDING)?.remove(id.0)?;
        self.copy_is_back(id)
    }

    /// It was made anew, or is not needed any more.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn copy_is_back(&self, id: &SegmentId) -> Result<()> {
        self.0.open_table(LOST_COPIES)?.remove(id.0)?;
        Ok(())
    }

    /// Whether a member is known.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn is_member(&self, node: NodeId) -> Result<bool> {
        Ok(self.0.open_table(NODES)?.get(node.0)?.is_some())
    }

    pub(super) fn forget_damage(&self, segment: &SegmentId) -> Result<()> {
        let mut table = self.0.open_table(DAMAGED)?;
        table.retain_in((segment.0, 0)..=(segment.0, u8::MAX), |_, ()| false)?;
        Ok(())
    }

    /// A member must hold nothing for the array, nor be getting anything by repair. The answer is the groups without segments that it is in.
    pub(super) fn check_empty(&self, node: NodeId) -> Result<Vec<u32>> {
        let mut empty = Vec::new();
        for row in self.0.open_table(GROUPS)?.iter()? {
            let (id, value) = row?;
            let group: super::GroupRecord = wire::decode(value.value())?;
            if group.members.contains(&node) {
                if group.segments > 0 {
                    return Err(CatalogError::Conflict(format!(
                        "{node} still holds pieces of group {}: `coe-ctl node drain {} --wait` moves them elsewhere",
                        id.value(),
                        node.short()
                    )));
                }
                empty.push(id.value());
            }
        }
        for row in self.0.open_table(MOVES)?.iter()? {
            let under_way: MoveRecord = wire::decode(row?.1.value())?;
            if under_way.to == node || under_way.via == Some(node) {
                return Err(CatalogError::Conflict(format!("{node} is getting pieces of a group")));
            }
        }
        Ok(empty)
    }

    /// Forget a member that no group needs. What was to be deleted there is gone with it.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if it still has a place in a group.
    pub fn remove_node(&self, node: NodeId) -> Result<()> {
        let empty = self.check_empty(node)?;
        let mut groups = self.0.open_table(GROUPS)?;
        for id in empty {
            groups.remove(id)?;
            self.forget_vacant(GroupId(id))?;
        }
        self.forget_trash_at(node)?;
        self.0.open_table(NODES)?.remove(node.0)?;
        self.forget_habits(node)?;
        // A publication that is under way must not make a group with it.
        self.change_standing(node, |standing| standing.lost = true)?;
        self.bump_epoch()
    }
}
