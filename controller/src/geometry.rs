//! How many pieces a segment is cut into, and who may hold them: computed from a goal and what the fleet is like. `docs/protection.md` explains it
//! to an admin.

use std::collections::BTreeMap;

use images::limits::PARITY_PIECES_MAX;
use images::parity::Geometry;
use protocol::message::publish::Layout;

use crate::attendance::{Attendance, Class};
use crate::domains::Kind;
use crate::repair::threshold;

/// More data pieces than this make no segment much cheaper, and every repair dearer.
const DATA_MAX: usize = 10;
/// Bytes stored for each byte that are worth being readable more often.
const OVERHEAD_MAX: f64 = 4.0;

/// What is to be reached. What is left open follows from the fleet's size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Goal {
    /// Stashes that may be lost.
    pub survive: Option<u8>,
    /// How likely a segment can be read from clients, on average over the busy hours.
    pub readable: Option<f64>,
    /// Copies instead of parity.
    pub redundant: bool,
    /// Who keeps what.
    pub layout: Layout,
}

/// What the fleet is like.
#[derive(Clone, Debug, Default)]
pub struct Fleet<'a> {
    /// Stashes that may take pieces, by class.
    pub classes: BTreeMap<Class, usize>,
    /// Kinds of failure domains, and how many of these stashes are in each.
    pub kinds: BTreeMap<String, Kind>,
    /// When they are up.
    pub habits: Option<&'a Attendance>,
    /// Mass-storage devices that may take pieces.
    pub devices: usize,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// k + m.
    pub geometry: Geometry,
    /// Members of each group that must be steady.
    pub steady: usize,
    /// How likely a segment can be read from clients, on average over the busy hours.
    pub readable: f64,
    /// Why it is not less, or more: for a person.
    pub why: Vec<String>,
    /// What of the goal cannot be reached, and what would help.
    pub unmet: Vec<String>,
}

/// Losses that a fleet of so many stashes should survive if nobody said: about a quarter of a group.
#[must_use]
pub fn usual_parity(stashes: usize) -> usize {
    match stashes {
        0 | 1 => 0,
        2..=5 => 1,
        6..=9 => 2,
        10..=14 => 3,
        _ => 4,
    }
}

/// Stashes of a group: from four on at least one stays out of it, so that a holder that fails in the middle of a publication has somebody to
/// stand in for it.
fn pieces_max(stashes: usize) -> usize {
    if stashes >= 4 { stashes - 1 } else { stashes }
}

/// Members of which so many should be steady: a group is readable in the busy hours because of them.
struct Steady<'a> {
    fleet: &'a Fleet<'a>,
    layout: Layout,
    count: usize,
    wanted: f64,
}

impl<'a> Steady<'a> {
    fn new(fleet: &'a Fleet<'a>, goal: &Goal) -> Self {
        // Who is new may turn out to be anything.
        let steady = fleet.classes.iter().filter(|(class, _)| class.is_steady() && **class != Class::New);
        let count = steady.map(|(_, count)| count).sum();
        Self { fleet, layout: goal.layout, count, wanted: goal.readable.unwrap_or(0.0) }
    }

    /// More than this would put all groups on a few stashes: twice their even share.
    fn most(&self, n: usize) -> usize {
        let stashes: usize = self.fleet.classes.values().sum();
        (2 * n * self.count).div_ceil(stashes.max(1)).min(n).min(self.count)
    }

    /// The fewest, k at least, with which it can be read as often as wanted, and how often that is.
    fn fewest(&self, geometry: Geometry) -> (usize, f64) {
        // Mass-storage devices are there: so many pieces come from clients.
        let n = self.layout.on_clients(geometry);
        let k = geometry.data().saturating_sub(geometry.pieces() - n);
        let most = self.most(n);
        let Some(habits) = self.fleet.habits else { return (k.min(most), 1.0) };
        // Repair leaves some pieces missing for long.
        let there = (n + 1).saturating_sub(threshold(geometry));
        let readable = |steady: usize| habits.readable_of(&self.fleet.classes, there, steady.min(there), k);
        let (mut low, mut high) = (k.min(most), most);
        if readable(low) >= self.wanted {
            return (low, readable(low));
        }
        while low + 1 < high {
            let middle = usize::midpoint(low, high);
            if readable(middle) >= self.wanted { high = middle } else { low = middle }
        }
        (high, readable(high))
    }
}

