//! Placing one segment: each piece on a member of its own, counted only when that member says that it is durable.
//!
//! The owner sends pieces as told, and reports confirmations, failures and the time. A missing confirmation picks another
//! member; a stash gets at most one piece, a mass-storage device may get several. Who the members are is decided before, by [`choose`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use images::NodeId;
use images::parity::Geometry;
use protocol::message::publish::Layout;

use crate::domains::{Domain, Domains, UNEVEN, UNSTEADY};

/// Time since any fixed start.
pub type Now = Duration;

/// How long a member may take to make a piece durable: slow disks flush for seconds.
pub const CONFIRM_WITHIN: Duration = Duration::from_secs(20);

/// Of a large fleet, so many with the fewest groups for their free space are looked at: there is every kind of stash among them.
const CANDIDATES_MAX: usize = 2000;

/// How new segments are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// k + m.
    pub geometry: Geometry,
    /// Who keeps what.
    pub layout: Layout,
    /// Stashes of a group that must be steady.
    pub steady: usize,
}

impl Protection {
    /// That of a manifest's pages: whole copies on clients, any one of which is enough, as far as there are so many.
    #[must_use]
    pub fn of_pages(self, stashes: usize) -> Self {
        let parity = self.geometry.parity().min(stashes.saturating_sub(1)) as u8;
        let geometry = Geometry::new(1, parity).unwrap_or_else(|_| self.geometry.redundant());
        let layout = if self.layout == Layout::Mirror { Layout::Mirror } else { Layout::Clients };
        Self { geometry, layout, ..self }
    }

    /// As many data pieces as lie on clients, and the same m: by this is told how many of them must give a share of a key.
    #[must_use]
    pub fn of_clients(self) -> Geometry {
        let (k, m) = (self.geometry.data(), self.geometry.parity());
        let on_clients = self.layout.on_clients(self.geometry);
        Geometry::new(k.min(on_clients).max(1) as u8, m as u8).unwrap_or(self.geometry)
    }

    /// Members of a new group: stashes in their order, and all devices in turn, so that none has more pieces than it must. None if there are
    /// too few.
    #[must_use]
    pub fn members(self, clients: &[NodeId], devices: &[NodeId]) -> Option<Vec<NodeId>> {
        let on_devices = self.layout.on_devices(self.geometry);
        let (mut clients, mut in_turn) = (clients.iter().copied(), devices.iter().copied().cycle());
        let holder = |piece| if on_devices.contains(&piece) { in_turn.next() } else { clients.next() };
        (0..self.geometry.pieces()).map(holder).collect()
    }

    /// Whether the members of a group are of the kinds that they should be.
    #[must_use]
    pub fn fits(self, geometry: Geometry, members: &[NodeId], devices: &BTreeMap<NodeId, u64>) -> bool {
        let on_devices = self.layout.on_devices(geometry);
        let is_right = |(piece, node): (usize, &NodeId)| devices.contains_key(node) == on_devices.contains(&piece);
        // One with several pieces was a device once.
        let clients: BTreeSet<&NodeId> = members.iter().filter(|node| !devices.contains_key(node)).collect();
        geometry == self.geometry
            && members.iter().enumerate().all(is_right)
            && clients.len() == self.layout.on_clients(geometry)
    }
}

/// A stash that could take a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Who.
    pub node: NodeId,
    /// Bytes that it could still take.
    pub free: u64,
    /// Groups that it is in.
    pub groups: u32,
    /// Whether it can be counted on in the busy hours.
    pub is_steady: bool,
    /// It is slow, or just failed.
    pub is_badly_reached: bool,
    /// What it fails with.
    pub domains: &'a [Domain],
}

/// What a group is to be like.
pub struct Wanted<'a> {
    /// k + m.
    pub geometry: Geometry,
    /// Pieces that need a stash.
    pub pieces: usize,
    /// Members that must be steady.
    pub steady: usize,
    /// What fails together.
    pub domains: &'a Domains,
}

