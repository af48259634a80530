//! Carries out what [the plan](crate::repair) says: pieces are copied or made anew on their new holders, which do the work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use images::fragment;
use images::parity::{Codec, Geometry};
use images::{GroupId, NodeId, SegmentId};
use protocol::io::rpc::{self, CallError};
use protocol::limits::REBUILD_TOGETHER;
use protocol::message::store::{self, Rebuild, Rebuilt, Wanted};
use protocol::message::{Refusal, store::OWNER_IMAGES};
use tokio::sync::{Notify, Semaphore};

use super::controller::{Controller, catalog_refusal};
use super::rival::tell;
use super::unix_s;
use super::verify::prove;
use crate::catalog::{CatalogError, GroupRecord, ImageRecord, MoveRecord, Seat, SegmentRecord, Standing, TrashKey};
use crate::repair::{self, Policy, Seen, Whole, Why};

/// How often it is looked whether something is to be done; sooner when somebody says so.
const EVERY: Duration = Duration::from_secs(5);
/// How often the absence of members is counted up.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// In that time one piece of so many stashes is proven: each of them reads a fragment or so in ten minutes.
const STASHES_AN_AUDIT: usize = 10;
/// Members whose groups' pieces travel at the same time.
const MOVES_TOGETHER: usize = 4;
/// Moves that are planned ahead.
const PLANNED_TOGETHER: usize = 64;
/// How long a stash may take for [`REBUILD_TOGETHER`] segments. Deletions wait for it.
const REBUILT_WITHIN: Duration = Duration::from_secs(30);
/// Damaged fragments that are looked at in one round.
const MENDED_TOGETHER: usize = 1024;
/// Problems that are remembered of a move.
const WHY_MAX: usize = 500;

/// How far a move is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Segments whose piece the new member holds.
    pub has: BTreeSet<SegmentId>,
    /// Segments of the group.
    pub of: u64,
    /// Payload bytes that the new member fetched.
    pub fetched: u64,
    /// Why it does not go on.
    pub problem: Option<String>,
    is_running: bool,
}

/// What repair is at.
#[derive(Default)]
pub struct Repairs {
    moves: Mutex<BTreeMap<Seat, Progress>>,
    stuck: Mutex<Vec<(Seat, NodeId, Why)>>,
    put_off: Mutex<usize>,
    fetched: AtomicU64,
    kept: AtomicU64,
    /// There is something to do.
    pub wake: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Repairs {
    /// How far a move is.
    #[must_use]
    pub fn progress(&self, seat: Seat) -> Progress {
        lock(&self.moves).get(&seat).cloned().unwrap_or_default()
    }

    /// Members that should be replaced, and by nobody can be.
    #[must_use]
    pub fn stuck(&self) -> Vec<(Seat, NodeId, Why)> {
        lock(&self.stuck).clone()
    }

    fn count(&self, fetched: u64, kept: u64) {
        if fetched > 0 {
            self.fetched.fetch_add(fetched, Relaxed);
            self.kept.fetch_add(kept, Relaxed);
        }
    }

    /// Bytes that new holders fetched since this controller started, and bytes of the pieces that they kept.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.fetched.load(Relaxed), self.kept.load(Relaxed))
    }

    /// Missing pieces of groups that are put off.
    #[must_use]
    pub fn put_off(&self) -> usize {
        *lock(&self.put_off)
    }

    fn update(&self, seat: Seat, work: impl FnOnce(&mut Progress)) {
        work(lock(&self.moves).entry(seat).or_default());
    }
}

/// A move that is carried out ends when this is dropped.
struct Running {
    controller: Arc<Controller>,
    seat: Seat,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.controller.repairs.update(self.seat, |p| p.is_running = false);
        self.controller.repairs.wake.notify_one();
    }
}

fn conflict_only(error: CatalogError) -> Result<(), Refusal> {
    match error {
        CatalogError::Conflict(_) => Ok(()),
        other => Err(catalog_refusal(other)),
    }
}

