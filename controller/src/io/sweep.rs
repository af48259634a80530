//! Cleaning up: segments of publications that never finished, segments that no image refers to, and what must be deleted at
//! members. Nothing is deleted that the catalog does not name.

use std::sync::Arc;
use std::time::Duration;

use images::fragment::FragmentId;
use images::manifest::{ImageName, Root, SegmentPage};
use images::{ManifestId, NodeId, SegmentId};
use protocol::io::rpc;
use protocol::message::{Refusal, store};

use super::controller::{Controller, catalog_refusal};
use super::rival::tell;
use super::unix_s;
use crate::catalog::{Catalog, CatalogError, ImageRecord, PendingRecord, RetiredRecord, SegmentRecord, TrashKey};

/// How often the controller looks for something to clean.
const EVERY: Duration = Duration::from_secs(60);
/// How long a stash may take to delete.
const DELETE_WITHIN: Duration = Duration::from_secs(30);
/// Fragments in one request.
const DELETE_TOGETHER: usize = 1024;
/// A ticket that expired is known for so long, for whoever asks why it is refused.
const TICKETS_KEPT_S: u64 = 7 * 24 * 3600;
/// Segments in one transaction.
const CHANGE_TOGETHER: usize = 512;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Segments that no image refers to, or that never became durable.
    pub segments: u64,
    /// Fragments and copies that are gone.
    pub deleted: u64,
    /// Fragments at stashes that are away, to be deleted when they are back.
    pub waiting: u64,
    /// Segments that nothing refers to were kept: an image is being published.
    pub is_publishing: bool,
}

