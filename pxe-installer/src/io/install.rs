//! One installation: clear, fetch, verify, write, read back, fit, and the first blocks last.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, bail};
use images::ContentDigest;
use images::disk::{Fitting, Grow, Layout, Patch, Table, fit_gpt, read_layout};
use images::fragment::assemble;
use images::limits::SPAN_LEN;
use images::manifest::Run;
use images::parity::{Codec, Geometry};
use images::segment;
use protocol::getter::Shortfall;
use protocol::io::stage::{Stage, StageReport, process_cpu};
use protocol::message::boot::Finishing;
use protocol::message::image::Report;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::proof::{self, Proof};
use super::source::{Segment, Source};
use super::target::Target;
use crate::first_blocks::{FIRST_LEN, FirstBlocks, HEAD_LEN, Overlay, digests};
use crate::gaps::{WINDOW_LEN, Written};

/// Segments under way. Each takes up to three times its four megabytes: pieces, sealed bytes, chunk bytes. With the manifest's page
/// and the transport's windows this stays well below 256 MiB.
const TOGETHER: usize = 8;
/// Type of a partition that every Windows disk has (Microsoft, "PARTITION_INFORMATION_GPT").
const MICROSOFT_RESERVED: &str = "e3c9e316-0b5c-4db8-817d-f92df00215ae";
/// Segments that are named when bytes are missing.
const NAMED_MAX: usize = 5;

/// How far an installation is; read while it runs.
#[derive(Default)]
pub struct Progress {
    /// Chunk bytes fetched and written.
    pub written: AtomicU64,
    /// Bytes compared.
    pub compared: AtomicU64,
    /// 0 fetch, 1 compare, 2 finish.
    pub stage: AtomicU64,
    /// Segments that wait for their pieces.
    pub fetching: AtomicU64,
    /// Segments that are opened and written.
    pub writing: AtomicU64,
}

#[derive(Default)]
struct Stages {
    assemble: Stage,
    open: Stage,
    decompress: Stage,
    write: Stage,
}

/// A holder, as it served this installation.
#[derive(Debug, Serialize)]
pub struct Holder {
    /// Who.
    pub node: String,
    /// Pieces it delivered.
    pub pieces: u64,
    /// Payload bytes of these.
    pub bytes: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Requests that were slow.
    pub slow: u64,
    /// What it did, if it returned wrong data.
    pub lied: Option<String>,
    /// The last fault.
    pub last_fault: Option<String>,
}

/// How the partition table becomes the disk's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// What happens to the room that a larger disk has.
    pub grow: Grow,
    /// Whether disk and partitions get new GUIDs.
    pub new_guids: bool,
}

impl Fit {
    /// Only what must be: both copies of the table where they belong.
    pub const KEEP: Self = Self { grow: Grow::Keep, new_guids: false };

    /// Whether an image can be had this way.
    ///
    /// # Errors
    /// Says why not.
    pub fn check(&self, layout: &Layout) -> anyhow::Result<()> {
        if self.new_guids && layout.table != Table::Gpt {
            bail!("the image has no GPT, so there are no GUIDs to make new");
        }
        if self.new_guids && layout.partitions.iter().any(|p| p.kind.eq_ignore_ascii_case(MICROSOFT_RESERVED)) {
            bail!(
                "Windows finds its partitions by their GUIDs and would not start with new ones: install it without --new-guids"
            );
        }
        Ok(())
    }
}

/// A disk that is proven, and fitted but for its first blocks.
pub struct Proven<'a> {
    /// Partitions as they will be.
    pub layout: &'a Layout,
    /// First blocks as they will be, [`FIRST_LEN`] bytes or the whole of a shorter disk.
    pub first: &'a [u8],
    /// Partitions' GUIDs that are new: old, new.
    pub renamed: &'a [(uuid::Uuid, uuid::Uuid)],
}

impl Proven<'_> {
    /// What the controller is told of it.
    #[must_use]
    pub fn finishing(&self, serial: String) -> Finishing {
        let (head, rest) = digests(self.first);
        Finishing { serial, head, rest }
    }
}

