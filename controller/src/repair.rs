//! Which members of groups are to be replaced, and by whom. Pure: facts in, decisions out.
//!
//! A member that its owner or an admin sends away is replaced while it is still there: its pieces are copied. One that is lost is replaced
//! by making its pieces anew from k others. That costs k reads for each segment, so it is put off until several are missing, and those
//! are made from one read: the first new member makes the others' pieces along with its own.

use std::collections::{BTreeMap, BTreeSet};

use images::parity::Geometry;
use images::{GroupId, NodeId};

use crate::catalog::{MoveRecord, Seat, Standing};
use crate::domains::{Domain, Domains, UNSTEADY};

/// When something is done.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// A member that was not heard for so many seconds is not expected back.
    pub gone_after_s: u64,
    /// Moves that may be under way.
    pub together: usize,
    /// Whether it is time for what can wait.
    pub is_open: bool,
    /// No move only makes things better while so many are under way.
    pub better_together: usize,
}

/// A member gives a piece away to one of which this share less is in use: less of a difference is not worth the traffic.
const FULLER: f64 = 0.2;
/// Members that are looked at to find the best place for a piece.
const LOOKED_AT: usize = 2000;
/// Searches for a better place in one plan.
const SEARCHES_MAX: usize = 100;

/// A member.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Whether it is up, and does not stand aside.
    pub is_up: bool,
    /// Seconds since it was heard.
    pub silent_s: u64,
    /// Bytes that it could still take.
    pub free: u64,
    /// Bytes that it offers.
    pub capacity: u64,
    /// Bytes that it wants to be rid of.
    pub too_much: u64,
    /// And at once.
    pub is_urgent: bool,
    /// What it was told to delete is still there: how much is too much is known when that is gone.
    pub is_clearing: bool,
    /// It is often off in the busy hours.
    pub is_unsteady: bool,
    /// Nobody knows yet when it is up.
    pub is_new: bool,
    /// It is a mass-storage device: its pieces go to another one, which may have several of a group.
    pub is_device: bool,
    /// What is thought of it.
    pub standing: Standing,
}

/// A group.
#[derive(Clone, Debug)]
pub struct Whole {
    /// k + m.
    pub geometry: Geometry,
    /// Holder of each piece.
    pub members: Vec<NodeId>,
    /// Pieces that their holders were allowed to drop.
    pub vacant: BTreeSet<u8>,
    /// Bytes of all its segments at one member; if nothing is wrong with it, at the most so many.
    pub bytes: u64,
    /// The same, by their number alone: to compare groups with each other.
    pub weight: u64,
    /// Members, mass-storage devices apart, that should be up in the busy hours.
    pub steady: usize,
}

/// Why a member is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// What it held is lost.
    Lost,
    /// It is to be empty.
    Leaves,
    /// It has less room than it had.
    Less,
    /// Others would be a better place for its piece.
    Better,
    /// Others are much emptier.
    Fuller,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lost => "is lost",
            Self::Leaves => "leaves",
            Self::Less => "has less room",
            Self::Better => "is not the best place",
            Self::Fuller => "is fuller than others",
        })
    }
}

/// What is wrong with the members of a group although all are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weak {
    /// One domain would take more pieces along than can be lost.
    Crowded(Domain),
    /// Fewer members than should can be counted on in the busy hours: so many.
    Unsteady(usize),
}

/// Look at a group's members.
pub fn weaknesses<'a>(
    group: &Whole,
    nodes: &BTreeMap<NodeId, Seen>,
    domains: &'a Domains,
) -> impl Iterator<Item = Weak> + use<'a> {
    let counts = domains.count(group.members.iter().copied());
    let is_steady = |node: &&NodeId| nodes.get(*node).is_some_and(|n| !n.is_unsteady && !n.is_device);
    let steady = group.members.iter().filter(is_steady).count();
    let unsteady = (steady < group.steady).then_some(Weak::Unsteady(steady));
    domains.crowded(counts, group.geometry).map(Weak::Crowded).chain(unsteady)
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Moves to begin, those that others copy from first.
    pub begin: Vec<(Seat, MoveRecord, Why)>,
    /// Pieces that their holder may drop before anybody else has them.
    pub vacate: Vec<(Seat, NodeId)>,
    /// Moves to give up: whoever was to have the piece is not to have anything any more.
    pub give_up: Vec<Seat>,
    /// Members that should be replaced, and nobody is there to replace them.
    pub stuck: Vec<(Seat, NodeId, Why)>,
    /// Pieces of groups that are missing, and too few yet to be worth a read of k others.
    pub put_off: usize,
}

/// Missing pieces at which a group is repaired: half of what it can do without. Waiting for the second halves what repair reads, and a
/// machine that was only away for long costs nothing when it comes back.
#[must_use]
pub fn threshold(geometry: Geometry) -> usize {
    geometry.parity().div_ceil(2).max(1)
}

/// Whether what a member holds counts.
#[must_use]
pub fn is_durable(node: Option<&Seen>, policy: &Policy) -> bool {
    node.is_some_and(|seen| seen.standing.is_durable() && (seen.is_up || seen.silent_s <= policy.gone_after_s))
}

/// Whether a move makes pieces anew: for itself, and for those that copy them from its new holder.
fn is_maker(made: &MoveRecord, is_up: &impl Fn(NodeId) -> bool) -> bool {
    made.via.is_none() && !is_up(made.from)
}

