//! One seed, start to end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_stash::storage::{Fault as DiskFault, SimDisk};
use client_stash::store::Store;
use controller::placement::{Members, Outcome, Placement, Send};
use images::fragment::{FragmentHeader, FragmentId, assemble, split};
use images::keys::OwnerKey;
use images::parity::{Codec, Geometry};
use images::segment::{self, Packer};
use images::{ArrayId, NodeId, SegmentId};
use protocol::getter::{Action, Event, Fault, Getter, JobId, Patience, RequestId, Want};
use protocol::message::store::OWNER_IMAGES;

use super::Rng;

const ARRAY: ArrayId = ArrayId([7; 32]);
const END: Duration = Duration::from_secs(3600);

/// What a seed did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Messages sent.
    pub messages: u64,
    /// Messages lost.
    pub lost: u64,
    /// Stashes that crashed.
    pub crashes: u64,
    /// Wrong answers given.
    pub lies: u64,
    /// Segments acknowledged.
    pub acknowledged: u64,
    /// Segments that found too few holders.
    pub short: u64,
    /// Segments read back.
    pub read: u64,
    /// Segments that rightly could not be read.
    pub unreadable: u64,
    /// Requests hedged.
    pub hedged: u64,
}

impl Stats {
    /// Add another seed's.
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.lost += other.lost;
        self.crashes += other.crashes;
        self.lies += other.lies;
        self.acknowledged += other.acknowledged;
        self.short += other.short;
        self.read += other.read;
        self.unreadable += other.unreadable;
        self.hedged += other.hedged;
    }
}

/// An invariant that did not hold.
#[derive(Debug)]
pub struct Failure(pub String);

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(Failure(format!($($text)*)));
        }
    };
}

enum Ev {
    Put { segment: usize, send: Send },
    Confirm { segment: usize, send: Send, ok: bool },
    Get { request: RequestId, node: usize, fragment: FragmentId },
    Answer { request: RequestId, result: Result<(FragmentHeader, Bytes), Fault> },
    Crash(usize),
    Restart(usize),
}

struct Stash {
    store: Option<Store<SimDisk>>,
    disk: Option<SimDisk>,
    /// Network round trip, milliseconds.
    slow_ms: u64,
    lies: bool,
    /// Fragments that it confirmed.
    confirmed: BTreeMap<FragmentId, Bytes>,
}

struct Segment {
    id: SegmentId,
    sealed: Bytes,
    pieces: Vec<(FragmentHeader, Bytes)>,
    placement: Option<Placement>,
    holders: Option<Vec<NodeId>>,
}

struct World {
    rng: Rng,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Ev>,
    serial: u64,
    stashes: Vec<Stash>,
    segments: Vec<Segment>,
    geometry: Geometry,
    /// Requests that were lost, or the answers to them.
    unheard: BTreeSet<RequestId>,
    stats: Stats,
    log: bool,
}

fn node(i: usize) -> NodeId {
    NodeId([i as u8; 16])
}

fn index(node: NodeId) -> usize {
    node.0[0].into()
}

/// Run a seed. With `log`, every event is printed.
///
/// # Errors
/// [`Failure`] names the invariant that did not hold.
pub fn run(seed: u64, log: bool) -> Result<Stats, Failure> {
    let mut world = World::new(seed, log);
    world.publish()?;
    world.settle()?;
    world.read()?;
    Ok(world.stats)
}

impl World {
    fn new(seed: u64, log: bool) -> Self {
        let mut rng = Rng::new(seed);
        let data = 1 + rng.below(5) as u8;
        let parity = rng.below(4) as u8;
        let geometry = Geometry::new(data, parity).expect("within the limits");
        let count = geometry.pieces() + rng.below(4) as usize;
        let stashes = (0..count).map(|i| Stash {
            store: Some(Store::create(SimDisk::default(), ARRAY, node(i), 4).expect("an empty disk")),
            disk: None,
            slow_ms: if rng.one_in(6) { 2_000 } else { 1 + rng.below(20) },
            lies: false,
            confirmed: BTreeMap::new(),
        });
        let stashes = stashes.collect();
        let codec = Codec::new(geometry);
        let segments = (0..3 + rng.below(6)).map(|_| {
            let mut packer = Packer::default();
            for _ in 0..1 + rng.below(3) {
                let len = 1 + rng.below(60_000) as usize;
                packer.push(&rng.bytes(len));
            }
            let sealed = segment::seal(segment::code(packer.take(), 1), &OwnerKey([3; 32]));
            let bytes = Bytes::from(sealed.bytes);
            let pieces = split(&codec, sealed.id, &bytes);
            Segment { id: sealed.id, sealed: bytes, pieces, placement: None, holders: None }
        });
        let segments = segments.collect();
        let (queue, unheard, stats) = (BTreeMap::new(), BTreeSet::new(), Stats::default());
        Self { rng, now: Duration::ZERO, queue, serial: 0, stashes, segments, geometry, unheard, stats, log }
    }

