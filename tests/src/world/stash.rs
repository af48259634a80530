//! One stash on a disk that crashes at every boundary and fails in every way.
//!
//! A workload of puts, deletions, grants, growing and shrinking runs on regions of 64 KiB. Before each write, sync, reservation and
//! truncation the disk is copied; each copy loses power, keeping an arbitrary subset of what was not synced, torn at 512 bytes,
//! is opened, and loses power again at each boundary of that. Then the same workload runs once for each kind of fault.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use client_stash::format::Content;
use client_stash::limits::{FILE_HEAD_LEN, REGIONS_MIN};
use client_stash::storage::{Fault, SimDisk, Storage as _};
use client_stash::store::{Reader, Shrinking, Store, StoreError};
use images::fragment::{FragmentHeader, FragmentId, split};
use images::parity::{Codec, Geometry};
use images::{ArrayId, NodeId, SegmentId};
use protocol::message::store::{OWNER_IMAGES, Owner};

use super::Rng;
use super::run::Failure;

const ARRAY: ArrayId = ArrayId([1; 32]);
const NODE: NodeId = NodeId([2; 16]);
const OTHER: Owner = Owner(7);
const REGION: u64 = 64 * 1024;

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(Failure(format!($($text)*)));
        }
    };
}

/// What seeds of a stash met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StashStats {
    /// Operations carried out.
    pub operations: u64,
    /// Fragments acknowledged, and deletions.
    pub acknowledged: u64,
    /// Refused for want of space.
    pub full: u64,
    /// The file was made larger, and smaller.
    pub resized: u64,
    /// Boundaries at which power was lost, and those of the recovery after it.
    pub boundaries: u64,
    /// See `boundaries`.
    pub second: u64,
    /// Faults that happened, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Fragments that a fault made unreadable: found, and reported.
    pub lost: u64,
    /// Bytes of dead records that the medium had back while nothing failed.
    pub given_back: u64,
}

impl StashStats {
    /// Add those of another seed.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.acknowledged += other.acknowledged;
        self.full += other.full;
        self.resized += other.resized;
        self.boundaries += other.boundaries;
        self.second += other.second;
        self.lost += other.lost;
        self.given_back += other.given_back;
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }
}

/// One fragment in two geometries: the same id, different bytes.
struct Piece {
    owner: Owner,
    versions: [(FragmentHeader, Bytes); 2],
}

#[derive(Clone, Debug)]
enum Op {
    Put(Vec<(usize, usize)>),
    Delete(Vec<usize>),
    Reserve(u32),
    Grow(u32),
    Shrink(u32),
    ShrinkSome,
    Reopen,
}

/// Version of a fragment that is there, or none.
type State = Option<usize>;
/// What may be there.
type Allowed = BTreeMap<usize, BTreeSet<State>>;

/// How exactly the outcome of a fault is known.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// What was acknowledged is there.
    Exact,
    /// Wrong bytes are never given, and what is lost is reported or missing from the inventory.
    NeverWrong,
}

struct Run<'a> {
    pool: &'a [Piece],
    disk: Arc<SimDisk>,
    store: Option<Store<Arc<SimDisk>>>,
    allowed: Allowed,
    /// What was acknowledged last.
    last: BTreeMap<usize, State>,
    stats: StashStats,
    rng: Rng,
    log: bool,
    rule: Rule,
    /// Whether the disk fails at all.
    is_faulty: bool,
}

/// A read that the medium refuses once is tried again.
fn get(reader: &Reader<Arc<SimDisk>>, id: FragmentId) -> Result<(FragmentHeader, Bytes), StoreError> {
    match reader.get(id) {
        Err(StoreError::Io(_)) => reader.get(id),
        result => result,
    }
}

