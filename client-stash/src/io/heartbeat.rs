//! Telling the controller that this stash is there, learning the newest directory, and renewing the certificate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use images::fragment::FragmentId;
use protocol::identity::CONTROLLER_NAME;
use protocol::io::credentials::{Credentials, request_certificate};
use protocol::io::directory::DirectoryKeeper;
use protocol::io::pool::Pool;
use protocol::io::{endpoint, rpc, tls};
use protocol::message::image::PassReports;
use protocol::message::member;
use quinn::{Connection, Endpoint};

use super::file::FileStorage;
use super::folder::Folder;
use super::leave::Leave;
use super::switch::Switch;
use super::watch::Manners;
use super::writer::{Event, Writer};
use crate::manners::Level;
use crate::store::Reader;

/// A certificate with less than this left is renewed, once in a month: half a year without a controller is survived, until it is recovered.
const RENEW_BEFORE: Duration = Duration::from_secs(180 * 24 * 3600);
/// Between heartbeats, until the controller says how long.
pub(super) const FIRST_PAUSE_MS: u32 = 2000;
/// Lost fragments in one heartbeat.
const LOST_TOGETHER: usize = 4096;
const RETRY: Duration = Duration::from_secs(2);
/// A controller answers in milliseconds. One that was restarted does not know the old connection, and says nothing on it.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

pub(super) struct Heart {
    pub(super) folder: Folder,
    pub(super) member: Credentials,
    pub(super) endpoint: Endpoint,
    pub(super) reader: Reader<FileStorage>,
    pub(super) writer: Writer,
    pub(super) pool: Arc<Pool>,
    pub(super) directory: Arc<DirectoryKeeper>,
    /// Milliseconds between heartbeats, for others.
    pub(super) heartbeat_ms: Arc<AtomicU32>,
    pub(super) pause: Arc<Switch>,
    pub(super) manners: Arc<Manners>,
    pub(super) leave: Arc<Leave>,
    pub(super) storage: Arc<FileStorage>,
}

impl Heart {
    pub(super) async fn run(mut self) {
        let mut connection: Option<Connection> = None;
        // Damaged fragments wait here until the controller has heard of them.
        let mut lost: Vec<FragmentId> = Vec::new();
        let mut was_away = false;
        loop {
            lost.extend(self.reader.take_damaged());
            let mut told = None;
            let pause = match self.beat(&mut connection, &lost).await {
                Ok((pause, wish)) => {
                    told = wish;
                    self.leave.reached(None);
                    if std::mem::take(&mut was_away) {
                        tracing::info!("controller is back");
                    }
                    if !lost.is_empty() {
                        let heard = lost.drain(..lost.len().min(LOST_TOGETHER)).collect();
                        self.writer.send(Event::Bury(heard)).await;
                    }
                    pause
                }
                Err(error) => {
                    connection = None;
                    self.leave.reached(Some(format!("{error:#}")));
                    if !std::mem::replace(&mut was_away, true) {
                        tracing::warn!(error = format!("{error:#}"), "controller is away, serving goes on");
                    }
                    RETRY
                }
            };
            if self.leave.may_go(told) {
                self.endpoint.close(0u32.into(), b"leaving");
                self.leave.go(&self.storage);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.leave.asked.notified() => {}
            }
        }
    }

