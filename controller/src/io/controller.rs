//! The controller's state, shared by all that answers a request.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use images::manifest::{ImageName, Root, Signed};
use images::{ArrayId, wire};
use protocol::directory::{Common, Contents, Directory, Epoch, Group, Head, Line, Member, Policy, SignedDirectory};
use protocol::identity::Role;
use protocol::io::pool::Pool;
use protocol::limits::DIRECTORY_LEN_MAX;
use protocol::message::Refusal;

use super::authority::Authority;
use super::commit::Committer;
use super::fleet::Fleet;
use super::folder::Settings;
use super::habits::Habits;
use super::inventory::Inventories;
use super::machines::Installations;
use super::mass_storage::MassStorage;
use super::notes::Notes;
use super::planned;
use super::repair::Repairs;
use super::restripe::Restripes;
use super::session::Sessions;
use super::verify::Jobs;
use crate::catalog::{Catalog, CatalogError, ImageRecord};

/// Everything a request may need.
pub struct Controller {
    /// Issues and signs.
    pub authority: Authority,
    /// Remembers.
    pub catalog: Arc<Catalog>,
    /// Changes the catalog in bulk.
    pub committer: Committer,
    /// Keeps whole copies.
    pub mass_storage: MassStorage,
    /// Connections to stashes.
    pub pool: Arc<Pool>,
    /// Who is up.
    pub fleet: Fleet,
    /// Publications under way.
    pub sessions: Sessions,
    /// Installations under way.
    pub installations: Installations,
    /// Verifications under way.
    pub jobs: Jobs,
    /// Members that are being replaced.
    pub repairs: Repairs,
    /// Images that are cut anew.
    pub restripes: Restripes,
    /// What stashes have.
    pub inventories: Inventories,
    /// When stashes usually are up, and what they fail with.
    pub habits: Habits,
    /// As chosen.
    pub settings: Settings,
    /// Held to read while a segment is placed, to write while anything is deleted: a deletion that is on its way must not meet
    /// the same fragment being stored again.
    pub deleting: tokio::sync::RwLock<()>,
    /// One segment is placed once at a time: tries of the same segment wait for each other here.
    pub placing: [tokio::sync::Mutex<()>; 256],
    /// Held while reports that waited with a stash are noted.
    pub passing: tokio::sync::Mutex<()>,
    /// Held while an image comes or goes.
    pub images: tokio::sync::Mutex<()>,
    /// When this process started.
    pub started: Instant,
    /// CPU of encoding.
    pub encode: protocol::io::stage::Stage,
    sealed_authority: Vec<u8>,
    /// Names what this start of this controller signs.
    pub(super) line: Line,
    /// Whether clients were asked, after the start, if they hold what this catalog does not know.
    pub(super) has_asked: AtomicBool,
    /// Members that claimed directories which nobody signed.
    pub(super) disbelieved: Mutex<HashSet<images::NodeId>>,
    /// What members hold and this catalog does not know. With one, this controller stands down.
    pub(super) rival: Mutex<Option<SignedDirectory>>,
    directory: Mutex<Option<Arc<SignedDirectory>>>,
    /// Stashes that the last installations caught lying.
    pub liars: Mutex<HashMap<images::NodeId, String>>,
}

/// A failure of the catalog, as the asker hears it.
#[must_use]
pub fn catalog_refusal(error: CatalogError) -> Refusal {
    match error {
        CatalogError::Conflict(what) => Refusal::Invalid(what),
        other => {
            tracing::error!(error = format!("{:#}", anyhow::Error::new(other)), "catalog failed");
            Refusal::Failed("the catalog failed; the controller's log says why".into())
        }
    }
}

impl Controller {
    /// Put the parts together.
    ///
    /// # Errors
    /// If the catalog fails, or the directory in it is not this array's.
    pub fn new(
        authority: Authority,
        catalog: Arc<Catalog>,
        mass_storage: MassStorage,
        pool: Arc<Pool>,
        settings: Settings,
        sealed_authority: Vec<u8>,
    ) -> anyhow::Result<Self> {
        let kept = catalog.directory()?;
        let key = authority.array_key.public();
        let directory = kept.map(|bytes| SignedDirectory::open(&bytes, authority.array(), &key)).transpose();
        let directory = directory.context("read the directory in the catalog")?;
        let mut line = [0; 8];
        aws_lc_rs::rand::fill(&mut line).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        let heartbeat = Duration::from_millis(settings.heartbeat_ms.into());
        let habits = Habits::load(&catalog)?;
        Ok(Self {
            authority,
            committer: Committer::start(catalog.clone()),
            catalog,
            mass_storage,
            pool,
            fleet: Fleet::new(heartbeat),
            sessions: Sessions::default(),
            installations: Installations::default(),
            jobs: Jobs::default(),
            repairs: Repairs::default(),
            restripes: Restripes::default(),
            inventories: Inventories::default(),
            habits,
            settings,
            deleting: tokio::sync::RwLock::default(),
            placing: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            passing: tokio::sync::Mutex::default(),
            images: tokio::sync::Mutex::default(),
            started: Instant::now(),
            encode: protocol::io::stage::Stage::default(),
            sealed_authority,
            line: Line(line),
            has_asked: AtomicBool::new(false),
            disbelieved: Mutex::default(),
            rival: Mutex::default(),
            directory: Mutex::new(directory.map(Arc::new)),
            liars: Mutex::default(),
        })
    }