    fn at(&mut self, delay_ms: u64, event: Ev) {
        self.serial += 1;
        self.queue.insert((self.now + Duration::from_millis(delay_ms), self.serial), event);
    }

    /// Send a message to or from a stash: delayed by chance, so that later ones overtake, and sometimes lost.
    fn send(&mut self, stash: usize, event: Ev) {
        self.stats.messages += 1;
        if self.rng.one_in(25) {
            self.stats.lost += 1;
            if let Ev::Get { request, .. } | Ev::Answer { request, .. } = event {
                self.say(|| format!("lost: request {}", request.0));
                self.unheard.insert(request);
            }
            return;
        }
        let delay = self.stashes[stash].slow_ms / 2 + self.rng.below(10);
        self.at(delay, event);
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.log {
            println!("{:>10.3} {}", self.now.as_secs_f64(), text());
        }
    }

    fn crash(&mut self, i: usize) {
        let Some(store) = self.stashes[i].store.take() else {
            return;
        };
        self.stats.crashes += 1;
        let disk = store.storage();
        drop(store);
        let disk = Arc::into_inner(disk).expect("the store was the last to hold it");
        let percent = self.rng.below(101);
        disk.crash(|| self.rng.below(100) < percent);
        self.stashes[i].disk = Some(disk);
        self.say(|| format!("stash {i} crashes, {percent} % of what was not synced stays"));
        let back = 500 + self.rng.below(20_000);
        self.at(back, Ev::Restart(i));
    }

    fn restart(&mut self, i: usize) -> Result<(), Failure> {
        let Some(disk) = self.stashes[i].disk.take() else {
            return Ok(());
        };
        let store = Store::open(disk, ARRAY, node(i)).map_err(|e| Failure(format!("stash {i} does not open: {e}")))?;
        for (id, payload) in &self.stashes[i].confirmed {
            let found = store.reader().get(*id);
            ensure!(
                found.as_ref().is_ok_and(|(_, bytes)| bytes == payload),
                "stash {i} confirmed {id} and has {found:?} after a crash"
            );
        }
        self.say(|| format!("stash {i} is back"));
        self.stashes[i].store = Some(store);
        Ok(())
    }

    fn publish(&mut self) -> Result<(), Failure> {
        for i in 0..self.segments.len() {
            let mut members: Vec<NodeId> = (0..self.stashes.len()).map(node).collect();
            for j in (1..members.len()).rev() {
                members.swap(j, self.rng.below(j as u64 + 1) as usize);
            }
            let spares = members.split_off(self.geometry.pieces());
            let members = Members { first: members, spares, devices: Vec::new() };
            self.segments[i].placement = Some(Placement::new(&members, self.now));
        }
        for _ in 0..self.rng.below(6) {
            let (when, who) = (self.rng.below(3_000), self.rng.below(self.stashes.len() as u64) as usize);
            self.at(when, Ev::Crash(who));
        }
        loop {
            for i in 0..self.segments.len() {
                self.drive(i);
            }
            if self.segments.iter().all(|s| s.placement.is_none()) {
                return Ok(());
            }
            let timeout = self.segments.iter().filter_map(|s| s.placement.as_ref()?.poll_timeout()).min();
            let next = self.queue.keys().next().map(|(at, _)| *at);
            match (next, timeout) {
                (Some(at), timeout) if timeout.is_none_or(|t| at <= t) => self.step()?,
                (_, Some(at)) => {
                    self.now = self.now.max(at);
                    let now = self.now;
                    self.segments.iter_mut().filter_map(|s| s.placement.as_mut()).for_each(|p| drop(p.tick(now)));
                }
                (_, None) => return Err(Failure("placements wait for nothing".into())),
            }
            ensure!(self.now < END, "publishing does not end");
        }
    }

