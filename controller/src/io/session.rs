//! Publications under way, from the controller's side.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use images::fragment::FragmentHeader;
use images::limits::PAGE_RUNS_MAX;
use images::manifest::ImageName;
use images::parity::Codec;
use images::span::Span;
use images::{ChunkId, GroupId, NodeId, SegmentId, fragment};
use protocol::limits::{DRAFT_PAGE_SEGMENTS_MAX, HAVE_MAX};
use protocol::message::Refusal;
use protocol::message::publish::{
    Accepted, Begin, Begun, DraftSegment, Have, Known, Layout, PutRuns, PutSegment, PutSpans, SegmentStored,
};

use super::controller::{Controller, catalog_refusal};
use super::spread::Spread;
use super::unix_s;
use crate::catalog::{GroupRecord, NewSegment, PendingRecord, SaidRecord, SegmentRecord};
use crate::geometry::{Choice, Goal};
use crate::placement::Protection;
use crate::repair::NONE_BAD;

/// How long a segment waits for stashes that come back, or get room, before its publication fails.
const PATIENT_FOR: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// A segment on its way to its holders.
pub(super) struct Placing {
    pub(super) id: SegmentId,
    pub(super) sealed: Bytes,
    pub(super) pieces: Vec<(FragmentHeader, Bytes)>,
    pub(super) protection: Protection,
    /// As it will be noted; its group is found then.
    pub(super) record: SegmentRecord,
    pub(super) chunks: Vec<(ChunkId, u32)>,
    pub(super) is_page: bool,
}

pub(super) struct Session {
    pub(super) image: ImageName,
    pub(super) protection: Protection,
    pub(super) said: SaidRecord,
    pub(super) disk_len: u64,
    pub(super) offline: bool,
    /// Segments that cannot be had any more: what is in them is sent again.
    pub(super) lost: Arc<BTreeSet<SegmentId>>,
    /// Whoever publishes has only this one: when it ends, nobody goes on.
    pub(super) connection: usize,
    pub(super) runs: BTreeMap<u32, Vec<DraftSegment>>,
    pub(super) spans: BTreeMap<u32, Vec<Span>>,
}

/// All publications under way.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<HashMap<u64, Session>>,
    /// Publications that are being finished.
    finishing: AtomicUsize,
}

/// A publication is being finished as long as this lives.
pub(super) struct Finishing<'a>(&'a AtomicUsize);

impl Drop for Finishing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Sessions {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn finishing(&self) -> Finishing<'_> {
        self.finishing.fetch_add(1, Ordering::SeqCst);
        Finishing(&self.finishing)
    }

    pub(super) fn with<T>(&self, id: u64, work: impl FnOnce(&mut Session) -> T) -> Result<T, Refusal> {
        let mut sessions = self.lock();
        let session = sessions.get_mut(&id).ok_or_else(|| {
            Refusal::Unavailable("this publication was interrupted: publish again, and it goes on where it was".into())
        })?;
        Ok(work(session))
    }

    /// A connection has ended, and with it what was published over it.
    pub fn hung_up(&self, connection: usize) {
        self.lock().retain(|_, session| session.connection != connection);
    }

    /// Whether any publication is alive.
    pub fn any(&self) -> bool {
        !self.lock().is_empty() || self.finishing.load(Ordering::SeqCst) > 0
    }
}

