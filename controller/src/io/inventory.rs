//! What stashes have, against what the catalog says that they should: a stash file that was restored from a backup has what was deleted since, one
//! that somebody cut off lacks what was there. What is missing is made anew. What nobody needs is deleted, but not at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use images::NodeId;
use images::fragment::FragmentId;
use protocol::io::rpc;
use protocol::limits::LIST_MAX;
use protocol::message::{Refusal, store};

use super::controller::{Controller, catalog_refusal};

/// How often numbers must be different in a row before all is compared: what is being stored or deleted now is not heard yet.
const DOUBTS: u32 = 3;
/// A stash whose numbers stay different is compared again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// Whatever its numbers are, a stash is compared about so often, counted in minutes.
const EVERY_MINUTES: usize = 7 * 24 * 60;
/// How long a stash may take to answer.
const LISTED_WITHIN: Duration = Duration::from_secs(30);
/// Fragments in one transaction.
const CHANGE_TOGETHER: usize = 4096;

/// How many fragments a stash has, and their fold; and what it should have.
type Counts = ((u64, u64), (u64, u64));

/// What is thought of stashes' inventories.
#[derive(Default)]
pub struct Inventories {
    /// Those whose numbers are different, and how often they were in a row.
    doubts: Mutex<BTreeMap<NodeId, (Counts, u32)>>,
    /// When they were compared, with which numbers.
    compared: Mutex<BTreeMap<NodeId, (Instant, Counts)>>,
    /// Since when stashes have what nobody needs.
    orphans: Mutex<BTreeMap<NodeId, Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of comparing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Fragments that a stash should have, and has not.
    pub missing: u64,
    /// Fragments that nobody needs there.
    pub orphans: u64,
}

impl Inventories {
    /// Those that are to be compared, of these numbers that are different.
    fn doubtful(&self, different: &BTreeMap<NodeId, Counts>) -> Vec<NodeId> {
        let (mut doubts, compared) = (lock(&self.doubts), lock(&self.compared));
        doubts.retain(|node, (counts, _)| different.get(node) == Some(counts));
        let mut doubtful = Vec::new();
        for (node, counts) in different {
            let (_, times) = doubts.entry(*node).or_insert((*counts, 0));
            *times += 1;
            let is_known = compared.get(node).is_some_and(|(at, of)| of == counts && at.elapsed() < AGAIN_AFTER);
            if *times >= DOUBTS && !is_known {
                doubtful.push(*node);
            }
        }
        doubtful
    }
}

impl Controller {
    /// Compare those whose numbers are different, and, when a minute is over, some more.
    pub(super) async fn compare_inventories(&self, is_minute: bool) -> Result<(), Refusal> {
        let different = self.different_counts()?;
        let mut nodes = self.inventories.doubtful(&different);
        if is_minute {
            let up: Vec<NodeId> = self.fleet.up().into_keys().collect();
            let some = up.len().div_ceil(EVERY_MINUTES);
            let mut random = [0; 8];
            let _ = aws_lc_rs::rand::fill(&mut random);
            let from = u64::from_le_bytes(random) as usize % up.len().max(1);
            nodes.extend(up.iter().cycle().skip(from).take(some.min(up.len())));
        }
        let keep = Duration::from_secs(self.settings.keep_unfinished_s);
        for node in nodes {
            let counts = different.get(&node).copied().unwrap_or_default();
            match self.compare_inventory(node, keep).await {
                Ok(_) => drop(lock(&self.inventories.compared).insert(node, (Instant::now(), counts))),
                Err(error) => tracing::info!(%node, %error, "the inventory of a stash was not compared"),
            }
        }
        Ok(())
    }

    /// Stashes that say that they have other fragments than they should, and where nothing is on its way.
    fn different_counts(&self) -> Result<BTreeMap<NodeId, Counts>, Refusal> {
        let mut busy: BTreeSet<NodeId> = self.catalog.trash_nodes().map_err(catalog_refusal)?.0.into_iter().collect();
        for under_way in self.catalog.moves().map_err(catalog_refusal)?.into_values() {
            busy.extend([Some(under_way.from), Some(under_way.to), under_way.via].into_iter().flatten());
        }
        for (_, pending) in self.catalog.pending().map_err(catalog_refusal)? {
            busy.extend(pending.sent.into_iter().map(|(_, node)| node));
        }
        let expected = self.catalog.folds().map_err(catalog_refusal)?;
        for (id, piece) in self.catalog.damaged().map_err(catalog_refusal)? {
            let record = self.catalog.segment(&id).map_err(catalog_refusal)?;
            let group = record.map(|r| self.catalog.group(r.group)).transpose().map_err(catalog_refusal)?.flatten();
            busy.extend(group.and_then(|group| group.members.get(usize::from(piece)).copied()));
        }
        let counts = |node: NodeId| {
            let (pulse, _) = self.fleet.pulse(node)?;
            let counts = ((pulse.fragments, pulse.fold), expected.get(&node).copied().unwrap_or_default());
            (counts.0 != counts.1).then_some((node, counts))
        };
        Ok(self.fleet.up().into_keys().filter(|node| !busy.contains(node)).filter_map(counts).collect())
    }

