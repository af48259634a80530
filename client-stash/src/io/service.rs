//! Serving a stash: fragments in and out over QUIC.

use std::io::{Cursor, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use bao::encode::SliceExtractor;
use bytes::Bytes;
use images::fragment::FragmentId;
use protocol::directory::Epoch;
use protocol::io::rpc::{self, Answer, Peer};
use protocol::io::{endpoint, tls};
use protocol::message::{Refusal, Request, fetch, store as message};
use tokio::sync::oneshot;

use super::file::FileStorage;
use super::folder::Folder;
use super::heartbeat;
use super::writer::{Event, Writer};
use crate::store::{Reader, StoreError};

struct Service {
    reader: Reader<FileStorage>,
    writer: Writer,
    /// Newest directory's epoch.
    epoch: Arc<AtomicU64>,
}

/// Serve a stash until the process is told to stop.
///
/// # Errors
/// If the folder, the file or the port cannot be had.
pub async fn run(folder: Folder) -> anyhow::Result<()> {
    let settings = folder.settings()?;
    let member = folder.credentials()?;
    let store = folder.open_store(&member)?;
    let usage = store.usage();
    let reader = store.reader();
    let writer = Writer::start(store, folder.clone(), settings.min_free);
    let epoch = Arc::new(AtomicU64::new(folder.directory(&member).map_or(0, |d| d.epoch.0)));
    let server = tls::server(&member, tls::Admit::Members, &[tls::ALPN_MEMBER])?;
    let client = tls::client(&member, tls::ALPN_MEMBER)?;
    let endpoint = endpoint::server(settings.listen, server, client)
        .with_context(|| format!("listen on UDP {}", settings.listen))?;
    tracing::info!(node = %member.identity.node, listen = %endpoint.local_addr()?, fragments = usage.fragments,
        used = usage.used, capacity = usage.capacity, "stash serves");
    let service = Arc::new(Service { reader: reader.clone(), writer: writer.clone(), epoch: epoch.clone() });
    let array = member.identity.array;
    let heart = heartbeat::Heart { folder, member, endpoint: endpoint.clone(), reader, writer, epoch };
    tokio::spawn(heart.run());
    let serve = rpc::serve(endpoint.clone(), array, move |peer, request, body| {
        let service = service.clone();
        async move { service.answer(peer, request, body).await }
    });
    tokio::select! {
        () = serve => {}
        signal = stop_signal() => signal?,
    }
    endpoint.close(0u32.into(), b"stopping");
    Ok(())
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupt = tokio::signal::ctrl_c() => interrupt?,
    }
    Ok(())
}

fn read_refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::Io(e) => Refusal::Unavailable(format!("read the stash file: {e}")),
        other => Refusal::NotFound(other.to_string()),
    }
}

impl Service {
    async fn answer(&self, _: Peer, request: Request, body: Bytes) -> Answer {
        match request {
            Request::GetFragment(fetch::GetFragment { fragment }) => {
                let read = self.read(fragment).await;
                let epoch = Epoch(self.epoch.load(Ordering::Relaxed));
                Answer::with_body::<fetch::GetFragment>(
                    read.map(|(header, payload)| (fetch::Fragment { header, epoch }, payload)),
                )
            }
            Request::PutFragment(message::PutFragment { owner, header }) => {
                let done = self.write(|done| Event::Put(owner, header, body, done)).await;
                Answer::to::<message::PutFragment>(done.map(|()| message::Stored))
            }
            Request::DeleteFragments(message::DeleteFragments { fragments }) => {
                let done = self.write(|done| Event::Delete(fragments, done)).await;
                Answer::to::<message::DeleteFragments>(done.map(|()| message::Deleted))
            }
            Request::Prove(prove) => Answer::with_body::<message::Prove>(self.prove(prove).await),
            other => Answer::refuse(Refusal::Invalid(format!("a stash does not answer {}", other.name()))),
        }
    }

    async fn read(&self, fragment: FragmentId) -> Result<(images::fragment::FragmentHeader, Bytes), Refusal> {
        let reader = self.reader.clone();
        let read = tokio::task::spawn_blocking(move || reader.get(fragment)).await;
        read.map_err(|_| Refusal::Failed("reading".into()))?.map_err(read_refusal)
    }

    async fn write(&self, event: impl FnOnce(oneshot::Sender<Result<(), Refusal>>) -> Event) -> Result<(), Refusal> {
        let (done, result) = oneshot::channel();
        self.writer.send(event(done)).await;
        result.await.unwrap_or_else(|_| Err(Refusal::Failed("the stash is stopping".into())))
    }

    async fn prove(&self, prove: message::Prove) -> Result<(message::Proof, Bytes), Refusal> {
        let (_, payload) = self.read(prove.fragment).await?;
        let slice = tokio::task::spawn_blocking(move || {
            let (encoded, _) = bao::encode::encode(&payload);
            let mut slice = Vec::new();
            let extractor = SliceExtractor::new(Cursor::new(encoded), prove.offset.into(), prove.len.into());
            { extractor }.read_to_end(&mut slice).map(|_| slice)
        });
        let slice = slice.await.map_err(|_| Refusal::Failed("proving".into()))?;
        let slice = slice.map_err(|e| Refusal::Failed(e.to_string()))?;
        Ok((message::Proof, slice.into()))
    }
}
