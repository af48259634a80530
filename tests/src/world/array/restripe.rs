//! Policies change, and images are cut anew: the same steps as the controller's, on simulated stashes.

use std::collections::{BTreeMap, BTreeSet};

use controller::catalog::{GroupRecord, ImageRecord};
use controller::placement::Protection;
use images::manifest::{ImageName, PageRef, Signed};
use images::parity::Geometry;
use images::{ChunkId, GroupId, ManifestId, NodeId, SegmentId};
use protocol::message::publish::Layout;

use super::{STEPS_A_DAY, World, catalog_fails};
use crate::world::Rng;
use crate::world::run::Failure;

/// A manifest that was replaced: until which step it is kept, and what it refers to.
pub(super) struct Retired {
    manifest: ManifestId,
    image: ImageName,
    until: u64,
    pub(super) segments: Vec<SegmentId>,
}

/// What a policy may want.
pub(super) fn any_protection(rng: &mut Rng) -> Protection {
    let (data, parity) = (1 + rng.below(8) as u8, 1 + rng.below(4) as u8);
    let geometry = Geometry::new(data, parity).expect("within the limits");
    let layout = match rng.below(5) {
        0 => Layout::ParityOnController,
        1 if data <= 2 * parity => Layout::ParityOnClients,
        _ => Layout::Clients,
    };
    Protection { geometry, layout, steady: rng.below(u64::from(data) + 1) as usize }
}

