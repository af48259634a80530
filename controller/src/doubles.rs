//! Two services that speak as one stash: somebody copied its folder. Each has a connection of its own, and their words take turns. One service
//! that reconnects never speaks on a connection of before again.

use std::collections::BTreeMap;
use std::time::Duration;

use images::NodeId;

/// Time since any fixed start.
pub type Now = Duration;

/// So often a connection of before must have spoken again. A late word is no second service.
const TURNS: u32 = 3;

#[derive(Clone, Copy, Debug)]
struct Voice {
    connection: usize,
    at: Now,
}

#[derive(Clone, Copy, Debug)]
struct Voices {
    last: Voice,
    before: Option<Voice>,
    turns: u32,
}

/// Who speaks as whom.
#[derive(Default)]
pub struct Doubles(BTreeMap<NodeId, Voices>);

impl Doubles {
    /// A stash was heard on a connection. Says whether it is known only now that there are two. Words that come apart by more than `patience` are not
    /// of two that run at the same time.
    pub fn heard(&mut self, node: NodeId, connection: usize, now: Now, patience: Duration) -> bool {
        let voice = Voice { connection, at: now };
        let voices = self.0.entry(node).or_insert(Voices { last: voice, before: None, turns: 0 });
        if voices.last.connection == connection {
            voices.last = voice;
            return false;
        }
        let takes_turns = voices.before.is_some_and(|b| b.connection == connection && b.at + patience >= now);
        voices.turns = if takes_turns { voices.turns.saturating_add(1) } else { 0 };
        (voices.before, voices.last) = (Some(voices.last), voice);
        voices.turns == TURNS
    }

    /// Whether two speak as it, and both did of late.
    #[must_use]
    pub fn is_double(&self, node: NodeId, now: Now, patience: Duration) -> bool {
        let both = |v: &Voices| v.turns >= TURNS && v.before.is_some_and(|before| before.at + 2 * patience >= now);
        self.0.get(&node).is_some_and(both)
    }

    /// It is no member any more.
    pub fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([1; 16]);
    const PATIENCE: Duration = Duration::from_secs(16);

    fn said(connections: &[usize]) -> (Doubles, Vec<bool>) {
        let mut doubles = Doubles::default();
        let at = |i: usize| Duration::from_secs(3 * i as u64);
        let new = connections.iter().enumerate().map(|(i, c)| doubles.heard(NODE, *c, at(i), PATIENCE)).collect();
        (doubles, new)
    }

    #[test]
    fn two_that_take_turns_are_told_from_one_that_comes_back() {
        let (doubles, new) = said(&[1, 2, 1, 2, 1, 2]);
        assert_eq!(new, [false, false, false, false, true, false]);
        let now = Duration::from_secs(15);
        assert!(doubles.is_double(NODE, now, PATIENCE));
        assert!(!doubles.is_double(NODE, now + 3 * PATIENCE, PATIENCE), "one of them has gone");
        for one in [&[1, 1, 2, 2, 3, 4, 5, 6, 7][..], &[1, 2, 1, 1, 1, 1, 1, 1, 1, 1], &[1, 2, 3, 1, 2, 3]] {
            let (doubles, new) = said(one);
            assert!(!new.contains(&true) && !doubles.is_double(NODE, Duration::from_secs(30), PATIENCE), "{one:?}");
        }
    }
}