/// Order candidates for a new group, its members first. Those with few groups for their free space are preferred, so that load follows space;
/// but so many must be steady, and no failure domain has more than its share as long as there are others.
#[must_use]
pub fn choose(mut candidates: Vec<Candidate<'_>>, piece_len: u64, wanted: &Wanted<'_>) -> Vec<NodeId> {
    candidates.retain(|c| c.free > piece_len);
    let by_load = |a: &Candidate<'_>, b: &Candidate<'_>| {
        let load = |c: &Candidate<'_>| u128::from(c.groups + 1);
        (load(a) * u128::from(b.free)).cmp(&(load(b) * u128::from(a.free))).then(a.node.cmp(&b.node))
    };
    if candidates.len() > CANDIDATES_MAX {
        candidates.select_nth_unstable_by(CANDIDATES_MAX, by_load);
        candidates.truncate(CANDIDATES_MAX);
    }
    candidates.sort_by(by_load);
    let n = wanted.pieces.min(candidates.len());
    let mut steady = wanted.steady.min(n);
    let mut taken: BTreeMap<Domain, usize> = BTreeMap::new();
    let mut chosen = Vec::with_capacity(candidates.len());
    for left in (1..=n).rev() {
        let faults = |c: &Candidate<'_>| {
            let of_domain = |domain: &Domain| {
                let count = taken.get(domain).copied().unwrap_or(0) + 1;
                wanted.domains.fault(*domain, count, wanted.pieces, wanted.geometry.parity())
            };
            let unsteady = if !c.is_steady && steady >= left { UNSTEADY } else { 0 };
            let bad = usize::from(c.is_badly_reached) * UNEVEN;
            unsteady + bad + c.domains.iter().map(of_domain).sum::<usize>()
        };
        let mut best = (usize::MAX, 0);
        for (at, candidate) in candidates.iter().enumerate() {
            let of = faults(candidate);
            if of < best.0 {
                best = (of, at);
            }
            if of == 0 {
                break;
            }
        }
        let candidate = candidates.remove(best.1);
        steady = steady.saturating_sub(usize::from(candidate.is_steady));
        for domain in candidate.domains {
            *taken.entry(*domain).or_default() += 1;
        }
        chosen.push(candidate.node);
    }
    // Those that stand in, too.
    candidates.sort_by_key(|c| c.is_badly_reached);
    chosen.extend(candidates.into_iter().map(|c| c.node));
    chosen
}

/// What the owner must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send {
    /// Piece number.
    pub piece: u8,
    /// To whom.
    pub node: NodeId,
}

/// How far a placement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Confirmations are missing.
    Pending,
    /// Every piece is durable: holder of each.
    Durable(Vec<NodeId>),
    /// No member is left for some pieces.
    Short {
        /// Pieces that are durable.
        confirmed: usize,
        /// Members that failed.
        failed: Vec<NodeId>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Waiting(NodeId, Now),
    Durable(NodeId),
    Homeless,
}

/// Who could have the pieces of a segment.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// Of each piece, who should.
    pub first: Vec<NodeId>,
    /// Stashes that could stand in.
    pub spares: Vec<NodeId>,
    /// Mass-storage devices. Each may have several pieces, and one stands in for another.
    pub devices: Vec<NodeId>,
}

/// One segment on its way to its holders.
pub struct Placement {
    pieces: Vec<Piece>,
    spares: VecDeque<NodeId>,
    devices: Vec<NodeId>,
    failed: BTreeSet<NodeId>,
    sends: VecDeque<Send>,
}

impl Placement {
    /// Place each piece on its first member.
    #[must_use]
    pub fn new(members: &Members, now: Now) -> Self {
        let first = &members.first;
        let send = |(piece, &node): (usize, &NodeId)| Send { piece: piece as u8, node };
        Self {
            pieces: first.iter().map(|&node| Piece::Waiting(node, now + CONFIRM_WITHIN)).collect(),
            spares: members.spares.iter().copied().collect(),
            devices: members.devices.clone(),
            failed: BTreeSet::new(),
            sends: first.iter().enumerate().map(send).collect(),
        }
    }

    /// The next piece to send.
    pub fn poll_send(&mut self) -> Option<Send> {
        self.sends.pop_front()
    }

