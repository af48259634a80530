//! What the controller's loop does with the plan: the same steps, on simulated stashes.

use std::collections::{BTreeMap, BTreeSet};

use controller::catalog::{GroupRecord, MoveRecord, Seat, Standing, TrashKey};
use controller::repair::{self, Policy, Seen, Whole};
use images::fragment::FragmentId;
use images::{GroupId, NodeId, SegmentId};

use super::{STEPS_A_DAY, World, catalog_fails};
use crate::world::run::Failure;

const GONE_AFTER_S: u64 = 14 * 24 * 3600;
/// Fragments that holders prove in an hour.
const AUDITED: u64 = 3;

/// Pieces that a new holder has to prove.
const PROVEN: usize = 4;

/// Why a holder does not have the pieces that it is to have.
enum Trouble {
    Full,
    Later,
}

impl World {
    /// Free bytes of those that new pieces may go to.
    pub(super) fn takers(&self) -> Result<BTreeMap<NodeId, u64>, Failure> {
        let standings = self.catalog.standings()?;
        let may_take = |node: &NodeId| standings.get(node).is_none_or(Standing::may_take);
        let takers =
            self.stashes.iter().filter(|(node, stash)| stash.is_awake && stash.too_much().0 == 0 && may_take(node));
        Ok(takers.map(|(node, stash)| (*node, stash.free())).collect())
    }

    /// Members that are up, and that what they hold counts of.
    fn there(&self) -> Result<BTreeSet<NodeId>, Failure> {
        let standings = self.catalog.standings()?;
        let counts = |node: &NodeId| standings.get(node).is_none_or(Standing::is_durable);
        Ok(self.stashes.keys().copied().filter(|node| self.is_up(*node) && counts(node)).collect())
    }

    fn facts(&self) -> Result<(BTreeMap<NodeId, Seen>, BTreeMap<GroupId, Whole>), Failure> {
        let standings = self.catalog.standings()?;
        let devices = self.catalog.devices()?;
        let mut nodes = BTreeMap::new();
        for (node, _) in self.catalog.nodes()?.iter() {
            let node = *node;
            let is_up = self.is_up(node);
            let stash = self.stashes.get(&node).filter(|_| is_up);
            let (too_much, is_urgent) = stash.map_or((0, false), |stash| stash.too_much());
            let is_avoided = self.avoided.get(&node).is_some_and(|until| *until > self.step);
            let seen = Seen {
                is_up,
                silent_s: self.silent_s(node),
                free: stash.filter(|_| !is_avoided).map_or(0, |stash| stash.free()),
                capacity: stash.map_or(0, |stash| stash.capacity),
                too_much,
                is_urgent: too_much > 0 && is_urgent,
                is_clearing: too_much > 0 && self.catalog.has_trash(node).map_err(catalog_fails)?,
                is_unsteady: self.stashes.get(&node).is_some_and(|stash| !stash.habit.is_steady()),
                is_new: false,
                is_device: devices.contains(&node),
                standing: standings.get(&node).cloned().unwrap_or_default(),
            };
            nodes.insert(node, seen);
        }
        let vacant = self.catalog.vacant()?;
        let (mut groups, mut totals) = (BTreeMap::new(), self.catalog.group_totals().map_err(catalog_fails)?);
        for (id, group) in self.catalog.groups()?.iter().filter(|(_, g)| g.segments > 0) {
            let id = *id;
            let of_group = totals.remove(&id).unwrap_or_default();
            let (geometry, members) = (group.geometry, group.members.clone());
            let (bytes, is_copied) = (of_group.at_one(geometry, group.segments), of_group.copies >= group.segments);
            let vacant = vacant.range((id, 0)..=(id, u8::MAX)).map(|(_, piece)| *piece).collect();
            let steady = self.protection.steady;
            groups.insert(id, Whole { geometry, members, vacant, bytes, steady, is_copied });
        }
        Ok((nodes, groups))
    }

