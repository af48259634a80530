//! Proof: the disk is read back and compared, span by span, with what the array signed.
//!
//! A span is read back as soon as nothing will be written to it any more, durable and dropped from memory first, while others are
//! still fetched. What remains is read at the end, with a block of each early span: a disk that claims more room than it has
//! overwrites its beginning with its end, and only a later look shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, bail};
use images::disk::{Move, Patch, ReadAt as _};
use images::limits::{BLOCK_LEN, SPAN_LEN};
use images::manifest::Run;
use images::span::{ContentHasher, Span, span_of};
use protocol::io::stage::Stage;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};

use super::install::Progress;
use super::source::Source;
use super::target::Target;
use crate::first_blocks::{FIRST_LEN, FirstBlocks, Overlay};
use crate::settled::{Settled, Spans};

/// Bytes between flushes: the disk works while segments are fetched, and the last flush is short.
const FLUSH_EVERY: u64 = 64 * 1024 * 1024;
/// Blocks that are looked at a second time: enough to notice a disk that overwrote one in a hundred, in seconds on a slow one.
const SAMPLES_MAX: u64 = 512;

/// What is known of the disk's contents.
pub(super) struct Proof {
    target: Arc<Target>,
    progress: Arc<Progress>,
    /// Reading back and hashing.
    pub(super) stage: Stage,
    spans: Mutex<Spans>,
    /// What was read of each span; `None` if it was all zero.
    read: Mutex<BTreeMap<u64, Option<Span>>>,
    /// Blocks of spans that were read early, for a second look.
    samples: Mutex<Vec<(u64, Vec<u8>)>>,
    sample_every: u64,
    written: AtomicU64,
    all_written: AtomicBool,
    wake: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proof {
    /// Nothing known; a pass over the manifest learns what will be written where.
    pub(super) async fn new(source: &Source, target: Arc<Target>, progress: Arc<Progress>) -> anyhow::Result<Self> {
        let disk_len = source.root.disk_len;
        let mut spans = Spans::new(disk_len);
        for index in 0..source.root.segment_pages.len() {
            for segment in source.segments(index).await? {
                segment.entry.runs.iter().for_each(|run| spans.expect(run));
            }
        }
        Ok(Self {
            target,
            progress,
            stage: Stage::default(),
            spans: Mutex::new(spans),
            read: Mutex::default(),
            samples: Mutex::default(),
            sample_every: disk_len.div_ceil(SPAN_LEN).div_ceil(SAMPLES_MAX).max(1),
            written: AtomicU64::new(0),
            all_written: AtomicBool::new(false),
            wake: Notify::new(),
        })
    }

    /// What an interrupted installation left: spans that are right are proven, and what is neither right nor empty is made empty.
    /// The answer is the proven ones.
    pub(super) async fn resume(self: &Arc<Self>, source: &Source) -> anyhow::Result<BTreeSet<u64>> {
        let mut proven = BTreeSet::new();
        let (count, pages) = (source.root.disk_len.div_ceil(SPAN_LEN), source.root.span_pages.len());
        let mut at = 0;
        for index in 0..pages.max(1) {
            let spans = if index < pages { source.spans(index).await?.spans } else { Vec::new() };
            let expected: BTreeMap<u64, Span> = spans.into_iter().map(|span| (span.index, span)).collect();
            // Spans that are all zero are on no page, and must be looked at, too: a machine that was being grown and named wrote there.
            let last = expected.last_key_value().map_or(at, |(index, _)| index + 1);
            let end = if index + 1 >= pages { count } else { last };
            let is_whole = |i: &u64| *i > 0 && (*i + 1) * SPAN_LEN <= source.root.disk_len;
            let which: Vec<u64> = (at..end).filter(is_whole).collect();
            at = end;
            let proof = self.clone();
            let found = spawn_blocking(move || {
                let found = proof.target.reader()?.spans(&which, &proof.progress.compared, &proof.stage)?;
                let (right, wrong): (Vec<Span>, Vec<Span>) =
                    found.into_iter().partition(|span| expected.get(&span.index) == Some(span));
                for span in wrong {
                    proof.target.zero(span.index * SPAN_LEN..(span.index + 1) * SPAN_LEN)?;
                }
                Ok::<_, std::io::Error>(right)
            });
            let right = found.await?.context("read what an interrupted installation left")?;
            for span in right.iter().filter(|span| span.index % self.sample_every == 0) {
                let (at, mut block) = (span.index * SPAN_LEN + SPAN_LEN / 2, vec![0; BLOCK_LEN]);
                self.target.reader()?.read_exact_at(at, &mut block).context("read back the disk")?;
                lock(&self.samples).push((at, block));
            }
            proven.extend(right.iter().map(|span| span.index));
            lock(&self.read).extend(right.into_iter().map(|span| (span.index, Some(span))));
        }
        // The first span is there in part only, and the last may be; both are written once more. What else is in them is made empty.
        let (len, target) = (source.root.disk_len, self.target.clone());
        let empty = move || {
            for edge in
                [FIRST_LEN.min(len)..SPAN_LEN.min(len), (len / SPAN_LEN * SPAN_LEN).max(FIRST_LEN.min(len))..len]
            {
                if !edge.is_empty() {
                    target.zero(edge)?;
                }
            }
            Ok::<_, std::io::Error>(())
        };
        spawn_blocking(empty).await?.context("zero the disk")?;
        Ok(proven)
    }

    /// These runs were written, though perhaps not durably.
    pub(super) fn wrote(&self, runs: &[Run]) {
        let mut spans = lock(&self.spans);
        runs.iter().for_each(|run| spans.wrote(run));
        drop(spans);
        // A span that a resumed installation proved and now wrote to is read once more.
        let mut read = lock(&self.read);
        for run in runs.iter().filter(|run| run.len > 0) {
            let end = run.disk_offset + u64::from(run.len) - 1;
            (run.disk_offset / SPAN_LEN..=end / SPAN_LEN).for_each(|span| {
                read.remove(&span);
            });
        }
        drop(read);
        self.written.fetch_add(runs.iter().map(|run| u64::from(run.len)).sum(), Relaxed);
        self.wake.notify_one();
    }

    /// Nothing more is written.
    pub(super) fn end(&self) {
        self.all_written.store(true, Relaxed);
        self.wake.notify_one();
    }

    /// Flush and read back while others write, until [`Proof::end`].
    pub(super) async fn keep_up(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut reading: Option<JoinHandle<std::io::Result<()>>> = None;
        let mut flushed = 0;
        loop {
            self.wake.notified().await;
            let written = self.written.load(Relaxed);
            let is_last = self.all_written.load(Relaxed);
            if !is_last && written - flushed < FLUSH_EVERY {
                continue;
            }
            flushed = written;
            if let Some(reading) = reading.take() {
                reading.await?.context("read back the disk")?;
            }
            if is_last {
                return Ok(());
            }
            let settled = lock(&self.spans).take();
            let target = self.target.clone();
            spawn_blocking(move || target.flush()).await?.context("make the disk durable: it reports write errors")?;
            let proof = self.clone();
            reading = Some(spawn_blocking(move || proof.read_settled(&settled)));
        }
    }

    fn read_settled(&self, settled: &[Settled]) -> std::io::Result<()> {
        let which: Vec<u64> = settled.iter().map(|s| s.span).collect();
        for span in &which {
            self.target.forget(span * SPAN_LEN..(span + 1) * SPAN_LEN)?;
        }
        self.read(&which)?;
        let disk = self.target.reader()?;
        for settled in settled.iter().filter(|s| s.span % self.sample_every == 0) {
            let mut block = vec![0; BLOCK_LEN];
            disk.read_exact_at(settled.block, &mut block)?;
            lock(&self.samples).push((settled.block, block));
        }
        Ok(())
    }

    fn read(&self, which: &[u64]) -> std::io::Result<()> {
        let spans = self.target.reader()?.spans(which, &self.progress.compared, &self.stage)?;
        let mut read = lock(&self.read);
        read.extend(which.iter().map(|span| (*span, None)));
        read.extend(spans.into_iter().map(|span| (span.index, Some(span))));
        Ok(())
    }

    /// Look at early blocks once more.
    fn look_again(&self) -> anyhow::Result<()> {
        let disk = self.target.reader()?;
        for (offset, block) in lock(&self.samples).iter() {
            let mut now = vec![0; block.len()];
            disk.read_exact_at(*offset, &mut now).context("read back the disk")?;
            if now != *block {
                bail!(
                    "the disk changed what it had kept: byte {offset} was right at first, and other data later. It may claim more \
                     room than it has. Replace the disk"
                );
            }
        }
        Ok(())
    }

    /// Read what was not read yet and compare all of it; everything is durable and dropped from memory.
    pub(super) async fn finish(self: &Arc<Self>, source: &Source, first: &FirstBlocks) -> anyhow::Result<()> {
        let count = source.root.disk_len.div_ceil(SPAN_LEN);
        let mut content = ContentHasher::new(source.root.disk_len);
        let mut at = 0;
        let pages = source.root.span_pages.len();
        for index in 0..pages {
            let page = source.spans(index).await?;
            page.spans.iter().for_each(|span| content.push(span));
            let last = page.spans.last().map_or(at, |span| span.index + 1);
            let end = if index + 1 == pages { count } else { last };
            if last > count {
                bail!("the manifest names a span beyond the disk");
            }
            self.compare(source, first, at..end, &page.spans).await?;
            at = end;
        }
        self.compare(source, first, at..count, &[]).await?;
        if content.finish() != source.root.content {
            bail!("the manifest's digests contradict each other");
        }
        let proof = self.clone();
        spawn_blocking(move || proof.look_again()).await?
    }

    async fn compare(
        self: &Arc<Self>,
        source: &Source,
        first: &FirstBlocks,
        which: Range<u64>,
        expected: &[Span],
    ) -> anyhow::Result<()> {
        let len = source.root.disk_len;
        // The first span has the blocks that are held back; the last may end in the middle, where the disk goes on.
        let is_special = |i: u64| i == 0 || (i + 1) * SPAN_LEN > len;
        for index in which.clone().filter(|i| is_special(*i)) {
            let disk = self.target.reader().context("read back the disk")?;
            let overlay = Overlay { first, disk: &disk, len };
            let mut bytes = vec![0; (len - index * SPAN_LEN).min(SPAN_LEN) as usize];
            overlay.read_exact_at(index * SPAN_LEN, &mut bytes).context("read back the disk")?;
            let found = self.stage.run(bytes.len(), || span_of(index, &bytes));
            lock(&self.read).insert(index, found);
            self.progress.compared.fetch_add(bytes.len() as u64, Relaxed);
        }
        let unread: Vec<u64> = {
            let read = lock(&self.read);
            which.clone().filter(|i| !read.contains_key(i)).collect()
        };
        let proof = self.clone();
        spawn_blocking(move || proof.read(&unread)).await?.context("read back the disk")?;
        let wanted: BTreeMap<u64, Span> = expected.iter().map(|span| (span.index, *span)).collect();
        let read = lock(&self.read);
        let wrong = which.into_iter().find(|i| read.get(i).copied().flatten() != wanted.get(i).copied());
        if let Some(index) = wrong {
            let from = index * SPAN_LEN;
            bail!(
                "the disk did not keep what was written: bytes {from} to {} differ from {}. Replace the disk",
                ((index + 1) * SPAN_LEN).min(len),
                source.root.image
            );
        }
        Ok(())
    }
}

/// Compare what was written beside the image's own bytes, or last.
///
/// # Errors
/// If they differ.
pub(super) fn compare_patches(target: &Target, patches: &[Patch]) -> anyhow::Result<()> {
    let disk = target.reader()?;
    for patch in patches {
        let mut bytes = vec![0; patch.bytes.len()];
        disk.read_exact_at(patch.offset, &mut bytes).context("read back the disk")?;
        if bytes != patch.bytes {
            bail!("the disk did not keep what was written at byte {}. Replace the disk", patch.offset);
        }
    }
    Ok(())
}

/// Bytes that are moved at a time.
const MOVED_AT_ONCE: u64 = 4 << 20;

/// Move a proven range towards the disk's end, and prove that it arrived. Both may overlap, so it goes from the end.
///
/// # Errors
/// The medium's, or if the disk did not keep what was written.
pub(super) fn move_range(target: &Target, moved: Move) -> anyhow::Result<()> {
    let disk = target.reader()?;
    let mut hashes = Vec::new();
    let mut left = moved.len;
    while left > 0 {
        let len = left.min(MOVED_AT_ONCE);
        left -= len;
        let mut bytes = vec![0; len as usize];
        disk.read_exact_at(moved.from + left, &mut bytes)?;
        target.write(moved.to + left, &bytes)?;
        hashes.push((moved.to + left, len, blake3::hash(&bytes)));
    }
    target.sync()?;
    for (offset, len, hash) in hashes {
        let mut bytes = vec![0; len as usize];
        disk.read_exact_at(offset, &mut bytes).context("read back the disk")?;
        if blake3::hash(&bytes) != hash {
            bail!("the disk did not keep what was written at byte {offset}. Replace the disk");
        }
    }
    Ok(())
}