impl Controller {
    /// Open a publication, by its publisher's connection.
    ///
    /// # Errors
    /// If the name is taken or not allowed, or no stash is up.
    pub fn begin(&self, begin: Begin, connection: usize) -> Result<Begun, Refusal> {
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
        let (clients, devices) = self.takers_by_kind()?;
        let (up, devices) = (clients.len(), devices.len());
        self.check_fleet_is_known(up + devices)?;
        let goal = self.goal_for(&begin.name)?;
        let layout = begin.layout.unwrap_or(goal.layout);
        let goal = Goal { layout, ..goal };
        let choice = match begin.geometry {
            Some(geometry) => Some(Choice::said(geometry)),
            None => self.choose_geometry(&goal)?,
        };
        let mut choice = choice.ok_or_else(|| {
            Refusal::Unavailable("no stash is up: start some with `coe-stash serve`, see `coe-ctl nodes`".into())
        })?;
        if begin.geometry.is_none() {
            choice.unmet.extend(self.cut_for_few(&image, goal, choice.geometry)?);
        }
        let geometry = choice.geometry;
        if layout.on_clients(geometry) > up {
            return Err(Refusal::Unavailable(format!(
                "{geometry} needs {} stashes, {up} are up: see `coe-ctl nodes`",
                layout.on_clients(geometry)
            )));
        }
        if devices == 0 && !layout.on_devices(geometry).is_empty() {
            return Err(Refusal::Unavailable(format!(
                "layout {layout} needs a mass-storage device, and none is up: join a stash where it is to be, and say `coe-ctl node device ID`"
            )));
        }
        let lost = self.all_lost_segments()?;
        let mut id = [0; 8];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| Refusal::Failed("no random bytes".into()))?;
        let session = u64::from_le_bytes(id);
        tracing::info!(%image, %geometry, "publication starts");
        self.sessions.lock().insert(
            session,
            Session {
                image: image.clone(),
                protection: Protection { geometry, layout, steady: choice.steady },
                said: SaidRecord { geometry: begin.geometry, layout: begin.layout },
                disk_len: begin.disk_len,
                offline: begin.offline,
                lost: Arc::new(lost),
                connection,
                runs: BTreeMap::new(),
                spans: BTreeMap::new(),
            },
        );
        Ok(Begun { session, image, geometry, owner_key: self.authority.owner_key.clone(), unmet: choice.unmet })
    }

    /// Right after a start most stashes have not reported yet, and what is up now says nothing of what the fleet is like.
    fn check_fleet_is_known(&self, up: usize) -> Result<(), Refusal> {
        let known = self.catalog.nodes().map_err(catalog_refusal)?.len();
        if up + self.fleet.aside() < known && self.started.elapsed() < self.fleet.patience() {
            return Err(Refusal::Unavailable(format!(
                "the controller has just started and has heard {up} of {known} stashes: try again in some seconds"
            )));
        }
        Ok(())
    }

    /// An image that nobody could install must not be called published: what it shares with others may have lost its holders. What was lost and
    /// is back is made whole meanwhile.
    /// The answer is the number of shared segments that are protected less than this publication asked for.
    pub(super) async fn check_readable(&self, session: &Session) -> Result<u64, Refusal> {
        let (mut unreadable, mut weaker) = self.unreadable_and_weaker(session)?;
        let is_back = session.runs.values().flatten().any(|segment| session.lost.contains(&segment.id));
        let (mut last, mut since) = ((unreadable, self.repairs.bytes()), Instant::now());
        while unreadable > 0 && is_back && since.elapsed() < PATIENT_FOR {
            tokio::time::sleep(TRY_AGAIN).await;
            (unreadable, weaker) = self.unreadable_and_weaker(session)?;
            let now = (unreadable, self.repairs.bytes());
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        if unreadable > 0 {
            return Err(Refusal::Unavailable(format!(
                "{unreadable} segments of this image, which earlier ones have, too, cannot be read now: start their stashes \
                 (`coe-ctl verify` names them, `coe-ctl repair` says what it waits for), then publish again"
            )));
        }
        Ok(weaker)
    }

    fn unreadable_and_weaker(&self, session: &Session) -> Result<(u64, u64), Refusal> {
        let (groups, up) = (self.catalog.groups().map_err(catalog_refusal)?, self.fleet.up());
        let (damage, mut unreadable, mut weaker) = (self.damage()?, 0, 0);
        for segment in session.runs.values().flatten() {
            let record = self.catalog.segment(&segment.id).map_err(catalog_refusal)?;
            let found = record.and_then(|r| Some((groups.get(&r.group)?, r.on_mass_storage)));
            let bad = damage.get(&segment.id).unwrap_or(NONE_BAD);
            let is_good = |(piece, node): &(usize, &NodeId)| up.contains_key(node) && !bad.contains(&(*piece as u8));
            let good = |group: &GroupRecord| group.members.iter().enumerate().filter(is_good).count();
            unreadable += u64::from(found.is_none_or(|(g, _)| good(g) < g.geometry.data()));
            weaker += u64::from(found.is_some_and(|(g, copied)| {
                let wanted = session.protection;
                g.geometry.parity() < wanted.geometry.parity() || (wanted.layout == Layout::Mirror && !copied)
            }));
        }
        Ok((unreadable, weaker))
    }

    /// Which chunks are there.
    ///
    /// # Errors
    /// If too many are asked about.
    pub fn have(&self, have: &Have) -> Result<Known, Refusal> {
        let lost = self.sessions.with(have.session, |session| session.lost.clone())?;
        if have.chunks.len() > HAVE_MAX {
            return Err(Refusal::Invalid(format!("more than {HAVE_MAX} chunks in one question")));
        }
        let mut places = self.catalog.places(&have.chunks).map_err(catalog_refusal)?;
        places
            .iter_mut()
            .filter(|place| place.as_ref().is_some_and(|at| lost.contains(&at.segment)))
            .for_each(|place| *place = None);
        Ok(Known { places })
    }

    /// Take a segment: on mass storage and on every holder before it is acknowledged.
    ///
    /// # Errors
    /// If the bytes are not what they are called, or it cannot be made durable.
    pub async fn put_segment(self: &Arc<Self>, put: PutSegment, sealed: Bytes) -> Result<SegmentStored, Refusal> {
        let (id, session) = (put.id, put.session);
        let (protection, was_lost) = self.sessions.with(session, |s| (s.protection, s.lost.contains(&id)))?;
        let again = was_lost.then(|| sealed.clone());
        let stored = self.store_segment(put, sealed, protection).await?;
        if let Some(sealed) = again {
            self.bring_back(id, sealed).await?;
        }
        self.sessions.with(session, |_| ())?;
        Ok(stored)
    }

    /// The same, whoever made it.
    pub(super) async fn store_segment(
        self: &Arc<Self>,
        put: PutSegment,
        sealed: Bytes,
        protection: Protection,
    ) -> Result<SegmentStored, Refusal> {
        let geometry = protection.geometry;
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
        let placing = Placing {
            record: SegmentRecord {
                sealed_len: sealed.len() as u32,
                data_len: put.data_len,
                key: put.key,
                group: GroupId(0),
                fragments: pieces.iter().map(|(header, _)| header.digest).collect(),
                on_mass_storage: protection.layout == Layout::Mirror,
                references: 0,
                stored_unix_s: unix_s(),
            },
            chunks: put.chunks,
            is_page: false,
            id,
            sealed,
            pieces,
            protection,
        };
        let _alone = self.placing[usize::from(id.0[0])].lock().await;
        let spread = self.place_patiently(&placing).await?;
        Ok(spread.map_or(SegmentStored { sent: 0, replaced: 0 }, |spread| SegmentStored {
            sent: spread.sent,
            replaced: spread.replaced,
        }))
    }

    /// Make a segment durable. Stashes come and go, and when too few are there for it, others may be in a moment. None: it is already.
    ///
    /// # Errors
    /// What it could not be done for, at last.
    pub(super) async fn place_patiently(&self, new: &Placing) -> Result<Option<Spread>, Refusal> {
        let start = Instant::now();
        loop {
            if !self.catalog.trash_of(&new.id).map_err(catalog_refusal)?.is_empty() {
                self.empty_trash().await;
            }
            // Held for one try only: deletions wait for it.
            let placing = self.deleting.read().await;
            if self.catalog.segment(&new.id).map_err(catalog_refusal)?.is_some() {
                return Ok(None);
            }
            match self.place(new).await {
                Err(Refusal::Unavailable(why)) if start.elapsed() < PATIENT_FOR => {
                    tracing::warn!(segment = %new.id, why, "a segment has no place yet, trying again");
                }
                done => return done.map(Some),
            }
            drop(placing);
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// Make a segment durable, on mass storage if its record says so and on all its holders; then note it.
    async fn place(&self, new: &Placing) -> Result<Spread, Refusal> {
        let Placing { id, protection, is_page, .. } = *new;
        let (sealed, record) = (new.sealed.clone(), new.record.clone());
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
        let (spread, copied) = tokio::join!(self.spread(id, protection, &new.pieces), copy);
        copied?;
        let spread = spread?;
        let geometry = protection.geometry;
        let new = NewSegment { id, record, chunks: new.chunks.clone(), geometry, holders: spread.holders.clone() };
        let stored = self.committer.change(move |change| {
            if is_page {
                change.put_page(&id.0, &sealed)?;
            }
            change.put_segment(&new)
        });
        stored.await.map_err(catalog_refusal)?;
        Ok(spread)
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
}
