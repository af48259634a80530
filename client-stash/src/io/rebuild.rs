//! Having fragments that this stash did not get from the controller: copied from a member that has them, or made anew out of any k
//! others of their segment. So a repair costs the controller nothing but a message.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use images::NodeId;
use images::fragment::{FragmentHeader, assemble, split};
use images::parity::Codec;
use protocol::directory::Epoch;
use protocol::getter::{Patience, Shortfall};
use protocol::io::directory::DirectoryKeeper;
use protocol::io::fetch::Fetcher;
use protocol::io::pool::Pool;
use protocol::io::rpc;
use protocol::limits::REBUILD_TOGETHER;
use protocol::message::Refusal;
use protocol::message::fetch::GetFragment;
use protocol::message::store::{Outcomes, Owner, Rebuild, Rebuilt, Wanted};
use tokio::sync::oneshot;

use super::file::FileStorage;
use super::watch::Manners;
use super::writer::{Event, Writer};
use crate::store::Reader;

/// A member that copies a fragment for another one answers in this time, or k others are asked.
const COPIED_WITHIN: Duration = Duration::from_secs(10);

/// How long making pieces waits for installers that this stash serves: a part of the time that it is given.
const INSTALLERS_FIRST: Duration = Duration::from_secs(5);

/// Makes fragments anew.
pub(super) struct Rebuilder {
    pub(super) reader: Reader<FileStorage>,
    pub(super) writer: Writer,
    pub(super) pool: Arc<Pool>,
    pub(super) directory: Arc<DirectoryKeeper>,
    pub(super) manners: Arc<Manners>,
    pub(super) fetcher: OnceLock<Fetcher>,
}

fn short(shortfall: &Shortfall) -> String {
    let missing = shortfall.missing.iter().map(|(piece, node, fault)| format!("piece {piece} on {node}: {fault}"));
    let missing: Vec<String> = missing.collect();
    format!("{} of {} pieces: {}", shortfall.have, shortfall.need, missing.join("; "))
}

/// The pieces that are wanted, made of k others.
fn make(wanted: &Wanted, given: &[(usize, Bytes)]) -> Result<Vec<(FragmentHeader, Bytes)>, String> {
    let codec = Codec::new(wanted.geometry);
    let sealed = assemble(&codec, wanted.segment, wanted.sealed_len, given).map_err(|e| e.to_string())?;
    let entry = wanted.entry();
    let all = split(&codec, wanted.segment, &sealed.into());
    let made: Vec<_> = all.into_iter().filter(|(header, _)| wanted.pieces.contains(&header.id.piece)).collect();
    if made.iter().any(|(header, _)| *header != entry.fragment(header.id.piece)) {
        return Err("what is made of its pieces is not what was asked for".into());
    }
    Ok(made)
}

impl Rebuilder {
    /// Have fragments; those that cannot be had in time are not kept.
    ///
    /// # Errors
    /// If the request exceeds a limit.
    pub(super) async fn rebuild(&self, ask: Rebuild) -> Result<Outcomes, Refusal> {
        if ask.wanted.len() > REBUILD_TOGETHER || !ask.wanted.iter().all(Wanted::is_valid) {
            return Err(Refusal::Invalid("fragments to rebuild that cannot be".into()));
        }
        if let Some(held) = self.directory.held() {
            self.pool.learn(held.directory());
        }
        // One for all requests: which holders do not answer need not be found out each time.
        let fetcher = self.fetcher.get_or_init(|| Fetcher::start(self.pool.clone(), Patience::unhurried(), Epoch(0)));
        let within = Duration::from_millis(ask.within_ms.into());
        let one = |wanted: Wanted| {
            let fetcher = fetcher.clone();
            async move {
                let have = tokio::time::timeout(within, self.have(ask.owner, &wanted, fetcher)).await;
                have.unwrap_or_else(|_| Rebuilt::Refused(Refusal::Unavailable("it took too long".into())))
            }
        };
        let outcomes = futures_util::future::join_all(ask.wanted.into_iter().map(one)).await;
        Ok(Outcomes { outcomes })
    }