fn pool(rng: &mut Rng) -> Vec<Piece> {
    let piece = |i: usize| {
        let len = if rng.one_in(4) { 1 + rng.below(200) } else { 1 + rng.below(14_000) };
        let sealed = Bytes::from(rng.bytes(len as usize));
        let id = SegmentId::of(&sealed);
        let of = |k, m| split(&Codec::new(Geometry::new(k, m).expect("a geometry")), id, &sealed).remove(0);
        Piece { owner: if i.is_multiple_of(4) { OTHER } else { OWNER_IMAGES }, versions: [of(1, 0), of(2, 1)] }
    };
    (0..28).map(piece).collect()
}

fn workload(rng: &mut Rng, pool: usize) -> Vec<Op> {
    let some = |rng: &mut Rng| (0..1 + rng.below(5)).map(|_| rng.below(pool as u64) as usize).collect::<Vec<_>>();
    (0..24 + rng.below(24))
        .map(|_| match rng.below(20) {
            0..10 => {
                let versions = |i: usize, rng: &mut Rng| (i, usize::from(rng.one_in(4)));
                Op::Put(some(rng).into_iter().map(|i| versions(i, rng)).collect())
            }
            10..14 => Op::Delete(some(rng)),
            14 => Op::Reserve(rng.below(3) as u32),
            15 => Op::Grow(3 + rng.below(8) as u32),
            16 => Op::Shrink(2 + rng.below(5) as u32),
            17 | 18 => Op::ShrinkSome,
            _ => Op::Reopen,
        })
        .collect()
}

/// What a seed does, and to what.
struct Plan {
    pool: Vec<Piece>,
    operations: Vec<Op>,
    regions: u32,
    rng: Rng,
    log: bool,
}

impl Plan {
    fn new(seed: u64, log: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0x5354_4153);
        let pool = pool(&mut rng);
        let operations = workload(&mut rng, pool.len());
        Self { regions: REGIONS_MIN + rng.below(6) as u32, pool, operations, rng, log }
    }

    fn start(&mut self, rule: Rule) -> Result<Run<'_>, Failure> {
        Run::new(&self.pool, self.regions, Rng::new(self.rng.below(u64::MAX)), self.log, rule)
    }

    /// With power lost at each boundary.
    fn with_crashes(&mut self) -> Result<StashStats, Failure> {
        let operations = self.operations.clone();
        let mut run = self.start(Rule::Exact)?;
        run.disk.record_boundaries();
        operations.iter().try_for_each(|op| run.step_with_crashes(op))?;
        Ok(run.stats)
    }

    /// Without faults. The answer is the disk as it was at first, and at the end.
    fn without_faults(&mut self) -> Result<(SimDisk, Arc<SimDisk>), Failure> {
        let operations = self.operations.clone();
        let mut run = self.start(Rule::Exact)?;
        let first = run.disk.copy();
        operations.iter().try_for_each(|op| run.step(op))?;
        Ok((first, run.disk.clone()))
    }

    /// The workload with a fault at one of the calls that it is for, or with what other programs do behind one of the operations.
    fn with_fault(
        &mut self,
        name: &'static str,
        fault: Option<(u64, Fault)>,
        rule: Rule,
    ) -> Result<StashStats, Failure> {
        let operations = self.operations.clone();
        let when = self.rng.below(operations.len() as u64) as usize;
        let mut run = self.start(rule)?;
        run.is_faulty = true;
        run.say(|| format!("--- {name}"));
        if let Some((at, fault)) = fault {
            run.disk.arm(run.disk.calls_for(fault) + at, fault);
        }
        let mut old = run.disk.copy();
        for (i, op) in operations.iter().enumerate() {
            if i == when / 2 {
                run.reopen()?;
                old = run.disk.copy();
            }
            run.step(op)?;
            if rule == Rule::Exact {
                run.check_running().map_err(|f| Failure(format!("{}, while \"{name}\", behind {op:?}", f.0)))?;
            }
            if fault.is_none() && i == when {
                run.spoil(name, &old)?;
            }
        }
        let happened = fault.is_none() || !run.disk.is_armed();
        run.disk.heal();
        run.settle(name)?;
        *run.stats.faults.entry(name).or_default() += u64::from(happened);
        Ok(run.stats)
    }
}

