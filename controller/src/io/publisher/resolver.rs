//! The resolver: which chunks are new, where each chunk lies, and new segments on their way.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Context as _;
use images::keys::OwnerKey;
use images::manifest::Run;
use images::segment::{self, Packer};
use images::{ChunkId, SegmentId};
use protocol::io::rpc;
use protocol::message::publish::{ChunkPlace, Have, PutSegment};
use quinn::Connection;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::reader::{Batch, BatchChunk};
use super::{Progress, Stages};

/// Questions to the controller that may be open: enough to hide a round trip.
const QUESTIONS: usize = 3;
/// Segments between sealing and durable, beyond those that cores seal: what keeps the wire, the stashes' disks and the catalog
/// busy at the same time. Four megabytes of memory each.
const ON_THE_WIRE: usize = 10;

/// A segment of the image and where its bytes go.
pub(super) struct Entry {
    pub(super) id: SegmentId,
    pub(super) runs: Vec<Run>,
}

/// Sends what is new.
pub(super) struct Sender {
    pub(super) connection: Connection,
    pub(super) session: u64,
    pub(super) owner_key: OwnerKey,
    pub(super) level: i32,
    pub(super) stages: Arc<Stages>,
    pub(super) progress: Arc<Progress>,
}

type Answer = JoinHandle<Result<Vec<Option<ChunkPlace>>, rpc::CallError>>;

/// What is known so far. A segment has a number here until its name is known, which is when it is sealed.
#[derive(Default)]
struct Draft {
    runs: Vec<Vec<Run>>,
    /// Numbers of segments that the array had.
    known: HashMap<SegmentId, usize>,
    /// Chunks of this publication's own segments: number and offset.
    own: HashMap<ChunkId, (usize, u32)>,
    names: HashMap<usize, SegmentId>,
    packer: Packer,
    packing: Option<usize>,
    packed: Vec<(ChunkId, u32)>,
}

impl Draft {
    fn number(&mut self) -> usize {
        self.runs.push(Vec::new());
        self.runs.len() - 1
    }

    fn place(&mut self, number: usize, chunk: &BatchChunk, offset: u32) {
        let run = Run { disk_offset: chunk.disk_offset, segment_offset: offset, len: chunk.len };
        let runs = &mut self.runs[number];
        if !runs.last_mut().is_some_and(|last| last.merge(&run)) {
            runs.push(run);
        }
    }
}

impl Sender {
    /// Resolve all batches. When this returns, every segment that an entry names is durable.
    pub(super) async fn run(self, mut batches: mpsc::Receiver<Batch>) -> anyhow::Result<Vec<Entry>> {
        let mut draft = Draft::default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let slots = Arc::new(Semaphore::new(cores + ON_THE_WIRE));
        let sealers = Arc::new(Semaphore::new(cores));
        let mut uploads: JoinSet<anyhow::Result<(usize, SegmentId)>> = JoinSet::new();
        let mut questions: VecDeque<(Batch, Answer)> = VecDeque::new();
        let mut open = true;
        while open || !questions.is_empty() {
            if open && questions.len() < QUESTIONS {
                match batches.recv().await {
                    Some(batch) => {
                        let answer = self.ask(&batch);
                        questions.push_back((batch, answer));
                    }
                    None => open = false,
                }
                continue;
            }
            let Some((batch, answer)) = questions.pop_front() else {
                continue;
            };
            let places = answer.await.context("ask which chunks are new")??;
            for (chunk, place) in batch.chunks.iter().zip(places) {
                if let Some(full) = self.take(&mut draft, &batch, chunk, place) {
                    self.upload(&mut uploads, &slots, &sealers, full).await;
                }
            }
            // A refusal ends the publication at once, not after the whole disk was read.
            while let Some(done) = uploads.try_join_next() {
                let (number, id) = done.context("seal a segment")??;
                draft.names.insert(number, id);
            }
        }
        if let Some(last) = seal_off(&mut draft) {
            self.upload(&mut uploads, &slots, &sealers, last).await;
        }
        while let Some(done) = uploads.join_next().await {
            let (number, id) = done.context("seal a segment")??;
            draft.names.insert(number, id);
        }
        let Draft { runs, known, mut names, .. } = draft;
        names.extend(known.into_iter().map(|(id, number)| (number, id)));
        let entry = |(number, runs): (usize, Vec<Run>)| Entry { id: names[&number], runs };
        Ok(runs.into_iter().enumerate().map(entry).collect())
    }