/// The chunk of some contents: all editions have the same.
pub(super) fn chunk(number: u64) -> ChunkId {
    ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

/// The segment of some contents.
fn segment(chunk: ChunkId, edition: u8) -> SegmentId {
    SegmentId(*blake3::Hasher::new().update(&chunk.0).update(&[edition]).finalize().as_bytes())
}

impl World {
    fn edition(&mut self, chunk: ChunkId, edition: u8) -> SegmentId {
        let id = segment(chunk, edition);
        self.editions.insert(id, (chunk, edition));
        id
    }

    /// The record of an image, with a manifest of its own.
    pub(super) fn record(&mut self) -> ImageRecord {
        self.next_manifest += 1;
        ImageRecord {
            number: 0,
            manifest: ManifestId(*blake3::hash(&self.next_manifest.to_le_bytes()).as_bytes()),
            signed: Signed { bytes: Vec::new(), signature: Vec::new() },
            root: PageRef::of(b"root", GroupId(0)),
            key: images::keys::ManifestKey([0; 32]),
            offline: None,
        }
    }

    /// The segment that new images have some contents in; it is made if there is none.
    pub(super) fn segment_for(&mut self, number: u64) -> Result<Option<SegmentId>, Failure> {
        let chunk = chunk(number);
        if let Some(place) = self.catalog.places(&[chunk]).map_err(catalog_fails)?[0] {
            return Ok(Some(place.segment));
        }
        let id = self.edition(chunk, 0);
        let is_there = self.catalog.segment(&id)?.is_some();
        Ok((is_there || self.place(id, chunk)?).then_some(id))
    }

    /// Whether a segment is cut as is wanted now; none if there is none.
    fn is_cut_so(&self, id: &SegmentId) -> Result<Option<bool>, Failure> {
        self.is_cut_so_with(id, &self.device_nodes()?)
    }

    fn device_nodes(&self) -> Result<BTreeMap<NodeId, u64>, Failure> {
        Ok(self.catalog.devices()?.iter().map(|node| (*node, 0)).collect())
    }

    fn is_cut_so_with(&self, id: &SegmentId, devices: &BTreeMap<NodeId, u64>) -> Result<Option<bool>, Failure> {
        let Some(record) = self.catalog.segment(id)? else { return Ok(None) };
        let group: Option<GroupRecord> = self.catalog.group(record.group)?;
        Ok(group.map(|group| self.protection.fits(group.geometry, &group.members, devices)))
    }

    /// An admin wants something else.
    pub(super) fn change_policy(&mut self) {
        self.protection = any_protection(&mut self.rng);
        let (geometry, layout) = (self.protection.geometry, self.protection.layout);
        self.say(|| format!("wanted from now on: {geometry}, {layout}"));
        *self.stats.faults.entry("another policy").or_default() += 1;
    }

    /// The first image that is not cut as is wanted.
    fn due(&self) -> Result<Option<ImageName>, Failure> {
        let (devices, mut fit) = (self.device_nodes()?, BTreeSet::new());
        for (name, segments) in &self.published {
            for id in segments.iter().filter(|id| fit.insert(**id)) {
                if self.is_cut_so_with(id, &devices)? == Some(false) {
                    return Ok(Some(name.clone()));
                }
            }
        }
        Ok(None)
    }

    /// Whether nothing is to be cut anew, and nothing of before is left.
    pub(super) fn is_all_cut_so(&self) -> Result<bool, Failure> {
        Ok(self.retired.is_empty() && self.due()?.is_none())
    }

    /// Cut an image anew. In the middle there may be too few stashes, or the controller may crash.
    pub(super) fn restripe(&mut self) -> Result<(), Failure> {
        let Some(name) = self.due()? else { return Ok(()) };
        let before = self.published[&name].clone();
        let mut after = Vec::with_capacity(before.len());
        for id in &before {
            let Some(next) = self.next_edition(*id)? else {
                self.say(|| format!("{name} is not cut anew now"));
                return Ok(());
            };
            after.push(next);
        }
        if self.rng.one_in(10) {
            return Ok(());
        }
        let (old, record) = (self.catalog.image(&name).map_err(catalog_fails)?, self.record());
        let Some(old) = old else { return Err(Failure(format!("{name} is not in the catalog"))) };
        self.catalog.change(|change| {
            after.iter().try_for_each(|id| change.refer(id).map(drop))?;
            change.replace_image(&name, old.manifest, &record, 0)
        })?;
        self.say(|| format!("{name} is cut anew"));
        let until = self.step + STEPS_A_DAY;
        self.retired.push(Retired { manifest: old.manifest, image: name.clone(), until, segments: before });
        self.published.insert(name, after);
        self.stats.restriped += 1;
        Ok(())
    }

    /// Another edition of a segment that is cut as is wanted; itself if it is.
    fn next_edition(&mut self, id: SegmentId) -> Result<Option<SegmentId>, Failure> {
        if self.is_cut_so(&id)? != Some(false) {
            return Ok(Some(id));
        }
        if let Some(newer) = self.catalog.newer_edition(&id).map_err(catalog_fails)?
            && self.is_cut_so(&newer)? == Some(true)
        {
            return Ok(Some(newer));
        }
        let Some(&(chunk, edition)) = self.editions.get(&id) else {
            return Err(Failure(format!("nobody made segment {id}")));
        };
        for step in 1..=u8::MAX {
            let next = self.edition(chunk, edition.wrapping_add(step));
            match self.is_cut_so(&next)? {
                Some(true) => return Ok(Some(next)),
                Some(false) => {}
                None => return Ok(self.place(next, chunk)?.then_some(next)),
            }
        }
        Ok(None)
    }

    /// Nobody uses what was replaced a day ago; and nothing of an image that was removed.
    pub(super) fn forget_retired(&mut self) -> Result<(), Failure> {
        let step = self.step;
        let published: BTreeSet<&ImageName> = self.published.keys().collect();
        let (over, kept): (Vec<_>, Vec<_>) =
            self.retired.drain(..).partition(|old| old.until <= step || !published.contains(&old.image));
        self.retired = kept;
        if over.is_empty() {
            return Ok(());
        }
        self.catalog
            .change(|change| over.iter().try_for_each(|old| change.forget_retired(&old.manifest, &old.segments)))
    }

    /// What somebody may be reading is there.
    pub(super) fn check_references(&self) -> Result<(), Failure> {
        let retired = self.retired.iter().flat_map(|old| &old.segments);
        for id in self.published.values().flatten().chain(retired) {
            let record = self.catalog.segment(id)?;
            if record.is_none_or(|record| record.references == 0) {
                return Err(Failure(format!("segment {id} is in use, and the catalog does not know it")));
            }
        }
        Ok(())
    }
}