/// Run a seed. With `log`, every operation is printed.
///
/// # Errors
/// [`Failure`] names the invariant that did not hold.
pub fn run(seed: u64, log: bool) -> Result<StashStats, Failure> {
    let mut plan = Plan::new(seed, log);
    let mut stats = plan.with_crashes()?;
    let (first, last) = plan.without_faults()?;
    stats.given_back = last.bytes_given_back();

    let misdirected = Fault::Misdirected(1 + plan.rng.below(40));
    let faults = [
        ("EIO", Some(Fault::Eio), Rule::Exact),
        ("ENOSPC", Some(Fault::NoSpace), Rule::Exact),
        ("sync failed", Some(Fault::SyncFails), Rule::Exact),
        ("sync lied", Some(Fault::SyncLies), Rule::NeverWrong),
        ("misdirected", Some(misdirected), Rule::NeverWrong),
        ("bit flipped", None, Rule::NeverWrong),
        ("region zeroed", None, Rule::NeverWrong),
        ("bad sectors", None, Rule::NeverWrong),
        ("cut off", None, Rule::NeverWrong),
        ("restored", None, Rule::NeverWrong),
    ];
    for (name, fault, rule) in faults {
        let fault = fault.map(|fault| {
            let calls = last.calls_for(fault).saturating_sub(first.calls_for(fault));
            (1 + plan.rng.below(calls.max(1)), fault)
        });
        stats.add(&plan.with_fault(name, fault, rule)?);
    }
    Ok(stats)
}

/// Run a seed's workload once for each call that a medium can let fail: with EIO, ENOSPC, and a sync that fails.
///
/// # Errors
/// As [`run`].
pub fn run_every_call(seed: u64, log: bool) -> Result<StashStats, Failure> {
    let mut plan = Plan::new(seed, log);
    let (first, last) = plan.without_faults()?;
    let mut stats = StashStats::default();
    for (name, fault) in [("EIO", Fault::Eio), ("ENOSPC", Fault::NoSpace), ("sync failed", Fault::SyncFails)] {
        for at in 1..=last.calls_for(fault) - first.calls_for(fault) {
            let done = plan.with_fault(name, Some((at, fault)), Rule::Exact);
            stats.add(&done.map_err(|f| Failure(format!("{}, at call {at}", f.0)))?);
        }
    }
    Ok(stats)
}

impl<'a> Run<'a> {
    fn new(pool: &'a [Piece], regions: u32, rng: Rng, log: bool, rule: Rule) -> Result<Self, Failure> {
        let disk = Arc::new(SimDisk::default());
        let store = Store::create_with(disk.clone(), ARRAY, NODE, regions, REGION);
        let store = Some(store.map_err(|e| Failure(format!("an empty disk: {e}")))?);
        let allowed = (0..pool.len()).map(|i| (i, BTreeSet::from([None]))).collect();
        Ok(Self {
            pool,
            disk,
            store,
            allowed,
            last: BTreeMap::new(),
            stats: StashStats::default(),
            rng,
            log,
            rule,
            is_faulty: false,
        })
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.log {
            println!("{}", text());
        }
    }

    fn open(disk: Arc<SimDisk>) -> Result<Store<Arc<SimDisk>>, Failure> {
        // A medium that fails once is asked again, as a service that is started again does; on a full one somebody makes room first.
        Store::open(disk.clone(), ARRAY, NODE)
            .or_else(|_| {
                disk.heal_space();
                Store::open(disk, ARRAY, NODE)
            })
            .map_err(|e| Failure(format!("the stash does not open: {e}")))
    }

    fn reopen(&mut self) -> Result<(), Failure> {
        self.store = None;
        self.store = Some(Self::open(self.disk.clone())?);
        Ok(())
    }

    /// Note what an operation left: exactly `state` if it was acknowledged, and if it was not, that or what was there before.
    fn note(&mut self, i: usize, state: State, acknowledged: bool) {
        let allowed = self.allowed.entry(i).or_default();
        if acknowledged && self.rule == Rule::Exact {
            allowed.clear();
        }
        allowed.insert(state);
        if acknowledged {
            self.last.insert(i, state);
        } else {
            self.last.remove(&i);
        }
        self.stats.acknowledged += u64::from(acknowledged);
    }

