//! The sending half of `coe-ctl publish`. It runs where the bytes are: reads only what is in use, cuts it into chunks, asks which
//! are new, packs, compresses and seals those, and sends each sealed segment once.
//!
//! Stages overlap and every queue between them is short, so memory does not depend on the image: a reader thread, a resolver
//! that keeps the order, sealing on all cores, several segments on the wire.

mod draft;
mod reader;
mod resolver;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail};
use images::disk::{ReadAt as _, SectorSize, read_layout};
use images::parity::Geometry;
use images::span::content_digest;
use protocol::io::disk::DiskFile;
use protocol::io::rpc;
use protocol::io::stage::{Stage, StageReport, process_cpu};
use protocol::message::publish::{Begin, Finish, Layout};
use quinn::Connection;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// What to publish, and how.
pub struct Order {
    /// Disk or image file.
    pub source: PathBuf,
    /// Name of the image.
    pub name: String,
    /// Its tag; without one the controller counts up.
    pub tag: Option<String>,
    /// Geometry; without one the controller chooses.
    pub geometry: Option<Geometry>,
    /// Who keeps what; without it as the policy says.
    pub layout: Option<Layout>,
    /// Whether it may be installed while the controller is away.
    pub offline: bool,
    /// zstd level.
    pub level: i32,
    /// Sector size, where the table does not say.
    pub sector_size: Option<SectorSize>,
    /// SHA-256 that the file must have.
    pub expected_sha256: Option<[u8; 32]>,
}

/// How far a publication is; read while it runs.
#[derive(Default)]
pub struct Progress {
    /// Offset on the disk that the reader has reached.
    pub position: AtomicU64,
    /// Bytes in use, read so far.
    pub in_use: AtomicU64,
    /// Chunk bytes that were new.
    pub unique: AtomicU64,
    /// Sealed bytes of new segments.
    pub sealed: AtomicU64,
    /// Segments that are durable.
    pub segments: AtomicU64,
    /// Chunks looked at.
    pub chunks: AtomicU64,
    /// Chunks that the array had.
    pub known_chunks: AtomicU64,
    /// Payload bytes that the controller sent to stashes.
    pub spread: AtomicU64,
    /// Holders that were replaced.
    pub replaced: AtomicU64,
}

/// CPU of each stage in this process.
#[derive(Default)]
pub(crate) struct Stages {
    read: Stage,
    chunk: Stage,
    hash: Stage,
    pack: Stage,
    compress: Stage,
    seal: Stage,
}

/// CPU of each stage, for people and benchmarks.
#[derive(Debug, Serialize)]
pub struct StageReports {
    /// Reading and looking for zeros.
    pub read: StageReport,
    /// Finding chunk boundaries.
    pub chunk: StageReport,
    /// BLAKE3 of chunks and spans.
    pub hash: StageReport,
    /// Copying new chunks together.
    pub pack: StageReport,
    /// zstd.
    pub compress: StageReport,
    /// AES-256-GCM, and BLAKE3 of what goes in and what comes out.
    pub seal: StageReport,
}

/// What a publication did.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// `name:tag`.
    pub image: String,
    /// BLAKE3 of the manifest's root.
    pub manifest: String,
    /// SHA-256 of the contents, as `coe-ctl digest` computes it.
    pub content: String,
    /// `k+m`.
    pub geometry: String,
    /// Partition table.
    pub table: String,
    /// Disk length, bytes.
    pub disk_len: u64,
    /// Bytes in use.
    pub in_use: u64,
    /// Chunks, and how many of them the array had.
    pub chunks: u64,
    /// See `chunks`.
    pub known_chunks: u64,
    /// New chunk bytes.
    pub unique: u64,
    /// Sealed bytes of new segments: what travelled to the controller.
    pub sealed: u64,
    /// New segments.
    pub new_segments: u64,
    /// Bytes that the controller sent to stashes, parity included.
    pub spread: u64,
    /// Holders that did not confirm and were replaced.
    pub replaced: u64,
    /// Segments shared with earlier images that are protected less than was asked for.
    pub weaker: u64,
    /// What of the policy could not be kept.
    pub unmet: Vec<String>,
    /// Whether it can be installed while the controller is away.
    pub offline: bool,
    /// Seconds from start to end.
    pub took_s: f64,
    /// CPU seconds of this process.
    pub cpu_s: f64,
    /// CPU of each stage.
    pub stages: StageReports,
}

