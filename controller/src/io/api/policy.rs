//! What an admin wants of the array, what follows from it, and what stashes fail with.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::{Query, State};
use images::manifest::ImageName;
use images::{GroupId, NodeId};
use protocol::message::Refusal;
use protocol::message::publish::Layout;
use protocol::pace::minute_of_day;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::restripe::RestripeInfo;
use super::routes::{Answer, Shared};
use crate::attendance::Class;
use crate::catalog::PolicyRecord;
use crate::domains::{Labels, is_valid_part};
use crate::io::controller::{Controller, catalog_refusal};
use crate::io::sweep::segments_of;
use crate::repair::{Bad, NONE_BAD, Seen, Weak, Whole, weaknesses};

/// Bytes a second below which repair would not go on.
const LIMIT_MIN: u64 = 1_000_000;
/// Hours that are no limit.
const ALWAYS: &str = "always";

/// What is wanted of images. What is left out follows from what is wanted of all, or from the fleet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PolicyInfo {
    /// Name of the images, without a tag; none for all.
    #[serde(default)]
    pub image: Option<String>,
    /// Stashes that may be lost.
    #[serde(default)]
    pub survive: Option<u8>,
    /// How often a segment can be read from clients in the busy hours, percent.
    #[serde(default)]
    pub readable: Option<f64>,
    /// `mirror`, `clients`, `parity-on-controller` or `parity-on-clients`.
    #[serde(default)]
    pub layout: Option<String>,
    /// Copies instead of parity.
    #[serde(default)]
    pub redundant: Option<bool>,
    /// Of all images only: when what can wait is done, local time of the controller, such as `20:00-06:00`, or `always`.
    #[serde(default)]
    pub window: Option<String>,
    /// Of all images only: bytes a second that repair may move; 0 for as fast as it can.
    #[serde(default)]
    pub limit: Option<u64>,
}

fn clock(minute: u16) -> String {
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

impl PolicyInfo {
    fn of(name: &str, record: &PolicyRecord) -> Self {
        Self {
            image: (!name.is_empty()).then(|| name.to_string()),
            survive: record.survive,
            readable: record.readable.map(|share| f64::from(share) / 100.0),
            layout: record.layout.map(|layout| layout.to_string()),
            redundant: record.redundant,
            window: record.window.map(|(from, to)| format!("{}-{}", clock(from), clock(to))),
            limit: record.limit,
        }
    }

    /// What is said here, checked, as it is to be changed.
    fn change(&self) -> Result<impl Fn(&mut PolicyRecord) + Send + 'static, Refusal> {
        let invalid = |what: &str| Refusal::Invalid(what.into());
        if self.image.as_deref().is_some_and(|name| !ImageName::is_valid_part(name)) {
            return Err(invalid("a policy is for a name without a tag, such as debian"));
        }
        if self.image.is_some() && (self.window.is_some() || self.limit.is_some()) {
            return Err(invalid("hours and limits are for all images together"));
        }
        if self.survive.is_some_and(|survive| usize::from(survive) > images::limits::PARITY_PIECES_MAX) {
            return Err(invalid("at most 16 lost stashes can be survived"));
        }
        if self.readable.is_some_and(|share| !(0.01..=99.99).contains(&share)) {
            return Err(invalid("readable is a percentage from 0.01 to 99.99, such as 99.9"));
        }
        if self.limit.is_some_and(|limit| limit > 0 && limit < LIMIT_MIN) {
            return Err(invalid(
                "with less than 1MB a second nothing would ever be repaired: want more, or 0 for no limit",
            ));
        }
        let layout = self.layout.as_deref().map(str::parse::<Layout>).transpose().map_err(Refusal::Invalid)?;
        let window = match self.window.as_deref() {
            None => None,
            Some(ALWAYS) => Some(None),
            Some(text) => {
                let hours = text.split_once('-').map(|(from, to)| (minute_of_day(from), minute_of_day(to)));
                let Some((Ok(from), Ok(to))) = hours else {
                    return Err(invalid("want hours such as 20:00-06:00, or always"));
                };
                if from == to {
                    return Err(invalid(
                        "no hours lie between a time and itself: want always, or hours such as 20:00-06:00",
                    ));
                }
                Some(Some((from, to)))
            }
        };
        let (survive, redundant, limit) = (self.survive, self.redundant, self.limit);
        let readable = self.readable.map(|share| (share * 100.0).round() as u16);
        Ok(move |record: &mut PolicyRecord| {
            record.survive = survive.or(record.survive);
            record.readable = readable.or(record.readable);
            record.layout = layout.or(record.layout);
            record.redundant = redundant.or(record.redundant);
            record.window = window.unwrap_or(record.window);
            record.limit = limit.or(record.limit).filter(|limit| *limit > 0);
        })
    }
}