    async fn have(&self, owner: Owner, wanted: &Wanted, fetcher: Fetcher) -> Rebuilt {
        let missing = match self.missing(wanted).await {
            Ok(missing) if missing.is_empty() => return Rebuilt::Here { fetched: 0 },
            Ok(pieces) => Wanted { pieces, ..wanted.clone() },
            Err(refusal) => return Rebuilt::Refused(refusal),
        };
        self.manners.after_installers(INSTALLERS_FIRST).await;
        let piece_len = missing.geometry.piece_len(missing.sealed_len as usize);
        let copied = match missing.from {
            Some(from) => self.copy(from, &missing).await,
            None => None,
        };
        let (made, fetched) = match copied {
            Some(made) => (made, missing.pieces.len() * piece_len),
            None => {
                if let Err(refusal) = self.wait(missing.geometry.data() * piece_len).await {
                    return Rebuilt::Refused(refusal);
                }
                let given = match fetcher.fetch(Arc::new(missing.entry()), missing.holders.clone()).await {
                    Ok(given) => given,
                    Err(shortfall) => return Rebuilt::Short(short(&shortfall)),
                };
                let fetched = given.iter().map(|(_, payload)| payload.len()).sum();
                let made = tokio::task::spawn_blocking(move || make(&missing, &given)).await;
                match made.unwrap_or_else(|_| Err("making pieces failed".into())) {
                    Ok(made) => (made, fetched),
                    Err(why) => return Rebuilt::Refused(Refusal::Invalid(why)),
                }
            }
        };
        let keep = made.into_iter().map(|(header, payload)| self.keep(owner, header, payload));
        match futures_util::future::try_join_all(keep).await {
            Ok(_) => Rebuilt::Here { fetched: fetched as u64 },
            Err(refusal) => Rebuilt::Refused(refusal),
        }
    }

    /// Those that are not here, or cannot be read any more.
    async fn missing(&self, wanted: &Wanted) -> Result<Vec<u8>, Refusal> {
        let (reader, pieces, entry) = (self.reader.clone(), wanted.pieces.clone(), wanted.entry());
        let look = move || {
            // One of the same name may be left over from another geometry.
            let is_here = |piece: u8| {
                let header = entry.fragment(piece);
                reader.examine(header.id).is_ok_and(|(found, _)| found == header)
            };
            pieces.into_iter().filter(|piece| !is_here(*piece)).collect()
        };
        tokio::task::spawn_blocking(look).await.map_err(|_| Refusal::Failed("looking for fragments".into()))
    }

    /// All from one member; `None` if it does not give them.
    async fn copy(&self, from: NodeId, wanted: &Wanted) -> Option<Vec<(FragmentHeader, Bytes)>> {
        let entry = wanted.entry();
        let connection = self.pool.get(from).await.ok()?;
        let mut copied = Vec::with_capacity(wanted.pieces.len());
        for header in wanted.pieces.iter().map(|piece| entry.fragment(*piece)) {
            self.wait(header.payload_len()).await.ok()?;
            let answer = rpc::call(&connection, GetFragment { fragment: header.id }, &[]);
            let (_, payload) = tokio::time::timeout(COPIED_WITHIN, answer).await.ok()?.ok()?;
            if let Err(error) = header.verify(&payload) {
                tracing::warn!(node = %from, fragment = %header.id, %error, "a member gave a wrong fragment");
                return None;
            }
            copied.push((header, payload));
        }
        Some(copied)
    }

    /// Be no faster than this machine's owner wants.
    async fn wait(&self, bytes: usize) -> Result<(), Refusal> {
        let slow = || Refusal::Unavailable("the owner of its machine lets it be only so fast".into());
        let wait = self.manners.wait(bytes as u64, true).ok_or_else(slow)?;
        tokio::time::sleep(wait).await;
        Ok(())
    }

    async fn keep(&self, owner: Owner, header: FragmentHeader, payload: Bytes) -> Result<(), Refusal> {
        let (done, result) = oneshot::channel();
        self.writer.send(Event::Put(owner, header, payload, done)).await;
        result.await.unwrap_or_else(|_| Err(Refusal::Failed("the stash is stopping".into())))
    }
}