/// What is still to be done to a disk before it can boot. An error leaves it unbootable.
pub type Prepare = Box<dyn FnOnce(&Proven<'_>) -> anyhow::Result<()> + Send>;

/// Too few pieces could be had, for now: nothing is wrong with the disk, and the next try goes on from here.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Shortage(String);

/// What an installation did.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// `name:tag`.
    pub image: String,
    /// SHA-256 of the contents, proven on the disk.
    pub content: String,
    /// Bytes written.
    pub written: u64,
    /// Bytes of the disk that an interrupted installation had written, proven before this one began.
    pub resumed: u64,
    /// Length of the image.
    pub image_len: u64,
    /// Length of the disk.
    pub disk_len: u64,
    /// Whether the GPT was fitted to a larger disk, or mended.
    pub fitted: bool,
    /// Partitions' GUIDs that are new: old, new.
    pub renamed: Vec<(uuid::Uuid, uuid::Uuid)>,
    /// Segments.
    pub segments: u64,
    /// Sealed bytes, of k pieces each.
    pub sealed: u64,
    /// Pieces fetched.
    pub pieces: u64,
    /// Requests sent because a holder was slow.
    pub hedged: u64,
    /// Segments that needed parity.
    pub rebuilt: u64,
    /// Each holder.
    pub holders: Vec<Holder>,
    /// Holders whose directory was behind, with its epoch.
    pub behind: Vec<(String, u64)>,
    /// Seconds to fetch, verify and write, and meanwhile to read back what is complete.
    pub write_s: f64,
    /// Seconds to flush the disk.
    pub flush_s: f64,
    /// Seconds to read back and compare the rest.
    pub compare_s: f64,
    /// Seconds in all.
    pub took_s: f64,
    /// CPU seconds of this process.
    pub cpu_s: f64,
    /// Reconstructing segments and naming them.
    pub assemble: StageReport,
    /// Verifying fragments.
    pub verify: StageReport,
    /// AES-256-GCM.
    pub open: StageReport,
    /// zstd.
    pub decompress: StageReport,
    /// Writing.
    pub write: StageReport,
    /// Reading back and hashing.
    pub compare: StageReport,
}

struct Work {
    target: Arc<Target>,
    first: Mutex<FirstBlocks>,
    stages: Stages,
    written: AtomicU64,
    resumed: AtomicU64,
    rebuilt: AtomicU64,
    proof: Arc<Proof>,
    /// Contents to mark the disk with before the first of them is written; nothing is written where no piece can be had.
    unmarked: Mutex<Option<ContentDigest>>,
    fit: Fit,
    prepare: Mutex<Option<Prepare>>,
    renamed: Mutex<Vec<(uuid::Uuid, uuid::Uuid)>>,
    progress: Arc<Progress>,
}

/// Install an image on a disk. The report is for [`Source::report`], once the caller has done what else is to be done.
///
/// # Errors
/// For a person. Unless it returns `Ok`, the disk does not boot.
pub async fn install(
    source: &Source,
    target: Target,
    fit: Fit,
    prepare: Option<Prepare>,
    progress: Arc<Progress>,
) -> (anyhow::Result<Outcome>, Report) {
    let start = Instant::now();
    let mut report = Report { image: source.root.image.clone(), error: None, lied: Vec::new(), written: 0, took_ms: 0 };
    let result = install_and_note(source, target, fit, prepare, progress, &mut report).await;
    report.error = result.as_ref().err().map(|e| format!("{e:#}"));
    report.took_ms = start.elapsed().as_millis() as u64;
    (result, report)
}

