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
/// And so much less must still be in use when the other one has it. Every such move evens out what is in use, so they come to an end.
const STILL_FULLER: f64 = 0.1;
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
    /// Bytes of all its segments at one member.
    pub bytes: u64,
    /// Members, mass-storage devices apart, that should be up in the busy hours.
    pub steady: usize,
    /// Whether mass storage has a copy of all of it, so that it can be made anew from less than k pieces.
    pub is_copied: bool,
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

/// Pieces of a segment that their holders have lost.
pub type Bad = BTreeSet<u8>;

/// Of a segment that is whole.
pub const NONE_BAD: &Bad = &Bad::new();

impl Whole {
    fn holders<'a>(&'a self, bad: &'a Bad, counts: impl Fn(&NodeId) -> bool + 'a) -> impl Iterator<Item = NodeId> + 'a {
        let is_there = move |(piece, node): &(usize, &NodeId)| {
            let piece = *piece as u8;
            !self.vacant.contains(&piece) && !bad.contains(&piece) && counts(node)
        };
        self.members.iter().enumerate().filter(is_there).map(|(_, node)| *node)
    }

    /// Holders of the pieces of a segment that are not lost, one for each piece.
    pub fn durable<'a>(
        &'a self,
        nodes: &'a BTreeMap<NodeId, Seen>,
        policy: &'a Policy,
        bad: &'a Bad,
    ) -> impl Iterator<Item = NodeId> + 'a {
        self.holders(bad, |node| is_durable(nodes.get(node), policy))
    }

    /// Pieces of a segment that can be read now.
    #[must_use]
    pub fn online(&self, nodes: &BTreeMap<NodeId, Seen>, bad: &Bad) -> usize {
        self.holders(bad, |node| nodes.get(node).is_some_and(|n| n.is_up && n.standing.is_durable())).count()
    }
}

/// Pieces that a group can lose before it cannot be read any more.
#[must_use]
pub fn margin(group: &Whole, nodes: &BTreeMap<NodeId, Seen>, policy: &Policy) -> usize {
    group.durable(nodes, policy, NONE_BAD).count().saturating_sub(group.geometry.data())
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
    /// Bytes that each member holds when all is done.
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
    for (node, bytes) in groups.values().flat_map(|g| g.members.iter().map(|node| (*node, g.bytes))) {
        *held.entry(node).or_default() += bytes;
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
    // Those that nothing can be made for, until somebody comes back, keep nobody else waiting.
    let goes_on = |(seat, record): &(&Seat, &MoveRecord)| {
        let can_be_read = |g: &Whole| g.is_copied || g.online(nodes, NONE_BAD) >= g.geometry.data();
        nodes.get(&record.from).is_some_and(|n| n.is_up) || groups.get(&seat.0).is_some_and(can_be_read)
    };
    let under_way = kept.iter().filter(goes_on).count();
    planner.replace(&kept, policy.together.saturating_sub(under_way), now_unix_s);
    if policy.is_open {
        planner.improve(under_way, now_unix_s);
    }
    planner.plan
}

impl Planner<'_> {
    fn promise(&mut self, (group, piece): Seat, from: NodeId, to: NodeId) {
        self.fill(group, to);
        let bytes = self.groups.get(&group).map_or(0, |g| g.bytes);
        *self.held.entry(to).or_default() += bytes;
        let left = self.held.entry(from).or_default();
        *left = left.saturating_sub(bytes);
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
                let last = if group.is_copied { 0 } else { usize::MAX };
                let margin = (group.members.len() - missing.len()).checked_sub(group.geometry.data());
                lost.push((margin.unwrap_or(last), missing));
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
        let can = group.online(self.nodes, NONE_BAD).saturating_sub(1 + *gone) > group.geometry.data();
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
    fn improve(&mut self, under_way: usize, since_unix_s: u64) {
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
            if under_way + self.plan.begin.len() >= self.policy.better_together || searches >= SEARCHES_MAX {
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
            let much_after = in_use - self.in_use(to.node, group.bytes);
            if is_better && in_use - self.in_use(to.node, 0) >= FULLER && much_after >= STILL_FULLER {
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
mod tests;