    fn step(&mut self, op: &Op) -> Result<(), Failure> {
        self.stats.operations += 1;
        self.say(|| format!("{op:?}"));
        let is_faulty = self.is_faulty;
        if matches!(op, Op::Reopen) {
            return self.reopen();
        }
        let store = self.store.as_mut().expect("it is open");
        match op {
            Op::Put(items) => {
                let batch = items.iter().map(|&(i, version)| {
                    let (header, payload) = self.pool[i].versions[version].clone();
                    (self.pool[i].owner, header, payload)
                });
                let results = store.put(batch.collect());
                store.examine();
                self.say(|| format!("  {results:?}"));
                for (&(i, version), result) in items.iter().zip(results) {
                    match result {
                        Ok(()) => self.note(i, Some(version), true),
                        Err(StoreError::Full) => {
                            self.stats.full += 1;
                            if is_faulty {
                                self.note(i, Some(version), false);
                            }
                        }
                        Err(StoreError::NoPartition(OTHER)) => {}
                        Err(StoreError::Io(_)) => self.note(i, Some(version), false),
                        Err(other) => return Err(Failure(format!("put says {other}"))),
                    }
                }
            }
            Op::Delete(which) => {
                let ids: Vec<FragmentId> = which.iter().map(|i| self.pool[*i].versions[0].0.id).collect();
                let done = store.delete(&ids);
                store.examine();
                self.say(|| format!("  {done:?}"));
                match &done {
                    Ok(()) => {}
                    Err(StoreError::Io(_) | StoreError::Full) if is_faulty => {}
                    Err(other) => return Err(Failure(format!("delete says {other}"))),
                }
                for i in which {
                    self.note(*i, None, done.is_ok());
                }
            }
            Op::Reserve(regions) => self.may_fail(|store| store.reserve(OTHER, *regions)),
            Op::Grow(regions) => self.may_fail(|store| store.grow(*regions, OWNER_IMAGES)),
            Op::Shrink(regions) => self.may_fail(|store| store.begin_shrink(*regions, OWNER_IMAGES)),
            Op::ShrinkSome => match store.shrink_some(OWNER_IMAGES) {
                Ok(Shrinking::Done) => self.stats.resized += 1,
                Ok(Shrinking::Left(_)) => {}
                Err(StoreError::Full) => store.stop_shrinking(),
                Err(StoreError::Io(_)) if is_faulty => {}
                Err(other) => return Err(Failure(format!("shrinking says {other}"))),
            },
            Op::Reopen => {}
        }
        Ok(())
    }

    /// Grants and sizes may be refused; what is stored is not touched by that.
    fn may_fail(&mut self, work: impl FnOnce(&mut Store<Arc<SimDisk>>) -> Result<(), StoreError>) {
        let done = work(self.store.as_mut().expect("it is open"));
        self.stats.resized += u64::from(done.is_ok());
        self.say(|| format!("  {done:?}"));
    }

    fn step_with_crashes(&mut self, op: &Op) -> Result<(), Failure> {
        let before = self.allowed.clone();
        self.step(op)?;
        let mut during = before;
        for (i, after) in &self.allowed {
            during.entry(*i).or_default().extend(after);
        }
        if let Op::Put(items) = op {
            // Each of them may be there alone, whatever the answer was.
            for (i, version) in items {
                during.entry(*i).or_default().insert(Some(*version));
            }
        }
        for disk in self.disk.take_boundaries() {
            self.stats.boundaries += 1;
            self.crash(disk, &during, true).map_err(|f| Failure(format!("{}, after a crash within {op:?}", f.0)))?;
        }
        let after = self.allowed.clone();
        self.crash(self.disk.copy(), &after, true)
            .map_err(|f| Failure(format!("{}, after a crash behind {op:?}", f.0)))?;
        self.check_running()
    }