/// How many there are of something.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// Of what.
    pub what: String,
    /// How many.
    pub count: u64,
}

/// A group of an image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupInfo {
    /// Its number.
    pub group: u32,
    /// `k+m`.
    pub geometry: String,
    /// Pieces on mass-storage devices.
    pub on_devices: u64,
    /// Segments of the image in it, pages of its manifest included.
    pub segments: u64,
    /// Pieces that are there, of the segment with the fewest.
    pub durable: u64,
    /// Pieces whose holder is up now.
    pub online: u64,
    /// Pieces whose holder is usually up in the busy hours.
    pub steady: u64,
    /// How often it can be read in the busy hours, percent, by what its members did; mass-storage devices are taken to be up.
    pub readable: f64,
    /// What is wrong with its members although all are there.
    pub weakness: Option<String>,
}

/// Why new segments are cut as they are, and how an image is protected.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// What is wanted, with what was left open filled in where it is the same for all.
    pub policy: PolicyInfo,
    /// Stashes that may take pieces, by what they behave like.
    pub stashes: Vec<Count>,
    /// Hours of the week at which machines are installed, as far as that was measured.
    pub busy_hours: u64,
    /// Kinds of failure domains, and how many there are of each.
    pub domains: Vec<Count>,
    /// `k+m` of new segments; none if there is no stash.
    pub geometry: Option<String>,
    /// Bytes stored for each byte, copies on mass storage apart.
    pub overhead: f64,
    /// How often a new segment can be read from clients in the busy hours, percent.
    pub readable: f64,
    /// Why.
    pub why: Vec<String>,
    /// What of the policy cannot be kept.
    pub unmet: Vec<String>,
    /// Groups that hold the image that was asked for.
    pub groups: Vec<GroupInfo>,
    /// Images that are to be cut anew: the one that was asked for, those of a name, or all.
    pub restripe: Vec<RestripeInfo>,
}

/// What to explain.
#[derive(Debug, Deserialize, IntoParams)]
pub struct Which {
    /// `name` or `name:tag`; none for what is wanted of all.
    image: Option<String>,
}

/// Labels of stashes to change.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LabelChange {
    /// Their ids, or the beginnings of them.
    pub nodes: Vec<String>,
    /// To set.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// To take away, by key.
    #[serde(default)]
    pub unset: BTreeSet<String>,
}

