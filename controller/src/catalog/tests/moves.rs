//! Moves, damage, vacated seats and deletions in any order, against what would really lie on the members' disks.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::catalog::{MoveRecord, Seat};

const NODES: u8 = 7;

/// What lies on disks, and what a controller that runs has in memory.
struct World {
    catalog: Catalog,
    /// splitmix64
    state: u64,
    disks: BTreeMap<NodeId, BTreeSet<(SegmentId, u8)>>,
    has: BTreeMap<Seat, (MoveRecord, BTreeSet<SegmentId>)>,
    segments: u8,
    last: String,
}

impl World {
    fn new(seed: u64) -> Self {
        let catalog = catalog();
        let mut world = Self {
            catalog,
            state: seed,
            disks: BTreeMap::new(),
            has: BTreeMap::new(),
            segments: 0,
            last: String::new(),
        };
        (1..=NODES).for_each(|i| world.join(node(i)));
        world
    }

    fn below(&mut self, end: usize) -> usize {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end.max(1) as u64) as usize
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.below(all.len())].clone())
    }

    fn join(&mut self, node: NodeId) {
        let record =
            NodeRecord { role: protocol::identity::Role::Stash, addresses: vec![], capacity: 1, joined_unix_s: 0 };
        self.catalog.change(|c| c.put_node(node, &record)).unwrap();
        self.disks.entry(node).or_default();
    }

    fn members(&self) -> Vec<NodeId> {
        self.catalog.nodes().unwrap().into_iter().map(|(node, _)| node).collect()
    }

    fn publish(&mut self) {
        let (members, number) = (self.members(), self.segments);
        if members.len() < 3 || number == u8::MAX {
            return;
        }
        self.segments += 1;
        let groups = self.catalog.groups().unwrap();
        // Mostly into a group that is there, whatever happens to it.
        let known: Vec<Vec<NodeId>> = groups.values().map(|g| g.members.clone()).collect();
        let holders = match self.pick(&known).filter(|_| groups.len() > 2) {
            Some(holders) => holders,
            None => {
                let mut some = members;
                while some.len() > 3 {
                    let out = self.below(some.len());
                    some.remove(out);
                }
                some
            }
        };
        let id = SegmentId([number; 32]);
        let new = NewSegment {
            id,
            geometry: Geometry::new(2, 1).unwrap(),
            holders: holders.clone(),
            chunks: Vec::new(),
            ..new_segment(number, [0, 0])
        };
        let (on_mass_storage, references) = (number % 2 == 0, u64::from(number % 4 == 0));
        let record = SegmentRecord { on_mass_storage, references, ..new.record };
        let new = NewSegment { record, ..new };
        let sent = holders.iter().enumerate().map(|(piece, node)| (piece as u8, *node)).collect();
        self.catalog.change(|c| c.put_pending(id, &PendingRecord { sent, copy: false })).unwrap();
        for (piece, node) in holders.iter().enumerate() {
            self.disks.entry(*node).or_default().insert((id, piece as u8));
        }
        if self.catalog.change(|c| c.put_segment(&new)).is_err() {
            self.catalog.change(|c| c.abandon(&id)).unwrap();
        }
        self.last = format!("publish {number} at {holders:?}");
    }

    fn reclaim(&mut self) {
        let all: Vec<SegmentId> = self.catalog.segments().unwrap().into_iter().map(|(id, _)| id).collect();
        let Some(id) = self.pick(&all) else { return };
        self.has.values_mut().for_each(|(_, has)| {
            has.remove(&id);
        });
        self.catalog.change(|c| c.reclaim(&id)).unwrap();
        self.last = format!("reclaim {}", id.short());
    }

    fn begin(&mut self) {
        let groups: Vec<_> = self.catalog.groups().unwrap().into_iter().collect();
        let Some((group, record)) = self.pick(&groups) else { return };
        let piece = self.below(3) as u8;
        let (members, under_way) = (self.members(), self.catalog.moves().unwrap());
        let Some(to) = self.pick(&members) else { return };
        let others: Vec<NodeId> = under_way.iter().filter(|(seat, _)| seat.0 == group).map(|(_, m)| m.to).collect();
        let via = self.pick(&others);
        let new = MoveRecord { from: record.members[usize::from(piece)], to, via, since_unix_s: self.below(99) as u64 };
        if self.catalog.change(|c| c.begin_move((group, piece), &new)).is_ok() {
            self.last = format!("begin {group}/{piece}: {new:?}");
        }
    }

    /// Some pieces of a move come to its new member, or to who makes them for it.
    fn carry_on(&mut self) {
        let under_way: Vec<_> = self.catalog.moves().unwrap().into_iter().collect();
        let Some((seat, record)) = self.pick(&under_way) else { return };
        let at = if self.below(3) == 0 { record.via.unwrap_or(record.to) } else { record.to };
        for id in self.catalog.segments_of(seat.0).unwrap() {
            let key = TrashKey::Fragment { node: at, segment: id, piece: seat.1 };
            if self.below(2) == 0 || self.catalog.is_trash(&key).unwrap() {
                continue;
            }
            self.disks.entry(at).or_default().insert((id, seat.1));
            if at == record.to {
                let (known, has) = self.has.entry(seat).or_insert_with(|| (record.clone(), BTreeSet::new()));
                if *known != record {
                    (*known, *has) = (record.clone(), BTreeSet::new());
                }
                has.insert(id);
            }
        }
        self.last = format!("carry on {seat:?}");
    }

    /// Somebody who thinks that a move is done says so; it may have been given up meanwhile.
    fn finish(&mut self) {
        let all: Vec<_> = self.has.clone().into_iter().collect();
        let Some((seat, (record, has))) = self.pick(&all) else { return };
        let finished = self.catalog.change(|c| c.finish_move(seat, &record, &has));
        if finished.as_ref().is_ok_and(Vec::is_empty) {
            self.has.remove(&seat);
        }
        self.last = format!("finish {seat:?} {record:?}: {finished:?}");
    }

    fn give_up(&mut self) {
        let under_way: Vec<Seat> = self.catalog.moves().unwrap().into_keys().collect();
        let Some(seat) = self.pick(&under_way) else { return };
        self.catalog.change(|c| c.give_up_move(seat)).unwrap();
        // The controller forgets its task, or is late with that.
        if self.below(2) == 0 {
            self.has.remove(&seat);
        }
        self.last = format!("give up {seat:?}");
    }

    fn vacate_or_occupy(&mut self) {
        let groups: Vec<_> = self.catalog.groups().unwrap().into_iter().collect();
        let Some((group, record)) = self.pick(&groups) else { return };
        let vacant: Vec<Seat> = self.catalog.vacant().unwrap().into_iter().filter(|seat| seat.0 == group).collect();
        if let Some(seat) = self.pick(&vacant) {
            self.catalog.change(|c| c.occupy(seat)).unwrap();
            self.last = format!("occupy {seat:?}");
        } else {
            let piece = self.below(3) as u8;
            let vacated = self.catalog.change(|c| c.vacate((group, piece), record.members[usize::from(piece)]));
            self.last = format!("vacate {group}/{piece}: {vacated:?}");
        }
    }

    /// A disk loses something, and says so.
    fn lose(&mut self) {
        let members = self.members();
        let Some(node) = self.pick(&members) else { return };
        let held: Vec<(SegmentId, u8)> = self.disks[&node].iter().copied().collect();
        let Some((id, piece)) = self.pick(&held) else { return };
        self.disks.entry(node).or_default().remove(&(id, piece));
        self.catalog.change(|c| c.note_damage(node, id, piece)).unwrap();
        for (record, has) in self.has.values_mut() {
            if record.to == node {
                has.remove(&id);
            }
        }
        self.last = format!("{node} loses {}/{piece}", id.short());
    }

    fn mend(&mut self) {
        let damaged = self.catalog.damaged().unwrap();
        let Some((id, piece)) = self.pick(&damaged) else { return };
        let Some(record) = self.catalog.segment(&id).unwrap() else { return };
        let Some(node) = self.catalog.groups().unwrap()[&record.group].members.get(usize::from(piece)).copied() else {
            return;
        };
        let key = TrashKey::Fragment { node, segment: id, piece };
        if self.catalog.is_trash(&key).unwrap() {
            return;
        }
        self.disks.entry(node).or_default().insert((id, piece));
        self.catalog.change(|c| c.mend_damage(node, id, piece, true)).unwrap();
        self.last = format!("mend {}/{piece} at {node}", id.short());
    }

    /// A member deletes what it is told to.
    fn delete(&mut self) {
        let members = self.members();
        let Some(at) = self.pick(&members) else { return };
        for key in self.catalog.trash().unwrap() {
            if let TrashKey::Fragment { node, segment, piece } = key
                && node == at
            {
                self.disks.entry(node).or_default().remove(&(segment, piece));
                self.catalog.change(|c| c.remove_trash(&key)).unwrap();
            }
        }
        self.last = format!("{at} deletes");
    }

    fn leave(&mut self) {
        let members = self.members();
        let Some(node) = self.pick(&members) else { return };
        if self.catalog.change(|c| c.remove_node(node)).is_ok() {
            self.disks.remove(&node);
            self.last = format!("{node} leaves");
            let fresh = NodeId([u8::try_from(self.below(200)).unwrap() + 20; 16]);
            if !self.catalog.standing(fresh).unwrap().lost {
                self.join(fresh);
            }
        }
    }

    /// What is noted beside the segments is what follows from them.
    fn check_derived(&self) {
        let all = self.catalog.segments().unwrap();
        let unused: Vec<SegmentId> = all.iter().filter(|(_, r)| r.references == 0).map(|(id, _)| *id).collect();
        let sealed = all.iter().map(|(_, r)| u64::from(r.sealed_len)).sum();
        let totals = SegmentTotals { segments: all.len() as u64, sealed, unused: unused.len() as u64 };
        assert_eq!(self.catalog.segment_totals().unwrap(), totals, "after {}", self.last);
        let known: Vec<SegmentId> = self.catalog.unused(u64::MAX).unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(known, unused);
        let mut of_groups: BTreeMap<GroupId, GroupTotals> = BTreeMap::new();
        for (_, record) in &all {
            let of_group = of_groups.entry(record.group).or_default();
            of_group.sealed += u64::from(record.sealed_len);
            of_group.copies += u64::from(record.on_mass_storage);
        }
        assert_eq!(self.catalog.group_totals().unwrap(), of_groups, "after {}", self.last);
        for (node, fold) in self.catalog.folds().unwrap() {
            let expected = self.catalog.expected_at(node).unwrap();
            let folded = expected.iter().fold(0, |fold, fragment| fold ^ fragment.fold());
            assert_eq!(fold, (expected.len() as u64, folded), "after {}", self.last);
        }
        let trash = self.catalog.trash().unwrap();
        assert_eq!(self.catalog.trash_count().unwrap(), trash.len() as u64);
        let segments: BTreeSet<SegmentId> = trash.iter().map(TrashKey::segment).collect();
        let by_segment = segments.iter().flat_map(|id| self.catalog.trash_of(id).unwrap());
        assert_eq!(by_segment.collect::<BTreeSet<_>>(), trash.iter().copied().collect());
        let (nodes, _) = self.catalog.trash_nodes().unwrap();
        let copies = self.catalog.trash_copies(usize::MAX).unwrap();
        let copies = copies.into_iter().map(|segment| TrashKey::Copy { segment });
        let at_nodes = nodes.iter().flat_map(|node| self.catalog.trash_at(*node, usize::MAX).unwrap());
        assert_eq!(copies.chain(at_nodes).collect::<Vec<_>>(), trash);
    }

    fn check(&self) {
        self.check_derived();
        let (vacant, damaged) = (self.catalog.vacant().unwrap(), self.catalog.damaged().unwrap());
        let (moves, groups) = (self.catalog.moves().unwrap(), self.catalog.groups().unwrap());
        let mut named: BTreeSet<(NodeId, SegmentId, u8)> = BTreeSet::new();
        for (id, record) in self.catalog.segments().unwrap() {
            for (piece, node) in groups[&record.group].members.iter().enumerate() {
                let piece = piece as u8;
                named.insert((*node, id, piece));
                if let Some(under_way) = moves.get(&(record.group, piece)) {
                    named.insert((under_way.to, id, piece));
                    under_way.via.into_iter().for_each(|via| {
                        named.insert((via, id, piece));
                    });
                }
                let is_known_missing = vacant.contains(&(record.group, piece)) || damaged.contains(&(id, piece));
                let is_there = self.disks.get(node).is_some_and(|disk| disk.contains(&(id, piece)));
                assert!(is_known_missing || is_there, "after {}: {}/{piece} is not at {node}", self.last, id.short());
                let key = TrashKey::Fragment { node: *node, segment: id, piece };
                assert!(
                    is_known_missing || !self.catalog.is_trash(&key).unwrap(),
                    "after {}: {}/{piece} is to be deleted at its holder {node}",
                    self.last,
                    id.short()
                );
            }
        }
        for (node, disk) in &self.disks {
            for (id, piece) in disk {
                let key = TrashKey::Fragment { node: *node, segment: *id, piece: *piece };
                let is_trash = self.catalog.is_trash(&key).unwrap();
                let is_named = named.contains(&(*node, *id, *piece));
                assert!(is_trash || is_named, "after {}: nobody knows {}/{piece} at {node}", self.last, id.short());
            }
        }
    }
}