impl Controller {
    /// Sweep for ever.
    pub async fn sweep_regularly(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            if let Err(error) = self.sweep(self.settings.keep_unfinished_s).await {
                tracing::warn!(%error, "sweep failed");
            }
        }
    }

    /// Forget manifests that were replaced, and that nobody may be using any more at this time.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn forget_retired(&self, now_unix_s: u64) -> Result<(), Refusal> {
        for (manifest, retired) in self.catalog.retired().map_err(catalog_refusal)? {
            if retired.until_unix_s <= now_unix_s {
                self.forget_manifest(manifest, &retired).await?;
            }
        }
        Ok(())
    }

    async fn forget_manifest(&self, manifest: ManifestId, retired: &RetiredRecord) -> Result<(), Refusal> {
        let segments = segments_of(&self.catalog, &retired.record).map_err(catalog_refusal)?;
        let forgotten = self.committer.change(move |change| change.forget_retired(&manifest, &segments));
        forgotten.await.map_err(catalog_refusal)?;
        tracing::info!(image = retired.image, %manifest, "the manifest of before is not kept any more");
        Ok(())
    }

    /// Forget what is older than `keep_s` seconds and nobody needs, then delete it at members.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn sweep(&self, keep_s: u64) -> Result<Swept, Refusal> {
        self.check_in_charge()?;
        self.forget_retired(unix_s()).await?;
        let mut swept = Swept::default();
        let deleting = self.deleting.write().await;
        swept.is_publishing = self.sessions.any();
        if !swept.is_publishing {
            let (pending, unused) = self.unneeded(keep_s)?;
            let pending: Vec<SegmentId> = pending.into_iter().map(|(id, _)| id).collect();
            let unused: Vec<SegmentId> = unused.into_iter().map(|(id, _)| id).collect();
            swept.segments = (pending.len() + unused.len()) as u64;
            for some in pending.chunks(CHANGE_TOGETHER) {
                let some = some.to_vec();
                let abandon = self.committer.change(move |change| some.iter().try_for_each(|id| change.abandon(id)));
                abandon.await.map_err(catalog_refusal)?;
            }
            for some in unused.chunks(CHANGE_TOGETHER) {
                self.repairs.forget_segments(some);
                let some = some.to_vec();
                let reclaim =
                    self.committer.change(move |change| some.iter().try_for_each(|id| change.reclaim(id).map(drop)));
                reclaim.await.map_err(catalog_refusal)?;
            }
        }
        drop(deleting);
        let expired = unix_s().saturating_sub(TICKETS_KEPT_S);
        let tickets = self.catalog.tickets_from_before(expired).map_err(catalog_refusal)?;
        if !tickets.is_empty() {
            let forget = self.committer.change(move |change| change.forget_tickets(&tickets));
            forget.await.map_err(catalog_refusal)?;
        }
        let before = self.catalog.trash_count().map_err(catalog_refusal)?;
        self.empty_trash().await;
        swept.waiting = self.catalog.trash_count().map_err(catalog_refusal)?;
        swept.deleted = before.saturating_sub(swept.waiting);
        if swept.segments + swept.deleted + swept.waiting > 0 {
            tracing::info!(segments = swept.segments, deleted = swept.deleted, waiting = swept.waiting, "swept");
        }
        Ok(swept)
    }

    /// Segments that never became durable, and those that nothing refers to and that are older than `keep_s` seconds. A publication under way may
    /// rely on both.
    #[allow(clippy::type_complexity)]
    fn unneeded(
        &self,
        keep_s: u64,
    ) -> Result<(Vec<(SegmentId, PendingRecord)>, Vec<(SegmentId, SegmentRecord)>), Refusal> {
        let unused = self.catalog.unused(unix_s().saturating_sub(keep_s)).map_err(catalog_refusal)?;
        Ok((self.catalog.pending().map_err(catalog_refusal)?, unused))
    }

    /// What a sweep would do.
    ///
    /// # Errors
    /// The catalog's.
    pub fn would_sweep(&self, keep_s: u64) -> Result<Swept, Refusal> {
        let is_publishing = self.sessions.any();
        let mut swept = Swept { is_publishing, ..Swept::default() };
        let (up, groups) = (self.fleet.up(), self.catalog.groups().map_err(catalog_refusal)?);
        let mut count = |node: Option<NodeId>| match node {
            Some(node) if !up.contains_key(&node) => swept.waiting += 1,
            _ => swept.deleted += 1,
        };
        for key in self.catalog.trash().map_err(catalog_refusal)? {
            match key {
                TrashKey::Fragment { node, .. } => count(Some(node)),
                TrashKey::Copy { .. } => count(None),
            }
        }
        let (pending, unused) = if is_publishing { (Vec::new(), Vec::new()) } else { self.unneeded(keep_s)? };
        for (_, record) in &pending {
            record.sent.iter().for_each(|(_, node)| count(Some(*node)));
            (0..usize::from(record.copy)).for_each(|_| count(None));
        }
        for (_, record) in &unused {
            let members = groups.get(&record.group).map_or(&[][..], |group| group.members.as_slice());
            members.iter().for_each(|node| count(Some(*node)));
            (0..usize::from(record.on_mass_storage)).for_each(|_| count(None));
        }
        swept.segments = (pending.len() + unused.len()) as u64;
        Ok(swept)
    }

    /// Delete what is trash at all members that are up. What they do not confirm stays trash.
    pub async fn empty_trash(&self) {
        // What an old catalog calls trash may be somebody's only copy by now.
        if self.check_in_charge().is_err() {
            return;
        }
        let _deleting = self.deleting.write().await;
        let Ok((nodes, are_copies)) = self.catalog.trash_nodes() else {
            return;
        };
        if are_copies {
            self.delete_copies().await;
        }
        let up = self.fleet.up();
        for node in nodes.into_iter().filter(|node| up.contains_key(node)) {
            if let Err(error) = self.delete_at(node).await {
                tracing::info!(%node, %error, "fragments not deleted yet");
            }
        }
    }

    /// Delete copies, until one cannot be deleted.
    async fn delete_copies(&self) {
        while let Ok(some) = self.catalog.trash_copies(CHANGE_TOGETHER)
            && !some.is_empty()
        {
            let mut gone = Vec::with_capacity(some.len());
            for &segment in &some {
                match self.mass_storage.delete(&segment).await {
                    Ok(()) => gone.push(TrashKey::Copy { segment }),
                    Err(error) => tracing::warn!(%segment, %error, "copy on mass storage not deleted"),
                }
            }
            let are_all_gone = gone.len() == some.len();
            let forget = self.committer.change(move |change| gone.iter().try_for_each(|key| change.remove_trash(key)));
            let forgotten = forget.await;
            if let Err(error) = &forgotten {
                tracing::warn!(%error, "deletions not recorded, they are done again");
            }
            if !are_all_gone || forgotten.is_err() {
                return;
            }
        }
    }

    async fn delete_at(&self, node: NodeId) -> anyhow::Result<()> {
        let connection = self.pool.get(node).await?;
        let directory = self.directory()?;
        tokio::time::timeout(DELETE_WITHIN, tell(&connection, &directory)).await??;
        loop {
            let gone = self.catalog.trash_at(node, DELETE_TOGETHER)?;
            if gone.is_empty() {
                return Ok(());
            }
            let fragment = |key: &TrashKey| match key {
                TrashKey::Fragment { segment, piece, .. } => Some(FragmentId { segment: *segment, piece: *piece }),
                TrashKey::Copy { .. } => None,
            };
            let fragments = gone.iter().filter_map(fragment).collect();
            let message = store::DeleteFragments { fragments, directory: directory.mark() };
            tokio::time::timeout(DELETE_WITHIN, rpc::call(&connection, message, &[])).await??;
            self.committer.change(move |change| gone.iter().try_for_each(|key| change.remove_trash(key))).await?;
        }
    }

    /// Unpublish an image. Segments that only it used are reclaimed at once.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], or the catalog's.
    pub async fn remove_image(&self, image: &ImageName) -> Result<Swept, Refusal> {
        let _images = self.images.lock().await;
        let (_, record) = self.find_image(image.name(), Some(image.tag()))?;
        let segments = segments_of(&self.catalog, &record).map_err(catalog_refusal)?;
        for (manifest, retired) in self.catalog.retired().map_err(catalog_refusal)? {
            if retired.image == image.to_string() {
                self.forget_manifest(manifest, &retired).await?;
            }
        }
        let name = image.clone();
        let removed = self.committer.change(move |change| change.remove_image(&name, &segments));
        removed.await.map_err(catalog_refusal)?;
        tracing::info!(%image, "image removed");
        self.sweep(0).await
    }
}

/// All that an image refers to, one by one, its own pages included.
///
/// # Errors
/// If a page is missing or damaged.
pub fn segments_of(catalog: &Catalog, record: &ImageRecord) -> Result<Vec<SegmentId>, CatalogError> {
    let root = Controller::root(&record.signed)?;
    let mut segments = vec![SegmentId(record.root.digest)];
    segments.extend(root.segment_pages.iter().chain(&root.span_pages).map(|page| SegmentId(page.digest)));
    for page in segment_pages(catalog, &root) {
        segments.extend(page?.segments.iter().map(|s| s.id));
    }
    Ok(segments)
}

/// The pages of a manifest that list its segments, one after the other.
pub fn segment_pages(catalog: &Catalog, root: &Root) -> impl Iterator<Item = Result<SegmentPage, CatalogError>> {
    root.segment_pages.iter().enumerate().map(move |(index, page)| {
        let damaged = |what: &str| CatalogError::Conflict(format!("a page of the manifest is {what}"));
        let bytes = catalog.page(&page.digest)?.ok_or_else(|| damaged("missing"))?;
        SegmentPage::decode(&bytes, index as u32, root.disk_len).map_err(|_| damaged("damaged"))
    })
}
