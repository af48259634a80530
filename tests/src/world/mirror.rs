//! The mirror link under a seed: the real directory logic and release policy, with members asleep, partitioned and crashing, controllers that
//! come back old, twins, replays and forgeries. Checked after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client_stash::release;
use images::manifest::{ArrayKey, ImageName, PageRef};
use images::shares::ShareDigest;
use images::{ArrayId, GroupId, ManifestId, NodeId};
use protocol::directory::{
    Contents, Directory, DirectoryError, Epoch, Head, Host, Line, Member, Shares, SignedDirectory, Update, Verdict,
};
use protocol::identity::Role;
use protocol::message::store::GetShare;

use super::{Failure, Rng};

const ARRAY: ArrayId = ArrayId([7; 32]);
const HOSTS: u64 = 6;

/// What a seed did.
#[derive(Clone, Copy, Debug, Default)]
pub struct MirrorStats {
    /// Directories signed.
    pub signed: u64,
    /// Exchanges between members.
    pub exchanges: u64,
    /// Directories that a member took.
    pub taken: u64,
    /// Replays and forgeries that were offered.
    pub attacks: u64,
    /// Times that a controller stood down.
    pub stood_down: u64,
    /// Times that a person decided.
    pub overruled: u64,
    /// Shares released, and refused.
    pub released: u64,
    /// See `released`.
    pub refused: u64,
}

impl MirrorStats {
    /// Add another seed's.
    pub fn add(&mut self, other: &Self) {
        self.signed += other.signed;
        self.exchanges += other.exchanges;
        self.taken += other.taken;
        self.attacks += other.attacks;
        self.stood_down += other.stood_down;
        self.overruled += other.overruled;
        self.released += other.released;
        self.refused += other.refused;
    }
}

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(Failure(format!($($text)*)));
        }
    };
}

fn node(n: usize) -> NodeId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(n as u64).to_be_bytes());
    NodeId(id)
}

struct Peer {
    held: Option<SignedDirectory>,
    awake: bool,
    side: u64,
}

/// A controller: what its catalog says, and the newest directory that it signed.
#[derive(Clone)]
struct Controller {
    hosts: BTreeSet<u32>,
    changes: u64,
    held: Option<SignedDirectory>,
    rival: Option<SignedDirectory>,
    side: u64,
    line: Line,
}

struct World {
    rng: Rng,
    key: ArrayKey,
    peers: Vec<Peer>,
    controllers: Vec<Controller>,
    backup: Option<Controller>,
    recorded: Vec<Update>,
    /// What each directory was made from: an oracle that knows nothing of lines.
    parents: BTreeMap<[u8; 16], [u8; 16]>,
    stats: MirrorStats,
    log: bool,
}

fn image() -> ImageName {
    "debian:12".parse().expect("a name")
}

impl World {
    fn contents(&self, controller: &Controller) -> Contents {
        let holders = (0..self.peers.len()).map(|n| (node(n), ShareDigest([n as u8; 32]))).collect();
        let head = Head {
            manifest: ManifestId([1; 32]),
            number: 1,
            root: PageRef { digest: [0; 32], len: 1, group: GroupId(1) },
            sealed_key: Vec::new(),
            offline: Some(Shares { threshold: 2, holders }),
        };
        let member = |n| (node(n), Member { addresses: Vec::new(), capacity: controller.changes });
        Contents {
            members: (0..self.peers.len()).map(member).collect(),
            heads: BTreeMap::from([(image(), head)]),
            hosts: controller.hosts.iter().map(|id| (*id, Host::default())).collect(),
            ..Contents::default()
        }
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.log {
            println!("{}", text());
        }
    }

    /// A controller in charge changes something, and signs it.
    fn change(&mut self, at: usize) {
        let host = self.rng.below(HOSTS) as u32;
        let controller = &mut self.controllers[at];
        if controller.rival.is_some() {
            return;
        }
        controller.changes += 1;
        if !controller.hosts.remove(&host) {
            controller.hosts.insert(host);
        }
        let epoch = controller.held.as_ref().map_or(0, |held| held.mark().epoch.0) + 1 + self.rng.below(2);
        self.sign(at, Epoch(epoch), None);
    }

    fn sign(&mut self, at: usize, epoch: Epoch, term: Option<u64>) {
        let contents = self.contents(&self.controllers[at]);
        let next =
            Directory::next(self.controllers[at].held.as_ref(), ARRAY, self.controllers[at].line, epoch, contents);
        let signed = term.map_or(next.clone(), |term| next.in_term(term)).sign(&self.key);
        self.say(|| format!("controller {at} signs {:?}", signed.mark()));
        if self.rng.one_in(4) {
            self.recorded.push(signed.whole());
        }
        let before = self.controllers[at].held.replace(signed.clone());
        if let Some(before) = before.filter(|_| term.is_none()) {
            self.parents.insert(signed.mark().digest, before.mark().digest);
        }
        self.stats.signed += 1;
    }

