//! The one owner of the store: a thread that takes what is queued, writes it, syncs once, and answers all. In between it makes the
//! file smaller, a region at a time.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use images::fragment::{FragmentHeader, FragmentId};
use protocol::message::Refusal;
use protocol::message::store::{OWNER_IMAGES, Owner};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::folder::Folder;
use super::watch::Manners;
use crate::limits::{BATCH_MAX, REGION_LEN};
use crate::storage::Storage;
use crate::store::{Shrinking, Store, StoreError, Usage};

/// How often it is looked whether there is something to do when nobody asks.
const IDLE: Duration = Duration::from_secs(1);

type Done = oneshot::Sender<Result<(), Refusal>>;

/// What the owner can be asked.
pub enum Event {
    /// Keep a fragment.
    Put(Owner, FragmentHeader, Bytes, Done),
    /// Forget fragments.
    Delete(Vec<FragmentId>, Done),
    /// The array has heard that these are damaged.
    Bury(Vec<FragmentId>),
    /// Have so many regions. The answer comes when it has begun.
    Resize(u32, oneshot::Sender<Result<(), String>>),
    /// How is it?
    Report(oneshot::Sender<Report>),
}

/// How the store is.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How full.
    pub usage: Usage,
    /// Whether the file is being made smaller.
    pub resizing: Option<Resizing>,
    /// Regions that it has, or is being made to have.
    pub regions: u32,
    /// Regions that what is here needs.
    pub least_regions: u32,
    /// Bytes that what it holds needs, when all that is dead has given way.
    pub needed: u64,
    /// What failed last.
    pub last_error: Option<Problem>,
}

/// Making the file smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resizing {
    /// Bytes that it will have.
    pub to: u64,
    /// Regions that are still to be emptied.
    pub left: u32,
}

/// Something that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Seconds since 1970.
    pub at_unix_s: u64,
    /// What.
    pub what: String,
}

impl Problem {
    fn now(what: String) -> Self {
        let at_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self { at_unix_s, what }
    }
}

/// How it begins to say that the file could not be made smaller; when it could later, that is over.
const NOT_SMALLER: &str = "not made smaller";

/// The queue to the owner.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::SyncSender<Event>,
    /// What it said last, for when its disk keeps it.
    last: Arc<Mutex<Report>>,
    /// A question that it has not answered in time.
    unanswered: Arc<tokio::sync::Mutex<Option<(Instant, oneshot::Receiver<Report>)>>>,
}

/// How long whoever asks how it is waits for a disk that does not answer.
const REPORTED_WITHIN: Duration = Duration::from_secs(2);

fn refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::Full => Refusal::Full,
        StoreError::Fragment(e) => Refusal::Invalid(e.to_string()),
        StoreError::NoPartition(_) | StoreError::Reservation(_) => Refusal::Invalid(error.to_string()),
        StoreError::NotHere(id) | StoreError::Damaged(id) => Refusal::NotFound(id.to_string()),
        StoreError::Io(e) => Refusal::Failed(format!("write to the stash file: {e}")),
    }
}

fn chain(error: StoreError) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

impl Writer {
    /// Start the owner.
    pub fn start<S: Storage>(store: Store<S>, folder: Folder, min_free: u64, manners: Arc<Manners>) -> Self {
        let (send, receive) = mpsc::sync_channel(BATCH_MAX * 2);
        let mut keeper = Keeper { store, folder, min_free, manners, resizing: None, last_error: None };
        std::thread::Builder::new()
            .name("stash-writer".into())
            .spawn(move || keeper.run(&receive))
            .expect("a thread can be started");
        Self { queue: send, last: Arc::default(), unanswered: Arc::default() }
    }

    /// Hand over an event; it is answered through its channel. Waits while the queue is full.
    pub async fn send(&self, event: Event) {
        let queue = self.queue.clone();
        // The owner outlives every sender; a send that fails means that it died, and the answer channel says so.
        let _ = tokio::task::spawn_blocking(move || queue.send(event)).await;
    }

    /// Ask how it is; or was, if its disk does not answer.
    pub async fn report(&self) -> Report {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unanswered = self.unanswered.lock().await;
        match unanswered.as_mut().map(|(_, old)| old.try_recv()) {
            Some(Err(TryRecvError::Empty)) => return last().clone(),
            Some(Ok(late)) => *last() = late,
            Some(Err(TryRecvError::Closed)) | None => {}
        }
        let (answer, mut result) = oneshot::channel();
        let writer = self.clone();
        tokio::spawn(async move { writer.send(Event::Report(answer)).await });
        match tokio::time::timeout(REPORTED_WITHIN, &mut result).await {
            Ok(report) => {
                *unanswered = None;
                last().clone_from(&report.unwrap_or_default());
            }
            Err(_) => *unanswered = Some((Instant::now(), result)),
        }
        last().clone()
    }

    /// For how long its disk has kept it.
    pub async fn stuck_for(&self) -> Duration {
        drop(self.report().await);
        self.unanswered.lock().await.as_ref().map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }

    /// Ask for another size.
    ///
    /// # Errors
    /// Why it cannot be.
    pub async fn resize(&self, regions: u32) -> Result<(), String> {
        let (answer, result) = oneshot::channel();
        self.send(Event::Resize(regions, answer)).await;
        result.await.unwrap_or_else(|_| Err("the stash is stopping".into()))
    }
}

struct Keeper<S> {
    store: Store<S>,
    folder: Folder,
    min_free: u64,
    manners: Arc<Manners>,
    resizing: Option<Resizing>,
    last_error: Option<Problem>,
}

