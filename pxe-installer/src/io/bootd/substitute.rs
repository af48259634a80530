//! In the controller's place while it is away: what a machine has to do is in the directory, and the right to install comes from a
//! delegation that the controller gave before.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use protocol::directory::{Directory, Host, Planned, SignedDirectory};
use protocol::identity::Role;
use protocol::io::credentials::fresh_secret;
use protocol::io::credentials::{Credentials, write_private};
use protocol::io::directory::DirectoryKeeper;
use protocol::io::issue::{Admitted, Delegate};
use protocol::io::pool::Pool;
use protocol::io::rpc::{self, Answer};
use protocol::io::words::{self, Known};
use protocol::io::{endpoint, tls};
use protocol::machine::{Facts, identify};
use protocol::message::boot::{BootOrder, BootTicket};
use protocol::message::{Refusal, Request, enroll};
use protocol::ticket::{Ticket, secret_hash};
use quinn::Endpoint;
use serde::{Deserialize, Serialize};

/// From the loader's request to the installer's first word.
const TICKET_LASTS: Duration = Duration::from_secs(15 * 60);
/// Tickets that may be out for one machine: firmware and loaders ask more than once.
const TICKETS_OF_ONE_MAX: usize = 4;

/// The right to admit installers, as it lies on the disk, mode 0600.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// PKCS #8 DER.
    key: Vec<u8>,
    /// DER.
    certificate: Vec<u8>,
}

/// A ticket that is out.
struct Out {
    admitted: Admitted,
    until: Instant,
}

/// A boot server that acts for its controller.
pub(super) struct Substitute {
    member: Credentials,
    folder: PathBuf,
    /// Where installers reach this boot server.
    address: SocketAddr,
    directory: Arc<DirectoryKeeper>,
    delegate: Mutex<Option<Arc<Delegate>>>,
    out: Mutex<HashMap<[u8; 32], Out>>,
    /// Deployments that are done, as holders of shares said.
    done: Mutex<BTreeSet<u32>>,
    /// Connections to stashes.
    pool: Arc<Pool>,
    /// Where installers are admitted; with the certificate of now.
    endpoint: OnceLock<Endpoint>,
}

pub(super) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The machine that these facts are of.
fn find<'a>(directory: &'a Directory, facts: &Facts) -> Option<(u32, &'a Host)> {
    let number = identify(directory.hosts.iter().map(|(number, host)| (*number, host.marks())), facts)?;
    Some((number, directory.hosts.get(&number)?))
}

impl Substitute {
    pub(super) fn open(
        member: Credentials,
        directory: Arc<DirectoryKeeper>,
        folder: &Path,
        address: SocketAddr,
        pool: Arc<Pool>,
    ) -> Self {
        let substitute = Self {
            member,
            folder: folder.into(),
            address,
            directory,
            delegate: Mutex::default(),
            out: Mutex::default(),
            done: Mutex::default(),
            pool,
            endpoint: OnceLock::new(),
        };
        if let Ok(bytes) = fs::read(substitute.delegation_file())
            && let Ok(kept) = serde_json::from_slice::<Kept>(&bytes)
        {
            *lock(&substitute.delegate) =
                Delegate::new(&substitute.member, kept.certificate, &kept.key).ok().map(Arc::new);
        }
        substitute
    }

    fn delegation_file(&self) -> PathBuf {
        self.folder.join("delegation.json")
    }

    fn directory(&self) -> anyhow::Result<Arc<SignedDirectory>> {
        self.directory.held().context("the controller is away, and no directory has been seen here yet")
    }