    /// When [`Placement::tick`] must be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Now> {
        let deadline = |p: &Piece| match p {
            Piece::Waiting(_, until) => Some(*until),
            _ => None,
        };
        self.pieces.iter().filter_map(deadline).min()
    }

    /// A member says that a piece is durable. One that comes late, after somebody else was asked, changes nothing: the piece
    /// has one holder.
    pub fn confirmed(&mut self, send: Send) {
        if self.is_waiting(send) {
            self.pieces[usize::from(send.piece)] = Piece::Durable(send.node);
        }
    }

    /// A member does not take a piece.
    pub fn failed(&mut self, send: Send, now: Now) {
        if self.is_waiting(send) {
            self.replace(send, now);
        }
    }

    /// Time passed. Those that did not confirm in time are named.
    pub fn tick(&mut self, now: Now) -> Vec<NodeId> {
        let mut late = Vec::new();
        for (i, piece) in self.pieces.clone().into_iter().enumerate() {
            if let Piece::Waiting(node, until) = piece
                && until <= now
            {
                self.replace(Send { piece: i as u8, node }, now);
                late.push(node);
            }
        }
        late
    }

    /// How far it is.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let holders: Vec<NodeId> = self
            .pieces
            .iter()
            .filter_map(|p| match p {
                Piece::Durable(node) => Some(*node),
                _ => None,
            })
            .collect();
        let waiting = self.pieces.iter().any(|p| matches!(p, Piece::Waiting(..)));
        if holders.len() == self.pieces.len() {
            Outcome::Durable(holders)
        } else if waiting {
            Outcome::Pending
        } else {
            Outcome::Short { confirmed: holders.len(), failed: self.failed.iter().copied().collect() }
        }
    }

    /// Members that did not confirm.
    #[must_use]
    pub fn replaced(&self) -> usize {
        self.failed.len()
    }

    fn is_waiting(&self, send: Send) -> bool {
        matches!(self.pieces.get(usize::from(send.piece)), Some(Piece::Waiting(node, _)) if *node == send.node)
    }

    fn replace(&mut self, send: Send, now: Now) {
        self.failed.insert(send.node);
        let stand_in = if self.devices.contains(&send.node) {
            let has = |device: &NodeId| {
                let is_there =
                    |piece: &&Piece| matches!(piece, Piece::Waiting(node, _) | Piece::Durable(node) if node == device);
                self.pieces.iter().filter(is_there).count()
            };
            self.devices
                .iter()
                .filter(|device| !self.failed.contains(*device))
                .min_by_key(|device| has(device))
                .copied()
        } else {
            self.spares.pop_front()
        };
        self.pieces[usize::from(send.piece)] = match stand_in {
            None => Piece::Homeless,
            Some(node) => {
                self.sends.push_back(Send { piece: send.piece, node });
                Piece::Waiting(node, now + CONFIRM_WITHIN)
            }
        };
    }
}

/// How many groups with so many stashes each a fleet should have of one geometry, so that load spreads and the directory stays small.
#[must_use]
pub fn groups_wanted(stashes: usize, members: usize) -> usize {
    (stashes * 2).div_ceil(members.max(1)).max(1)
}

