//! A stash that does not do what it should: a real member with a real certificate and a real endpoint, and bad manners.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use images::fragment::{FragmentHeader, FragmentId};
use protocol::directory::{Epoch, Line, Mark};
use protocol::identity::CONTROLLER_NAME;
use protocol::io::credentials::Credentials;
use protocol::io::rpc::{self, Answer};
use protocol::io::{endpoint, tls};
use protocol::message::{Refusal, Request, fetch, member, store};
use protocol::ticket::Ticket;

/// What it does when asked for a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// The right header over other bytes.
    WrongBytes,
    /// Another fragment, whole and right.
    WrongPiece,
    /// A shorter payload.
    Short,
    /// An answer to another question.
    Gibberish,
    /// No answer, for ever.
    Stalls,
    /// The right bytes, with the directory of long ago; and it boasts of its room.
    OldEpoch,
}

struct Kept {
    manners: Manners,
    fragments: Mutex<HashMap<FragmentId, (FragmentHeader, Bytes)>>,
}

/// A running hostile stash.
pub struct Hostile {
    /// Its id.
    pub node: String,
    endpoint: quinn::Endpoint,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.endpoint.close(0u32.into(), b"test ends");
    }
}

impl Hostile {
    /// Join with a ticket, and serve.
    ///
    /// # Errors
    /// If the array does not admit it.
    pub async fn start(ticket: &str, manners: Manners, folder: &Path) -> anyhow::Result<Self> {
        let ticket: Ticket = ticket.parse()?;
        let me = Credentials::join(&ticket).await?;
        me.save(&folder.join(format!("{}.json", me.identity.node)))?;
        let server = tls::server(&me, tls::Admit::Members, &[tls::ALPN_MEMBER])?;
        let endpoint = endpoint::server("127.0.0.1:0".parse()?, server, tls::client(&me, tls::ALPN_MEMBER)?)?;
        let kept = Arc::new(Kept { manners, fragments: Mutex::default() });
        let serving = rpc::serve(endpoint.clone(), me.identity.array, move |_, request, body| {
            let kept = kept.clone();
            async move { kept.answer(request, body).await }
        });
        tokio::spawn(serving);
        let controller = rpc::connect_any(&endpoint, &me.controller, CONTROLLER_NAME).await?;
        let port = endpoint.local_addr()?.port();
        let beat = move || member::Heartbeat {
            port,
            // More than there is, so that sums overflow.
            capacity: if manners == Manners::OldEpoch { u64::MAX } else { 1 << 30 },
            used: 0,
            fragments: 0,
            fold: 0,
            directory: Some(Mark { term: u64::MAX, epoch: Epoch(u64::MAX), line: Line::default(), digest: [0; 16] }),
            lost: Vec::new(),
            aside: None,
            wish: None,
            serves_installers: false,
        };
        rpc::call(&controller, beat(), &[]).await.context("report once")?;
        tokio::spawn(async move {
            while rpc::call(&controller, beat(), &[]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        });
        Ok(Self { node: me.identity.node.to_string(), endpoint })
    }
}

impl Kept {
    fn find(&self, id: FragmentId) -> Option<(FragmentHeader, Bytes)> {
        self.fragments.lock().expect("not poisoned").get(&id).cloned()
    }

    async fn answer(&self, request: Request, body: Bytes) -> Answer {
        match request {
            Request::PutFragment(store::PutFragment { header, .. }) => {
                self.fragments.lock().expect("not poisoned").insert(header.id, (header, body));
                Answer::to::<store::PutFragment>(Ok(store::Stored))
            }
            Request::GetFragment(fetch::GetFragment { fragment }) => self.get(fragment).await,
            Request::ListFragments(_) => {
                let fragments = self.fragments.lock().expect("not poisoned").keys().copied().collect();
                Answer::to::<store::ListFragments>(Ok(store::Fragments { fragments }))
            }
            _ => Answer::refuse(Refusal::Invalid("no".into())),
        }
    }

    async fn get(&self, id: FragmentId) -> Answer {
        let Some((header, payload)) = self.find(id) else {
            return Answer::refuse(Refusal::NotFound(id.to_string()));
        };
        let (mut epoch, mut answer) = (Epoch(u64::MAX), (header, payload));
        match self.manners {
            Manners::WrongBytes => {
                let mut bytes = answer.1.to_vec();
                bytes[0] ^= 1;
                answer.1 = bytes.into();
            }
            Manners::WrongPiece => {
                let others = self.fragments.lock().expect("not poisoned");
                answer = others.values().find(|(h, _)| h.id != id).cloned().unwrap_or(answer);
            }
            Manners::Short => answer.1 = answer.1.slice(1..),
            Manners::Gibberish => {
                let proof = Ok((store::Proof, Bytes::from_static(b"surprise")));
                return Answer::with_body::<store::Prove>(proof);
            }
            Manners::Stalls => std::future::pending().await,
            Manners::OldEpoch => epoch = Epoch(0),
        }
        let (header, payload) = answer;
        Answer::with_body::<fetch::GetFragment>(Ok((fetch::Fragment { header, epoch }, payload)))
    }
}