    /// Keep what the controller gave; `None`: it gives nothing any more.
    pub(super) fn keep(&self, key: Vec<u8>, certificate: Option<Vec<u8>>) -> anyhow::Result<()> {
        let Some(certificate) = certificate else {
            *lock(&self.delegate) = None;
            return match fs::remove_file(self.delegation_file()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).context("forget the delegation")
                }
                _ => Ok(()),
            };
        };
        let kept = Kept { key, certificate };
        write_private(&self.delegation_file(), &serde_json::to_vec(&kept)?).context("keep the delegation")?;
        *lock(&self.delegate) = Some(Arc::new(Delegate::new(&self.member, kept.certificate, &kept.key)?));
        Ok(())
    }

    fn delegate(&self) -> anyhow::Result<Arc<Delegate>> {
        let delegate = lock(&self.delegate).clone();
        let delegate = delegate
            .context("the controller is away, and this boot server was not given its right to admit installers")?;
        if delegate.expires_unix_s() <= unix_s() as i64 {
            bail!("the controller has been away for so long that the right to admit installers has expired");
        }
        Ok(delegate)
    }

    /// Whether a deployment was carried out. Holders of shares of its image's key know; too few answers are no answer.
    async fn is_done(&self, held: &SignedDirectory, host: u32, planned: &Planned) -> anyhow::Result<bool> {
        let id = planned.id;
        if lock(&self.done).contains(&id) {
            return Ok(true);
        }
        let shares = held.directory().heads.get(&planned.image).and_then(|head| head.offline.as_ref());
        let shares = shares.context("the image of a planned deployment may not be installed without the controller")?;
        self.pool.learn(held.directory());
        let (authority, array) = (&self.member.authority, self.member.identity.array);
        match (words::Asked { authority, array, host, deployment: id }).ask(&self.pool, shares).await {
            Known::NotDone => Ok(false),
            Known::Done(_) => {
                lock(&self.done).insert(id);
                Ok(true)
            }
            Known::Unknown => bail!("too few stashes answer that would know whether this machine is installed already"),
        }
    }

    /// What a machine has to do. Firmware does not wait for an answer: whether what is planned was done already is asked when the loader comes.
    ///
    /// # Errors
    /// If this boot server may not say.
    pub(super) fn ask(&self, facts: &Facts) -> anyhow::Result<BootOrder> {
        let held = self.directory()?;
        let Some((_, host)) = find(held.directory(), &facts.clone().cleaned()) else {
            return Ok(BootOrder { host: "a machine that nobody knows".into(), install: false });
        };
        let due = host.planned.as_ref().filter(|planned| planned.not_before_unix_s <= unix_s());
        let install = due.is_some_and(|planned| !lock(&self.done).contains(&planned.id));
        if install {
            // Nobody is started whom nobody can admit.
            self.delegate()?;
        }
        Ok(BootOrder { host: host.name.clone(), install })
    }

    /// A machine loads the installer.
    ///
    /// # Errors
    /// If it has nothing to do, or this boot server may not admit it.
    pub(super) async fn take(&self, facts: &Facts) -> anyhow::Result<BootTicket> {
        let held = self.directory()?;
        let (number, host) = find(held.directory(), &facts.clone().cleaned()).context("nobody knows this machine")?;
        let planned = host.planned.as_ref().with_context(|| format!("{} has nothing to do", host.name))?;
        self.delegate()?;
        if self.is_done(&held, number, planned).await? {
            bail!("{} is installed already", host.name);
        }
        let (secret, now) = (fresh_secret(), Instant::now());
        let admitted = Admitted { host: Some(number), deployment: Some(planned.id) };
        let mut out = lock(&self.out);
        out.retain(|_, ticket| now < ticket.until);
        let own = || out.iter().filter(|(_, ticket)| ticket.admitted == admitted);
        if own().count() >= TICKETS_OF_ONE_MAX {
            // Whoever asks again and again gets the newest; a machine uses what it got last.
            let oldest = own().min_by_key(|(_, ticket)| ticket.until).map(|(hash, _)| *hash);
            oldest.map(|hash| out.remove(&hash));
        }
        out.insert(secret_hash(&secret), Out { admitted, until: now + TICKET_LASTS });
        let (array, issuer) = (self.member.identity.array, Some(self.member.identity.node));
        let ticket = Ticket { array, role: Role::Installer, secret, addresses: vec![self.address.to_string()], issuer };
        tracing::info!(host = %host.name, deployment = planned.id, "installer loads, without the controller");
        Ok(BootTicket { ticket: ticket.to_string(), unix_s: unix_s(), rescue: planned.rescue })
    }

    fn enroll(&self, request: &enroll::Enroll) -> Result<enroll::Enrolled, Refusal> {
        let away = |e: anyhow::Error| Refusal::Unavailable(e.to_string());
        let (held, delegate) = (self.directory().map_err(away)?, self.delegate().map_err(away)?);
        let unused =
            lock(&self.out).remove(&secret_hash(&request.secret)).filter(|ticket| Instant::now() < ticket.until);
        let refused = || Refusal::NotAdmitted("the ticket is unknown, used or expired: start the machine again".into());
        let admitted = unused.ok_or_else(refused)?.admitted;
        let issued =
            delegate.admit(&request.csr, admitted, SystemTime::now()).map_err(|e| Refusal::Invalid(e.to_string()))?;
        let (node, certificate, own) = issued;
        tracing::info!(%node, host = ?admitted.host, deployment = ?admitted.deployment, "installer admitted, without the controller");
        Ok(enroll::Enrolled {
            node,
            certificate,
            chain: vec![own],
            controller: held.directory().common().controller,
            directory: Some(held.whole()),
        })
    }

    /// Admit installers with a fresh certificate from now on.
    pub(super) fn renew(&self, member: &Credentials) -> anyhow::Result<()> {
        if let Some(endpoint) = self.endpoint.get() {
            let server = tls::server(member, tls::Admit::Strangers, &[tls::ALPN_MEMBER, tls::ALPN_ENROLL])?;
            endpoint.set_server_config(Some(endpoint::server_config(server)));
        }
        self.pool.renew(endpoint::client_config(tls::client(member, tls::ALPN_MEMBER)?));
        Ok(())
    }

    /// Admit installers until the process is told to stop.
    pub(super) fn listen(self: &Arc<Self>) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let server = tls::server(&self.member, tls::Admit::Strangers, &[tls::ALPN_MEMBER, tls::ALPN_ENROLL])?;
        let client = tls::client(&self.member, tls::ALPN_MEMBER)?;
        let endpoint = endpoint::server(self.address, server, client)
            .with_context(|| format!("listen on UDP {}", self.address))?;
        let substitute = self.clone();
        self.endpoint.get_or_init(|| endpoint.clone());
        Ok(rpc::serve(endpoint, self.member.identity.array, move |_, request, _| {
            let substitute = substitute.clone();
            async move {
                match request {
                    Request::Enroll(ask) => Answer::to::<enroll::Enroll>(substitute.enroll(&ask)),
                    other => {
                        Answer::refuse(Refusal::Invalid(format!("a boot server does not answer {}", other.name())))
                    }
                }
            }
        }))
    }
}