/// Whether another move of its group is to be done before this one. A move that makes pieces waits at most for one that goes to the same device:
/// so no two wait for each other.
pub fn waits(
    seat: Seat,
    record: &MoveRecord,
    under_way: &BTreeMap<Seat, MoveRecord>,
    is_up: impl Fn(NodeId) -> bool,
) -> bool {
    let of_group = under_way.range((seat.0, 0)..=(seat.0, u8::MAX));
    of_group.filter(|(_, made)| is_maker(made, &is_up)).any(|(other, made)| {
        let is_before = is_maker(record, &is_up) && made.to == record.to && *other < seat;
        Some(made.to) == record.via || is_before
    })
}

/// Pieces that the new holder has when this move is done: its own; those of others who copy them from it afterwards; and all that it is to
/// have itself of what is lost.
pub fn made_along(
    seat: Seat,
    record: &MoveRecord,
    under_way: &BTreeMap<Seat, MoveRecord>,
    is_up: impl Fn(NodeId) -> bool,
) -> Vec<u8> {
    let of_group = under_way.range((seat.0, 0)..=(seat.0, u8::MAX));
    let is_along = |(other, made): &(&Seat, &MoveRecord)| {
        let is_own = is_maker(record, &is_up) && is_maker(made, &is_up) && made.to == record.to;
        **other != seat && (made.via == Some(record.to) || is_own)
    };
    std::iter::once(seat.1).chain(of_group.filter(is_along).map(|(other, _)| other.1)).collect()
}

struct Planner<'a> {
    policy: &'a Policy,
    nodes: &'a BTreeMap<NodeId, Seen>,
    groups: &'a BTreeMap<GroupId, Whole>,
    /// Number of groups of each member that could take more, those that it is about to be in included, and bytes that it could still take.
    takers: BTreeMap<NodeId, (u32, u64)>,
    /// The same members, those with the fewest groups for their room first.
    ranked: BTreeSet<(u128, NodeId)>,
    /// New members of each group.
    coming: BTreeMap<GroupId, Vec<NodeId>>,
    /// Pieces of each group whose members are being replaced.
    going: BTreeMap<GroupId, BTreeSet<u8>>,
    /// What each member holds when all is done, by weight.
    held: BTreeMap<NodeId, u64>,
    domains: &'a Domains,
    plan: Plan,
}

/// Decide.
#[must_use]
pub fn plan(
    policy: &Policy,
    nodes: &BTreeMap<NodeId, Seen>,
    groups: &BTreeMap<GroupId, Whole>,
    under_way: &BTreeMap<Seat, MoveRecord>,
    domains: &Domains,
    now_unix_s: u64,
) -> Plan {
    let could_take = |seen: &&Seen| seen.is_up && seen.standing.may_take() && seen.too_much == 0;
    let mut takers: BTreeMap<NodeId, (u32, u64)> =
        nodes.iter().filter(|(_, seen)| could_take(seen)).map(|(id, seen)| (*id, (0, seen.free))).collect();
    for node in groups.values().flat_map(|g| &g.members) {
        if let Some((load, _)) = takers.get_mut(node) {
            *load += 1;
        }
    }
    let ranked = takers.iter().map(|(id, taker)| (rank(*taker), *id)).collect();
    let mut held: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (node, weight) in groups.values().flat_map(|g| g.members.iter().map(|node| (*node, g.weight))) {
        *held.entry(node).or_default() += weight;
    }
    let (coming, going) = (BTreeMap::new(), BTreeMap::new());
    let plan = Plan::default();
    let mut planner = Planner { policy, nodes, groups, takers, ranked, coming, going, held, domains, plan };
    let mut kept = BTreeMap::new();
    for (seat, record) in under_way {
        let is_good = |node: &NodeId| nodes.get(node).is_some_and(|n| n.standing.may_take() && n.too_much == 0);
        let group = groups.get(&seat.0);
        let is_due = group.is_some_and(|g| g.members.get(usize::from(seat.1)) == Some(&record.from));
        if is_due && is_good(&record.to) && is_durable(nodes.get(&record.to), policy) {
            planner.promise(*seat, record.from, record.to);
            kept.insert(*seat, record.clone());
        } else {
            planner.plan.give_up.push(*seat);
        }
    }
    let rooms = policy.together.saturating_sub(kept.len());
    planner.replace(&kept, rooms, now_unix_s);
    if policy.is_open {
        planner.improve(&kept, now_unix_s);
    }
    planner.plan
}