/// Publish a disk.
///
/// # Errors
/// For a person: what is wrong with the source, the array or the connection. What was sent stays, and the next try goes on there.
pub async fn publish(connection: &Connection, order: Order, progress: Arc<Progress>) -> anyhow::Result<Outcome> {
    let (start, cpu_before) = (Instant::now(), process_cpu());
    let shown = order.source.display().to_string();
    let disk = Arc::new(DiskFile::open(&order.source).with_context(|| format!("open {shown}"))?);
    let table = read_layout(&*disk, order.sector_size).with_context(|| format!("read {shown}"))?;
    let checksum = order.expected_sha256.map(|expected| {
        let path = order.source.clone();
        tokio::task::spawn_blocking(move || check_sha256(&path, expected))
    });
    let begin = Begin {
        name: order.name,
        tag: order.tag,
        geometry: order.geometry,
        layout: order.layout,
        disk_len: disk.len(),
        offline: order.offline,
    };
    let (begun, _) = rpc::call(connection, begin, &[]).await?;
    let stages = Arc::new(Stages::default());
    let sender = resolver::Sender {
        connection: connection.clone(),
        session: begun.session,
        owner_key: begun.owner_key.clone(),
        level: order.level,
        stages: stages.clone(),
        progress: progress.clone(),
    };
    let (batches, reading) = reader::start(disk.clone(), stages.clone(), progress.clone());
    let entries = sender.run(batches).await;
    let spans = reading.await.context("read the source")?.with_context(|| format!("read {shown}"));
    // A reader that failed ends the resolver early without an error of its own.
    let (spans, entries) = (spans?, entries?);
    if let Some(checksum) = checksum {
        checksum.await.context("check the SHA-256")??;
    }
    let (run_pages, span_pages) = draft::send(connection, begun.session, entries, &spans).await?;
    let content = content_digest(disk.len(), &spans);
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let finish = Finish {
        session: begun.session,
        run_pages,
        span_pages,
        disk: table.clone(),
        content,
        source_sha256: order.expected_sha256,
        in_use: load(&progress.in_use),
    };
    let (published, _) = rpc::call(connection, finish, &[]).await?;
    Ok(Outcome {
        image: published.image.to_string(),
        manifest: published.manifest.to_string(),
        content: content.to_string(),
        geometry: begun.geometry.to_string(),
        table: table.table.to_string(),
        disk_len: disk.len(),
        in_use: load(&progress.in_use),
        chunks: load(&progress.chunks),
        known_chunks: load(&progress.known_chunks),
        unique: load(&progress.unique),
        sealed: load(&progress.sealed),
        new_segments: load(&progress.segments),
        spread: load(&progress.spread),
        replaced: load(&progress.replaced),
        weaker: published.weaker,
        unmet: begun.unmet,
        offline: published.offline,
        took_s: start.elapsed().as_secs_f64(),
        cpu_s: (process_cpu() - cpu_before).as_secs_f64(),
        stages: StageReports {
            read: stages.read.report(),
            chunk: stages.chunk.report(),
            hash: stages.hash.report(),
            pack: stages.pack.report(),
            compress: stages.compress.report(),
            seal: stages.seal.report(),
        },
    })
}

fn check_sha256(path: &std::path::Path, expected: [u8; 32]) -> anyhow::Result<()> {
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = std::io::Read::read(&mut file, &mut buffer)?;
        if len == 0 {
            break;
        }
        hasher.update(&buffer[..len]);
    }
    let found: [u8; 32] = hasher.finalize().into();
    if found != expected {
        bail!(
            "{} has SHA-256 {}, not the one expected: the download is damaged",
            path.display(),
            data_encoding::HEXLOWER.encode(&found)
        );
    }
    Ok(())
}
