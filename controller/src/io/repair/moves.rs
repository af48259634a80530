//! One member of a group is replaced.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use images::fragment;
use images::manifest::SegmentEntry;
use images::parity::Codec;
use images::{NodeId, SegmentId};
use protocol::io::rpc::{self, CallError};
use protocol::limits::REBUILD_TOGETHER;
use protocol::message::Refusal;
use protocol::message::store::{self, OWNER_IMAGES, Rebuild, Rebuilt, Wanted};

use super::retry::Retry;
use super::{EVERY, GIVE_UP_AFTER, Progress, lock};
use crate::catalog::{GroupRecord, MoveRecord, Seat, SegmentRecord, TrashKey};
use crate::io::controller::{Controller, catalog_refusal};
use crate::io::rival::tell;
use crate::io::verify::{prove, random_segment};
use crate::repair::made_along;

/// How long a stash may take for [`REBUILD_TOGETHER`] segments. Deletions wait for it.
const REBUILT_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take to be reached, and to take the directory.
const REACHED_WITHIN: Duration = Duration::from_secs(10);
/// Pieces that a new holder has to prove.
const PROVEN: usize = 4;
/// Characters that are remembered of a problem.
const WHY_MAX: usize = 500;

/// Why a move does not go on.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Its new holder cannot take its pieces.
    Target(String),
    /// Its new holder has no room.
    Full,
    /// Anything else; another holder would not help.
    Other(String),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Other(refusal.to_string())
    }
}

/// A move that is carried out.
pub(super) struct Task {
    pub(super) seat: Seat,
    pub(super) record: MoveRecord,
    progress: Mutex<Progress>,
    is_running: AtomicBool,
    tried: Mutex<Option<Instant>>,
    /// Why it did not go on was not its new holder.
    retry: Mutex<Option<Retry>>,
    /// Since when its new holder cannot take its pieces.
    refused_since: Mutex<Option<Instant>>,
    is_full: AtomicBool,
    /// Once it could not show what it said that it has.
    is_doubted: AtomicBool,
}

/// It is carried out as long as this lives.
pub(super) struct Running(pub(super) Arc<Task>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.is_running.store(false, SeqCst);
    }
}

impl Task {
    pub(super) fn new(seat: Seat, record: MoveRecord) -> Self {
        Self {
            seat,
            record,
            progress: Mutex::default(),
            is_running: AtomicBool::new(false),
            tried: Mutex::default(),
            retry: Mutex::default(),
            refused_since: Mutex::default(),
            is_full: AtomicBool::new(false),
            is_doubted: AtomicBool::new(false),
        }
    }

    pub(super) fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    pub(super) fn has_problem(&self) -> bool {
        lock(&self.progress).problem.is_some()
    }

    fn fetched(&self) -> u64 {
        lock(&self.progress).fetched
    }

    pub(super) fn forget(&self, segments: impl Iterator<Item = SegmentId>) {
        let mut progress = lock(&self.progress);
        for segment in segments {
            progress.has.remove(&segment);
        }
    }

    pub(super) fn tried(&self) -> Option<Instant> {
        *lock(&self.tried)
    }

    pub(super) fn is_running(&self) -> bool {
        self.is_running.load(SeqCst)
    }

    /// Not at once again, and what is in vain less and less often as long as the same members of its group are up.
    pub(super) fn may_start(&self, up: &[NodeId]) -> bool {
        let is_due = || lock(&self.retry).as_ref().is_none_or(|retry| retry.is_due(up));
        !self.is_running() && self.tried().is_none_or(|at| at.elapsed() >= EVERY) && is_due()
    }

    pub(super) fn try_again(&self) {
        *lock(&self.retry) = None;
    }

    pub(super) fn start(self: &Arc<Self>) -> Running {
        self.is_running.store(true, SeqCst);
        Running(self.clone())
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(SeqCst)
    }

    pub(super) fn is_hopeless(&self) -> bool {
        self.is_full() || lock(&self.refused_since).is_some_and(|since| since.elapsed() >= GIVE_UP_AFTER)
    }

