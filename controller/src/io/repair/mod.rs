//! Carries out what [the plan](crate::repair) says: pieces are copied or made anew on their new holders, which do the work.

mod mend;
mod moves;
mod retry;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use images::fragment::FragmentId;
use images::parity::Geometry;
use images::{GroupId, NodeId, SegmentId};
use protocol::message::Refusal;
use protocol::message::publish::Layout;
use protocol::pace::Bucket;
use tokio::sync::{Notify, Semaphore};

use super::controller::{Controller, catalog_refusal};
use super::habits::COUNT_EVERY;
use super::unix_s;
use crate::attendance::Class;
use crate::catalog::{CatalogError, GroupRecord, ImageRecord, MoveRecord, Seat, Standing};
use crate::repair::{self, Policy, Seen, Whole, Why};
use moves::Task;
pub(super) use moves::entry_of;
use retry::Retries;

/// How often it is looked whether something is to be done; sooner when somebody says so.
const EVERY: Duration = Duration::from_secs(5);
/// In that time one piece of so many stashes is proven: each of them reads a fragment or so in ten minutes.
const STASHES_AN_AUDIT: usize = 10;
/// Members whose groups' pieces travel at the same time.
const MOVES_TOGETHER: usize = 4;
/// Of these, moves that begin while they must wait behind installers: others have somewhere to go meanwhile.
const RESTING_TOGETHER: usize = 2;
/// While members of a group serve installers, its repair rests so many times as long as it works.
const REPAIR_RESTS: u32 = 9;
/// And so long at first.
const INSTALLERS_FIRST: Duration = Duration::from_secs(2);
/// But no longer than this at a time.
const INSTALLERS_FIRST_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether they are served still.
const INSTALLERS_ASKED: Duration = Duration::from_millis(200);
/// Moves that are planned ahead.
const PLANNED_TOGETHER: usize = 1024;
/// While so many are under way, nothing is moved only to lie better.
const BETTER_TOGETHER: usize = 16;
/// A new holder that cannot take its pieces for so long is given up, and another one is found; and for so long it is not chosen again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);
/// One that had no room is not chosen for so long: its next reports say how much it has.
const FULL_FOR: Duration = Duration::from_secs(30);

/// How far a move is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Segments whose piece the new member holds.
    pub has: BTreeSet<SegmentId>,
    /// Payload bytes that the new member fetched.
    pub fetched: u64,
    /// Why it does not go on.
    pub problem: Option<String>,
}

/// What repair is at.
pub struct Repairs {
    tasks: Mutex<BTreeMap<Seat, Arc<Task>>>,
    stuck: Mutex<Vec<(Seat, NodeId, Why)>>,
    put_off: Mutex<usize>,
    /// Members that could not take what they were to have, and until when they are not chosen.
    avoided: Mutex<BTreeMap<NodeId, Instant>>,
    fetched: AtomicU64,
    kept: AtomicU64,
    since: Instant,
    pace: Mutex<Bucket>,
    /// Bytes that were moved faster than they may, and are waited for.
    owed: AtomicU64,
    /// Lost fragments that could not be made anew.
    lost: Retries<(SegmentId, u8)>,
    /// Copies on mass storage that could not be.
    pub(super) copies: Retries<SegmentId>,
    /// There is something to do.
    pub wake: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Repairs {
    fn default() -> Self {
        Self {
            tasks: Mutex::default(),
            stuck: Mutex::default(),
            put_off: Mutex::default(),
            avoided: Mutex::default(),
            fetched: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            since: Instant::now(),
            pace: Mutex::default(),
            owed: AtomicU64::new(0),
            lost: Retries::default(),
            copies: Retries::default(),
            wake: Notify::new(),
        }
    }
}

impl Repairs {
    /// How far a move is.
    #[must_use]
    pub fn progress(&self, seat: Seat) -> Progress {
        lock(&self.tasks).get(&seat).map(|task| task.progress()).unwrap_or_default()
    }

    /// Members that should be replaced, and by nobody can be.
    #[must_use]
    pub fn stuck(&self) -> Vec<(Seat, NodeId, Why)> {
        lock(&self.stuck).clone()
    }

    /// Missing pieces of groups that are put off.
    #[must_use]
    pub fn put_off(&self) -> usize {
        *lock(&self.put_off)
    }