    /// Send what a placement wants, and end it when it is decided.
    fn drive(&mut self, i: usize) {
        let Some(mut placement) = self.segments[i].placement.take() else {
            return;
        };
        while let Some(send) = placement.poll_send() {
            self.say(|| format!("segment {i}: piece {} to stash {}", send.piece, index(send.node)));
            self.send(index(send.node), Ev::Put { segment: i, send });
        }
        match placement.outcome() {
            Outcome::Pending => self.segments[i].placement = Some(placement),
            Outcome::Durable(holders) => {
                self.stats.acknowledged += 1;
                self.segments[i].holders = Some(holders);
            }
            Outcome::Short { .. } => self.stats.short += 1,
        }
    }

    fn step(&mut self) -> Result<(), Failure> {
        let Some(((at, _), event)) = self.queue.pop_first() else {
            return Ok(());
        };
        self.now = at;
        match event {
            Ev::Crash(i) => self.crash(i),
            Ev::Restart(i) => self.restart(i)?,
            Ev::Put { segment, send } => self.put(segment, send),
            Ev::Confirm { segment, send, ok } => {
                let now = self.now;
                if let Some(placement) = self.segments[segment].placement.as_mut() {
                    if ok { placement.confirmed(send) } else { placement.failed(send, now) }
                }
            }
            // Reading has its own loop; what is left of it means nothing to others.
            Ev::Get { .. } | Ev::Answer { .. } => {}
        }
        Ok(())
    }

    fn put(&mut self, segment: usize, send: Send) {
        let i = index(send.node);
        let (header, payload) = self.segments[segment].pieces[usize::from(send.piece)].clone();
        let fails = self.rng.one_in(40);
        let Some(store) = self.stashes[i].store.as_mut() else {
            return;
        };
        if fails {
            store.storage().arm(0, DiskFault::SyncFails);
        }
        let ok = store.put(vec![(OWNER_IMAGES, header, payload.clone())]).remove(0).is_ok();
        store.storage().heal();
        if ok {
            self.stashes[i].confirmed.insert(header.id, payload);
        }
        self.send(i, Ev::Confirm { segment, send, ok });
    }