/// Pieces of a segment that the device with the most of them has.
fn on_device(fleet: &Fleet<'_>, layout: Layout, geometry: Geometry) -> usize {
    layout.on_devices(geometry).len().div_ceil(fleet.devices.max(1))
}

/// What a geometry is worth to a fleet.
struct Judge<'a> {
    fleet: &'a Fleet<'a>,
    layout: Layout,
    steady: &'a Steady<'a>,
}

struct Judged {
    /// Parts of the goal, apart from the losses to survive, that it misses.
    misses: usize,
    /// How much less often it can be read than is wanted: what cannot be reached should at least be come close to.
    short: f64,
    /// Members that must be steady.
    steady: usize,
    /// How often it can be read.
    readable: f64,
}

impl Judge<'_> {
    fn judge(&self, geometry: Geometry) -> Judged {
        let (on_clients, m) = (self.layout.on_clients(geometry), geometry.parity());
        let crowded = self.fleet.kinds.values().filter(|kind| kind.is_crowded(on_clients, m)).count();
        let (steady, readable) = self.steady.fewest(geometry);
        let short = (self.steady.wanted - readable).max(0.0);
        let is_device_dear = on_device(self.fleet, self.layout, geometry) > m;
        Judged { misses: crowded + usize::from(short > 0.0) + usize::from(is_device_dear), short, steady, readable }
    }
}

/// Parts of a goal, apart from the losses to survive, that a geometry misses in this fleet.
#[must_use]
pub fn misses(fleet: &Fleet<'_>, goal: &Goal, geometry: Geometry) -> usize {
    let steady = Steady::new(fleet, goal);
    Judge { fleet, layout: goal.layout, steady: &steady }.judge(geometry).misses
}

/// Choose. None if there is no stash.
///
/// The cheapest geometry that reaches all of the goal; if there is none, that which misses the fewest of its parts.
#[must_use]
pub fn choose(fleet: &Fleet<'_>, goal: &Goal) -> Option<Choice> {
    let stashes: usize = fleet.classes.values().sum();
    let most = pieces_max(stashes);
    let steady = Steady::new(fleet, goal);
    let survive = goal.survive.map_or(usual_parity(stashes), usize::from);
    // Of those that lie on clients, one data piece at least; of parity on devices there may be as much as is wanted.
    let parity_max = match goal.layout {
        Layout::Mirror | Layout::Clients => most.checked_sub(1)?,
        Layout::ParityOnController => most.min(1) * PARITY_PIECES_MAX,
        Layout::ParityOnClients => most,
    };
    let parity_max = parity_max.min(PARITY_PIECES_MAX);
    let parity = survive.min(parity_max);
    let data_max = if goal.redundant { 1 } else { DATA_MAX };
    let judge = Judge { fleet, layout: goal.layout, steady: &steady };
    let mut best: Option<((usize, f64, f64, usize), Geometry, usize, f64)> = None;
    for m in parity..=parity_max {
        for k in 1..=data_max {
            let Ok(geometry) = Geometry::new(k as u8, m as u8) else { continue };
            if goal.layout.on_clients(geometry) > most {
                continue;
            }
            let overhead = geometry.pieces() as f64 / k as f64;
            if m > parity && !goal.redundant && overhead > OVERHEAD_MAX {
                continue;
            }
            let Judged { misses, short, steady, readable } = judge.judge(geometry);
            let cost = (misses, short, overhead, DATA_MAX.abs_diff(k));
            if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                best = Some((cost, geometry, steady, readable));
            }
        }
    }
    let (_, geometry, steady_members, readable) = best?;
    let mut choice = Choice { geometry, steady: steady_members, readable, why: Vec::new(), unmet: Vec::new() };
    choice.explain(fleet, goal, survive, steady.count);
    Some(choice)
}

