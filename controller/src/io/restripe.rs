//! Carries out what [`crate::restripe`] says: segments of an image are sealed as another edition, cut as is wanted now, and the image gets a
//! new manifest of the same contents.
//!
//! Nothing of the old edition is touched. Its manifest is retired, and keeps its segments for a day: installations that began with it end
//! with it. Until the new manifest is there in one transaction, the image is as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use images::manifest::{ImageName, Root, SegmentPage, SpanPage};
use images::parity::Geometry;
use images::{GroupId, ManifestId, NodeId, SegmentId, segment};
use protocol::getter::Patience;
use protocol::io::fetch::Fetcher;
use protocol::message::Refusal;
use protocol::message::publish::{DraftSegment, Layout, PutSegment};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};

use super::controller::{Controller, catalog_refusal};
use super::copies::from_pieces;
use super::finish::{Manifest, new_key};
use super::habits::wanted_more;
use super::repair::layout_of;
use super::sweep::segment_pages;
use super::unix_s;
use crate::catalog::{GroupRecord, ImageRecord, SaidRecord, SegmentRecord};
use crate::draft::Draft;
use crate::geometry::{Goal, choose};
use crate::placement::Protection;
use crate::restripe::{Cut, Wanted, Why, effective};

/// How often it is looked whether an image is to be cut anew; sooner when somebody says so.
const EVERY: Duration = Duration::from_secs(60);
/// An image that could not be cut anew is tried again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// Segments on their way at the same time.
const TOGETHER: usize = 4;
/// How long a manifest that was replaced is kept for those that began with it.
const RETIRED_KEPT_S: u64 = 24 * 3600;

/// Segments of an image that are cut alike, and pages of its manifest that are.
#[derive(Clone, Debug, Default)]
pub(super) struct Cuts {
    /// Bytes by group, and whether mass storage has a copy.
    segments: BTreeMap<(GroupId, bool), u64>,
    pages: BTreeSet<GroupId>,
}

impl Cuts {
    /// Groups that what the image holds lies in.
    pub(super) fn contents(&self) -> impl Iterator<Item = GroupId> {
        self.segments.keys().map(|(group, _)| *group)
    }

    /// The same, and those of its manifest.
    pub(super) fn all(&self) -> impl Iterator<Item = GroupId> {
        self.contents().chain(self.pages.iter().copied())
    }
}

/// Where the segments and the pages of all images lie; not editions of before, and not what is being published.
pub(super) struct Needed {
    pub(super) images: Vec<(ImageName, ImageRecord, Arc<Cuts>)>,
    pub(super) groups: BTreeSet<GroupId>,
}

/// How far it is with an image.
#[derive(Clone, Debug)]
pub struct Running {
    /// The image.
    pub image: ImageName,
    /// Segments that are cut anew.
    pub done: u64,
    /// Segments to be.
    pub of: u64,
    since: Instant,
}

impl Running {
    /// Seconds that it still takes, at the speed so far.
    #[must_use]
    pub fn eta_s(&self) -> Option<u64> {
        (self.since.elapsed().as_secs() * self.of.saturating_sub(self.done)).checked_div(self.done)
    }
}

/// When an image is cut anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// Now.
    UnderWay,
    /// Next.
    Next,
    /// In the hours for what can wait.
    InItsHours,
    /// When it has been so for long enough, in so many seconds.
    Settles(u64),
    /// It was tried, and failed.
    Failed(String),
}

/// An image that is to be cut anew.
#[derive(Clone, Debug)]
pub struct Due {
    /// The image.
    pub image: ImageName,
    /// As most of it is cut now.
    pub is: Cut,
    /// As it is to be.
    pub wanted: Cut,
    /// Bytes to be cut anew.
    pub bytes: u64,
    /// Why.
    pub why: Why,
    /// When.
    pub when: When,
    record: ImageRecord,
    protection: Protection,
    /// Groups, with or without a copy on mass storage, whose segments are.
    groups: BTreeSet<(GroupId, bool)>,
    /// Whether the pages of its manifest have too few copies, or too many.
    are_pages_due: bool,
}

