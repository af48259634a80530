//! Machines and deployments: routes and their shapes.

use std::sync::PoisonError;

use axum::Json;
use axum::extract::{Path, State};
use images::NodeId;
use images::manifest::ImageName;
use protocol::io::credentials::fresh_secret;
use protocol::limits::{STASH_LEN_MAX, STASH_LEN_MIN};
use protocol::machine::Facts;
use protocol::message::Refusal;
use protocol::message::boot::DeployStage;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::routes::{Answer, Shared};
use crate::catalog::BootServerRecord;
use crate::deploy::{self, AutoApprove, DeployRecord};
use crate::hosts::{self, HostRecord};
use crate::io::controller::{Controller, catalog_refusal};
use crate::io::unix_s;

/// A machine that asked to boot from the network, or was imported.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Its number.
    pub id: u32,
    /// What people call it.
    pub name: String,
    /// Whether it may be installed.
    pub approved: bool,
    /// SMBIOS UUID.
    pub uuid: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Ethernet addresses.
    pub macs: Vec<String>,
    /// Vendor and product.
    pub product: String,
    /// `BIOS`, `UEFI`, or `UEFI, Secure Boot`.
    pub firmware: Option<String>,
    /// Groups.
    pub groups: Vec<String>,
    /// When it last asked to boot, seconds since 1970; 0 if never.
    pub last_unix_s: u64,
}

/// A machine to know beforehand.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct NewHost {
    /// What people call it.
    pub name: String,
    /// SMBIOS UUID.
    pub uuid: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Ethernet addresses.
    #[serde(default)]
    pub macs: Vec<String>,
    /// Groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// What to change of a machine.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct HostChange {
    /// Whether it may be installed.
    pub approved: Option<bool>,
    /// A new name.
    pub name: Option<String>,
    /// Groups instead of those it has.
    pub groups: Option<Vec<String>>,
}

/// What shall become of machines.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct DeployRequest {
    /// `name:tag`, or `name` for the newest.
    pub image: String,
    /// Machines: name, UUID, serial number or Ethernet address.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// All machines of a group.
    pub group: Option<String>,
    /// Whoever is new, for so many seconds.
    pub auto_approve_s: Option<u64>,
    /// `serial=…`, `wwn=…`, `smallest-ssd` or `only`.
    pub disk: Option<String>,
    /// Whether all on that disk may be destroyed.
    #[serde(default)]
    pub wipe: bool,
    /// Whether disk and partitions get new GUIDs.
    #[serde(default)]
    pub new_guids: bool,
    /// A pattern with `{n}`, `{n:02}` or `{name}`.
    pub hostname: Option<String>,
    /// cloud-init's `user-data`.
    pub user_data: Option<String>,
    /// What each machine's stash offers, bytes; 0 for no stash.
    #[serde(default)]
    pub stash_size: u64,
    /// Give a shell where it fails.
    #[serde(default)]
    pub rescue: bool,
    /// Not before this, seconds since 1970.
    #[serde(default)]
    pub not_before_unix_s: u64,
    /// Wake the machines when it is time.
    #[serde(default)]
    pub wake: bool,
}

/// A deployment.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeployInfo {
    /// Its number.
    pub id: u32,
    /// What people call the machine.
    pub host: String,
    /// What is installed.
    pub image: String,
    /// `waiting`, `installing`, `stopped`, `installed`, `deployed` or `cancelled`.
    pub state: String,
    /// Why it stopped.
    pub why: Option<String>,
    /// When this state began, seconds since 1970.
    pub since_unix_s: u64,
    /// What the installer does.
    pub stage: Option<String>,
    /// Bytes done.
    pub done: u64,
    /// Of these.
    pub total: u64,
    /// Bytes a second.
    pub rate: f64,
    /// What holds it up.
    pub limit: Option<String>,
    /// Seconds since the installer was heard.
    pub heard_s: Option<u64>,
}

/// Numbers of what was made.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Numbers {
    /// The numbers.
    pub ids: Vec<u32>,
}

fn host_info((id, h): (u32, HostRecord)) -> HostInfo {
    HostInfo {
        id,
        name: h.name,
        approved: h.approved,
        uuid: h.uuid.map(|u| u.to_string()),
        serial: h.serial,
        macs: h.macs.iter().map(ToString::to_string).collect(),
        product: h.product,
        firmware: h.firmware.map(|f| f.as_str().into()),
        groups: h.groups,
        last_unix_s: h.last_unix_s,
    }
}

/// Machines that asked to boot, or were imported
#[utoipa::path(get, path = "/v1/hosts", responses((status = 200, body = Vec<HostInfo>)))]
pub(super) async fn list_hosts(State(c): Shared) -> Answer<Vec<HostInfo>> {
    Ok(Json(c.catalog.hosts().map_err(catalog_refusal)?.into_iter().map(host_info).collect()))
}

fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn new_host(new: NewHost) -> Result<(Facts, HostRecord), Refusal> {
    let invalid = |e: protocol::machine::NotAnAddress| Refusal::Invalid(e.to_string());
    if !is_name(&new.name) || !new.groups.iter().all(|g| is_name(g)) {
        return Err(Refusal::Invalid(format!("{:?}: names and groups are letters, digits, -, _ and .", new.name)));
    }
    let facts = Facts {
        uuid: new.uuid.map(|u| u.parse()).transpose().map_err(invalid)?,
        serial: new.serial,
        macs: new.macs.iter().map(|m| m.parse()).collect::<Result<_, _>>().map_err(invalid)?,
        ..Facts::default()
    };
    let facts = facts.cleaned();
    if facts.uuid.is_none() && facts.serial.is_none() && facts.macs.is_empty() {
        return Err(Refusal::Invalid(format!("{}: give a UUID, a serial number or an Ethernet address", new.name)));
    }
    let record = HostRecord { name: new.name, approved: true, groups: new.groups, ..HostRecord::default() };
    Ok((facts, record))
}

/// Know machines beforehand; they count as approved. One that is known already gets the name and the groups
#[utoipa::path(post, path = "/v1/hosts", request_body = Vec<NewHost>, responses((status = 200, body = Numbers)))]
pub(super) async fn import_hosts(State(c): Shared, Json(new): Json<Vec<NewHost>>) -> Answer<Numbers> {
    let new: Vec<(Facts, HostRecord)> = new.into_iter().map(new_host).collect::<Result<_, _>>()?;
    let ids = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let given = ids.clone();
    let change = c.committer.change(move |change| {
        given.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for (facts, record) in &new {
            let known = change.hosts()?;
            let id = hosts::find(&known, facts);
            let mut host =
                known.iter().find(|(k, _)| Some(*k) == id).map_or_else(HostRecord::default, |(_, h)| h.clone());
            host.learn(facts);
            (host.name, host.groups, host.approved) = (record.name.clone(), record.groups.clone(), true);
            let id = change.put_host(id, &host)?;
            given.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        }
        Ok(())
    });
    change.await.map_err(catalog_refusal)?;
    let ids = std::mem::take(&mut *ids.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Json(Numbers { ids }))
}

/// The one machine that a person means.
///
/// # Errors
/// [`Refusal::NotFound`], or [`Refusal::Invalid`] if it is more than one.
pub(super) fn find_host(c: &Controller, text: &str) -> Result<(u32, HostRecord), Refusal> {
    let mut found = c.catalog.hosts().map_err(catalog_refusal)?.into_iter().filter(|(_, h)| h.is_called(text));
    match (found.next(), found.next()) {
        (Some(host), None) => Ok(host),
        (Some(_), Some(_)) => Err(Refusal::Invalid(format!("{text} is more than one machine: use the name"))),
        (None, _) => Err(Refusal::NotFound(format!("machine {text}"))),
    }
}

/// A boot server.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BootServerInfo {
    /// Its name.
    pub node: String,
    /// When it joined, seconds since 1970.
    pub joined_unix_s: u64,
    /// Whether it may admit installers while the controller is away.
    pub offline: bool,
    /// Until when it can, without hearing from the controller; seconds since 1970, 0 for not at all.
    pub delegated_until_unix_s: u64,
    /// Seconds since it was heard; none since this controller started.
    pub heard_s: Option<u64>,
    /// The epoch of the directory that it had then: what it answers from while the controller is away.
    pub epoch: Option<u64>,
}

/// What a boot server may do.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BootServerChange {
    /// Whether it may admit installers while the controller is away.
    pub offline: bool,
}

/// Boot servers
#[utoipa::path(get, path = "/v1/boot-servers", responses((status = 200, body = Vec<BootServerInfo>)))]
pub(super) async fn list_boot_servers(State(c): Shared) -> Answer<Vec<BootServerInfo>> {
    let info = |(node, r): (NodeId, BootServerRecord)| {
        let heard = c.fleet.boot_server(node);
        BootServerInfo {
            node: node.to_string(),
            joined_unix_s: r.joined_unix_s,
            offline: r.offline,
            delegated_until_unix_s: r.delegated_until_unix_s,
            heard_s: heard.map(|(ago, _)| ago.as_secs()),
            epoch: heard.and_then(|(_, epoch)| epoch).map(|epoch| epoch.0),
        }
    };
    Ok(Json(c.catalog.boot_servers().map_err(catalog_refusal)?.into_iter().map(info).collect()))
}

