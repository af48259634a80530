//! Months of an array: the planner of repair, the catalog and placement, while stashes sleep, fill up, lie, rot, are wiped, carried away and
//! installed anew, images come and go, and the controller restarts.
//!
//! Stashes and the network are simulated; what is decided and remembered is the product's. The world harms a segment only as long as k of its
//! pieces stay good where the catalog says that they are. So whatever falls below that, the array did itself.

mod fleet;
mod known;
mod repair;
mod restripe;

use std::collections::{BTreeMap, BTreeSet};

use controller::catalog::{MoveRecord, NewSegment, NodeRecord, PendingRecord, Seat, SegmentRecord, TrashKey};
use controller::domains::{Domains, Labels};
use controller::placement::{
    Candidate, Members, Outcome, Placement, Protection, Wanted, choose, groups_wanted, least_used,
};
use images::keys::SegmentKey;
use images::manifest::ImageName;
use images::{ChunkId, FragmentDigest, GroupId, NodeId, SegmentId};
use protocol::identity::Role;

use super::Rng;
use super::run::Failure;
use fleet::Stash;
use known::{Known, catalog_fails};

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(Failure(format!($($text)*)));
        }
    };
}

/// Stashes at the start.
const STASHES: u64 = 60;
/// Days that things happen in.
const DAYS: u64 = 60;
const STEP_S: u64 = 3600;
const STEPS_A_DAY: u64 = 24;
/// Hours between two proofs of everything at the end.
const PROVE_EVERY: u64 = 6;
/// What is lost stays lost: it need not be looked for every hour.
const CHECK_EVERY: u64 = 3;
/// Different segments that images are made of: they are shared, deleted, and come back.
const CONTENTS: u64 = 40;
/// Steps that the array has to get everything right, once nothing happens any more.
const SETTLES_WITHIN: u64 = 600;

/// What a seed met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArrayStats {
    /// Hours that passed.
    pub hours: u64,
    /// What was done to the array, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Images published, and removed.
    pub images: u64,
    /// Segments that became durable.
    pub segments: u64,
    /// Holders that were replaced.
    pub moved: u64,
    /// Moves that were given up.
    pub given_up: u64,
    /// Fragments that were made anew where they were lost.
    pub mended: u64,
    /// Pieces that a full stash was allowed to drop.
    pub vacated: u64,
    /// Fragments deleted.
    pub deleted: u64,
    /// Holders that were caught.
    pub distrusted: u64,
    /// Images that were cut anew.
    pub restriped: u64,
}

impl ArrayStats {
    /// Add another seed's.
    pub fn add(&mut self, other: &Self) {
        self.hours += other.hours;
        self.images += other.images;
        self.segments += other.segments;
        self.moved += other.moved;
        self.given_up += other.given_up;
        self.mended += other.mended;
        self.vacated += other.vacated;
        self.deleted += other.deleted;
        self.distrusted += other.distrusted;
        self.restriped += other.restriped;
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }
}

struct World {
    rng: Rng,
    log: bool,
    stats: ArrayStats,
    catalog: Known,
    step: u64,
    stashes: BTreeMap<NodeId, Stash>,
    next_node: u64,
    domains: Domains,
    protection: Protection,
    published: BTreeMap<ImageName, Vec<SegmentId>>,
    next_image: u64,
    next_manifest: u64,
    retired: Vec<restripe::Retired>,
    /// Of what contents segments are made, and which edition they are.
    editions: BTreeMap<SegmentId, (ChunkId, u8)>,
    /// What this start of the controller knows of moves: segments that their new holders have.
    progress: BTreeMap<Seat, (MoveRecord, BTreeSet<SegmentId>)>,
    /// Members that had no room, and until when they are not chosen.
    avoided: BTreeMap<NodeId, u64>,
    put_off: usize,
    stuck: usize,
    is_settling: bool,
}