/// What is cut anew.
#[derive(Default)]
pub struct Restripes {
    /// There is something to do.
    pub wake: Notify,
    running: Mutex<Option<Running>>,
    /// Images that an admin asked for.
    asked: Mutex<BTreeSet<ImageName>>,
    failed: Mutex<BTreeMap<ImageName, (Instant, String)>>,
    /// Since when the fleet has suggested something for an image.
    since: Mutex<BTreeMap<ImageName, (Cut, Instant)>>,
    /// By manifest: what is in it never changes.
    cuts: Mutex<BTreeMap<ManifestId, Arc<Cuts>>>,
    /// Groups with images that are to be readable more often than all others, and how often, in hundredths of a percent.
    readable: Mutex<Arc<BTreeMap<GroupId, u16>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Restripes {
    /// How far it is with the image that is cut anew now.
    #[must_use]
    pub fn running(&self) -> Option<Running> {
        lock(&self.running).clone()
    }

    /// Groups with images that are to be readable more often than all others, and how often, in hundredths of a percent: as of when it was
    /// looked last.
    #[must_use]
    pub fn readable(&self) -> Arc<BTreeMap<GroupId, u16>> {
        lock(&self.readable).clone()
    }

    /// An admin asked for an image, whatever hour it is.
    pub fn ask(&self, image: ImageName) {
        lock(&self.failed).remove(&image);
        lock(&self.asked).insert(image);
        self.wake.notify_one();
    }

    /// Copies were made that nobody reckoned with.
    pub(super) fn look_again(&self) {
        lock(&self.cuts).clear();
    }

    fn step(&self) {
        if let Some(running) = lock(&self.running).as_mut() {
            running.done += 1;
        }
    }

    /// Seconds until something that the fleet suggests has been so for long enough.
    fn settles_in(&self, image: &ImageName, wanted: Cut, settle: Duration) -> u64 {
        let mut since = lock(&self.since);
        let (known, from) = since.entry(image.clone()).or_insert_with(|| (wanted, Instant::now()));
        if *known != wanted {
            (*known, *from) = (wanted, Instant::now());
        }
        settle.saturating_sub(from.elapsed()).as_secs_f64().ceil() as u64
    }
}

/// What an image wants beyond policies.
fn with_said(goal: Goal, said: &SaidRecord) -> Goal {
    Goal { layout: said.layout.unwrap_or(goal.layout), ..goal }
}

impl Controller {
    /// Cut images anew for ever, one after the other.
    pub async fn restripe_regularly(self: Arc<Self>) {
        loop {
            let _ = tokio::time::timeout(EVERY, self.restripes.wake.notified()).await;
            while let Some(due) = self.next_due() {
                let image = due.image.clone();
                let done = self.restripe(due).await;
                *lock(&self.restripes.running) = None;
                lock(&self.restripes.asked).remove(&image);
                if let Err(error) = done {
                    tracing::warn!(%image, %error, "an image was not cut anew");
                    lock(&self.restripes.failed).insert(image, (Instant::now(), error.to_string()));
                }
            }
        }
    }

    fn next_due(&self) -> Option<Due> {
        if !self.may_repair() {
            return None;
        }
        match self.restripes_due() {
            Ok(all) => all.into_iter().find(|due| due.when == When::Next),
            Err(error) => {
                tracing::warn!(%error, "it is not known what is to be cut anew");
                None
            }
        }
    }

    /// The fleet as it is, whoever is up now: those that stay, and are expected back.
    pub(super) fn lasting_fleet(&self) -> Result<(BTreeSet<NodeId>, usize), Refusal> {
        let devices = self.catalog.devices().map_err(catalog_refusal)?;
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        let gone_after_s = self.settings.gone_after_s;
        let lasts = |node: &NodeId| standings.get(node).is_none_or(|s| s.may_take() && s.silent_s <= gone_after_s);
        let nodes = self.catalog.nodes().map_err(catalog_refusal)?.into_iter().map(|(node, _)| node);
        let (of_devices, clients): (BTreeSet<_>, BTreeSet<_>) = nodes.filter(lasts).partition(|n| devices.contains(n));
        Ok((clients, of_devices.len()))
    }