async fn install_and_note(
    source: &Source,
    target: Target,
    fit: Fit,
    prepare: Option<Prepare>,
    progress: Arc<Progress>,
    report: &mut Report,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    fit.check(&source.root.disk)?;
    let target = Arc::new(target);
    let proof = Arc::new(Proof::new(source, target.clone(), progress.clone()).await?);
    let work = Arc::new(Work {
        target,
        first: Mutex::new(FirstBlocks::new(source.root.disk_len)),
        stages: Stages::default(),
        written: AtomicU64::new(0),
        resumed: AtomicU64::new(0),
        rebuilt: AtomicU64::new(0),
        proof,
        unmarked: Mutex::default(),
        fit,
        prepare: Mutex::new(prepare),
        renamed: Mutex::default(),
        progress,
    });
    let result = run(source, &work).await;
    let fetched = source.array().report().await;
    report.lied = fetched.peers.iter().filter_map(|(node, r)| Some((*node, r.lied.clone()?))).collect();
    report.written = work.written.load(Relaxed);
    let times = result?;
    let root = &source.root;
    Ok(Outcome {
        image: root.image.to_string(),
        content: root.content.to_string(),
        written: work.written.load(Relaxed),
        resumed: work.resumed.load(Relaxed),
        image_len: root.disk_len,
        disk_len: work.target.len(),
        fitted: times.fitted,
        renamed: std::mem::take(&mut *work.renamed.lock().unwrap_or_else(PoisonError::into_inner)),
        segments: root.totals.segments,
        sealed: root.totals.sealed,
        pieces: fetched.peers.iter().map(|(_, r)| r.pieces).sum(),
        hedged: fetched.hedges,
        rebuilt: work.rebuilt.load(Relaxed),
        holders: fetched
            .peers
            .into_iter()
            .map(|(node, r)| Holder {
                node: node.to_string(),
                pieces: r.pieces,
                bytes: r.bytes,
                failures: r.failures,
                slow: r.slow,
                lied: r.lied,
                last_fault: r.last_fault,
            })
            .collect(),
        behind: fetched.behind.into_iter().map(|(node, epoch)| (node.to_string(), epoch.0)).collect(),
        write_s: times.write_s,
        flush_s: times.flush_s,
        compare_s: times.compare_s,
        took_s: start.elapsed().as_secs_f64(),
        cpu_s: process_cpu().as_secs_f64(),
        assemble: work.stages.assemble.report(),
        verify: fetched.verify,
        open: work.stages.open.report(),
        decompress: work.stages.decompress.report(),
        write: work.stages.write.report(),
        compare: work.proof.stage.report(),
    })
}

struct Times {
    write_s: f64,
    flush_s: f64,
    compare_s: f64,
    fitted: bool,
}

async fn run(source: &Source, work: &Arc<Work>) -> anyhow::Result<Times> {
    let start = Instant::now();
    let content = source.root.content;
    let mut proven = BTreeSet::new();
    if work.target.resumes(&content) {
        proven = work.proof.resume(source).await?;
        work.resumed.store(proven.len() as u64 * SPAN_LEN, Relaxed);
        tracing::info!(bytes = proven.len() as u64 * SPAN_LEN, "goes on where it was interrupted");
    } else {
        if !work.target.clear().context("clear the disk")? {
            zero_gaps(source, &work.target).await?;
        }
        // A smaller image would not overwrite the mark.
        if source.root.disk_len >= FIRST_LEN {
            *work.unmarked.lock().unwrap_or_else(PoisonError::into_inner) = Some(content);
        }
    }
    tokio::try_join!(fetch_all(source, work, &proven), work.proof.keep_up())?;
    let write_s = start.elapsed().as_secs_f64();
    let flushing = Instant::now();
    let target = work.target.clone();
    tokio::task::spawn_blocking(move || target.sync())
        .await?
        .context("make the disk durable: it reports write errors")?;
    let flush_s = flushing.elapsed().as_secs_f64();

    work.progress.stage.store(1, Relaxed);
    let comparing = Instant::now();
    let first = std::mem::replace(&mut *work.first.lock().unwrap_or_else(PoisonError::into_inner), FirstBlocks::new(0));
    if let Err(error) = work.proof.finish(source, &first).await {
        if proven.is_empty() {
            return Err(error);
        }
        work.target.unmark().context("clear the mark")?;
        return Err(
            error.context("what an interrupted installation had left could not be completed; the next try begins anew")
        );
    }
    let compare_s = comparing.elapsed().as_secs_f64();
    work.progress.stage.store(2, Relaxed);
    let fitted = tokio::task::block_in_place(|| finish(source, work, first)).context("write the first blocks")?;
    Ok(Times { write_s, flush_s, compare_s, fitted })
}

/// Zero what no run writes. Runs come in the order of segments, so this takes a pass over the manifest of its own.
async fn zero_gaps(source: &Source, target: &Target) -> anyhow::Result<()> {
    let mut start = 0;
    while start < source.root.disk_len {
        let window = start..source.root.disk_len.min(start + WINDOW_LEN);
        start = window.end;
        let mut written = Written::new(window);
        for index in 0..source.root.segment_pages.len() {
            for segment in source.segments(index).await? {
                segment.entry.runs.iter().for_each(|run| written.mark(run));
            }
        }
        for gap in written.gaps() {
            target.zero(gap).context("zero the disk")?;
        }
    }
    Ok(())
}

