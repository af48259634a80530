//! Serving: QUIC for members, HTTPS for people, and the work that nobody asks for.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use protocol::directory::SignedDirectory;
use protocol::identity::Role;
use protocol::io::nearby::Nearby;
use protocol::io::pool::Pool;
use protocol::io::rpc::{self, Answer, Peer};
use protocol::io::{endpoint, tls};
use protocol::message::{Refusal, Request, boot, enroll, image, member, publish};
use redb::Database;

use super::api;
use super::controller::Controller;
use super::folder::Folder;
use super::grant::Via;
use super::mass_storage::MassStorage;
use super::rival::tell;
use crate::catalog::Catalog;

/// The controller's own certificate is renewed this often; it lasts thirty days.
const RENEW_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Members that are told of the directory at the same time, and how long each may take.
const ANNOUNCE_TOGETHER: usize = 32;
const ANNOUNCE_WITHIN: Duration = Duration::from_secs(10);
/// After a start, so long members are asked what they hold before this controller signs anything new.
const ASKED_WITHIN: Duration = Duration::from_secs(15);

/// Serve until the process is told to stop.
///
/// # Errors
/// If the folder, the catalog or the port cannot be had.
pub async fn run(folder: Folder) -> anyhow::Result<()> {
    let settings = folder.settings()?;
    let authority = folder.authority()?;
    let member = authority.credentials(Role::Controller, settings.addresses.clone())?;
    let database =
        Database::create(folder.catalog_file()).context("open the catalog: does another controller use it?")?;
    let catalog = Arc::new(Catalog::new(database)?);
    let mass_storage = MassStorage::folder(&folder.path().join(&settings.mass_storage)).context("open mass storage")?;
    let server = tls::server(&member, tls::Admit::Strangers, &[tls::ALPN_MEMBER, tls::ALPN_ENROLL])?;
    let client = tls::client(&member, tls::ALPN_MEMBER)?;
    let endpoint = endpoint::server(settings.listen, server, client)
        .with_context(|| format!("listen on UDP {}", settings.listen))?;
    let pool = Arc::new(Pool::new(endpoint.clone()));
    let listen = settings.listen;
    let controller =
        Arc::new(Controller::new(authority, catalog, mass_storage, pool, settings, folder.sealed_authority()?)?);
    controller.look_at_mass_storage().context("look at mass storage")?;
    if controller.catalog.nodes()?.is_empty() {
        controller.has_asked.store(true, Relaxed);
    }
    controller.pool.learn(controller.directory()?.directory());
    let https = api::Server::bind(listen, &member).await.with_context(|| format!("listen on TCP {listen}"))?;
    tracing::info!(array = %controller.array(), %listen, "controller serves");

    // Whoever was told another address before this controller took over finds it on the same network.
    let nearby = Nearby::new(controller.array());
    nearby.announce(Role::Controller, member.identity.node, listen);
    tokio::spawn(announce(controller.clone()));
    tokio::spawn(controller.clone().sweep_regularly());
    tokio::spawn(controller.clone().repair_regularly());
    tokio::spawn(controller.clone().mend_regularly());
    tokio::spawn(controller.clone().mend_copies_regularly());
    tokio::spawn(controller.clone().restripe_regularly());
    tokio::spawn(controller.clone().look_after_regularly());
    tokio::spawn(controller.clone().wake_regularly());
    tokio::spawn(renew(controller.clone(), endpoint.clone(), https.acceptor()));
    let array = controller.array();
    let for_api = controller.clone();
    let for_gone = controller.clone();
    let handler = move |peer, request, body| {
        let controller = controller.clone();
        async move { answer(&controller, peer, request, body).await }
    };
    let gone = move |peer: Peer| for_gone.sessions.hung_up(peer.connection);
    let serve = rpc::serve_until_gone(endpoint.clone(), array, handler, gone);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = serve => {}
        result = https.serve(for_api) => result.context("serve HTTPS")?,
        _ = terminate.recv() => {}
        interrupt = tokio::signal::ctrl_c() => interrupt?,
    }
    endpoint.close(0u32.into(), b"stopping");
    Ok(())
}

/// Tell all members the newest directory, and with it where this controller is: those that knew it elsewhere would never come by
/// themselves. After a start they are asked first, with what was signed before; only then anything new is signed, and told.
pub(super) async fn announce(controller: Arc<Controller>) {
    let Ok(first) = controller.directory() else { return };
    let mut asking = std::pin::pin!(announce_one(&controller, &first));
    // In a large fleet many are away; some answers suffice.
    let all_asked = tokio::time::timeout(ASKED_WITHIN, &mut asking).await.is_ok();
    controller.has_asked.store(true, Relaxed);
    match controller.directory() {
        Ok(next) if next.mark() != first.mark() => announce_one(&controller, &next).await,
        _ if !all_asked => asking.await,
        _ => {}
    }
}