impl<S: Storage> Keeper<S> {
    fn run(&mut self, events: &mpsc::Receiver<Event>) {
        loop {
            let wait = if self.store.is_shrinking() { Duration::ZERO } else { IDLE };
            match events.recv_timeout(wait) {
                Ok(first) => self.batch(first, events),
                Err(RecvTimeoutError::Timeout) if !self.store.is_shrinking() => self.give_back_borrowed(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let damaged = self.store.examine();
            if damaged > 0 {
                tracing::error!(damaged, "fragments were lost when the disk failed to write");
            }
            self.shrink_some();
        }
    }

    fn batch(&mut self, first: Event, events: &mpsc::Receiver<Event>) {
        let mut puts = Vec::new();
        let mut rest = Vec::new();
        for event in std::iter::once(first).chain(events.try_iter().take(BATCH_MAX - 1)) {
            match event {
                Event::Put(owner, header, payload, done) => puts.push((owner, header, payload, done)),
                other => rest.push(other),
            }
        }
        self.put_all(puts);
        for event in rest {
            match event {
                Event::Put(..) => unreachable!("sorted above"),
                Event::Delete(fragments, done) => {
                    let deleted = self.store.delete(&fragments).map_err(|e| self.note(e)).map_err(refusal);
                    let _ = done.send(deleted);
                }
                Event::Bury(fragments) => {
                    if let Err(error) = self.store.bury(&fragments) {
                        self.note(error);
                    }
                }
                Event::Resize(regions, answer) => drop(answer.send(self.resize(regions))),
                Event::Report(answer) => {
                    let report = Report {
                        usage: self.store.usage(),
                        resizing: self.resizing,
                        regions: self.store.region_count(),
                        least_regions: self.store.least_regions(),
                        needed: self.store.needed(),
                        last_error: self.last_error.clone(),
                    };
                    let _ = answer.send(report);
                }
            }
        }
    }

    fn put_all(&mut self, puts: Vec<(Owner, FragmentHeader, Bytes, Done)>) {
        if puts.is_empty() {
            return;
        }
        // The disk is its owner's first: below the limit nothing new is taken, even where the stash itself has room.
        if self.folder.free_bytes().is_ok_and(|free| free < self.min_free) {
            tracing::warn!(min_free = self.min_free, "disk nearly full, not taking fragments");
            puts.into_iter().for_each(|(.., done)| drop(done.send(Err(Refusal::Full))));
            return;
        }
        let (items, answers): (Vec<_>, Vec<_>) = puts.into_iter().map(|(o, h, p, done)| ((o, h, p), done)).unzip();
        for (result, done) in self.store.put(items).into_iter().zip(answers) {
            let _ = done.send(result.map_err(|e| self.note(e)).map_err(refusal));
        }
    }

    /// Remember what a failing medium said, for whoever asks.
    fn note(&mut self, error: StoreError) -> StoreError {
        tracing::warn!(%error, "not stored, or not deleted");
        if let StoreError::Io(e) = &error {
            self.last_error = Some(Problem::now(e.to_string()));
            self.manners.note_failure();
        }
        error
    }

    fn resize(&mut self, regions: u32) -> Result<(), String> {
        // A smaller file that is on its way is as large as before until it is there.
        self.store.stop_shrinking();
        self.resizing = None;
        let now = self.store.region_count();
        if regions > now {
            let more = u64::from(regions - now) * REGION_LEN;
            let free = self.folder.free_bytes().map_err(|e| e.to_string())?;
            if free < more.saturating_add(self.min_free) {
                return Err(format!(
                    "the disk has {} MiB free, of which {} MiB are to stay free: {} MiB more do not fit",
                    free >> 20,
                    self.min_free >> 20,
                    more >> 20
                ));
            }
            self.store.grow(regions, OWNER_IMAGES).map_err(chain)?;
            tracing::info!(regions, "the stash is larger");
        } else if regions < now {
            self.store.begin_shrink(regions, OWNER_IMAGES).map_err(|e| match e {
                StoreError::Full => format!(
                    "what it keeps for the array needs {} MiB; it cannot be smaller than that now",
                    (u64::from(self.store.least_regions()) * REGION_LEN) >> 20
                ),
                other => chain(other),
            })?;
            self.resizing = Some(Resizing { to: u64::from(regions) * REGION_LEN, left: now - regions });
        }
        Ok(())
    }

    fn shrink_some(&mut self) {
        if !self.store.is_shrinking() {
            return;
        }
        match self.store.shrink_some(OWNER_IMAGES) {
            Ok(Shrinking::Left(left)) => {
                if let Some(resizing) = &mut self.resizing {
                    resizing.left = left;
                }
            }
            Ok(Shrinking::Done) => {
                self.resizing = None;
                self.last_error.take_if(|problem| problem.what.starts_with(NOT_SMALLER));
                tracing::info!(regions = self.store.region_count(), "the stash is smaller");
            }
            Err(error) => {
                self.store.stop_shrinking();
                self.resizing = None;
                let why = chain(error);
                tracing::warn!(why, "the stash cannot be made smaller");
                self.last_error = Some(Problem::now(format!("{NOT_SMALLER}: {why}")));
            }
        }
    }

    /// After a power cut the file may have had to take another region, to give others back; and one that is longer than its size need not
    /// stay so.
    fn give_back_borrowed(&mut self) {
        let begun = self.store.has_borrowed() && self.store.begin_shrink(self.store.entitled(), OWNER_IMAGES).is_ok();
        if !begun && let Err(error) = self.store.retract() {
            self.note(error);
        }
    }
}
