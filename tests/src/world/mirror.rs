//! The mirror link under a seed: the real directory logic, certificates and release policy, with members asleep, partitioned and crashing,
//! clocks that jump, controllers that come back old, twins, replays and forgeries. Checked after every step:
//! - no member goes back, changes lines without a person's word, or takes a forgery;
//! - no share leaves for an unapproved machine, or for an installer of a boot server that may not admit it at that time;
//! - a machine that was installed and started without its controller is not installed a second time;
//! - fragments of an acknowledged image stay with their holders until an image's removal was signed in the line that acknowledged it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client_stash::release::{self, Release};
use controller::io::authority::{Authority, Secrets};
use images::keys::{HolderSecret, OwnerKey};
use images::manifest::{ArrayKey, ImageName, PageRef};
use images::shares::{Order, ShareDigest};
use images::{ArrayId, GroupId, ManifestId, NodeId};
use protocol::directory::{
    Common, Contents, Directory, DirectoryError, Epoch, Head, Host, Line, Member, Planned, Policy, Shares,
    SignedDirectory, Update, Verdict,
};
use protocol::identity::{Identity, Role};
use protocol::io::credentials::Credentials;
use protocol::io::issue::{Admitted, BACKDATE, DELEGATION_LASTS, Delegate, INSTALLER_LASTS};
use protocol::io::tls::{self, Bearer};
use protocol::message::store::GetShare;
use rustls::pki_types::UnixTime;

use super::{Failure, Rng};

const ARRAY: ArrayId = ArrayId([7; 32]);
const HOSTS: u64 = 6;
const BOOT_SERVERS: usize = 3;
/// Shares that a key takes.
const THRESHOLD: usize = 2;
/// When the world begins, seconds since 1970, by the true clock.
const BEGIN_S: u64 = 1_900_000_000;
const HOUR_S: u64 = 3600;

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
    /// Of those released: to installers that a boot server admitted.
    pub admitted: u64,
    /// Machines installed and started without the controller.
    pub started: u64,
    /// Tries to install one of them again.
    pub again: u64,
    /// Images that every holder acknowledged, and fragments that were deleted.
    pub published: u64,
    /// See `published`.
    pub deleted: u64,
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
        self.admitted += other.admitted;
        self.started += other.started;
        self.again += other.again;
        self.published += other.published;
        self.deleted += other.deleted;
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
    /// What its clock is off, seconds.
    skew_s: i64,
    /// Deployments of which it was told that they are done.
    done: BTreeSet<u32>,
    /// Images of which it holds a fragment.
    fragments: BTreeSet<u32>,
}

/// A boot server: its delegation, and the directory that it saw last.
struct BootServer {
    node: NodeId,
    delegate: Option<Delegate>,
    /// From when to when the delegation is good, by the clock of whoever gave it.
    good_s: (u64, u64),
    held: Option<SignedDirectory>,
    skew_s: i64,
}

/// What an oracle knows of an image that every holder acknowledged.
struct Acknowledged {
    /// The directory with which that was.
    by: [u8; 16],
    /// Directories in which its removal was signed.
    removed_by: Vec<[u8; 16]>,
}

/// A controller: what its catalog says, and the newest directory that it signed.
#[derive(Clone)]
struct Controller {
    /// Approved machines, and the deployment that is open for each.
    hosts: BTreeMap<u32, Option<u32>>,
    boot_servers: BTreeSet<usize>,
    /// Images, and who holds them.
    images: BTreeMap<u32, Vec<usize>>,
    trash: Vec<(u32, usize)>,
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
    boot_servers: Vec<BootServer>,
    /// The true time, seconds since 1970.
    now_s: u64,
    /// The highest numbers that any controller ever gave: the oracle tells deployments and images of different lines apart.
    last_deployment: u32,
    last_image: u32,
    /// Deployments whose machines were installed and started without the controller.
    started: BTreeSet<u32>,
    acknowledged: BTreeMap<u32, Acknowledged>,
    stats: MirrorStats,
    log: bool,
}

/// The image that is installed; it is always there.
fn image() -> ImageName {
    "debian:12".parse().expect("a name")
}

/// An image that comes and goes.
fn stored(id: u32) -> ImageName {
    format!("image:{id}").parse().expect("a name")
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Secrets::create("world", &[3; 64]).and_then(|s| s.open()).expect("an authority"))
}

/// Boot servers' credentials, and each with the key and the request that it sends again and again: keys are slow to make.
fn boot_credentials() -> &'static [(Credentials, Vec<u8>, Vec<u8>)] {
    static CREDENTIALS: OnceLock<Vec<(Credentials, Vec<u8>, Vec<u8>)>> = OnceLock::new();
    CREDENTIALS.get_or_init(|| {
        let one = |_| {
            let (key, csr) = Delegate::request().expect("a key");
            (authority().credentials(Role::Boot, Vec::new()).expect("credentials"), key, csr)
        };
        (0..BOOT_SERVERS).map(one).collect()
    })
}

