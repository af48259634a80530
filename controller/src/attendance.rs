//! Which stashes are up at which hours of the week: by what they did in the last weeks, not by what anybody says of them.
//!
//! What is estimated from it holds if stashes come and go independently of each other. They do not quite: `docs/protection.md` says where.

use std::collections::{BTreeMap, BTreeSet};

use images::NodeId;
use serde::{Deserialize, Serialize};

/// Hours of a week. The first one begins on Thursday at midnight UTC, as 1970 did.
pub const HOURS: usize = 168;
/// Weeks that are remembered.
const WEEKS: u8 = 8;
/// Hours that must have been counted before anything is said of a stash.
const MEASURED_AFTER: u32 = 5 * 24;
/// An hour with fewer counted minutes says nothing.
const MINUTES_MIN: u32 = 30;
/// A holiday, a power cut or a cut cable is no habit: an hour at which less than half of the usual stashes are up is not counted, but for so
/// many weeks only.
const SKIPPED_MAX: u8 = 3;

/// What one stash did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// For each hour of the week, a bit for each week, the last one lowest: whether it was up for most of it.
    up: Vec<u8>,
    /// For each hour of the week, weeks that were counted.
    weeks: Vec<u8>,
}

impl Default for History {
    fn default() -> Self {
        Self { up: vec![0; HOURS], weeks: vec![0; HOURS] }
    }
}

impl History {
    /// One more hour was counted.
    pub fn note(&mut self, hour: usize, was_up: bool) {
        if let (Some(up), Some(weeks)) = (self.up.get_mut(hour), self.weeks.get_mut(hour)) {
            *up = (*up << 1) | u8::from(was_up);
            *weeks = (*weeks + 1).min(WEEKS);
        }
    }

    /// At an hour of the week: in how many weeks it was up, and of how many.
    fn at(&self, hour: usize) -> (u32, u32) {
        let weeks = self.weeks.get(hour).copied().unwrap_or(0).min(WEEKS);
        let mask = ((1u16 << weeks) - 1) as u8;
        (self.up.get(hour).map_or(0, |up| (up & mask).count_ones()), weeks.into())
    }

    fn over(&self, hours: impl Iterator<Item = usize>) -> (u32, u32) {
        hours.map(|hour| self.at(hour)).fold((0, 0), |sum, at| (sum.0 + at.0, sum.1 + at.1))
    }
}

/// What kind of machine a stash behaves like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Not measured for long enough. It is taken for one that is up.
    #[default]
    New,
    /// Up nine tenths of all hours.
    Always,
    /// Up three quarters of the busy hours.
    Office,
    /// Up a quarter of the busy hours.
    Laptop,
    /// Less.
    Rare,
}

impl Class {
    /// Whether it can be counted on in the busy hours.
    #[must_use]
    pub fn is_steady(self) -> bool {
        matches!(self, Self::New | Self::Always | Self::Office)
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Always => "always on",
            Self::Office => "office hours",
            Self::Laptop => "laptop",
            Self::Rare => "rare",
        })
    }
}

/// A fleet's habits.
#[derive(Clone, Debug, Default)]
pub struct Attendance {
    classes: BTreeMap<NodeId, Class>,
    /// Hours of the week at which at least half as many are up as at the best: then machines are installed.
    busy: Vec<usize>,
    /// How likely a stash of a class is up, for each busy hour.
    rates: BTreeMap<Class, Vec<f64>>,
    /// How many are usually up, for each hour of the week.
    usual: Vec<f64>,
}

impl Attendance {
    /// From what each did.
    #[must_use]
    pub fn of(histories: &BTreeMap<NodeId, History>) -> Self {
        let mut totals = vec![(0u32, 0u32); HOURS];
        for history in histories.values() {
            for (hour, total) in totals.iter_mut().enumerate() {
                let (up, weeks) = history.at(hour);
                *total = (total.0 + up, total.1 + weeks);
            }
        }
        let share = |(up, of): (u32, u32)| if of == 0 { 0.0 } else { f64::from(up) / f64::from(of) };
        let best = totals.iter().map(|total| share(*total)).fold(0.0, f64::max);
        let busy: Vec<usize> =
            (0..HOURS).filter(|hour| totals[*hour].1 > 0 && share(totals[*hour]) >= best / 2.0).collect();
        let class = |history: &History| {
            let (up, of) = history.over(0..HOURS);
            let in_busy = share(history.over(busy.iter().copied()));
            match () {
                () if of < MEASURED_AFTER => Class::New,
                () if share((up, of)) >= 0.9 => Class::Always,
                () if in_busy >= 0.75 => Class::Office,
                () if in_busy >= 0.25 => Class::Laptop,
                () => Class::Rare,
            }
        };
        let classes: BTreeMap<NodeId, Class> =
            histories.iter().map(|(node, history)| (*node, class(history))).collect();
        let mut seen: BTreeMap<Class, Vec<(u32, u32)>> = BTreeMap::new();
        for (node, history) in histories {
            let of_class = seen.entry(classes[node]).or_insert_with(|| vec![(0, 0); busy.len()]);
            for (sum, hour) in of_class.iter_mut().zip(&busy) {
                let (up, weeks) = history.at(*hour);
                *sum = (sum.0 + up, sum.1 + weeks);
            }
        }
        // Nothing is always so: as if each had been seen once more up, and once more not.
        let rate = |(up, of): (u32, u32)| f64::from(up + 1) / f64::from(of + 2);
        let mut rates: BTreeMap<Class, Vec<f64>> =
            seen.into_iter().map(|(class, sums)| (class, sums.into_iter().map(rate).collect())).collect();
        rates.insert(Class::New, vec![1.0; busy.len()]);
        let measured = |hour: usize| histories.values().filter(|history| history.at(hour).1 > 0).count() as f64;
        let usual = totals.iter().enumerate().map(|(hour, total)| share(*total) * measured(hour)).collect();
        Self { classes, busy, rates, usual }
    }

