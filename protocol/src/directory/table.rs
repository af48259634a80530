//! A table whose rows know when they last changed, so that what changed since any epoch can be told without a history.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Epoch;

/// A row. One that was removed stays without its value until every delta that may be asked for is beyond it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row<V> {
    changed: Epoch,
    value: Option<V>,
}

/// Rows by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    transparent,
    bound(serialize = "K: Serialize, V: Serialize", deserialize = "K: Deserialize<'de> + Ord, V: Deserialize<'de>")
)]
pub struct Table<K, V>(BTreeMap<K, Row<V>>);

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Table<K, V> {
    /// A value.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)?.value.as_ref()
    }

    /// What is there, in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.0.iter().filter_map(|(key, row)| Some((key, row.value.as_ref()?)))
    }

    /// Rows, removed ones included.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.len()
    }

    /// The table that follows this one: `now` is all that is there at `epoch`. Removals up to `forgotten` are not listed any more.
    #[must_use]
    pub fn advance(&self, now: BTreeMap<K, V>, epoch: Epoch, forgotten: Epoch) -> Self {
        let mut next = self.0.clone();
        for (key, row) in &mut next {
            if row.value.is_some() && !now.contains_key(key) {
                *row = Row { changed: epoch, value: None };
            }
        }
        for (key, value) in now {
            let is_same = next.get(&key).is_some_and(|row| row.value.as_ref() == Some(&value));
            if !is_same {
                next.insert(key, Row { changed: epoch, value: Some(value) });
            }
        }
        let mut next = Self(next);
        next.forget(forgotten);
        next
    }

    /// Rows that changed after an epoch.
    #[must_use]
    pub fn since(&self, from: Epoch) -> Self {
        Self(self.0.iter().filter(|(_, row)| row.changed > from).map(|(key, row)| (key.clone(), row.clone())).collect())
    }

    /// The table with rows that changed taken over.
    #[must_use]
    pub fn applied(&self, changes: Self, forgotten: Epoch) -> Self {
        let mut next = self.clone();
        next.0.extend(changes.0);
        next.forget(forgotten);
        next
    }

    fn forget(&mut self, up_to: Epoch) {
        self.0.retain(|_, row| row.value.is_some() || row.changed > up_to);
    }
}
