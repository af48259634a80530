//! Which stashes are up now, and how full they are: what heartbeats said last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use images::NodeId;
use protocol::directory::Epoch;
use protocol::message::member::Aside;

use crate::doubles::Doubles;
use crate::leases::{LeaseId, Leases};
use crate::paths::Paths;

/// A stash's last word.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    /// When.
    pub at: Instant,
    /// On which connection.
    pub connection: usize,
    /// Bytes it offers.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
    /// Live fragments.
    pub fragments: u64,
    /// Their fold.
    pub fold: u64,
    /// Whether the owner of its machine wants it to step aside.
    pub aside: Option<Aside>,
    /// Bytes that it wants to be rid of.
    pub too_much: u64,
    /// And at once.
    pub is_urgent: bool,
    /// Whether it serves somebody who installs.
    pub serves_installers: bool,
}

impl Pulse {
    /// Bytes it could still take.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }
}

/// Room that is reserved as long as this lives.
pub struct Leased<'a> {
    fleet: &'a Fleet,
    id: LeaseId,
}

impl Leased<'_> {
    /// Its segment is still on its way.
    pub fn renew(&self) {
        self.fleet.leases().renew(self.id, self.fleet.since.elapsed());
    }
}

impl Drop for Leased<'_> {
    fn drop(&mut self) {
        self.fleet.leases().release(self.id);
    }
}

/// All members that were heard.
pub struct Fleet {
    /// A stash that was not heard for this long is away.
    patience: Duration,
    pulses: Mutex<BTreeMap<NodeId, Pulse>>,
    /// Room that is promised.
    leases: Mutex<Leases>,
    /// How well they are reached.
    paths: Mutex<Paths>,
    /// Who is heard twice.
    doubles: Mutex<Doubles>,
    since: Instant,
    /// When each boot server asked for the directory, and the epoch of the one it had.
    boot_servers: Mutex<BTreeMap<NodeId, (Instant, Option<Epoch>)>>,
}

impl Fleet {
    /// A fleet that reports every `heartbeat`: three missed reports make a stash away.
    #[must_use]
    pub fn new(heartbeat: Duration) -> Self {
        Self {
            patience: heartbeat * 3 + Duration::from_secs(1),
            pulses: Mutex::default(),
            leases: Mutex::default(),
            paths: Mutex::default(),
            doubles: Mutex::default(),
            since: Instant::now(),
            boot_servers: Mutex::default(),
        }
    }

    fn pulses(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Pulse>> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a stash may be silent and still counts as up.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// A stash was heard.
    pub fn heard(&self, node: NodeId, pulse: Pulse) {
        if self.doubles().heard(node, pulse.connection, self.since.elapsed(), self.patience) {
            tracing::error!(%node, "two services speak as this stash: somebody copied its folder; stop one of them");
        }
        self.pulses().insert(node, pulse);
    }

    fn doubles(&self) -> MutexGuard<'_, Doubles> {
        self.doubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether two services speak as this stash. What it has is not known then, and it counts as away.
    #[must_use]
    pub fn is_double(&self, node: NodeId) -> bool {
        self.doubles().is_double(node, self.since.elapsed(), self.patience)
    }

    /// A boot server asked for the directory, and had the one of this epoch.
    pub fn boot_server_heard(&self, node: NodeId, has: Option<Epoch>) {
        self.boot_servers.lock().unwrap_or_else(PoisonError::into_inner).insert(node, (Instant::now(), has));
    }

    /// How long ago a boot server was heard, and the epoch of the directory that it had then.
    #[must_use]
    pub fn boot_server(&self, node: NodeId) -> Option<(Duration, Option<Epoch>)> {
        let heard = self.boot_servers.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&node).map(|(at, has)| (at.elapsed(), *has))
    }

    /// A stash took bytes: do not wait for its next report to know.
    pub fn took(&self, node: NodeId, bytes: u64) {
        if let Some(pulse) = self.pulses().get_mut(&node) {
            pulse.used += bytes;
        }
    }

    /// A stash says that it is full, whatever its numbers say.
    pub fn is_full(&self, node: NodeId) {
        if let Some(pulse) = self.pulses().get_mut(&node) {
            pulse.used = pulse.capacity;
        }
    }

    /// A stash's last word, and whether it is up.
    #[must_use]
    pub fn pulse(&self, node: NodeId) -> Option<(Pulse, bool)> {
        let pulse = *self.pulses().get(&node)?;
        let is_up = pulse.aside.is_none() && pulse.at.elapsed() <= self.patience && !self.is_double(node);
        Some((pulse, is_up))
    }

