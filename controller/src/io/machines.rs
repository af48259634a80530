//! Machines that boot from the network, from the first request until their stash has joined.

use std::collections::HashMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use images::manifest::ImageName;
use protocol::identity::Role;
use protocol::io::credentials::fresh_secret;
use protocol::io::tls::Bearer;
use protocol::io::words::{self, Known};
use protocol::machine::{Facts, Mac};
use protocol::message::Refusal;
use protocol::message::boot::{
    AskBoot, BOOT_IMAGE, BootOrder, BootTicket, Deployment, GetDeployment, Progress, TakeBoot, Told,
};
use protocol::ticket::{Ticket, secret_hash};

use super::controller::{Controller, catalog_refusal};
use super::grant::Via;
use super::planned;
use super::unix_s;
use crate::catalog::{CatalogError, TicketRecord};
use crate::deploy::{AutoApprove, DeployRecord, State};
use crate::hosts::{self, HostRecord};

/// Machines that may be known without anybody's word, and that may become known in a day while new ones are welcome.
const NEW_MAX: usize = 2000;
const DAY_S: u64 = 24 * 3600;
/// A machine's last request is noted this often.
const NOTED_EVERY_S: u64 = 60;
/// How often the controller looks whom to wake.
const LOOK_WHOM_TO_WAKE: Duration = Duration::from_secs(10);
/// A right to install, from the loader's request to the installer's first word.
const INSTALL_TICKET_S: u64 = 15 * 60;
/// A right to join, from the installation to the machine's first start.
const STASH_TICKET_S: u64 = 7 * 24 * 3600;

/// How far an installation is, as it last said.
#[derive(Clone)]
pub struct Live {
    /// What it said.
    pub progress: Progress,
    /// When.
    pub heard: Instant,
    /// Bytes a second of late.
    pub rate: f64,
}

/// A boot server that hears that something is not available takes the controller to be away, for every machine. This concerns one.
fn of_this_machine(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Unavailable(why) => Refusal::Invalid(why),
        other => other,
    }
}

/// Installations under way.
#[derive(Default)]
pub struct Installations(Mutex<HashMap<u32, Live>>);

impl Installations {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<u32, Live>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How far it is.
    #[must_use]
    pub fn get(&self, deployment: u32) -> Option<Live> {
        self.with(|all| all.get(&deployment).cloned())
    }
}

impl Controller {
    fn find_host(&self, facts: &Facts) -> Result<Option<(u32, HostRecord)>, Refusal> {
        let hosts = self.catalog.hosts().map_err(catalog_refusal)?;
        let found = hosts::find(&hosts, facts);
        Ok(hosts.into_iter().find(|(id, _)| Some(*id) == found))
    }

    fn open_deployment(&self, host: u32) -> Result<Option<(u32, DeployRecord)>, Refusal> {
        let all = self.catalog.deployments().map_err(catalog_refusal)?;
        Ok(all.into_iter().rev().find(|(_, d)| d.host == host && d.state.is_open()))
    }

