//! The routes and their shapes.

use std::sync::{Arc, PoisonError};

use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use data_encoding::HEXLOWER;
use images::GroupId;
use images::manifest::{ImageName, Root};
use protocol::identity::Role;
use protocol::io::credentials::fresh_secret;
use protocol::message::Refusal;
use protocol::ticket::{Ticket, secret_hash};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::machines;
use super::policy;
use super::repair::{self, Health};
use super::restripe;
use super::tls_listener::Caller;
use crate::catalog::{GroupRecord, TicketRecord};
use crate::io::controller::{Controller, catalog_refusal};
use crate::io::sweep::Swept;
use crate::io::unix_s;
use crate::io::verify::{Problem, Verification};

/// The whole API.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "COE controller",
        description = "Images, stashes and tickets of one array. Needs an admin's client certificate."
    ),
    paths(
        status,
        nodes,
        list_images,
        show_image,
        remove_image,
        overrule,
        create_ticket,
        start_verify,
        get_verify,
        gc,
        machines::list_boot_servers,
        machines::change_boot_server,
        machines::list_hosts,
        machines::import_hosts,
        machines::change_host,
        machines::forget_host,
        machines::list_deployments,
        machines::deploy,
        machines::cancel,
        machines::retry,
        repair::get_repair,
        repair::take_mass_storage,
        repair::change_nodes,
        restripe::list_restripes,
        restripe::restripe,
        policy::list_policies,
        policy::change_policy,
        policy::clear_policy,
        policy::explain,
        policy::label_nodes
    ),
    components(schemas(Problem))
)]
pub struct Api;

/// The array at a glance.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The array's name.
    pub array: String,
    /// The directory's epoch.
    pub epoch: u64,
    /// Why this controller stands down, if it does.
    pub stands_down: Option<String>,
    /// Published images.
    pub images: u64,
    /// It was started just now: stashes had no time yet to say that they are up.
    pub is_starting: bool,
    /// Known stashes.
    pub stashes: u64,
    /// Stashes that are up.
    pub stashes_up: u64,
    /// Bytes that all stashes offer.
    pub capacity: u64,
    /// Bytes in use on stashes that were heard.
    pub used: u64,
    /// Durable segments.
    pub segments: u64,
    /// Their sealed bytes, before parity.
    pub sealed: u64,
    /// Known chunks.
    pub chunks: u64,
    /// Segments on their way.
    pub pending: u64,
    /// Segments that no image refers to.
    pub unreferenced: u64,
    /// Fragments and copies that must still be deleted.
    pub trash: u64,
    /// Segments in groups that images need, of which fewer than k holders are up, and that mass storage does not have.
    pub unreadable_now: u64,
    /// How safe everything is.
    pub health: Health,
    /// Images that are to be cut anew.
    pub restripe: Vec<super::restripe::RestripeInfo>,
    /// Seconds since the controller started.
    pub up_s: u64,
    /// CPU that parity took since then.
    pub encode: Encode,
}

/// CPU of encoding.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Encode {
    /// Sealed bytes encoded.
    pub bytes: u64,
    /// CPU seconds.
    pub cpu_s: f64,
}

/// A stash.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeInfo {
    /// Its id.
    pub node: String,
    /// Where it was last heard from.
    pub addresses: Vec<String>,
    /// Whether it is up.
    pub up: bool,
    /// Why it stands aside: `paused` by its machine's owner, `metered`, or its medium is `away`.
    pub aside: Option<String>,
    /// Seconds since it was heard; none if not since the controller started.
    pub heard_s: Option<u64>,
    /// Bytes it offers.
    pub capacity: u64,
    /// Bytes in use.
    pub used: Option<u64>,
    /// Live fragments.
    pub fragments: Option<u64>,
    /// What it did, if it returned wrong data.
    pub lied: Option<String>,
    /// `up`, `away`, `paused`, `metered`, `draining`, `removing`, `leaving`, `lost` or `distrusted`.
    pub state: String,
    /// Fragments that it holds for the array.
    pub to_hand_over: u64,
    /// What it behaves like: `new`, `always on`, `office hours`, `laptop` or `rare`; or that it is a device of `mass storage`.
    pub class: String,
    /// What it fails with.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// In place of a class.
