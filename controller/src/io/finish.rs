//! The end of a publication: the manifest's pages go into the array, its key is split, and the directory lists the image. An image that is cut
//! anew ends in the same way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use images::keys::{ManifestKey, SegmentKey};
use images::limits::ROOT_LEN_MAX;
use images::manifest::{PageRef, Root};
use images::parity::Codec;
use images::{GroupId, NodeId, SegmentId, fragment, wire};
use protocol::message::Refusal;
use protocol::message::image::MANIFEST_PURPOSE;
use protocol::message::publish::{Finish, Layout, Published};

use super::controller::{Controller, catalog_refusal};
use super::rival::tell;
use super::session::Placing;
use super::unix_s;
use crate::catalog::{ImageRecord, SegmentRecord};
use crate::draft::Draft;
use crate::placement::Protection;

/// How long a stash may take to keep a directory.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// A manifest that is durable, and that nothing refers to yet.
pub(super) struct Manifest {
    /// As its image is known.
    pub(super) record: ImageRecord,
    /// What was signed.
    pub(super) root: Root,
    /// All that it refers to, one by one, its own pages included.
    pub(super) segments: Vec<SegmentId>,
}

/// A key of its own for every manifest.
pub(super) fn new_key() -> Result<ManifestKey, Refusal> {
    let mut random = [0; 32];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Refusal::Failed("no random bytes".into()))?;
    Ok(ManifestKey(random))
}

impl Controller {
    /// Sign and publish. The image is there when this returns, or not at all.
    ///
    /// # Errors
    /// If the draft is incomplete or wrong, or the name was taken meanwhile.
    pub async fn finish(self: &Arc<Self>, finish: Finish) -> Result<Published, Refusal> {
        let complete = self.sessions.with(finish.session, |s| {
            let all =
                |have: usize, last: Option<u32>, want: u32| have == want as usize && last.is_none_or(|l| l + 1 == want);
            all(s.runs.len(), s.runs.keys().next_back().copied(), finish.run_pages)
                && all(s.spans.len(), s.spans.keys().next_back().copied(), finish.span_pages)
        })?;
        if !complete {
            return Err(Refusal::Invalid("the draft is incomplete".into()));
        }
        let _finishing = self.sessions.finishing();
        let session = self.sessions.lock().remove(&finish.session);
        let session = session.ok_or_else(|| Refusal::Unavailable("this publication was interrupted".into()))?;
        let weaker = self.check_readable(&session).await?;
        let _images = self.images.lock().await;
        let mut session = session;
        let draft = Draft {
            array: self.array(),
            image: session.image.clone(),
            created_unix_s: unix_s(),
            disk_len: session.disk_len,
            disk: finish.disk,
            content: finish.content,
            source_sha256: finish.source_sha256,
            in_use: finish.in_use,
            run_pages: std::mem::take(&mut session.runs).into_values().collect(),
            span_pages: std::mem::take(&mut session.spans).into_values().collect(),
            span_edition: 0,
            key: new_key()?,
        };
        let Manifest { record, root, segments } =
            self.make_manifest(&draft, session.protection, session.offline).await?;
        let result = Published {
            image: draft.image.clone(),
            manifest: record.manifest,
            segments: root.totals.segments,
            sealed: root.totals.sealed,
            offline: record.offline.is_some(),
            weaker,
        };
        self.check_in_charge()?;
        let (at, said) = (record.root.group, session.said);
        let done = self.committer.change(move |change| {
            segments.iter().try_for_each(|id| change.refer(id).map(drop))?;
            change.put_said(&draft.image, &said)?;
            change.put_image(&draft.image, &record)
        });
        done.await.map_err(catalog_refusal)?;
        self.tell_holders(at).await;
        tracing::info!(image = %result.image, segments = result.segments, sealed = result.sealed, "published");
        Ok(result)
    }

