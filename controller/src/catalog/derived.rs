//! What could be computed from the segments, and is noted beside them: at ten million of them nobody wants to read all of them to know how
//! many there are.

use std::collections::BTreeMap;

use images::parity::Geometry;
use images::{GroupId, NodeId, SegmentId, wire};
use redb::{ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};

use super::records::{GroupRecord, SegmentRecord, TrashKey};
use super::tables::{
    GROUP_FOLDS, GROUP_OF, GROUP_SEGMENTS, GROUP_TOTALS, GROUPS, META, SEGMENTS, TRASH, TRASH_OF, UNUSED,
};
use super::{Catalog, Change, Result};

/// Counts up when something is noted that was not before: then it is computed once.
const VERSION: u64 = 3;
const VERSION_KEY: &str = "derived";
const SEALED: &str = "sealed";

fn digest_of(geometry: Geometry, members: &[NodeId]) -> [u8; 32] {
    *blake3::hash(&wire::encode(&(geometry, members))).as_bytes()
}

/// All segments together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentTotals {
    /// How many.
    pub segments: u64,
    /// Sealed bytes.
    pub sealed: u64,
    /// Segments that nothing refers to.
    pub unused: u64,
}

/// The segments of a group together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupTotals {
    /// Sealed bytes.
    pub sealed: u64,
    /// Segments of which mass storage has a copy.
    pub copies: u64,
}

impl GroupTotals {
    /// Bytes of so many segments at one member: at most one more for each than there are.
    #[must_use]
    pub fn at_one(self, geometry: Geometry, segments: u64) -> u64 {
        self.sealed / geometry.data() as u64 + segments
    }
}

impl Catalog {
    /// All segments together.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn segment_totals(&self) -> Result<SegmentTotals> {
        let read = self.0.begin_read()?;
        Ok(SegmentTotals {
            segments: read.open_table(SEGMENTS)?.len()?,
            sealed: read.open_table(META)?.get(SEALED)?.map_or(0, |v| v.value()),
            unused: read.open_table(UNUSED)?.len()?,
        })
    }

    /// The segments of each group together. Groups without any are left out.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn group_totals(&self) -> Result<BTreeMap<GroupId, GroupTotals>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(GROUP_TOTALS)?;
        table
            .iter()?
            .map(|row| {
                let (group, totals) = row?;
                let (sealed, copies) = totals.value();
                Ok((GroupId(group.value()), GroupTotals { sealed, copies }))
            })
            .collect()
    }

    /// How many fragments each member should have, and their fold. Members without any are left out.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn folds(&self) -> Result<BTreeMap<NodeId, (u64, u64)>> {
        let vacant = self.vacant()?;
        let groups = self.groups()?;
        let read = self.0.begin_read()?;
        let table = read.open_table(GROUP_FOLDS)?;
        let mut folds: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
        for (id, group) in groups {
            let of_group = table.get(id.0)?.map_or(0, |v| v.value());
            for (piece, node) in group.members.iter().enumerate() {
                if !vacant.contains(&(id, piece as u8)) {
                    let (count, fold) = folds.entry(*node).or_default();
                    (*count, *fold) = (*count + group.segments, *fold ^ of_group.rotate_left(piece as u32));
                }
            }
        }
        Ok(folds)
    }

    /// Whether mass storage should have any copy.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn has_copies(&self) -> Result<bool> {
        Ok(self.group_totals()?.values().any(|totals| totals.copies > 0))
    }

    /// Segments that nothing refers to and that became durable before a time, seconds since 1970.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn unused(&self, before_unix_s: u64) -> Result<Vec<(SegmentId, SegmentRecord)>> {
        let read = self.0.begin_read()?;
        let (table, segments) = (read.open_table(UNUSED)?, read.open_table(SEGMENTS)?);
        let mut unused = Vec::new();
        for row in table.iter()? {
            let id = row?.0.value();
            let Some(record) = segments.get(id)? else { continue };
            let record: SegmentRecord = wire::decode(record.value())?;
            if record.stored_unix_s <= before_unix_s {
                unused.push((SegmentId(id), record));
            }
        }
        Ok(unused)
    }
}