impl Planner<'_> {
    fn promise(&mut self, (group, piece): Seat, from: NodeId, to: NodeId) {
        self.fill(group, to);
        let weight = self.groups.get(&group).map_or(0, |g| g.weight);
        *self.held.entry(to).or_default() += weight;
        let left = self.held.entry(from).or_default();
        *left = left.saturating_sub(weight);
        self.going.entry(group).or_default().insert(piece);
        self.coming.entry(group).or_default().push(to);
    }

    /// Bytes of a group are on their way to a member.
    fn fill(&mut self, group: GroupId, to: NodeId) {
        let bytes = self.groups.get(&group).map_or(0, |g| g.bytes);
        if let Some(taker) = self.takers.get_mut(&to) {
            self.ranked.remove(&(rank(*taker), to));
            *taker = (taker.0 + 1, taker.1.saturating_sub(bytes));
            self.ranked.insert((rank(*taker), to));
        }
    }

    /// Seats whose member must be replaced, the most urgent first.
    fn needs(&mut self, kept: &BTreeMap<Seat, MoveRecord>) -> Vec<(Seat, NodeId, Why)> {
        let mut lost: Vec<(usize, Vec<(Seat, NodeId, Why)>)> = Vec::new();
        let mut others = Vec::new();
        // What is on its way from a member with too little room counts.
        let mut too_much: BTreeMap<NodeId, u64> =
            self.nodes.iter().filter(|(_, n)| n.too_much > 0).map(|(id, n)| (*id, n.too_much)).collect();
        for (seat, record) in kept {
            if let (Some(left), Some(group)) = (too_much.get_mut(&record.from), self.groups.get(&seat.0)) {
                *left = left.saturating_sub(group.bytes);
            }
        }
        let mut could_go: BTreeMap<NodeId, Vec<(u64, Seat)>> = BTreeMap::new();
        for (id, group) in self.groups {
            let mut missing = Vec::new();
            for (piece, node) in group.members.iter().enumerate() {
                let (seat, seen) = ((*id, piece as u8), self.nodes.get(node));
                if group.vacant.contains(&seat.1) || !is_durable(seen, self.policy) {
                    missing.push((seat, *node, Why::Lost));
                } else if seen.is_some_and(|n| n.standing.is_sent_away()) {
                    others.push((seat, *node, Why::Leaves));
                } else if too_much.contains_key(node)
                    && !seen.is_some_and(|n| n.is_clearing)
                    && !kept.contains_key(&seat)
                {
                    could_go.entry(*node).or_default().push((group.bytes, seat));
                }
            }
            let is_said = |(seat, node, _): &(Seat, NodeId, Why)| {
                group.vacant.contains(&seat.1) || self.nodes.get(node).is_none_or(|n| !n.standing.is_durable())
            };
            // What is due can still wait for its hours, unless it has become more meanwhile, or one more would leave no margin.
            let due = threshold(group.geometry) + usize::from(!self.policy.is_open);
            if missing.len() >= due.min(group.geometry.parity().saturating_sub(1).max(1)) || missing.iter().any(is_said)
            {
                // What cannot be made anew must not keep what can be waiting.
                let margin = (group.members.len() - missing.len()).checked_sub(group.geometry.data());
                lost.push((margin.unwrap_or(usize::MAX), missing));
            } else {
                self.plan.put_off += missing.len();
            }
        }
        lost.sort_by_key(|(margin, missing)| (*margin, missing.first().map(|(seat, ..)| *seat)));
        let mut needs: Vec<_> = lost.into_iter().flat_map(|(_, missing)| missing).collect();
        needs.extend(others);
        let mut vacated: BTreeMap<GroupId, usize> = BTreeMap::new();
        for (node, mut seats) in could_go {
            seats.sort_unstable();
            let mut left = too_much.get(&node).copied().unwrap_or(0);
            while left > 0 {
                // The smallest that is enough; else the largest.
                let enough = seats.iter().position(|(bytes, _)| *bytes >= left);
                let Some((bytes, seat)) = enough.map(|at| seats.remove(at)).or_else(|| seats.pop()) else { break };
                left = left.saturating_sub(bytes.max(1));
                if self.nodes.get(&node).is_some_and(|n| n.is_urgent) && self.can_do_without(seat, &mut vacated) {
                    self.plan.vacate.push((seat, node));
                } else {
                    needs.push((seat, node, Why::Less));
                }
            }
        }
        needs.retain(|(seat, ..)| !kept.contains_key(seat));
        needs
    }

    /// Whether more pieces than k are there and stay, without this one and those that were vacated before it.
    fn can_do_without(&self, seat: Seat, vacated: &mut BTreeMap<GroupId, usize>) -> bool {
        let Some(group) = self.groups.get(&seat.0) else { return false };
        let gone = vacated.entry(seat.0).or_default();
        let is_there = |(piece, node): (usize, &NodeId)| {
            let seen = self.nodes.get(node).filter(|n| n.is_up && n.standing.is_durable());
            !group.vacant.contains(&(piece as u8)) && seen.is_some()
        };
        let there = group.members.iter().enumerate().filter(|(piece, node)| is_there((*piece, *node))).count();
        let can = there.saturating_sub(1 + *gone) > group.geometry.data();
        *gone += usize::from(can);
        can
    }

    fn replace(&mut self, kept: &BTreeMap<Seat, MoveRecord>, rooms: usize, since_unix_s: u64) {
        let needs = self.needs(kept);
        // Of each group, who makes pieces for others: from now on, if it is at it already.
        let is_maker = |(_, record): &(&Seat, &MoveRecord)| {
            record.via.is_none() && !is_durable(self.nodes.get(&record.from), self.policy)
        };
        let mut makers: BTreeMap<GroupId, NodeId> =
            kept.iter().filter(is_maker).map(|(seat, record)| (seat.0, record.to)).collect();
        for (seat, from, why) in needs {
            if self.plan.begin.len() >= rooms {
                return;
            }
            let Some(Place { node: to, .. }) = self.target(seat, from) else {
                self.plan.stuck.push((seat, from, why));
                continue;
            };
            let maker = (why == Why::Lost).then(|| *makers.entry(seat.0).or_insert(to));
            let via = maker.filter(|maker| *maker != to);
            self.promise(seat, from, to);
            if let Some(via) = via {
                self.fill(seat.0, via);
            }
            self.plan.begin.push((seat, MoveRecord { from, to, via, since_unix_s }, why));
        }
    }

    /// Move pieces that lie badly, one of each group at a time, if there is a better place.
    fn improve(&mut self, kept: &BTreeMap<Seat, MoveRecord>, since_unix_s: u64) {
        let groups = self.groups;
        // Not always the same ones first: looking for a place takes time, and may be in vain.
        let at = (since_unix_s % groups.len().max(1) as u64) as usize;
        let start = groups.keys().nth(at).copied().unwrap_or(GroupId(0));
        let mut searches = 0;
        // Of stashes and of mass-storage devices.
        let mut emptiest = [1.0, 1.0];
        for (node, (_, free)) in &self.takers {
            let of_kind: &mut f64 = &mut emptiest[usize::from(self.is_device(node))];
            if *free > 0 {
                *of_kind = of_kind.min(self.in_use(*node, 0));
            }
        }
        for (id, group) in groups.range(start..).chain(groups.range(..start)) {
            if kept.len() + self.plan.begin.len() >= self.policy.better_together || searches >= SEARCHES_MAX {
                return;
            }
            let stays = |node: &NodeId| {
                let seen = self.nodes.get(node);
                is_durable(seen, self.policy) && seen.is_some_and(|n| n.standing.may_take())
            };
            if self.coming.contains_key(id) || !group.vacant.is_empty() || !group.members.iter().all(stays) {
                continue;
            }
            let better = self.better(*id, group, &mut searches).map(|(piece, to)| (piece, to, Why::Better));
            let emptier =
                || self.emptier(*id, group, emptiest, &mut searches).map(|(piece, to)| (piece, to, Why::Fuller));
            if let Some((piece, to, why)) = better.or_else(emptier) {
                let (seat, from) = ((*id, piece as u8), group.members[piece]);
                self.promise(seat, from, to);
                self.plan.begin.push((seat, MoveRecord { from, to, via: None, since_unix_s }, why));
            }
        }
    }

    /// Share of what a member offers that is in use, when it has this much more.
    fn in_use(&self, node: NodeId, more: u64) -> f64 {
        let held = self.held.get(&node).copied().unwrap_or(0) + more;
        let capacity = self.nodes.get(&node).map_or(0, |n| n.capacity);
        if capacity == 0 { 1.0 } else { held as f64 / capacity as f64 }
    }

    /// The piece of a group that its fullest member has, and somebody much emptier for it: stashes that joined take their part.
    fn emptier(&self, id: GroupId, group: &Whole, emptiest: [f64; 2], searches: &mut usize) -> Option<(usize, NodeId)> {
        let seen = |node: &NodeId, what: fn(&Seen) -> bool| self.nodes.get(node).is_some_and(what);
        let counts = |node: &NodeId| !seen(node, |n| n.is_unsteady || n.is_new || n.is_device);
        let steady = group.members.iter().filter(|node| counts(node)).count();
        for is_device in [false, true] {
            let is_meant = |(_, node): &(usize, &NodeId)| {
                seen(node, |n| n.is_up && n.capacity > 0) && self.is_device(node) == is_device
            };
            let members = group.members.iter().enumerate().filter(is_meant);
            let in_use = members.map(|(piece, node)| (piece, *node, self.in_use(*node, 0)));
            let fullest = in_use.max_by(|a, b| a.2.total_cmp(&b.2));
            let much = |in_use: f64| in_use - emptiest[usize::from(is_device)] >= FULLER;
            let Some((piece, from, in_use)) = fullest.filter(|(.., in_use)| much(*in_use)) else { continue };
            *searches += 1;
            let Some(to) = self.target((id, piece as u8), from) else { continue };
            // Whoever is new may turn out to be anything.
            let leaves_enough = counts(&to.node) || steady - usize::from(counts(&from)) >= group.steady || is_device;
            let is_better = to.faults <= to.faults_of_before && leaves_enough;
            if is_better && in_use - self.in_use(to.node, group.weight) >= FULLER {
                return Some((piece, to.node));
            }
        }
        None
    }

    fn is_device(&self, node: &NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| n.is_device)
    }

    /// A piece of a group that lies badly, and a better place for it.
    fn better(&self, id: GroupId, group: &Whole, searches: &mut usize) -> Option<(usize, NodeId)> {
        for weak in weaknesses(group, self.nodes, self.domains) {
            let is_in = |node: &NodeId, domain| self.domains.of(*node).contains(&domain);
            let seen = |node: &NodeId, what: fn(&Seen) -> bool| self.nodes.get(node).is_some_and(what);
            let is_wrong = |node: &NodeId| match weak {
                Weak::Crowded(domain) => is_in(node, domain),
                Weak::Unsteady(_) => seen(node, |n| n.is_unsteady),
            };
            // The last one: data pieces are read first, and stay where they are. It is copied, so it has to be there.
            let is_wrong_here = |node: &NodeId| is_wrong(node) && seen(node, |n| n.is_up);
            let Some(piece) = group.members.iter().rposition(is_wrong_here) else { continue };
            *searches += 1;
            let Some(Place { node: to, faults, faults_of_before }) =
                self.target((id, piece as u8), group.members[piece])
            else {
                continue;
            };
            // Whoever is new may turn out to be anything.
            let is_known = matches!(weak, Weak::Crowded(_)) || !seen(&to, |n| n.is_new);
            if faults < faults_of_before && is_known && !is_wrong(&to) {
                return Some((piece, to));
            }
        }
        None
    }

    /// Who could have a piece of a group instead of one of its members: of the best places for it, the one with the fewest groups for its
    /// room.
    fn target(&self, (group, piece): Seat, from: NodeId) -> Option<Place> {
        let whole = self.groups.get(&group)?;
        let coming = self.coming.get(&group);
        let is_device = |node: &NodeId| self.is_device(node);
        let fits = |node: &NodeId| {
            let is_in = whole.members.contains(node) || coming.is_some_and(|c| c.contains(node));
            let may = if is_device(node) { *node != from } else { !is_in };
            may && is_device(node) == is_device(&from)
                && self.takers.get(node).is_some_and(|(_, free)| *free > whole.bytes)
        };
        let going = self.going.get(&group);
        let stays = |(at, _): &(usize, &NodeId)| {
            let at = *at as u8;
            at != piece && !going.is_some_and(|g| g.contains(&at))
        };
        let staying = whole.members.iter().enumerate().filter(stays).map(|(_, node)| node);
        let others: Vec<NodeId> = staying.chain(coming.into_iter().flatten()).copied().collect();
        let of_kind = whole.members.iter().filter(|node| is_device(node) == is_device(&from)).count();
        let is_unsteady = |node: &NodeId| self.nodes.get(node).is_some_and(|n| n.is_unsteady);
        let needs_steady = others.iter().filter(|node| !is_unsteady(node) && !is_device(node)).count() < whole.steady;
        let counts = self.domains.count(others.into_iter());
        let faults = |node: &NodeId| {
            let of_domain = |domain: &Domain| {
                let count = counts.get(domain).copied().unwrap_or(0) + 1;
                self.domains.fault(*domain, count, of_kind, whole.geometry.parity())
            };
            let steady = if needs_steady && is_unsteady(node) { UNSTEADY } else { 0 };
            steady + self.domains.of(*node).iter().map(of_domain).sum::<usize>()
        };
        let mut best: Option<(NodeId, usize)> = None;
        for (looked, node) in self.ranked.iter().map(|(_, node)| *node).enumerate() {
            if looked >= LOOKED_AT && best.is_some() {
                break;
            }
            if !fits(&node) {
                continue;
            }
            let of = faults(&node);
            if best.is_none_or(|(_, least)| of < least) {
                best = Some((node, of));
            }
            if of == 0 {
                break;
            }
        }
        best.map(|(node, of)| Place { node, faults: of, faults_of_before: faults(&from) })
    }
}