    /// A stash reports to a controller: the controller looks at a strange mark, or answers with what is newer.
    fn heartbeat(&mut self, at: usize, peer: usize) -> Result<(), Failure> {
        if !self.peers[peer].awake || self.peers[peer].side != self.controllers[at].side {
            return Ok(());
        }
        let Some(own) = self.controllers[at].held.clone() else { return Ok(()) };
        let theirs = self.peers[peer].held.as_ref().map(SignedDirectory::mark);
        if let Some(mark) = theirs
            && matches!(own.directory().compare(own.mark(), mark), Verdict::Newer | Verdict::Fork)
        {
            let shown = self.peers[peer].held.clone();
            if self.controllers[at].rival.is_none() {
                self.say(|| format!("controller {at} stands down: peer {peer} has {mark:?}"));
                self.stats.stood_down += 1;
            }
            self.controllers[at].rival = shown;
            return Ok(());
        }
        if self.controllers[at].rival.is_some() {
            return Ok(());
        }
        let from = theirs.filter(|_| !self.rng.one_in(5));
        match own.update_for(from) {
            Some(update) => self.offer(peer, update).map(drop),
            None => Ok(()),
        }
    }

    fn descends(&self, from: [u8; 16], ancestor: [u8; 16]) -> bool {
        std::iter::successors(Some(&from), |digest| self.parents.get(*digest)).any(|digest| *digest == ancestor)
    }

