//! Who asks, and what the controller says of them, or, while it is away, the directory.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use protocol::identity::Role;
use protocol::io::credentials::{Credentials, file_of, request_certificate};
use protocol::io::directory::DirectoryKeeper;
use protocol::io::issue::Delegate;
use protocol::io::link::Link;
use protocol::io::pool::Pool;
use protocol::io::tls;
use protocol::machine::{Facts, Mac};
use protocol::message::Call;
use protocol::message::boot::{AskBoot, BootOrder, BootTicket, GetDelegation, TakeBoot};
use protocol::message::member::{GetDirectory, Renew, TheDirectory};
use tokio::sync::Notify;

use super::substitute::{Substitute, unix_s};
use crate::boot::dhcp::Asked;

/// Firmware asks again after a second or two: an answer that comes later is of no use.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// A loader waits longer for its script, and those who know whether its machine is installed already are asked first.
const TAKE_WITHIN: Duration = Duration::from_secs(6);
/// Firmware loads iPXE, and iPXE asks for an address itself, in a few seconds; an emulated machine takes longer.
const IPXE_STARTS_WITHIN: Duration = Duration::from_secs(45);
/// Machines whose facts are remembered between their DHCP request and their loader's.
const REMEMBERED_MAX: usize = 4096;

/// A controller that did not answer is not asked again for so long: machines that start do not wait for long.
const AWAY_FOR: Duration = Duration::from_secs(10);
/// How often the right to admit installers without the controller is renewed, and this boot server's own certificate looked at; and how
/// often it is tried while the controller is away.
const RENEW_EVERY: Duration = Duration::from_secs(6 * 3600);
const RENEW_AGAIN: Duration = Duration::from_secs(15);
/// How often the controller is asked what is new in the directory; the first answer is all of it, perhaps over a slow link.
const LEARN_EVERY: Duration = Duration::from_secs(3);
const DIRECTORY_WITHIN: Duration = Duration::from_secs(30);
/// A certificate with less than this left is renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);

/// The controller, and what is remembered of machines that asked.
pub struct Machines {
    /// This boot server, with its certificate of now.
    member: RwLock<Arc<Credentials>>,
    controller: Link,
    /// The newest directory.
    pub(super) directory: Arc<DirectoryKeeper>,
    /// Acts for the controller while that is away.
    pub(super) substitute: Arc<Substitute>,
    /// Until then the controller is taken to be away.
    away_until: Mutex<Option<Instant>>,
    /// The controller went away: what stashes know may be newer than what it said last.
    pub(super) went_away: Notify,
    remembered: Mutex<HashMap<Mac, Facts>>,
    /// Machines that were given iPXE, and have not been heard as iPXE yet.
    given_ipxe: Mutex<HashSet<Mac>>,
}

impl Machines {
    /// For a boot server with these credentials.
    ///
    /// # Errors
    /// If a socket cannot be had.
    pub(super) fn new(member: Credentials, folder: &Path, admit_at: SocketAddr) -> anyhow::Result<Self> {
        let controller = Link::new(&member).context("open a UDP socket")?;
        let directory = Arc::new(DirectoryKeeper::in_home(folder, &member));
        let pool = Arc::new(Pool::new(controller.endpoint.clone()));
        let substitute = Arc::new(Substitute::open(member.clone(), directory.clone(), folder, admit_at, pool));
        let member = RwLock::new(Arc::new(member));
        Ok(Self {
            member,
            controller,
            directory,
            substitute,
            away_until: Mutex::default(),
            went_away: Notify::new(),
            remembered: Mutex::default(),
            given_ipxe: Mutex::default(),
        })
    }

    /// This boot server.
    pub fn member(&self) -> Arc<Credentials> {
        self.member.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The controller's answer; `None` while it is away, or stands down.
    async fn call<C: Call>(&self, message: C, within: Duration) -> anyhow::Result<Option<C::Reply>> {
        let away_until = *self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        if away_until.is_some_and(|until| Instant::now() < until) {
            return Ok(None);
        }
        self.try_controller(message, within).await
    }

    /// The same, however it was a moment ago.
    async fn try_controller<C: Call>(&self, message: C, within: Duration) -> anyhow::Result<Option<C::Reply>> {
        let away_until = || self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        let error = match tokio::time::timeout(within, self.controller.call(message)).await {
            Ok(Ok((reply, _))) => {
                if away_until().take().is_some() {
                    tracing::info!("the controller is back");
                }
                return Ok(Some(reply));
            }
            Ok(Err(error)) if error.is_absence() => error.to_string(),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => "the controller does not answer".into(),
        };
        if away_until().replace(Instant::now() + AWAY_FOR).is_none() {
            tracing::warn!(error, "the controller is away; machines are answered from the directory");
            self.went_away.notify_one();
        }
        Ok(None)
    }

    /// Learn what is planned while the controller is there to tell, and notice when it is not, for ever: no machine that starts shall wait
    /// for that.
    pub(super) async fn learn_regularly(&self) {
        let mut is_patient = true;
        loop {
            let have = self.directory.mark();
            // What changed is little; all of it may take its time, and an absence is to be noticed soon.
            let within = if is_patient || have.is_none() { DIRECTORY_WITHIN } else { ANSWER_WITHIN };
            let told = self.try_controller(GetDirectory { have }, within).await;
            is_patient = !is_patient && !matches!(told, Ok(Some(_)));
            if let Ok(Some(TheDirectory { update: Some(update), .. })) = told {
                let keeper = self.directory.clone();
                let taken = tokio::task::spawn_blocking(move || keeper.take(update)).await;
                if let Ok(Err(error)) = taken {
                    tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "directory refused");
                }
            }
            tokio::time::sleep(LEARN_EVERY).await;
        }
    }