#[test]
fn a_machine_that_is_installed_anew_has_one_stash() {
    let catalog = catalog();
    catalog.change(|c| c.succeed(node(1), 7, |_| false)).unwrap();
    catalog.change(|c| c.succeed(node(2), 8, |_| false)).unwrap();
    let before = catalog.change(|c| c.succeed(node(3), 7, |_| false)).unwrap();
    assert_eq!(before, [node(1)]);
    let (old, new) = (catalog.standing(node(1)).unwrap(), catalog.standing(node(3)).unwrap());
    assert!(old.lost && old.removed && new.is_durable() && catalog.standing(node(2)).unwrap().is_durable());
    let heard = catalog.change(|c| c.succeed(node(4), 7, |id| id == node(3))).unwrap();
    assert!(heard.is_empty(), "a machine with two stashes keeps both");
}

#[test]
fn whatever_moves_nothing_is_lost_and_nothing_forgotten() {
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..150 {
            match world.below(20) {
                0..3 => world.publish(),
                3 => world.reclaim(),
                4..7 => world.begin(),
                7..11 => world.carry_on(),
                11..14 => world.finish(),
                14 => world.give_up(),
                15 => world.vacate_or_occupy(),
                16 => world.lose(),
                17 => world.mend(),
                18 => world.delete(),
                _ => world.leave(),
            }
            world.check();
        }
    }
}