/// Let a boot server admit installers while the controller is away, or not
#[utoipa::path(post, path = "/v1/boot-servers/{node}", params(("node" = String, Path)), request_body = BootServerChange,
    responses((status = 200, body = Numbers), (status = 404)))]
pub(super) async fn change_boot_server(
    State(c): Shared,
    Path(text): Path<String>,
    Json(ask): Json<BootServerChange>,
) -> Answer<Numbers> {
    let all = c.catalog.boot_servers().map_err(catalog_refusal)?;
    let mut meant = all.into_iter().filter(|(node, _)| !text.is_empty() && node.to_string().starts_with(&text));
    let node = match (meant.next(), meant.next()) {
        (Some((one, _)), None) => one,
        (Some(_), Some(_)) => {
            return Err(Refusal::Invalid(format!("more than one boot server begins with {text}")).into());
        }
        (None, _) => return Err(Refusal::NotFound(format!("boot server {text}")).into()),
    };
    let change = c.committer.change(move |change| change.change_boot_server(node, |known| known.offline = ask.offline));
    change.await.map_err(catalog_refusal)?;
    Ok(Json(Numbers::default()))
}

/// Approve, rename or group a machine
#[utoipa::path(post, path = "/v1/hosts/{host}", params(("host" = String, Path)), request_body = HostChange,
    responses((status = 200, body = HostInfo), (status = 404)))]
pub(super) async fn change_host(
    State(c): Shared,
    Path(host): Path<String>,
    Json(ask): Json<HostChange>,
) -> Answer<HostInfo> {
    let (id, _) = find_host(&c, &host)?;
    let names = ask.name.iter().chain(ask.groups.iter().flatten());
    if let Some(bad) = names.into_iter().find(|n| !is_name(n)) {
        return Err(Refusal::Invalid(format!("{bad:?}: names and groups are letters, digits, -, _ and .")).into());
    }
    let change = c.committer.change(move |change| {
        change.change_host(id, |record| {
            record.approved = ask.approved.unwrap_or(record.approved);
            record.name = ask.name.clone().unwrap_or_else(|| record.name.clone());
            record.groups = ask.groups.clone().unwrap_or_else(|| record.groups.clone());
        })
    });
    change.await.map_err(catalog_refusal)?;
    let found = c.catalog.hosts().map_err(catalog_refusal)?.into_iter().find(|(known, _)| *known == id);
    Ok(Json(host_info(found.ok_or_else(|| Refusal::NotFound(format!("machine {host}")))?)))
}

/// Forget a machine and its deployments
#[utoipa::path(delete, path = "/v1/hosts/{host}", params(("host" = String, Path)), responses((status = 200, body = Numbers), (status = 404)))]
pub(super) async fn forget_host(State(c): Shared, Path(host): Path<String>) -> Answer<Numbers> {
    let (id, _) = find_host(&c, &host)?;
    c.committer.change(move |change| change.remove_host(id)).await.map_err(catalog_refusal)?;
    Ok(Json(Numbers { ids: vec![id] }))
}

fn plan(request: &DeployRequest, image: &ImageName) -> Result<DeployRecord, Refusal> {
    // The machine would come up, and its stash never.
    if request.stash_size > 0 && !(STASH_LEN_MIN..=STASH_LEN_MAX).contains(&request.stash_size) {
        return Err(Refusal::Invalid("a stash has 256 MiB to 16 TiB".into()));
    }
    Ok(DeployRecord {
        host: 0,
        image: image.clone(),
        disk: deploy::parse_disk(request.disk.as_deref().unwrap_or("only")).map_err(Refusal::Invalid)?,
        wipe: request.wipe,
        new_guids: request.new_guids,
        hostname: None,
        user_data: request.user_data.clone(),
        stash_size: request.stash_size,
        stash_secret: [0; 16],
        rescue: request.rescue,
        not_before_unix_s: request.not_before_unix_s,
        wake: request.wake,
        finishing: None,
        state: deploy::State::Waiting,
        since_unix_s: unix_s(),
    })
}