/// Run a seed. With `log`, every event is printed.
///
/// # Errors
/// [`Failure`] names the invariant that did not hold.
pub fn run(seed: u64, log: bool) -> Result<ArrayStats, Failure> {
    let mut world = World::new(seed, log)?;
    for _ in 0..DAYS * STEPS_A_DAY {
        world.harm()?;
        world.hour()?;
    }
    world.settle()?;
    Ok(world.stats)
}

impl World {
    fn new(seed: u64, log: bool) -> Result<Self, Failure> {
        let mut rng = Rng::new(seed ^ 0x4152_5241);
        let catalog = Known::new()?;
        let protection = restripe::any_protection(&mut rng);
        let mut world = Self {
            rng,
            log,
            stats: ArrayStats::default(),
            catalog,
            step: 0,
            stashes: BTreeMap::new(),
            next_node: 1,
            domains: Domains::default(),
            protection,
            published: BTreeMap::new(),
            next_image: 1,
            next_manifest: 0,
            retired: Vec::new(),
            editions: BTreeMap::new(),
            progress: BTreeMap::new(),
            avoided: BTreeMap::new(),
            put_off: 0,
            stuck: 0,
            is_settling: false,
        };
        for _ in 0..STASHES {
            world.join(None)?;
        }
        for _ in 0..2 {
            let device = world.join(None)?;
            world.catalog.change(|change| change.set_device(device, true))?;
            let stash = world.stashes.get_mut(&device).expect("it joined");
            (stash.habit, stash.capacity) = (fleet::Habit::Always, 1 << 20);
        }
        world.relabel()?;
        world.say(|| format!("{}, {}", protection.geometry, protection.layout));
        Ok(world)
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.log {
            println!("day {:>3} {:>2}:00  {}", self.step / STEPS_A_DAY, self.step % STEPS_A_DAY, text());
        }
    }

    /// An hour of the array's own work.
    fn hour(&mut self) -> Result<(), Failure> {
        self.wake_and_sleep();
        self.heartbeats()?;
        if self.rng.one_in(30) && !self.is_settling {
            self.publish()?;
        }
        if self.rng.one_in(60) && !self.is_settling {
            self.remove_image()?;
        }
        if self.rng.one_in(24 * 10) && !self.is_settling {
            self.change_policy();
        }
        if self.rng.one_in(4) {
            self.restripe()?;
        }
        self.forget_retired()?;
        self.audit()?;
        self.compare_inventories()?;
        self.mend()?;
        self.repair()?;
        self.sweep()?;
        if self.step.is_multiple_of(CHECK_EVERY) {
            self.check()?;
        }
        self.step += 1;
        self.stats.hours += 1;
        Ok(())
    }

    /// Publish an image of some contents. Those that are there already are shared.
    fn publish(&mut self) -> Result<(), Failure> {
        let count = 1 + self.rng.below(6);
        let numbers: BTreeSet<u64> = (0..count).map(|_| self.rng.below(CONTENTS)).collect();
        let mut wanted = BTreeSet::new();
        for number in numbers {
            let Some(id) = self.segment_for(number)? else {
                self.say(|| "a publication finds too few stashes, or is interrupted".into());
                return Ok(());
            };
            wanted.insert(id);
        }
        let number = self.next_image;
        self.next_image += 1;
        let name: ImageName = format!("image:{number}").parse().expect("a name");
        let record = self.record();
        self.catalog.change(|change| {
            wanted.iter().try_for_each(|id| change.refer(id).map(drop))?;
            change.put_image(&name, &record)
        })?;
        self.say(|| format!("{name} is published, {} segments", wanted.len()));
        self.published.insert(name, wanted.into_iter().collect());
        self.stats.images += 1;
        Ok(())
    }