    /// Make the pages and the root of a manifest durable, and split its key. Nothing refers to them yet.
    pub(super) async fn make_manifest(
        &self,
        draft: &Draft,
        protection: Protection,
        offline: bool,
    ) -> Result<Manifest, Refusal> {
        let pages = draft.pages(&self.catalog).map_err(catalog_refusal)?;
        let (mut segment_pages, mut span_pages) = (Vec::new(), Vec::new());
        for bytes in pages.segments {
            segment_pages.push(self.store_page(bytes, protection).await?);
        }
        for bytes in pages.spans {
            span_pages.push(self.store_page(bytes, protection).await?);
        }
        let root = draft.root(pages.totals, segment_pages, span_pages);
        let signed = self.authority.array_key.sign(MANIFEST_PURPOSE, root.encode());
        let bytes = wire::encode(&signed);
        if bytes.len() > ROOT_LEN_MAX {
            return Err(Refusal::Invalid("the manifest's root is too long".into()));
        }
        let at = self.store_page(bytes, protection).await?;
        let manifest = root.id();
        let offline = match offline {
            true => self.split_key(manifest, &draft.key, protection.of_clients()).await?,
            false => None,
        };
        let record = ImageRecord { number: 0, manifest, signed, root: at, key: draft.key.clone(), offline };
        let pages = root.segment_pages.iter().chain(&root.span_pages).chain([&record.root]);
        let segments = draft.segments().chain(pages.map(|page| SegmentId(page.digest))).collect();
        Ok(Manifest { record, root, segments })
    }

    /// Make a page of a manifest durable, as copies on members of its own.
    async fn store_page(&self, bytes: Vec<u8>, protection: Protection) -> Result<PageRef, Refusal> {
        let id = SegmentId::of(&bytes);
        if let Some(known) = self.catalog.segment(&id).map_err(catalog_refusal)? {
            return Ok(PageRef::of(&bytes, known.group));
        }
        let protection = protection.of_pages(self.clients_that_stay()?);
        let sealed = Bytes::from(bytes);
        let pieces = fragment::split(&Codec::new(protection.geometry), id, &sealed);
        let record = SegmentRecord {
            sealed_len: sealed.len() as u32,
            data_len: 0,
            // A page seals what is secret in it.
            key: SegmentKey([0; 32]),
            group: GroupId(0),
            fragments: pieces.iter().map(|(header, _)| header.digest).collect(),
            on_mass_storage: protection.layout == Layout::Mirror,
            references: 0,
            stored_unix_s: unix_s(),
        };
        let placing =
            Placing { id, sealed: sealed.clone(), pieces, protection, record, chunks: Vec::new(), is_page: true };
        // A page may be the same as one that is still to be deleted somewhere.
        self.place_patiently(&placing).await?;
        let stored = self.catalog.segment(&id).map_err(catalog_refusal)?;
        let group = stored.ok_or_else(|| Refusal::Failed("a page was not noted".into()))?.group;
        Ok(PageRef::of(&sealed, group))
    }

    /// Have those that keep an image's root keep the directory that lists it, before anybody is told that it is published: otherwise a controller
    /// that is lost in the next seconds takes the image along. Who is slow hears of it with the next heartbeat.
    pub(super) async fn tell_holders(&self, group: GroupId) {
        let holders = self.catalog.group(group).ok().flatten();
        let holders: Vec<NodeId> = holders.map(|group| group.members).unwrap_or_default();
        let Ok(directory) = self.directory() else { return };
        let told = holders.into_iter().map(|node| {
            let directory = directory.clone();
            let told = async move { tell(&self.pool.get(node).await?, &directory).await };
            async move { tokio::time::timeout(TOLD_WITHIN, told).await.is_ok_and(|told| told.is_ok()) }
        });
        let told = futures_util::future::join_all(told).await;
        if !told.contains(&true) {
            tracing::warn!("no stash has heard yet of the directory that lists the new image");
        }
    }
}