    fn check_running(&mut self) -> Result<(), Failure> {
        let mut store = self.store.take().expect("it is open");
        let checked = self.check(&mut store, &self.allowed.clone());
        self.store = Some(store);
        checked
    }

    /// Lose power, open, check; and lose power again at each boundary of that.
    fn crash(&mut self, disk: SimDisk, allowed: &Allowed, again: bool) -> Result<(), Failure> {
        let percent = [0, 100, self.rng.below(101)][self.rng.below(3) as usize];
        disk.crash(|| self.rng.below(100) < percent);
        let disk = Arc::new(disk);
        if again {
            disk.record_boundaries();
        }
        let mut store = Self::open(disk.clone())?;
        self.check(&mut store, allowed)?;
        for disk in disk.take_boundaries() {
            self.stats.second += 1;
            self.crash(disk, allowed, false).map_err(|f| Failure(format!("{}, and a second one", f.0)))?;
        }
        if again && self.rng.one_in(8) {
            self.goes_on(store, disk)?;
        }
        Ok(())
    }

    /// What was recovered can be used, and stays after that.
    fn goes_on(&mut self, mut store: Store<Arc<SimDisk>>, disk: Arc<SimDisk>) -> Result<(), Failure> {
        let before: Allowed = self.states(&store)?.into_iter().map(|(i, s)| (i, BTreeSet::from([s]))).collect();
        let mut allowed = before;
        for _ in 0..6 {
            let i = self.rng.below(self.pool.len() as u64) as usize;
            let (header, payload) = self.pool[i].versions[0].clone();
            let id = header.id;
            if self.rng.one_in(2) {
                store.delete(&[id]).map_err(|e| Failure(format!("a recovered stash does not delete: {e}")))?;
                allowed.insert(i, BTreeSet::from([None]));
            } else if store.put(vec![(self.pool[i].owner, header, payload)]).remove(0).is_ok() {
                allowed.insert(i, BTreeSet::from([Some(0)]));
            }
        }
        self.check(&mut store, &allowed)?;
        drop(store);
        disk.crash(|| false);
        self.check(&mut Self::open(disk)?, &allowed)
    }

    /// What each fragment is now. Bytes that are none of its versions are a failure, whatever happened.
    fn states(&self, store: &Store<Arc<SimDisk>>) -> Result<BTreeMap<usize, State>, Failure> {
        let reader = store.reader();
        let mut states = BTreeMap::new();
        for (i, piece) in self.pool.iter().enumerate() {
            let state = match get(&reader, piece.versions[0].0.id) {
                Ok(found) => {
                    let version = piece.versions.iter().position(|v| *v == found);
                    ensure!(version.is_some(), "fragment {i} has wrong bytes");
                    version
                }
                Err(StoreError::NotHere(_)) => None,
                Err(error) if self.rule == Rule::NeverWrong => {
                    self.say(|| format!("  {error}"));
                    None
                }
                Err(error) => return Err(Failure(format!("fragment {i}: {error:?}"))),
            };
            states.insert(i, state);
        }
        Ok(states)
    }

