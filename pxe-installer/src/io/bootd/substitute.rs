//! In the controller's place while it is away: what a machine has to do is in the directory, and the right to install comes from a
//! delegation that the controller gave before.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use images::wire;
use protocol::directory::{Directory, Host, Planned, SignedDirectory};
use protocol::identity::Role;
use protocol::io::credentials::{Credentials, write_private};
use protocol::io::directory::DirectoryKeeper;
use protocol::io::issue::{Admitted, Delegate};
use protocol::io::rpc::{self, Answer, Peer};
use protocol::io::{endpoint, tls};
use protocol::limits::REPORT_LEN_MAX;
use protocol::machine::{Facts, identify};
use protocol::message::boot::{BootOrder, BootTicket};
use protocol::message::image::{LeaveReport, Left, LeftReport, REPORT_PURPOSE, Word};
use protocol::message::{Refusal, Request, enroll};
use protocol::ticket::{Ticket, fresh_secret, secret_hash};
use serde::{Deserialize, Serialize};

/// From the loader's request to the installer's first word.
const TICKET_LASTS: Duration = Duration::from_secs(15 * 60);
/// Tickets that may be out. A network that asks for more is not a room of machines.
const TICKETS_MAX: usize = 4096;

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
    /// Deployments whose machines said that they are done.
    done: Mutex<BTreeSet<u32>>,
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
    ) -> Self {
        let substitute = Self {
            member,
            folder: folder.into(),
            address,
            directory,
            delegate: Mutex::default(),
            out: Mutex::default(),
            done: Mutex::default(),
        };
        if let Ok(bytes) = fs::read(substitute.delegation_file())
            && let Ok(kept) = serde_json::from_slice::<Kept>(&bytes)
        {
            *lock(&substitute.delegate) =
                Delegate::new(&substitute.member, kept.certificate, &kept.key).ok().map(Arc::new);
        }
        if let Ok(bytes) = fs::read(substitute.done_file()) {
            *lock(&substitute.done) = serde_json::from_slice(&bytes).unwrap_or_default();
        }
        substitute
    }

    fn delegation_file(&self) -> PathBuf {
        self.folder.join("delegation.json")
    }

    fn done_file(&self) -> PathBuf {
        self.folder.join("done.json")
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

    fn planned<'a>(&self, host: &'a Host) -> Option<&'a Planned> {
        let planned = host.planned.as_ref()?;
        (!lock(&self.done).contains(&planned.id)).then_some(planned)
    }

    /// What a machine has to do.
    ///
    /// # Errors
    /// If this boot server may not say.
    pub(super) fn ask(&self, facts: &Facts) -> anyhow::Result<BootOrder> {
        let held = self.directory()?;
        let Some((_, host)) = find(held.directory(), &facts.clone().cleaned()) else {
            return Ok(BootOrder { host: "a machine that nobody knows".into(), install: false });
        };
        let is_due = self.planned(host).is_some_and(|planned| planned.not_before_unix_s <= unix_s());
        if is_due {
            // Nobody is started whom nobody can admit.
            self.delegate()?;
        }
        Ok(BootOrder { host: host.name.clone(), install: is_due })
    }

    /// A machine loads the installer.
    ///
    /// # Errors
    /// If it has nothing to do, or this boot server may not admit it.
    pub(super) fn take(&self, facts: &Facts) -> anyhow::Result<BootTicket> {
        let held = self.directory()?;
        let (number, host) = find(held.directory(), &facts.clone().cleaned()).context("nobody knows this machine")?;
        let planned = self.planned(host).with_context(|| format!("{} has nothing to do", host.name))?;
        self.delegate()?;
        let (secret, now) = (fresh_secret(), Instant::now());
        let admitted = Admitted { host: Some(number), deployment: Some(planned.id) };
        let mut out = lock(&self.out);
        out.retain(|_, ticket| now < ticket.until);
        if out.len() >= TICKETS_MAX {
            bail!("too many machines load the installer at once");
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
            array_key: self.member.array_key,
            controller: held.directory().common().controller,
            directory: Some(held.whole()),
        })
    }

    /// An installer says that its machine is done.
    fn hear(&self, peer: Peer, leave: &LeaveReport) -> Result<Left, Refusal> {
        let (authority, array) = (&self.member.authority, self.member.identity.array);
        let statement = &leave.statement;
        let said = statement.verify(REPORT_PURPOSE, authority, array).ok();
        let said = said.filter(|who| statement.bytes.len() <= REPORT_LEN_MAX && peer.bearer == Some(*who));
        let who = said.ok_or_else(|| Refusal::Invalid("this is no report of whoever leaves it".into()))?;
        let left = wire::decode::<LeftReport>(&statement.bytes).map_err(|e| Refusal::Invalid(e.to_string()))?;
        if let (Some(id), Word::Ended(report)) = (who.deployment, &left.word)
            && report.error.is_none()
        {
            let held = self.directory.held();
            let planned = |id: u32| {
                let mut plans = held.iter().flat_map(|held| held.directory().hosts.iter());
                plans.any(|(_, host)| host.planned.as_ref().is_some_and(|planned| planned.id == id))
            };
            let mut done = lock(&self.done);
            // What is not planned any more needs no memory.
            done.retain(|id| planned(*id));
            done.insert(id);
            write_private(&self.done_file(), &serde_json::to_vec(&*done).expect("numbers"))
                .map_err(|e| Refusal::Unavailable(format!("note it: {e}")))?;
            tracing::info!(deployment = id, image = %report.image, "installed, without the controller");
        }
        Ok(Left)
    }

    /// Admit installers until the process is told to stop.
    pub(super) fn listen(self: &Arc<Self>) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let server = tls::server(&self.member, tls::Admit::Strangers, &[tls::ALPN_MEMBER, tls::ALPN_ENROLL])?;
        let client = tls::client(&self.member, tls::ALPN_MEMBER)?;
        let endpoint = endpoint::server(self.address, server, client)
            .with_context(|| format!("listen on UDP {}", self.address))?;
        let substitute = self.clone();
        Ok(rpc::serve(endpoint, self.member.identity.array, move |peer, request, _| {
            let substitute = substitute.clone();
            async move {
                match request {
                    Request::Enroll(ask) => Answer::to::<enroll::Enroll>(substitute.enroll(&ask)),
                    Request::LeaveReport(leave) => Answer::to::<LeaveReport>(substitute.hear(peer, &leave)),
                    other => {
                        Answer::refuse(Refusal::Invalid(format!("a boot server does not answer {}", other.name())))
                    }
                }
            }
        }))
    }
}
