//! How a stash stays out of its owner's way: what it does when the disk fills, and how fast it may be. Pure: facts in, decisions out.

use protocol::pace::is_between;
use serde::{Deserialize, Serialize};

use crate::limits::REGIONS_MIN;

/// Bytes of the disk that its owner wants free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floors {
    /// Below this nothing new is taken.
    pub stop: u64,
    /// Below this the stash gives space back.
    pub evacuate: u64,
    /// Below this it gives its ballast back, too.
    pub drop: u64,
}

impl Floors {
    /// The same in an order that makes sense.
    #[must_use]
    pub fn in_order(self) -> Self {
        let evacuate = self.evacuate.min(self.stop);
        Self { stop: self.stop, evacuate, drop: self.drop.min(evacuate) }
    }

    /// Seven and four tenths of where it stops taking: of a disk of which a tenth is to stay free, 7 and 4 %.
    #[must_use]
    pub fn below(stop: u64) -> Self {
        Self { stop, evacuate: stop / 10 * 7, drop: stop / 10 * 4 }
    }
}

/// How full the disk is, in its owner's eyes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// There is room.
    #[default]
    Fine,
    /// Nothing new is taken.
    Stop,
    /// Space is given back.
    Evacuate,
    /// The ballast is given back.
    Drop,
}

/// How full a disk is.
#[must_use]
pub fn level(free: u64, floors: &Floors) -> Level {
    match free {
        _ if free < floors.drop => Level::Drop,
        _ if free < floors.evacuate => Level::Evacuate,
        _ if free < floors.stop => Level::Stop,
        _ => Level::Fine,
    }
}

/// Sizes of a stash file, in regions.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Now.
    pub now: u32,
    /// What its owner offered.
    pub wish: u32,
    /// What the fragments that are here need.
    pub least: u32,
    /// Bytes of a region.
    pub region_len: u64,
}

/// Regions that a stash should have: fewer where the disk is filled by others, and what was offered as soon as there is room again.
#[must_use]
pub fn wanted(free: u64, floors: &Floors, sizes: &Sizes) -> u32 {
    let len = sizes.region_len;
    if free < floors.evacuate {
        let missing = floors.stop.saturating_sub(free).div_ceil(len).min(u64::from(u32::MAX)) as u32;
        return sizes.now.saturating_sub(missing).max(sizes.least).min(sizes.now);
    }
    // Not to and fro: some room is left between growing and stopping.
    let room = free.saturating_sub(floors.stop.saturating_add(2 * len)) / len;
    if sizes.now > sizes.wish {
        return sizes.wish.max(sizes.least).min(sizes.now);
    }
    if sizes.now < sizes.wish {
        return sizes.wish.min(sizes.now.saturating_add(u32::try_from(room).unwrap_or(u32::MAX)));
    }
    sizes.now
}

/// Regions of fragments that must go elsewhere, before a stash can be as small as its owner or the disk wants.
#[must_use]
pub fn too_many(free: u64, floors: &Floors, sizes: &Sizes) -> u32 {
    let smallest = Sizes { least: REGIONS_MIN, ..*sizes };
    sizes.least.saturating_sub(wanted(free, floors, &smallest).max(REGIONS_MIN))
}

/// Bytes a second, at certain hours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Minute of the day, local time, from which it holds.
    pub from: u16,
    /// Minute of the day until which it holds; over midnight if it is earlier. Both the same: always.
    pub to: u16,
    /// Over the network, both ways together.
    pub network: Option<u64>,
    /// From and to the disk.
    pub disk: Option<u64>,
}

/// What may be used at a minute of the day: the smallest of all limits that hold.
#[must_use]
pub fn allowed(limits: &[Limit], minute: u16) -> (Option<u64>, Option<u64>) {
    let holds = |l: &&Limit| is_between(minute, l.from, l.to);
    let least = |of: fn(&Limit) -> Option<u64>| limits.iter().filter(holds).filter_map(of).min();
    (least(|l| l.network), least(|l| l.disk))
}

/// The part of the last ten seconds, in percent, in which somebody waited: the first line of a file below `/proc/pressure`
/// (Linux, Documentation/accounting/psi.rst).
#[must_use]
pub fn pressure(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use protocol::pace::minute_of_day;

    use super::*;

    #[test]
    fn a_disk_that_fills_gets_its_space_back_and_no_more_than_that() {
        let floors = Floors::below(100);
        assert_eq!((floors.evacuate, floors.drop), (70, 40));
        let levels =
            [(100, Level::Fine), (99, Level::Stop), (69, Level::Evacuate), (39, Level::Drop), (0, Level::Drop)];
        for (free, want) in levels {
            assert_eq!(level(free, &floors), want, "{free}");
        }
        let sizes = Sizes { now: 20, wish: 20, least: 8, region_len: 10 };
        for (free, want) in [(1000, 20), (70, 20), (69, 16), (0, 10)] {
            assert_eq!(wanted(free, &floors, &sizes), want, "{free}");
        }
        assert_eq!(wanted(0, &floors, &Sizes { least: 15, ..sizes }), 15, "what is here stays");
        let less = Sizes { wish: 6, ..sizes };
        assert_eq!(wanted(1000, &floors, &less), 8, "less than it has was offered");
        assert_eq!(wanted(1000, &floors, &Sizes { least: 2, ..less }), 6);
        assert_eq!(wanted(0, &floors, &Sizes { least: 30, ..sizes }), 20, "it never grows on a full disk");
        let small = Sizes { now: 10, ..sizes };
        for (free, want) in [(119, 10), (130, 11), (170, 15), (10_000, 20)] {
            assert_eq!(wanted(free, &floors, &small), want, "{free}");
        }
        // What growing takes does not make it shrink again.
        for free in 0..300 {
            let grown = wanted(free, &floors, &small);
            let left = free - u64::from(grown.saturating_sub(10)) * 10;
            assert_eq!(
                wanted(left, &floors, &Sizes { now: grown.max(10), ..small }),
                grown.max(10).min(grown),
                "{free}"
            );
        }
    }

    #[test]
    fn limits_by_the_hour() {
        let limit = |from: &str, to: &str, network, disk| Limit {
            from: minute_of_day(from).unwrap(),
            to: minute_of_day(to).unwrap(),
            network,
            disk,
        };
        let office = limit("08:00", "18:00", Some(10), None);
        let night = limit("22:00", "06:00", None, Some(5));
        let always = limit("00:00", "24:00", Some(100), Some(50));
        let limits = [office, night, always];
        let at = |text| allowed(&limits, minute_of_day(text).unwrap());
        assert_eq!(at("07:59"), (Some(100), Some(50)));
        assert_eq!(at("08:00"), (Some(10), Some(50)));
        assert_eq!(at("18:00"), (Some(100), Some(50)));
        assert_eq!(at("23:00"), (Some(100), Some(5)));
        assert_eq!(at("05:59"), (Some(100), Some(5)));
        assert_eq!(allowed(&[], 0), (None, None));
    }

    #[test]
    fn pressure_is_read() {
        let text = "some avg10=12.34 avg60=1.00 avg300=0.10 total=1\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(pressure(text), Some(12.34));
        assert_eq!(pressure("nonsense"), None);
    }
}