    /// Renew what the controller gives for a time only, for ever.
    pub(super) async fn renew_regularly(&self, folder: &Path) {
        let mut said = false;
        loop {
            let renewed = self.renew(folder).await;
            let pause = if renewed.is_ok() { RENEW_EVERY } else { RENEW_AGAIN };
            match renewed {
                Ok(true) => tracing::info!("may admit installers while the controller is away"),
                Ok(false) => {
                    tracing::info!("may not admit installers while the controller is away: `coe-ctl boot offline`")
                }
                Err(error) if !said => {
                    tracing::warn!(error = format!("{error:#}"), "the right to admit installers was not renewed");
                }
                Err(_) => {}
            }
            said = pause == RENEW_AGAIN;
            tokio::time::sleep(pause).await;
        }
    }

    async fn renew(&self, folder: &Path) -> anyhow::Result<bool> {
        let (key, csr) = Delegate::request()?;
        let ask = async { anyhow::Ok(self.controller.call(GetDelegation { csr }).await?.0) };
        let given = tokio::time::timeout(ANSWER_WITHIN * 4, ask).await.context("the controller does not answer")??;
        let may = given.certificate.is_some();
        self.substitute.keep(key, given.certificate)?;
        let member = self.member();
        let left = tls::expires_unix_s(&member.certificate).unwrap_or(0) - unix_s() as i64;
        if left < RENEW_BEFORE.as_secs() as i64 {
            let csr = request_certificate(&member.key_pair()?)?;
            let (renewed, _) = self.controller.call(Renew { csr }).await.context("renew the certificate")?;
            let member = Credentials { certificate: renewed.certificate, ..(*member).clone() };
            member.save(&file_of(folder, Role::Boot))?;
            self.controller.renew(&member).await?;
            self.substitute.renew(&member)?;
            *self.member.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(member);
            tracing::info!("certificate renewed");
        }
        Ok(may)
    }

    /// What a machine has to do.
    ///
    /// # Errors
    /// If the controller cannot be asked in time.
    pub async fn ask(&self, asked: &Asked, is_dry_run: bool) -> anyhow::Result<BootOrder> {
        if let Some(mac) = asked.facts.macs.first().filter(|_| !is_dry_run) {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
            let known = remembered.entry(*mac).or_default();
            let uuid = asked.facts.uuid.or(known.uuid);
            *known = Facts { uuid, ..asked.facts.clone() };
        }
        match self.call(AskBoot { facts: asked.facts.clone(), is_dry_run }, ANSWER_WITHIN).await? {
            Some(order) => Ok(order),
            None => self.substitute.ask(&asked.facts),
        }
    }

    /// A machine was given iPXE. Whether it was not heard again: under Secure Boot its firmware refuses what nobody signed, and only the
    /// machine's own screen says so.
    pub async fn stays_silent(&self, mac: Mac) -> bool {
        let with = |work: &dyn Fn(&mut HashSet<Mac>) -> bool| {
            let mut given = self.given_ipxe.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut given)
        };
        // It asks more than once before it loads anything.
        if !with(&|given| given.len() < REMEMBERED_MAX && given.insert(mac)) {
            return false;
        }
        tokio::time::sleep(IPXE_STARTS_WITHIN).await;
        with(&|given| given.remove(&mac))
    }

    /// A machine runs iPXE.
    pub fn runs_ipxe(&self, mac: Mac) {
        self.given_ipxe.lock().unwrap_or_else(PoisonError::into_inner).remove(&mac);
    }

    /// The right to install, for a machine that loads the installer.
    ///
    /// # Errors
    /// If it has nothing to do, or the controller cannot be asked.
    pub async fn take(&self, mac: Mac) -> anyhow::Result<BootTicket> {
        let known = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(&mac).cloned();
        let facts = known.unwrap_or_else(|| Facts { macs: vec![mac], ..Facts::default() });
        match self.call(TakeBoot { facts: facts.clone() }, TAKE_WITHIN).await? {
            Some(ticket) => Ok(ticket),
            None => self.substitute.take(&facts).await,
        }
    }
}