/// What a stash is labelled with now.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Labelled {
    /// Its id.
    pub node: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Controller {
    fn explain(&self, name: &str, image: Option<&ImageName>) -> Result<Explanation, Refusal> {
        let goal = self.goal_for(name)?;
        let common = self.common_policy()?;
        let choice = self.choose_geometry(&goal)?;
        let takers = self.takers()?;
        let classes = self.classes_of(takers.keys());
        let kinds = self.habits.domains().kinds(takers.into_keys());
        let record = PolicyRecord {
            survive: goal.survive,
            readable: goal.readable.map(|share| (share * 10_000.0).round() as u16),
            layout: Some(goal.layout),
            redundant: Some(goal.redundant),
            ..common
        };
        let count = |(what, count): (String, usize)| Count { what, count: count as u64 };
        Ok(Explanation {
            policy: PolicyInfo::of(name, &record),
            stashes: classes.into_iter().map(|(class, n)| count((class.to_string(), n))).collect(),
            busy_hours: self.habits.attendance().busy_hours() as u64,
            domains: kinds.into_iter().map(|(name, kind)| count((name, kind.sizes.len()))).collect(),
            geometry: choice.as_ref().map(|choice| choice.geometry.to_string()),
            overhead: choice.as_ref().map_or(0.0, |c| c.geometry.pieces() as f64 / c.geometry.data() as f64),
            readable: choice.as_ref().map_or(0.0, |choice| choice.readable * 100.0),
            why: choice.as_ref().map(|choice| choice.why.clone()).unwrap_or_default(),
            unmet: choice.map_or_else(|| vec!["no stash is up that may take pieces".into()], |choice| choice.unmet),
            groups: image.map(|image| self.groups_of(image)).transpose()?.unwrap_or_default(),
            restripe: {
                let mut all = self.restripe_infos()?;
                let is_of_name = |of: &str| name.is_empty() || of.split(':').next() == Some(name);
                all.retain(|info| image.map_or(is_of_name(&info.image), |image| info.image == image.to_string()));
                all
            },
        })
    }

    fn groups_of(&self, image: &ImageName) -> Result<Vec<GroupInfo>, Refusal> {
        let (_, record) = self.find_image(image.name(), Some(image.tag()))?;
        let (mut counts, damage) = (BTreeMap::<GroupId, (u64, Vec<&Bad>)>::new(), self.damage()?);
        for id in segments_of(&self.catalog, &record).map_err(catalog_refusal)? {
            if let Some(segment) = self.catalog.segment(&id).map_err(catalog_refusal)? {
                let (count, bad) = counts.entry(segment.group).or_default();
                *count += 1;
                bad.extend(damage.get(&id));
            }
        }
        let (nodes, groups) = self.repair_facts()?;
        let described = |(id, group): (&GroupId, &Whole)| Some(self.describe(*id, group, counts.get(id)?, &nodes));
        groups.iter().filter_map(described).collect()
    }

    fn describe(
        &self,
        id: GroupId,
        group: &Whole,
        (segments, bad): &(u64, Vec<&Bad>),
        nodes: &BTreeMap<NodeId, Seen>,
    ) -> Result<GroupInfo, Refusal> {
        let policy = self.repair_policy()?;
        let (habits, domains) = (self.habits.attendance(), self.habits.domains());
        let left = |bad: &&&Bad| group.durable(nodes, &policy, bad).count();
        let worst = bad.iter().min_by_key(left).copied().unwrap_or(NONE_BAD);
        let there: Vec<NodeId> = group.durable(nodes, &policy, worst).collect();
        let is_device = |node: &NodeId| nodes.get(node).is_some_and(|n| n.is_device);
        let (on_devices, on_clients): (Vec<NodeId>, Vec<NodeId>) = there.iter().copied().partition(is_device);
        let classes: Vec<Class> = on_clients.iter().map(|node| habits.class(*node)).collect();
        let needed = group.geometry.data().saturating_sub(on_devices.len());
        let (k, is_up) = (group.geometry.data(), group.online(nodes, worst));
        let too_few = match () {
            () if there.len() < k => Some(format!("only {} pieces are left, and {k} are needed", there.len())),
            () if is_up < k => Some(format!("only {is_up} pieces are up, and {k} are needed")),
            () => None,
        };
        let weak = || {
            weaknesses(group, nodes, &domains).next().map(|weak| match weak {
                Weak::Crowded(domain) => {
                    let count = group.members.iter().filter(|node| domains.of(**node).contains(&domain)).count();
                    let (name, m) = (domains.name(domain), group.geometry.parity());
                    format!("{name} would take {count} pieces along, and {m} may be lost")
                }
                Weak::Unsteady(steady) => {
                    format!("{steady} members are usually up in the busy hours, and {} should be", group.steady)
                }
            })
        };
        Ok(GroupInfo {
            group: id.0,
            geometry: group.geometry.to_string(),
            on_devices: group.members.iter().filter(|node| is_device(node)).count() as u64,
            segments: *segments,
            durable: there.len() as u64,
            online: is_up as u64,
            steady: classes.iter().filter(|class| class.is_steady()).count() as u64,
            readable: habits.readable(classes.into_iter(), needed) * 100.0,
            weakness: too_few.or_else(weak),
        })
    }
}

/// What is wanted of images
#[utoipa::path(get, path = "/v1/policies", responses((status = 200, body = [PolicyInfo])))]
pub(super) async fn list_policies(State(c): Shared) -> Answer<Vec<PolicyInfo>> {
    let all = c.catalog.policies().map_err(catalog_refusal)?;
    Ok(Json(all.iter().map(|(name, record)| PolicyInfo::of(name, record)).collect()))
}

