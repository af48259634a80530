//! What became of a deployment while nobody could tell the controller: its installer told those who have shares of the image's key, so many
//! that any of them who could still give the key together include one who knows.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use images::{ArrayId, wire};
use tokio::task::JoinSet;

use super::pool::Pool;
use super::rpc;
use super::statement::Statement;
use super::tls::Bearer;
use crate::directory::Shares;
use crate::message::image::{LeftReport, REPORT_PURPOSE, Word};
use crate::message::store::GetWord;

/// How long a holder may take. A machine's loader waits for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What holders know.
#[derive(Debug)]
pub enum Known {
    /// It was carried out: its installer's own word.
    Done(Box<(Bearer, LeftReport)>),
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

/// Who left a word, and what it says. `None` if no member of this array signed it.
#[must_use]
pub fn read(statement: &Statement, authority: &[u8], array: ArrayId) -> Option<(Bearer, LeftReport)> {
    let said_by = statement.verify(REPORT_PURPOSE, authority, array).ok()?;
    Some((said_by, wire::decode(&statement.bytes).ok()?))
}

/// Whose words count.
pub struct Asked<'a> {
    /// The authority's certificate, DER.
    pub authority: &'a [u8],
    /// The array.
    pub array: ArrayId,
    /// The machine.
    pub host: u32,
    /// Its deployment.
    pub deployment: u32,
}

impl Asked<'_> {
    /// Whether a statement says that the deployment is done, and an installer of just that said so.
    fn done_by(&self, statement: &Statement) -> Option<(Bearer, LeftReport)> {
        let (said_by, left) = read(statement, self.authority, self.array)?;
        let is_of_it = (said_by.host, said_by.deployment) == (Some(self.host), Some(self.deployment));
        (is_of_it && left.is_success()).then_some((said_by, left))
    }

    /// Ask the holders of shares of its image's key what became of a deployment.
    pub async fn ask(&self, pool: &Arc<Pool>, shares: &Shares) -> Known {
        let (mut asks, deployment) = (JoinSet::new(), self.deployment);
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
            if let Some((said_by, left)) = last.and_then(|last| self.done_by(&last)) {
                return Known::Done(Box::new((said_by, left)));
            }
            answered += 1;
            if answered >= usize::from(shares.threshold) {
                return Known::NotDone;
            }
        }
        Known::Unknown
    }
}