    /// The array's name.
    #[must_use]
    pub fn array(&self) -> ArrayId {
        self.authority.array()
    }

    /// The directory as it is now. Built, signed and kept anew only when its epoch moved.
    ///
    /// # Errors
    /// The catalog's.
    pub fn directory(&self) -> Result<Arc<SignedDirectory>, CatalogError> {
        let epoch = self.catalog.epoch()?;
        let is_in_charge = self.rival.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        let mut held = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is signed before clients were asked whether they know better.
        let may_sign = is_in_charge && self.has_asked.load(Relaxed);
        if let Some(signed) = held.as_ref().filter(|d| d.mark().epoch >= epoch || !may_sign) {
            return Ok(signed.clone());
        }
        let next = Directory::next(held.as_deref(), self.array(), self.line, epoch.max(Epoch(1)), self.contents()?);
        if let Some(signed) = held.as_ref()
            && (next.check(self.array()).is_err() || wire::encode(&next).len() > DIRECTORY_LEN_MAX)
        {
            tracing::error!(epoch = %next.epoch, "the directory has become too large for clients: they keep the one before");
            return Ok(signed.clone());
        }
        let signed = Arc::new(next.sign(&self.authority.array_key));
        self.write_directory(&signed)?;
        *held = Some(signed.clone());
        Ok(signed)
    }

    /// Kept before anybody sees it: an epoch must not have two contents.
    fn write_directory(&self, signed: &SignedDirectory) -> Result<(), CatalogError> {
        self.catalog.change(|change| change.put_directory(signed.mark().epoch, &signed.encode()))
    }

    /// Have this directory from now on.
    pub(super) fn keep_directory(&self, signed: SignedDirectory) -> Result<(), CatalogError> {
        let mut held = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_directory(&signed)?;
        *held = Some(Arc::new(signed));
        Ok(())
    }

    /// What the directory is to say.
    pub(super) fn contents(&self) -> Result<Contents, CatalogError> {
        let stashes = self.catalog.nodes()?.into_iter().filter(|(_, record)| record.role == Role::Stash);
        let groups = self.catalog.groups()?.into_iter().filter(|(_, group)| group.segments > 0);
        let (hosts, deployments) = (self.catalog.hosts()?, self.catalog.deployments()?);
        let images: BTreeMap<ImageName, ImageRecord> = self.catalog.images()?.into_iter().collect();
        let mut orders = planned::seal(
            self.array(),
            &self.authority.owner_key,
            &self.settings.addresses,
            &hosts,
            &images,
            deployments,
        );
        let approved = hosts.into_iter().filter(|(_, host)| host.approved);
        let boot_servers = self.catalog.boot_servers()?.into_iter().filter(|(_, server)| server.offline);
        let head = |(name, image): (ImageName, ImageRecord)| {
            let sealed_key = self.authority.owner_key.seal_manifest_key(&image.manifest, &image.key);
            let (manifest, number, root, offline) = (image.manifest, image.number, image.root, image.offline);
            (name, Head { manifest, number, root, sealed_key, offline })
        };
        Ok(Contents {
            common: Common {
                controller: self.settings.addresses.clone(),
                sealed_authority: self.sealed_authority.clone(),
                last_host: self.catalog.last_host()?,
                last_deployment: self.catalog.last_deployment()?,
                policy: Policy { boot_servers: boot_servers.map(|(node, _)| node).collect() },
            },
            members: stashes.map(|(id, r)| (id, Member { addresses: r.addresses, capacity: r.capacity })).collect(),
            groups: groups.map(|(id, g)| (id, Group { geometry: g.geometry, members: g.members })).collect(),
            heads: images.into_iter().map(head).collect(),
            hosts: approved.map(|(id, host)| (id, host.listed(orders.planned.remove(&id)))).collect(),
            user_data: orders.user_data,
            notes: Notes::of(&self.catalog)?.seal(&self.authority.owner_key),
        })
    }

    /// The root of an image in the catalog.
    ///
    /// # Errors
    /// If the catalog holds what is not a root, which is damage.
    pub fn root(signed: &Signed) -> Result<Root, CatalogError> {
        Ok(Root::decode(&signed.bytes)?)
    }
}
