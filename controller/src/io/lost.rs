//! Segments of which too few pieces are left to make them whole. Whoever publishes what is in them once more brings them back.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use images::{GroupId, NodeId, SegmentId};
use protocol::message::Refusal;

use super::controller::{Controller, catalog_refusal};
use super::sweep::segment_pages;
use crate::catalog::{ImageRecord, PendingRecord};
use crate::repair::{Bad, NONE_BAD, Policy, Seen, Whole};

impl Controller {
    /// Pieces that their holders have lost, by segment.
    pub(super) fn damage(&self) -> Result<BTreeMap<SegmentId, Bad>, Refusal> {
        let mut damage: BTreeMap<SegmentId, Bad> = BTreeMap::new();
        for (segment, piece) in self.catalog.damaged().map_err(catalog_refusal)? {
            damage.entry(segment).or_default().insert(piece);
        }
        Ok(damage)
    }

    /// Segments that cannot be had any more, whoever comes back of those that are expected: fewer than k pieces, and no copy on
    /// mass storage. The controller has all pages.
    pub(super) fn lost_segments(
        &self,
        groups: &BTreeMap<GroupId, Whole>,
        nodes: &BTreeMap<NodeId, Seen>,
        policy: &Policy,
        damage: &BTreeMap<SegmentId, Bad>,
    ) -> Result<BTreeSet<SegmentId>, Refusal> {
        let is_lost = |group: &Whole, bad: &Bad| group.durable(nodes, policy, bad).count() < group.geometry.data();
        let mut lost = BTreeSet::new();
        for (id, _) in groups.iter().filter(|(_, group)| is_lost(group, NONE_BAD)) {
            lost.extend(self.catalog.segments_of(*id).map_err(catalog_refusal)?);
        }
        for (segment, bad) in damage {
            let record = self.catalog.segment(segment).map_err(catalog_refusal)?;
            if record.and_then(|record| groups.get(&record.group)).is_some_and(|group| is_lost(group, bad)) {
                lost.insert(*segment);
            }
        }
        let mut without_copy = BTreeSet::new();
        for segment in lost {
            let Some(record) = self.catalog.segment(&segment).map_err(catalog_refusal)? else { continue };
            let is_copied = record.on_mass_storage && !self.catalog.is_lost_copy(&segment).map_err(catalog_refusal)?;
            if !is_copied && !record.is_page() {
                without_copy.insert(segment);
            }
        }
        Ok(without_copy)
    }

    /// All of them.
    pub(super) fn all_lost_segments(&self) -> Result<BTreeSet<SegmentId>, Refusal> {
        let (nodes, groups) = self.repair_facts()?;
        self.lost_segments(&groups, &nodes, &self.repair_policy()?, &self.damage()?)
    }

    /// Whether an image has any of these segments.
    pub(super) fn has_any(&self, image: &ImageRecord, segments: &BTreeSet<SegmentId>) -> Result<bool, Refusal> {
        let root = Self::root(&image.signed).map_err(catalog_refusal)?;
        for page in segment_pages(&self.catalog, &root) {
            if page.map_err(catalog_refusal)?.segments.iter().any(|entry| segments.contains(&entry.id)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A publisher has a segment that was lost: mass storage keeps it, and repair makes its pieces from that, now.
    pub(super) async fn bring_back(&self, id: SegmentId, sealed: Bytes) -> Result<(), Refusal> {
        // Deletions wait.
        let _alive = self.deleting.read().await;
        let intent = PendingRecord { sent: Vec::new(), copy: true };
        let written = self.committer.change(move |change| change.put_pending(id, &intent));
        written.await.map_err(catalog_refusal)?;
        let stored = self.mass_storage.put(&id, sealed).await;
        stored.map_err(|e| Refusal::Failed(format!("mass storage: {e}")))?;
        let noted = self.committer.change(move |change| change.keep_copy(&id));
        noted.await.map_err(catalog_refusal)?;
        if let Some(record) = self.catalog.segment(&id).map_err(catalog_refusal)? {
            self.repairs.try_again(id, record.group);
            self.restripes.look_again();
        }
        tracing::info!(segment = %id, "a segment that was lost is back");
        Ok(())
    }
}