impl Change<'_> {
    /// A record of a segment changes: from what it was, if there was one, to what it will be.
    pub(super) fn note_segment(
        &self,
        id: &SegmentId,
        before: Option<&SegmentRecord>,
        after: Option<&SegmentRecord>,
    ) -> Result<()> {
        let is_unused = |record: Option<&SegmentRecord>| record.is_some_and(|r| r.references == 0);
        match (is_unused(before), is_unused(after)) {
            (false, true) => drop(self.0.open_table(UNUSED)?.insert(id.0, ())?),
            (true, false) => drop(self.0.open_table(UNUSED)?.remove(id.0)?),
            _ => {}
        }
        let sealed = |record: Option<&SegmentRecord>| record.map_or(0, |r| u64::from(r.sealed_len));
        if sealed(before) != sealed(after) {
            let mut meta = self.0.open_table(META)?;
            let all = meta.get(SEALED)?.map_or(0, |v| v.value());
            meta.insert(SEALED, (all + sealed(after)).saturating_sub(sealed(before)))?;
        }
        let lies = |record: Option<&SegmentRecord>| record.map(|r| (r.group, r.sealed_len, r.on_mass_storage));
        if lies(before) == lies(after) {
            return Ok(());
        }
        if let Some(record) = before {
            self.0.open_table(GROUP_SEGMENTS)?.remove((record.group.0, id.0))?;
            self.fold(record.group, id)?;
            self.count(record, -1)?;
        }
        if let Some(record) = after {
            self.0.open_table(GROUP_SEGMENTS)?.insert((record.group.0, id.0), ())?;
            self.fold(record.group, id)?;
            self.count(record, 1)?;
        }
        Ok(())
    }

    /// A segment comes into a group, or leaves it.
    fn fold(&self, group: GroupId, id: &SegmentId) -> Result<()> {
        let mut table = self.0.open_table(GROUP_FOLDS)?;
        let fold = table.get(group.0)?.map_or(0, |v| v.value()) ^ id.fold();
        if fold == 0 {
            table.remove(group.0)?;
        } else {
            table.insert(group.0, fold)?;
        }
        Ok(())
    }

    /// So many segments like this one come into its group.
    fn count(&self, record: &SegmentRecord, by: i64) -> Result<()> {
        let mut table = self.0.open_table(GROUP_TOTALS)?;
        let (sealed, copies) = table.get(record.group.0)?.map_or((0, 0), |v| v.value());
        let sealed = sealed.saturating_add_signed(by * i64::from(record.sealed_len));
        let copies = copies.saturating_add_signed(by * i64::from(record.on_mass_storage));
        if (sealed, copies) == (0, 0) {
            table.remove(record.group.0)?;
        } else {
            table.insert(record.group.0, (sealed, copies))?;
        }
        Ok(())
    }

    /// The group of just these members.
    pub(super) fn group_of(&self, geometry: Geometry, members: &[NodeId]) -> Result<Option<(GroupId, GroupRecord)>> {
        let id = self.0.open_table(GROUP_OF)?.get(digest_of(geometry, members))?.map(|v| GroupId(v.value()));
        let Some(id) = id else { return Ok(None) };
        let group = self.group(id)?.filter(|group| group.geometry == geometry && group.members == members);
        Ok(group.map(|group| (id, group)))
    }

    /// A group has other members.
    pub(super) fn note_members(
        &self,
        id: GroupId,
        before: Option<(Geometry, &[NodeId])>,
        after: Option<(Geometry, &[NodeId])>,
    ) -> Result<()> {
        let mut table = self.0.open_table(GROUP_OF)?;
        if let Some((geometry, members)) = before {
            let digest = digest_of(geometry, members);
            // Moves may have left two groups with the same members.
            let is_own = table.get(digest)?.is_some_and(|v| v.value() == id.0);
            if is_own {
                table.remove(digest)?;
            }
        }
        if let Some((geometry, members)) = after {
            table.insert(digest_of(geometry, members), id.0)?;
        }
        Ok(())
    }

    /// Compute all of it, in a catalog that was written before it was noted.
    pub(super) fn derive(&self) -> Result<()> {
        let version = self.0.open_table(META)?.get(VERSION_KEY)?.map_or(0, |v| v.value());
        if version == VERSION {
            return Ok(());
        }
        self.0.open_table(META)?.remove(SEALED)?;
        self.0.open_table(UNUSED)?.retain(|_, ()| false)?;
        self.0.open_table(GROUP_TOTALS)?.retain(|_, _| false)?;
        self.0.open_table(GROUP_FOLDS)?.retain(|_, _| false)?;
        self.0.open_table(GROUP_SEGMENTS)?.retain(|_, ()| false)?;
        for row in self.0.open_table(SEGMENTS)?.iter()? {
            let (id, record) = row?;
            self.note_segment(&SegmentId(id.value()), None, Some(&wire::decode(record.value())?))?;
        }
        self.0.open_table(GROUP_OF)?.retain(|_, _| false)?;
        for row in self.0.open_table(GROUPS)?.iter()? {
            let (id, group) = row?;
            let group: GroupRecord = wire::decode(group.value())?;
            self.note_members(GroupId(id.value()), None, Some((group.geometry, &group.members)))?;
        }
        let mut by_segment = self.0.open_table(TRASH_OF)?;
        by_segment.retain(|_, ()| false)?;
        for row in self.0.open_table(TRASH)?.iter()? {
            by_segment.insert(TrashKey::decode(&row?.0.value()).encode_by_segment(), ())?;
        }
        self.0.open_table(META)?.insert(VERSION_KEY, VERSION)?;
        Ok(())
    }
}