    pub(super) fn ended(&self, trouble: Option<&Trouble>, up: Vec<NodeId>) {
        *lock(&self.tried) = Some(Instant::now());
        let mut retry = lock(&self.retry);
        *retry = matches!(trouble, Some(Trouble::Other(_))).then(|| Retry::after(retry.as_ref(), up));
        drop(retry);
        let why = match trouble {
            None => None,
            Some(Trouble::Full) => {
                self.is_full.store(true, SeqCst);
                Some("the new holder has no room".to_string())
            }
            Some(Trouble::Target(why)) => {
                lock(&self.refused_since).get_or_insert_with(Instant::now);
                Some(why.clone())
            }
            Some(Trouble::Other(why)) => Some(why.clone()),
        };
        if !matches!(trouble, Some(Trouble::Target(_))) {
            *lock(&self.refused_since) = None;
        }
        let why = why.map(|why| why.chars().take(WHY_MAX).collect::<String>());
        if let Some(why) = &why {
            tracing::warn!(group = self.seat.0.0, piece = self.seat.1, to = %self.record.to, why, "a piece waits");
        }
        lock(&self.progress).problem = why;
    }
}

/// What a stash needs to know to make pieces of a segment.
pub(super) fn wanted(
    segment: SegmentId,
    record: &SegmentRecord,
    group: &GroupRecord,
    pieces: Vec<u8>,
    from: Option<NodeId>,
) -> Wanted {
    Wanted {
        segment,
        geometry: group.geometry,
        sealed_len: record.sealed_len,
        fragments: record.fragments.clone(),
        holders: group.members.clone(),
        pieces,
        from,
    }
}

/// What fetching a segment takes.
pub(in crate::io) fn entry_of(segment: SegmentId, record: &SegmentRecord, group: &GroupRecord) -> SegmentEntry {
    wanted(segment, record, group, Vec::new(), None).entry()
}

impl Controller {
    /// Have a new member hold its piece of all segments of its group, and make it a member.
    pub(super) async fn carry_out(&self, task: &Task) -> Result<(), Trouble> {
        let (seat, to) = (task.seat, task.record.to);
        if !self.fleet.up().contains_key(&to) {
            return Err(Trouble::Target(format!("stash {to} is away")));
        }
        let mut todo = self.catalog.segments_of(seat.0).map_err(catalog_refusal)?;
        let mut took = Duration::ZERO;
        loop {
            let has = task.progress().has;
            todo.retain(|id| !has.contains(id));
            let mut first = None;
            for some in todo.chunks(REBUILD_TOGETHER) {
                if let Some(group) = self.catalog.group(seat.0).map_err(catalog_refusal)? {
                    self.behind_installers(&group, took).await;
                }
                let (before, start) = (task.fetched(), Instant::now());
                let outcome = self.have_some(task, some).await;
                took = start.elapsed();
                self.keep_pace(task.fetched() - before).await?;
                match outcome {
                    Ok(()) => {}
                    // What cannot be had now must not keep the rest waiting.
                    Err(trouble @ Trouble::Other(_)) => drop(first.get_or_insert(trouble)),
                    Err(trouble) => return Err(trouble),
                }
            }
            if let Some(trouble) = first {
                return Err(trouble);
            }
            let (has, record) = (task.progress().has, task.record.clone());
            self.prove_some(task, &has).await?;
            let missing = Arc::new(Mutex::new(Vec::new()));
            let seen = missing.clone();
            let finished = self.committer.change(move |change| {
                *lock(&seen) = change.finish_move(seat, &record, &has)?;
                Ok(())
            });
            finished.await.map_err(catalog_refusal)?;
            todo = std::mem::take(&mut *lock(&missing));
            if todo.is_empty() {
                break;
            }
        }
        let totals = self.catalog.group_totals().map_err(catalog_refusal)?.remove(&seat.0).unwrap_or_default();
        if let Some(group) = self.catalog.group(seat.0).map_err(catalog_refusal)? {
            self.fleet.gave(task.record.from, totals.at_one(group.geometry, group.segments));
        }
        tracing::info!(group = seat.0.0, piece = seat.1, from = %task.record.from, %to, "a holder was replaced");
        Ok(())
    }

