//! Stashes, what they are like, and what happens to them.

use std::collections::BTreeMap;

use controller::catalog::Standing;
use images::{NodeId, SegmentId};

use super::{STEP_S, STEPS_A_DAY, World, catalog_fails};
use crate::world::Rng;
use crate::world::run::Failure;

/// When a machine is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    Always,
    Office,
    Laptop,
    Rare,
}

impl Habit {
    pub(super) fn is_steady(self) -> bool {
        matches!(self, Self::Always | Self::Office)
    }

    fn is_up(self, step: u64, rng: &mut Rng) -> bool {
        let (hour, day) = (step % STEPS_A_DAY, step / STEPS_A_DAY % 7);
        let is_office_hour = (8..18).contains(&hour) && day < 5;
        match self {
            Self::Always => !rng.one_in(200),
            Self::Office => is_office_hour && !rng.one_in(15),
            Self::Laptop => is_office_hour && rng.one_in(2),
            Self::Rare => rng.one_in(40),
        }
    }
}

/// A stash.
pub(super) struct Stash {
    pub(super) habit: Habit,
    pub(super) rack: u64,
    pub(super) capacity: u64,
    pub(super) is_awake: bool,
    /// It cannot be reached before that, whatever its machine does.
    dark_until: u64,
    /// Its owner lets it have so much.
    limit: Option<u64>,
    is_urgent: bool,
    leaves: bool,
    /// It says that it has what it has not.
    pub(super) lies: bool,
    /// Fragments: whether they are good, and their length.
    pub(super) has: BTreeMap<(SegmentId, u8), (bool, u64)>,
    /// A copy of its file that somebody made.
    backup: Option<BTreeMap<(SegmentId, u8), (bool, u64)>>,
    /// Hours for which it was not heard, while most were.
    silent: u64,
}

impl Stash {
    pub(super) fn new(host: u32, rng: &mut Rng) -> Self {
        let habit = match rng.below(20) {
            0..4 => Habit::Always,
            4..13 => Habit::Office,
            13..19 => Habit::Laptop,
            _ => Habit::Rare,
        };
        Self {
            habit,
            rack: u64::from(host) % 6,
            capacity: 6_000 + rng.below(20_000),
            is_awake: true,
            dark_until: 0,
            limit: None,
            is_urgent: false,
            leaves: false,
            lies: false,
            has: BTreeMap::new(),
            backup: None,
            silent: 0,
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.has.values().map(|(_, len)| len).sum()
    }

    fn offers(&self) -> u64 {
        self.limit.unwrap_or(u64::MAX).min(self.capacity)
    }

    pub(super) fn too_much(&self) -> (u64, bool) {
        (self.used().saturating_sub(self.offers()), self.is_urgent)
    }

    pub(super) fn free(&self) -> u64 {
        self.offers().saturating_sub(self.used())
    }

    pub(super) fn has_good(&self, segment: SegmentId, piece: u8) -> bool {
        self.has.get(&(segment, piece)).is_some_and(|(is_good, _)| *is_good)
    }

    /// Keep a fragment. What is there already, and good, is acknowledged.
    pub(super) fn put(&mut self, segment: SegmentId, piece: u8, len: u64) -> bool {
        if self.has_good(segment, piece) {
            return true;
        }
        let fits = self.free() >= len;
        if fits {
            self.has.insert((segment, piece), (true, len));
        }
        fits
    }

    pub(super) fn delete(&mut self, segment: SegmentId, piece: u8) -> bool {
        self.has.remove(&(segment, piece)).is_some()
    }
}

impl World {
    /// Whether the controller reaches it.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.stashes.get(&node).is_some_and(|stash| stash.is_awake)
    }

    pub(super) fn is_device(&self, node: NodeId) -> Result<bool, Failure> {
        Ok(self.catalog.devices()?.contains(&node))
    }

