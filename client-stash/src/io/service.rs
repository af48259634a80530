//! Serving a stash: fragments in and out over QUIC.

use std::io::{Cursor, Read as _};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use bao::encode::SliceExtractor;
use bytes::Bytes;
use images::NodeId;
use images::fragment::FragmentId;
use protocol::directory::Epoch;
use protocol::identity::Role;
use protocol::io::credentials::Credentials;
use protocol::io::directory::DirectoryKeeper;
use protocol::io::nearby::Nearby;
use protocol::io::pool::Pool;
use protocol::io::rpc::{self, Answer, Peer};
use protocol::io::{endpoint, tls};
use protocol::limits::{LIST_MAX, REPORT_LEN_MAX};
use protocol::message::member::Aside;
use protocol::message::{Refusal, Request, fetch, image, member as about, store as message};
use tokio::sync::oneshot;

use super::control::Control;
use super::file::FileStorage;
use super::folder::Folder;
use super::gossip::Gossip;
use super::heartbeat;
use super::leave::Leave;
use super::rebuild::Rebuilder;
use super::reports::ReportKeeper;
use super::scrub::Scrubber;
use super::shares::ShareKeeper;
use super::switch::Switch;
use super::watch::{self, Manners};
use super::words::WordKeeper;
use super::writer::{Event, Writer};
use crate::release;
use crate::store::{Reader, StoreError};

/// How long a fragment for repair waits for installers: less than whoever asks waits before asking somebody else, too.
const REPAIR_WAITS: Duration = Duration::from_millis(400);

struct Service {
    own: NodeId,
    reader: Reader<FileStorage>,
    writer: Writer,
    directory: Arc<DirectoryKeeper>,
    shares: Arc<ShareKeeper>,
    reports: ReportKeeper,
    words: Arc<WordKeeper>,
    pause: Arc<Switch>,
    manners: Arc<Manners>,
    rebuilder: Rebuilder,
    member: Credentials,
}