/// Deploy an image on machines
#[utoipa::path(post, path = "/v1/deployments", request_body = DeployRequest, responses((status = 200, body = Numbers), (status = 404)))]
pub(super) async fn deploy(State(c): Shared, Json(request): Json<DeployRequest>) -> Answer<Numbers> {
    let (name, tag) = request.image.split_once(':').map_or((request.image.as_str(), None), |(n, t)| (n, Some(t)));
    let (image, _) = c.find_image(name, tag)?;
    let base = plan(&request, &image)?;
    if let Some(for_s) = request.auto_approve_s {
        if !request.hosts.is_empty() || request.group.is_some() || request.hostname.is_some() {
            return Err(
                Refusal::Invalid("machines that nobody knows have no names: --auto-approve goes alone".into()).into()
            );
        }
        let auto = (for_s > 0).then(|| AutoApprove { plan: base, until_unix_s: unix_s().saturating_add(for_s) });
        c.committer.change(move |change| change.set_auto_approve(auto.as_ref())).await.map_err(catalog_refusal)?;
        return Ok(Json(Numbers::default()));
    }
    let mut hosts: Vec<(u32, HostRecord)> =
        request.hosts.iter().map(|text| find_host(&c, text)).collect::<Result<_, _>>()?;
    if let Some(group) = &request.group {
        let all = c.catalog.hosts().map_err(catalog_refusal)?;
        hosts.extend(all.into_iter().filter(|(_, h)| h.groups.contains(group)));
    }
    hosts.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    hosts.dedup_by_key(|(id, _)| *id);
    if hosts.is_empty() {
        return Err(Refusal::NotFound("no machine is meant: give --host or --group".into()).into());
    }
    if let Some((_, host)) = hosts.iter().find(|(_, h)| !h.approved) {
        return Err(
            Refusal::Invalid(format!("{} is not approved: `coe-ctl host approve {}`", host.name, host.name)).into()
        );
    }
    let name_of = |(number, (id, host)): (usize, &(u32, HostRecord))| {
        let named = request.hostname.as_ref().map(|p| deploy::hostname(p, number + 1, &host.name));
        let hostname = named.transpose().map_err(Refusal::Invalid)?;
        Ok::<_, Refusal>(base.for_host(*id, hostname, fresh_secret(), unix_s()))
    };
    let plans: Vec<DeployRecord> = hosts.iter().enumerate().map(name_of).collect::<Result<_, _>>()?;
    let ids = c.deploy(plans).await?;
    let woken = if request.wake { c.wake_due().await } else { Ok(()) };
    woken.map_err(|e| Refusal::Failed(format!("deployments are planned, but no machine was woken: {e:#}")))?;
    Ok(Json(Numbers { ids }))
}

fn stage_text(stage: DeployStage) -> &'static str {
    match stage {
        DeployStage::Prepare => "prepare",
        DeployStage::Install => "install",
        DeployStage::Compare => "compare",
        DeployStage::Finish => "finish",
        DeployStage::Stopped => "stopped",
    }
}

/// Deployments, the oldest first
#[utoipa::path(get, path = "/v1/deployments", responses((status = 200, body = Vec<DeployInfo>)))]
pub(super) async fn list_deployments(State(c): Shared) -> Answer<Vec<DeployInfo>> {
    let hosts = c.catalog.hosts().map_err(catalog_refusal)?;
    let name =
        |id: u32| hosts.iter().find(|(h, _)| *h == id).map_or_else(|| "forgotten".into(), |(_, h)| h.name.clone());
    let info = |(id, d): (u32, DeployRecord)| {
        let live = c.installations.get(id).filter(|_| d.state.is_open());
        let limit = live.as_ref().map(|l| format!("{:?}", l.progress.limit).to_lowercase());
        DeployInfo {
            id,
            host: name(d.host),
            image: d.image.to_string(),
            state: d.state.as_str().into(),
            why: if let deploy::State::Stopped(why) = &d.state { Some(why.clone()) } else { None },
            since_unix_s: d.since_unix_s,
            stage: live.as_ref().map(|l| stage_text(l.progress.stage).into()),
            done: live.as_ref().map_or(0, |l| l.progress.done),
            total: live.as_ref().map_or(0, |l| l.progress.total),
            rate: live.as_ref().map_or(0.0, |l| l.rate),
            limit: limit.filter(|l| l != "unknown"),
            heard_s: live.map(|l| l.heard.elapsed().as_secs()),
        }
    };
    Ok(Json(c.catalog.deployments().map_err(catalog_refusal)?.into_iter().map(info).collect()))
}

/// Call a deployment off
#[utoipa::path(post, path = "/v1/deployments/{id}/cancel", params(("id" = u32, Path)), responses((status = 200, body = Numbers)))]
pub(super) async fn cancel(State(c): Shared, Path(id): Path<u32>) -> Answer<Numbers> {
    c.cancel(id).await?;
    Ok(Json(Numbers { ids: vec![id] }))
}

/// Start a deployment that stopped again
#[utoipa::path(post, path = "/v1/deployments/{id}/retry", params(("id" = u32, Path)), responses((status = 200, body = Numbers)))]
pub(super) async fn retry(State(c): Shared, Path(id): Path<u32>) -> Answer<Numbers> {
    c.retry(id).await?;
    Ok(Json(Numbers { ids: vec![id] }))
}