    /// A member is offered a directory. Whatever it does with it, these hold.
    fn offer(&mut self, peer: usize, update: Update) -> Result<Result<(), DirectoryError>, Failure> {
        let before = self.peers[peer].held.clone();
        let taken = SignedDirectory::take(before.as_ref(), update, ARRAY, &self.key.public());
        let after = match taken {
            Ok(after) => after,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(before) = &before {
            let (old, new) = (before.mark(), after.mark());
            ensure!((new.term, new.epoch) > (old.term, old.epoch), "peer {peer} went back from {old:?} to {new:?}");
            ensure!(
                new.term > old.term || self.descends(new.digest, old.digest),
                "peer {peer} changed lines from {old:?} to {new:?} without a person's word"
            );
        }
        // A crash while it is written leaves the one before, or this one.
        if !self.rng.one_in(10) {
            self.peers[peer].held = Some(after);
            self.stats.taken += 1;
        }
        Ok(Ok(()))
    }

    fn gossip(&mut self, a: usize, b: usize) -> Result<(), Failure> {
        if a == b || !self.peers[a].awake || !self.peers[b].awake || self.peers[a].side != self.peers[b].side {
            return Ok(());
        }
        self.stats.exchanges += 1;
        let mark = |peer: &Peer| peer.held.as_ref().map(SignedDirectory::mark);
        let (mine, theirs) = (mark(&self.peers[a]), mark(&self.peers[b]));
        if let Some(update) = self.peers[b].held.as_ref().and_then(|held| held.update_for(mine)) {
            return self.offer(a, update).map(drop);
        }
        match self.peers[a].held.as_ref().and_then(|held| held.update_for(theirs)) {
            Some(update) => self.offer(b, update).map(drop),
            None => Ok(()),
        }
    }

    fn attack(&mut self, peer: usize) -> Result<(), Failure> {
        if self.recorded.is_empty() {
            return Ok(());
        }
        self.stats.attacks += 1;
        let at = self.rng.below(self.recorded.len() as u64) as usize;
        let mut update = self.recorded[at].clone();
        let is_forged = self.rng.one_in(2);
        if is_forged {
            match self.rng.below(3) {
                0 => update.changes.epoch = Epoch(update.changes.epoch.0 + 1 + self.rng.below(50)),
                1 => update.changes.term += 1,
                _ => update = update.changes.sign(&ArrayKey::from_seed(&[9; 32]).expect("a key")).whole(),
            }
        }
        let result = self.offer(peer, update)?;
        ensure!(!is_forged || result.is_err(), "peer {peer} took a forged directory");
        Ok(())
    }

    fn ask_share(&mut self, peer: usize) -> Result<(), Failure> {
        let host = self.rng.below(HOSTS) as u32;
        let named = (!self.rng.one_in(6)).then_some(host);
        let role = if self.rng.one_in(6) { Role::Stash } else { Role::Installer };
        let ask = GetShare { image: image(), manifest: ManifestId([1; 32]) };
        let held = self.peers[peer].held.as_ref();
        let approved = held.is_some_and(|held| held.directory().hosts.get(&host).is_some());
        let released = release::check(held.map(|held| held.directory()), node(peer), role, named, &ask).is_ok();
        let may = approved && named.is_some() && role == Role::Installer;
        ensure!(released == may, "peer {peer}: released {released}, host {named:?} approved {approved}, role {role}");
        if released {
            self.stats.released += 1
        } else {
            self.stats.refused += 1
        }
        Ok(())
    }

    /// A person decides for one controller; any other one is switched off.
    fn overrule(&mut self, at: usize) {
        let Some(rival) = self.controllers[at].rival.take() else { return };
        let own = self.controllers[at].held.as_ref().map(SignedDirectory::mark);
        let (term, epoch) = own.map_or((1, Epoch(0)), |m| (m.term, m.epoch));
        let (term, epoch) = (term.max(rival.mark().term) + 1, Epoch(epoch.max(rival.mark().epoch).0 + 1));
        self.sign(at, epoch, Some(term));
        self.stats.overruled += 1;
        self.controllers = vec![self.controllers[at].clone()];
    }

    fn step(&mut self) -> Result<(), Failure> {
        let peer = self.rng.below(self.peers.len() as u64) as usize;
        let other = self.rng.below(self.peers.len() as u64) as usize;
        let at = self.rng.below(self.controllers.len() as u64) as usize;
        match self.rng.below(100) {
            0..=14 => self.change(at),
            15..=44 => self.heartbeat(at, peer)?,
            45..=74 => self.gossip(peer, other)?,
            75..=80 => self.attack(peer)?,
            81..=88 => self.ask_share(peer)?,
            89..=92 => self.peers[peer].awake = !self.peers[peer].awake,
            93..=94 => self.peers[peer].side = self.rng.below(2),
            95 => self.controllers[at].side = self.rng.below(2),
            96 => self.backup = Some(self.controllers[at].clone()),
            97 => {
                // A controller is lost and comes back from a backup; or one that was believed lost runs beside it.
                let Some(mut backup) = self.backup.clone() else { return Ok(()) };
                backup.line = Line(self.rng.number().to_le_bytes());
                if self.rng.one_in(2) || self.controllers.len() > 1 {
                    self.controllers[at] = backup;
                } else {
                    self.controllers.push(backup);
                }
            }
            98 => self.overrule(at),
            _ => self.peers.iter_mut().for_each(|p| p.side = 0),
        }
        Ok(())
    }

    /// The networks are one again, everybody is awake, and a person has decided where it takes one: all come to know the same.
    fn settle(&mut self) -> Result<(), Failure> {
        self.peers.iter_mut().for_each(|p| (p.awake, p.side) = (true, 0));
        self.controllers.truncate(1);
        self.controllers[0].side = 0;
        for _ in 0..4 {
            for peer in 0..self.peers.len() {
                self.heartbeat(0, peer)?;
            }
            self.overrule(0);
        }
        self.change(0);
        for _ in 0..200 {
            for peer in 0..self.peers.len() {
                let other = self.rng.below(self.peers.len() as u64) as usize;
                self.gossip(peer, other)?;
                if self.rng.one_in(8) {
                    self.heartbeat(0, peer)?;
                }
            }
            let want = self.controllers[0].held.as_ref().map(SignedDirectory::mark);
            if self.peers.iter().all(|p| p.held.as_ref().map(SignedDirectory::mark) == want) {
                return Ok(());
            }
        }
        Err(Failure("members do not come to the same directory".into()))
    }
}

/// One seed.
///
/// # Errors
/// An invariant that did not hold.
///
/// # Panics
/// Never.
pub fn run(seed: u64, log: bool) -> Result<MirrorStats, Failure> {
    let mut rng = Rng::new(seed);
    let count = 3 + rng.below(10) as usize;
    let first =
        Controller { hosts: BTreeSet::new(), changes: 0, held: None, rival: None, side: 0, line: Line::default() };
    let peer = |_| Peer { held: None, awake: true, side: 0 };
    let mut world = World {
        rng,
        key: ArrayKey::from_seed(&[1; 32]).expect("a key"),
        peers: (0..count).map(peer).collect(),
        controllers: vec![first],
        backup: None,
        recorded: Vec::new(),
        parents: BTreeMap::new(),
        stats: MirrorStats::default(),
        log,
    };
    for _ in 0..400 {
        world.step()?;
    }
    world.settle()?;
    Ok(world.stats)
}

/// How long a new directory takes from one member to 99 % of them, by gossip alone: each asks another at random every four heartbeats or
/// so, as `coe-stash` does.
#[must_use]
pub fn spread(members: usize, heartbeat: Duration, seed: u64) -> Duration {
    let mut rng = Rng::new(seed);
    let pause = |rng: &mut Rng| heartbeat * 2 + (heartbeat * 4).mul_f64(rng.below(1000) as f64 / 1000.0);
    let mut due: BTreeSet<(Duration, usize)> = (0..members).map(|n| (pause(&mut rng), n)).collect();
    let mut knows = vec![false; members];
    knows[0] = true;
    let (mut count, want) = (1, (members * 99).div_ceil(100));
    while count < want {
        let Some((now, peer)) = due.pop_first() else { break };
        let other = rng.below(members as u64) as usize;
        if knows[peer] != knows[other] {
            (knows[peer], knows[other]) = (true, true);
            count += 1;
        }
        if count >= want {
            return now;
        }
        due.insert((now + pause(&mut rng), peer));
    }
    Duration::ZERO
}