    /// Compare all stashes that are up; what nobody needs is deleted at once.
    ///
    /// # Errors
    /// The catalog's. Stashes that do not answer are left out.
    pub async fn compare_all_inventories(&self) -> Result<Compared, Refusal> {
        let mut all = Compared::default();
        for node in self.fleet.up().into_keys() {
            match self.compare_inventory(node, Duration::ZERO).await {
                Ok(one) => (all.missing, all.orphans) = (all.missing + one.missing, all.orphans + one.orphans),
                Err(error) => tracing::info!(%node, %error, "the inventory of a stash was not compared"),
            }
        }
        Ok(all)
    }

    /// Compare one. What nobody has needed there for so long is deleted.
    async fn compare_inventory(&self, node: NodeId, keep: Duration) -> Result<Compared, Refusal> {
        self.check_in_charge()?;
        let has = self.list(node).await?;
        let expected = self.catalog.expected_at(node).map_err(catalog_refusal)?;
        let missing: Vec<FragmentId> = expected.difference(&has).copied().collect();
        let others: Vec<FragmentId> = has.difference(&expected).copied().collect();
        let mut compared = Compared { missing: missing.len() as u64, orphans: 0 };
        for some in missing.chunks(CHANGE_TOGETHER) {
            // One that came meanwhile is found there when it is to be made anew.
            let some = some.to_vec();
            let noted = self.committer.change(move |change| {
                some.iter().try_for_each(|f| change.note_damage(node, f.segment, f.piece).map(drop))
            });
            noted.await.map_err(catalog_refusal)?;
        }
        let since = match others.is_empty() {
            true => lock(&self.inventories.orphans).remove(&node).unwrap_or_else(Instant::now),
            false => *lock(&self.inventories.orphans).entry(node).or_insert_with(Instant::now),
        };
        if since.elapsed() >= keep {
            for some in others.chunks(CHANGE_TOGETHER) {
                let (some, (count, counted)) = (some.to_vec(), std::sync::mpsc::channel());
                let noted = self.committer.change(move |change| {
                    // Whoever waits for it may be gone.
                    let _ = count.send(change.note_orphans(node, &some)?);
                    Ok(())
                });
                noted.await.map_err(catalog_refusal)?;
                compared.orphans += counted.try_iter().last().unwrap_or(0);
            }
        }
        if compared != Compared::default() {
            let Compared { missing, orphans } = compared;
            tracing::warn!(%node, missing, orphans, "a stash has not what it should have");
            self.repairs.wake.notify_one();
        }
        Ok(compared)
    }

    /// All that a stash has.
    async fn list(&self, node: NodeId) -> Result<BTreeSet<FragmentId>, Refusal> {
        let unavailable = |e: String| Refusal::Unavailable(e);
        let connection = self.pool.get(node).await.map_err(|e| unavailable(e.to_string()))?;
        let mut has = BTreeSet::new();
        loop {
            let after = has.last().copied();
            let ask = store::ListFragments { after, most: LIST_MAX as u32 };
            let listed = tokio::time::timeout(LISTED_WITHIN, rpc::call(&connection, ask, &[])).await;
            let listed = listed.map_err(|_| unavailable("it does not answer".into()))?;
            let (listed, _) = listed.map_err(|e| unavailable(e.to_string()))?;
            let (count, before) = (listed.fragments.len(), has.len());
            has.extend(listed.fragments.into_iter().filter(|f| after.is_none_or(|after| *f > after)));
            if count < LIST_MAX || has.len() == before {
                return Ok(has);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_must_be_different_for_a_while_and_are_not_looked_at_for_ever() {
        let (all, node) = (Inventories::default(), NodeId([1; 16]));
        let different = |counts| BTreeMap::from([(node, counts)]);
        for _ in 1..DOUBTS {
            assert!(all.doubtful(&different(((5, 0), (6, 0)))).is_empty());
        }
        assert_eq!(all.doubtful(&different(((5, 0), (6, 0)))), [node]);
        assert!(all.doubtful(&different(((4, 0), (6, 0)))).is_empty(), "it changes");
        assert!(all.doubtful(&BTreeMap::new()).is_empty());
        for _ in 0..DOUBTS {
            all.doubtful(&different(((4, 0), (6, 0))));
        }
        lock(&all.compared).insert(node, (Instant::now(), ((4, 0), (6, 0))));
        assert!(all.doubtful(&different(((4, 0), (6, 0)))).is_empty(), "that is known");
        for _ in 0..DOUBTS {
            all.doubtful(&different(((3, 0), (6, 0))));
        }
        assert_eq!(all.doubtful(&different(((3, 0), (6, 0)))), [node], "that is new");
    }
}