/// Serve a stash until the process is told to stop.
///
/// # Errors
/// If the folder, the file or the port cannot be had.
pub async fn run(folder: Folder, is_same_machine: bool) -> anyhow::Result<()> {
    if folder.has_left() {
        let is_own_file = folder.credentials().and_then(|member| folder.open_store(&member)).is_ok();
        folder.erase(is_own_file).context("remove what is left of this stash")?;
        tracing::info!("this stash has left the array; nothing of it is here any more");
        return Ok(());
    }
    let member = folder.credentials()?;
    folder.settings()?;
    folder.wait_for_stash_file().await;
    folder.check_machine(&member, is_same_machine)?;
    let settings = folder.settings()?;
    let mut store = folder.open_store(&member)?;
    let usage = store.usage();
    let reader = store.reader();
    let storage = store.storage();
    let manners = Manners::new(settings.limits.clone());
    let writer = Writer::start(store, folder.clone(), settings.floors().stop, manners.clone());
    let directory = Arc::new(folder.directory(&member));
    let shares = Arc::new(folder.shares()?);
    let words = Arc::new(folder.words());
    let pause = Arc::new(folder.pause());
    let leave = Arc::new(Leave::of(folder.clone()));
    let watching = watch::watch(folder.clone(), settings.clone(), manners.clone(), writer.clone(), storage.clone());
    tokio::spawn(watching);
    let scrubber = Scrubber::new(reader.clone(), pause.clone(), manners.clone(), folder.scrub_file());
    scrubber.start();
    let control = Control {
        writer: writer.clone(),
        pause: pause.clone(),
        scrubber,
        manners: manners.clone(),
        leave: leave.clone(),
        folder: folder.clone(),
    };
    match control.listen(folder.path()) {
        Ok(listening) => drop(tokio::spawn(listening)),
        Err(error) => tracing::warn!(%error, "the owner of this machine cannot speak to this service"),
    }
    let server = tls::server(&member, tls::Admit::Members, &[tls::ALPN_MEMBER])?;
    let client = tls::client(&member, tls::ALPN_MEMBER)?;
    let endpoint = endpoint::server(settings.listen, server, client)
        .with_context(|| format!("listen on UDP {}", settings.listen))?;
    tracing::info!(node = %member.identity.node, listen = %endpoint.local_addr()?, fragments = usage.fragments,
        used = usage.used, capacity = usage.capacity, "stash serves");
    let (array, own) = (member.identity.array, member.identity.node);
    let nearby = Arc::new(Nearby::new(array));
    nearby.announce(Role::Stash, own, endpoint.local_addr()?);
    let pool = Arc::new(Pool::with_nearby(endpoint.clone(), nearby));
    let rebuilder = Rebuilder {
        reader: reader.clone(),
        writer: writer.clone(),
        pool: pool.clone(),
        directory: directory.clone(),
        manners: manners.clone(),
        fetcher: OnceLock::new(),
    };
    let service = Arc::new(Service {
        own,
        reader: reader.clone(),
        writer: writer.clone(),
        directory: directory.clone(),
        shares: shares.clone(),
        reports: folder.reports(),
        words: words.clone(),
        pause: pause.clone(),
        manners: manners.clone(),
        rebuilder,
        member: member.clone(),
    });
    let heartbeat_ms = Arc::new(AtomicU32::new(heartbeat::FIRST_PAUSE_MS));
    let gossip = Gossip { own, pool: pool.clone(), directory: directory.clone(), heartbeat_ms: heartbeat_ms.clone() };
    let heart = heartbeat::Heart {
        folder,
        member,
        endpoint: endpoint.clone(),
        reader,
        writer,
        pool,
        directory: directory.clone(),
        heartbeat_ms,
        pause,
        manners,
        leave,
        storage,
    };
    tokio::spawn(heart.run());
    tokio::spawn(gossip.run());
    tokio::spawn(forget_removed(directory, shares, words));
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

/// Forget the shares of images that were removed, and deployments that are over, as soon as a directory says so.
async fn forget_removed(directory: Arc<DirectoryKeeper>, shares: Arc<ShareKeeper>, words: Arc<WordKeeper>) {
    let mut changes = directory.watch();
    let mut before = changes.borrow_and_update().clone();
    while changes.changed().await.is_ok() {
        let now = changes.borrow_and_update().clone();
        if let (Some(old), Some(new)) = (&before, &now) {
            words.forget_closed(new.directory());
            if let Err(error) = shares.forget_removed(old.directory(), new.directory()) {
                tracing::warn!(%error, "shares of removed images are still here");
                continue;
            }
        }
        before = now;
    }
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

fn too_much() -> Refusal {
    Refusal::Unavailable("the owner of its machine lets it be only so fast, and others are first".into())
}

impl Service {
    /// Carry out what waits for the disk.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let service = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&service)).await;
        done.unwrap_or_else(|_| Err(Refusal::Failed("the stash failed".into())))
    }

    async fn answer(self: &Arc<Self>, peer: Peer, request: Request, body: Bytes) -> Answer {
        let is_work = matches!(
            request,
            Request::GetFragment(_) | Request::PutFragment(_) | Request::Prove(_) | Request::Rebuild(_)
        );
        let stores = is_work || matches!(request, Request::DeleteFragments(_));
        match self.manners.aside(self.pause.is_on()) {
            Some(Aside::Away) if stores => {
                return Answer::refuse(Refusal::Unavailable("its medium is away".into()));
            }
            Some(Aside::Paused) if is_work => {
                return Answer::refuse(Refusal::Unavailable("the owner of its machine has paused this stash".into()));
            }
            Some(Aside::Metered) if is_work => {
                return Answer::refuse(Refusal::Unavailable("the network of its machine costs money".into()));
            }
            _ if is_work && self.manners.is_choked() => return Answer::refuse(too_much()),
            _ => {}
        }
        match request {
            Request::GetFragment(fetch::GetFragment { fragment }) => {
                match peer.bearer.map(|bearer| bearer.identity.role) {
                    Some(Role::Stash | Role::Controller) => self.manners.after_installers(REPAIR_WAITS).await,
                    _ => self.manners.serves_installer(),
                }
                let read = self.read(fragment).await;
                let read = match self.wait(read.as_ref().map_or(0, |(_, payload)| payload.len())).await {
                    Ok(()) => read,
                    Err(refusal) => Err(refusal),
                };
                let epoch = self.directory.mark().map_or(Epoch(0), |mark| mark.epoch);
                Answer::with_body::<fetch::GetFragment>(
                    read.map(|(header, payload)| (fetch::Fragment { header, epoch }, payload)),
                )
            }
            Request::PutFragment(message::PutFragment { owner, header }) => {
                let done = match self.wait(body.len()).await {
                    Ok(()) => self.write(|done| Event::Put(owner, header, body, done)).await,
                    Err(refusal) => Err(refusal),
                };
                Answer::to::<message::PutFragment>(done.map(|()| message::Stored))
            }
            Request::DeleteFragments(message::DeleteFragments { fragments, directory }) => {
                let done = match release::may_delete(self.directory.held().as_deref(), directory) {
                    Ok(()) => self.write(|done| Event::Delete(fragments, done)).await,
                    Err(why) => Err(Refusal::Unavailable(why.into())),
                };
                Answer::to::<message::DeleteFragments>(done.map(|()| message::Deleted))
            }
            Request::Rebuild(rebuild) => Answer::to::<message::Rebuild>(self.rebuilder.rebuild(rebuild).await),
            Request::ListFragments(list) => {
                let most = LIST_MAX.min(list.most as usize);
                let fragments = self.reader.inventory_behind(list.after, most);
                Answer::to::<message::ListFragments>(Ok(message::Fragments { fragments }))
            }
            Request::Prove(prove) => Answer::with_body::<message::Prove>(self.prove(prove).await),
            Request::GetDirectory(get) => Answer::to::<about::GetDirectory>(Ok(self.directory.tell(&get))),
            Request::OfferDirectory(offer) => {
                let heard = self.blocking(move |service| Ok(service.directory.hear(offer))).await;
                Answer::to::<about::OfferDirectory>(heard)
            }
            Request::PutShare(put) => {
                let failed = |e| Refusal::Failed(format!("keep a share: {e}"));
                let kept = self
                    .blocking(move |service| service.shares.put(put.manifest, (put.share, put.secret)).map_err(failed));
                Answer::to::<message::PutShare>(kept.await.map(|()| message::Stored))
            }
            Request::LeaveReport(leave) => {
                let kept = self.blocking(move |service| service.keep_report(peer, &leave)).await;
                Answer::to::<image::LeaveReport>(kept)
            }
            Request::GetWord(get) => {
                let last = self.blocking(move |service| Ok(service.words.last(get.deployment))).await;
                Answer::to::<message::GetWord>(last.map(|last| message::TheWord { last }))
            }
            Request::GetShare(get) => {
                let released = self.blocking(move |service| service.release(peer, &get)).await;
                Answer::to::<message::GetShare>(released)
            }
            other => Answer::refuse(Refusal::Invalid(format!("a stash does not answer {}", other.name()))),
        }
    }

    /// Be no faster than this machine's owner wants.
    async fn wait(&self, bytes: usize) -> Result<(), Refusal> {
        let wait = self.manners.wait(bytes as u64, true).ok_or_else(too_much)?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// Keep a report for the controller, if whoever leaves it made it.
    fn keep_report(&self, peer: Peer, leave: &image::LeaveReport) -> Result<image::Left, Refusal> {
        let statement = &leave.statement;
        let (authority, array) = (&self.member.authority, self.member.identity.array);
        let said = statement.verify(image::REPORT_PURPOSE, authority, array);
        let said = said.ok().filter(|who| statement.bytes.len() <= REPORT_LEN_MAX && peer.bearer == Some(*who));
        let who = said.ok_or_else(|| Refusal::Invalid("this is no report of whoever leaves it".into()))?;
        let failed = |e| Refusal::Unavailable(format!("keep the report: {e}"));
        let held = self.directory.held();
        let deployment = release::counts(held.as_ref().map(|held| held.directory()), &who);
        let as_last_word = match deployment {
            Some(deployment) => self.words.keep(deployment, statement).map(|()| true).map_err(failed)?,
            None => false,
        };
        self.reports.keep(&who, statement).map_err(failed)?;
        Ok(image::Left { as_last_word })
    }

    /// Give a share away, if that may be, and not before it is written down.
    fn release(&self, peer: Peer, get: &message::GetShare) -> Result<message::TheShare, Refusal> {
        let who = peer.bearer.ok_or_else(|| Refusal::NotAdmitted("a certificate is needed".into()))?;
        let held = self.directory.held();
        let directory = held.as_ref().map(|held| held.directory());
        let allowed = release::check(directory, self.own, &who, get, |id| self.words.is_done(id));
        let refused = match allowed {
            Ok(release::Release::Share(_)) => None,
            Ok(release::Release::Done(_)) => Some("this deployment is done"),
            Err(why) => Some(why),
        };
        let recorded = self.shares.record(&who, get, refused);
        recorded.map_err(|e| Refusal::Unavailable(format!("the audit record cannot be written: {e}")))?;
        let allowed = allowed.map_err(|why| {
            tracing::warn!(node = %who.identity.node, host = ?who.host, image = %get.image, why, "share of a key refused");
            Refusal::NotAdmitted(why.into())
        })?;
        let deployment = match allowed {
            release::Release::Share(deployment) => deployment,
            release::Release::Done(id) => {
                let last = self.words.last(id).ok_or_else(|| Refusal::Unavailable("it is being forgotten".into()))?;
                return Ok(message::TheShare::Done(last));
            }
        };
        let kept = self.shares.get(get.manifest);
        let (share, secret) = kept.ok_or_else(|| Refusal::NotFound(format!("a share of the key of {}", get.image)))?;
        tracing::info!(node = %who.identity.node, host = ?who.host, image = %get.image, "share of a key released");
        let token = deployment.zip(get.order).map(|(id, tag)| secret.token(id, &tag));
        Ok(message::TheShare::Given { share, token, left: deployment.and_then(|id| self.words.last(id)) })
    }

    async fn read(&self, fragment: FragmentId) -> Result<(images::fragment::FragmentHeader, Bytes), Refusal> {
        let reader = self.reader.clone();
        let read = tokio::task::spawn_blocking(move || reader.get(fragment)).await;
        let read = read.map_err(|_| Refusal::Failed("reading".into()))?;
        if matches!(read, Err(StoreError::Io(_))) {
            self.manners.note_failure();
        }
        read.map_err(read_refusal)
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