    /// Let everything that is under way end, then crash every stash once more: what was confirmed must survive that, too.
    fn settle(&mut self) -> Result<(), Failure> {
        while !self.queue.is_empty() {
            self.step()?;
        }
        for i in 0..self.stashes.len() {
            self.crash(i);
            while !self.queue.is_empty() {
                self.step()?;
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Failure> {
        for stash in &mut self.stashes {
            stash.slow_ms = if self.rng.one_in(6) { 30_000 } else { 1 + self.rng.below(20) };
            stash.lies = self.rng.one_in(8);
        }
        let down: BTreeSet<usize> = (0..self.stashes.len()).filter(|_| self.rng.one_in(6)).collect();
        let patience = Patience::default();
        let mut getter = Getter::new(patience);
        let mut pieces: BTreeMap<JobId, Vec<(usize, Bytes)>> = BTreeMap::new();
        let mut jobs: BTreeMap<RequestId, (JobId, u8)> = BTreeMap::new();
        let mut ended: BTreeMap<JobId, bool> = BTreeMap::new();
        let wanted: Vec<(usize, Vec<NodeId>)> =
            self.segments.iter().enumerate().filter_map(|(i, s)| Some((i, s.holders.clone()?))).collect();
        for (i, holders) in &wanted {
            let want = Want {
                job: JobId(*i as u64),
                segment: self.segments[*i].id,
                need: self.geometry.data(),
                holders: holders.clone(),
            };
            getter.want(want, self.now);
        }
        while ended.len() < wanted.len() {
            while let Some(action) = getter.poll_action() {
                match action {
                    Action::Fetch { request, job, node, fragment } => {
                        jobs.insert(request, (job, fragment.piece));
                        self.say(|| format!("request {}: stash {} for {fragment}", request.0, index(node)));
                        self.send(index(node), Ev::Get { request, node: index(node), fragment });
                    }
                    Action::Cancel(_) => {}
                    Action::Complete(job) => drop(ended.insert(job, true)),
                    Action::GiveUp(job, _) => drop(ended.insert(job, false)),
                }
            }
            if ended.len() == wanted.len() {
                break;
            }
            let next = self.queue.keys().next().map(|(at, _)| *at);
            match (next, getter.poll_timeout()) {
                (Some(at), timeout) if timeout.is_none_or(|t| at <= t) => {
                    let Some(((at, _), event)) = self.queue.pop_first() else {
                        continue;
                    };
                    self.now = at;
                    match event {
                        Ev::Get { request, node, fragment } => self.serve(request, node, fragment, &down),
                        Ev::Answer { request, result } => {
                            let (job, piece) = jobs[&request];
                            getter.handle(self.check(request, job, piece, result, &mut pieces), self.now);
                        }
                        _ => {}
                    }
                }
                (_, Some(at)) => {
                    self.now = self.now.max(at);
                    getter.tick(self.now);
                }
                (_, None) => return Err(Failure("the getter waits for nothing".into())),
            }
            ensure!(self.now < END * 2, "reading does not end");
        }
        self.stats.hedged += getter.hedges();
        // A piece is rightly given up when none of the tries that it gets was heard.
        let mut lost: BTreeMap<(JobId, u8), u32> = BTreeMap::new();
        for request in &self.unheard {
            *lost.entry(jobs[request]).or_default() += 1;
        }
        lost.retain(|_, times| *times >= patience.attempts);
        self.judge(&wanted, &ended, &pieces, &down, &lost)
    }

    fn serve(&mut self, request: RequestId, i: usize, fragment: FragmentId, down: &BTreeSet<usize>) {
        if down.contains(&i) {
            if self.rng.one_in(2) {
                self.send(i, Ev::Answer { request, result: Err(Fault::Unreachable) });
            }
            return;
        }
        let Some(store) = self.stashes[i].store.as_ref() else {
            return;
        };
        let mut result = store.reader().get(fragment).map_err(|_| Fault::NotThere);
        if self.stashes[i].lies
            && let Ok((_, payload)) = &mut result
        {
            self.stats.lies += 1;
            let mut bytes = payload.to_vec();
            bytes[0] ^= 0xFF;
            *payload = bytes.into();
        }
        self.send(i, Ev::Answer { request, result });
    }

    /// What the fetcher does with an answer: verify it against what is signed.
    fn check(
        &self,
        request: RequestId,
        job: JobId,
        piece: u8,
        result: Result<(FragmentHeader, Bytes), Fault>,
        pieces: &mut BTreeMap<JobId, Vec<(usize, Bytes)>>,
    ) -> Event {
        let (_, payload) = match result {
            Ok(answer) => answer,
            Err(fault) => return Event::Failed { request, fault },
        };
        let expected = &self.segments[job.0 as usize].pieces[usize::from(piece)].0;
        match expected.verify(&payload) {
            Ok(()) => {
                let len = payload.len() as u64;
                pieces.entry(job).or_default().push((piece.into(), payload));
                Event::Got { request, len }
            }
            Err(error) => Event::Failed { request, fault: Fault::Lied(error.to_string()) },
        }
    }

    fn judge(
        &mut self,
        wanted: &[(usize, Vec<NodeId>)],
        ended: &BTreeMap<JobId, bool>,
        pieces: &BTreeMap<JobId, Vec<(usize, Bytes)>>,
        down: &BTreeSet<usize>,
        lost: &BTreeMap<(JobId, u8), u32>,
    ) -> Result<(), Failure> {
        let codec = Codec::new(self.geometry);
        for (i, holders) in wanted {
            let (segment, job) = (&self.segments[*i], JobId(*i as u64));
            let good = |(piece, node): &(usize, &NodeId)| {
                let stash = &self.stashes[index(**node)];
                // One that takes half a minute may rightly be given up.
                let answers = !down.contains(&index(**node)) && !stash.lies && stash.slow_ms < 1_000;
                answers && !lost.contains_key(&(job, *piece as u8))
            };
            let (good, done) = (holders.iter().enumerate().filter(good).count(), ended[&job]);
            ensure!(
                done || good < self.geometry.data(),
                "segment {i} is unreadable with {good} good holders of {}",
                self.geometry
            );
            if done {
                let mut have = pieces.get(&job).cloned().unwrap_or_default();
                have.sort_by_key(|(piece, _)| *piece);
                have.dedup_by_key(|(piece, _)| *piece);
                let sealed = assemble(&codec, segment.id, segment.sealed.len() as u32, &have);
                ensure!(sealed.as_deref() == Ok(&segment.sealed[..]), "segment {i} was read wrong: {sealed:?}");
                self.stats.read += 1;
            } else {
                self.stats.unreadable += 1;
            }
        }
        Ok(())
    }
}