    /// Bytes that were moved faster than they may, and are waited for.
    #[must_use]
    pub fn owed(&self) -> u64 {
        self.owed.load(Relaxed)
    }

    /// Bytes that new holders fetched since this controller started, and bytes of the pieces that they kept.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.fetched.load(Relaxed), self.kept.load(Relaxed))
    }

    /// A member has lost fragments: what it has of its moves is less than was thought.
    pub fn forget_lost(&self, node: NodeId, fragments: &[FragmentId]) {
        let of_node = |task: &&Arc<Task>| task.record.to == node || task.record.via == Some(node);
        for task in lock(&self.tasks).values().filter(of_node) {
            task.forget(fragments.iter().map(|fragment| fragment.segment));
        }
    }

    /// Segments are being deleted; what comes under the same name later is to be put there again.
    pub fn forget_segments(&self, segments: &[SegmentId]) {
        lock(&self.tasks).values().for_each(|task| task.forget(segments.iter().copied()));
    }

    /// What was in vain may not be any more: a segment can be had again.
    pub(super) fn try_again(&self, segment: SegmentId, group: GroupId) {
        self.lost.retain(|(of, _)| *of != segment);
        lock(&self.tasks).range((group, 0)..=(group, u8::MAX)).for_each(|(_, task)| task.try_again());
        self.wake.notify_one();
    }

    fn count(&self, fetched: u64, kept: u64) {
        if fetched > 0 {
            self.fetched.fetch_add(fetched, Relaxed);
            self.kept.fetch_add(kept, Relaxed);
        }
    }

    fn is_avoided(&self, node: NodeId) -> bool {
        lock(&self.avoided).get(&node).is_some_and(|until| *until > Instant::now())
    }

    /// The tasks of these moves; those of others are forgotten. A move that began anew begins from nothing.
    fn tasks_of(&self, under_way: &BTreeMap<Seat, MoveRecord>) -> Vec<Arc<Task>> {
        let mut tasks = lock(&self.tasks);
        tasks.retain(|seat, task| under_way.get(seat) == Some(&task.record));
        let task = |(seat, record): (&Seat, &MoveRecord)| {
            tasks.entry(*seat).or_insert_with(|| Arc::new(Task::new(*seat, record.clone()))).clone()
        };
        under_way.iter().map(task).collect()
    }
}

/// What one of those who wait for the pace owes of it.
struct Owed<'a> {
    all: &'a AtomicU64,
    left: u64,
}

impl<'a> Owed<'a> {
    fn new(all: &'a AtomicU64, bytes: u64) -> Self {
        all.fetch_add(bytes, Relaxed);
        Self { all, left: bytes }
    }

    fn pay(&mut self, bytes: u64) {
        self.left -= bytes;
        self.all.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.left, Relaxed);
    }
}

fn conflict_only(error: CatalogError) -> Result<(), Refusal> {
    match error {
        CatalogError::Conflict(_) => Ok(()),
        other => Err(catalog_refusal(other)),
    }
}

/// Who keeps what in a group; whether there are whole copies, too, nobody can see by its members.
pub fn layout_of(geometry: Geometry, members: &[NodeId], devices: &BTreeSet<NodeId>) -> Layout {
    let is_device = |piece: usize| members.get(piece).is_some_and(|node| devices.contains(node));
    match () {
        () if is_device(0) => Layout::ParityOnClients,
        () if is_device(geometry.pieces() - 1) => Layout::ParityOnController,
        () => Layout::Clients,
    }
}

impl Controller {
    /// Wait so long that repair moves no more bytes a second than the policy says. A second at a time: it may say something else meanwhile.
    pub(super) async fn keep_pace(&self, bytes: u64) -> Result<(), Refusal> {
        let mut owed = Owed::new(&self.repairs.owed, bytes);
        while owed.left > 0 {
            let Some(limit) = self.common_policy()?.limit else { return Ok(()) };
            let some = owed.left.min(limit);
            let wait = lock(&self.repairs.pace).take(self.repairs.since.elapsed(), some, limit);
            tokio::time::sleep(wait).await;
            owed.pay(some);
        }
        Ok(())
    }