    /// Know a machine by its facts, or make it known; a machine that nobody knows may have a plan waiting.
    async fn meet(&self, facts: &Facts) -> Result<(u32, HostRecord), Refusal> {
        let now = unix_s();
        if let Some((id, host)) = self.find_host(facts)? {
            let mut learnt = host.clone();
            learnt.learn(facts);
            if learnt == host && now < host.last_unix_s + NOTED_EVERY_S {
                return Ok((id, host));
            }
        }
        // Looked up once more inside the transaction: two requests of one machine must not make two.
        let met = Arc::new(Mutex::new(None));
        let (result, facts) = (met.clone(), facts.clone());
        let change = self.committer.change(move |change| {
            let hosts = change.hosts()?;
            let found = hosts::find(&hosts, &facts);
            let known = hosts.iter().find(|(id, _)| Some(*id) == found).map(|(_, host)| host.clone());
            let is_new = known.is_none();
            let auto = change.auto_approve()?.filter(|auto| is_new && now < auto.until_unix_s);
            // A noisy network must not fill the catalog, not even while new machines are welcome.
            let is_waiting = |h: &HostRecord| if auto.is_some() { h.first_unix_s + DAY_S > now } else { !h.approved };
            if is_new && hosts.iter().filter(|(_, h)| is_waiting(h)).count() >= NEW_MAX {
                let why = "too many new machines: `coe-ctl host forget` those that are noise";
                return Err(CatalogError::Conflict(why.into()));
            }
            let mut host = known.unwrap_or_else(|| HostRecord { first_unix_s: now, ..HostRecord::default() });
            host.learn(&facts);
            host.last_unix_s = now;
            host.approved |= auto.is_some();
            let id = change.put_host(found, &host)?;
            if let Some(AutoApprove { plan, .. }) = auto {
                change.add_deployment(&plan.for_host(id, None, fresh_secret(), now))?;
            }
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, is_new));
            Ok(())
        });
        change.await.map_err(catalog_refusal)?;
        let met = met.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (id, is_new) = met.ok_or_else(|| Refusal::Failed("a machine was not noted".into()))?;
        let hosts = self.catalog.hosts().map_err(catalog_refusal)?;
        let found = hosts.into_iter().find(|(known, _)| *known == id);
        let (id, host) = found.ok_or_else(|| Refusal::NotFound("the machine was forgotten".into()))?;
        if is_new {
            tracing::info!(host = %host.name, uuid = ?host.uuid, macs = ?host.macs, approved = host.approved, "a new machine asks to boot");
        }
        Ok((id, host))
    }

    /// Whether a machine was installed while this controller did not hear of it: those who have shares of the image's key know. Without an
    /// answer of so many of them that one would know, nobody is installed: it would be over whatever somebody did on the machine since.
    async fn check_not_done(&self, id: u32, record: &DeployRecord) -> Result<(), Refusal> {
        let images = self.catalog.images().map_err(catalog_refusal)?;
        let shares = images.into_iter().find(|(image, _)| *image == record.image).and_then(|(_, image)| image.offline);
        let Some(shares) = shares else { return Ok(()) };
        let (authority, array) = (self.authority.certificate(), self.array());
        let asked = words::Asked { authority, array, host: record.host, deployment: id };
        match asked.ask(&self.pool, &shares).await {
            Known::NotDone => Ok(()),
            Known::Done(word) => {
                let (who, left) = *word;
                self.hear(&who, left, Via::Stash).await?;
                // It may have been heard before, and opened again since, by a person or from an old catalog. A new deployment says it clearly.
                let _ = self.set_state(id, State::is_open, State::Installed).await;
                Err(Refusal::NotAdmitted("this machine was installed while the controller was away".into()))
            }
            Known::Unknown => Err(Refusal::Unavailable(
                "too few stashes answer that would know whether this machine was installed while the controller was away"
                    .into(),
            )),
        }
    }

    /// Whether a deployment was decided upon anew after something was said of it. Clocks differ by minutes.
    pub(super) fn is_overtaken(&self, who: &Bearer, said_s: u64) -> bool {
        const CLOCKS_DIFFER_S: u64 = 600;
        self.carried_as(who, Via::Stash).is_ok_and(|(_, record)| said_s + CLOCKS_DIFFER_S < record.since_unix_s)
    }

    /// A machine asks to boot from the network.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn ask_boot(&self, ask: AskBoot) -> Result<BootOrder, Refusal> {
        let facts = ask.facts.cleaned();
        let known = if ask.is_dry_run { self.find_host(&facts)? } else { Some(self.meet(&facts).await?) };
        let Some((id, host)) = known else {
            return Ok(BootOrder { host: "a machine that nobody knows".into(), install: false });
        };
        let install = host.approved && self.open_deployment(id)?.is_some_and(|(_, d)| d.is_due(unix_s()));
        Ok(BootOrder { host: host.name, install })
    }

    async fn installer_ticket(&self, deployment: u32) -> Result<Ticket, Refusal> {
        let secret = fresh_secret();
        let (hash, expires_unix_s) = (secret_hash(&secret), unix_s() + INSTALL_TICKET_S);
        let change = self.committer.change(move |change| {
            change.put_grant(hash, deployment)?;
            change.put_ticket(hash, &TicketRecord::new(Role::Installer, expires_unix_s))
        });
        change.await.map_err(catalog_refusal)?;
        let addresses = self.settings.addresses.clone();
        Ok(Ticket { array: self.array(), role: Role::Installer, secret, addresses, issuer: None })
    }

    /// A machine loads the installer.
    ///
    /// # Errors
    /// [`Refusal::NotAdmitted`] if it has nothing to do.
    pub async fn take_boot(&self, take: TakeBoot) -> Result<BootTicket, Refusal> {
        let nobody = || Refusal::NotAdmitted("nobody knows this machine".into());
        let (id, host) = self.find_host(&take.facts.cleaned())?.ok_or_else(nobody)?;
        let open = self.open_deployment(id)?.filter(|(_, d)| host.approved && d.state.wants_boot());
        let (deployment, record) =
            open.ok_or_else(|| Refusal::NotAdmitted(format!("{} has nothing to do", host.name)))?;
        self.check_not_done(deployment, &record).await.map_err(of_this_machine)?;
        let ticket = self.installer_ticket(deployment).await?.to_string();
        tracing::info!(host = %host.name, deployment, "installer loads");
        Ok(BootTicket { ticket, unix_s: unix_s(), rescue: record.rescue })
    }

    /// The deployment that an installer carries out: the one that its certificate names.
    fn carried(&self, who: &Bearer) -> Result<(u32, DeployRecord), Refusal> {
        self.carried_as(who, Via::Itself)
    }

    fn carried_as(&self, who: &Bearer, via: Via) -> Result<(u32, DeployRecord), Refusal> {
        let id = who.deployment.filter(|_| who.identity.role == Role::Installer);
        let id = id.ok_or_else(|| Refusal::NotAdmitted("this installer was not started by a deployment".into()))?;
        if let Some(boot_server) = who.issuer.filter(|_| via == Via::Itself) {
            let known = self.catalog.boot_server(boot_server).map_err(catalog_refusal)?;
            if !known.is_some_and(|known| known.offline) {
                return Err(Refusal::NotAdmitted("the boot server that admitted this installer may not".into()));
            }
        }
        let record = self.catalog.deployment(id).map_err(catalog_refusal)?;
        let record = record.filter(|record| who.host == Some(record.host));
        Ok((id, record.ok_or_else(|| Refusal::NotFound(format!("deployment {id}")))?))
    }

    /// Move a deployment on, if it still may.
    async fn set_state(&self, id: u32, from: fn(&State) -> bool, to: State) -> Result<(), Refusal> {
        let change = self.committer.change(move |change| {
            change.change_deployment(id, |d| {
                if !from(&d.state) {
                    let why = format!("deployment {id} is {}", d.state.as_str());
                    return Err(CatalogError::Conflict(why));
                }
                if d.state != to {
                    d.state = to.clone();
                    d.since_unix_s = unix_s();
                }
                Ok(())
            })
        });
        change.await.map_err(catalog_refusal)
    }

    /// An installer asks what to do.
    ///
    /// # Errors
    /// If nothing is to be done.
    pub async fn deployment(&self, who: &Bearer, get: GetDeployment) -> Result<Deployment, Refusal> {
        let (id, record) = self.carried(who)?;
        let facts = get.facts.cleaned();
        let hosts = self.catalog.hosts().map_err(catalog_refusal)?;
        let found = hosts.into_iter().find(|(host, _)| *host == record.host);
        let (host_id, host) = found.ok_or_else(|| Refusal::NotFound("the machine was forgotten".into()))?;
        if !host.approved || !host.marks().can_be(&facts) {
            tracing::warn!(host = %host.name, ?facts, "another machine asks for this one's deployment");
            return Err(Refusal::NotAdmitted(format!(
                "this machine is not {}, whose deployment it asks for",
                host.name
            )));
        }
        self.check_not_done(id, &record).await?;
        self.set_state(id, |s| s.is_open(), State::Installing).await?;
        let name = host.name.clone();
        let change = self.committer.change(move |change| {
            change.change_host(host_id, |host| {
                host.learn(&facts);
                host.last_unix_s = unix_s();
            })
        });
        change.await.map_err(catalog_refusal)?;
        Ok(planned::order(self.array(), &self.settings.addresses, id, &name, &record))
    }

    /// An installer says how far it is.
    ///
    /// # Errors
    /// If it carries nothing out.
    pub async fn progress(&self, who: &Bearer, progress: Progress, via: Via) -> Result<Told, Refusal> {
        let (id, record) = self.carried_as(who, via)?;
        if record.state == State::Cancelled {
            return Ok(Told::Cancelled);
        }
        if progress.stopped.is_some() && record.state == State::Waiting {
            return Ok(Told::Again);
        }
        if let Some(why) = &progress.stopped
            && record.state == State::Installing
        {
            tracing::warn!(deployment = id, why, "installation stopped");
            self.set_state(id, |s| s.is_open(), State::Stopped(why.clone())).await?;
        }
        if let Some(finishing) = progress.finishing.clone().filter(|f| record.finishing.as_ref() != Some(f)) {
            let change = self.committer.change(move |change| {
                change.change_deployment(id, |d| {
                    d.finishing = Some(finishing.clone());
                    Ok(())
                })
            });
            change.await.map_err(catalog_refusal)?;
        }
        self.installations.with(|all| {
            let before = all.remove(&id);
            let rate = before.as_ref().filter(|b| b.progress.stage == progress.stage).map(|b| {
                let now =
                    progress.done.saturating_sub(b.progress.done) as f64 / b.heard.elapsed().as_secs_f64().max(0.1);
                if b.rate > 0.0 { (b.rate + now) / 2.0 } else { now }
            });
            all.insert(id, Live { progress, heard: Instant::now(), rate: rate.unwrap_or(0.0) });
        });
        Ok(Told::GoOn)
    }

    /// An installation that a deployment started has ended.
    ///
    /// # Errors
    /// If that was not noted, so that the installer says it again.
    pub(super) async fn installation_ended(
        &self,
        who: &Bearer,
        error: Option<&str>,
        said_s: u64,
        via: Via,
    ) -> Result<(), Refusal> {
        if who.deployment.is_none() {
            return Ok(());
        }
        let (id, record) = match self.carried_as(who, via) {
            Ok(carried) => carried,
            // The machine, or its deployment, was forgotten: then nothing is open that could be carried out again.
            Err(Refusal::NotFound(_)) => return Ok(()),
            Err(other) => return Err(other),
        };
        if error.is_some() && self.is_overtaken(who, said_s) {
            return Ok(());
        }
        let is_done = error.is_none();
        let to = error.map_or(State::Installed, |why| State::Stopped(why.into()));
        let change = self.committer.change(move |change| {
            if is_done {
                change.expect_stash(&record, unix_s() + STASH_TICKET_S)?;
            }
            let noted = change.change_deployment(id, |d| {
                if d.state.is_open() && d.state != to {
                    (d.state, d.since_unix_s) = (to.clone(), unix_s());
                }
                Ok(())
            });
            noted.or_else(|e| if matches!(e, CatalogError::Conflict(_)) { Ok(()) } else { Err(e) })
        });
        change.await.map_err(catalog_refusal)
    }

    /// Plan deployments.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] without the image; [`Refusal::Invalid`] if a machine is not approved or has an open deployment.
    pub async fn deploy(&self, plans: Vec<DeployRecord>) -> Result<Vec<u32>, Refusal> {
        let ids = Arc::new(Mutex::new(Vec::new()));
        let given = ids.clone();
        let change = self.committer.change(move |change| {
            let added: Result<Vec<u32>, CatalogError> = plans.iter().map(|plan| change.add_deployment(plan)).collect();
            *given.lock().unwrap_or_else(PoisonError::into_inner) = added?;
            Ok(())
        });
        change.await.map_err(catalog_refusal)?;
        let ids = std::mem::take(&mut *ids.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(ids)
    }

    /// Call a deployment off.
    ///
    /// # Errors
    /// If it is over.
    pub async fn cancel(&self, id: u32) -> Result<(), Refusal> {
        self.set_state(id, State::is_open, State::Cancelled).await
    }

    /// Start a deployment that stopped again.
    ///
    /// # Errors
    /// If it did not stop.
    pub async fn retry(&self, id: u32) -> Result<(), Refusal> {
        // The installer that waits hears of it when it asks next; a machine that was switched off meanwhile boots again.
        self.set_state(id, |s| matches!(s, State::Stopped(_)), State::Waiting).await
    }

    /// The image that a member may install: one that a deployment started only its own, a boot server only boot files.
    ///
    /// # Errors
    /// [`Refusal::NotAdmitted`].
    pub(super) fn check_grant(&self, who: &Bearer, image: &ImageName) -> Result<(), Refusal> {
        let allowed = match who.identity.role {
            Role::Boot => image.name() == BOOT_IMAGE,
            Role::Installer if who.deployment.is_some() || who.issuer.is_some() => {
                let (_, record) = self.carried(who)?;
                record.image == *image && record.state.is_open()
            }
            _ => true,
        };
        if allowed { Ok(()) } else { Err(Refusal::NotAdmitted(format!("{image} is not what this member may install"))) }
    }
}