/// Members of a group of this geometry that must be steady.
#[must_use]
pub fn steady(fleet: &Fleet<'_>, goal: &Goal, geometry: Geometry) -> usize {
    Steady::new(fleet, goal).fewest(geometry).0
}

impl Choice {
    /// A geometry that a person chose.
    #[must_use]
    pub fn said(geometry: Geometry) -> Self {
        Self { geometry, steady: geometry.data(), readable: 1.0, why: Vec::new(), unmet: Vec::new() }
    }

    fn explain(&mut self, fleet: &Fleet<'_>, goal: &Goal, survive: usize, steady: usize) {
        let (k, m) = (self.geometry.data(), self.geometry.parity());
        let on_clients = goal.layout.on_clients(self.geometry);
        let stashes: usize = fleet.classes.values().sum();
        let (wanted, usual) = match goal.survive {
            Some(_) => (format!("{survive} lost stashes are to be survived"), ""),
            None => (
                format!("{survive} lost stashes are usual for a fleet of {stashes}"),
                " (`coe-ctl policy set --survive`)",
            ),
        };
        self.why.push(format!("m = {m}: {wanted}{usual}"));
        self.explain_devices(fleet, goal.layout);
        if m < survive {
            // From four on, one stays out of a group.
            let needed = if survive <= 2 { survive + 1 } else { survive + 2 };
            self.unmet
                .push(format!("{survive} lost stashes cannot be survived by {stashes}: it takes {needed} of them"));
        } else if m > survive {
            self.why.push(
                "m is more, so that a failure domain or a mass-storage device may fail, or more can be read in busy hours"
                    .into(),
            );
        }
        self.why.push(match () {
            () if goal.redundant => "k = 1: copies instead of parity were asked for".into(),
            () if k == DATA_MAX => format!("k = {k}: more would save little space, and make repairs dearer"),
            () if on_clients == pieces_max(stashes) && stashes >= 4 => {
                format!("k = {k}: {stashes} stashes hold no more pieces, one stands in when another fails")
            }
            () if on_clients == pieces_max(stashes) => format!("k = {k}: {stashes} stashes hold no more pieces"),
            () => format!("k = {k}: the cheapest that reaches the goal"),
        });
        for (name, kind) in &fleet.kinds {
            let domains = kind.sizes.len();
            if kind.is_everywhere() {
                self.why.push(format!("{name}: there is only one, so nothing can be done against its failure"));
            } else if kind.is_crowded(on_clients, m) {
                let largest = kind.sizes.iter().max().copied().unwrap_or(0);
                self.unmet.push(format!(
                    "one {name} of {domains} would take more than {m} pieces of {on_clients} along: the largest has {largest} of \
                     {stashes} stashes; spread them more evenly, or survive more"
                ));
            } else {
                self.why.push(format!("{name}: any one of {domains} may fail, it takes at most {m} pieces along"));
            }
        }
        if let Some(wanted) = goal.readable
            && self.readable < wanted
        {
            self.unmet.push(format!(
                "{:.2} % readable in busy hours, and {:.2} % are wanted: too few stashes are up then, {steady} steady ones of {stashes}",
                self.readable * 100.0,
                wanted * 100.0
            ));
        }
        let are_new = fleet.classes.get(&Class::New).copied().unwrap_or(0);
        let needed = k.saturating_sub(self.geometry.pieces() - on_clients);
        if self.steady < needed && are_new < stashes {
            self.unmet.push(format!(
                "{needed} pieces of a segment should lie on stashes that are up when machines are installed: of {stashes} only {steady} are \
                 known to be, and {} of a group can lie there",
                self.steady
            ));
        }
    }
}

