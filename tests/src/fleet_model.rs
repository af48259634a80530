//! Years of a large fleet in minutes: people who switch machines off, take them away and reinstall them, against the planner of the
//! product. What the model leaves out, and what it assumes, is in `docs/repair.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use controller::attendance::{Attendance, Class as Behaviour, HOURS, History};
use controller::catalog::{MoveRecord, Seat};
use controller::domains::Domains;
use controller::geometry::{self, Choice, Fleet, Goal};
use controller::placement::{Candidate, Wanted, choose};
use controller::repair::{self, Policy, Seen, Whole, Why};
use images::parity::Geometry;
use images::{GroupId, NodeId};

use crate::world::Rng;

const DAY_S: u64 = 24 * 3600;
/// Groups looked at for readability, and every how many weeks.
const SAMPLED_GROUPS: usize = 400;
const SAMPLED_EVERY: u64 = 4;
/// When the planner runs, and pieces move.
const NOON: usize = 12;

/// A fleet, and what becomes of it.
#[derive(Args, Clone, Debug)]
pub struct Model {
    /// Stashes: 20 % always on, 45 % in office hours, 30 % laptops, 5 % rarely
    #[arg(long, default_value_t = 10_000)]
    pub clients: usize,
    /// Years
    #[arg(long, default_value_t = 5)]
    pub years: u64,
    /// Stashes that go for good in a year, percent; as many come
    #[arg(long, default_value_t = 33.0)]
    pub departures: f64,
    /// k
    #[arg(long, default_value_t = 10)]
    pub data: u8,
    /// m
    #[arg(long, default_value_t = 4)]
    pub parity: u8,
    /// Instead of k and m: how often a segment is to be read in the busy hours, percent, as `coe-ctl policy set --readable`
    #[arg(long, value_name = "PERCENT")]
    pub readable: Option<f64>,
    /// Days of silence after which a stash is not expected back
    #[arg(long, default_value_t = 14)]
    pub gone_after_days: u64,
    /// Percent of all stashes that are wiped in the same hour, at the end of the last year; what that costs is said apart
    #[arg(long, default_value_t = 30)]
    pub wiped: u64,
    /// GiB that each stash holds
    #[arg(long, default_value_t = 20)]
    pub gib: u64,
    /// Seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Draw the curves into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<std::path::PathBuf>,
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Always,
    Office,
    Laptop,
    Rare,
}

impl Class {
    fn of(share: u64) -> Self {
        match share {
            0..20 => Self::Always,
            20..65 => Self::Office,
            65..95 => Self::Laptop,
            _ => Self::Rare,
        }
    }

    /// How likely it is to be up at an hour of the week, in thousandths; Monday is day 0.
    fn up(self, hour: usize) -> u64 {
        let (day, hour) = (hour / 24, hour % 24);
        let (works, day_time) = (day < 5, (8..18).contains(&hour));
        match self {
            Self::Always => 995,
            Self::Office if works && day_time => 920,
            Self::Office => 40,
            Self::Laptop if works && day_time => 650,
            Self::Laptop if (18..23).contains(&hour) => 150,
            Self::Laptop => 40,
            Self::Rare => 25,
        }
    }

    /// How likely it is to be heard at all on a day.
    fn heard(self, day: usize) -> u64 {
        match self {
            Self::Always => 999,
            Self::Office | Self::Laptop if day < 5 => 930,
            Self::Office => 60,
            Self::Laptop => 350,
            Self::Rare => 300,
        }
    }
}