    /// What a stash behaves like.
    #[must_use]
    pub fn class(&self, node: NodeId) -> Class {
        self.classes.get(&node).copied().unwrap_or_default()
    }

    /// Hours of the week at which machines are installed, as far as that was measured.
    #[must_use]
    pub fn busy_hours(&self) -> usize {
        self.busy.len()
    }

    /// How likely a stash of a class is up in each busy hour; one value if nothing was measured.
    fn rates(&self, class: Class) -> Vec<f64> {
        let hours = self.busy.len().max(1);
        self.rates.get(&class).filter(|rates| !rates.is_empty()).cloned().unwrap_or_else(|| vec![1.0; hours])
    }

    /// How likely at least `k` of these are up, on average over the busy hours.
    #[must_use]
    pub fn readable(&self, members: impl Iterator<Item = Class>, k: usize) -> f64 {
        let rates: Vec<Vec<f64>> = members.map(|class| self.rates(class)).collect();
        mean(self.busy.len(), |hour| at_least(k, rates.iter().map(|of_hour| of_hour[hour])))
    }

    /// The same for a group of `n` of which `steady` are drawn at random from the steady ones among `fleet` (how many there are of each
    /// class), and the others from all.
    #[must_use]
    pub fn readable_of(&self, fleet: &BTreeMap<Class, usize>, n: usize, steady: usize, k: usize) -> f64 {
        let drawn = |from: &dyn Fn(Class) -> bool| {
            let drawn = fleet.iter().filter(|(class, _)| from(**class));
            let of: Vec<(Vec<f64>, f64)> = drawn.map(|(class, count)| (self.rates(*class), *count as f64)).collect();
            let all: f64 = of.iter().map(|(_, count)| count).sum();
            move |hour: usize| of.iter().map(|(rates, count)| rates[hour] * count).sum::<f64>() / all.max(1.0)
        };
        let (from_steady, from_all) = (drawn(&|class| class.is_steady()), drawn(&|_| true));
        mean(self.busy.len(), |hour| {
            let (first, others) = (from_steady(hour), from_all(hour));
            at_least(k, (0..n).map(|i| if i < steady { first } else { others }))
        })
    }
}

/// At most so many hours are looked at.
const SAMPLED_HOURS: usize = 24;

fn mean(hours: usize, of: impl Fn(usize) -> f64) -> f64 {
    let hours = hours.max(1);
    let sampled: Vec<f64> = (0..hours).step_by(hours.div_ceil(SAMPLED_HOURS)).map(of).collect();
    sampled.iter().sum::<f64>() / sampled.len() as f64
}

/// How likely at least `k` of independent events happen.
fn at_least(k: usize, events: impl Iterator<Item = f64>) -> f64 {
    // Probability of each number of events, with all of k and more in the last place.
    let mut counts = vec![0.0; k + 1];
    counts[0] = 1.0;
    for p in events {
        for have in (0..=k).rev() {
            let stays = if have == k { counts[have] } else { counts[have] * (1.0 - p) };
            counts[have] = stays + if have > 0 { counts[have - 1] * p } else { 0.0 };
        }
    }
    counts[k]
}

/// The hour that runs.
#[derive(Debug, Default)]
pub struct Counter {
    /// Hours since 1970.
    hour: u64,
    minutes: u32,
    up: BTreeMap<NodeId, u32>,
    /// For hours of the week, how many weeks in a row were not counted.
    skipped: BTreeMap<usize, u8>,
}

impl Counter {
    /// A minute passed. When with it an hour is over that counts: which hour of the week, and who was up for most of it.
    pub fn minute(
        &mut self,
        now_unix_s: u64,
        up: &BTreeSet<NodeId>,
        habits: &Attendance,
    ) -> Option<(usize, BTreeSet<NodeId>)> {
        let hour = now_unix_s / 3600;
        let over = (hour != self.hour).then(|| self.end_hour(habits)).flatten();
        self.hour = hour;
        self.minutes += 1;
        for node in up {
            *self.up.entry(*node).or_default() += 1;
        }
        over
    }

