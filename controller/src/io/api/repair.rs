//! What is at risk, what is done about it, and how long it takes; and members that are sent away.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use images::{GroupId, NodeId};
use protocol::message::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::routes::{Answer, Shared};
use crate::catalog::{CatalogError, Change};
use crate::io::controller::{Controller, catalog_refusal};
use crate::io::restripe::Needed;
use crate::io::unix_s;
use crate::repair::{Bad, NONE_BAD, Weak, Whole, Why, weaknesses};

/// What happens by itself when too few stashes stay.
const ANEW: &str = ". If too few stashes stay for them, images are cut anew for fewer by themselves (`coe-ctl restripe`); what they had before \
                    goes in a day, or with `coe-ctl gc --superseded`";

/// How safe everything is that images need; what is kept for a while without being needed can be lost.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Fragments that are lost with their holders.
    pub missing: u64,
    /// Fragments that their holders have lost.
    pub damaged: u64,
    /// Segments that cannot be had any more: fewer than k pieces, and no copy on mass storage.
    pub lost_segments: u64,
    /// Stashes that may be lost now, whichever they are, without losing anything; none without segments.
    pub spare: Option<u64>,
    /// Holders that are being replaced.
    pub moves: u64,
    /// Pieces that the new holders have, and how many they are to have.
    pub moved: u64,
    /// See `moved`.
    pub to_move: u64,
    /// Seconds until that is done, at the speed so far.
    pub eta_s: Option<u64>,
    /// Holders that should be replaced, and nobody is there to replace them.
    pub stuck: u64,
    /// Groups of which one failure domain would take more pieces along than can be lost.
    pub crowded: u64,
    /// Groups of which fewer members than should are usually up in the busy hours.
    pub unsteady: u64,
    /// Images that cannot be installed now: of some of their segments fewer than k pieces lie on stashes that are up.
    pub not_installable: Vec<String>,
    /// Missing pieces of groups of which too few are missing yet to be worth a repair.
    pub put_off: u64,
    /// Copies on mass storage that are gone, and are made anew.
    pub lost_copies: u64,
    /// The folder of mass storage, if it is empty and should not be.
    pub mass_storage_away: Option<String>,
}

/// A holder that is being replaced, or should be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MoveInfo {
    /// The group.
    pub group: u32,
    /// Number of the piece.
    pub piece: u8,
    /// The holder of before.
    pub from: String,
    /// The new one; none if there is nobody.
    pub to: Option<String>,
    /// Segments whose piece the new one has.
    pub done: u64,
    /// Segments of the group.
    pub of: u64,
    /// Bytes that it fetched for that.
    pub fetched: u64,
    /// When it began, seconds since 1970.
    pub since_unix_s: Option<u64>,
    /// Why it does not go on.
    pub problem: Option<String>,
}

/// What repair is at.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RepairInfo {
    /// In short.
    pub health: Health,
    /// One for each.
    pub moves: Vec<MoveInfo>,
    /// Bytes that new holders fetched since the controller started.
    pub fetched: u64,
    /// Bytes of the pieces that they kept of it.
    pub kept: u64,
}

/// What is to become of a stash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeChange {
    /// Everything that it holds goes elsewhere; it stays a member.
    Drain,
    /// It is a member like any other, whatever was said or thought of it before.
    Keep,
    /// Everything goes elsewhere; then it is no member any more.
    Remove,
    /// The same, and what it holds is lost: it is not coming back.
    Lost,
    /// It is a mass-storage device.
    Device,
    /// It is none.
    NoDevice,
}

/// What is to become of stashes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodesChange {
    /// Their ids, or the beginnings of them.
    pub nodes: Vec<String>,
    /// What.
    pub change: NodeChange,
}

/// What it holds.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeChanged {
    /// Its id.
    pub node: String,
    /// Fragments that others must have before it is empty.
    pub to_hand_over: u64,
}

/// Holders that may be lost, whichever they are: those with the most pieces go first.
fn spare_of(mut held: Vec<usize>, needed: usize) -> u64 {
    held.sort_unstable();
    let mut left = held.iter().sum::<usize>();
    let mut spare = 0;
    while let Some(most) = held.pop().filter(|most| left >= needed + most) {
        left -= most;
        spare += 1;
    }
    spare
}