    /// A new holder shows some of what it says that it has, before the one of before may drop it.
    async fn prove_some(&self, task: &Task, has: &BTreeSet<SegmentId>) -> Result<(), Trouble> {
        // What is deleted meanwhile is no lie.
        let _alive = self.deleting.read().await;
        let (seat, to) = (task.seat, task.record.to);
        let from = random_segment();
        for id in has.range(from..).chain(has.range(..from)).take(PROVEN) {
            let Some(record) = self.catalog.segment(id).map_err(catalog_refusal)? else { continue };
            let Some(group) = self.catalog.group(record.group).map_err(catalog_refusal)? else { continue };
            let len = group.geometry.piece_len(record.sealed_len as usize) as u64;
            let Some(digest) = record.fragments.get(usize::from(seat.1)).filter(|_| record.group == seat.0) else {
                continue;
            };
            match prove(&self.pool, *id, *digest, len, seat.1, to).await {
                Ok(()) => {}
                Err(what) if what.is_loss() => {
                    tracing::error!(%to, segment = %id, piece = seat.1, %what, "a new holder says that it has what it has not");
                    // It may have rotted there: then it is made anew, and shown the next time.
                    task.forget(std::iter::once(*id));
                    if !task.is_doubted.swap(true, SeqCst) {
                        return Err(Trouble::Other("a piece that it had cannot be read any more".into()));
                    }
                    let distrust = self.committer.change(move |change| {
                        change.change_standing(to, |standing| standing.distrusted = true).map(drop)
                    });
                    distrust.await.map_err(catalog_refusal)?;
                    return Err(Trouble::Target("it cannot show what it says that it has".into()));
                }
                Err(what) => return Err(Trouble::Target(what.to_string())),
            }
        }
        Ok(())
    }

    async fn have_some(&self, task: &Task, some: &[SegmentId]) -> Result<(), Trouble> {
        let (seat, to) = (task.seat, task.record.to);
        // What is deleted meanwhile must not come back.
        let _alive = self.deleting.read().await;
        self.check_in_charge()?;
        let under_way = self.catalog.moves().map_err(catalog_refusal)?;
        if under_way.get(&seat) != Some(&task.record) {
            return Err(Trouble::Other("it was given up meanwhile".into()));
        }
        let there = self.there()?;
        let pieces = made_along(seat, &task.record, &under_way, |node| there.contains(&node));
        // What it makes for others is theirs, who copy it.
        let stays = |piece: &&u8| under_way.get(&(seat.0, **piece)).is_some_and(|made| made.to == to);
        let kept = pieces.iter().filter(stays).count() as u64;
        let group = self.catalog.group(seat.0).map_err(catalog_refusal)?;
        let group = group.ok_or_else(|| Trouble::Other("its group is gone".into()))?;
        let from = [task.record.via, Some(task.record.from)].into_iter().flatten().find(|node| there.contains(node));
        // Whoever makes others' pieces does not find them all at one member.
        let from = from.filter(|_| pieces.len() == 1);
        let mut asked = Vec::new();
        for id in some {
            let Some(record) = self.catalog.segment(id).map_err(catalog_refusal)? else { continue };
            for piece in &pieces {
                let key = TrashKey::Fragment { node: to, segment: *id, piece: *piece };
                if self.catalog.is_trash(&key).map_err(catalog_refusal)? {
                    return Err(Trouble::Other("what is still to be deleted there goes first".into()));
                }
            }
            asked.push((*id, wanted(*id, &record, &group, pieces.clone(), from), record));
        }
        let outcomes = self.rebuild_at(to, asked.iter().map(|(_, wanted, _)| wanted.clone()).collect()).await;
        let outcomes = outcomes.map_err(|refusal| match refusal {
            Refusal::Full => Trouble::Full,
            other => Trouble::Target(other.to_string()),
        })?;
        let (mut first, mut taken) = (None, 0);
        for ((id, _, record), outcome) in asked.iter().zip(outcomes) {
            let outcome = match outcome {
                Rebuilt::Short(_) if record.has_copy() => self.put_from_copy(to, *id, &group, &pieces).await,
                other => other,
            };
            match outcome {
                Rebuilt::Here { fetched } => {
                    let piece_len = group.geometry.piece_len(record.sealed_len as usize) as u64;
                    self.repairs.count(fetched, piece_len * kept);
                    taken += if fetched > 0 { piece_len * pieces.len() as u64 } else { 0 };
                    let mut progress = lock(&task.progress);
                    progress.has.insert(*id);
                    progress.fetched += fetched;
                }
                Rebuilt::Short(what) => {
                    first.get_or_insert(Trouble::Other(format!("segment {}: {what}", id.short())));
                }
                Rebuilt::Refused(Refusal::Full) => first = Some(Trouble::Full),
                Rebuilt::Refused(refusal) => {
                    first.get_or_insert(Trouble::Target(refusal.to_string()));
                }
            }
        }
        self.fleet.took(to, taken);
        first.map_or(Ok(()), Err)
    }