struct Client {
    class: Class,
    /// Its disk is there.
    is_alive: bool,
    /// Without power until this day.
    dark_until: u64,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Outcome {
    /// `k+m`.
    pub geometry: String,
    /// How often the product thinks that a new segment can be read in the busy hours.
    pub estimated: f64,
    /// Groups, and years that they existed, together.
    pub groups: usize,
    /// See `groups`.
    pub group_years: f64,
    /// Groups of which fewer than k pieces were left at some time, before the great wipe.
    pub lost: u64,
    /// The same, at the great wipe.
    pub lost_at_wipe: u64,
    /// Pieces of groups that went with their stash.
    pub pieces_lost: u64,
    /// Pieces that travelled for repair.
    pub pieces_moved: u64,
    /// Members that were replaced although they would have come back.
    pub in_vain: u64,
    /// Pieces that were moved to a better place.
    pub improved: u64,
    /// Of the sampled groups, those that could be read, at each hour of the week: thousandths.
    pub readable: Vec<u64>,
    /// Pieces lost and moved, by month.
    pub months: Vec<(u64, u64)>,
    /// Time in the planner, all runs together, and the longest.
    pub planning: Duration,
    /// See `planning`.
    pub longest: Duration,
}

struct Run<'a> {
    model: &'a Model,
    geometry: Geometry,
    rng: Rng,
    clients: BTreeMap<NodeId, Client>,
    nodes: BTreeMap<NodeId, Seen>,
    groups: BTreeMap<GroupId, Whole>,
    /// Pieces of each group that are physically there.
    there: BTreeMap<GroupId, Vec<bool>>,
    /// Where each client sits.
    seats: BTreeMap<NodeId, Vec<Seat>>,
    moves: BTreeMap<Seat, MoveRecord>,
    next: u64,
    /// When each was up in its first weeks, and what the product makes of it.
    histories: BTreeMap<NodeId, History>,
    habits: Attendance,
    /// Members of each group that must be steady.
    steady: usize,
    outcome: Outcome,
}

impl Model {
    /// Run it.
    ///
    /// # Panics
    /// If k and m are no geometry.
    #[must_use]
    pub fn run(&self) -> Outcome {
        let mut run = Run {
            model: self,
            geometry: Geometry::new(self.data, self.parity).expect("a geometry"),
            rng: Rng::new(self.seed),
            clients: BTreeMap::new(),
            nodes: BTreeMap::new(),
            groups: BTreeMap::new(),
            there: BTreeMap::new(),
            seats: BTreeMap::new(),
            moves: BTreeMap::new(),
            next: 0,
            histories: BTreeMap::new(),
            habits: Attendance::default(),
            steady: usize::from(self.data),
            outcome: Outcome { readable: vec![0; HOURS], ..Outcome::default() },
        };
        run.all();
        run.outcome
    }

    /// Bytes of a group at one member: each is in two, as the product makes them.
    fn piece_bytes(&self) -> u64 {
        (self.gib << 30) / 2
    }
}