    /// Images that are to be cut anew, those for the best reasons first.
    ///
    /// # Errors
    /// The catalog's.
    pub fn restripes_due(&self) -> Result<Vec<Due>, Refusal> {
        let (clients, devices) = self.lasting_fleet()?;
        let habits = self.habits.attendance();
        let fleet = self.fleet_of(clients.into_iter(), devices, &habits);
        let groups = self.catalog.groups().map_err(catalog_refusal)?;
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        let leaving = standings.into_iter().filter(|(_, s)| s.is_sent_away()).map(|(node, _)| node).collect();
        let (said, all) =
            (self.catalog.said().map_err(catalog_refusal)?, self.catalog.images().map_err(catalog_refusal)?);
        lock(&self.restripes.cuts).retain(|manifest, _| all.iter().any(|(_, image)| image.manifest == *manifest));
        let policies = self.catalog.policies().map_err(catalog_refusal)?;
        let (mut due, mut choices) = (Vec::new(), BTreeMap::new());
        let (more, mut of_groups) = (wanted_more(&policies), BTreeMap::<GroupId, u16>::new());
        for (image, record) in all {
            let said = said.get(&image.to_string()).copied().unwrap_or_default();
            if said.geometry.is_some() {
                continue;
            }
            if let Some(readable) = more.get(image.name()) {
                let cuts = self.cuts_of(&record)?;
                for group in cuts.all() {
                    let known = of_groups.entry(group).or_default();
                    *known = (*known).max(*readable);
                }
            }
            let goal = with_said(self.goal_for(image.name())?, &said);
            let choice =
                choices.entry((image.name().to_string(), said.layout)).or_insert_with(|| choose(&fleet, &goal)).clone();
            let Some(choice) = choice else { continue };
            let wanted = Wanted { fleet: &fleet, goal, choice };
            due.extend(self.due(image, record, &wanted, &groups, &leaving)?);
        }
        *lock(&self.restripes.readable) = Arc::new(of_groups);
        let known: BTreeSet<&ImageName> = due.iter().map(|due| &due.image).collect();
        lock(&self.restripes.since).retain(|image, _| known.contains(image));
        due.sort_by_key(|due| std::cmp::Reverse((due.when == When::UnderWay, due.why)));
        Ok(due)
    }

    fn due(
        &self,
        image: ImageName,
        record: ImageRecord,
        wanted: &Wanted<'_>,
        groups: &BTreeMap<GroupId, GroupRecord>,
        leaving: &BTreeSet<NodeId>,
    ) -> Result<Option<Due>, Refusal> {
        let cuts = self.cuts_of(&record)?;
        let devices = self.catalog.devices().map_err(catalog_refusal)?;
        let (mut by_cut, mut to_cut, mut why) = (BTreeMap::<Cut, u64>::new(), BTreeSet::new(), None);
        let urged = |why: Why, group: &GroupRecord| match why {
            Why::Shrunk if group.members.iter().any(|node| leaving.contains(node)) => Why::Leaves,
            why => why,
        };
        let mut bytes = 0;
        for (&(id, is_copied), &of_group) in &cuts.segments {
            let Some(group) = groups.get(&id) else { continue };
            let cut = cut_of(group, is_copied, &devices);
            *by_cut.entry(cut).or_default() += of_group;
            if let Some(because) = wanted.why(cut) {
                to_cut.insert((id, is_copied));
                bytes += of_group;
                why = why.max(Some(urged(because, group)));
            }
        }
        let of_pages = cuts.pages.iter().filter_map(|id| groups.get(id));
        let of_pages = of_pages.filter_map(|group| Some(urged(wanted.why_pages(group.geometry)?, group))).max();
        let Some(why) = why.max(of_pages) else { return Ok(None) };
        let most = by_cut.iter().max_by_key(|(_, bytes)| **bytes).map(|(cut, _)| *cut);
        let (cut, choice) = (wanted.cut(), &wanted.choice);
        let protection = Protection { geometry: choice.geometry, layout: wanted.goal.layout, steady: choice.steady };
        let when = self.when(&image, cut, why)?;
        Ok(Some(Due {
            image,
            is: most.unwrap_or(cut),
            wanted: cut,
            bytes,
            why,
            when,
            record,
            protection,
            groups: to_cut,
            are_pages_due: of_pages.is_some(),
        }))
    }

    fn when(&self, image: &ImageName, wanted: Cut, why: Why) -> Result<When, Refusal> {
        if self.restripes.running().is_some_and(|running| running.image == *image) {
            return Ok(When::UnderWay);
        }
        if lock(&self.restripes.asked).contains(image) {
            return Ok(When::Next);
        }
        let failed = lock(&self.restripes.failed).get(image).cloned();
        if let Some((_, what)) = failed.filter(|(at, _)| at.elapsed() < AGAIN_AFTER) {
            return Ok(When::Failed(what));
        }
        let settle = Duration::from_secs(self.settings.restripe_after_s);
        let settles_in = self.restripes.settles_in(image, wanted, settle);
        Ok(match () {
            () if !why.is_pressing() && settles_in > 0 => When::Settles(settles_in),
            () if !self.is_open()? => When::InItsHours,
            () => When::Next,
        })
    }