impl Controller {
    /// Repair for ever.
    pub async fn repair_regularly(self: Arc<Self>) {
        let slots = Arc::new(Semaphore::new(MOVES_TOGETHER));
        let mut counted = std::time::Instant::now();
        loop {
            let _ = tokio::time::timeout(EVERY, self.repairs.wake.notified()).await;
            // Right after a start nobody has been heard yet, and what this catalog thinks may be out of date.
            if self.check_in_charge().is_err() || self.started.elapsed() < self.fleet.patience() {
                continue;
            }
            if counted.elapsed() >= COUNT_EVERY {
                counted = std::time::Instant::now();
                if let Err(error) = self.audit(self.fleet.up().len().div_ceil(STASHES_AN_AUDIT)).await {
                    tracing::warn!(%error, "nobody was audited");
                }
                if let Err(error) = self.count_absence().await {
                    tracing::warn!(%error, "absence not counted");
                }
            }
            if let Err(error) = self.repair_once(&slots).await {
                tracing::warn!(%error, "repair failed");
            }
        }
    }

    /// Those that are silent while most are heard are counted as away for longer. If most are silent, it is this controller that is cut off,
    /// or the holidays.
    async fn count_absence(&self) -> Result<(), Refusal> {
        let known = self.catalog.nodes().map_err(catalog_refusal)?;
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        let is_heard = |node: NodeId| self.fleet.is_heard(node);
        if known.iter().filter(|(node, _)| is_heard(*node)).count() * 2 < known.len() {
            return Ok(());
        }
        let silent = |node: &NodeId| standings.get(node).map_or(0, |s| s.silent_s);
        let changes: Vec<(NodeId, u64)> = known
            .iter()
            .map(|(node, _)| (*node, if is_heard(*node) { 0 } else { silent(node) + COUNT_EVERY.as_secs() }))
            .filter(|(node, now)| silent(node) != *now)
            .collect();
        let change = self.committer.change(move |change| {
            changes.iter().try_for_each(|(node, now)| change.change_standing(*node, |s| s.silent_s = *now).map(drop))
        });
        change.await.map_err(catalog_refusal)
    }

    /// Free bytes of each stash that is up and that new pieces may go to.
    ///
    /// # Errors
    /// The catalog's.
    pub fn takers(&self) -> Result<BTreeMap<NodeId, u64>, Refusal> {
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        let has_room = |node: &NodeId| self.fleet.pulse(*node).is_none_or(|(pulse, _)| pulse.too_much == 0);
        let may_take = |node: &NodeId| standings.get(node).is_none_or(Standing::may_take) && has_room(node);
        Ok(self.fleet.up().into_iter().filter(|(node, _)| may_take(node)).collect())
    }

    /// The facts that decisions are made from. Only groups that something may have to be done for have a size.
    pub(super) fn repair_facts(&self) -> Result<(BTreeMap<NodeId, Seen>, BTreeMap<GroupId, Whole>), Refusal> {
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        let up = self.fleet.up();
        let nodes: BTreeMap<NodeId, Seen> = self
            .catalog
            .nodes()
            .map_err(catalog_refusal)?
            .into_iter()
            .map(|(node, _)| {
                let standing = standings.get(&node).cloned().unwrap_or_default();
                let seen = Seen {
                    is_up: up.contains_key(&node),
                    silent_s: if self.fleet.is_heard(node) { 0 } else { standing.silent_s },
                    free: up.get(&node).copied().unwrap_or(0),
                    too_much: self.fleet.pulse(node).map_or(0, |(pulse, _)| pulse.too_much),
                    is_urgent: self.fleet.pulse(node).is_some_and(|(pulse, _)| pulse.is_urgent),
                    standing,
                };
                (node, seen)
            })
            .collect();
        let policy = self.repair_policy();
        let is_fine = |node: &NodeId| {
            repair::is_durable(nodes.get(node), &policy)
                && nodes.get(node).is_some_and(|n| n.standing.may_take() && n.too_much == 0)
        };
        let mut all_vacant: BTreeMap<GroupId, BTreeSet<u8>> = BTreeMap::new();
        for (group, piece) in self.catalog.vacant().map_err(catalog_refusal)? {
            all_vacant.entry(group).or_default().insert(piece);
        }
        let mut groups = BTreeMap::new();
        for (id, group) in self.catalog.groups().map_err(catalog_refusal)?.into_iter().filter(|(_, g)| g.segments > 0) {
            let vacant = all_vacant.remove(&id).unwrap_or_default();
            let is_well = vacant.is_empty() && group.members.iter().all(is_fine);
            let bytes = if is_well { 0 } else { self.bytes_of(id, &group)? };
            groups.insert(id, Whole { geometry: group.geometry, members: group.members, vacant, bytes });
        }
        Ok((nodes, groups))
    }