/// Fetch every segment of which anything is not proven on the disk.
async fn fetch_all(source: &Source, work: &Arc<Work>, proven: &BTreeSet<u64>) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(TOGETHER));
    let mut tasks: JoinSet<anyhow::Result<Result<(), Shortfall>>> = JoinSet::new();
    let mut shortfalls = Vec::new();
    'pages: for index in 0..source.root.segment_pages.len() {
        for Segment { entry, key } in source.segments(index).await? {
            let spans = |run: &Run| run.disk_offset / SPAN_LEN..=(run.disk_offset + u64::from(run.len) - 1) / SPAN_LEN;
            if !proven.is_empty() && entry.runs.iter().flat_map(spans).all(|span| proven.contains(&span)) {
                continue;
            }
            let slot = slots.clone().acquire_owned().await?;
            while let Some(done) = tasks.try_join_next() {
                shortfalls.extend(done.context("write a segment")??.err());
            }
            if !shortfalls.is_empty() {
                break 'pages;
            }
            let holders = source.holders(&entry)?;
            let (array, work) = (source.array().clone(), work.clone());
            tasks.spawn(async move {
                work.progress.fetching.fetch_add(1, Relaxed);
                let fetched = array.fetch(entry.clone(), holders).await;
                work.progress.fetching.fetch_sub(1, Relaxed);
                let pieces = match fetched {
                    Ok(pieces) => pieces,
                    Err(shortfall) => return Ok(Err(shortfall)),
                };
                let segment = Segment { entry, key };
                let write = move || {
                    work.progress.writing.fetch_add(1, Relaxed);
                    let written = work.write_segment(&segment, &pieces);
                    work.progress.writing.fetch_sub(1, Relaxed);
                    written
                };
                tokio::task::spawn_blocking(write).await.context("write a segment")??;
                drop(slot);
                Ok(Ok(()))
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        shortfalls.extend(done.context("write a segment")??.err());
    }
    work.proof.end();
    if shortfalls.is_empty() { Ok(()) } else { Err(Shortage(explain(source, &shortfalls)).into()) }
}

/// What is missing, in words: the image, the segments, and who should have them.
fn explain(source: &Source, shortfalls: &[Shortfall]) -> String {
    let mut text = format!(
        "{} cannot be installed now: too few pieces of {}{} can be had. The disk was left unbootable.",
        source.root.image,
        if shortfalls.len() == 1 { "a segment" } else { "some segments" },
        if shortfalls.len() > NAMED_MAX { " (the first are named)" } else { "" },
    );
    for s in shortfalls.iter().take(NAMED_MAX) {
        text += &format!("\n  segment {}: {} of {} pieces", s.segment.short(), s.have, s.need);
        for (piece, node, fault) in &s.missing {
            let address = source.directory().members.get(node).and_then(|m| m.addresses.first());
            let address = address.map_or_else(|| "address unknown".into(), ToString::to_string);
            text += &format!("\n    piece {piece} on stash {node} ({address}): {fault}");
        }
    }
    text + "\nStart those that are not reached, or publish the image anew; `coe-ctl nodes` shows who is up, `coe-ctl explain` what is left."
}

/// Codecs hold tables; each thread keeps those it used last.
fn with_codec<T>(geometry: Geometry, work: impl FnOnce(&Codec) -> T) -> T {
    thread_local!(static CODEC: std::cell::RefCell<Option<Codec>> = const { std::cell::RefCell::new(None) });
    CODEC.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|codec| codec.geometry() != geometry) {
            *slot = Some(Codec::new(geometry));
        }
        work(slot.as_ref().expect("just set"))
    })
}

