//! What did not work is tried again later and later: too few pieces are there, and asking for them every few seconds brings none back. When
//! other members are up than were then, it is tried at once.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use images::NodeId;

use super::EVERY;

/// It is never longer than this until it is tried again.
const LAST: Duration = Duration::from_secs(600);

/// The last time that it did not work.
#[derive(Clone, Debug)]
pub(super) struct Retry {
    failures: u32,
    at: Instant,
    up: Vec<NodeId>,
}

impl Retry {
    /// It did not work again, with these members up.
    pub(super) fn after(before: Option<&Self>, up: Vec<NodeId>) -> Self {
        Self { failures: before.map_or(1, |retry| retry.failures.saturating_add(1)), at: Instant::now(), up }
    }

    pub(super) fn is_due(&self, up: &[NodeId]) -> bool {
        self.up != up || self.at.elapsed() >= wait(self.failures)
    }
}

fn wait(failures: u32) -> Duration {
    (EVERY * 2u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LAST)
}

/// Several things that did not work.
#[derive(Debug)]
pub(in crate::io) struct Retries<K>(Mutex<BTreeMap<K, Retry>>);

impl<K> Default for Retries<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord> Retries<K> {
    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<K, Retry>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it may be tried, with these members up.
    pub(in crate::io) fn is_due(&self, key: &K, up: &[NodeId]) -> bool {
        self.with(|all| all.get(key).is_none_or(|retry| retry.is_due(up)))
    }

    /// It did not work.
    pub(in crate::io) fn failed(&self, key: K, up: Vec<NodeId>) {
        self.with(|all| {
            let retry = Retry::after(all.get(&key), up);
            all.insert(key, retry);
        });
    }

    /// Only these are still to be done.
    pub(in crate::io) fn retain(&self, is_to_do: impl Fn(&K) -> bool) {
        self.with(|all| all.retain(|key, _| is_to_do(key)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_later_and_later_unless_others_are_up() {
        let waits: Vec<u64> = [1, 2, 3, 7, 8, 9, 40, u32::MAX].map(|failures| wait(failures).as_secs()).to_vec();
        assert_eq!(waits, [5, 10, 20, 320, 600, 600, 600, 600]);
        let (here, there) = (NodeId([1; 16]), NodeId([2; 16]));
        let retries = Retries::default();
        assert!(retries.is_due(&1, &[here]));
        retries.failed(1, vec![here]);
        assert!(!retries.is_due(&1, &[here]) && retries.is_due(&1, &[there]) && retries.is_due(&2, &[here]));
        retries.retain(|_| false);
        assert!(retries.is_due(&1, &[here]));
    }
}