    fn bytes_of(&self, id: GroupId, group: &GroupRecord) -> Result<u64, Refusal> {
        let mut bytes = 0;
        for segment in self.catalog.segments_of(id).map_err(catalog_refusal)? {
            if let Some(record) = self.catalog.segment(&segment).map_err(catalog_refusal)? {
                bytes += group.geometry.piece_len(record.sealed_len as usize) as u64;
            }
        }
        Ok(bytes)
    }

    pub(super) fn repair_policy(&self) -> Policy {
        Policy { gone_after_s: self.settings.gone_after_s, together: PLANNED_TOGETHER }
    }

    async fn repair_once(self: &Arc<Self>, slots: &Arc<Semaphore>) -> Result<(), Refusal> {
        let (nodes, groups) = self.repair_facts()?;
        let under_way = self.catalog.moves().map_err(catalog_refusal)?;
        let mut is_trash = false;
        let plan = repair::plan(&self.repair_policy(), &nodes, &groups, &under_way, unix_s());
        for seat in plan.give_up {
            tracing::info!(group = seat.0.0, piece = seat.1, "the new holder of a piece is not to have it any more");
            let given_up = self.committer.change(move |change| change.give_up_move(seat));
            given_up.await.map_err(catalog_refusal)?;
            lock(&self.repairs.moves).remove(&seat);
        }
        for seat in plan.vacate {
            tracing::info!(
                group = seat.0.0,
                piece = seat.1,
                "its holder may drop a piece: its disk is full, and others can do without"
            );
            let vacated = self.committer.change(move |change| change.vacate(seat));
            vacated.await.or_else(conflict_only)?;
            is_trash |= true;
        }
        for (seat, record, why) in plan.begin {
            tracing::info!(group = seat.0.0, piece = seat.1, from = %record.from, to = %record.to, %why, "a holder is replaced");
            let begun = self.committer.change(move |change| change.begin_move(seat, &record));
            begun.await.or_else(conflict_only)?;
        }
        *lock(&self.repairs.stuck) = plan.stuck;
        *lock(&self.repairs.put_off) = plan.put_off;
        let under_way = self.catalog.moves().map_err(catalog_refusal)?;
        lock(&self.repairs.moves).retain(|seat, _| under_way.contains_key(seat));
        for (seat, record) in &under_way {
            let maker = |(other, made): (&Seat, &MoveRecord)| other.0 == seat.0 && Some(made.to) == record.via;
            if self.repairs.progress(*seat).is_running || under_way.iter().any(maker) {
                continue;
            }
            let Ok(slot) = slots.clone().try_acquire_owned() else { break };
            let also = under_way.iter().filter(|(other, made)| other.0 == seat.0 && made.via == Some(record.to));
            let pieces: Vec<u8> = std::iter::once(seat.1).chain(also.map(|(other, _)| other.1)).collect();
            self.repairs.update(*seat, |p| p.is_running = true);
            let running = Running { controller: self.clone(), seat: *seat };
            let record = record.clone();
            tokio::spawn(async move {
                let _slot = slot;
                let controller = running.controller.clone();
                if let Err(refusal) = controller.carry_out(running.seat, &record, &pieces).await {
                    let why: String = refusal.to_string().chars().take(WHY_MAX).collect();
                    tracing::warn!(group = running.seat.0.0, piece = running.seat.1, to = %record.to, why, "a piece waits");
                    controller.repairs.update(running.seat, |p| p.problem = Some(why));
                    // Not at once again.
                    tokio::time::sleep(EVERY).await;
                }
            });
        }
        self.mend_damaged().await?;
        self.let_go().await?;
        if is_trash {
            self.empty_trash().await;
        }
        Ok(())
    }