    pub(super) fn silent_s(&self, node: NodeId) -> u64 {
        self.stashes.get(&node).map_or(u64::MAX, |stash| stash.silent * STEP_S)
    }

    pub(super) fn wake_and_sleep(&mut self) {
        for stash in self.stashes.values_mut() {
            let is_on = self.is_settling || stash.habit.is_up(self.step, &mut self.rng);
            stash.is_awake = is_on && stash.dark_until <= self.step;
        }
        let most = self.stashes.values().filter(|stash| stash.is_awake).count() * 2 >= self.stashes.len();
        for stash in self.stashes.values_mut() {
            match stash.is_awake {
                true => stash.silent = 0,
                false if most => stash.silent += 1,
                false => {}
            }
        }
    }

    /// Stashes say what their owners want.
    pub(super) fn heartbeats(&mut self) -> Result<(), Failure> {
        let standings = self.catalog.standings()?;
        let new: Vec<NodeId> = self
            .stashes
            .iter()
            .filter(|(node, stash)| {
                let known = standings.get(node).is_some_and(|standing| standing.leaving);
                stash.is_awake && stash.leaves && !known
            })
            .map(|(node, _)| *node)
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        self.catalog.change(|change| {
            new.iter().try_for_each(|node| change.change_standing(*node, |standing| standing.leaving = true).map(drop))
        })
    }

    fn any(&mut self) -> Result<NodeId, Failure> {
        let at = self.rng.below(self.stashes.len() as u64) as usize;
        self.stashes.keys().nth(at).copied().ok_or_else(|| Failure("no stash is left".into()))
    }

    /// Whether every segment is left with k good pieces when these are gone.
    pub(super) fn may(&self, is_hit: impl Fn(NodeId, SegmentId, u8) -> bool) -> Result<bool, Failure> {
        Ok(self.least_good(is_hit)?.is_none_or(|(_, good, k)| good >= k))
    }

    fn count(&mut self, what: &'static str, node: NodeId) {
        self.say(|| format!("{what}: {node}"));
        *self.stats.faults.entry(what).or_default() += 1;
    }

    /// Something happens, about twice a day.
    pub(super) fn harm(&mut self) -> Result<(), Failure> {
        if !self.rng.one_in(12) {
            return Ok(());
        }
        let node = self.any()?;
        let is_device = self.is_device(node)?;
        match self.rng.below(15) {
            0 => {
                self.progress.clear();
                self.avoided.clear();
                self.count("the controller restarts", node);
            }
            1 | 2 => self.rot(node)?,
            3 => {
                let hours = 1 + self.rng.below(24 * 20);
                self.stash(node).dark_until = self.step + hours;
                self.count("carried away", node);
            }
            4 => {
                let (rack, hours) = (self.stash(node).rack, 1 + self.rng.below(48));
                let until = self.step + hours;
                self.stashes.values_mut().filter(|stash| stash.rack == rack).for_each(|stash| stash.dark_until = until);
                self.count("a rack is cut off", node);
            }
            5 if self.may(|at, _, _| at == node)? => {
                self.stashes.remove(&node);
                self.count("a disk dies", node);
                if self.rng.one_in(2) && self.catalog.node(node).map_err(catalog_fails)?.is_some() {
                    self.catalog.change(|change| {
                        change
                            .change_standing(node, |standing| (standing.removed, standing.lost) = (true, true))
                            .map(drop)
                    })?;
                }
            }
            6 if !is_device => self.reimage()?,
            7 => {
                let share = self.rng.below(100);
                let is_urgent = self.rng.one_in(3);
                let stash = self.stash(node);
                stash.limit = Some(stash.used() * share / 100);
                stash.is_urgent = is_urgent;
                self.count("its disk fills up", node);
            }
            8 => {
                let stash = self.stash(node);
                (stash.limit, stash.is_urgent) = (None, false);
                self.count("there is room again", node);
            }
            9 if !is_device && self.stashes.len() > 50 => {
                self.stash(node).leaves = true;
                self.count("leaves", node);
            }
            10 if !is_device => {
                let drains = self.rng.one_in(2);
                self.catalog
                    .change(|change| change.change_standing(node, |standing| standing.draining = drains).map(drop))?;
                self.count("drained or kept", node);
            }
            11 | 12 => {
                let node = self.join(None)?;
                self.count("joins", node);
            }
            13 if !is_device && self.may(|at, _, _| at == node)? => {
                let stash = self.stash(node);
                stash.lies = true;
                stash.has.clear();
                self.count("lies", node);
            }
            14 => self.back_up_or_restore(node)?,
            _ => {}
        }
        Ok(())
    }