    /// What a publication is not told by the stashes that are up: it is cut for these, and for all that are expected back it would be cut
    /// otherwise.
    pub(super) fn cut_for_few(&self, image: &ImageName, goal: Goal, is: Geometry) -> Result<Option<String>, Refusal> {
        let (clients, devices) = self.lasting_fleet()?;
        let up = self.takers()?;
        let (all, away) = (clients.len(), clients.iter().filter(|node| !up.contains_key(node)).count());
        let habits = self.habits.attendance();
        let fleet = self.fleet_of(clients.into_iter(), devices, &habits);
        let Some(choice) = choose(&fleet, &goal).filter(|_| away > 0) else { return Ok(None) };
        let wanted = Wanted { fleet: &fleet, goal, choice };
        let why = wanted.why(Cut { geometry: is, layout: effective(goal.layout, is) });
        Ok(why.map(|why| {
            let geometry = wanted.choice.geometry;
            format!(
                "{away} of {all} stashes are away or full: cut as {is} it {why}. It is cut anew as {geometry} by itself, or at once by \
                 `coe-ctl restripe {image}` when they are back"
            )
        }))
    }

    /// What images need.
    pub(super) fn needed(&self) -> Result<Needed, Refusal> {
        let images = self.catalog.images().map_err(catalog_refusal)?.into_iter();
        let images: Vec<_> = images
            .map(|(image, record)| self.cuts_of(&record).map(|cuts| (image, record, cuts)))
            .collect::<Result<_, _>>()?;
        let groups = images.iter().flat_map(|(.., cuts)| cuts.all()).collect();
        Ok(Needed { images, groups })
    }

    /// Where the segments and the pages of an image lie.
    fn cuts_of(&self, record: &ImageRecord) -> Result<Arc<Cuts>, Refusal> {
        if let Some(known) = lock(&self.restripes.cuts).get(&record.manifest) {
            return Ok(known.clone());
        }
        let mut cuts = Cuts::default();
        let root = Self::root(&record.signed).map_err(catalog_refusal)?;
        let pages = root.segment_pages.iter().chain(&root.span_pages).chain([&record.root]);
        for page in pages {
            if let Some(of) = self.catalog.segment(&SegmentId(page.digest)).map_err(catalog_refusal)? {
                cuts.pages.insert(of.group);
            }
        }
        for page in segment_pages(&self.catalog, &root) {
            for entry in page.map_err(catalog_refusal)?.segments {
                if let Some(of) = self.catalog.segment(&entry.id).map_err(catalog_refusal)? {
                    *cuts.segments.entry((of.group, of.on_mass_storage)).or_default() += u64::from(of.sealed_len);
                }
            }
        }
        let cuts = Arc::new(cuts);
        lock(&self.restripes.cuts).insert(record.manifest, cuts.clone());
        Ok(cuts)
    }

    fn manifest_page(&self, digest: &[u8; 32]) -> Result<Vec<u8>, Refusal> {
        let page = self.catalog.page(digest).map_err(catalog_refusal)?;
        page.ok_or_else(|| Refusal::Failed("a page of the manifest is missing".into()))
    }

    /// Cut an image anew: as it is, or whole.
    async fn restripe(self: &Arc<Self>, due: Due) -> Result<(), Refusal> {
        self.check_room(&due)?;
        // What nothing refers to yet must not be swept away.
        let _finishing = self.sessions.finishing();
        let root = Self::root(&due.record.signed).map_err(catalog_refusal)?;
        let pages: Vec<SegmentPage> =
            segment_pages(&self.catalog, &root).collect::<Result<_, _>>().map_err(catalog_refusal)?;
        let mut todo: BTreeMap<SegmentId, SegmentRecord> = BTreeMap::new();
        for entry in pages.iter().flat_map(|page| &page.segments) {
            let Some(record) = self.catalog.segment(&entry.id).map_err(catalog_refusal)? else { continue };
            if due.groups.contains(&(record.group, record.on_mass_storage)) {
                todo.insert(entry.id, record);
            }
        }
        tracing::info!(image = %due.image, is = %due.is, wanted = %due.wanted, why = %due.why, segments = todo.len(),
            "an image is cut anew");
        let running = Running { image: due.image.clone(), done: 0, of: todo.len() as u64, since: Instant::now() };
        *lock(&self.restripes.running) = Some(running);
        let editions = self.next_editions(todo, due.protection).await?;
        let run_pages = pages
            .into_iter()
            .map(|page| {
                let renamed = |id: SegmentId| editions.get(&id).copied().unwrap_or(id);
                page.segments.into_iter().map(|s| DraftSegment { id: renamed(s.id), runs: s.runs }).collect()
            })
            .collect();
        let (span_pages, span_edition) = self.span_pages(&root, &due)?;
        let draft = Draft {
            array: self.array(),
            image: due.image.clone(),
            created_unix_s: root.created_unix_s,
            disk_len: root.disk_len,
            disk: root.disk,
            content: root.content,
            source_sha256: root.source_sha256,
            in_use: root.totals.in_use,
            run_pages,
            span_pages,
            span_edition,
            key: new_key()?,
        };
        self.replace(&draft, &due).await
    }