    /// Have a new member hold its piece of all segments of its group, and make it a member.
    async fn carry_out(&self, seat: Seat, record: &MoveRecord, pieces: &[u8]) -> Result<(), Refusal> {
        if !self.fleet.up().contains_key(&record.to) {
            return Err(Refusal::Unavailable(format!("stash {} is away", record.to)));
        }
        let mut todo = self.catalog.segments_of(seat.0).map_err(catalog_refusal)?;
        loop {
            self.repairs.update(seat, |p| {
                p.of = p.has.len().max(todo.len()) as u64;
                todo.retain(|id| !p.has.contains(id));
            });
            for some in todo.chunks(REBUILD_TOGETHER) {
                self.have_some(seat, record, pieces, some).await?;
            }
            let has = self.repairs.progress(seat).has;
            let missing = Arc::new(Mutex::new(Vec::new()));
            let seen = missing.clone();
            let finished = self.committer.change(move |change| {
                *lock(&seen) = change.finish_move(seat, &has)?;
                Ok(())
            });
            finished.await.map_err(catalog_refusal)?;
            todo = std::mem::take(&mut *lock(&missing));
            if todo.is_empty() {
                break;
            }
        }
        tracing::info!(group = seat.0.0, piece = seat.1, from = %record.from, to = %record.to, "a holder was replaced");
        Ok(())
    }

    async fn have_some(
        &self,
        seat: Seat,
        under_way: &MoveRecord,
        pieces: &[u8],
        some: &[SegmentId],
    ) -> Result<(), Refusal> {
        // What is deleted meanwhile must not come back.
        let _alive = self.deleting.read().await;
        let group = self.catalog.groups().map_err(catalog_refusal)?.remove(&seat.0);
        let group = group.ok_or_else(|| Refusal::NotFound(format!("group {}", seat.0.0)))?;
        let up = self.fleet.up();
        let from = [under_way.via, Some(under_way.from)].into_iter().flatten().find(|node| up.contains_key(node));
        let mut asked = Vec::new();
        for id in some {
            let Some(record) = self.catalog.segment(id).map_err(catalog_refusal)? else { continue };
            for piece in pieces {
                let key = TrashKey::Fragment { node: under_way.to, segment: *id, piece: *piece };
                if self.catalog.is_trash(&key).map_err(catalog_refusal)? {
                    return Err(Refusal::Unavailable("what is still to be deleted there goes first".into()));
                }
            }
            // Whoever makes others' pieces, too, does not find them all at one member.
            let from = from.filter(|_| pieces.len() == 1);
            asked.push((*id, wanted(*id, &record, &group, pieces.to_vec(), from), record));
        }
        let outcomes =
            self.rebuild_at(under_way.to, asked.iter().map(|(_, wanted, _)| wanted.clone()).collect()).await?;
        let (mut first, mut bytes) = (None, 0);
        for ((id, _, record), outcome) in asked.iter().zip(outcomes) {
            let outcome = match outcome {
                Rebuilt::Short(_) if record.on_mass_storage => {
                    self.put_from_copy(under_way.to, *id, &group, pieces).await
                }
                other => other,
            };
            match outcome {
                Rebuilt::Here { fetched } => {
                    let kept = group.geometry.piece_len(record.sealed_len as usize) * pieces.len();
                    self.repairs.count(fetched, kept as u64);
                    bytes += u64::from(fetched > 0) * group.geometry.piece_len(record.sealed_len as usize) as u64;
                    self.repairs.update(seat, |p| {
                        p.has.insert(*id);
                        p.fetched += fetched;
                        p.problem = None;
                    });
                }
                Rebuilt::Short(what) => {
                    first.get_or_insert(Refusal::Unavailable(format!("segment {}: {what}", id.short())));
                }
                Rebuilt::Refused(refusal) => {
                    if refusal == Refusal::Full {
                        self.fleet.is_full(under_way.to);
                    }
                    first.get_or_insert(refusal);
                }
            }
        }
        self.fleet.took(under_way.to, bytes);
        first.map_or(Ok(()), Err)
    }