const MASS_STORAGE: &str = "mass storage";

/// An image in a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageInfo {
    /// `name:tag`.
    pub image: String,
    /// Disk length, bytes.
    pub disk_len: u64,
    /// Bytes in use.
    pub in_use: u64,
    /// Sealed bytes of its segments, before parity; segments that it shares count in full.
    pub sealed: u64,
    /// SHA-256 of its contents.
    pub content: String,
    /// When it was published, seconds since 1970.
    pub created_unix_s: u64,
}

/// A partition.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PartitionInfo {
    /// Number.
    pub number: u32,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Type: a GUID, or two digits for an MBR.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// An image in full.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageDetail {
    /// As in a list.
    #[serde(flatten)]
    pub info: ImageInfo,
    /// BLAKE3 of the manifest's root.
    pub manifest: String,
    /// Plain SHA-256 of the file, where one was checked.
    pub source_sha256: Option<String>,
    /// `gpt`, `mbr` or `none`.
    pub table: String,
    /// Bytes of a sector.
    pub sector_size: u64,
    /// What was wrong with the table.
    pub damage: Option<String>,
    /// Partitions.
    pub partitions: Vec<PartitionInfo>,
    /// Segments.
    pub segments: u64,
    /// Chunk bytes, before compression.
    pub data: u64,
}

/// A person's word that this catalog is right.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct OverruleRequest {
    /// The epoch that clients hold: nobody overrules what they did not see.
    pub epoch: u64,
}

/// It counts.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct OverruleResponse {
    /// The directory's epoch now.
    pub epoch: u64,
}

/// What a ticket is for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TicketRequest {
    /// `stash`, `installer`, `boot` or `admin`.
    pub role: String,
    /// How long it can be used, seconds.
    pub valid_s: u64,
    /// For an installer: the machine that it is for.
    #[serde(default)]
    pub host: Option<String>,
    /// For a boot server: whether it may admit installers while the controller is away.
    #[serde(default)]
    pub offline: bool,
}

/// A ticket.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TicketResponse {
    /// Paste this.
    pub ticket: String,
    /// When it ends, seconds since 1970.
    pub expires_unix_s: u64,
}

/// What to verify.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct VerifyRequest {
    /// `name:tag`; without one everything.
    pub image: Option<String>,
    /// Read every copy on mass storage, too.
    #[serde(default)]
    pub deep: bool,
}

/// A verification that runs.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct VerifyStarted {
    /// Ask for it with this.
    pub job: u64,
}

/// How to collect garbage.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct GcRequest {
    /// Only say what would be deleted.
    #[serde(default)]
    pub dry_run: bool,
    /// Also what images that were cut anew had before. An installation that began with it fails.
    #[serde(default)]
    pub superseded: bool,
}

/// What a sweep did.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SweepResult {
    /// Segments forgotten.
    pub segments: u64,
    /// Fragments and copies deleted.
    pub deleted: u64,
    /// Fragments that wait for their holder.
    pub waiting: u64,
    /// Segments that nothing refers to were kept: an image is being published.
    pub is_publishing: bool,
}

impl From<Swept> for SweepResult {
    fn from(s: Swept) -> Self {
        Self { segments: s.segments, deleted: s.deleted, waiting: s.waiting, is_publishing: s.is_publishing }
    }
}

/// A refusal as HTTP.
pub(super) struct Refused(Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            Refusal::NotAllowed(_) | Refusal::NotAdmitted(_) => StatusCode::FORBIDDEN,
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Exists(_) => StatusCode::CONFLICT,
            Refusal::Invalid(_) => StatusCode::BAD_REQUEST,
            Refusal::Full | Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(serde_json::json!({ "error": self.0.to_string() }))).into_response()
    }
}

pub(super) type Answer<T> = Result<Json<T>, Refused>;
pub(super) type Shared = State<Arc<Controller>>;

