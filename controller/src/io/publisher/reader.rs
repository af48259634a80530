//! The reading thread: data ranges, zeros left out, chunks and their hashes, span digests.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use images::ChunkId;
use images::chunk::Chunker;
use images::disk::ReadAt as _;
use images::extent;
use images::span::{Span, SpanHasher};
use protocol::io::disk::DiskFile;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Progress, Stages};

/// Read at once: large enough for a disk to stream, small enough to stay in the processor's cache on its way to the hash.
const READ_LEN: usize = 1024 * 1024;
/// Chunk bytes in a batch: about 250 chunks, one question to the controller.
const BATCH_LEN: usize = 8 * 1024 * 1024;
/// Batches between the reader and the resolver.
const BATCHES: usize = 3;

/// A chunk in a batch.
#[derive(Clone, Copy)]
pub(super) struct BatchChunk {
    pub(super) id: ChunkId,
    pub(super) disk_offset: u64,
    pub(super) start: u32,
    pub(super) len: u32,
}

/// Neighbouring chunks, in disk order.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) chunks: Vec<BatchChunk>,
    pub(super) data: Bytes,
}

/// Start reading. The receiver ends when the disk does, or when reading fails; the handle says which.
pub(super) fn start(
    disk: Arc<DiskFile>,
    stages: Arc<Stages>,
    progress: Arc<Progress>,
) -> (mpsc::Receiver<Batch>, JoinHandle<io::Result<Vec<Span>>>) {
    let (send, receive) = mpsc::channel(BATCHES);
    let handle = tokio::task::spawn_blocking(move || Reader { disk, stages, progress, send }.run());
    (receive, handle)
}

struct Reader {
    disk: Arc<DiskFile>,
    stages: Arc<Stages>,
    progress: Arc<Progress>,
    send: mpsc::Sender<Batch>,
}

/// A batch that is being filled: (offset on the disk, length) of each chunk.
#[derive(Default)]
struct Filling {
    places: Vec<(u64, u32)>,
    data: Vec<u8>,
}

impl Reader {
    fn run(self) -> io::Result<Vec<Span>> {
        let mut chunker = Chunker::default();
        let mut spans = SpanHasher::default();
        let mut filling = Filling::default();
        let mut buffer = vec![0; READ_LEN];
        let mut at = 0;
        while let Some(range) = self.disk.next_data(at)? {
            at = range.start;
            while at < range.end {
                // Reads end on multiples of the buffer's length, so that they stay aligned whatever the holes are.
                let end = (at / READ_LEN as u64 + 1) * READ_LEN as u64;
                let bytes = &mut buffer[..(end.min(range.end) - at) as usize];
                let extents: Vec<_> = self.stages.read.run(bytes.len(), || {
                    self.disk.read_exact_at(at, bytes).map(|()| extent::in_use(bytes).collect())
                })?;
                for extent in extents {
                    let (offset, data) = (at + extent.start as u64, &bytes[extent]);
                    self.progress.in_use.fetch_add(data.len() as u64, Relaxed);
                    self.stages.hash.run(data.len(), || spans.push(offset, data));
                    self.stages.chunk.run(data.len(), || {
                        chunker.push(offset, data, &mut |chunk| filling.push(chunk.disk_offset, chunk.bytes));
                    });
                    if filling.data.len() >= BATCH_LEN && !self.hand_over(&mut filling) {
                        return Ok(Vec::new());
                    }
                }
                at += bytes.len() as u64;
                self.progress.position.store(at, Relaxed);
            }
        }
        chunker.finish(&mut |chunk| filling.push(chunk.disk_offset, chunk.bytes));
        self.hand_over(&mut filling);
        self.progress.position.store(self.disk.len(), Relaxed);
        Ok(spans.finish())
    }

    /// Hash the chunks and send them on. False when nobody wants them any more.
    fn hand_over(&self, filling: &mut Filling) -> bool {
        if filling.places.is_empty() {
            return true;
        }
        let Filling { places, data } = std::mem::take(filling);
        let mut start = 0;
        let chunks = self.stages.hash.run(0, || {
            let hash = |(disk_offset, len): (u64, u32)| {
                let id = ChunkId::of(&data[start as usize..(start + len) as usize]);
                let chunk = BatchChunk { id, disk_offset, start, len };
                start += len;
                chunk
            };
            places.into_iter().map(hash).collect()
        });
        self.send.blocking_send(Batch { chunks, data: data.into() }).is_ok()
    }
}

impl Filling {
    fn push(&mut self, disk_offset: u64, bytes: &[u8]) {
        if self.data.capacity() == 0 {
            self.data.reserve(BATCH_LEN + READ_LEN);
        }
        self.places.push((disk_offset, bytes.len() as u32));
        self.data.extend_from_slice(bytes);
    }
}