impl Run<'_> {
    fn chance(&mut self, thousandths: u64) -> bool {
        self.rng.below(1000) < thousandths
    }

    fn join(&mut self) -> NodeId {
        self.next += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.rng.number().to_le_bytes());
        id[8..].copy_from_slice(&self.next.to_le_bytes());
        let (node, class) = (NodeId(id), Class::of(self.rng.below(100)));
        self.clients.insert(node, Client { class, is_alive: true, dark_until: 0 });
        // Room for twice what it is to hold.
        let free = self.model.piece_bytes() * 4;
        self.nodes.insert(node, Seen { free, capacity: free, ..Seen::default() });
        node
    }

    fn found(&mut self) {
        let all: Vec<NodeId> = (0..self.model.clients).map(|_| self.join()).collect();
        self.measure();
        let choice = self.choose_geometry();
        (self.geometry, self.steady) = (choice.geometry, choice.steady);
        self.outcome.geometry = choice.geometry.to_string();
        self.outcome.estimated = choice.readable;
        let count = (all.len() * 2).div_ceil(self.geometry.pieces());
        for number in 0..count as u32 {
            let members = self.members(&all);
            for (piece, node) in members.iter().enumerate() {
                self.seats.entry(*node).or_default().push((GroupId(number), piece as u8));
                self.take_room(*node, true);
            }
            self.there.insert(GroupId(number), vec![true; members.len()]);
            let whole = Whole {
                geometry: self.geometry,
                members,
                vacant: std::collections::BTreeSet::new(),
                bytes: self.model.piece_bytes(),
                steady: self.steady,
                is_copied: false,
            };
            self.groups.insert(GroupId(number), whole);
        }
        self.outcome.groups = count;
    }

    /// Eight weeks of everybody who was not measured yet.
    fn measure(&mut self) {
        for (node, client) in self.clients.iter().filter(|(_, c)| c.is_alive) {
            let (rng, class) = (&mut self.rng, client.class);
            self.histories.entry(*node).or_insert_with(|| {
                let mut history = History::default();
                for _ in 0..8 {
                    (0..HOURS).for_each(|hour| history.note(hour, rng.below(1000) < class.up(hour)));
                }
                history
            });
        }
        self.histories.retain(|node, _| self.clients.contains_key(node));
        self.habits = Attendance::of(&self.histories);
        for (node, seen) in &mut self.nodes {
            seen.is_unsteady = !self.habits.class(*node).is_steady();
            seen.is_new = self.habits.class(*node) == Behaviour::New;
        }
    }

    fn choose_geometry(&self) -> Choice {
        let mut classes: BTreeMap<Behaviour, usize> = BTreeMap::new();
        for node in self.clients.keys() {
            *classes.entry(self.habits.class(*node)).or_default() += 1;
        }
        let fleet = Fleet { classes, habits: Some(&self.habits), ..Fleet::default() };
        let goal = |share: f64| Goal { readable: Some(share / 100.0), ..Goal::default() };
        let wanted = self.model.readable.and_then(|share| geometry::choose(&fleet, &goal(share)));
        wanted.unwrap_or_else(|| Choice::said(self.geometry))
    }

    /// Members of a new group, chosen by the product among some.
    fn members(&mut self, all: &[NodeId]) -> Vec<NodeId> {
        let some: std::collections::BTreeSet<NodeId> =
            (0..self.geometry.pieces() * 10).map(|_| all[self.rng.below(all.len() as u64) as usize]).collect();
        let candidate = |node: &NodeId| Candidate {
            node: *node,
            free: self.nodes[node].free,
            groups: self.seats.get(node).map_or(0, |seats| seats.len() as u32),
            is_steady: self.habits.class(*node).is_steady(),
            is_badly_reached: false,
            domains: &[],
        };
        let (geometry, steady) = (self.geometry, self.steady);
        let wanted = Wanted { geometry, pieces: geometry.pieces(), steady, domains: &Domains::default() };
        let mut members = choose(some.iter().map(candidate).collect(), self.model.piece_bytes(), &wanted);
        members.truncate(self.geometry.pieces());
        members
    }

    fn take_room(&mut self, node: NodeId, takes: bool) {
        let bytes = self.model.piece_bytes();
        if let Some(seen) = self.nodes.get_mut(&node) {
            seen.free = if takes { seen.free.saturating_sub(bytes) } else { seen.free + bytes };
        }
    }

    fn all(&mut self) {
        self.found();
        let days = self.model.years * 365;
        let leaves_a_day = 1.0 - (-self.model.departures / 100.0 / 365.0).exp();
        let in_a_million = (leaves_a_day * 1e6) as u64;
        for day in 0..days {
            if day % 30 == 0 {
                self.outcome.months.push((0, 0));
            }
            let day_of_year = day % 365;
            // Beside the holidays: a wave of reinstallations in summer; buildings without power in autumn.
            let is_holiday = is_holiday(day_of_year);
            let all: Vec<NodeId> = self.clients.iter().filter(|(_, c)| c.is_alive).map(|(node, _)| *node).collect();
            for node in &all {
                let reinstalled = (200..207).contains(&day_of_year) && self.rng.below(1000) < 15;
                if reinstalled || self.rng.below(1_000_000) < in_a_million {
                    self.lose(*node);
                    self.join();
                }
                // Who is deployed anew joins as another stash of the same machine: the controller knows what is gone.
                if reinstalled && let Some(seen) = self.nodes.get_mut(node) {
                    seen.standing.lost = true;
                }
                if day_of_year == 280 && self.chance(50) {
                    self.clients.get_mut(node).expect("alive").dark_until = day + 2;
                }
            }
            self.outcome.lost += self.count_losses();
            self.see(day, is_holiday);
            if day % 7 == 6 {
                self.measure();
            }
            self.plan(day);
            self.carry_out();
            self.forget_the_gone();
            if day % (7 * SAMPLED_EVERY) == 0 && !is_holiday {
                self.sample();
            }
        }
        self.outcome.group_years = self.outcome.groups as f64 * self.model.years as f64;
        let all: Vec<NodeId> = self.clients.iter().filter(|(_, c)| c.is_alive).map(|(node, _)| *node).collect();
        for node in all {
            if self.rng.below(100) < self.model.wiped {
                self.lose(node);
            }
        }
        self.outcome.lost_at_wipe = self.count_losses();
        let samples = (0..self.model.years * 365).step_by((7 * SAMPLED_EVERY) as usize);
        let samples = samples.filter(|day| !is_holiday(day % 365)).count().max(1) as u64;
        self.outcome.readable.iter_mut().for_each(|n| *n /= samples);
    }

    /// A stash is gone for good, with what it held.
    fn lose(&mut self, node: NodeId) {
        if let Some(client) = self.clients.get_mut(&node) {
            client.is_alive = false;
        }
        for (group, piece) in self.seats.get(&node).cloned().unwrap_or_default() {
            if std::mem::replace(&mut self.there.get_mut(&group).expect("a group")[usize::from(piece)], false) {
                self.outcome.pieces_lost += 1;
                self.outcome.months.last_mut().expect("a month").0 += 1;
            }
        }
    }

    /// Groups that are lost begin anew on other members, as after publishing again.
    fn count_losses(&mut self) -> u64 {
        let is_lost = |there: &[bool]| there.iter().filter(|is| **is).count() < self.geometry.data();
        let lost: Vec<GroupId> = self.there.iter().filter(|(_, there)| is_lost(there)).map(|(id, _)| *id).collect();
        let alive: Vec<NodeId> = self.clients.iter().filter(|(_, c)| c.is_alive).map(|(node, _)| *node).collect();
        for id in &lost {
            for piece in 0..self.geometry.pieces() as u8 {
                let (seat, from) = ((*id, piece), self.groups[id].members[usize::from(piece)]);
                self.moves.remove(&seat);
                self.seats.entry(from).or_default().retain(|other| *other != seat);
                let whole = self.groups.get_mut(id).expect("a group");
                let to = std::iter::repeat_with(|| alive[self.rng.below(alive.len() as u64) as usize])
                    .find(|node| !whole.members.contains(node))
                    .expect("more stashes than a group has");
                whole.members[usize::from(piece)] = to;
                self.there.get_mut(id).expect("a group")[usize::from(piece)] = true;
                self.seats.entry(to).or_default().push(seat);
            }
        }
        lost.len() as u64
    }

    /// Who is heard today, and who is up at noon.
    fn see(&mut self, day: u64, is_holiday: bool) {
        let weekday = (day % 7) as usize;
        let mut heard = Vec::with_capacity(self.nodes.len());
        for (node, client) in &self.clients {
            let dark = client.dark_until > day || (is_holiday && client.class != Class::Always);
            let is_heard = client.is_alive && !dark && self.rng.below(1000) < client.class.heard(weekday);
            let is_up = is_heard
                && self.rng.below(1000) < client.class.up(weekday * 24 + NOON) * 1000 / client.class.heard(weekday);
            heard.push((*node, is_heard, is_up));
        }
        // As the product counts: if most are silent, nobody is.
        let counts = heard.iter().filter(|(_, is_heard, _)| *is_heard).count() * 2 >= heard.len();
        for (node, is_heard, is_up) in heard {
            let seen = self.nodes.get_mut(&node).expect("known");
            seen.is_up = is_up;
            seen.silent_s = match () {
                () if is_heard => 0,
                () if counts => seen.silent_s + DAY_S,
                () => seen.silent_s,
            };
        }
    }

    fn plan(&mut self, day: u64) {
        let policy = Policy {
            gone_after_s: self.model.gone_after_days * DAY_S,
            together: usize::MAX,
            is_open: true,
            better_together: usize::MAX,
        };
        let start = Instant::now();
        let plan = repair::plan(&policy, &self.nodes, &self.groups, &self.moves, &Domains::default(), day * DAY_S);
        let took = start.elapsed();
        self.outcome.planning += took;
        self.outcome.longest = self.outcome.longest.max(took);
        for seat in plan.give_up {
            if let Some(given_up) = self.moves.remove(&seat) {
                self.take_room(given_up.to, false);
            }
        }
        for (seat, record, why) in plan.begin {
            let would_come_back = self.clients.get(&record.from).is_some_and(|c| c.is_alive);
            self.outcome.in_vain += u64::from(why == Why::Lost && would_come_back);
            self.outcome.improved += u64::from(matches!(why, Why::Better | Why::Fuller));
            self.take_room(record.to, true);
            self.moves.insert(seat, record);
        }
    }

    /// What can be made at noon is made: the new holder is up, and k others are.
    fn carry_out(&mut self) {
        let mut read: BTreeMap<GroupId, bool> = BTreeMap::new();
        for (seat, record) in self.moves.clone() {
            let whole = &self.groups[&seat.0];
            let there = &self.there[&seat.0];
            let is_up = |node: &NodeId| self.nodes.get(node).is_some_and(|n| n.is_up);
            let pieces = whole.members.iter().enumerate().filter(|(piece, node)| there[*piece] && is_up(node)).count();
            let is_copied = there[usize::from(seat.1)] && is_up(&record.from);
            if !(is_copied || pieces >= self.geometry.data()) || !is_up(&record.to) {
                continue;
            }
            // The first of a group reads k; those that come with it get theirs from it.
            let moved = match is_copied {
                true => 1,
                false => {
                    let has_read = std::mem::replace(read.entry(seat.0).or_default(), true);
                    if has_read && record.via.is_some() { 1 } else { self.geometry.data() as u64 }
                }
            };
            self.outcome.pieces_moved += moved;
            self.outcome.months.last_mut().expect("a month").1 += moved;
            self.moves.remove(&seat);
            let whole = self.groups.get_mut(&seat.0).expect("a group");
            whole.members[usize::from(seat.1)] = record.to;
            self.there.get_mut(&seat.0).expect("a group")[usize::from(seat.1)] = true;
            self.seats.entry(record.from).or_default().retain(|other| *other != seat);
            self.seats.entry(record.to).or_default().push(seat);
            self.take_room(record.from, false);
        }
    }

    /// Of those that are gone and hold nothing, nobody keeps a record.
    fn forget_the_gone(&mut self) {
        let gone: Vec<NodeId> = self.clients.iter().filter(|(_, c)| !c.is_alive).map(|(node, _)| *node).collect();
        for node in gone {
            if self.seats.get(&node).is_none_or(Vec::is_empty) && !self.moves.values().any(|m| m.to == node) {
                self.clients.remove(&node);
                self.nodes.remove(&node);
                self.seats.remove(&node);
            }
        }
    }

    fn sample(&mut self) {
        let step = (self.groups.len() / SAMPLED_GROUPS).max(1);
        let sampled: Vec<(Vec<NodeId>, Vec<bool>)> = self
            .groups
            .iter()
            .step_by(step)
            .map(|(id, whole)| (whole.members.clone(), self.there[id].clone()))
            .collect();
        for hour in 0..HOURS {
            let mut readable = 0;
            for (members, there) in &sampled {
                let mut up = 0;
                for (node, is_there) in members.iter().zip(there) {
                    let class = self.clients.get(node).map(|c| c.class);
                    up += usize::from(*is_there && class.is_some_and(|class| self.rng.below(1000) < class.up(hour)));
                }
                readable += u64::from(up >= self.geometry.data());
            }
            self.outcome.readable[hour] += readable * 1000 / sampled.len().max(1) as u64;
        }
    }
}