impl Controller {
    /// Wake machines whose time has come, for ever.
    pub async fn wake_regularly(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_WHOM_TO_WAKE).await;
            if let Err(error) = self.wake_due().await {
                tracing::warn!(error = format!("{error:#}"), "machines were not woken");
            }
        }
    }

    /// Wake machines whose time has come, once each.
    ///
    /// # Errors
    /// If the packets cannot be sent; then they are due still.
    pub async fn wake_due(&self) -> anyhow::Result<()> {
        if self.check_in_charge().is_err() {
            return Ok(());
        }
        let now = unix_s();
        let all = self.catalog.deployments()?;
        let due: Vec<(u32, DeployRecord)> = all.into_iter().filter(|(_, d)| d.wake && d.is_due(now)).collect();
        if due.is_empty() {
            return Ok(());
        }
        let hosts = self.catalog.hosts()?;
        let meant = hosts.into_iter().filter(|(id, _)| due.iter().any(|(_, d)| d.host == *id));
        let macs: Vec<Mac> = meant.flat_map(|(_, host)| host.macs).collect();
        wake(&macs).context("send wake-on-LAN packets")?;
        tracing::info!(machines = due.len(), "woken");
        let woken: Vec<u32> = due.into_iter().map(|(id, _)| id).collect();
        let change = self.committer.change(move |change| {
            woken.iter().try_for_each(|id| {
                change.change_deployment(*id, |d| {
                    d.wake = false;
                    Ok(())
                })
            })
        });
        Ok(change.await?)
    }
}

/// Wake machines: a packet that their network cards know, to the broadcast address of every network here.
///
/// # Errors
/// If it cannot be sent.
fn wake(macs: &[Mac]) -> std::io::Result<()> {
    // One network that cannot be reached is no reason to leave those on others asleep.
    let (mut sent, mut failed) = (false, None);
    for interface in if_addrs::get_if_addrs()?.into_iter().filter(|i| !i.is_loopback()) {
        let if_addrs::IfAddr::V4(network) = interface.addr else { continue };
        // An interface may have no broadcast address set; its network has one all the same.
        let everybody = Ipv4Addr::from(u32::from(network.ip) | !u32::from(network.netmask));
        let send = || {
            let socket = UdpSocket::bind((network.ip, 0))?;
            socket.set_broadcast(true)?;
            for mac in macs {
                let mut packet = vec![0xff; 6];
                packet.extend(mac.0.repeat(16));
                socket.send_to(&packet, (everybody, 9))?;
            }
            Ok(())
        };
        match send() {
            Ok(()) => sent = true,
            Err(error) => failed = Some(error),
        }
    }
    failed.filter(|_| !sent).map_or(Ok(()), Err)
}