/// Want something of images; the answer is what follows for new segments
#[utoipa::path(post, path = "/v1/policies", request_body = PolicyInfo, responses((status = 200, body = Explanation), (status = 400)))]
pub(super) async fn change_policy(State(c): Shared, Json(ask): Json<PolicyInfo>) -> Answer<Explanation> {
    let (name, change) = (ask.image.clone().unwrap_or_default(), ask.change()?);
    tracing::info!(?ask, "an admin wants");
    let of = name.clone();
    let changed = c.committer.change(move |catalog| catalog.change_policy(&of, &change));
    changed.await.map_err(catalog_refusal)?;
    c.repairs.wake.notify_one();
    c.restripes.wake.notify_one();
    Ok(Json(c.explain(&name, None)?))
}

/// Want nothing more of images of a name, or of all
#[utoipa::path(delete, path = "/v1/policies", params(Which), responses((status = 200, body = Explanation)))]
pub(super) async fn clear_policy(State(c): Shared, Query(which): Query<Which>) -> Answer<Explanation> {
    let name = which.image.unwrap_or_default();
    let ask = PolicyInfo { image: Some(name.clone()).filter(|name| !name.is_empty()), ..PolicyInfo::default() };
    ask.change().map(drop)?;
    if !name.is_empty() && !c.catalog.policies().map_err(catalog_refusal)?.contains_key(&name) {
        return Err(Refusal::NotFound(format!("a policy of images called {name}")).into());
    }
    let of = name.clone();
    let changed =
        c.committer.change(move |catalog| catalog.change_policy(&of, |record| *record = PolicyRecord::default()));
    changed.await.map_err(catalog_refusal)?;
    Ok(Json(c.explain(&name, None)?))
}

/// Why segments are cut as they are
#[utoipa::path(get, path = "/v1/explain", params(Which), responses((status = 200, body = Explanation), (status = 404)))]
pub(super) async fn explain(State(c): Shared, Query(which): Query<Which>) -> Answer<Explanation> {
    let Some(text) = which.image else { return Ok(Json(c.explain("", None)?)) };
    let (name, tag) = text.split_once(':').map_or((text.as_str(), None), |(name, tag)| (name, Some(tag)));
    let image = match (tag, c.find_image(name, tag)) {
        (_, Ok((image, _))) => Some(image),
        // A name that nothing was published under yet: what would become of it.
        (None, Err(Refusal::NotFound(_))) => None,
        (_, Err(refusal)) => return Err(refusal.into()),
    };
    Ok(Json(c.explain(name, image.as_ref())?))
}

/// Say what stashes fail with: all of them, or none
#[utoipa::path(post, path = "/v1/nodes/labels", request_body = LabelChange,
    responses((status = 200, body = [Labelled]), (status = 400), (status = 404)))]
pub(super) async fn label_nodes(State(c): Shared, Json(ask): Json<LabelChange>) -> Answer<Vec<Labelled>> {
    let nodes = c.nodes_called(&ask.nodes)?;
    if let Some(bad) = ask.set.iter().flat_map(|(k, v)| [k, v]).find(|part| !is_valid_part(part)) {
        let what = format!("{bad:?} is no label: letters, digits, '.', '_' and '-', 40 of them at the most");
        return Err(Refusal::Invalid(what).into());
    }
    nodes.iter().for_each(|node| tracing::info!(%node, set = ?ask.set, unset = ?ask.unset, "labelled"));
    let of_these = nodes.clone();
    let all = c.committer.change(move |change| {
        let change_one = |labels: &mut Labels| {
            labels.retain(|key, _| !ask.unset.contains(key));
            labels.extend(ask.set.clone());
        };
        of_these.iter().try_for_each(|node| change.change_labels(*node, change_one))
    });
    all.await.map_err(catalog_refusal)?;
    c.look_at_labels()?;
    c.repairs.wake.notify_one();
    let all = c.catalog.labels().map_err(catalog_refusal)?;
    let labelled =
        |node: &NodeId| Labelled { node: node.to_string(), labels: all.get(node).cloned().unwrap_or_default() };
    Ok(Json(nodes.iter().map(labelled).collect()))
}