    /// Whether any of these serves somebody who installs.
    #[must_use]
    pub fn serve_installers(&self, nodes: &[NodeId]) -> bool {
        let pulses = self.pulses();
        let serves = |pulse: &Pulse| pulse.serves_installers && pulse.at.elapsed() <= self.patience;
        nodes.iter().any(|node| pulses.get(node).is_some_and(serves))
    }

    /// Whether it was heard of late, standing aside or not.
    #[must_use]
    pub fn is_heard(&self, node: NodeId) -> bool {
        self.pulses().get(&node).is_some_and(|pulse| pulse.at.elapsed() <= self.patience)
    }

    /// The same, and what it holds is where it is.
    #[must_use]
    pub fn has_its_medium(&self, node: NodeId) -> bool {
        let pulse = self.pulses().get(&node).copied();
        pulse.is_some_and(|pulse| pulse.aside != Some(Aside::Away) && pulse.at.elapsed() <= self.patience)
    }

    /// A stash got rid of bytes: do not wait for its next report to know.
    pub fn gave(&self, node: NodeId, bytes: u64) {
        if let Some(pulse) = self.pulses().get_mut(&node) {
            pulse.too_much = pulse.too_much.saturating_sub(bytes);
        }
    }

    /// All that were heard of late, standing aside or not.
    #[must_use]
    pub fn heard_now(&self) -> BTreeSet<NodeId> {
        let pulses = self.pulses();
        pulses.iter().filter(|(_, pulse)| pulse.at.elapsed() <= self.patience).map(|(node, _)| *node).collect()
    }

    /// It is no member any more.
    pub fn forget(&self, node: NodeId) {
        self.pulses().remove(&node);
        self.paths().forget(node);
        self.doubles().forget(node);
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paths(&self) -> MutexGuard<'_, Paths> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserve so many bytes at each of these, as long as the answer lives. `None` if one of them has not so many any more.
    pub fn lease(&self, nodes: Vec<NodeId>, bytes: u64) -> Option<Leased<'_>> {
        let mut leases = self.leases();
        leases.expire(self.since.elapsed());
        let pulses = self.pulses();
        let has_room =
            |node| pulses.get(node).is_some_and(|p: &Pulse| p.free().saturating_sub(leases.reserved(*node)) >= bytes);
        if !nodes.iter().all(has_room) {
            return None;
        }
        let id = leases.reserve(nodes, bytes, self.since.elapsed());
        Some(Leased { fleet: self, id })
    }

    /// Whether anything is reserved.
    #[must_use]
    pub fn has_leases(&self) -> bool {
        !self.leases().is_empty()
    }

    /// A stash confirmed a piece.
    pub fn confirmed(&self, node: NodeId, took: Duration) {
        self.paths().confirmed(node, took, self.since.elapsed());
    }

    /// It did not.
    pub fn failed(&self, node: NodeId) {
        self.paths().failed(node, self.since.elapsed());
    }

    /// Stashes that are slow, or just failed.
    #[must_use]
    pub fn badly_reached(&self) -> BTreeSet<NodeId> {
        self.paths().bad(self.since.elapsed())
    }

    /// Stashes that are there, and stand aside.
    #[must_use]
    pub fn aside(&self) -> usize {
        self.pulses().values().filter(|pulse| pulse.aside.is_some() && pulse.at.elapsed() <= self.patience).count()
    }

    /// Free bytes of each stash that is up, without those that are promised.
    #[must_use]
    pub fn up(&self) -> BTreeMap<NodeId, u64> {
        self.up_that(|_| true)
    }

    /// The same of those that do not want to be rid of something.
    #[must_use]
    pub fn up_with_room(&self) -> BTreeMap<NodeId, u64> {
        self.up_that(|pulse| pulse.too_much == 0)
    }

    fn up_that(&self, is_meant: impl Fn(&Pulse) -> bool) -> BTreeMap<NodeId, u64> {
        let now = self.since.elapsed();
        let (mut leases, pulses, doubles) = (self.leases(), self.pulses(), self.doubles());
        leases.expire(now);
        let up = |(&node, pulse): (&NodeId, &Pulse)| {
            let is_there = pulse.aside.is_none() && pulse.at.elapsed() <= self.patience;
            let is_up = is_there && is_meant(pulse) && !doubles.is_double(node, now, self.patience);
            is_up.then(|| (node, pulse.free().saturating_sub(leases.reserved(node))))
        };
        pulses.iter().filter_map(up).collect()
    }
}
