//! Passing the newest directory on: every now and then a member at random is asked what it has, and told what is newer here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use images::NodeId;
use protocol::io::directory::DirectoryKeeper;
use protocol::io::pool::Pool;
use protocol::io::rpc;
use protocol::message::member::{GetDirectory, OfferDirectory};

/// A member is asked once in so many heartbeats.
const BEATS: u32 = 4;
/// How long a member may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub(super) struct Gossip {
    pub(super) own: NodeId,
    pub(super) pool: Arc<Pool>,
    pub(super) directory: Arc<DirectoryKeeper>,
    /// Milliseconds between heartbeats, as the controller said last.
    pub(super) heartbeat_ms: Arc<AtomicU32>,
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness the same member is asked again: slower, not wrong.
    let _ = getrandom(&mut bytes);
    u64::from_le_bytes(bytes)
}

fn getrandom(bytes: &mut [u8]) -> rustix::io::Result<usize> {
    rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty())
}

impl Gossip {
    pub(super) async fn run(self) {
        loop {
            let pause = Duration::from_millis(u64::from(self.heartbeat_ms.load(Ordering::Relaxed)) * u64::from(BEATS));
            // Not all at the same time: from half to one and a half of it.
            tokio::time::sleep(pause / 2 + pause.mul_f64((random() % 1000) as f64 / 1000.0)).await;
            let Some(held) = self.directory.held() else { continue };
            self.pool.learn(held.directory());
            let others: Vec<NodeId> =
                held.directory().members.iter().map(|(node, _)| *node).filter(|node| *node != self.own).collect();
            if others.is_empty() {
                continue;
            }
            let node = others[(random() % others.len() as u64) as usize];
            match tokio::time::timeout(ANSWER_WITHIN, self.exchange(node)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%node, error = format!("{error:#}"), "directory not exchanged"),
                Err(_) => tracing::debug!(%node, "a member did not answer"),
            }
        }
    }

    async fn exchange(&self, node: NodeId) -> anyhow::Result<()> {
        let connection = self.pool.get(node).await?;
        let have = self.directory.mark();
        let (theirs, _) = rpc::call(&connection, GetDirectory { have }, &[]).await?;
        if let Some(update) = theirs.update {
            let new = self.directory.take(update).context("take the directory of a member")?;
            tracing::info!(epoch = %new.mark().epoch, term = new.mark().term, from = %node, "newer directory");
        } else if let Some(update) = self.directory.held().and_then(|held| held.update_for(theirs.mark)) {
            rpc::call(&connection, OfferDirectory { update }, &[]).await?;
        }
        Ok(())
    }
}