/// A place for a piece, how bad it is, and how bad the one is that it has.
struct Place {
    node: NodeId,
    faults: usize,
    faults_of_before: usize,
}

/// Groups for each byte of room, as a number to order by.
fn rank((groups, free): (u32, u64)) -> u128 {
    (u128::from(groups + 1) << 64) / u128::from(free.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { gone_after_s: 1000, together: 16, is_open: true, better_together: 16 };

    fn plan(
        policy: &Policy,
        nodes: &BTreeMap<NodeId, Seen>,
        groups: &BTreeMap<GroupId, Whole>,
        under_way: &BTreeMap<Seat, MoveRecord>,
        now_unix_s: u64,
    ) -> Plan {
        super::plan(policy, nodes, groups, under_way, &Domains::default(), now_unix_s)
    }

    fn id(i: u8) -> NodeId {
        NodeId([i; 16])
    }

    fn fleet(count: u8) -> BTreeMap<NodeId, Seen> {
        (0..count).map(|i| (id(i), Seen { is_up: true, free: 1000, ..Seen::default() })).collect()
    }

    fn group(number: u32, k: u8, m: u8, members: &[u8], bytes: u64) -> (GroupId, Whole) {
        let geometry = Geometry::new(k, m).unwrap();
        let members = members.iter().map(|i| id(*i)).collect();
        let (vacant, steady) = (BTreeSet::new(), k.into());
        (GroupId(number), Whole { geometry, members, vacant, bytes, weight: bytes, steady })
    }

    fn moves(plan: &Plan) -> Vec<(u32, u8, NodeId, NodeId, Option<NodeId>)> {
        plan.begin.iter().map(|(seat, r, _)| (seat.0.0, seat.1, r.from, r.to, r.via)).collect()
    }

    #[test]
    fn who_leaves_is_replaced_at_once_and_who_is_away_is_waited_for() {
        let groups = BTreeMap::from([group(1, 2, 2, &[0, 1, 2, 3], 10)]);
        let mut nodes = fleet(6);
        assert_eq!(plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7), Plan::default());
        let away = nodes.get_mut(&id(0)).unwrap();
        (away.is_up, away.silent_s) = (false, 1000);
        assert_eq!(plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7), Plan::default());
        nodes.get_mut(&id(1)).unwrap().standing.draining = true;
        let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
        assert_eq!(moves(&planned), [(1, 1, id(1), id(4), None)]);
        // While it is under way, nothing is planned twice; when its target is to be empty, too, it is given up.
        let under_way = BTreeMap::from([(planned.begin[0].0, planned.begin[0].1.clone())]);
        assert_eq!(plan(&POLICY, &nodes, &groups, &under_way, 8), Plan::default());
        nodes.get_mut(&id(4)).unwrap().standing.leaving = true;
        let planned = plan(&POLICY, &nodes, &groups, &under_way, 8);
        assert_eq!(planned.give_up, [(GroupId(1), 1)]);
    }

    #[test]
    fn who_joins_takes_a_part() {
        // Four stashes of 100, with four groups of 10 on each.
        let mut groups: BTreeMap<_, _> = (1..=4).map(|g| group(g, 2, 2, &[0, 1, 2, 3], 10)).collect();
        let of_100 = |free| Seen { is_up: true, free, capacity: 100, ..Seen::default() };
        let mut nodes: BTreeMap<NodeId, Seen> = (0..4).map(|i| (id(i), of_100(60))).collect();
        assert_eq!(plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 1), Plan::default());
        nodes.extend((4..6).map(|i| (id(i), of_100(100))));
        let mut rounds = 0;
        loop {
            let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), rounds);
            assert!(planned.begin.iter().all(|(.., why)| *why == Why::Fuller) && rounds < 10, "{planned:?}");
            if planned.begin.is_empty() {
                break;
            }
            for ((group, piece), record, _) in planned.begin {
                groups.get_mut(&group).unwrap().members[usize::from(piece)] = record.to;
                nodes.get_mut(&record.to).unwrap().free -= 10;
                nodes.get_mut(&record.from).unwrap().free += 10;
            }
            rounds += 1;
        }
        let held = |i| groups.values().filter(|g| g.members.contains(&id(i))).count();
        let all: Vec<usize> = (0..6).map(held).collect();
        assert!(all.iter().all(|held| (2..=4).contains(held)) && all[4] + all[5] >= 4, "{all:?}");
        // In other hours nothing moves.
        nodes.extend((6..8).map(|i| (id(i), of_100(100))));
        let closed = Policy { is_open: false, ..POLICY };
        assert_eq!(plan(&closed, &nodes, &groups, &BTreeMap::new(), 1), Plan::default());
    }

    #[test]
    fn no_two_moves_wait_for_each_other() {
        let to =
            |from, to, via: Option<u8>| MoveRecord { from: id(from), to: id(to), via: via.map(id), since_unix_s: 0 };
        let seat = |piece| (GroupId(1), piece);
        // Device 20 was lost, then device 21; 30 and 31 take their pieces. The first of 30's is done.
        let under_way: BTreeMap<Seat, MoveRecord> =
            [(12, to(20, 31, Some(30))), (11, to(21, 31, None)), (13, to(21, 30, Some(31)))]
                .map(|(piece, record)| (seat(piece), record))
                .into();
        let is_up = |node| node != id(20) && node != id(21);
        let waiting: Vec<u8> =
            under_way.iter().filter(|(s, r)| waits(**s, r, &under_way, is_up)).map(|(s, _)| s.1).collect();
        assert_eq!(waiting, [13]);
        assert_eq!(made_along(seat(11), &under_way[&seat(11)], &under_way, is_up), [11, 13]);
        // What a device is to have of what is lost is made from one read; what can be copied waits for nothing.
        let under_way: BTreeMap<Seat, MoveRecord> =
            [(4, to(20, 30, None)), (5, to(20, 30, None)), (6, to(9, 30, None))].map(|(p, r)| (seat(p), r)).into();
        let waiting: Vec<u8> =
            under_way.iter().filter(|(s, r)| waits(**s, r, &under_way, is_up)).map(|(s, _)| s.1).collect();
        assert_eq!(waiting, [5]);
        assert_eq!(made_along(seat(4), &under_way[&seat(4)], &under_way, is_up), [4, 5]);
        assert_eq!(made_along(seat(6), &under_way[&seat(6)], &under_way, is_up), [6]);
    }

    #[test]
    fn a_device_with_too_many_pieces_gives_some_away() {
        // Data on device 8 alone: the other one was removed. Five of ten pieces may be lost.
        let mut groups = BTreeMap::from([group(1, 8, 4, &[8, 8, 8, 8, 8, 8, 8, 8, 0, 1, 2, 3], 10)]);
        let mut nodes = fleet(10);
        (8..10).for_each(|i| nodes.get_mut(&id(i)).unwrap().is_device = true);
        let labels = nodes.keys().map(|n| (*n, Default::default())).collect();
        let domains = Domains::new(&labels, &[8, 9].map(id).into());
        groups.get_mut(&GroupId(1)).unwrap().steady = 0;
        for round in 0..4 {
            let planned = super::plan(&POLICY, &nodes, &groups, &BTreeMap::new(), &domains, round);
            assert_eq!(planned.begin.len(), 1, "round {round}: {planned:?}");
            let ((_, piece), record, why) = planned.begin[0].clone();
            assert_eq!((record.to, why), (id(9), Why::Better));
            groups.get_mut(&GroupId(1)).unwrap().members[usize::from(piece)] = record.to;
        }
        assert_eq!(super::plan(&POLICY, &nodes, &groups, &BTreeMap::new(), &domains, 9), Plan::default(), "four each");
    }

    #[test]
    fn a_mass_storage_device_is_replaced_by_others() {
        // Data on clients 0 to 3, parity on devices 8 and 9.
        let groups = BTreeMap::from([group(1, 4, 3, &[0, 1, 2, 3, 8, 9, 8], 10)]);
        let mut nodes = fleet(12);
        (8..11).for_each(|i| nodes.get_mut(&id(i)).unwrap().is_device = true);
        let labels = nodes.keys().map(|n| (*n, Default::default())).collect();
        let domains = Domains::new(&labels, &[8, 9, 10].map(id).into());
        let plan = |nodes: &_, under_way: &_| super::plan(&POLICY, nodes, &groups, under_way, &domains, 7);
        assert_eq!(plan(&nodes, &BTreeMap::new()), Plan::default());
        nodes.get_mut(&id(8)).unwrap().standing.lost = true;
        let planned = plan(&nodes, &BTreeMap::new());
        let both = [(1, 4, id(8), id(10), None), (1, 6, id(8), id(9), Some(id(10)))];
        assert_eq!(moves(&planned), both, "not to a client, and not both to one");
        nodes.get_mut(&id(9)).unwrap().is_up = false;
        let planned = plan(&nodes, &BTreeMap::new());
        assert_eq!(moves(&planned), [(1, 4, id(8), id(10), None), (1, 6, id(8), id(10), None)], "there is one only");
        let under_way = planned.begin.iter().map(|(seat, record, _)| (*seat, record.clone())).collect();
        assert_eq!(plan(&nodes, &under_way), Plan::default());
        // A client's piece goes to a client, and a device without another one waits.
        nodes.get_mut(&id(10)).unwrap().standing.draining = true;
        nodes.get_mut(&id(0)).unwrap().standing.draining = true;
        let planned = plan(&nodes, &BTreeMap::new());
        assert_eq!(moves(&planned), [(1, 0, id(0), id(4), None)]);
        assert_eq!(planned.stuck.len(), 2);
    }

    #[test]
    fn losses_are_gathered_and_made_from_one_read() {
        let groups = BTreeMap::from([group(1, 4, 4, &[0, 1, 2, 3, 4, 5, 6, 7], 10)]);
        let mut nodes = fleet(11);
        let gone = |nodes: &mut BTreeMap<NodeId, Seen>, i| {
            let node = nodes.get_mut(&id(i)).unwrap();
            (node.is_up, node.silent_s) = (false, 1001);
        };
        gone(&mut nodes, 2);
        let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
        assert_eq!((planned.begin.len(), planned.put_off), (0, 1));
        gone(&mut nodes, 6);
        let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
        assert_eq!(moves(&planned), [(1, 2, id(2), id(8), None), (1, 6, id(6), id(9), Some(id(8)))]);
        // A third one that is found missing meanwhile comes along.
        let under_way = planned.begin.iter().map(|(seat, record, _)| (*seat, record.clone())).collect();
        gone(&mut nodes, 7);
        nodes.get_mut(&id(7)).unwrap().standing.lost = true;
        let planned = plan(&POLICY, &nodes, &groups, &under_way, 7);
        assert_eq!(moves(&planned), [(1, 7, id(7), id(10), Some(id(8)))]);
        // Said by a person, one is enough.
        let mut nodes = fleet(9);
        nodes.get_mut(&id(2)).unwrap().standing.lost = true;
        assert_eq!(moves(&plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7)), [(1, 2, id(2), id(8), None)]);
        nodes.get_mut(&id(8)).unwrap().free = 10;
        let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
        assert_eq!(planned.stuck, [((GroupId(1), 2), id(2), Why::Lost)], "nobody has room");
    }

    #[test]
    fn what_is_weakest_comes_first() {
        let of = |number, members: &[u8]| group(number, 2, 2, members, 10);
        let groups = BTreeMap::from([of(1, &[0, 1, 2, 3]), of(2, &[0, 4, 5, 6]), of(3, &[0, 1, 2, 4])]);
        let mut nodes = fleet(12);
        for i in [4, 5, 6, 0] {
            nodes.get_mut(&id(i)).unwrap().standing.lost = true;
        }
        let planned = plan(&Policy { together: 3, ..POLICY }, &nodes, &groups, &BTreeMap::new(), 7);
        let order: Vec<u32> = planned.begin.iter().map(|(seat, ..)| seat.0.0).collect();
        assert_eq!(order, [3, 3, 1], "of group 2 nothing can be made any more: it must not keep others waiting");
    }

    #[test]
    fn a_full_disk_is_emptied_at_once_where_others_can_do_without() {
        let mut groups = BTreeMap::from([group(1, 2, 2, &[0, 1, 2, 3], 10), group(2, 2, 1, &[0, 1, 2], 10)]);
        let mut nodes = fleet(4);
        let full = nodes.get_mut(&id(0)).unwrap();
        (full.too_much, full.is_urgent) = (100, true);
        let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
        assert_eq!(planned.vacate, [((GroupId(1), 0), id(0))], "of the other group no further one could be lost");
        assert_eq!(moves(&planned), [(2, 0, id(0), id(3), None)]);
        groups.get_mut(&GroupId(1)).unwrap().vacant.insert(0);
        let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
        assert!(planned.vacate.is_empty());
        assert_eq!(planned.stuck, [((GroupId(1), 0), id(0), Why::Lost)], "nobody else is there");
        nodes.insert(id(9), Seen { is_up: true, free: 1000, ..Seen::default() });
        let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
        assert!(moves(&planned).contains(&(1, 0, id(0), id(9), None)), "{planned:?}");
        // Two of the same group at the same time: only one may.
        let mut nodes = fleet(4);
        for i in [0, 1] {
            let full = nodes.get_mut(&id(i)).unwrap();
            (full.too_much, full.is_urgent) = (100, true);
        }
        groups.get_mut(&GroupId(1)).unwrap().vacant.clear();
        assert_eq!(plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7).vacate.len(), 1);
    }

    #[test]
    fn pieces_that_lie_badly_are_moved_in_their_hours() {
        // Two racks of four; a group of 2 + 2 has three pieces in rack 0.
        let rack = |i: u8| BTreeMap::from([("rack".to_string(), (i / 4).to_string())]);
        let domains = Domains::new(&(0..8).map(|i| (id(i), rack(i))).collect(), &BTreeSet::new());
        let groups = BTreeMap::from([group(1, 2, 2, &[0, 1, 2, 4], 10)]);
        let mut nodes = fleet(8);
        let now = |nodes: &BTreeMap<NodeId, Seen>, is_open| {
            super::plan(&Policy { is_open, ..POLICY }, nodes, &groups, &BTreeMap::new(), &domains, 7)
        };
        assert_eq!(moves(&now(&nodes, true)), [(1, 2, id(2), id(5), None)]);
        assert_eq!(now(&nodes, false), Plan::default(), "it can wait");
        // If nobody is there in the other rack, it stays, and is nobody's trouble.
        for i in 5..8 {
            nodes.get_mut(&id(i)).unwrap().is_up = false;
        }
        assert_eq!(now(&nodes, true), Plan::default());
        // A member that is lost is replaced all the same, and by the best that is there.
        nodes.get_mut(&id(4)).unwrap().standing.lost = true;
        assert_eq!(moves(&now(&nodes, true))[0], (1, 3, id(4), id(3), None));
        nodes.get_mut(&id(7)).unwrap().is_up = true;
        assert_eq!(moves(&now(&nodes, true))[0], (1, 3, id(4), id(7), None));

        // Of four members three are off in the busy hours: two must not be.
        let nothing = Domains::default();
        let mut nodes = fleet(8);
        for i in [0, 1, 2, 5] {
            nodes.get_mut(&id(i)).unwrap().is_unsteady = true;
        }
        let planned = super::plan(&POLICY, &nodes, &groups, &BTreeMap::new(), &nothing, 7);
        assert_eq!(moves(&planned), [(1, 2, id(2), id(3), None)]);
        let weak: Vec<Weak> = weaknesses(&groups[&GroupId(1)], &nodes, &nothing).collect();
        assert_eq!(weak, [Weak::Unsteady(1)]);
        // Nobody moves to whoever is new.
        (3..8).for_each(|i| nodes.get_mut(&id(i)).unwrap().is_new = true);
        assert_eq!(super::plan(&POLICY, &nodes, &groups, &BTreeMap::new(), &nothing, 7), Plan::default());
        // All in one building, which nobody can help, and three of four in one rack, which somebody can.
        let labels = |i: u8| {
            let both = [("building", 0), ("rack", i / 4)];
            both.map(|(key, value)| (key.to_string(), value.to_string())).into_iter().collect()
        };
        let mut both: BTreeMap<NodeId, crate::domains::Labels> = (0..8).map(|i| (id(i), labels(i))).collect();
        both.insert(id(9), [("building".to_string(), "1".to_string())].into());
        let planned =
            super::plan(&POLICY, &fleet(8), &groups, &BTreeMap::new(), &Domains::new(&both, &BTreeSet::new()), 7);
        assert_eq!(moves(&planned), [(1, 2, id(2), id(5), None)]);
    }

    #[test]
    fn what_is_due_waits_for_its_hours_unless_it_becomes_more() {
        let groups = BTreeMap::from([group(1, 4, 4, &[0, 1, 2, 3, 4, 5, 6, 7], 10)]);
        let mut nodes = fleet(12);
        let closed = Policy { is_open: false, ..POLICY };
        for (gone, begins) in [(0, 0), (1, 0), (2, 3)] {
            let node = nodes.get_mut(&id(gone)).unwrap();
            (node.is_up, node.silent_s) = (false, 1001);
            assert_eq!(plan(&closed, &nodes, &groups, &BTreeMap::new(), 7).begin.len(), begins, "{gone}");
        }
    }

    #[test]
    fn a_member_with_less_room_gives_what_is_enough() {
        let groups: BTreeMap<_, _> =
            [(1, 30), (2, 50), (3, 80)].map(|(i, bytes)| group(i, 2, 1, &[0, 1, 2], bytes)).into_iter().collect();
        let mut nodes = fleet(5);
        for (too_much, want) in [(1, vec![1]), (40, vec![2]), (81, vec![3, 1]), (1000, vec![3, 2, 1])] {
            nodes.get_mut(&id(0)).unwrap().too_much = too_much;
            let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
            assert_eq!(planned.begin.iter().map(|(seat, ..)| seat.0.0).collect::<Vec<_>>(), want, "{too_much}");
        }
    }
}
