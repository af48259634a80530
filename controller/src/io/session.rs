//! Publications under way, from the controller's side.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use images::fragment::FragmentHeader;
use images::keys::{ManifestKey, SegmentKey};
use images::limits::{PAGE_RUNS_MAX, ROOT_LEN_MAX};
use images::manifest::{ImageName, PageRef};
use images::parity::{Codec, Geometry};
use images::span::Span;
use images::{ChunkId, GroupId, NodeId, SegmentId, fragment, wire};
use protocol::limits::{DRAFT_PAGE_SEGMENTS_MAX, HAVE_MAX};
use protocol::message::Refusal;
use protocol::message::image::MANIFEST_PURPOSE;
use protocol::message::publish::{
    Accepted, Begin, Begun, DraftSegment, Finish, Have, Known, Layout, Published, PutRuns, PutSegment, PutSpans,
    SegmentStored,
};

use super::controller::{Controller, catalog_refusal};
use super::rival::tell;
use super::spread::Spread;
use super::unix_s;
use crate::catalog::{ImageRecord, NewSegment, PendingRecord, SegmentRecord};
use crate::draft::Draft;
use crate::geometry;

/// How long a stash may take to keep a directory.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// A publication without a word for this long was given up.
const IDLE: Duration = Duration::from_secs(600);

/// A segment on its way to its holders.
struct Placing {
    id: SegmentId,
    sealed: Bytes,
    pieces: Vec<(FragmentHeader, Bytes)>,
    geometry: Geometry,
    /// As it will be noted; its group is found then.
    record: SegmentRecord,
    chunks: Vec<(ChunkId, u32)>,
    is_page: bool,
}

struct Session {
    image: ImageName,
    geometry: Geometry,
    layout: Layout,
    disk_len: u64,
    offline: bool,
    last_word: Instant,
    runs: BTreeMap<u32, Vec<DraftSegment>>,
    spans: BTreeMap<u32, Vec<Span>>,
}

/// All publications under way.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<HashMap<u64, Session>>,
    /// Publications that are being finished.
    finishing: AtomicUsize,
}

/// A publication is being finished as long as this lives.
struct Finishing<'a>(&'a AtomicUsize);

impl Drop for Finishing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Sessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finishing(&self) -> Finishing<'_> {
        self.finishing.fetch_add(1, Ordering::SeqCst);
        Finishing(&self.finishing)
    }

    fn with<T>(&self, id: u64, work: impl FnOnce(&mut Session) -> T) -> Result<T, Refusal> {
        let mut sessions = self.lock();
        let session = sessions.get_mut(&id).ok_or_else(|| {
            Refusal::Unavailable("this publication was interrupted: publish again, and it goes on where it was".into())
        })?;
        session.last_word = Instant::now();
        Ok(work(session))
    }

    /// Whether any publication is alive. Those that were given up are forgotten.
    pub fn any(&self) -> bool {
        let mut sessions = self.lock();
        sessions.retain(|_, s| s.last_word.elapsed() < IDLE);
        !sessions.is_empty() || self.finishing.load(Ordering::SeqCst) > 0
    }
}