    fn check(&mut self, store: &mut Store<Arc<SimDisk>>, allowed: &Allowed) -> Result<(), Failure> {
        for (i, state) in self.states(store)? {
            let allowed = &allowed[&i];
            if self.rule == Rule::Exact {
                ensure!(allowed.contains(&state), "fragment {i} is {state:?} and must be one of {allowed:?}");
            } else {
                ensure!(allowed.contains(&state), "fragment {i} was never {state:?}");
            }
        }
        // Space adds up: records of what is here, no more and no less.
        let inventory = store.reader().inventory();
        let (mut images, mut others) = (0, 0);
        for piece in self.pool.iter().filter(|p| inventory.binary_search(&p.versions[0].0.id).is_ok()) {
            let Ok((header, _)) = get(&store.reader(), piece.versions[0].0.id) else { continue };
            let sum = if piece.owner == OTHER { &mut others } else { &mut images };
            *sum += Content::Put(header).record_len();
        }
        let usage = store.usage();
        let live = |owner: Owner| usage.partitions.get(&owner.0).map_or(0, |p| p.live);
        if self.rule == Rule::Exact {
            ensure!(
                (images, others) == (live(OWNER_IMAGES), live(OTHER)),
                "records of {images} and {others} bytes are here, the books say {:?}",
                usage.partitions
            );
            for (owner, partition) in &usage.partitions {
                // Two regions are nobody's, some may be borrowed: whoever frees space may use them.
                ensure!(
                    partition.used <= partition.reserved + 10 * REGION && partition.live <= partition.reserved + REGION,
                    "owner {owner} uses more than it may: {partition:?}"
                );
            }
        }
        ensure!(usage.fragments as usize == store.reader().fragments(), "fragments are counted wrong");
        let used: u64 = usage.partitions.values().map(|p| p.used).sum();
        ensure!(used + FILE_HEAD_LEN <= usage.file, "more is used than there is: {usage:?}");
        Ok(())
    }

    /// What other programs, and old disks, do to a file.
    fn spoil(&mut self, how: &str, old: &SimDisk) -> Result<(), Failure> {
        self.store = None;
        let len = self.disk.len().expect("a disk in memory");
        let region = FILE_HEAD_LEN + self.rng.below((len - FILE_HEAD_LEN) / REGION) * REGION;
        match how {
            "bit flipped" => self.disk.rot(region + self.rng.below(REGION), 1 << self.rng.below(8)),
            "region zeroed" => self.disk.overwrite(region, &vec![0; REGION as usize]),
            "bad sectors" => {
                let at = region + self.rng.below(REGION / 4096) * 4096;
                self.disk.spoil(at..at + 4096 * (1 + self.rng.below(4)));
            }
            "cut off" => {
                self.disk.truncate(FILE_HEAD_LEN + self.rng.below(len - FILE_HEAD_LEN)).expect("a disk in memory");
            }
            _ => self.disk = Arc::new(old.copy()),
        }
        self.store = Some(Self::open(self.disk.clone())?);
        Ok(())
    }

    /// The fault is over: everything is read again, what is damaged is reported and buried, and from then on nothing changes.
    fn settle(&mut self, name: &str) -> Result<(), Failure> {
        let context = |f: Failure| Failure(format!("{}, after \"{name}\"", f.0));
        let mut store = self.store.take().expect("it is open");
        store.examine();
        let allowed = self.allowed.clone();
        self.check(&mut store, &allowed).map_err(context)?;
        drop(store);
        self.disk.crash(|| false);
        let mut store = Self::open(self.disk.clone())?;
        self.check(&mut store, &allowed).map_err(context)?;
        let reader = store.reader();
        reader.inventory().into_iter().for_each(|id| drop(reader.examine(id)));
        let damaged = reader.take_damaged();
        store
            .bury(&damaged)
            .map_err(|e| Failure(format!("damaged fragments are not buried: {e}, after \"{name}\"")))?;
        let inventory = reader.inventory();
        drop((store, reader));
        let store = Self::open(self.disk.clone())?;
        let reader = store.reader();
        let again = reader.inventory();
        ensure!(again == inventory, "{inventory:?} was found, and then {again:?}, after \"{name}\"");
        let states = self.states(&store)?;
        let is_lost = |(i, state): &(&usize, &State)| state.is_some() && states[*i].is_none();
        let lost = self.last.iter().filter(is_lost).count() as u64;
        // A byte lies in one record, one header or one table, and of the last two there is more than one witness.
        ensure!(name != "bit flipped" || lost <= 1, "{lost} fragments are lost, after \"{name}\"");
        ensure!(self.rule != Rule::Exact || lost == 0, "{lost} fragments are lost, after \"{name}\"");
        self.stats.lost += lost;
        for id in inventory {
            ensure!(reader.examine(id).is_ok(), "{id} was read before, and is damaged now, after \"{name}\"");
        }
        Ok(())
    }
}
