//! The controller's state, shared by all that answers a request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use images::ArrayId;
use images::manifest::{Root, Signed};
use protocol::directory::{Directory, Epoch, Group, Member};
use protocol::identity::Role;
use protocol::io::pool::Pool;
use protocol::message::Refusal;

use super::authority::Authority;
use super::commit::Committer;
use super::fleet::Fleet;
use super::folder::Settings;
use super::machines::Installations;
use super::mass_storage::MassStorage;
use super::session::Sessions;
use super::verify::Jobs;
use crate::catalog::{Catalog, CatalogError};

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
    /// As chosen.
    pub settings: Settings,
    /// Held to read while a segment is placed, to write while anything is deleted: a deletion that is on its way must not meet
    /// the same fragment being stored again.
    pub deleting: tokio::sync::RwLock<()>,
    /// One segment is placed once at a time: tries of the same segment wait for each other here.
    pub placing: [tokio::sync::Mutex<()>; 256],
    /// Held while an image comes or goes.
    pub images: tokio::sync::Mutex<()>,
    /// When this process started.
    pub started: Instant,
    /// CPU of encoding.
    pub encode: protocol::io::stage::Stage,
    directory: Mutex<Option<(Epoch, Signed)>>,
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
    #[must_use]
    pub fn new(
        authority: Authority,
        catalog: Arc<Catalog>,
        mass_storage: MassStorage,
        pool: Arc<Pool>,
        settings: Settings,
    ) -> Self {
        let heartbeat = Duration::from_millis(settings.heartbeat_ms.into());
        Self {
            authority,
            committer: Committer::start(catalog.clone()),
            catalog,
            mass_storage,
            pool,
            fleet: Fleet::new(heartbeat),
            sessions: Sessions::default(),
            installations: Installations::default(),
            jobs: Jobs::default(),
            settings,
            deleting: tokio::sync::RwLock::default(),
            placing: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            images: tokio::sync::Mutex::default(),
            started: Instant::now(),
            encode: protocol::io::stage::Stage::default(),
            directory: Mutex::default(),
            liars: Mutex::default(),
        }
    }

    /// The array's name.
    #[must_use]
    pub fn array(&self) -> ArrayId {
        self.authority.array()
    }

    /// The directory as it is now, signed. Built again only when its epoch moved.
    ///
    /// # Errors
    /// The catalog's.
    pub fn directory(&self) -> Result<(Epoch, Signed), CatalogError> {
        let epoch = self.catalog.epoch()?;
        let mut cached = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((have, signed)) = cached.as_ref().filter(|(have, _)| *have == epoch) {
            return Ok((*have, signed.clone()));
        }
        let stash = |(node, record): (images::NodeId, crate::catalog::NodeRecord)| {
            (record.role == Role::Stash).then_some(Member {
                node,
                addresses: record.addresses,
                capacity: record.capacity,
            })
        };
        let group = |(id, g): (images::GroupId, crate::catalog::GroupRecord)| {
            (id, Group { geometry: g.geometry, members: g.members })
        };
        let directory = Directory {
            array: self.array(),
            epoch,
            members: self.catalog.nodes()?.into_iter().filter_map(stash).collect(),
            groups: self.catalog.groups()?.into_iter().map(group).collect(),
            heads: self.catalog.images()?.into_iter().map(|(name, image)| (name, image.manifest)).collect(),
        };
        let signed = directory.sign(&self.authority.array_key);
        *cached = Some((epoch, signed.clone()));
        Ok((epoch, signed))
    }

    /// The root of an image in the catalog.
    ///
    /// # Errors
    /// If the catalog holds what is not a root, which is damage.
    pub fn root(signed: &Signed) -> Result<Root, CatalogError> {
        Ok(Root::decode(&signed.bytes)?)
    }
}