pub(super) fn router(controller: Arc<Controller>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/nodes", get(nodes).post(repair::change_nodes))
        .route("/v1/nodes/labels", post(policy::label_nodes))
        .route("/v1/repair", get(repair::get_repair))
        .route("/v1/restripe", get(restripe::list_restripes).post(restripe::restripe))
        .route("/v1/mass-storage", post(repair::take_mass_storage))
        .route("/v1/policies", get(policy::list_policies).post(policy::change_policy).delete(policy::clear_policy))
        .route("/v1/explain", get(policy::explain))
        .route("/v1/images", get(list_images))
        .route("/v1/images/{name}/{tag}", get(show_image).delete(remove_image))
        .route("/v1/tickets", post(create_ticket))
        .route("/v1/verify", post(start_verify))
        .route("/v1/verify/{job}", get(get_verify))
        .route("/v1/gc", post(gc))
        .route("/v1/overrule", post(overrule))
        .route("/v1/boot-servers", get(machines::list_boot_servers))
        .route("/v1/boot-servers/{node}", post(machines::change_boot_server))
        .route("/v1/hosts", get(machines::list_hosts).post(machines::import_hosts))
        .route("/v1/hosts/{host}", post(machines::change_host).delete(machines::forget_host))
        .route("/v1/deployments", get(machines::list_deployments).post(machines::deploy))
        .route("/v1/deployments/{id}/cancel", post(machines::cancel))
        .route("/v1/deployments/{id}/retry", post(machines::retry))
        .route("/openapi.json", get(|| async { Json(Api::openapi()) }))
        .layer(middleware::from_fn_with_state(controller.clone(), only_in_charge))
        .layer(middleware::from_fn(only_admins))
        .with_state(controller)
}

async fn only_admins(ConnectInfo(caller): ConnectInfo<Caller>, request: Request, next: Next) -> Response {
    match caller.0 {
        Some(who) if who.role == Role::Admin => next.run(request).await,
        Some(who) => Refused(Refusal::NotAllowed(who.role)).into_response(),
        None => Refused(Refusal::NotAdmitted("a certificate of this array is needed".into())).into_response(),
    }
}

/// A controller that stands down answers questions, and takes a person's word to go on.
async fn only_in_charge(State(c): Shared, request: Request, next: Next) -> Response {
    let changes = request.method() != axum::http::Method::GET && request.uri().path() != "/v1/overrule";
    match c.check_in_charge() {
        Err(refusal) if changes => Refused(refusal).into_response(),
        _ => next.run(request).await,
    }
}

/// Go on with this catalog, whatever clients hold
#[utoipa::path(post, path = "/v1/overrule", request_body = OverruleRequest,
    responses((status = 200, body = OverruleResponse), (status = 400)))]
async fn overrule(State(c): Shared, Json(request): Json<OverruleRequest>) -> Answer<OverruleResponse> {
    let epoch = c.overrule(request.epoch)?;
    tokio::spawn(crate::io::service::announce(c));
    Ok(Json(OverruleResponse { epoch: epoch.0 }))
}

/// The array at a glance
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
async fn status(State(c): Shared) -> Answer<Status> {
    let (nodes, totals) =
        (c.catalog.nodes().map_err(catalog_refusal)?, c.catalog.segment_totals().map_err(catalog_refusal)?);
    let (groups, of_groups) =
        (c.catalog.groups().map_err(catalog_refusal)?, c.catalog.group_totals().map_err(catalog_refusal)?);
    let (up, encode) = (c.fleet.up(), c.encode.report());
    let needed = c.needed()?;
    let is_needed = |(id, _): &(&GroupId, &GroupRecord)| needed.groups.contains(id);
    let unreadable = |(id, group): (&GroupId, &GroupRecord)| {
        let online = group.members.iter().filter(|node| up.contains_key(node)).count();
        let copied = of_groups.get(id).map_or(0, |totals| totals.copies);
        if online < group.geometry.data() { group.segments.saturating_sub(copied) } else { 0 }
    };
    Ok(Json(Status {
        array: c.array().to_string(),
        epoch: c.catalog.epoch().map_err(catalog_refusal)?.0,
        stands_down: c.check_in_charge().err().map(|refusal| refusal.to_string()),
        images: needed.images.len() as u64,
        is_starting: !c.knows_who_is_up(),
        stashes: nodes.len() as u64,
        stashes_up: up.len() as u64,
        capacity: nodes.iter().map(|(_, n)| n.capacity).sum(),
        used: nodes.iter().filter_map(|(id, _)| c.fleet.pulse(*id)).map(|(p, _)| p.used).sum(),
        segments: totals.segments,
        sealed: totals.sealed,
        chunks: c.catalog.chunk_count().map_err(catalog_refusal)?,
        pending: c.catalog.pending().map_err(catalog_refusal)?.len() as u64,
        unreferenced: totals.unused,
        trash: c.catalog.trash_count().map_err(catalog_refusal)?,
        unreadable_now: groups.iter().filter(is_needed).map(unreadable).sum(),
        health: c.health(&needed)?,
        restripe: c.restripe_infos()?,
        up_s: c.started.elapsed().as_secs(),
        encode: Encode { bytes: encode.bytes, cpu_s: encode.cpu_s },
    }))
}