impl Outcome {
    /// For a person.
    #[must_use]
    pub fn lines(&self, model: &Model) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{} stashes, {} years, {} % a year go; {}, {} groups, {} GiB a stash, seed {}",
            model.clients, model.years, model.departures, self.geometry, self.groups, model.gib, model.seed
        );
        // Without a loss, 3 / n bounds the rate with 95 % (the rule of three); with some, the rate itself is given.
        let rate = self.lost.max(3) as f64 / self.group_years;
        let what = if self.lost == 0 { "at least, with 95 % confidence" } else { "as counted" };
        let _ = writeln!(
            out,
            "durability    {} of {:.0} group-years lost: {:.1} nines a year {what}",
            self.lost,
            self.group_years,
            -(rate.log10())
        );
        let _ =
            writeln!(out, "{} % wiped in one hour: {} of {} groups lost", model.wiped, self.lost_at_wipe, self.groups);
        let ratio = self.pieces_moved as f64 / (self.pieces_lost.max(1)) as f64;
        let _ = writeln!(
            out,
            "repair        {} pieces lost, {} moved: {ratio:.2} bytes for each byte lost; {} replaced in vain, {} to a better place",
            self.pieces_lost, self.pieces_moved, self.in_vain, self.improved
        );
        let mb = self.pieces_moved as f64 * model.piece_bytes() as f64 / 1e6;
        let _ = writeln!(
            out,
            "traffic       {:.1} MB a client a day",
            mb / model.clients as f64 / (model.years * 365) as f64
        );
        let at = |hour: usize| self.readable[hour] as f64 / 10.0;
        // It promises something where somebody said how much is wanted.
        let promised = model
            .readable
            .map_or(String::new(), |_| format!("; the product expects {:.2} % in busy hours", self.estimated * 100.0));
        let _ = writeln!(
            out,
            "readable      Tuesday 10:00 {:.1} %, 19:00 {:.1} %, 3:00 {:.1} %; Sunday 12:00 {:.1} %{promised}",
            at(34),
            at(43),
            at(27),
            at(156),
        );
        let plans = model.years * 365;
        let _ = writeln!(
            out,
            "planner       {:.0} ms a run, {:.0} ms at the most; {} MiB resident at the end, the model included",
            self.planning.as_secs_f64() * 1e3 / plans as f64,
            self.longest.as_secs_f64() * 1e3,
            resident_mib()
        );
        out
    }

    /// Readability by hour of the week, and pieces lost and moved by month.
    #[must_use]
    pub fn svg(&self, model: &Model) -> String {
        let (width, height) = (840.0, 160.0);
        let line = |points: &[f64], most: f64| {
            let x = |i: usize| 40.0 + i as f64 * width / points.len().max(2) as f64;
            let text: Vec<String> = points
                .iter()
                .enumerate()
                .map(|(i, y)| format!("{:.1},{:.1}", x(i), height - y / most.max(1e-9) * height))
                .collect();
            text.join(" ")
        };
        let readable: Vec<f64> = self.readable.iter().map(|n| *n as f64).collect();
        let lost: Vec<f64> = self.months.iter().map(|(n, _)| *n as f64).collect();
        let moved: Vec<f64> = self.months.iter().map(|(_, n)| *n as f64).collect();
        let most = lost.iter().chain(&moved).copied().fold(1.0, f64::max);
        let polyline = |points: &str, colour: &str| {
            format!("<polyline fill='none' stroke='{colour}' stroke-width='1.5' points='{points}'/>")
        };
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 900 440' font-family='sans-serif' font-size='12'>\n\
             <text x='40' y='16'>{} stashes, {}, {} % a year go: groups that can be read, by hour of the week (0 to 100 %)</text>\n\
             <g transform='translate(0,24)'>{}</g>\n\
             <text x='40' y='222'>pieces lost (grey) and moved by repair (black), by month (0 to {most:.0})</text>\n\
             <g transform='translate(0,236)'>{}{}</g>\n</svg>\n",
            model.clients,
            self.geometry,
            model.departures,
            polyline(&line(&readable, 1000.0), "black"),
            polyline(&line(&lost, most), "grey"),
            polyline(&line(&moved, most), "black"),
        )
    }
}

/// Two weeks around New Year.
fn is_holiday(day_of_year: u64) -> bool {
    !(7..358).contains(&day_of_year)
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        Model {
            clients: 300,
            years: 2,
            departures: 33.0,
            data: 4,
            parity: 4,
            readable: None,
            gone_after_days: 14,
            wiped: 30,
            gib: 20,
            seed: 1,
            svg: None,
        }
    }

    #[test]
    fn a_fleet_that_turns_over_keeps_its_data() {
        let outcome = model().run();
        let unrepaired = Model { gone_after_days: 100_000, ..model() }.run();
        assert!(outcome.lost * 10 < unrepaired.lost, "{} and {}", outcome.lost, unrepaired.lost);
        assert!(outcome.pieces_lost > 100 && outcome.pieces_moved > 0, "{outcome:?}");
        // Eager repair would read k for each.
        assert!(outcome.pieces_moved < outcome.pieces_lost * 4, "{outcome:?}");
    }
}