impl Controller {
    /// Open a publication.
    ///
    /// # Errors
    /// If the name is taken or not allowed, or no stash is up.
    pub fn begin(&self, begin: Begin) -> Result<Begun, Refusal> {
        let images = self.catalog.images().map_err(catalog_refusal)?;
        let tags = || images.iter().filter(|(n, _)| n.name() == begin.name);
        let tag = begin.tag.unwrap_or_else(|| {
            let highest = tags().filter_map(|(n, _)| n.tag().parse::<u64>().ok()).max();
            (highest.unwrap_or(0) + 1).to_string()
        });
        let image = ImageName::new(&begin.name, &tag).map_err(|e| Refusal::Invalid(e.to_string()))?;
        if images.iter().any(|(n, _)| *n == image) {
            return Err(Refusal::Exists(image.to_string()));
        }
        if begin.disk_len > images::limits::IMAGE_LEN_MAX {
            return Err(Refusal::Invalid("an image of more than 64 TiB".into()));
        }
        let up = self.fleet.up().len();
        let fleet = self.fleet_size(up)?;
        let geometry = begin.geometry.or_else(|| geometry::for_fleet(fleet)).ok_or_else(|| {
            Refusal::Unavailable("no stash is up: start some with `coe-stash serve`, see `coe-ctl nodes`".into())
        })?;
        if geometry.pieces() > up {
            return Err(Refusal::Unavailable(format!(
                "{geometry} needs {} stashes, {up} are up: see `coe-ctl nodes`",
                geometry.pieces()
            )));
        }
        let mut id = [0; 8];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| Refusal::Failed("no random bytes".into()))?;
        let session = u64::from_le_bytes(id);
        tracing::info!(%image, %geometry, "publication starts");
        self.sessions.lock().insert(
            session,
            Session {
                image: image.clone(),
                geometry,
                layout: begin.layout,
                disk_len: begin.disk_len,
                offline: begin.offline,
                last_word: Instant::now(),
                runs: BTreeMap::new(),
                spans: BTreeMap::new(),
            },
        );
        Ok(Begun { session, image, geometry, owner_key: self.authority.owner_key.clone() })
    }

    /// Number of stashes that a geometry is for. Right after a start most have not reported yet, and what is up now says nothing.
    fn fleet_size(&self, up: usize) -> Result<usize, Refusal> {
        let known = self.catalog.nodes().map_err(catalog_refusal)?.len();
        if up < known && self.started.elapsed() < self.fleet.patience() {
            return Err(Refusal::Unavailable(format!(
                "the controller has just started and has heard {up} of {known} stashes: try again in some seconds"
            )));
        }
        Ok(up)
    }

    /// An image that nobody could install must not be called published: what it shares with others may have lost its holders.
    /// The answer is the number of shared segments that are protected less than this publication asked for.
    fn check_readable(&self, session: &Session) -> Result<u64, Refusal> {
        let (groups, up) = (self.catalog.groups().map_err(catalog_refusal)?, self.fleet.up());
        let (mut unreadable, mut weaker) = (0, 0);
        for segment in session.runs.values().flatten() {
            let record = self.catalog.segment(&segment.id).map_err(catalog_refusal)?;
            let found = record.and_then(|r| Some((groups.get(&r.group)?, r.on_mass_storage)));
            let readable = found
                .as_ref()
                .is_some_and(|(g, _)| g.members.iter().filter(|m| up.contains_key(m)).count() >= g.geometry.data());
            unreadable += u64::from(!readable);
            weaker += u64::from(found.is_some_and(|(g, copied)| {
                g.geometry.parity() < session.geometry.parity() || (session.layout == Layout::Mirror && !copied)
            }));
        }
        if unreadable > 0 {
            return Err(Refusal::Unavailable(format!(
                "{unreadable} segments that this image shares with earlier ones cannot be read now: start their stashes \
                 (`coe-ctl verify` names them), then publish again"
            )));
        }
        Ok(weaker)
    }

    /// Which chunks are there.
    ///
    /// # Errors
    /// If too many are asked about.
    pub fn have(&self, have: &Have) -> Result<Known, Refusal> {
        self.sessions.with(have.session, |_| ())?;
        if have.chunks.len() > HAVE_MAX {
            return Err(Refusal::Invalid(format!("more than {HAVE_MAX} chunks in one question")));
        }
        Ok(Known { places: self.catalog.places(&have.chunks).map_err(catalog_refusal)? })
    }

    /// Take a segment: on mass storage and on every holder before it is acknowledged.
    ///
    /// # Errors
    /// If the bytes are not what they are called, or it cannot be made durable.
    pub async fn put_segment(self: &Arc<Self>, put: PutSegment, sealed: Bytes) -> Result<SegmentStored, Refusal> {
        let (geometry, layout) = self.sessions.with(put.session, |s| (s.geometry, s.layout))?;
        let data_len: u64 = put.chunks.iter().map(|(_, len)| u64::from(*len)).sum();
        if data_len != u64::from(put.data_len) {
            return Err(Refusal::Invalid("chunk lengths do not add up to the segment".into()));
        }
        let id = put.id;
        let for_split = sealed.clone();
        let controller = self.clone();
        let split = tokio::task::spawn_blocking(move || {
            controller.encode.run(for_split.len(), || {
                (SegmentId::of(&for_split) == id).then(|| fragment::split(&Codec::new(geometry), id, &for_split))
            })
        });
        let pieces = split.await.map_err(|_| Refusal::Failed("encode the segment".into()))?;
        let pieces = pieces.ok_or_else(|| Refusal::Invalid(format!("the bytes are not segment {id}")))?;
        if self.catalog.trash().map_err(catalog_refusal)?.iter().any(|key| key.segment() == id) {
            self.empty_trash().await;
        }
        let _alone = self.placing[usize::from(id.0[0])].lock().await;
        let _placing = self.deleting.read().await;
        if self.catalog.segment(&id).map_err(catalog_refusal)?.is_some() {
            return Ok(SegmentStored { sent: 0, replaced: 0 });
        }
        let spread = self.place(Placing {
            record: SegmentRecord {
                sealed_len: sealed.len() as u32,
                data_len: put.data_len,
                key: put.key,
                group: GroupId(0),
                fragments: pieces.iter().map(|(header, _)| header.digest).collect(),
                on_mass_storage: layout == Layout::Mirror,
                references: 0,
                stored_unix_s: unix_s(),
            },
            chunks: put.chunks,
            is_page: false,
            id,
            sealed,
            pieces,
            geometry,
        });
        let spread = spread.await?;
        self.sessions.with(put.session, |_| ())?;
        Ok(SegmentStored { sent: spread.sent, replaced: spread.replaced })
    }

    /// Make a segment durable, on mass storage if its record says so and on all its holders; then note it.
    async fn place(&self, new: Placing) -> Result<Spread, Refusal> {
        let Placing { id, sealed, pieces, geometry, record, chunks, is_page } = new;
        let copy = async {
            if !record.on_mass_storage {
                return Ok(());
            }
            let intent = PendingRecord { sent: Vec::new(), copy: true };
            let written = self.committer.change(move |change| change.put_pending(id, &intent));
            written.await.map_err(catalog_refusal)?;
            let stored = self.mass_storage.put(&id, sealed.clone()).await;
            stored.map_err(|e| Refusal::Failed(format!("mass storage: {e}")))
        };
        let (spread, copied) = tokio::join!(self.spread(id, &pieces), copy);
        copied?;
        let spread = spread?;
        let new = NewSegment { id, record, chunks, geometry, holders: spread.holders.clone() };
        let stored = self.committer.change(move |change| {
            if is_page {
                change.put_page(&id.0, &sealed)?;
            }
            change.put_segment(&new)
        });
        stored.await.map_err(catalog_refusal)?;
        Ok(spread)
    }

    /// Make a page of a manifest durable, as copies on members of its own.
    async fn store_page(&self, bytes: Vec<u8>, session: &Session) -> Result<PageRef, Refusal> {
        let id = SegmentId::of(&bytes);
        if let Some(known) = self.catalog.segment(&id).map_err(catalog_refusal)? {
            return Ok(PageRef::of(&bytes, known.group));
        }
        let geometry = session.geometry.redundant();
        let sealed = Bytes::from(bytes);
        let pieces = fragment::split(&Codec::new(geometry), id, &sealed);
        let record = SegmentRecord {
            sealed_len: sealed.len() as u32,
            data_len: 0,
            // A page seals what is secret in it.
            key: SegmentKey([0; 32]),
            group: GroupId(0),
            fragments: pieces.iter().map(|(header, _)| header.digest).collect(),
            on_mass_storage: session.layout == Layout::Mirror,
            references: 0,
            stored_unix_s: unix_s(),
        };
        let placing =
            Placing { id, sealed: sealed.clone(), pieces, geometry, record, chunks: Vec::new(), is_page: true };
        self.place(placing).await?;
        let stored = self.catalog.segment(&id).map_err(catalog_refusal)?;
        let group = stored.ok_or_else(|| Refusal::Failed("a page was not noted".into()))?.group;
        Ok(PageRef::of(&sealed, group))
    }

    /// Have those that keep an image's root keep the directory that lists it, before anybody is told that it is published: otherwise a controller
    /// that is lost in the next seconds takes the image along. Who is slow hears of it with the next heartbeat.
    async fn tell_holders(&self, holders: Vec<NodeId>) {
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

    /// Take part of the draft.
    ///
    /// # Errors
    /// If it exceeds a limit.
    pub fn put_runs(&self, put: PutRuns) -> Result<Accepted, Refusal> {
        let runs: usize = put.segments.iter().map(|s| s.runs.len()).sum();
        if put.segments.len() > DRAFT_PAGE_SEGMENTS_MAX || runs > PAGE_RUNS_MAX {
            return Err(Refusal::Invalid("a draft page with too many segments or runs".into()));
        }
        self.sessions.with(put.session, |s| drop(s.runs.insert(put.index, put.segments)))?;
        Ok(Accepted)
    }

    /// Take part of the draft.
    ///
    /// # Errors
    /// If it exceeds a limit.
    pub fn put_spans(&self, put: PutSpans) -> Result<Accepted, Refusal> {
        if put.spans.len() > images::limits::PAGE_SPANS_MAX {
            return Err(Refusal::Invalid("a draft page with too many spans".into()));
        }
        self.sessions.with(put.session, |s| drop(s.spans.insert(put.index, put.spans)))?;
        Ok(Accepted)
    }

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
        let mut random = [0; 32];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| Refusal::Failed("no random bytes".into()))?;
        let _images = self.images.lock().await;
        // A page may be the same as one that is still to be deleted somewhere.
        if !self.catalog.trash().map_err(catalog_refusal)?.is_empty() {
            self.empty_trash().await;
        }
        let _placing = self.deleting.read().await;
        let weaker = self.check_readable(&session)?;
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
            key: ManifestKey(random),
        };
        let pages = draft.pages(&self.catalog).map_err(catalog_refusal)?;
        let (mut segment_pages, mut span_pages) = (Vec::new(), Vec::new());
        for bytes in pages.segments {
            segment_pages.push(self.store_page(bytes, &session).await?);
        }
        for bytes in pages.spans {
            span_pages.push(self.store_page(bytes, &session).await?);
        }
        let root = draft.root(pages.totals, segment_pages, span_pages);
        let signed = self.authority.array_key.sign(MANIFEST_PURPOSE, root.encode());
        let bytes = wire::encode(&signed);
        if bytes.len() > ROOT_LEN_MAX {
            return Err(Refusal::Invalid("the manifest's root is too long".into()));
        }
        let at = self.store_page(bytes, &session).await?;
        let manifest = root.id();
        let offline = match session.offline {
            true => self.split_key(manifest, &draft.key, session.geometry).await?,
            false => None,
        };
        let record = ImageRecord { number: 0, manifest, signed, root: at, key: draft.key.clone(), offline };
        let result = Published {
            image: draft.image.clone(),
            manifest: record.manifest,
            segments: root.totals.segments,
            sealed: root.totals.sealed,
            offline: record.offline.is_some(),
            weaker,
        };
        self.check_in_charge()?;
        let holders = self.catalog.groups().map_err(catalog_refusal)?.remove(&at.group).map(|group| group.members);
        let done = self.committer.change(move |change| {
            let pages = root.segment_pages.iter().chain(&root.span_pages).chain([&record.root]);
            for id in draft.segments().chain(pages.map(|page| SegmentId(page.digest))) {
                change.refer(&id)?;
            }
            change.put_image(&draft.image, &record)
        });
        done.await.map_err(catalog_refusal)?;
        self.tell_holders(holders.unwrap_or_default()).await;
        tracing::info!(image = %result.image, segments = result.segments, sealed = result.sealed, "published");
        Ok(result)
    }
}
