//! Filling an empty catalog from what clients know.

use std::collections::BTreeMap;

use images::manifest::ImageName;
use images::{ChunkId, GroupId, NodeId, SegmentId, wire};

use super::tables::{CHUNKS, DEVICES, GROUPS, IMAGES, META, SEGMENT_CHUNKS, SEGMENTS};
use super::{Catalog, CatalogError, Change, GroupRecord, ImageRecord, Result, SegmentRecord};
use crate::deploy::DeployRecord;
use redb::{ReadableDatabase as _, ReadableTable as _};

impl Catalog {
    /// Whether the chunks of a segment are known.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn knows_chunks_of(&self, id: &SegmentId) -> Result<bool> {
        Ok(self.0.begin_read()?.open_table(SEGMENT_CHUNKS)?.get(id.0)?.is_some())
    }
}

impl Change<'_> {
    fn at_least(&self, counter: &str, value: u64) -> Result<()> {
        let mut meta = self.0.open_table(META)?;
        let now = meta.get(counter)?.map_or(0, |v| v.value());
        meta.insert(counter, now.max(value))?;
        Ok(())
    }

    /// A member was a mass-storage device before, whatever it holds.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn restore_device(&self, node: NodeId) -> Result<()> {
        self.0.open_table(DEVICES)?.insert(node.0, ())?;
        Ok(())
    }

    /// Keep groups under the numbers that they have.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn restore_groups(&self, groups: &BTreeMap<GroupId, GroupRecord>) -> Result<()> {
        let mut table = self.0.open_table(GROUPS)?;
        for (id, group) in groups {
            table.insert(id.0, wire::encode(group).as_slice())?;
            self.note_members(*id, None, Some((group.geometry, &group.members)))?;
        }
        self.at_least("group", groups.keys().map(|id| u64::from(id.0)).max().unwrap_or(0))
    }

    /// Keep an image under the number that it has.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn restore_image(&self, image: &ImageName, record: &ImageRecord) -> Result<()> {
        self.0.open_table(IMAGES)?.insert(image.to_string().as_str(), wire::encode(record).as_slice())?;
        self.at_least("image", record.number)
    }

    /// Keep a machine's number from being given to another.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn restore_host_number(&self, id: u32) -> Result<()> {
        self.at_least("host", id.into())
    }

    /// Keep open deployments under the numbers that they have; no number up to `last` is given again.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn restore_deployments(&self, deployments: &[(u32, DeployRecord)], last: u32) -> Result<()> {
        deployments.iter().try_for_each(|(id, record)| self.put_deployment(*id, record))?;
        self.at_least("deployment", last.into())
    }

    /// Keep what is known of a segment whose chunks are not known yet.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn restore_segment(&self, id: &SegmentId, record: &SegmentRecord) -> Result<()> {
        let mut segments = self.0.open_table(SEGMENTS)?;
        let before = segments.insert(id.0, wire::encode(record).as_slice())?;
        let before = before.map(|v| wire::decode::<SegmentRecord>(v.value())).transpose()?;
        self.note_segment(id, before.as_ref(), Some(record))
    }

    /// A segment was fetched: its chunks are known from now on, and whether mass storage has a copy. Chunks that another segment has are
    /// left there.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if nobody knows the segment.
    pub fn restore_chunks(&self, id: &SegmentId, chunks: &[(ChunkId, u32)], copied: bool) -> Result<()> {
        let mut known = self.0.open_table(CHUNKS)?;
        let (mut offset, mut ids) = (0, Vec::with_capacity(chunks.len() * 32));
        for (chunk, len) in chunks {
            if known.get(chunk.0)?.is_none() {
                known.insert(chunk.0, (id.0, offset))?;
            }
            ids.extend_from_slice(&chunk.0);
            offset += len;
        }
        self.0.open_table(SEGMENT_CHUNKS)?.insert(id.0, ids.as_slice())?;
        let mut segments = self.0.open_table(SEGMENTS)?;
        let record = segments.get(id.0)?.map(|v| wire::decode::<SegmentRecord>(v.value())).transpose()?;
        let before = record.ok_or_else(|| CatalogError::Conflict(format!("segment {} is not known", id.short())))?;
        let record = SegmentRecord { on_mass_storage: before.on_mass_storage || copied, ..before.clone() };
        segments.insert(id.0, wire::encode(&record).as_slice())?;
        self.note_segment(id, Some(&before), Some(&record))
    }
}