    /// Make a segment durable; or not, if there are too few stashes, or the controller crashes in the middle.
    fn place(&mut self, id: SegmentId, chunk: ChunkId) -> Result<bool, Failure> {
        let Protection { geometry, layout, steady } = self.protection;
        let sealed_len = 500 + u32::from(id.0[0]) * 8;
        let piece_len = geometry.piece_len(sealed_len as usize) as u64;
        let trash = self.catalog.trash()?;
        let is_to_be_deleted = |node: NodeId| {
            trash
                .iter()
                .any(|key| matches!(key, TrashKey::Fragment { node: at, segment, .. } if *at == node && *segment == id))
        };
        let (mut clients, mut devices) = (BTreeMap::new(), BTreeMap::new());
        for (node, free) in self.takers()?.into_iter().filter(|(node, _)| !is_to_be_deleted(*node)) {
            if self.is_device(node)? {
                devices.insert(node, free)
            } else {
                clients.insert(node, free)
            };
        }
        let groups = self.catalog.groups()?;
        let usable = clients.iter().chain(&devices).map(|(node, free)| (*node, *free)).collect();
        let on_clients = layout.on_clients(geometry);
        let fitting = || groups.iter().filter(|(_, g)| self.protection.fits(g.geometry, &g.members, &devices));
        let known = fitting().count() >= groups_wanted(clients.len(), on_clients);
        let fitting_now = fitting().map(|(id, g)| (*id, g.members.as_slice(), g.segments));
        let group = least_used(fitting_now, &usable, piece_len).first().map(|(id, _)| *id);
        let candidates = clients.iter().map(|(node, free)| Candidate {
            node: *node,
            free: *free,
            groups: groups.values().filter(|g| g.members.contains(node)).count() as u32,
            is_steady: self.stashes[node].habit.is_steady(),
            is_badly_reached: false,
            domains: self.domains.of(*node),
        });
        let wanted = Wanted { geometry, pieces: on_clients, steady, domains: &self.domains };
        let mut ranked = choose(candidates.collect(), piece_len, &wanted);
        let devices: Vec<NodeId> = devices.into_keys().collect();
        let first = match group.filter(|_| known) {
            Some(id) => Some(groups[&id].members.clone()),
            None => self.protection.members(&ranked, &devices),
        };
        let Some(first) = first else { return Ok(false) };
        ranked.retain(|node| !first.contains(node));
        let mut placement = Placement::new(&Members { first, spares: ranked, devices }, std::time::Duration::ZERO);
        loop {
            let sends: Vec<_> = std::iter::from_fn(|| placement.poll_send()).collect();
            if sends.is_empty() {
                break;
            }
            let sent = sends.iter().map(|send| (send.piece, send.node)).collect();
            self.catalog.change(|change| change.put_pending(id, &PendingRecord { sent, copy: false }))?;
            for send in sends {
                let is_trouble = self.rng.one_in(20);
                let stash = self.stashes.get_mut(&send.node).expect("a member");
                // What it took although its answer got lost lies there, and is nobody's.
                let stored = stash.put(id, send.piece, piece_len);
                if stored && !is_trouble {
                    placement.confirmed(send);
                } else {
                    placement.failed(send, std::time::Duration::ZERO);
                }
            }
        }
        let Outcome::Durable(holders) = placement.outcome() else { return Ok(false) };
        if self.rng.one_in(15) {
            return Ok(false);
        }
        let record = SegmentRecord {
            sealed_len,
            data_len: sealed_len,
            key: SegmentKey([0; 32]),
            group: GroupId(0),
            fragments: vec![FragmentDigest([0; 32]); geometry.pieces()],
            on_mass_storage: false,
            references: 0,
            stored_unix_s: 0,
        };
        let new = NewSegment { id, record, chunks: vec![(chunk, sealed_len)], geometry, holders };
        let is_stored = self.catalog.try_change(|change| change.put_segment(&new))?;
        self.stats.segments += u64::from(is_stored);
        Ok(is_stored)
    }

    fn remove_image(&mut self) -> Result<(), Failure> {
        let at = self.rng.below(self.published.len() as u64) as usize;
        let Some(name) = self.published.keys().nth(at).cloned() else { return Ok(()) };
        let segments = self.published.remove(&name).unwrap_or_default();
        self.say(|| format!("{name} is removed"));
        self.catalog.change(|change| change.remove_image(&name, &segments))
    }