impl Work {
    fn write_segment(&self, segment: &Segment, pieces: &[(usize, bytes::Bytes)]) -> anyhow::Result<()> {
        let entry = &segment.entry;
        let data_pieces = entry.geometry.data();
        let rebuilt = pieces.iter().take(data_pieces).any(|(piece, _)| *piece >= data_pieces);
        self.rebuilt.fetch_add(u64::from(rebuilt), Relaxed);
        let sealed = self.stages.assemble.run(entry.sealed_len as usize, || {
            with_codec(entry.geometry, |codec| assemble(codec, entry.id, entry.sealed_len, pieces))
        });
        let sealed = sealed.context("assemble a segment")?;
        let len = entry.data_len as usize;
        let payload = self.stages.open.run(len, || segment::unseal(&sealed, &segment.key));
        let plain = payload.and_then(|payload| self.stages.decompress.run(len, || segment::decode(payload)));
        let plain = plain.with_context(|| format!("open segment {}", entry.id.short()))?;
        if plain.data.len() != entry.data_len as usize {
            bail!("segment {} is shorter than its manifest says", entry.id.short());
        }
        {
            let mut unmarked = self.unmarked.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(content) = &*unmarked {
                self.target.mark(content).context("mark the disk")?;
                *unmarked = None;
            }
        }
        self.stages
            .write
            .run(plain.data.len(), || {
                for run in &entry.runs {
                    let from = run.segment_offset as usize;
                    let bytes = &plain.data[from..from + run.len as usize];
                    let (offset, rest) =
                        self.first.lock().unwrap_or_else(PoisonError::into_inner).keep(run.disk_offset, bytes);
                    if !rest.is_empty() {
                        self.target.write(offset, rest)?;
                    }
                    self.written.fetch_add(u64::from(run.len), Relaxed);
                }
                Ok::<_, std::io::Error>(())
            })
            .context("write to the disk")?;
        self.proof.wrote(&entry.runs);
        self.progress.written.store(self.written.load(Relaxed), Relaxed);
        Ok(())
    }
}

/// Fit the table, do what else is to be done, then write what makes the disk bootable: everything proven, nothing to lose. Says whether the table changed.
fn finish(source: &Source, work: &Work, mut first: FirstBlocks) -> anyhow::Result<bool> {
    let (root, target) = (&source.root, &work.target);
    let mut fitting = Fitting::default();
    if root.disk.table == Table::Gpt {
        let disk = target.reader()?;
        let overlay = Overlay { first: &first, disk: &disk, len: root.disk_len };
        let mut new_guid = || uuid::Uuid::new_v4().to_bytes_le();
        let guids = work.fit.new_guids.then_some(&mut new_guid as &mut dyn FnMut() -> [u8; 16]);
        fitting = fit_gpt(&overlay, root.disk.sector_size, target.len(), work.fit.grow, guids)?;
    }
    if let Some(moved) = fitting.moved {
        proof::move_range(target, moved).context("move the partition behind the last one with files")?;
    }
    let guid = uuid::Uuid::from_bytes_le;
    let renamed: Vec<_> = fitting.renamed.iter().map(|(old, new)| (guid(*old), guid(*new))).collect();
    let fitted = !fitting.patches.is_empty();
    let elsewhere = first.patch(fitting.patches);
    for patch in &elsewhere {
        target.write(patch.offset, &patch.bytes)?;
    }
    target.sync()?;
    proof::compare_patches(target, &elsewhere)?;
    if let Some(prepare) = work.prepare.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let disk = target.reader()?;
        let whole = Overlay { first: &first, disk: &disk, len: target.len() };
        let layout = read_layout(&whole, Some(root.disk.sector_size))?;
        target.release();
        let prepared = prepare(&Proven { layout: &layout, first: first.bytes(), renamed: &renamed });
        let claimed = target.claim_again();
        prepared?;
        claimed?;
    }
    *work.renamed.lock().unwrap_or_else(PoisonError::into_inner) = renamed;
    // The very first sectors come last of all: until then there is no table.
    let (head, rest) = first.bytes().split_at(first.bytes().len().min(HEAD_LEN));
    target.write(head.len() as u64, rest)?;
    target.sync()?;
    let last = || {
        target.write(0, head)?;
        target.sync()?;
        proof::compare_patches(target, &[Patch { offset: 0, bytes: first.bytes().to_vec() }])
    };
    if let Err(error) = last() {
        // Not proven, so not bootable.
        target.zero(0..head.len() as u64).and_then(|()| target.sync()).context("clear the disk again")?;
        return Err(error);
    }
    Ok(fitted)
}
