//! What must be deleted, at whom: noted by member, and once more by segment, because both are asked for where there are millions.

use images::{NodeId, SegmentId};
use redb::{ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};

use super::records::{MASS_STORAGE, TrashKey};
use super::tables::{TRASH, TRASH_OF};
use super::{Catalog, Change, Result};

impl Catalog {
    /// What must be deleted, at whom: all of it.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn trash(&self) -> Result<Vec<TrashKey>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(TRASH)?;
        table.iter()?.map(|row| Ok(TrashKey::decode(&row?.0.value()))).collect()
    }

    /// How much that is.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn trash_count(&self) -> Result<u64> {
        Ok(self.0.begin_read()?.open_table(TRASH)?.len()?)
    }

    /// Members at which something must be deleted, and whether something must be on mass storage.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn trash_nodes(&self) -> Result<(Vec<NodeId>, bool)> {
        let read = self.0.begin_read()?;
        let table = read.open_table(TRASH)?;
        let (mut nodes, mut are_copies) = (Vec::new(), false);
        let mut from = [0; 49];
        while let Some(row) = table.range(from..)?.next() {
            // The last key of a member is no real one: a piece has no number so high.
            from = match TrashKey::decode(&row?.0.value()) {
                TrashKey::Fragment { node, .. } => {
                    nodes.push(node);
                    *TrashKey::at(node).end()
                }
                TrashKey::Copy { .. } => {
                    are_copies = true;
                    *TrashKey::at(MASS_STORAGE).end()
                }
            };
        }
        Ok((nodes, are_copies))
    }

    /// Some of what must be deleted at a member.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn trash_at(&self, node: NodeId, most: usize) -> Result<Vec<TrashKey>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(TRASH)?;
        table.range(TrashKey::at(node))?.take(most).map(|row| Ok(TrashKey::decode(&row?.0.value()))).collect()
    }

    /// Some copies that must be deleted on mass storage.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn trash_copies(&self, most: usize) -> Result<Vec<SegmentId>> {
        Ok(self.trash_at(MASS_STORAGE, most)?.iter().map(TrashKey::segment).collect())
    }

    /// What must be deleted of a segment.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn trash_of(&self, segment: &SegmentId) -> Result<Vec<TrashKey>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(TRASH_OF)?;
        let range = table.range(TrashKey::of(segment))?;
        range.map(|row| Ok(TrashKey::decode_by_segment(&row?.0.value()))).collect()
    }

    /// Whether anything is still to be deleted at a member.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn has_trash(&self, node: NodeId) -> Result<bool> {
        Ok(!self.trash_at(node, 1)?.is_empty())
    }

    /// Whether something is still to be deleted.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn is_trash(&self, key: &TrashKey) -> Result<bool> {
        Ok(self.0.begin_read()?.open_table(TRASH)?.get(key.encode())?.is_some())
    }
}

impl Change<'_> {
    /// Something must be deleted.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn put_trash(&self, key: &TrashKey) -> Result<()> {
        // What a member that left may still have is nobody's business.
        if let TrashKey::Fragment { node, .. } = key
            && self.standing(*node)?.lost
            && !self.is_member(*node)?
        {
            return Ok(());
        }
        self.0.open_table(TRASH)?.insert(key.encode(), ())?;
        self.0.open_table(TRASH_OF)?.insert(key.encode_by_segment(), ())?;
        Ok(())
    }

    /// Something is gone.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn remove_trash(&self, key: &TrashKey) -> Result<()> {
        self.0.open_table(TRASH)?.remove(key.encode())?;
        self.0.open_table(TRASH_OF)?.remove(key.encode_by_segment())?;
        Ok(())
    }

    /// Nothing is to be deleted at a member any more.
    pub(super) fn forget_trash_at(&self, node: NodeId) -> Result<()> {
        let mut by_segment = self.0.open_table(TRASH_OF)?;
        let mut table = self.0.open_table(TRASH)?;
        for row in table.range(TrashKey::at(node))? {
            by_segment.remove(TrashKey::decode(&row?.0.value()).encode_by_segment())?;
        }
        table.retain_in(TrashKey::at(node), |_, ()| false)?;
        Ok(())
    }
}