    /// Whether there is room for both editions.
    fn check_room(&self, due: &Due) -> Result<(), Refusal> {
        let geometry = due.protection.geometry;
        let needed = (due.bytes / geometry.data() as u64 + 1) * geometry.pieces() as u64;
        let (clients, devices) = self.takers_by_kind()?;
        let free: u64 = clients.values().chain(devices.values()).sum();
        if needed > free {
            return Err(Refusal::Unavailable(format!(
                "both editions need room for a day: {needed} bytes more, and {free} are free on stashes that are up"
            )));
        }
        Ok(())
    }

    /// Other editions of segments, cut as is wanted: those that there are, or new ones.
    async fn next_editions(
        self: &Arc<Self>,
        todo: BTreeMap<SegmentId, SegmentRecord>,
        protection: Protection,
    ) -> Result<BTreeMap<SegmentId, SegmentId>, Refusal> {
        let epoch = self.directory().map_err(catalog_refusal)?.mark().epoch;
        let fetcher = Fetcher::start(self.pool.clone(), Patience::unhurried(), epoch);
        let (mut tasks, mut editions) = (JoinSet::new(), BTreeMap::new());
        // The first failure ends it: what is done is found again when it is tried again.
        let mut note = |done: Result<Result<(SegmentId, SegmentId), Refusal>, JoinError>| {
            let (id, next) = done.map_err(|_| Refusal::Failed("cut a segment anew".into()))??;
            editions.insert(id, next);
            Ok::<(), Refusal>(())
        };
        for (id, record) in todo {
            if tasks.len() >= TOGETHER
                && let Some(done) = tasks.join_next().await
            {
                note(done)?;
            }
            let (controller, fetcher) = (self.clone(), fetcher.clone());
            tasks.spawn(async move {
                let next = controller.next_edition(id, &record, protection, &fetcher).await;
                controller.restripes.step();
                next.map(|next| (id, next))
            });
        }
        while let Some(done) = tasks.join_next().await {
            note(done)?;
        }
        Ok(editions)
    }

    async fn next_edition(
        self: &Arc<Self>,
        id: SegmentId,
        record: &SegmentRecord,
        protection: Protection,
        fetcher: &Fetcher,
    ) -> Result<SegmentId, Refusal> {
        // Another image that shares it may have been first.
        if let Some(newer) = self.catalog.newer_edition(&id).map_err(catalog_refusal)?
            && self.is_cut_so(&newer, protection)? == Some(true)
        {
            return Ok(newer);
        }
        let (sealed, fetched) = self.whole(id, record, fetcher).await?;
        let failed = |e: segment::SegmentError| Refusal::Failed(format!("open segment {id}: {e}"));
        let (chunks, first) = {
            let plain = segment::unseal(&sealed, &record.key).and_then(segment::decode).map_err(failed)?;
            (plain.chunks(), segment::edition(&sealed).map_err(failed)?)
        };
        for step in 1..=u8::MAX {
            let edition = first.wrapping_add(step);
            let next = segment::seal_again(&sealed, &record.key, edition, &self.authority.owner_key).map_err(failed)?;
            match self.is_cut_so(&next.id, protection)? {
                Some(true) => return Ok(next.id),
                Some(false) => continue,
                None => {}
            }
            let put = PutSegment { session: 0, id: next.id, key: next.key, data_len: next.data_len, chunks };
            let stored = self.store_segment(put, Bytes::from(next.bytes), protection).await?;
            self.keep_pace(fetched + stored.sent).await?;
            return Ok(next.id);
        }
        Err(Refusal::Failed(format!("all editions of segment {id} are in use")))
    }