    /// What no image refers to and what never became durable goes; what is trash is deleted at those that are up.
    fn sweep(&mut self) -> Result<(), Failure> {
        let pending = self.catalog.pending()?;
        let segments = self.catalog.segments()?;
        let unused: Vec<SegmentId> =
            segments.iter().filter(|(_, record)| record.references == 0).map(|(id, _)| *id).collect();
        if !pending.is_empty() || !unused.is_empty() {
            for (_, has) in self.progress.values_mut() {
                has.retain(|id| !unused.contains(id));
            }
            self.catalog.change(|change| {
                pending.iter().try_for_each(|(id, _)| change.abandon(id))?;
                unused.iter().try_for_each(|id| change.reclaim(id).map(drop))
            })?;
        }
        let mut gone = Vec::new();
        for key in self.catalog.trash()?.iter() {
            let TrashKey::Fragment { node, segment, piece } = *key else { continue };
            if !self.is_up(node) || self.rng.one_in(10) {
                continue;
            }
            // The first of all invariants.
            ensure!(
                self.holder(&segment, piece)? != Some(node),
                "piece {piece} of {segment} is deleted at {node}, its holder"
            );
            if let Some(stash) = self.stashes.get_mut(&node) {
                self.stats.deleted += u64::from(stash.delete(segment, piece));
            }
            gone.push(*key);
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.catalog.change(|change| gone.iter().try_for_each(|key| change.remove_trash(key)))
    }

    /// Who holds a piece, by the catalog; nobody if its holder was allowed to drop it.
    fn holder(&self, segment: &SegmentId, piece: u8) -> Result<Option<NodeId>, Failure> {
        let Some(record) = self.catalog.segment(segment)? else { return Ok(None) };
        if self.catalog.vacant()?.contains(&(record.group, piece)) {
            return Ok(None);
        }
        let group = self.catalog.group(record.group)?;
        Ok(group.and_then(|g| g.members.get(usize::from(piece)).copied()))
    }

    /// Of each segment, how many pieces are good where the catalog says that they are, beside those that `is_hit` takes away. One that a new
    /// holder says that it has must be good there, too: the one before may drop it at any moment.
    fn least_good(
        &self,
        is_hit: impl Fn(NodeId, SegmentId, u8) -> bool,
    ) -> Result<Option<(SegmentId, usize, usize)>, Failure> {
        let groups = self.catalog.groups()?;
        let vacant = self.catalog.vacant()?;
        let mut least: Option<(SegmentId, usize, usize)> = None;
        for (&id, record) in self.catalog.segments()?.iter() {
            let group = &groups[&record.group];
            let is_good = |(piece, node): &(usize, &NodeId)| {
                let piece = *piece as u8;
                let has = self.stashes.get(node).is_some_and(|stash| stash.has_good(id, piece));
                let next = self.progress.get(&(record.group, piece)).filter(|(_, claimed)| claimed.contains(&id));
                let is_good_next = next.is_none_or(|(made, _)| {
                    let has = self.stashes.get(&made.to).is_some_and(|stash| stash.has_good(id, piece));
                    has && !is_hit(made.to, id, piece)
                });
                has && is_good_next && !vacant.contains(&(record.group, piece)) && !is_hit(**node, id, piece)
            };
            let good = group.members.iter().enumerate().filter(is_good).count();
            let k = group.geometry.data();
            let spare = |good: usize, k: usize| good as i64 - k as i64;
            if least.is_none_or(|(_, of, needed)| spare(good, k) < spare(of, needed)) {
                least = Some((id, good, k));
            }
        }
        Ok(least)
    }

    fn check(&self) -> Result<(), Failure> {
        if let Some((id, good, k)) = self.least_good(|_, _, _| false)? {
            ensure!(
                good >= k,
                "of {id} only {good} of {k} pieces are left, and nothing that happened to it explains that"
            );
        }
        self.check_references()
    }

    /// Nothing happens any more, and everybody comes back who can: then everything gets right, and everywhere is what should be there.
    fn settle(&mut self) -> Result<(), Failure> {
        self.is_settling = true;
        self.calm_down()?;
        for hour in 0..SETTLES_WITHIN {
            self.hour()?;
            if self.is_green()? || hour % PROVE_EVERY == 0 {
                self.prove_everything()?;
            }
            if self.is_green()? && self.is_all_cut_so()? {
                return self.check_inventory();
            }
        }
        Err(Failure(format!(
            "it does not get right: {} moves, {} damaged, {} to delete, {} stuck, {} put off, {} vacant",
            self.catalog.moves()?.len(),
            self.catalog.damaged()?.len(),
            self.catalog.trash()?.len(),
            self.stuck,
            self.put_off,
            self.catalog.vacant()?.len(),
        )))
    }

    fn is_green(&self) -> Result<bool, Failure> {
        let is_quiet = self.catalog.moves()?.is_empty()
            && self.catalog.damaged()?.is_empty()
            && self.catalog.vacant()?.is_empty()
            && self.catalog.pending()?.is_empty();
        let trash = self.catalog.trash()?;
        let waits =
            trash.iter().any(|key| matches!(key, TrashKey::Fragment { node, .. } if self.stashes.contains_key(node)));
        Ok(is_quiet && !waits && self.stuck == 0 && self.put_off == 0)
    }

    /// Each honest stash has exactly what the catalog says.
    fn check_inventory(&self) -> Result<(), Failure> {
        let groups = self.catalog.groups()?;
        let mut should: BTreeMap<NodeId, BTreeSet<(SegmentId, u8)>> = BTreeMap::new();
        for (&id, record) in self.catalog.segments()?.iter() {
            for (piece, node) in groups[&record.group].members.iter().enumerate() {
                should.entry(*node).or_default().insert((id, piece as u8));
            }
        }
        for (node, stash) in &self.stashes {
            let should = should.remove(node).unwrap_or_default();
            let has: BTreeSet<(SegmentId, u8)> = stash.has.keys().copied().collect();
            let (missing, orphans) = (should.difference(&has).count(), has.difference(&should).count());
            let orphans = if stash.lies { 0 } else { orphans };
            ensure!(missing + orphans == 0, "{node} lacks {missing} fragments, and has {orphans} that nobody needs");
        }
        ensure!(should.is_empty(), "some holders are not there: {:?}", should.keys());
        Ok(())
    }

    fn relabel(&mut self) -> Result<(), Failure> {
        let labels = self
            .stashes
            .iter()
            .map(|(node, stash)| (*node, Labels::from([("rack".to_string(), format!("{}", stash.rack))])));
        self.domains = Domains::new(&labels.collect(), self.catalog.devices()?.as_ref());
        Ok(())
    }

    /// A stash joins; one of a machine that was installed anew takes the place of the one before.
    fn join(&mut self, host: Option<u32>) -> Result<NodeId, Failure> {
        let number = self.next_node;
        self.next_node += 1;
        let node = NodeId(blake3::hash(&number.to_le_bytes()).as_bytes()[..16].try_into().expect("16 bytes"));
        let host_number = host.unwrap_or(number as u32);
        let stash = Stash::new(host_number, &mut self.rng);
        let capacity = stash.capacity;
        self.stashes.insert(node, stash);
        let heard: BTreeSet<NodeId> =
            self.stashes.keys().copied().filter(|other| *other != node && self.is_up(*other)).collect();
        self.catalog.change(|change| {
            let record = NodeRecord { role: Role::Stash, addresses: Vec::new(), capacity, joined_unix_s: 0 };
            change.put_node(node, &record)?;
            change.change_standing(node, |standing| *standing = Default::default())?;
            change.succeed(node, host_number, |other| heard.contains(&other)).map(drop)
        })?;
        self.relabel()?;
        Ok(node)
    }
}