async fn announce_one(controller: &Arc<Controller>, directory: &Arc<SignedDirectory>) {
    let members: Vec<images::NodeId> = directory.directory().members.iter().map(|(node, _)| *node).collect();
    let (mut tasks, mut told) = (tokio::task::JoinSet::new(), 0);
    for node in members {
        if tasks.len() >= ANNOUNCE_TOGETHER {
            told += u32::from(matches!(tasks.join_next().await, Some(Ok(true))));
        }
        let (controller, directory) = (controller.clone(), directory.clone());
        tasks.spawn(async move {
            let tell = async {
                let connection = controller.pool.get(node).await?;
                let theirs = tell(&connection, &directory).await?;
                if controller.is_strange(theirs).unwrap_or(false) {
                    controller.clone().look_at(node).await;
                }
                Ok::<(), rpc::CallError>(())
            };
            tokio::time::timeout(ANNOUNCE_WITHIN, tell).await.is_ok_and(|told| told.is_ok())
        });
    }
    told += tasks.join_all().await.into_iter().map(u32::from).sum::<u32>();
    tracing::info!(told, epoch = %directory.mark().epoch, "directory announced to stashes");
}

async fn renew(controller: Arc<Controller>, endpoint: quinn::Endpoint, acceptor: api::Acceptor) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        let renewed = (|| -> anyhow::Result<()> {
            let addresses = controller.settings.addresses.clone();
            let member = controller.authority.credentials(Role::Controller, addresses)?;
            let server = tls::server(&member, tls::Admit::Strangers, &[tls::ALPN_MEMBER, tls::ALPN_ENROLL])?;
            endpoint.set_server_config(Some(endpoint::server_config(server)));
            controller.pool.renew(endpoint::client_config(tls::client(&member, tls::ALPN_MEMBER)?));
            acceptor.renew(&member)
        })();
        match renewed {
            Ok(()) => tracing::info!("certificate renewed"),
            Err(error) => tracing::error!(error = format!("{error:#}"), "certificate not renewed"),
        }
    }
}

async fn answer(controller: &Arc<Controller>, peer: Peer, request: Request, body: Bytes) -> Answer {
    // Not even an image: clients may know a newer one, and an installer that is refused asks them.
    // Nor a report: what this catalog notes now may be dropped, and stashes keep it.
    let asks_only = matches!(request, Request::Heartbeat(_) | Request::Renew(_));
    if !asks_only && let Err(refusal) = controller.check_in_charge() {
        return Answer::refuse(refusal);
    }
    let Some(bearer) = peer.bearer else {
        return match request {
            Request::Enroll(enroll) => Answer::to::<enroll::Enroll>(controller.enroll(enroll).await),
            Request::Renew(renew) => Answer::to::<member::Renew>(controller.renew_expired(&renew)),
            _ => Answer::refuse(Refusal::NotAdmitted("a certificate is needed".into())),
        };
    };
    let who = bearer.identity;
    match request {
        Request::Heartbeat(beat) => Answer::to::<member::Heartbeat>(controller.heartbeat(who.node, peer, beat).await),
        Request::Renew(renew) => Answer::to::<member::Renew>(controller.renew(who, &renew)),
        Request::Begin(begin) => Answer::to::<publish::Begin>(controller.begin(begin, peer.connection)),
        Request::Have(have) => Answer::to::<publish::Have>(controller.have(&have)),
        Request::PutSegment(put) => Answer::to::<publish::PutSegment>(controller.put_segment(put, body).await),
        Request::PutRuns(put) => Answer::to::<publish::PutRuns>(controller.put_runs(put)),
        Request::PutSpans(put) => Answer::to::<publish::PutSpans>(controller.put_spans(put)),
        Request::Finish(finish) => Answer::to::<publish::Finish>(controller.finish(finish).await),
        Request::GetImage(get) => Answer::to::<image::GetImage>(controller.grant(&bearer, &get)),
        Request::GetPage(get) => Answer::with_body::<image::GetPage>(controller.page(&get)),
        Request::Report(left) => Answer::to::<image::LeftReport>(controller.hear(&bearer, left, Via::Itself).await),
        Request::PassReports(pass) => Answer::to::<image::PassReports>(controller.passed(who, &pass).await),
        Request::AskBoot(ask) => Answer::to::<boot::AskBoot>(controller.ask_boot(ask).await),
        Request::TakeBoot(take) => Answer::to::<boot::TakeBoot>(controller.take_boot(take).await),
        Request::GetDeployment(get) => Answer::to::<boot::GetDeployment>(controller.deployment(&bearer, get).await),
        Request::Progress(progress) => {
            Answer::to::<boot::Progress>(controller.progress(&bearer, progress, Via::Itself).await)
        }
        Request::GetDirectory(get) => Answer::to::<member::GetDirectory>(controller.tell_directory(who, &get)),
        Request::GetDelegation(get) => Answer::to::<boot::GetDelegation>(controller.delegate(who, &get).await),
        other => Answer::refuse(Refusal::Invalid(format!("a controller does not answer {}", other.name()))),
    }
}