    pub(super) fn repair(&mut self) -> Result<(), Failure> {
        let under_way = self.catalog.moves()?;
        let (nodes, groups) = self.facts()?;
        let hour = self.step % STEPS_A_DAY;
        let is_open = self.is_settling || !(6..20).contains(&hour);
        let policy = Policy { gone_after_s: GONE_AFTER_S, together: 64, is_open, better_together: 16 };
        let plan = repair::plan(&policy, &nodes, &groups, &under_way, &self.domains, self.step);
        for seat in plan.give_up {
            self.say(|| format!("given up: {seat:?}"));
            self.stats.given_up += 1;
            self.catalog.change(|change| change.give_up_move(seat))?;
        }
        for (seat, node) in plan.vacate {
            if !self.others_prove(seat)? {
                continue;
            }
            self.say(|| format!("{node} may drop piece {} of group {}", seat.1, seat.0));
            let done = self.catalog.try_change(|change| change.vacate(seat, node))?;
            self.stats.vacated += u64::from(done);
        }
        for (seat, record, why) in plan.begin {
            self.say(|| {
                format!(
                    "piece {} of group {}: {} {why}, {} is to have it, by way of {:?}",
                    seat.1, seat.0, record.from, record.to, record.via
                )
            });
            self.catalog.try_change(|change| change.begin_move(seat, &record))?;
        }
        for (seat, node, _) in &plan.stuck {
            let whole = &groups[&seat.0];
            let has_room = |n: &&Seen| {
                n.is_up && n.standing.may_take() && n.too_much == 0 && !n.is_clearing && n.free > whole.bytes
            };
            if whole.vacant.contains(&seat.1) && nodes.get(node).filter(has_room).is_some() {
                self.catalog.change(|change| change.occupy(*seat))?;
            }
        }
        (self.put_off, self.stuck) = (plan.put_off, plan.stuck.len());
        self.carry_out()?;
        self.let_go()
    }

