//! What became of a deployment while nobody could tell the controller: its installer told those who have shares of the image's key, so many
//! that any of them who could still give the key together include one who knows.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use images::{ArrayId, wire};
use tokio::task::JoinSet;

use super::pool::Pool;
use super::rpc;
use super::statement::Statement;
use crate::directory::Shares;
use crate::message::image::{LeftReport, REPORT_PURPOSE, Word};
use crate::message::store::GetWord;

/// How long a holder may take. A machine's loader waits for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What holders know.
#[derive(Debug)]
pub enum Known {
    /// It was carried out: its installer's own word.
    Done(Statement),
    /// So many answered that one of them would know.
    NotDone,
    /// Too few answered.
    Unknown,
}

/// Something to be said now.
#[must_use]
pub fn say(word: Word) -> LeftReport {
    let mut nonce = [0; 16];
    // Without randomness two that say the same in one millisecond are one.
    let _ = aws_lc_rs::rand::fill(&mut nonce);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LeftReport { nonce, at_unix_ms: since.as_millis() as u64, word }
}

/// Whether a statement says that a deployment of a machine is done, and an installer of just that said so.
#[must_use]
pub fn says_done(statement: &Statement, authority: &[u8], array: ArrayId, host: u32, deployment: u32) -> bool {
    let said = statement.verify(REPORT_PURPOSE, authority, array);
    let is_of_it = said.is_ok_and(|said| said.host == Some(host) && said.deployment == Some(deployment));
    is_of_it && wire::decode::<LeftReport>(&statement.bytes).is_ok_and(|left| left.is_success())
}

/// Ask the holders of an image's shares what became of a deployment of it. `is_true` tells a word that counts.
pub async fn ask(pool: &Arc<Pool>, shares: &Shares, deployment: u32, is_true: impl Fn(&Statement) -> bool) -> Known {
    let mut asks = JoinSet::new();
    for (node, _) in shares.holders.clone() {
        let pool = pool.clone();
        asks.spawn(async move {
            let asked = async { rpc::call(&pool.get(node).await?, GetWord { deployment }, &[]).await };
            tokio::time::timeout(ANSWER_WITHIN, asked).await.ok()?.ok().map(|(word, _)| word.last)
        });
    }
    let mut answered = 0;
    while let Some(answer) = asks.join_next().await {
        let Ok(Some(last)) = answer else { continue };
        if let Some(statement) = last.filter(&is_true) {
            return Known::Done(statement);
        }
        answered += 1;
        if answered >= usize::from(shares.threshold) {
            return Known::NotDone;
        }
    }
    Known::Unknown
}