    fn ask(&self, batch: &Batch) -> Answer {
        let chunks = batch.chunks.iter().map(|c| c.id).collect();
        let (connection, have) = (self.connection.clone(), Have { session: self.session, chunks });
        tokio::spawn(async move { Ok(rpc::call(&connection, have, &[]).await?.0.places) })
    }

    /// Find a chunk's place, or pack it; a segment that is full comes back.
    fn take(&self, draft: &mut Draft, batch: &Batch, chunk: &BatchChunk, place: Option<ChunkPlace>) -> Option<Full> {
        self.progress.chunks.fetch_add(1, Relaxed);
        // First: the array may have learnt this publication's own segments meanwhile, and one segment is one entry.
        if let Some(&(number, offset)) = draft.own.get(&chunk.id) {
            draft.place(number, chunk, offset);
            return None;
        }
        if let Some(place) = place {
            self.progress.known_chunks.fetch_add(1, Relaxed);
            let number = draft.known.get(&place.segment).copied().unwrap_or_else(|| {
                let number = draft.number();
                draft.known.insert(place.segment, number);
                number
            });
            draft.place(number, chunk, place.offset);
            return None;
        }
        let bytes = &batch.data[chunk.start as usize..(chunk.start + chunk.len) as usize];
        let full = (!draft.packer.fits(bytes.len())).then(|| seal_off(draft)).flatten();
        let number = match draft.packing {
            Some(number) => number,
            None => *draft.packing.insert(draft.runs.len()),
        };
        if number == draft.runs.len() {
            draft.number();
        }
        let offset = self.stages.pack.run(bytes.len(), || draft.packer.push(bytes));
        draft.packed.push((chunk.id, chunk.len));
        draft.own.insert(chunk.id, (number, offset));
        draft.place(number, chunk, offset);
        self.progress.unique.fetch_add(bytes.len() as u64, Relaxed);
        full
    }

    async fn upload(
        &self,
        uploads: &mut JoinSet<anyhow::Result<(usize, SegmentId)>>,
        slots: &Arc<Semaphore>,
        sealers: &Arc<Semaphore>,
        full: Full,
    ) {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let sealers = sealers.clone();
        let (connection, session) = (self.connection.clone(), self.session);
        let (owner_key, level, stages) = (self.owner_key.clone(), self.level, self.stages.clone());
        let progress = self.progress.clone();
        uploads.spawn(async move {
            let sealing = sealers.acquire_owned().await?;
            let Full { number, plain, chunks } = full;
            let len = plain.data.len();
            let sealed = tokio::task::spawn_blocking(move || {
                let coded = stages.compress.run(len, || segment::code(plain, level));
                stages.seal.run(len, || segment::seal(coded, &owner_key))
            });
            let sealed = sealed.await.context("seal a segment")?;
            drop(sealing);
            let (id, sealed_len) = (sealed.id, sealed.bytes.len() as u64);
            let put = PutSegment { session, id, key: sealed.key, data_len: sealed.data_len, chunks };
            let (stored, _) = rpc::call(&connection, put, &[sealed.bytes.into()]).await?;
            progress.sealed.fetch_add(sealed_len, Relaxed);
            progress.segments.fetch_add(1, Relaxed);
            progress.spread.fetch_add(stored.sent, Relaxed);
            progress.replaced.fetch_add(stored.replaced.into(), Relaxed);
            drop(slot);
            Ok((number, id))
        });
    }
}

/// A segment that is ready to be sealed.
struct Full {
    number: usize,
    plain: segment::Plain,
    chunks: Vec<(ChunkId, u32)>,
}

fn seal_off(draft: &mut Draft) -> Option<Full> {
    let number = draft.packing.take()?;
    Some(Full { number, plain: draft.packer.take(), chunks: std::mem::take(&mut draft.packed) })
}