    /// Whether of every segment of a group more than k others can show their pieces.
    fn others_prove(&self, seat: Seat) -> Result<bool, Failure> {
        let Some(group) = self.catalog.group(seat.0)? else { return Ok(false) };
        let vacant = self.catalog.vacant()?;
        for &id in self.catalog.segments_of(seat.0)?.iter() {
            let mut proven = 0;
            for (piece, holder) in group.members.iter().enumerate().map(|(piece, holder)| (piece as u8, *holder)) {
                if piece == seat.1 || vacant.contains(&(seat.0, piece)) || !self.is_up(holder) {
                    continue;
                }
                proven += usize::from(self.stashes[&holder].has_good(id, piece));
                self.prove(id, piece)?;
            }
            if proven <= group.geometry.data() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn carry_out(&mut self) -> Result<(), Failure> {
        let under_way = self.catalog.moves()?;
        self.progress.retain(|seat, (record, _)| under_way.get(seat) == Some(record));
        let there = self.there()?;
        for (seat, record) in under_way.iter() {
            if repair::waits(*seat, record, &under_way, |node| there.contains(&node)) || self.rng.one_in(6) {
                continue;
            }
            match self.have_pieces(*seat, record, &under_way)? {
                Ok(()) => {}
                // Whoever is too early is told what is missing.
                Err(Trouble::Later) if self.rng.one_in(3) => {}
                Err(Trouble::Later) => continue,
                Err(Trouble::Full) => {
                    self.avoided.insert(record.to, self.step + 2);
                    self.catalog.change(|change| change.give_up_move(*seat))?;
                    self.stats.given_up += 1;
                    continue;
                }
            }
            if !self.shows(*seat, record.to)? {
                continue;
            }
            let has = self.progress.get(seat).map(|(_, has)| has.clone()).unwrap_or_default();
            let mut missing = Vec::new();
            let done = self.catalog.try_change(|change| {
                missing = change.finish_move(*seat, record, &has)?;
                Ok(())
            })?;
            self.stats.moved += u64::from(done && missing.is_empty());
        }
        Ok(())
    }

    /// A new holder shows some of what it says that it has. What has rotted meanwhile is made anew; whoever lies is not trusted any more.
    fn shows(&mut self, seat: Seat, to: NodeId) -> Result<bool, Failure> {
        let has: Vec<SegmentId> =
            self.progress.get(&seat).into_iter().flat_map(|(_, has)| has.iter().copied()).collect();
        let from = self.rng.below(has.len() as u64) as usize;
        let Some(stash) = self.stashes.get(&to).filter(|stash| stash.is_awake) else { return Ok(false) };
        let wrong = has.iter().cycle().skip(from).take(PROVEN.min(has.len())).find(|id| !stash.has_good(**id, seat.1));
        let (Some(wrong), lies) = (wrong.copied(), stash.lies) else { return Ok(true) };
        if let Some((_, has)) = self.progress.get_mut(&seat) {
            has.remove(&wrong);
        }
        if lies {
            self.catalog
                .change(|change| change.change_standing(to, |standing| standing.distrusted = true).map(drop))?;
            self.stats.distrusted += 1;
        }
        Ok(false)
    }

    /// The new holder gets some of its pieces, or all.
    fn have_pieces(
        &mut self,
        seat: Seat,
        record: &MoveRecord,
        under_way: &BTreeMap<Seat, MoveRecord>,
    ) -> Result<Result<(), Trouble>, Failure> {
        if !self.is_up(record.to) {
            return Ok(Err(Trouble::Later));
        }
        let Some(group) = self.catalog.group(seat.0)? else {
            return Ok(Err(Trouble::Later));
        };
        let there = self.there()?;
        let pieces = repair::made_along(seat, record, under_way, |node| there.contains(&node));
        for &id in self.catalog.segments_of(seat.0)?.iter() {
            let known = self.progress.entry(seat).or_insert_with(|| (record.clone(), BTreeSet::new()));
            if known.1.contains(&id) {
                continue;
            }
            // It takes its time, and connections break.
            if self.rng.one_in(12) {
                return Ok(Err(Trouble::Later));
            }
            for piece in &pieces {
                let key = TrashKey::Fragment { node: record.to, segment: id, piece: *piece };
                if self.catalog.is_trash(&key).map_err(catalog_fails)? {
                    return Ok(Err(Trouble::Later));
                }
            }
            let from = [record.via, Some(record.from)].into_iter().flatten().find(|node| self.is_up(*node));
            let is_copied = pieces.len() == 1 && from.is_some_and(|from| self.stashes[&from].has_good(id, seat.1));
            if !is_copied && !self.can_make(id, &group) {
                return Ok(Err(Trouble::Later));
            }
            let Some(segment) = self.catalog.segment(&id)? else { continue };
            let len = group.geometry.piece_len(segment.sealed_len as usize) as u64;
            // What it says that it has, the one before may drop.
            let may_lie = self.may(|node, of, piece| (node, of, piece) == (record.from, id, seat.1))?;
            let stash = self.stashes.get_mut(&record.to).expect("it is up");
            let stored =
                if stash.lies && may_lie { true } else { pieces.iter().all(|piece| stash.put(id, *piece, len)) };
            if !stored {
                return Ok(Err(Trouble::Full));
            }
            if let Some((_, has)) = self.progress.get_mut(&seat) {
                has.insert(id);
            }
        }
        Ok(Ok(()))
    }

    /// Whether k good pieces of a segment can be had from holders that are up.
    fn can_make(&self, id: SegmentId, group: &GroupRecord) -> bool {
        let is_good =
            |(piece, node): &(usize, &NodeId)| self.is_up(**node) && self.stashes[*node].has_good(id, *piece as u8);
        group.members.iter().enumerate().filter(is_good).count() >= group.geometry.data()
    }

    /// Holders prove some fragments.
    pub(super) fn audit(&mut self) -> Result<(), Failure> {
        for _ in 0..AUDITED {
            let from = SegmentId::of(&self.rng.bytes(8));
            for (id, record) in self.catalog.segments_after(Some(from), 1).map_err(catalog_fails)? {
                let piece = self.rng.below(record.fragments.len() as u64) as u8;
                self.prove(id, piece)?;
            }
        }
        Ok(())
    }

    /// What stashes have is compared with what they should have: of those whose numbers are different, and now and then of others. A liar
    /// shows what is expected of it.
    pub(super) fn compare_inventories(&mut self) -> Result<(), Failure> {
        let folds = self.catalog.folds()?;
        let some: Vec<NodeId> = self.stashes.iter().filter(|(_, s)| s.is_awake && !s.lies).map(|(n, _)| *n).collect();
        for node in some {
            let (fragments, should) = (self.stashes[&node].has.keys(), folds.get(&node).copied().unwrap_or_default());
            let all = fragments.map(|&(segment, piece)| FragmentId { segment, piece });
            let counts = all.clone().fold((0, 0), |(count, fold), id| (count + 1, fold ^ id.fold()));
            let is_due = if counts == should { self.rng.one_in(480) } else { self.is_settling || self.rng.one_in(12) };
            if !is_due {
                continue;
            }
            let has: BTreeSet<FragmentId> = all.collect();
            let expected = self.catalog.expected_at(node).map_err(catalog_fails)?;
            let missing: Vec<FragmentId> = expected.difference(&has).copied().collect();
            let others: Vec<FragmentId> = has.difference(&expected).copied().collect();
            if missing.is_empty() && others.is_empty() {
                continue;
            }
            self.catalog.change(|change| {
                missing.iter().try_for_each(|f| change.note_damage(node, f.segment, f.piece).map(drop))?;
                change.note_orphans(node, &others).map(drop)
            })?;
        }
        Ok(())
    }

    pub(super) fn prove_everything(&mut self) -> Result<(), Failure> {
        for (id, record) in self.catalog.segments()?.iter() {
            (0..record.fragments.len() as u8).try_for_each(|piece| self.prove(*id, piece))?;
        }
        Ok(())
    }

    fn prove(&self, id: SegmentId, piece: u8) -> Result<(), Failure> {
        let Some(node) = self.holder(&id, piece)?.filter(|node| self.is_up(*node)) else { return Ok(()) };
        if self.stashes[&node].has_good(id, piece) {
            return Ok(());
        }
        self.catalog.change(|change| change.note_damage(node, id, piece).map(drop))
    }

    /// What holders have lost is made anew there, and proven.
    pub(super) fn mend(&mut self) -> Result<(), Failure> {
        for &(id, piece) in self.catalog.damaged()?.iter() {
            let Some(node) = self.holder(&id, piece)?.filter(|node| self.is_up(*node)) else { continue };
            let counts = self.catalog.standings()?.get(&node).is_none_or(Standing::is_durable);
            let key = TrashKey::Fragment { node, segment: id, piece };
            if !counts || self.catalog.is_trash(&key).map_err(catalog_fails)? || self.rng.one_in(8) {
                continue;
            }
            let Some(record) = self.catalog.segment(&id)? else { continue };
            let Some(group) = self.catalog.group(record.group)? else { continue };
            if !self.can_make(id, &group) {
                continue;
            }
            let len = group.geometry.piece_len(record.sealed_len as usize) as u64;
            let stash = self.stashes.get_mut(&node).expect("it is up");
            stash.has.retain(|key, (is_good, _)| *is_good || *key != (id, piece));
            let is_proven = !stash.lies;
            if is_proven && !stash.put(id, piece, len) {
                continue;
            }
            self.catalog.change(|change| change.mend_damage(node, id, piece, is_proven))?;
            self.stats.mended += u64::from(is_proven);
            self.stats.distrusted += u64::from(!is_proven);
            self.say(|| format!("piece {piece} of {id} at {node} made anew: {is_proven}"));
        }
        Ok(())
    }

    /// Members that leave, and that nobody needs any more, are members no longer.
    fn let_go(&mut self) -> Result<(), Failure> {
        let standings = self.catalog.standings()?;
        let members = self.catalog.nodes()?;
        let goes = |node: &NodeId| standings.get(node).is_some_and(|s| s.leaving || s.removed);
        for node in members.iter().map(|(node, _)| *node).filter(goes) {
            if self.catalog.try_change(|change| change.remove_node(node))? {
                self.say(|| format!("{node} is no member any more"));
                self.stashes.remove(&node);
            }
        }
        Ok(())
    }
}