/// What is sealed does not matter here.
fn order() -> &'static Order {
    static ORDER: OnceLock<Order> = OnceLock::new();
    let holders = [HolderSecret([1; 32]), HolderSecret([2; 32])];
    ORDER.get_or_init(|| Order::seal(&OwnerKey([1; 32]), 1, 2, &holders, b"order").expect("two holders"))
}

fn at(unix_s: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix_s)
}

impl World {
    fn contents(&self, controller: &Controller) -> Contents {
        let holders = (0..self.peers.len()).map(|n| (node(n), ShareDigest([n as u8; 32]))).collect();
        let head = Head {
            manifest: ManifestId([1; 32]),
            number: 1,
            root: PageRef { digest: [0; 32], len: 1, group: GroupId(1) },
            sealed_key: Vec::new(),
            offline: Some(Shares { threshold: THRESHOLD as u8, holders }),
        };
        let member = |n| (node(n), Member { addresses: Vec::new(), capacity: controller.changes });
        let planned = |id: u32| {
            let (image, order) = (image(), order().clone());
            Planned { id, image, not_before_unix_s: 0, rescue: false, order, user_data: None }
        };
        let listed =
            |(number, open): (&u32, &Option<u32>)| (*number, Host { planned: open.map(planned), ..Host::default() });
        let published = controller.images.keys().map(|id| (stored(*id), Head { number: (*id).into(), ..head.clone() }));
        let boot_servers = controller.boot_servers.iter().map(|n| self.boot_servers[*n].node).collect();
        Contents {
            common: Common { policy: Policy { boot_servers }, ..Common::default() },
            members: (0..self.peers.len()).map(member).collect(),
            heads: published.chain([(image(), head.clone())]).collect(),
            hosts: controller.hosts.iter().map(listed).collect(),
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
        if self.controllers[at].rival.is_some() {
            return;
        }
        let host = self.rng.below(HOSTS) as u32;
        let what = self.rng.below(8);
        let boot_server = self.rng.below(BOOT_SERVERS as u64) as usize;
        let controller = &mut self.controllers[at];
        controller.changes += 1;
        match what {
            0..=1 => {
                if controller.hosts.remove(&host).is_none() {
                    controller.hosts.insert(host, None);
                }
            }
            // A deployment, in place of one that is open; or the end of one.
            2..=5 => {
                self.last_deployment += 1;
                controller.hosts.insert(host, Some(self.last_deployment));
            }
            6 => drop(controller.hosts.insert(host, None)),
            _ => {
                if !controller.boot_servers.remove(&boot_server) {
                    controller.boot_servers.insert(boot_server);
                }
            }
        }
        self.sign_next(at);
    }

    fn sign_next(&mut self, at: usize) {
        let held = self.controllers[at].held.as_ref();
        let epoch = held.map_or(0, |held| held.mark().epoch.0) + 1 + self.rng.below(2);
        self.sign(at, Epoch(epoch), None);
    }

    /// An image is stored with members that are there, and acknowledged once each of them has the directory that names it.
    fn publish(&mut self, at: usize) -> Result<(), Failure> {
        let side = self.controllers[at].side;
        let there = |n: &usize| self.peers[*n].awake && self.peers[*n].side == side;
        let holders: Vec<usize> = (0..self.peers.len()).filter(there).take(4).collect();
        if self.controllers[at].rival.is_some() || holders.len() < 3 {
            return Ok(());
        }
        self.last_image += 1;
        let id = self.last_image;
        for n in &holders {
            self.peers[*n].fragments.insert(id);
        }
        self.controllers[at].images.insert(id, holders.clone());
        self.sign_next(at);
        for n in &holders {
            self.heartbeat(at, *n)?;
        }
        let mark = self.controllers[at].held.as_ref().map(SignedDirectory::mark);
        let has_it = |n: &usize| self.peers[*n].held.as_ref().map(SignedDirectory::mark) == mark;
        if let Some(mark) = mark.filter(|_| holders.iter().all(has_it)) {
            self.stats.published += 1;
            self.acknowledged.insert(id, Acknowledged { by: mark.digest, removed_by: Vec::new() });
        }
        Ok(())
    }

    /// An image is removed; its fragments are trash.
    fn remove(&mut self, at: usize) {
        let controller = &mut self.controllers[at];
        if controller.rival.is_some() {
            return;
        }
        let Some((id, holders)) = controller.images.pop_first() else { return };
        controller.trash.extend(holders.into_iter().map(|n| (id, n)));
        self.sign_next(at);
        if let (Some(mark), Some(known)) =
            (self.controllers[at].held.as_ref().map(|h| h.mark()), self.acknowledged.get_mut(&id))
        {
            known.removed_by.push(mark.digest);
        }
    }

    /// A controller asks members to delete what it takes for trash.
    fn sweep(&mut self, at: usize) -> Result<(), Failure> {
        for (id, n) in std::mem::take(&mut self.controllers[at].trash) {
            let own = self.controllers[at].held.as_ref().map(SignedDirectory::mark);
            let reachable = self.peers[n].awake && self.peers[n].side == self.controllers[at].side;
            let may = own.is_some_and(|own| release::may_delete(self.peers[n].held.as_ref(), own).is_ok());
            if !(reachable && may && self.controllers[at].rival.is_none()) {
                self.controllers[at].trash.push((id, n));
                continue;
            }
            if !self.peers[n].fragments.remove(&id) {
                continue;
            }
            self.stats.deleted += 1;
            // By what the member itself knows, not by what whoever asks claims.
            let held = self.peers[n].held.as_ref().map(SignedDirectory::mark);
            if let (Some(known), Some(held)) = (self.acknowledged.get(&id), held) {
                let removed = known
                    .removed_by
                    .iter()
                    .any(|removal| self.descends(held.digest, *removal) && self.descends(*removal, known.by));
                // A person may have decided for a controller that had removed it in a line of its own.
                ensure!(removed || held.term > 1, "peer {n} lost a fragment of image {id}, which nobody removed");
            }
        }
        Ok(())
    }

    /// A boot server hears from a controller: a fresh delegation if that permits it, and the directory.
    fn delegate(&mut self, at_controller: usize, boot: usize) {
        let controller = &self.controllers[at_controller];
        if controller.rival.is_some() {
            return;
        }
        let (_, key, csr) = &boot_credentials()[boot];
        let server = &mut self.boot_servers[boot];
        server.held.clone_from(&controller.held);
        if controller.boot_servers.contains(&boot) {
            let (from, until) = (self.now_s - BACKDATE.as_secs(), self.now_s + DELEGATION_LASTS.as_secs());
            let given = authority().delegate(server.node, csr, at(from), at(until)).expect("a delegation");
            server.delegate = Delegate::new(&boot_credentials()[boot].0, given, key).ok();
            server.good_s = (from, until);
        }
    }

    /// A machine starts from the network without a controller: a boot server admits its installer, which collects shares, and, if it has
    /// enough, installs, and tells so many holders that it may start the machine.
    fn boot(&mut self, boot: usize) -> Result<(), Failure> {
        let server = &self.boot_servers[boot];
        let (Some(held), Some(delegate)) = (&server.held, &server.delegate) else { return Ok(()) };
        let planned: Vec<(u32, u32)> =
            held.directory().hosts.iter().filter_map(|(n, h)| Some((*n, h.planned.as_ref()?.id))).collect();
        if planned.is_empty() {
            return Ok(());
        }
        let (host, id) = planned[self.rng.below(planned.len() as u64) as usize];
        let clock_s = self.now_s.saturating_add_signed(server.skew_s);
        let admitted = Admitted { host: Some(host), deployment: Some(id) };
        // The machine's own key does not matter here: the request of another key does.
        let (_, _, csr) = &boot_credentials()[boot];
        let (_, leaf, own) = delegate.admit(csr, admitted, at(clock_s)).expect("a certificate");
        let (good_from, good_until) = server.good_s;
        let node_of_server = server.node;
        let ask = GetShare { image: image(), manifest: ManifestId([1; 32]), order: None };
        let mut shares = 0;
        let reached: Vec<usize> = (0..self.peers.len())
            .filter(|n| self.peers[*n].awake && self.peers[*n].side == 0 && !self.rng.one_in(8))
            .collect();
        for n in &reached {
            let peer = &self.peers[*n];
            let peer_s = self.now_s.saturating_add_signed(peer.skew_s);
            let then = UnixTime::since_unix_epoch(Duration::from_secs(peer_s));
            let bearer =
                tls::bearer_at(authority().certificate(), authority().array(), &leaf, std::slice::from_ref(&own), then);
            let is_good = (good_from..=good_until).contains(&peer_s)
                && (clock_s - BACKDATE.as_secs()..=clock_s + INSTALLER_LASTS.as_secs()).contains(&peer_s);
            ensure!(
                bearer.is_some() == is_good,
                "peer {n} takes a certificate: {}, and it is good: {is_good}",
                bearer.is_some()
            );
            let Some(bearer) = bearer else { continue };
            let directory = peer.held.as_ref().map(|held| held.directory());
            let released = release::check(directory, node(*n), &bearer, &ask, |id| peer.done.contains(&id));
            let released = matches!(released, Ok(Release::Share(_)));
            let open = directory.and_then(|d| d.hosts.get(&host)?.planned.as_ref()).is_some_and(|p| p.id == id);
            let may_admit = directory.is_some_and(|d| d.common().policy.boot_servers.contains(&node_of_server));
            let may = open && may_admit && !peer.done.contains(&id);
            ensure!(released == may, "peer {n}: released {released} to deployment {id}, which may have it: {may}");
            if released {
                self.stats.released += 1;
                self.stats.admitted += 1;
                shares += 1;
            } else {
                self.stats.refused += 1;
            }
        }
        self.stats.again += u64::from(self.started.contains(&id));
        if shares < THRESHOLD {
            return Ok(());
        }
        ensure!(!self.started.contains(&id), "the machine of deployment {id} is installed a second time");
        let mut told = 0;
        for n in 0..self.peers.len() {
            if self.peers[n].awake && self.peers[n].side == 0 && !self.rng.one_in(8) {
                self.peers[n].done.insert(id);
                told += 1;
            }
        }
        if told > self.peers.len() - THRESHOLD {
            self.started.insert(id);
            self.stats.started += 1;
        }
        Ok(())
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
            if let Some(before) = &before {
                // As a stash does: what is over is forgotten.
                let planned = |d: &Directory| -> BTreeSet<u32> {
                    d.hosts.iter().filter_map(|(_, host)| Some(host.planned.as_ref()?.id)).collect()
                };
                let (old, new) = (planned(before.directory()), planned(after.directory()));
                self.peers[peer].done.retain(|id| !old.contains(id) || new.contains(id));
            }
            if before.as_ref().is_some_and(|before| before.mark().term < after.mark().term) {
                // A person decided for what an older catalog says of deployments.
                self.started.clear();
            }
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
        let ask = GetShare { image: image(), manifest: ManifestId([1; 32]), order: None };
        let held = self.peers[peer].held.as_ref();
        let approved = held.is_some_and(|held| held.directory().hosts.get(&host).is_some());
        let identity = Identity { array: ARRAY, role, node: node(99) };
        let who = Bearer { identity, host: named, deployment: None, issuer: None };
        let released = release::check(held.map(|held| held.directory()), node(peer), &who, &ask, |_| false);
        let released = matches!(released, Ok(Release::Share(_)));
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

    /// Some member's clock, or a boot server's, jumps by hours; or comes right again.
    fn jump(&mut self) {
        let to = if self.rng.one_in(3) { 0 } else { self.rng.below(48 * HOUR_S) as i64 - 24 * HOUR_S as i64 };
        let at = self.rng.below((self.peers.len() + BOOT_SERVERS) as u64) as usize;
        match at.checked_sub(self.peers.len()) {
            None => self.peers[at].skew_s = to,
            Some(boot) => self.boot_servers[boot].skew_s = to,
        }
    }

    fn step(&mut self) -> Result<(), Failure> {
        self.now_s += self.rng.below(4 * HOUR_S);
        // Sometimes the controller is away for weeks.
        if self.rng.one_in(100) {
            self.now_s += self.rng.below(20 * 24 * HOUR_S);
        }
        let boot = self.rng.below(BOOT_SERVERS as u64) as usize;
        let peer = self.rng.below(self.peers.len() as u64) as usize;
        let other = self.rng.below(self.peers.len() as u64) as usize;
        let at = self.rng.below(self.controllers.len() as u64) as usize;
        match self.rng.below(130) {
            100..=104 => self.publish(at)?,
            105..=107 => self.remove(at),
            108..=110 => self.sweep(at)?,
            111..=115 => self.delegate(at, boot),
            116..=126 => self.boot(boot)?,
            127..=129 => self.jump(),
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
    let first = Controller {
        hosts: BTreeMap::new(),
        boot_servers: (0..BOOT_SERVERS).collect(),
        images: BTreeMap::new(),
        trash: Vec::new(),
        changes: 0,
        held: None,
        rival: None,
        side: 0,
        line: Line::default(),
    };
    let peer =
        |_| Peer { held: None, awake: true, side: 0, skew_s: 0, done: BTreeSet::new(), fragments: BTreeSet::new() };
    let boot_server = |n: usize| BootServer {
        node: boot_credentials()[n].0.identity.node,
        delegate: None,
        good_s: (0, 0),
        held: None,
        skew_s: 0,
    };
    let mut world = World {
        rng,
        key: ArrayKey::from_seed(&[1; 32]).expect("a key"),
        peers: (0..count).map(peer).collect(),
        controllers: vec![first],
        backup: None,
        recorded: Vec::new(),
        parents: BTreeMap::new(),
        boot_servers: (0..BOOT_SERVERS).map(boot_server).collect(),
        now_s: BEGIN_S,
        last_deployment: 0,
        last_image: 0,
        started: BTreeSet::new(),
        acknowledged: BTreeMap::new(),
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