impl Controller {
    /// How safe everything is that images need.
    pub(super) fn health(&self, needed: &Needed) -> Result<Health, Refusal> {
        let (nodes, mut groups) = self.repair_facts()?;
        let bytes: BTreeMap<GroupId, u64> = groups.iter().map(|(id, group)| (*id, group.bytes)).collect();
        groups.retain(|id, _| needed.groups.contains(id));
        let policy = self.repair_policy()?;
        let domains = self.habits.domains();
        let damage = self.damage()?;
        let mut health = Health { damaged: damage.values().map(|bad| bad.len() as u64).sum(), ..Health::default() };
        let counts: BTreeMap<GroupId, u64> =
            self.catalog.groups().map_err(catalog_refusal)?.into_iter().map(|(id, g)| (id, g.segments)).collect();
        let held = |group: &Whole, bad: &Bad| {
            let mut held: BTreeMap<NodeId, usize> = BTreeMap::new();
            group.durable(&nodes, &policy, bad).for_each(|node| *held.entry(node).or_default() += 1);
            held.into_values().collect::<Vec<usize>>()
        };
        let mut least = |group: &Whole, held: Vec<usize>| {
            let spare = spare_of(held, group.geometry.data());
            health.spare = Some(health.spare.map_or(spare, |least| least.min(spare)));
        };
        for (id, group) in &groups {
            let segments = counts.get(id).copied().unwrap_or(0);
            let held = held(group, NONE_BAD);
            health.missing += (group.members.len() - held.iter().sum::<usize>()) as u64 * segments;
            least(group, held);
            match weaknesses(group, &nodes, &domains).next() {
                None => {}
                Some(Weak::Crowded(_)) => health.crowded += 1,
                Some(Weak::Unsteady(_)) => health.unsteady += 1,
            }
        }
        let cannot_be_read = |group: &Whole, bad: &Bad| group.online(&nodes, bad) < group.geometry.data();
        let (mut unreadable, mut of_groups) = (BTreeSet::new(), BTreeSet::new());
        for (segment, bad) in &damage {
            let record = self.catalog.segment(segment).map_err(catalog_refusal)?;
            let id = record.map(|record| record.group);
            let Some((id, group)) = id.and_then(|id| groups.get_key_value(&id)) else { continue };
            least(group, held(group, bad));
            if cannot_be_read(group, bad) {
                unreadable.insert(*segment);
                of_groups.insert(*id);
            }
        }
        health.lost_segments = self.lost_segments(&groups, &nodes, &policy, &damage)?.len() as u64;
        // Right after a start nobody has been heard yet.
        for (image, record, cuts) in needed.images.iter().filter(|_| self.knows_who_is_up()) {
            let is_short = |id: GroupId| groups.get(&id).is_some_and(|group| cannot_be_read(group, NONE_BAD));
            let may_have_any = cuts.contents().any(|id| of_groups.contains(&id));
            if cuts.contents().any(is_short) || may_have_any && self.has_any(record, &unreadable)? {
                health.not_installable.push(image.to_string());
            }
        }
        let (now, mut to_fetch) = (unix_s(), self.repairs.owed());
        for (seat, record) in self.catalog.moves().map_err(catalog_refusal)? {
            let of = counts.get(&seat.0).copied().unwrap_or(0);
            let done = (self.repairs.progress(seat).has.len() as u64).min(of);
            health.moves += 1;
            health.moved += done;
            health.to_move += of;
            let eta = (now.saturating_sub(record.since_unix_s) * (of - done)).checked_div(done);
            health.eta_s = health.eta_s.max(eta);
            // Whoever makes pieces anew reads k for each.
            let is_made = record.via.is_none() && !nodes.get(&record.from).is_some_and(|n| n.is_up);
            let reads = if is_made { groups.get(&seat.0).map_or(1, |g| g.geometry.data() as u64) } else { 1 };
            let left = (bytes.get(&seat.0).copied().unwrap_or(0) * (of - done)).checked_div(of).unwrap_or(0);
            to_fetch += left * reads;
        }
        if let Some(limit) = self.common_policy()?.limit.filter(|_| to_fetch > 0) {
            health.eta_s = health.eta_s.max(Some(to_fetch.div_ceil(limit)));
        }
        health.put_off = self.repairs.put_off() as u64;
        health.stuck = self.repairs.stuck().iter().filter(|(seat, ..)| needed.groups.contains(&seat.0)).count() as u64;
        health.lost_copies = self.catalog.lost_copy_count().map_err(catalog_refusal)?;
        let folder = self.mass_storage.path().display().to_string();
        health.mass_storage_away = (!self.mass_storage.is_there()).then_some(folder);
        Ok(health)
    }

    /// The stashes whose ids begin so, each once.
    pub(super) fn nodes_called(&self, texts: &[String]) -> Result<Vec<NodeId>, Refusal> {
        if texts.is_empty() {
            return Err(Refusal::Invalid("name a stash".into()));
        }
        let nodes = self.catalog.nodes().map_err(catalog_refusal)?;
        let all: BTreeMap<String, NodeId> = nodes.into_iter().map(|(node, _)| (node.to_string(), node)).collect();
        let mut called = Vec::new();
        for text in texts {
            let mut meant = all.range(text.clone()..).take_while(|(id, _)| !text.is_empty() && id.starts_with(text));
            match (meant.next(), meant.next()) {
                (Some((_, node)), None) if called.contains(node) => {}
                (Some((_, node)), None) => called.push(*node),
                (Some(_), Some(_)) => {
                    return Err(Refusal::Invalid(format!("{text} is more than one stash: give more of its id")));
                }
                (None, _) => return Err(Refusal::NotFound(format!("stash {text}"))),
            }
        }
        Ok(called)
    }
}

