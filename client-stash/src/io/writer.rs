//! The one owner of the store: a thread that takes what is queued, writes it, syncs once, and answers all.

use std::sync::mpsc;

use bytes::Bytes;
use images::fragment::{FragmentHeader, FragmentId};
use protocol::message::Refusal;
use protocol::message::store::Owner;
use tokio::sync::oneshot;

use super::folder::Folder;
use crate::limits::BATCH_MAX;
use crate::storage::Storage;
use crate::store::{Store, StoreError, Usage};

type Done = oneshot::Sender<Result<(), Refusal>>;

/// What the owner can be asked.
pub enum Event {
    /// Keep a fragment.
    Put(Owner, FragmentHeader, Bytes, Done),
    /// Forget fragments.
    Delete(Vec<FragmentId>, Done),
    /// How full is it?
    Usage(oneshot::Sender<Usage>),
}

/// The queue to the owner.
#[derive(Clone)]
pub struct Writer(mpsc::SyncSender<Event>);

fn refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::Full => Refusal::Full,
        StoreError::Fragment(e) => Refusal::Invalid(e.to_string()),
        StoreError::NoPartition(_) | StoreError::Reservation(_) => Refusal::Invalid(error.to_string()),
        StoreError::NotHere(id) | StoreError::Damaged(id) => Refusal::NotFound(id.to_string()),
        StoreError::Io(e) => Refusal::Failed(format!("write to the stash file: {e}")),
    }
}

impl Writer {
    /// Start the owner.
    pub fn start<S: Storage>(store: Store<S>, folder: Folder, min_free: u64) -> Self {
        let (send, receive) = mpsc::sync_channel(BATCH_MAX * 2);
        std::thread::Builder::new()
            .name("stash-writer".into())
            .spawn(move || run(store, &folder, min_free, &receive))
            .expect("a thread can be started");
        Self(send)
    }

    /// Hand over an event; it is answered through its channel. Waits while the queue is full.
    pub async fn send(&self, event: Event) {
        let queue = self.0.clone();
        // The owner outlives every sender; a send that fails means that it died, and the answer channel says so.
        let _ = tokio::task::spawn_blocking(move || queue.send(event)).await;
    }

    /// Ask how full it is.
    pub async fn usage(&self) -> Usage {
        let (answer, result) = oneshot::channel();
        self.send(Event::Usage(answer)).await;
        result.await.unwrap_or_default()
    }
}

fn run<S: Storage>(mut store: Store<S>, folder: &Folder, min_free: u64, events: &mpsc::Receiver<Event>) {
    while let Ok(first) = events.recv() {
        let mut puts = Vec::new();
        let mut rest = Vec::new();
        for event in std::iter::once(first).chain(events.try_iter().take(BATCH_MAX - 1)) {
            match event {
                Event::Put(owner, header, payload, done) => puts.push((owner, header, payload, done)),
                other => rest.push(other),
            }
        }
        put_all(&mut store, folder, min_free, puts);
        for event in rest {
            match event {
                Event::Put(..) => unreachable!("sorted above"),
                Event::Delete(fragments, done) => drop(done.send(store.delete(&fragments).map_err(refusal))),
                Event::Usage(answer) => drop(answer.send(store.usage())),
            }
        }
    }
}

fn put_all<S: Storage>(
    store: &mut Store<S>,
    folder: &Folder,
    min_free: u64,
    puts: Vec<(Owner, FragmentHeader, Bytes, Done)>,
) {
    if puts.is_empty() {
        return;
    }
    // The disk is its owner's first: below the limit nothing new is taken, even where the stash itself has room.
    if folder.free_bytes().is_ok_and(|free| free < min_free) {
        tracing::warn!(min_free, "disk nearly full, not taking fragments");
        puts.into_iter().for_each(|(.., done)| drop(done.send(Err(Refusal::Full))));
        return;
    }
    let (items, answers): (Vec<_>, Vec<_>) = puts.into_iter().map(|(o, h, p, done)| ((o, h, p), done)).unzip();
    for (result, done) in store.put(items).into_iter().zip(answers) {
        if let Err(error) = &result {
            tracing::warn!(%error, "fragment not stored");
        }
        let _ = done.send(result.map_err(refusal));
    }
}