/// Groups whose members can all take a piece, those with the fewest segments first.
#[must_use]
pub fn least_used<'a, G: Copy + Ord>(
    groups: impl Iterator<Item = (G, &'a [NodeId], u64)>,
    usable: &BTreeMap<NodeId, u64>,
    piece_len: u64,
) -> Vec<(G, &'a [NodeId])> {
    let has_room = |member: &NodeId| usable.get(member).is_some_and(|&free| free > piece_len);
    let mut groups: Vec<_> = groups.filter(|(_, members, _)| members.iter().all(has_room)).collect();
    groups.sort_unstable_by_key(|&(id, _, segments)| (segments, id));
    groups.into_iter().map(|(id, members, _)| (id, members)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(i: u8) -> NodeId {
        NodeId([i; 16])
    }

    fn three_of(members: u8) -> Members {
        let first = (0..3).map(node).collect();
        Members { first, spares: (3..members).map(node).collect(), devices: Vec::new() }
    }

    /// Runs a placement of 2 + 1 over `members`; `answer` says what a member does.
    fn run(members: u8, answer: fn(u8) -> Option<bool>) -> (Outcome, Now) {
        let mut now = Now::ZERO;
        let mut placement = Placement::new(&three_of(members), now);
        loop {
            while let Some(send) = placement.poll_send() {
                match answer(send.node.0[0]) {
                    Some(true) => placement.confirmed(send),
                    Some(false) => placement.failed(send, now),
                    None => {}
                }
            }
            match (placement.outcome(), placement.poll_timeout()) {
                (Outcome::Pending, Some(at)) => {
                    now = at;
                    placement.tick(now);
                }
                (outcome, _) => return (outcome, now),
            }
        }
    }

    #[test]
    fn a_missing_confirmation_picks_another_member() {
        let holders = |h: [u8; 3]| Outcome::Durable(h.map(node).to_vec());
        assert_eq!(run(3, |_| Some(true)), (holders([0, 1, 2]), Now::ZERO));
        assert_eq!(run(4, |i| Some(i != 1)), (holders([0, 3, 2]), Now::ZERO));
        assert_eq!(run(5, |i| (i != 0).then_some(i != 3)), (holders([4, 1, 2]), CONFIRM_WITHIN));
        let short = Outcome::Short { confirmed: 2, failed: vec![node(1), node(3)] };
        assert_eq!(run(4, |i| Some(i != 1 && i != 3)).0, short);
    }

    #[test]
    fn a_late_confirmation_does_not_make_two_holders() {
        let mut placement = Placement::new(&three_of(4), Now::ZERO);
        let sends: Vec<_> = std::iter::from_fn(|| placement.poll_send()).collect();
        placement.tick(CONFIRM_WITHIN);
        placement.confirmed(sends[0]);
        assert_eq!(placement.outcome(), Outcome::Pending);
    }

    #[test]
    fn a_device_stands_in_for_another_one() {
        let devices = vec![node(8), node(9)];
        let members = Members { first: [0, 8, 9, 8].map(node).to_vec(), spares: vec![node(1)], devices };
        let mut placement = Placement::new(&members, Now::ZERO);
        while let Some(send) = placement.poll_send() {
            if send.node == node(8) { placement.failed(send, Now::ZERO) } else { placement.confirmed(send) }
        }
        assert_eq!(placement.outcome(), Outcome::Durable([0, 9, 9, 9].map(node).to_vec()));
        // Of several, the one with the fewest pieces.
        let first = [5, 6, 7, 8, 9, 5, 6].map(node).to_vec();
        let members = Members { first, spares: Vec::new(), devices: (5..10).map(node).collect() };
        let mut placement = Placement::new(&members, Now::ZERO);
        while let Some(send) = placement.poll_send() {
            if send.node == node(5) { placement.failed(send, Now::ZERO) } else { placement.confirmed(send) }
        }
        assert_eq!(placement.outcome(), Outcome::Durable([7, 6, 7, 8, 9, 8, 6].map(node).to_vec()));
        let members = Members { first: [0, 8, 9, 8].map(node).to_vec(), spares: vec![node(1)], devices: Vec::new() };
        let alone = Members { devices: vec![node(8)], ..members };
        let mut placement = Placement::new(&alone, Now::ZERO);
        placement.failed(Send { piece: 1, node: node(8) }, Now::ZERO);
        assert!(matches!(placement.pieces[1], Piece::Homeless), "no client takes what is for mass storage");
    }

    #[test]
    fn load_follows_free_space() {
        let c = |i, free, groups| {
            let is_badly_reached = i == 5;
            Candidate { node: node(i), free, groups, is_steady: true, is_badly_reached, domains: &[] }
        };
        let wanted =
            Wanted { geometry: Geometry::new(2, 1).unwrap(), pieces: 3, steady: 2, domains: &Domains::default() };
        let all = vec![c(1, 100, 0), c(2, 300, 0), c(3, 300, 3), c(4, 5, 0)];
        assert_eq!(choose(all.clone(), 10, &wanted), [2, 1, 3].map(node));
        // One that is badly reached comes last; but it is better than none.
        assert_eq!(choose([all.clone(), vec![c(5, 900, 0)]].concat(), 10, &wanted), [2, 1, 3, 5].map(node));
        assert_eq!(choose([&all[..2], &[c(5, 900, 0)]].concat(), 10, &wanted), [2, 1, 5].map(node));
    }

    #[test]
    fn members_are_steady_and_fail_apart() {
        let rack = |i: u8| BTreeMap::from([("rack".to_string(), (i % 3).to_string())]);
        let domains = Domains::new(&(0..12).map(|i| (node(i), rack(i))).collect(), &BTreeSet::new());
        let wanted = Wanted { geometry: Geometry::new(4, 2).unwrap(), pieces: 6, steady: 4, domains: &domains };
        // Those of rack 0 have the most room; only those from 6 on are steady.
        let all = (0..12).map(|i| Candidate {
            node: node(i),
            free: if i % 3 == 0 { 900 } else { 100 },
            groups: 0,
            is_steady: i >= 6,
            is_badly_reached: false,
            domains: domains.of(node(i)),
        });
        let members = &choose(all.clone().collect(), 10, &wanted)[..6];
        let of_rack = |rack: u8| members.iter().filter(|m| m.0[0] % 3 == rack).count();
        assert_eq!([0, 1, 2].map(of_rack), [2, 2, 2], "{members:?}");
        assert!(members.iter().filter(|m| m.0[0] >= 6).count() >= 4, "{members:?}");
        // If nobody else is there, a place too many in a rack is better than none.
        let one_rack: Vec<_> = all.filter(|c| c.node.0[0] % 3 == 0).collect();
        assert_eq!(choose(one_rack, 10, &wanted).len(), 4);
    }
}