/// What repair is at
#[utoipa::path(get, path = "/v1/repair", responses((status = 200, body = RepairInfo)))]
pub(super) async fn get_repair(State(c): Shared) -> Answer<RepairInfo> {
    let mut moves = Vec::new();
    for (seat, record) in c.catalog.moves().map_err(catalog_refusal)? {
        let progress = c.repairs.progress(seat);
        moves.push(MoveInfo {
            group: seat.0.0,
            piece: seat.1,
            from: record.from.to_string(),
            to: Some(record.to.to_string()),
            done: progress.has.len() as u64,
            of: c.catalog.segments_of(seat.0).map_err(catalog_refusal)?.len() as u64,
            fetched: progress.fetched,
            since_unix_s: Some(record.since_unix_s),
            problem: progress.problem,
        });
    }
    let devices = c.catalog.devices().map_err(catalog_refusal)?;
    let problem = |node: NodeId, why: Why| match devices.contains(&node) {
        true => {
            format!("it {why}, and no other mass-storage device is up that has room: add one (`coe-ctl node device`)")
        }
        false => format!(
            "it {why}, and no other stash is up that has room and is not in this group already: add one, or free some space{}",
            if why == Why::Leaves { ANEW } else { "" }
        ),
    };
    moves.extend(c.repairs.stuck().into_iter().map(|(seat, from, why)| MoveInfo {
        group: seat.0.0,
        piece: seat.1,
        from: from.to_string(),
        to: None,
        done: 0,
        of: 0,
        fetched: 0,
        since_unix_s: None,
        problem: Some(problem(from, why)),
    }));
    let (fetched, kept) = c.repairs.bytes();
    Ok(Json(RepairInfo { health: c.health(&c.needed()?)?, moves, fetched, kept }))
}

/// Copies that are made anew.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewMassStorage {
    /// How many.
    pub copies: u64,
}

/// Mass storage is a new, empty folder
#[utoipa::path(post, path = "/v1/mass-storage", responses((status = 200, body = NewMassStorage), (status = 400)))]
pub(super) async fn take_mass_storage(State(c): Shared) -> Answer<NewMassStorage> {
    Ok(Json(NewMassStorage { copies: c.take_new_mass_storage().await? }))
}

/// Send stashes away, or keep them: all of them, or none
#[utoipa::path(post, path = "/v1/nodes", request_body = NodesChange,
    responses((status = 200, body = [NodeChanged]), (status = 400), (status = 404)))]
pub(super) async fn change_nodes(State(c): Shared, Json(ask): Json<NodesChange>) -> Answer<Vec<NodeChanged>> {
    let (nodes, what) = (c.nodes_called(&ask.nodes)?, ask.change);
    if let Some(node) = nodes.iter().find(|node| what == NodeChange::Lost && c.fleet.is_heard(**node)) {
        return Err(Refusal::Invalid(format!(
            "stash {node} is there, so nothing of it is lost: `coe-ctl node remove` moves what it holds first"
        ))
        .into());
    }
    let of_these = nodes.clone();
    let all = c.committer.change(move |change| of_these.iter().try_for_each(|node| change_one(change, *node, what)));
    all.await.map_err(catalog_refusal)?;
    nodes.iter().for_each(|node| tracing::info!(%node, ?what, "an admin said"));
    c.look_at_labels()?;
    c.repairs.wake.notify_one();
    c.restripes.wake.notify_one();
    let held = c.catalog.folds().map_err(catalog_refusal)?;
    let left = |node: &NodeId| held.get(node).map_or(0, |(count, _)| *count);
    Ok(Json(nodes.iter().map(|node| NodeChanged { node: node.to_string(), to_hand_over: left(node) }).collect()))
}

fn change_one(change: &Change<'_>, node: NodeId, what: NodeChange) -> Result<(), CatalogError> {
    if let NodeChange::Device | NodeChange::NoDevice = what {
        return change.set_device(node, what == NodeChange::Device);
    }
    let changed = change.change_standing(node, |standing| match what {
        NodeChange::Device | NodeChange::NoDevice => {}
        NodeChange::Drain => standing.draining = true,
        NodeChange::Keep => {
            (standing.draining, standing.leaving, standing.removed) = (false, false, false);
            (standing.lost, standing.distrusted) = (false, false);
        }
        NodeChange::Remove => standing.removed = true,
        NodeChange::Lost => (standing.removed, standing.lost) = (true, true),
    });
    changed.map(drop)
}

#[cfg(test)]
mod tests {
    use super::spare_of;

    #[test]
    fn who_has_several_pieces_counts_for_several() {
        assert_eq!(spare_of(vec![1; 14], 10), 4);
        assert_eq!(spare_of(vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4], 10), 1, "all parity on one device");
        assert_eq!(spare_of([vec![1; 10], vec![2, 2]].concat(), 10), 2);
        assert_eq!(spare_of([vec![1; 4], vec![4, 4]].concat(), 8), 1);
        assert_eq!(spare_of(vec![1, 1], 2), 0);
        assert_eq!(spare_of(Vec::new(), 2), 0);
    }
}