    /// Ask a stash to make pieces.
    ///
    /// # Errors
    /// If it does not, or not in time.
    pub(super) async fn rebuild_at(&self, node: NodeId, wanted: Vec<Wanted>) -> Result<Vec<Rebuilt>, Refusal> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let count = wanted.len();
        let failed = |e: CallError| match e {
            CallError::Refused(refusal) => refusal,
            other => Refusal::Unavailable(format!("stash {node}: {other}")),
        };
        let silent = |_| Refusal::Unavailable(format!("stash {node} does not answer"));
        let directory = self.directory().map_err(catalog_refusal)?;
        let reach = async {
            let connection = self.pool.get(node).await?;
            // It finds the others by the newest directory.
            tell(&connection, &directory).await?;
            Ok(connection)
        };
        let connection = tokio::time::timeout(REACHED_WITHIN, reach).await.map_err(silent)?.map_err(failed)?;
        let ask = Rebuild { owner: OWNER_IMAGES, wanted, within_ms: REBUILT_WITHIN.as_millis() as u32 };
        let answer = tokio::time::timeout(REBUILT_WITHIN * 3 / 2, rpc::call(&connection, ask, &[])).await;
        let (answer, _) = answer.map_err(silent)?.map_err(failed)?;
        if answer.outcomes.len() != count {
            return Err(Refusal::Failed(format!("stash {node} answered something else")));
        }
        Ok(answer.outcomes)
    }

    /// The last resort: mass storage has a whole copy, or the catalog a page.
    pub(super) async fn put_from_copy(
        &self,
        node: NodeId,
        id: SegmentId,
        group: &GroupRecord,
        pieces: &[u8],
    ) -> Rebuilt {
        let put = tokio::time::timeout(REBUILT_WITHIN, self.try_from_copy(node, id, group, pieces));
        let late = || Rebuilt::Refused(Refusal::Unavailable(format!("stash {node} does not answer")));
        put.await.unwrap_or_else(|_| late())
    }

    async fn try_from_copy(&self, node: NodeId, id: SegmentId, group: &GroupRecord, pieces: &[u8]) -> Rebuilt {
        let sealed = match self.catalog.page(&id.0) {
            Ok(Some(page)) => page.into(),
            _ => match self.mass_storage.get(&id).await {
                Ok(sealed) => sealed,
                Err(_) => return Rebuilt::Short("too few pieces, and mass storage does not have it".into()),
            },
        };
        if SegmentId::of(&sealed) != id {
            return Rebuilt::Short("too few pieces, and its copy on mass storage is damaged".into());
        }
        let geometry = group.geometry;
        let made = tokio::task::spawn_blocking(move || fragment::split(&Codec::new(geometry), id, &sealed)).await;
        let wanted: BTreeSet<u8> = pieces.iter().copied().collect();
        let mut fetched = 0;
        for (header, payload) in made.unwrap_or_default().into_iter().filter(|(h, _)| wanted.contains(&h.id.piece)) {
            fetched += payload.len() as u64;
            let put = async {
                let connection = self.pool.get(node).await?;
                rpc::call(&connection, store::PutFragment { owner: OWNER_IMAGES, header }, &[payload]).await
            };
            match put.await {
                Ok(_) => {}
                Err(CallError::Refused(refusal)) => return Rebuilt::Refused(refusal),
                Err(error) => return Rebuilt::Refused(Refusal::Unavailable(error.to_string())),
            }
        }
        Rebuilt::Here { fetched }
    }
}