    /// Somebody copies a stash file, or puts a copy of long ago in its place: what was deleted since is there again, what came since is not.
    fn back_up_or_restore(&mut self, node: NodeId) -> Result<(), Failure> {
        let Some(backup) = self.stash(node).backup.take() else {
            let stash = self.stash(node);
            stash.backup = Some(stash.has.clone());
            return Ok(());
        };
        let is_lost = |at, segment, piece| at == node && !backup.get(&(segment, piece)).is_some_and(|(good, _)| *good);
        if !self.stashes[&node].lies && self.may(is_lost)? {
            self.stash(node).has = backup;
            self.count("restored from a backup", node);
        }
        Ok(())
    }

    fn stash(&mut self, node: NodeId) -> &mut Stash {
        self.stashes.get_mut(&node).expect("it is there")
    }

    /// Some fragments of a stash go bad; nobody knows before somebody looks.
    fn rot(&mut self, node: NodeId) -> Result<(), Failure> {
        let some: Vec<(SegmentId, u8)> = self.stashes[&node].has.keys().copied().collect();
        for (segment, piece) in some {
            if self.rng.one_in(3) && self.may(|at, of, p| (at, of, p) == (node, segment, piece))? {
                if let Some(fragment) = self.stash(node).has.get_mut(&(segment, piece)) {
                    fragment.0 = false;
                }
                self.count("a fragment rots", node);
            }
        }
        Ok(())
    }

    /// Some machines are installed anew.
    fn reimage(&mut self) -> Result<(), Failure> {
        for _ in 0..1 + self.rng.below(4) {
            let node = self.any()?;
            if self.is_device(node)? || !self.may(|at, _, _| at == node)? {
                continue;
            }
            let before = self.stashes.remove(&node).expect("it is there");
            let number = self.catalog.standings()?.get(&node).and_then(|standing| standing.host);
            let after = self.join(number)?;
            let stash = self.stash(after);
            (stash.habit, stash.rack, stash.capacity) = (before.habit, before.rack, before.capacity);
            self.relabel()?;
            self.count("installed anew", node);
        }
        Ok(())
    }

    /// From now on nothing happens: who is away comes back, what is dead is said to be, and there is room.
    pub(super) fn calm_down(&mut self) -> Result<(), Failure> {
        for stash in self.stashes.values_mut() {
            (stash.dark_until, stash.limit, stash.is_urgent) = (0, None, false);
        }
        let known = self.catalog.nodes()?;
        let dead = known.iter().map(|(node, _)| *node).filter(|node| !self.stashes.contains_key(node));
        let dead: Vec<NodeId> = dead.collect();
        self.catalog.change(|change| {
            dead.iter().try_for_each(|node| {
                let gone = |standing: &mut Standing| (standing.removed, standing.lost) = (true, true);
                change.change_standing(*node, gone).map(drop)
            })
        })?;
        for _ in 0..30 {
            let node = self.join(None)?;
            self.stash(node).capacity = 100_000;
        }
        let device = self.join(None)?;
        self.stash(device).capacity = 1 << 20;
        self.catalog.change(|change| change.set_device(device, true))?;
        self.relabel()
    }
}