    fn end_hour(&mut self, habits: &Attendance) -> Option<(usize, BTreeSet<NodeId>)> {
        let (minutes, seen) = (std::mem::take(&mut self.minutes), std::mem::take(&mut self.up));
        let of_week = (self.hour % HOURS as u64) as usize;
        let up: BTreeSet<NodeId> = seen.into_iter().filter(|(_, n)| *n * 2 >= minutes).map(|(node, _)| node).collect();
        if minutes < MINUTES_MIN || up.is_empty() {
            return None;
        }
        let skipped = self.skipped.entry(of_week).or_default();
        let usual = habits.usual.get(of_week).copied().unwrap_or(0.0);
        if up.len() as f64 >= usual / 2.0 {
            *skipped = 0;
        } else if *skipped < SKIPPED_MAX {
            *skipped += 1;
            return None;
        }
        Some((of_week, up))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(i: u8) -> NodeId {
        NodeId([i; 16])
    }

    /// Weeks of ten stashes: 0 and 1 always on, 2 to 6 in office hours, 7 and 8 every other of them, 9 never. `day_off` says of a day since
    /// the start whether it is a holiday.
    fn weeks(count: u64, day_off: impl Fn(u64) -> bool) -> BTreeMap<NodeId, History> {
        let mut histories: BTreeMap<NodeId, History> = (0..10).map(|i| (id(i), History::default())).collect();
        let mut counter = Counter::default();
        for minute in 0..count * 7 * 24 * 60 + 1 {
            let (day, hour) = (minute / 60 / 24, minute / 60 % 24);
            let is_office = day % 7 < 5 && (8..18).contains(&hour) && !day_off(day);
            let is_up = |i: u8| match i {
                0 | 1 => true,
                2..=6 => is_office,
                7 | 8 => is_office && (u64::from(i) + day + hour).is_multiple_of(2),
                _ => false,
            };
            let up = (0..10).filter(|i| is_up(*i)).map(id).collect();
            let habits = if minute % 60 == 0 { Attendance::of(&histories) } else { Attendance::default() };
            if let Some((hour, up)) = counter.minute(minute * 60, &up, &habits) {
                for (node, history) in &mut histories {
                    history.note(hour, up.contains(node));
                }
            }
        }
        histories
    }

    fn classes(histories: &BTreeMap<NodeId, History>) -> Vec<Class> {
        let habits = Attendance::of(histories);
        (0..10).map(|i| habits.class(id(i))).collect()
    }

    #[test]
    fn stashes_are_told_apart_by_what_they_did() {
        use Class::{Always, Laptop, New, Office, Rare};
        let want = [Always, Always, Office, Office, Office, Office, Office, Laptop, Laptop, Rare];
        assert_eq!(classes(&BTreeMap::from([(id(0), History::default())])), [New; 10], "nothing was measured");
        let histories = weeks(2, |_| false);
        assert_eq!(classes(&histories), want);
        assert_eq!(Attendance::of(&histories).busy_hours(), 50);
        // Two weeks of holidays change nobody's habits; months do.
        assert_eq!(classes(&weeks(6, |day| (21..35).contains(&day))), want);
        assert_eq!(classes(&weeks(14, |day| day >= 21))[2], Rare);
    }

    #[test]
    fn what_is_likely_is_computed_exactly() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        close(at_least(0, [0.5].into_iter()), 1.0);
        close(at_least(2, [0.5, 0.5, 0.5].into_iter()), 0.5);
        close(at_least(3, [0.9, 0.8, 0.7].into_iter()), 0.504);
        close(at_least(1, [0.9, 0.8].into_iter()), 0.98);
        close(at_least(3, [1.0, 1.0].into_iter()), 0.0);
        let habits = Attendance::of(&weeks(8, |_| false));
        let all = |class: Class, n: usize, k| habits.readable(std::iter::repeat_n(class, n), k);
        assert!(all(Class::Office, 6, 4) > 0.999, "{}", all(Class::Office, 6, 4));
        assert!((0.3..0.8).contains(&all(Class::Laptop, 4, 2)), "{}", all(Class::Laptop, 4, 2));
        assert!(all(Class::Rare, 4, 1) < 0.5);
        close(all(Class::New, 3, 3), 1.0);
        // More steady ones make it better.
        let fleet = BTreeMap::from([(Class::Always, 2), (Class::Office, 5), (Class::Laptop, 2), (Class::Rare, 1)]);
        let of = |steady| habits.readable_of(&fleet, 6, steady, 4);
        assert!(of(4) > of(0) && of(6) > of(4) && of(6) > 0.99, "{} {} {}", of(0), of(4), of(6));
    }
}