    /// Whether a segment is cut as is wanted; none if there is no such segment.
    fn is_cut_so(&self, id: &SegmentId, protection: Protection) -> Result<Option<bool>, Refusal> {
        let Some(record) = self.catalog.segment(id).map_err(catalog_refusal)? else { return Ok(None) };
        let group = self.catalog.group(record.group).map_err(catalog_refusal)?;
        let devices = self.catalog.devices().map_err(catalog_refusal)?;
        let Protection { geometry, layout, .. } = protection;
        let wanted = Cut { geometry, layout: effective(layout, geometry) };
        Ok(group.map(|group| cut_of(&group, record.on_mass_storage, &devices) == wanted))
    }

    /// A segment: the copy on mass storage, or out of its pieces; and the bytes that were fetched for that.
    async fn whole(&self, id: SegmentId, record: &SegmentRecord, fetcher: &Fetcher) -> Result<(Vec<u8>, u64), Refusal> {
        if record.on_mass_storage
            && let Ok(bytes) = self.mass_storage.get(&id).await
            && SegmentId::of(&bytes) == id
        {
            return Ok((bytes.into(), 0));
        }
        let group = self.catalog.group(record.group).map_err(catalog_refusal)?;
        let group = group.ok_or_else(|| Refusal::Failed("a segment without a group".into()))?;
        from_pieces(id, record, group, fetcher).await
    }

    /// Pages of read-back digests: as they are, or as an edition that lies on members of its own.
    fn span_pages(&self, root: &Root, due: &Due) -> Result<(Vec<Vec<images::span::Span>>, u32), Refusal> {
        let mut pages = Vec::with_capacity(root.span_pages.len());
        let mut edition = 0;
        for at in &root.span_pages {
            let page = SpanPage::decode(&self.manifest_page(&at.digest)?)
                .map_err(|e| Refusal::Failed(format!("a page of the manifest is damaged: {e}")))?;
            edition = edition.max(page.edition);
            pages.push(page.spans);
        }
        if !due.are_pages_due {
            return Ok((pages, edition));
        }
        let stashes = self.clients_that_stay()?;
        let parity = due.protection.of_pages(stashes).geometry.parity();
        let groups = self.catalog.groups().map_err(catalog_refusal)?;
        let is_unfit = |spans: &Vec<images::span::Span>, edition: u32| {
            let id = SegmentId::of(&SpanPage { spans: spans.clone(), edition }.encode());
            let known = self.catalog.segment(&id).map_err(catalog_refusal)?;
            let geometry: Option<Geometry> = known.and_then(|r| groups.get(&r.group)).map(|g| g.geometry);
            Ok::<bool, Refusal>(geometry.is_some_and(|g| g.parity() < parity || g.pieces() > stashes))
        };
        loop {
            edition += 1;
            let mut unfit = false;
            for spans in &pages {
                unfit |= is_unfit(spans, edition)?;
            }
            if !unfit {
                return Ok((pages, edition));
            }
        }
    }

    /// Give an image the manifest of a draft.
    async fn replace(self: &Arc<Self>, draft: &Draft, due: &Due) -> Result<(), Refusal> {
        let _images = self.images.lock().await;
        let offline = due.record.offline.is_some();
        let Manifest { record, root, segments } = self.make_manifest(draft, due.protection, offline).await?;
        self.check_in_charge()?;
        let (image, before, at) = (due.image.clone(), due.record.manifest, record.root.group);
        let until = unix_s() + RETIRED_KEPT_S;
        let done = self.committer.change(move |change| {
            segments.iter().try_for_each(|id| change.refer(id).map(drop))?;
            change.replace_image(&image, before, &record, until)
        });
        done.await.map_err(catalog_refusal)?;
        self.tell_holders(at).await;
        tracing::info!(image = %due.image, manifest = %root.id(), "an image was cut anew");
        Ok(())
    }
}

fn cut_of(group: &GroupRecord, is_copied: bool, devices: &BTreeSet<NodeId>) -> Cut {
    let layout = match layout_of(group.geometry, &group.members, devices) {
        Layout::Clients if is_copied => Layout::Mirror,
        layout => layout,
    };
    Cut { geometry: group.geometry, layout }
}