impl Choice {
    /// What mass storage has to do with it.
    fn explain_devices(&mut self, fleet: &Fleet<'_>, layout: Layout) {
        let (k, m) = (self.geometry.data(), self.geometry.parity());
        let (on_devices, on_clients) = (layout.on_devices(self.geometry).len(), layout.on_clients(self.geometry));
        if on_devices == 0 {
            return;
        }
        let (devices, of_one) = (fleet.devices, on_device(fleet, layout, self.geometry));
        if devices == 0 {
            self.unmet.push(format!(
                "layout {layout} needs a mass-storage device, and none is up that may take pieces: join a stash where it is to be, and say \
                 `coe-ctl node device ID`"
            ));
            return;
        }
        self.why.push(format!(
            "{on_clients} pieces lie on clients, {on_devices} on {devices} mass-storage device{}",
            if devices == 1 { "" } else { "s" }
        ));
        if of_one > m {
            self.unmet.push(format!(
                "one mass-storage device has {of_one} pieces of a segment, and {m} may be lost: add devices or stashes"
            ));
        }
        self.why.push(if on_clients >= k {
            format!("without mass storage, segments can be read when {k} of {on_clients} holders are up")
        } else {
            format!("without mass storage, nothing can be read: clients have {on_clients} pieces, and {k} are needed")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attendance::History;
    use images::NodeId;

    fn new(stashes: usize) -> Fleet<'static> {
        Fleet { classes: BTreeMap::from([(Class::New, stashes)]), ..Fleet::default() }
    }

    fn chosen(fleet: &Fleet<'_>, goal: Goal) -> (usize, usize) {
        let choice = choose(fleet, &goal).unwrap();
        (choice.geometry.data(), choice.geometry.parity())
    }

    #[test]
    fn fits_the_fleet_and_leaves_a_spare() {
        assert_eq!(choose(&new(0), &Goal::default()), None);
        let usual: Vec<_> = [1, 2, 3, 4, 5, 6, 8, 12, 15, 1000].map(|n| chosen(&new(n), Goal::default())).into();
        assert_eq!(usual, [(1, 0), (1, 1), (2, 1), (2, 1), (3, 1), (3, 2), (5, 2), (8, 3), (10, 4), (10, 4)]);
        for n in 1..60 {
            for survive in 0..12 {
                let goal = Goal { survive: Some(survive), ..Goal::default() };
                let choice = choose(&new(n), &goal).unwrap();
                let g = choice.geometry;
                assert!(g.pieces() <= pieces_max(n), "{g} does not fit {n}");
                assert!(g.parity() >= usize::from(survive) || !choice.unmet.is_empty(), "{g} of {n}");
                assert!(g.parity() == usize::from(survive) || g.pieces() == pieces_max(n), "{g} of {n}");
            }
        }
        assert_eq!(chosen(&new(9), Goal { survive: Some(3), redundant: true, ..Goal::default() }), (1, 3));
    }

    #[test]
    fn mass_storage_keeps_a_part() {
        let with = |stashes, devices| Fleet { devices, ..new(stashes) };
        let goal = |layout, survive| Goal { layout, survive, ..Goal::default() };
        let parity = |survive| goal(Layout::ParityOnController, survive);
        assert_eq!(chosen(&with(6, 1), parity(Some(3))), (5, 3), "all clients but one have data");
        assert_eq!(chosen(&with(40, 2), parity(None)), (10, 4));
        assert_eq!(chosen(&with(1, 1), parity(Some(1))), (1, 1));
        assert_eq!(choose(&with(0, 1), &parity(Some(1))), None);
        let data = |survive| goal(Layout::ParityOnClients, survive);
        assert_eq!(chosen(&with(12, 5), data(Some(2))), (10, 2), "a device has two pieces, and two may be lost");
        assert_eq!(chosen(&with(12, 1), data(Some(2))), (10, 10), "the only device may fail, too");
        assert_eq!(chosen(&with(3, 1), data(Some(1))), (3, 3));
        assert_eq!(chosen(&with(40, 10), data(None)), (10, 4), "as many as the fleet's size asks for");
        let choice = choose(&with(5, 0), &data(None)).unwrap();
        assert!(choice.unmet.iter().any(|what| what.contains("needs a mass-storage device")), "{choice:?}");
        for stashes in 1..40 {
            for devices in 1..6 {
                for layout in [Layout::ParityOnController, Layout::ParityOnClients] {
                    for survive in 0..8 {
                        let choice = choose(&with(stashes, devices), &goal(layout, Some(survive))).unwrap();
                        let g = choice.geometry;
                        assert!(layout.on_clients(g) <= pieces_max(stashes), "{g} on {stashes}");
                        let is_kept = g.parity() >= usize::from(survive)
                            && layout.on_devices(g).len().div_ceil(devices) <= g.parity();
                        assert!(is_kept || !choice.unmet.is_empty(), "{g}: {choice:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_failure_domain_may_fail() {
        let racks = |stashes: usize, racks: usize| {
            let sizes = (0..racks).map(|rack| (stashes + rack) / racks).collect();
            Fleet { kinds: BTreeMap::from([("rack".into(), Kind { sizes, others: 0 })]), ..new(stashes) }
        };
        assert_eq!(chosen(&racks(20, 4), Goal::default()), (10, 4));
        assert_eq!(chosen(&racks(20, 3), Goal::default()), (10, 5));
        assert_eq!(chosen(&racks(20, 2), Goal::default()), (9, 9));
        assert_eq!(chosen(&racks(12, 3), Goal::default()), (6, 3), "6 + 3 is cheaper than 7 + 4");
        // Of one rack, nobody can do anything about it.
        assert_eq!(chosen(&racks(20, 1), Goal::default()), (10, 4));
        let choice = choose(&racks(3, 2), &Goal::default()).unwrap();
        assert!(choice.unmet.is_empty() && choice.geometry == Geometry::new(1, 1).unwrap(), "{choice:?}");
    }

    #[test]
    fn what_is_up_in_busy_hours_decides_how_much_parity() {
        // 20 in office hours, nine in ten of them; 40 laptops, half of the time.
        let mut histories = BTreeMap::new();
        for i in 0..60u8 {
            let mut history = History::default();
            for week in 0..8u8 {
                for hour in 0..crate::attendance::HOURS {
                    let is_office = hour % 24 < 10;
                    let chance = (usize::from(i) * 7 + usize::from(week) * 13 + hour * 3) % 10;
                    history.note(hour, is_office && chance < if i < 20 { 9 } else { 5 });
                }
            }
            histories.insert(NodeId([i; 16]), history);
        }
        let habits = Attendance::of(&histories);
        let classes = BTreeMap::from([(Class::Office, 20), (Class::Laptop, 40)]);
        assert!((0..60u8).all(|i| habits.class(NodeId([i; 16])) == if i < 20 { Class::Office } else { Class::Laptop }));
        let fleet = Fleet { classes, habits: Some(&habits), ..Fleet::default() };
        let lax = choose(&fleet, &Goal::default()).unwrap();
        assert_eq!((lax.geometry.data(), lax.geometry.parity(), lax.steady), (10, 4, 10), "k are steady in any case");
        let strict = choose(&fleet, &Goal { readable: Some(0.999), ..Goal::default() }).unwrap();
        assert!(strict.readable >= 0.999 && strict.unmet.is_empty(), "{strict:?}");
        assert!(strict.geometry.parity() > 4 || strict.steady > 10, "{strict:?}");
        let laptops = Fleet { classes: BTreeMap::from([(Class::Laptop, 40)]), ..fleet.clone() };
        let choice = choose(&laptops, &Goal { readable: Some(0.999), ..Goal::default() }).unwrap();
        assert!(choice.unmet.iter().any(|what| what.contains("known to be")), "{choice:?}");
        // What cannot be reached is come as close to as possible, not given up.
        assert!(choice.readable > 0.9 && choice.geometry.data() == 1, "{choice:?}");
    }
}