    /// Report. The answer is when to do so again, and what the controller that is in charge was told of wishes.
    async fn beat(
        &mut self,
        connection: &mut Option<Connection>,
        lost: &[FragmentId],
    ) -> anyhow::Result<(Duration, Option<member::Wish>)> {
        let link = match connection.as_ref().filter(|c| c.close_reason().is_none()) {
            Some(link) => link.clone(),
            None => {
                if self.left() == Duration::ZERO {
                    self.renew_expired().await.context("renew the expired certificate")?;
                }
                rpc::connect_any(&self.endpoint, &self.controllers(), CONTROLLER_NAME).await?
            }
        };
        *connection = Some(link.clone());
        let report = self.writer.report().await;
        // What is dead makes room when room is needed.
        let (taken, usage) = (report.usage.used.min(report.needed), report.usage);
        let wish = self.leave.wish().or_else(|| self.manners.wish());
        // Where nothing new is taken, there is no room.
        let used = if self.manners.seen().level == Level::Fine { taken } else { usage.capacity };
        let (fragments, fold) = self.reader.fold();
        let again = Duration::from_millis(self.heartbeat_ms.load(Ordering::Relaxed).into());
        let beat = member::Heartbeat {
            port: self.endpoint.local_addr()?.port(),
            capacity: usage.capacity,
            used,
            fragments,
            fold,
            directory: self.directory.mark(),
            lost: lost.iter().take(LOST_TOGETHER).copied().collect(),
            aside: self.manners.aside(self.pause.is_on()),
            wish,
            serves_installers: self.manners.served_within(again),
        };
        let call = rpc::call(&link, beat, &[]);
        let (ack, _) = tokio::time::timeout(ANSWER_WITHIN, call).await.context("wait for the controller")??;
        if ack.in_charge {
            self.leave.hear(ack.to_hand_over);
        }
        if let Some(update) = ack.directory
            && let Err(error) = self.directory.take(update)
        {
            tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "directory refused");
        }
        self.heartbeat_ms.store(ack.again_ms, Ordering::Relaxed);
        self.renew_if_due(&link).await?;
        if !ack.in_charge {
            anyhow::bail!("the controller stands down: see `coe-ctl status`");
        }
        if let Err(error) = self.pass_reports(&link).await {
            tracing::warn!(error = format!("{error:#}"), "reports were not passed on");
        }
        // Only a controller that took note of a wish to leave says what is still needed here.
        Ok((Duration::from_millis(ack.again_ms.into()), wish.filter(|_| ack.to_hand_over.is_some())))
    }

    /// Pass on what installers left here while the controller was away.
    async fn pass_reports(&self, link: &Connection) -> anyhow::Result<()> {
        let reports = self.folder.reports();
        loop {
            let statements = reports.some();
            if statements.is_empty() {
                return Ok(());
            }
            let call = rpc::call(link, PassReports { statements: statements.clone() }, &[]);
            tokio::time::timeout(ANSWER_WITHIN, call).await.context("pass reports on")??;
            reports.forget(&statements);
            tracing::info!(reports = statements.len(), "reports passed on to the controller");
        }
    }

    /// Where the controller may be: where the directory says, and where it was when this stash joined.
    fn controllers(&self) -> Vec<String> {
        let mut all = self.directory.held().map(|held| held.directory().common().controller).unwrap_or_default();
        all.extend(self.member.controller.iter().filter(|known| !all.contains(known)).cloned().collect::<Vec<_>>());
        all
    }

    /// How long the certificate still lasts.
    fn left(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let expires = tls::expires_unix_s(&self.member.certificate).and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
        Duration::from_secs(expires).saturating_sub(now)
    }

    async fn renew_if_due(&mut self, link: &Connection) -> anyhow::Result<()> {
        if self.left() > RENEW_BEFORE {
            return Ok(());
        }
        let csr = request_certificate(&self.member.key_pair()?)?;
        let (renewed, _) = rpc::call(link, member::Renew { csr }, &[]).await.context("renew the certificate")?;
        self.use_certificate(renewed.certificate)
    }

    /// After a long time away: nobody accepts the certificate any more, and the key alone must do.
    async fn renew_expired(&mut self) -> anyhow::Result<()> {
        let (config, _) = tls::enroll_client(self.member.identity.array)?;
        let endpoint = endpoint::client(config)?;
        let link = rpc::connect_any(&endpoint, &self.controllers(), CONTROLLER_NAME).await?;
        let csr = request_certificate(&self.member.key_pair()?)?;
        let (renewed, _) = rpc::call(&link, member::Renew { csr }, &[]).await?;
        self.use_certificate(renewed.certificate)
    }

    fn use_certificate(&mut self, certificate: Vec<u8>) -> anyhow::Result<()> {
        self.member.certificate = certificate;
        self.folder.save_credentials(&self.member)?;
        let server = tls::server(&self.member, tls::Admit::Members, &[tls::ALPN_MEMBER])?;
        self.endpoint.set_server_config(Some(endpoint::server_config(server)));
        let client = tls::client(&self.member, tls::ALPN_MEMBER)?;
        self.pool.renew(endpoint::client_config(client.clone()));
        self.endpoint.set_default_client_config(endpoint::client_config(client));
        tracing::info!("certificate renewed");
        Ok(())
    }
}
