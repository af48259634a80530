//! How well stashes are reached: measured by what they took to confirm pieces. Slow ones and those that just failed get new pieces only
//! when there is nobody else.

use std::collections::BTreeMap;
use std::time::Duration;

use images::NodeId;

use crate::placement::Now;

/// One is slow when it takes so many times what is usual.
const SLOW: f64 = 4.0;
/// But not when it is faster than this: below it, chance decides.
const SLOW_MIN: Duration = Duration::from_millis(500);
/// Confirmations of one that say something.
const COUNTED_MIN: u32 = 3;
/// A failure counts for so long; twice as long with each one after it.
const FAILED_FOR: Duration = Duration::from_secs(60);
/// A slow one is tried again after so long: it may be better by then.
const TRIED_AGAIN: Duration = Duration::from_secs(600);
const FAILURES_MAX: u32 = 5;

#[derive(Default)]
struct Path {
    /// Seconds for a piece, blended over about eight of them.
    took_s: f64,
    counted: u32,
    at: Now,
    failures_in_a_row: u32,
    failed_at: Option<Now>,
}

impl Path {
    /// Whether its last failure still counts.
    fn pauses(&self, now: Now) -> bool {
        let pause = FAILED_FOR * 2u32.pow(self.failures_in_a_row.saturating_sub(1));
        self.failed_at.is_some_and(|at| now.saturating_sub(at) < pause)
    }
}

/// All stashes that pieces were sent to.
#[derive(Default)]
pub struct Paths(BTreeMap<NodeId, Path>);

impl Paths {
    /// A stash confirmed a piece.
    pub fn confirmed(&mut self, node: NodeId, took: Duration, now: Now) {
        let path = self.0.entry(node).or_default();
        let sample = took.as_secs_f64();
        path.took_s = if path.counted == 0 { sample } else { (path.took_s * 7.0 + sample) / 8.0 };
        path.counted = path.counted.saturating_add(1);
        path.at = now;
        (path.failures_in_a_row, path.failed_at) = (0, None);
    }

    /// It did not, or not in time.
    pub fn failed(&mut self, node: NodeId, now: Now) {
        let path = self.0.entry(node).or_default();
        // Requests that fail together count once.
        if path.pauses(now) {
            return;
        }
        path.failures_in_a_row = (path.failures_in_a_row + 1).min(FAILURES_MAX);
        path.failed_at = Some(now);
    }

    /// It is no member any more.
    pub fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// Seconds for a piece at the one in the middle.
    fn usual_s(&self) -> f64 {
        let mut all: Vec<f64> = self.0.values().filter(|p| p.counted >= COUNTED_MIN).map(|p| p.took_s).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(0.0)
    }

    /// Those that others are better than, now.
    #[must_use]
    pub fn bad(&self, now: Now) -> std::collections::BTreeSet<NodeId> {
        let slow_s = (self.usual_s() * SLOW).max(SLOW_MIN.as_secs_f64());
        let is_bad = |path: &Path| {
            let is_fresh = now.saturating_sub(path.at) < TRIED_AGAIN;
            path.pauses(now) || path.counted >= COUNTED_MIN && path.took_s > slow_s && is_fresh
        };
        self.0.iter().filter(|(_, path)| is_bad(path)).map(|(node, _)| *node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_and_the_failing_come_last_for_a_while() {
        let (node, ms, s) = (|i: u8| NodeId([i; 16]), Duration::from_millis, Duration::from_secs);
        let mut paths = Paths::default();
        for i in 0..5 {
            (0..4).for_each(|_| paths.confirmed(node(i), ms(if i == 4 { 3000 } else { 50 }), s(1)));
        }
        paths.confirmed(node(5), s(9), s(1));
        assert_eq!(paths.bad(s(1)), [node(4)].into(), "one answer says nothing");
        (0..5).for_each(|_| paths.failed(node(0), s(10)));
        assert_eq!(paths.bad(s(11)), [node(0), node(4)].into());
        assert_eq!(paths.bad(s(71)), [node(4)].into());
        paths.failed(node(0), s(80));
        assert!(paths.bad(s(80 + 100)).contains(&node(0)), "the second failure counts for longer");
        paths.confirmed(node(0), ms(50), s(190));
        assert_eq!(paths.bad(s(190)), [node(4)].into());
        assert!(paths.bad(s(700)).is_empty(), "it is tried again");
        // Where all are slow, nobody is.
        let mut slow = Paths::default();
        for i in 0..5 {
            (0..4).for_each(|_| slow.confirmed(node(i), s(3 + u64::from(i)), s(1)));
        }
        assert!(slow.bad(s(1)).is_empty());
        paths.forget(node(4));
        assert!(paths.bad(s(190)).is_empty());
    }
}