    async fn rebuild_at(&self, node: NodeId, wanted: Vec<Wanted>) -> Result<Vec<Rebuilt>, Refusal> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let count = wanted.len();
        let within_ms = REBUILT_WITHIN.as_millis() as u32;
        let ask = async {
            let connection = self.pool.get(node).await?;
            // It finds the others by the newest directory.
            let directory = self.directory().map_err(|_| CallError::Malformed)?;
            tell(&connection, &directory).await?;
            let ask = Rebuild { owner: OWNER_IMAGES, wanted, within_ms };
            rpc::call(&connection, ask, &[]).await
        };
        let answer = tokio::time::timeout(REBUILT_WITHIN * 3 / 2, ask).await;
        let failed = |e: CallError| match e {
            CallError::Refused(refusal) => refusal,
            other => Refusal::Unavailable(format!("stash {node}: {other}")),
        };
        let (answer, _) =
            answer.map_err(|_| Refusal::Unavailable(format!("stash {node} does not answer")))?.map_err(failed)?;
        if answer.outcomes.len() != count {
            return Err(Refusal::Failed(format!("stash {node} answered something else")));
        }
        Ok(answer.outcomes)
    }

    /// The last resort: mass storage has a whole copy.
    async fn put_from_copy(&self, node: NodeId, id: SegmentId, group: &GroupRecord, pieces: &[u8]) -> Rebuilt {
        let Ok(sealed) = self.mass_storage.get(&id).await else {
            return Rebuilt::Short("and mass storage does not have it".into());
        };
        if SegmentId::of(&sealed) != id {
            return Rebuilt::Short("and its copy on mass storage is damaged".into());
        }
        let (geometry, sealed) = (group.geometry, sealed);
        let made = tokio::task::spawn_blocking(move || fragment::split(&Codec::new(geometry), id, &sealed)).await;
        let mut fetched = 0;
        for (header, payload) in made.unwrap_or_default().into_iter().filter(|(h, _)| pieces.contains(&h.id.piece)) {
            fetched += payload.len() as u64;
            let put = async {
                let connection = self.pool.get(node).await?;
                rpc::call(&connection, store::PutFragment { owner: OWNER_IMAGES, header }, &[payload]).await
            };
            match put.await {
                Ok(_) => {}
                Err(CallError::Refused(refusal)) => return Rebuilt::Refused(refusal),
                Err(error) => return Rebuilt::Refused(Refusal::Unavailable(error.to_string())),
            }
        }
        Rebuilt::Here { fetched }
    }

    /// Fragments that their holders have lost are made anew there, and proven.
    async fn mend_damaged(&self) -> Result<(), Refusal> {
        let damaged = self.catalog.damaged().map_err(catalog_refusal)?;
        if damaged.is_empty() {
            return Ok(());
        }
        let nodes = self.catalog.standings().map_err(catalog_refusal)?;
        let (groups, up) = (self.catalog.groups().map_err(catalog_refusal)?, self.fleet.up());
        for (id, piece) in damaged.into_iter().take(MENDED_TOGETHER) {
            let Some(record) = self.catalog.segment(&id).map_err(catalog_refusal)? else { continue };
            let Some(group) = groups.get(&record.group) else { continue };
            let Some(&node) = group.members.get(usize::from(piece)) else { continue };
            if !up.contains_key(&node) || !nodes.get(&node).is_none_or(|s| s.is_durable()) {
                continue;
            }
            let alive = self.deleting.read().await;
            let key = TrashKey::Fragment { node, segment: id, piece };
            if self.catalog.segment(&id).map_err(catalog_refusal)?.is_none()
                || self.catalog.is_trash(&key).map_err(catalog_refusal)?
            {
                continue;
            }
            let made = self.rebuild_at(node, vec![wanted(id, &record, group, vec![piece], None)]).await;
            let made = match made.map(|mut outcomes| outcomes.pop()) {
                Ok(Some(Rebuilt::Short(_))) if record.on_mass_storage => {
                    self.put_from_copy(node, id, group, &[piece]).await
                }
                Ok(Some(outcome)) => outcome,
                Ok(None) => continue,
                Err(refusal) => Rebuilt::Refused(refusal),
            };
            drop(alive);
            match made {
                Rebuilt::Here { fetched } => {
                    let len = group.geometry.piece_len(record.sealed_len as usize) as u64;
                    let digest = record.fragments[usize::from(piece)];
                    let proven = prove(&self.pool, id, digest, len, piece, node).await;
                    if matches!(&proven, Err(what) if !what.is_loss()) {
                        continue;
                    }
                    if let Err(what) = proven {
                        tracing::error!(%node, segment = %id, piece, %what, "a stash says that it has what it has not");
                        let distrust = self.committer.change(move |change| {
                            change.change_standing(node, |standing| standing.distrusted = true).map(drop)
                        });
                        distrust.await.map_err(catalog_refusal)?;
                        continue;
                    }
                    self.repairs.count(fetched, len);
                    let mended = self.committer.change(move |change| change.mend_damage(id, piece));
                    mended.await.map_err(catalog_refusal)?;
                    tracing::info!(%node, segment = %id, piece, fetched, "a lost fragment was made anew");
                }
                Rebuilt::Short(what) => {
                    tracing::error!(%node, segment = %id, piece, what, "a lost fragment cannot be made anew now")
                }
                Rebuilt::Refused(why) => {
                    tracing::warn!(%node, segment = %id, piece, %why, "a lost fragment is not made anew yet")
                }
            }
        }
        Ok(())
    }

    /// Fragments that a member must still hold: nobody else holds them for the array yet.
    ///
    /// # Errors
    /// The catalog's.
    pub fn to_hand_over(&self, node: NodeId) -> Result<u64, Refusal> {
        let (groups, vacant) =
            (self.catalog.groups().map_err(catalog_refusal)?, self.catalog.vacant().map_err(catalog_refusal)?);
        let holds = |(id, group): &(&GroupId, &GroupRecord)| {
            let seat = group.members.iter().position(|member| *member == node);
            seat.is_some_and(|piece| !vacant.contains(&(**id, piece as u8)))
        };
        Ok(groups.iter().filter(holds).map(|(_, group)| group.segments).sum())
    }

    /// Members that leave, and that nobody needs any more, are members no longer.
    async fn let_go(&self) -> Result<(), Refusal> {
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        for (node, _) in standings.into_iter().filter(|(_, s)| s.leaving || s.removed) {
            if self.to_hand_over(node)? == 0 && self.catalog.node(node).map_err(catalog_refusal)?.is_some() {
                self.remove_member(node).await?;
            }
        }
        Ok(())
    }

    fn geometry_of_root(&self, image: &ImageRecord) -> Result<Geometry, Refusal> {
        let root = self.catalog.segment(&SegmentId(image.root.digest)).map_err(catalog_refusal)?;
        let groups = self.catalog.groups().map_err(catalog_refusal)?;
        let group = root.and_then(|record| groups.get(&record.group));
        Ok(group.ok_or_else(|| Refusal::NotFound("the group of a manifest".into()))?.geometry)
    }

    /// Forget a member that holds nothing for the array. Shares of keys that it has are given to others first.
    ///
    /// # Errors
    /// If it still holds something.
    pub async fn remove_member(&self, node: NodeId) -> Result<(), Refusal> {
        let _images = self.images.lock().await;
        for (name, image) in self.catalog.images().map_err(catalog_refusal)? {
            let shares =
                image.offline.as_ref().filter(|shares| shares.holders.iter().any(|(holder, _)| *holder == node));
            let Some(_) = shares else { continue };
            let geometry = self.geometry_of_root(&image)?;
            let offline = self.split_key(image.manifest, &image.key, geometry).await?;
            if offline.is_none() {
                tracing::warn!(image = %name, "too few stashes are left to share its key: it cannot be installed without this controller");
            }
            let change = self.committer.change(move |change| change.put_shares(&name, offline.clone()));
            change.await.map_err(catalog_refusal)?;
        }
        let removed = self.committer.change(move |change| change.remove_node(node));
        removed.await.map_err(catalog_refusal)?;
        self.fleet.forget(node);
        tracing::info!(%node, "a stash left the array");
        Ok(())
    }
}

fn wanted(
    segment: SegmentId,
    record: &SegmentRecord,
    group: &GroupRecord,
    pieces: Vec<u8>,
    from: Option<NodeId>,
) -> Wanted {
    Wanted {
        segment,
        geometry: group.geometry,
        sealed_len: record.sealed_len,
        fragments: record.fragments.clone(),
        holders: group.members.clone(),
        pieces,
        from,
    }
}