/// All stashes
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = [NodeInfo])))]
async fn nodes(State(c): Shared) -> Answer<Vec<NodeInfo>> {
    let liars = c.liars.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let standings = c.catalog.standings().map_err(catalog_refusal)?;
    let (labels, habits) = (c.catalog.labels().map_err(catalog_refusal)?, c.habits.attendance());
    let (devices, held) = (c.catalog.devices().map_err(catalog_refusal)?, c.catalog.folds().map_err(catalog_refusal)?);
    let info = |(id, record): (images::NodeId, crate::catalog::NodeRecord)| {
        let pulse = c.fleet.pulse(id);
        let standing = standings.get(&id).cloned().unwrap_or_default();
        let aside = pulse.and_then(|(p, _)| p.aside).map(|aside| aside.to_string());
        let state = match () {
            () if standing.lost => "lost",
            () if c.fleet.is_double(id) => "double",
            () if standing.distrusted => "distrusted",
            () if standing.leaving => "leaving",
            () if standing.removed => "removing",
            () if !pulse.is_some_and(|(_, up)| up) => aside.as_deref().unwrap_or("away"),
            () if standing.draining => "draining",
            () => "up",
        };
        NodeInfo {
            state: state.into(),
            to_hand_over: held.get(&id).map_or(0, |(count, _)| *count),
            class: if devices.contains(&id) { MASS_STORAGE.into() } else { habits.class(id).to_string() },
            labels: labels.get(&id).cloned().unwrap_or_default(),
            node: id.to_string(),
            addresses: record.addresses.iter().map(ToString::to_string).collect(),
            up: pulse.is_some_and(|(_, up)| up),
            aside: aside.clone(),
            heard_s: pulse.map(|(p, _)| p.at.elapsed().as_secs()),
            capacity: record.capacity,
            used: pulse.map(|(p, _)| p.used),
            fragments: pulse.map(|(p, _)| p.fragments),
            lied: liars.get(&id).cloned(),
        }
    };
    Ok(Json(c.catalog.nodes().map_err(catalog_refusal)?.into_iter().map(info).collect()))
}

impl ImageInfo {
    /// What a root says of its image.
    #[must_use]
    pub fn of(root: &Root) -> Self {
        Self {
            image: root.image.to_string(),
            disk_len: root.disk_len,
            in_use: root.totals.in_use,
            sealed: root.totals.sealed,
            content: root.content.to_string(),
            created_unix_s: root.created_unix_s,
        }
    }
}

impl ImageDetail {
    /// All that a root says of its image.
    #[must_use]
    pub fn of(root: &Root) -> Self {
        let partition = |p: &images::disk::Partition| PartitionInfo {
            number: p.number,
            offset: p.offset,
            len: p.len,
            kind: p.kind.clone(),
            name: p.name.clone(),
        };
        Self {
            info: ImageInfo::of(root),
            manifest: root.id().to_string(),
            source_sha256: root.source_sha256.map(|d| HEXLOWER.encode(&d)),
            table: root.disk.table.to_string(),
            sector_size: root.disk.sector_size.bytes(),
            damage: root.disk.damage.map(|d| format!("{d:?}")),
            partitions: root.disk.partitions.iter().map(partition).collect(),
            segments: root.totals.segments,
            data: root.totals.data,
        }
    }
}