    /// Whether installations that members of this group serve go first. A group that could not lose two more waits for nobody.
    fn must_rest(&self, geometry: Geometry, members: &[NodeId]) -> bool {
        let up = || members.iter().filter(|node| self.fleet.is_heard(**node)).count();
        self.fleet.serve_installers(members) && up() > geometry.data() + 1
    }

    /// Let installations go first: work that took so long is followed by nine times as long without, as long as they are served.
    async fn behind_installers(&self, group: &GroupRecord, took: Duration) {
        let start = Instant::now();
        let most = (took * REPAIR_RESTS).clamp(INSTALLERS_FIRST, INSTALLERS_FIRST_MAX);
        while start.elapsed() < most && self.must_rest(group.geometry, &group.members) {
            // Members that fall silent change the answer, too, and nothing says when.
            tokio::time::sleep(INSTALLERS_ASKED).await;
        }
    }

    /// Make lost fragments anew for ever.
    pub async fn mend_regularly(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            if !self.may_repair() {
                continue;
            }
            if let Err(error) = self.mend_damaged().await {
                tracing::warn!(%error, "lost fragments were not made anew");
            }
        }
    }

    /// Make lost copies anew for ever.
    pub async fn mend_copies_regularly(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            if !self.may_repair() {
                continue;
            }
            if let Err(error) = self.mend_copies().await {
                tracing::warn!(%error, "lost copies were not made anew");
            }
        }
    }

    /// Repair for ever.
    pub async fn repair_regularly(self: Arc<Self>) {
        let slots = Arc::new(Semaphore::new(MOVES_TOGETHER));
        loop {
            let _ = tokio::time::timeout(EVERY, self.repairs.wake.notified()).await;
            if !self.may_repair() {
                continue;
            }
            if let Err(error) = self.repair_once(&slots).await {
                tracing::warn!(%error, "repair failed");
            }
        }
    }

    /// Look after members for ever: who is silent, and who has what it should have.
    pub async fn look_after_regularly(self: Arc<Self>) {
        let mut counted = Instant::now();
        loop {
            tokio::time::sleep(EVERY).await;
            if !self.may_repair() {
                continue;
            }
            let is_minute = counted.elapsed() >= COUNT_EVERY;
            if let Err(error) = self.compare_inventories(is_minute).await {
                tracing::warn!(%error, "inventories were not compared");
            }
            if !is_minute {
                continue;
            }
            counted = Instant::now();
            if let Err(error) = self.audit(self.fleet.up().len().div_ceil(STASHES_AN_AUDIT)).await {
                tracing::warn!(%error, "nobody was audited");
            }
            if let Err(error) = self.pass_on_notes().await {
                tracing::warn!(%error, "clients do not hear what was noted for another controller");
            }
            if let Err(error) = self.count_absence().await {
                tracing::warn!(%error, "absence not counted");
            }
            if let Err(error) = self.count_attendance().await {
                tracing::warn!(%error, "who was up is not noted");
            }
        }
    }

    async fn pass_on_notes(&self) -> Result<(), Refusal> {
        if !self.catalog.has_new_notes().map_err(catalog_refusal)? {
            return Ok(());
        }
        self.committer.change(|change| change.pass_on_notes()).await.map_err(catalog_refusal)
    }

    /// Right after a start nobody has been heard yet, and what this catalog thinks may be out of date.
    pub(super) fn may_repair(&self) -> bool {
        self.check_in_charge().is_ok() && self.knows_who_is_up()
    }

    /// Whether all that are up had time to say so since the start.
    pub(super) fn knows_who_is_up(&self) -> bool {
        self.started.elapsed() >= self.fleet.patience()
    }

    /// Those that are silent while most are heard are counted as away for longer. If most are silent, it is this controller that is cut off,
    /// or the holidays.
    async fn count_absence(&self) -> Result<(), Refusal> {
        let known = self.catalog.nodes().map_err(catalog_refusal)?;
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        if known.iter().filter(|(node, _)| self.fleet.is_heard(*node)).count() * 2 < known.len() {
            return Ok(());
        }
        // A service whose medium is away speaks for nothing that it had.
        let is_heard = |node: NodeId| self.fleet.has_its_medium(node);
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

    /// Free bytes of each stash that is up and that new pieces may go to, mass-storage devices apart.
    ///
    /// # Errors
    /// The catalog's.
    pub fn takers(&self) -> Result<BTreeMap<NodeId, u64>, Refusal> {
        Ok(self.takers_by_kind()?.0)
    }

    /// The same, and free bytes of each mass-storage device that is up and that new pieces may go to.
    ///
    /// # Errors
    /// The catalog's.
    pub fn takers_by_kind(&self) -> Result<(BTreeMap<NodeId, u64>, BTreeMap<NodeId, u64>), Refusal> {
        let devices = self.catalog.devices().map_err(catalog_refusal)?;
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        let may_take = |node: &NodeId| standings.get(node).is_none_or(Standing::may_take);
        let takers = self.fleet.up_with_room().into_iter().filter(|(node, _)| may_take(node));
        Ok(takers.partition(|(node, _)| !devices.contains(node)))
    }

    /// The facts that decisions are made from.
    pub(super) fn repair_facts(&self) -> Result<(BTreeMap<NodeId, Seen>, BTreeMap<GroupId, Whole>), Refusal> {
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        let habits = self.habits.attendance();
        let (up, devices) = (self.fleet.up(), self.catalog.devices().map_err(catalog_refusal)?);
        let mut nodes: BTreeMap<NodeId, Seen> = BTreeMap::new();
        for (node, _) in self.catalog.nodes().map_err(catalog_refusal)? {
            let standing = standings.get(&node).cloned().unwrap_or_default();
            // What a member said long ago is not what it wants now.
            let pulse = self.fleet.pulse(node).map(|(pulse, _)| pulse).filter(|_| self.fleet.is_heard(node));
            let too_much = pulse.map_or(0, |pulse| pulse.too_much);
            let seen = Seen {
                is_up: up.contains_key(&node),
                silent_s: if self.fleet.has_its_medium(node) { 0 } else { standing.silent_s },
                capacity: pulse.map_or(0, |pulse| pulse.capacity),
                free: up.get(&node).copied().filter(|_| !self.repairs.is_avoided(node)).unwrap_or(0),
                too_much,
                is_urgent: pulse.is_some_and(|pulse| pulse.is_urgent),
                is_clearing: too_much > 0 && self.catalog.has_trash(node).map_err(catalog_refusal)?,
                is_unsteady: !habits.class(node).is_steady(),
                is_new: habits.class(node) == Class::New,
                is_device: devices.contains(&node),
                standing,
            };
            nodes.insert(node, seen);
        }
        let mut all_vacant: BTreeMap<GroupId, BTreeSet<u8>> = BTreeMap::new();
        for (group, piece) in self.catalog.vacant().map_err(catalog_refusal)? {
            all_vacant.entry(group).or_default().insert(piece);
        }
        let (mut groups, mut steady_of, readable) = (BTreeMap::new(), BTreeMap::new(), self.restripes.readable());
        let mut totals = self.catalog.group_totals().map_err(catalog_refusal)?;
        for (id, group) in self.catalog.groups().map_err(catalog_refusal)?.into_iter().filter(|(_, g)| g.segments > 0) {
            let vacant = all_vacant.remove(&id).unwrap_or_default();
            let (geometry, segments) = (group.geometry, group.segments);
            let layout = layout_of(geometry, &group.members, &devices);
            let readable = readable.get(&id).copied();
            let steady = match steady_of.entry((geometry, layout, readable)) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => *new.insert(self.steady_members(geometry, layout, readable)?),
            };
            let totals = totals.remove(&id).unwrap_or_default();
            let (bytes, is_copied) = (totals.at_one(geometry, segments), totals.copies >= segments);
            groups.insert(id, Whole { geometry, members: group.members, vacant, bytes, steady, is_copied });
        }
        Ok((nodes, groups))
    }

    pub(super) fn repair_policy(&self) -> Result<Policy, Refusal> {
        let is_open = self.is_open()?;
        Ok(Policy {
            gone_after_s: self.settings.gone_after_s,
            together: PLANNED_TOGETHER,
            is_open,
            better_together: BETTER_TOGETHER,
        })
    }

    async fn repair_once(self: &Arc<Self>, slots: &Arc<Semaphore>) -> Result<(), Refusal> {
        // First what is under way: a move that ends in between looks unfinished, not undone.
        let under_way = self.catalog.moves().map_err(catalog_refusal)?;
        let (nodes, groups) = self.repair_facts()?;
        let policy = self.repair_policy()?;
        let mut plan = {
            let domains = self.habits.domains();
            repair::plan(&policy, &nodes, &groups, &under_way, &domains, unix_s())
        };
        for task in self.repairs.tasks_of(&under_way) {
            if task.is_hopeless() {
                let wait = if task.is_full() { FULL_FOR } else { GIVE_UP_AFTER };
                lock(&self.repairs.avoided).insert(task.record.to, Instant::now() + wait);
                plan.give_up.push(task.seat);
            }
        }
        for seat in plan.give_up {
            tracing::info!(group = seat.0.0, piece = seat.1, "the new holder of a piece is not to have it any more");
            let given_up = self.committer.change(move |change| change.give_up_move(seat));
            given_up.await.map_err(catalog_refusal)?;
        }
        let mut is_trash = false;
        for (seat, node) in plan.vacate {
            if !self.others_prove(seat).await? {
                tracing::warn!(group = seat.0.0, piece = seat.1, %node, "a piece is not dropped: others did not prove theirs");
                continue;
            }
            tracing::info!(group = seat.0.0, piece = seat.1, %node, "a holder may drop its piece: its disk is full, and others can do without");
            let vacated = self.committer.change(move |change| change.vacate(seat, node));
            vacated.await.or_else(conflict_only)?;
            self.fleet.gave(node, groups.get(&seat.0).map_or(0, |g| g.bytes));
            is_trash = true;
        }
        for (seat, record, why) in plan.begin {
            tracing::info!(group = seat.0.0, piece = seat.1, from = %record.from, to = %record.to, %why, "a holder is replaced");
            let begun = self.committer.change(move |change| change.begin_move(seat, &record));
            begun.await.or_else(conflict_only)?;
        }
        for (seat, node, _) in &plan.stuck {
            let (seat, whole) = (*seat, groups.get(&seat.0));
            let is_vacant = whole.is_some_and(|g| g.vacant.contains(&seat.1));
            let has_room = |n: &Seen| n.is_up && n.standing.may_take() && n.too_much == 0 && !n.is_clearing;
            let fits = |n: &&Seen| has_room(n) && n.free > whole.map_or(0, |g| g.bytes);
            if is_vacant && nodes.get(node).filter(fits).is_some() {
                tracing::info!(group = seat.0.0, piece = seat.1, %node, "a holder has room for its piece again");
                let occupied = self.committer.change(move |change| change.occupy(seat));
                occupied.await.map_err(catalog_refusal)?;
            }
        }
        *lock(&self.repairs.stuck) = plan.stuck;
        *lock(&self.repairs.put_off) = plan.put_off;
        let margin = |group: &Whole| repair::margin(group, &nodes, &policy);
        self.start_moves(slots, &groups, margin)?;
        self.let_go().await?;
        if is_trash {
            self.empty_trash().await;
        }
        Ok(())
    }

    /// Whether of every segment of a group more than k others prove that they have their pieces. What was thought of them may be wrong, and
    /// what is dropped is gone.
    async fn others_prove(&self, seat: Seat) -> Result<bool, Refusal> {
        let Some(group) = self.catalog.group(seat.0).map_err(catalog_refusal)? else { return Ok(false) };
        let vacant = self.catalog.vacant().map_err(catalog_refusal)?;
        let others: Vec<u8> = (0..group.members.len() as u8)
            .filter(|piece| *piece != seat.1 && !vacant.contains(&(seat.0, *piece)))
            .collect();
        for id in self.catalog.segments_of(seat.0).map_err(catalog_refusal)? {
            let Some(record) = self.catalog.segment(&id).map_err(catalog_refusal)? else { continue };
            let proofs = others.iter().map(|piece| {
                let holder = group.members[usize::from(*piece)];
                let (record, group) = (&record, &group);
                async move { (*piece, holder, self.prove(id, record, *piece, holder, group).await) }
            });
            let mut proven = 0;
            for (piece, holder, proof) in futures_util::future::join_all(proofs).await {
                match proof {
                    Ok(()) => proven += 1,
                    Err(what) if what.is_loss() => self.note_damage(id, piece, holder).await,
                    Err(_) => {}
                }
            }
            if proven <= group.geometry.data() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Members that are up, and that what they hold counts of.
    fn there(&self) -> Result<BTreeSet<NodeId>, Refusal> {
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        let counts = |node: &NodeId| standings.get(node).is_none_or(Standing::is_durable);
        Ok(self.fleet.up().into_keys().filter(counts).collect())
    }

    /// Carry on moves: of groups, as they were when this pass began, that can lose the fewest pieces first, then those that were not tried for
    /// longest. What did not go well keeps nobody waiting.
    fn start_moves(
        self: &Arc<Self>,
        slots: &Arc<Semaphore>,
        groups: &BTreeMap<GroupId, Whole>,
        margin: impl Fn(&Whole) -> usize,
    ) -> Result<(), Refusal> {
        let under_way = self.catalog.moves().map_err(catalog_refusal)?;
        let there = self.there()?;
        let waits = |task: &Task| repair::waits(task.seat, &task.record, &under_way, |node| there.contains(&node));
        let rests = |task: &Task| groups.get(&task.seat.0).is_some_and(|g| self.must_rest(g.geometry, &g.members));
        let mut tasks = self.repairs.tasks_of(&under_way);
        let mut resting = tasks.iter().filter(|task| task.is_running() && rests(task)).count();
        let up = |task: &Task| -> Vec<NodeId> {
            let members = groups.get(&task.seat.0).map_or(&[][..], |group| &group.members);
            members.iter().copied().filter(|node| there.contains(node)).collect()
        };
        tasks.retain(|task| task.may_start(&up(task)) && !waits(task));
        let urgency = |task: &Task| match groups.get(&task.seat.0) {
            Some(group) if task.has_problem() => group.geometry.parity(),
            Some(group) => margin(group),
            None => usize::MAX,
        };
        tasks.sort_by_cached_key(|task| (urgency(task), task.tried(), task.seat));
        for task in tasks {
            if rests(&task) {
                if resting >= RESTING_TOGETHER {
                    continue;
                }
                resting += 1;
            }
            let Ok(slot) = slots.clone().try_acquire_owned() else { break };
            let (running, up) = (task.start(), up(&task));
            let controller = self.clone();
            tokio::spawn(async move {
                let done = controller.carry_out(&running.0).await;
                drop(slot);
                running.0.ended(done.as_ref().err(), up);
                drop(running);
                if done.is_ok() {
                    // Who gave it away is not asked for more before that is gone.
                    controller.empty_trash().await;
                }
                controller.repairs.wake.notify_one();
            });
        }
        Ok(())
    }

    /// Fragments that a member must still hold: nobody else holds them for the array yet.
    ///
    /// # Errors
    /// The catalog's.
    pub fn to_hand_over(&self, node: NodeId) -> Result<u64, Refusal> {
        Ok(self.catalog.folds().map_err(catalog_refusal)?.get(&node).map_or(0, |(count, _)| *count))
    }

    /// Members that leave, and that nobody needs any more, are members no longer.
    async fn let_go(&self) -> Result<(), Refusal> {
        let standings = self.catalog.standings().map_err(catalog_refusal)?;
        for (node, _) in standings.into_iter().filter(|(_, s)| s.leaving || s.removed) {
            if self.catalog.node(node).map_err(catalog_refusal)?.is_some() && !self.is_needed(node)? {
                // One that cannot go yet keeps nobody else.
                if let Err(why) = self.remove_member(node).await {
                    tracing::info!(%node, %why, "a stash that leaves is kept for now");
                }
            }
        }
        Ok(())
    }

    /// Whether a member has a seat in a group, or makes pieces for one.
    fn is_needed(&self, node: NodeId) -> Result<bool, Refusal> {
        let groups = self.catalog.groups().map_err(catalog_refusal)?;
        let moves = self.catalog.moves().map_err(catalog_refusal)?;
        let sits = groups.values().any(|g| g.segments > 0 && g.members.contains(&node));
        Ok(sits || moves.values().any(|m| m.to == node || m.via == Some(node)))
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
            let offline = self.split_key_again(image.manifest, &image.key, geometry).await?;
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
        self.look_at_labels()
    }
}
