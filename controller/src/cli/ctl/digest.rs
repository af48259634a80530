//! `coe-ctl digest`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use images::disk::ReadAt as _;
use images::limits::SPAN_LEN;
use images::span::content_digest;
use protocol::io::disk::DiskFile;
use protocol::io::stage::Stage;

use super::{Common, table};

/// Compute the content digest of a disk or an image file, to compare with `coe-ctl show`
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl digest /dev/sda --len 8589934592")]
pub struct Digest {
    /// Disk or image file
    disk: PathBuf,
    /// Look at the first LEN bytes only: an image on a larger disk; a multiple of 16 MiB, or the whole
    #[arg(long, value_name = "LEN")]
    len: Option<u64>,
    #[command(flatten)]
    common: Common,
}

impl Digest {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let disk = DiskFile::open(&self.disk).with_context(|| format!("open {}", self.disk.display()))?;
        let len = self.len.unwrap_or(disk.len());
        if len > disk.len() || (len != disk.len() && !len.is_multiple_of(SPAN_LEN)) {
            bail!("--len is a multiple of {SPAN_LEN} and at most the disk's {} bytes", disk.len());
        }
        let done = Arc::new(AtomicU64::new(0));
        let bar = table::bar(len.max(1), "digest");
        let counter = done.clone();
        let all: Vec<u64> = (0..len.div_ceil(SPAN_LEN)).collect();
        let work = tokio::task::spawn_blocking(move || disk.spans(&all, &counter, &Stage::default()));
        while !work.is_finished() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            bar.set_position(done.load(Relaxed));
        }
        bar.finish_and_clear();
        let spans = work.await?.with_context(|| format!("read {}", self.disk.display()))?;
        let digest = content_digest(len, &spans);
        if self.common.json {
            println!("{}", serde_json::json!({ "content": digest.to_string(), "len": len }));
        } else {
            println!("{digest}");
        }
        Ok(())
    }
}