/// All images
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = [ImageInfo])))]
async fn list_images(State(c): Shared) -> Answer<Vec<ImageInfo>> {
    let images = c.catalog.images().map_err(catalog_refusal)?;
    let info = |(_, record): (ImageName, crate::catalog::ImageRecord)| {
        let root = Controller::root(&record.signed).map_err(catalog_refusal)?;
        Ok::<_, Refusal>(ImageInfo::of(&root))
    };
    Ok(Json(images.into_iter().map(info).collect::<Result<_, _>>()?))
}

/// One image
#[utoipa::path(get, path = "/v1/images/{name}/{tag}", params(("name" = String, Path), ("tag" = String, Path)),
    responses((status = 200, body = ImageDetail), (status = 404)))]
async fn show_image(State(c): Shared, Path((name, tag)): Path<(String, String)>) -> Answer<ImageDetail> {
    let (_, record) = c.find_image(&name, Some(&tag))?;
    Ok(Json(ImageDetail::of(&Controller::root(&record.signed).map_err(catalog_refusal)?)))
}

/// Remove an image
#[utoipa::path(delete, path = "/v1/images/{name}/{tag}", params(("name" = String, Path), ("tag" = String, Path)),
    responses((status = 200, body = SweepResult), (status = 404)))]
async fn remove_image(State(c): Shared, Path((name, tag)): Path<(String, String)>) -> Answer<SweepResult> {
    let image = ImageName::new(&name, &tag).map_err(|e| Refusal::Invalid(e.to_string()))?;
    Ok(Json(c.remove_image(&image).await?.into()))
}

/// Create a ticket
#[utoipa::path(post, path = "/v1/tickets", request_body = TicketRequest, responses((status = 200, body = TicketResponse)))]
async fn create_ticket(State(c): Shared, Json(request): Json<TicketRequest>) -> Answer<TicketResponse> {
    let role = match request.role.as_str() {
        "stash" => Role::Stash,
        "installer" => Role::Installer,
        "admin" => Role::Admin,
        "boot" => Role::Boot,
        other => {
            return Err(Refusal::Invalid(format!("there are no tickets for role {other:?}")).into());
        }
    };
    let secret = fresh_secret();
    let expires_unix_s = unix_s().saturating_add(request.valid_s);
    let host = match &request.host {
        None => None,
        Some(text) => Some(machines::find_host(&c, text)?.0),
    };
    let record = TicketRecord { host, offline: request.offline, ..TicketRecord::new(role, expires_unix_s) };
    let hash = secret_hash(&secret);
    c.committer.change(move |change| change.put_ticket(hash, &record)).await.map_err(catalog_refusal)?;
    let addresses = c.settings.addresses.clone();
    let ticket = Ticket { array: c.array(), role, secret, addresses, issuer: None };
    Ok(Json(TicketResponse { ticket: ticket.to_string(), expires_unix_s }))
}

/// Start a verification
#[utoipa::path(post, path = "/v1/verify", request_body = VerifyRequest, responses((status = 200, body = VerifyStarted)))]
async fn start_verify(State(c): Shared, Json(request): Json<VerifyRequest>) -> Answer<VerifyStarted> {
    let image = request.image.map(|i| i.parse()).transpose();
    let image = image.map_err(|e: images::manifest::ImageNameError| Refusal::Invalid(e.to_string()))?;
    Ok(Json(VerifyStarted { job: c.start_verify(image, request.deep)? }))
}

/// How far a verification is
#[utoipa::path(get, path = "/v1/verify/{job}", params(("job" = u64, Path)), responses((status = 200, body = Verification), (status = 404)))]
async fn get_verify(State(c): Shared, Path(job): Path<u64>) -> Answer<Verification> {
    let found = c.jobs.get(job).ok_or_else(|| Refusal::NotFound(format!("verification {job}")));
    Ok(Json(found?))
}

/// Forget and delete at once what no image refers to
#[utoipa::path(post, path = "/v1/gc", request_body = GcRequest, responses((status = 200, body = SweepResult)))]
async fn gc(State(c): Shared, Json(ask): Json<GcRequest>) -> Answer<SweepResult> {
    if ask.dry_run {
        return Ok(Json(c.would_sweep(0)?.into()));
    }
    if ask.superseded {
        c.forget_retired(u64::MAX).await?;
    }
    c.compare_all_inventories().await?;
    Ok(Json(c.sweep(0).await?.into()))
}
