//! What the directory says of open deployments, so that they go on while the controller is away; and back, into an empty catalog.

use std::collections::BTreeMap;

use images::keys::{HolderSecret, OwnerKey};
use images::manifest::ImageName;
use images::shares::Order;
use images::{ArrayId, wire};
use protocol::directory::{Directory, Planned};
use protocol::identity::Role;
use protocol::limits::ORDERS_LEN_MAX;
use protocol::message::boot::{Deployment, SealedOrder, StashJoin};
use protocol::ticket::Ticket;

use crate::catalog::ImageRecord;
use crate::deploy::{DeployRecord, State};
use crate::hosts::HostRecord;

/// A deployment as an installer gets it.
#[must_use]
pub fn order(array: ArrayId, controller: &[String], id: u32, host: &str, record: &DeployRecord) -> Deployment {
    let stash = (record.stash_size > 0).then(|| {
        let (secret, addresses) = (record.stash_secret, controller.to_vec());
        let ticket = Ticket { array, role: Role::Stash, secret, addresses, issuer: None };
        StashJoin { ticket: ticket.to_string(), size: record.stash_size }
    });
    Deployment {
        id,
        host: host.into(),
        image: record.image.clone(),
        disk: record.disk.clone(),
        wipe: record.wipe,
        new_guids: record.new_guids,
        hostname: record.hostname.clone(),
        user_data: record.user_data.clone(),
        stash,
        finishing: record.finishing.clone(),
    }
}

/// What the directory says of deployments.
#[derive(Default)]
pub struct Orders {
    /// By machine.
    pub planned: BTreeMap<u32, Planned>,
    /// Rows of sealed cloud-init data.
    pub user_data: BTreeMap<[u8; 32], Vec<u8>>,
}

/// Seal those open deployments whose images may be installed while the controller is away. What does not fit waits for the controller.
#[must_use]
pub fn seal(
    array: ArrayId,
    owner: &OwnerKey,
    controller: &[String],
    hosts: &[(u32, HostRecord)],
    images: &BTreeMap<ImageName, ImageRecord>,
    deployments: Vec<(u32, DeployRecord)>,
) -> Orders {
    let (mut orders, mut len, mut left_out) = (Orders::default(), 0, 0);
    for (id, record) in deployments.into_iter().filter(|(_, d)| d.state.wants_boot()) {
        let host = hosts.iter().find(|(host, h)| *host == record.host && h.approved);
        let image = images.get(&record.image);
        let shares = image.and_then(|image| Some((image.manifest, image.offline.as_ref()?)));
        let (Some((host, known)), Some((manifest, shares))) = (host, shares) else { continue };
        let mut deployment = order(array, controller, id, &known.name, &record);
        let text = deployment.user_data.take();
        let user_data_key = text.as_ref().map(|text| owner.content_key(text.as_bytes()));
        let row = text.zip(user_data_key.as_ref()).map(|(text, key)| key.seal(text.as_bytes()));
        let row = row.map(|sealed| (*blake3::hash(&sealed).as_bytes(), sealed));
        let secrets: Vec<HolderSecret> =
            shares.holders.iter().map(|(node, _)| owner.holder_secret(&manifest, node)).collect();
        let bytes = wire::encode(&SealedOrder { deployment, user_data_key });
        let Ok(order) = Order::seal(owner, id, shares.threshold, &secrets, &bytes) else { continue };
        let new = row.as_ref().filter(|(digest, _)| !orders.user_data.contains_key(digest));
        let more = order.len() + new.map_or(0, |(_, sealed)| sealed.len());
        if len + more > ORDERS_LEN_MAX {
            left_out += 1;
            continue;
        }
        len += more;
        let digest = row.as_ref().map(|(digest, _)| *digest);
        orders.user_data.extend(row);
        let (not_before_unix_s, rescue) = (record.not_before_unix_s, record.rescue);
        let planned = Planned { id, image: record.image, not_before_unix_s, rescue, order, user_data: digest };
        orders.planned.insert(*host, planned);
    }
    if left_out > 0 {
        tracing::warn!(left_out, "deployments with much cloud-init data: some cannot go on without this controller");
    }
    orders
}

/// The same, the other way round: deployments as a catalog keeps them. What cannot be opened is left out.
#[must_use]
pub fn open(directory: &Directory, owner: &OwnerKey) -> Vec<(u32, DeployRecord)> {
    let one = |host: u32, planned: &Planned| -> Option<(u32, DeployRecord)> {
        let order = planned.read(directory, &planned.order.open_as_owner(owner).ok()?)?;
        let (stash_size, stash_secret) = match &order.stash {
            Some(join) => (join.size, join.ticket.parse::<Ticket>().ok()?.secret),
            None => (0, [0; 16]),
        };
        let record = DeployRecord {
            host,
            image: order.image,
            disk: order.disk,
            wipe: order.wipe,
            new_guids: order.new_guids,
            hostname: order.hostname,
            user_data: order.user_data,
            stash_size,
            stash_secret,
            rescue: planned.rescue,
            not_before_unix_s: planned.not_before_unix_s,
            wake: false,
            finishing: order.finishing,
            state: State::Waiting,
            since_unix_s: super::unix_s(),
        };
        Some((planned.id, record))
    };
    directory.hosts.iter().filter_map(|(id, host)| one(*id, host.planned.as_ref()?)).collect()
}
