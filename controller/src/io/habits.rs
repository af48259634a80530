//! What is known of the fleet beside who is up now: when stashes usually are, what they fail with, and what an admin wants of the array.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use chrono::Timelike as _;
use images::NodeId;
use images::parity::Geometry;
use protocol::message::Refusal;
use protocol::message::publish::Layout;
use protocol::pace::is_between;

use super::controller::{Controller, catalog_refusal};
use super::unix_s;
use crate::attendance::{Attendance, Class, Counter};
use crate::catalog::{Catalog, CatalogError, PolicyRecord};
use crate::domains::Domains;
use crate::geometry::{self, Choice, Fleet, Goal, choose};

/// What was computed from the catalog, until it changes.
#[derive(Default)]
pub struct Habits {
    attendance: RwLock<Arc<Attendance>>,
    domains: RwLock<Arc<Domains>>,
    counter: Mutex<Counter>,
}

fn read<T>(lock: &RwLock<Arc<T>>) -> Arc<T> {
    lock.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn write<T>(lock: &RwLock<Arc<T>>, value: T) {
    *lock.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
}

/// Stashes without a label count, too.
fn labels_of_all(catalog: &Catalog) -> Result<Domains, CatalogError> {
    let mut labels = catalog.labels()?;
    let all = catalog.nodes()?.into_iter().map(|(node, _)| (node, labels.remove(&node).unwrap_or_default()));
    Ok(Domains::new(&all.collect(), &catalog.devices()?))
}

impl Habits {
    /// As the catalog knows them.
    ///
    /// # Errors
    /// The catalog's.
    pub fn load(catalog: &Catalog) -> Result<Self, CatalogError> {
        let habits = Self::default();
        write(&habits.attendance, Attendance::of(&catalog.histories()?));
        write(&habits.domains, labels_of_all(catalog)?);
        Ok(habits)
    }

    /// When stashes usually are up.
    #[must_use]
    pub fn attendance(&self) -> Arc<Attendance> {
        read(&self.attendance)
    }

    /// What stashes fail with.
    #[must_use]
    pub fn domains(&self) -> Arc<Domains> {
        read(&self.domains)
    }
}

/// Hundredths of a percent as a part of one.
fn share(readable: u16) -> f64 {
    f64::from(readable) / 10_000.0
}

/// Names of images that are to be readable more often than all others, and how often, in hundredths of a percent.
#[must_use]
pub fn wanted_more(policies: &BTreeMap<String, PolicyRecord>) -> BTreeMap<&str, u16> {
    let of_all = policies.get("").and_then(|all| all.readable);
    let own = policies.iter().filter_map(|(name, own)| Some((name.as_str(), own.readable?)));
    own.filter(|(name, readable)| !name.is_empty() && Some(*readable) > of_all).collect()
}

/// What is wanted of images of a name, with all that was left open filled in.
fn goal_of(policies: &BTreeMap<String, PolicyRecord>, name: &str) -> Goal {
    let own = policies.get(name).cloned().unwrap_or_default();
    let all = policies.get("").cloned().unwrap_or_default();
    Goal {
        survive: own.survive.or(all.survive),
        readable: own.readable.or(all.readable).map(share),
        redundant: own.redundant.or(all.redundant).unwrap_or(false),
        layout: own.layout.or(all.layout).unwrap_or_default(),
    }
}

impl Controller {
    /// What is wanted of images of a name.
    ///
    /// # Errors
    /// The catalog's.
    pub fn goal_for(&self, name: &str) -> Result<Goal, Refusal> {
        Ok(goal_of(&self.catalog.policies().map_err(catalog_refusal)?, name))
    }

    /// What is wanted of all images.
    ///
    /// # Errors
    /// The catalog's.
    pub fn common_policy(&self) -> Result<PolicyRecord, Refusal> {
        Ok(self.catalog.policies().map_err(catalog_refusal)?.remove("").unwrap_or_default())
    }

    /// Whether it is time for what can wait.
    ///
    /// # Errors
    /// The catalog's.
    pub fn is_open(&self) -> Result<bool, Refusal> {
        let now = chrono::Local::now();
        let minute = (now.hour() * 60 + now.minute()) as u16;
        Ok(self.common_policy()?.window.is_none_or(|(from, to)| is_between(minute, from, to)))
    }

    /// What these behave like.
    pub(super) fn classes_of<'a>(&self, stashes: impl Iterator<Item = &'a NodeId>) -> BTreeMap<Class, usize> {
        let habits = self.habits.attendance();
        let mut classes = BTreeMap::new();
        stashes.for_each(|node| *classes.entry(habits.class(*node)).or_default() += 1);
        classes
    }

    /// The geometry of new segments.
    ///
    /// # Errors
    /// The catalog's.
    pub fn choose_geometry(&self, goal: &Goal) -> Result<Option<Choice>, Refusal> {
        let (clients, devices) = self.takers_by_kind()?;
        let habits = self.habits.attendance();
        Ok(choose(&self.fleet_of(clients.into_keys(), devices.len(), &habits), goal))
    }

    /// What a fleet of these stashes, and so many mass-storage devices, is like.
    pub(super) fn fleet_of<'a>(
        &self,
        clients: impl Iterator<Item = NodeId>,
        devices: usize,
        habits: &'a Attendance,
    ) -> Fleet<'a> {
        let clients: Vec<NodeId> = clients.collect();
        let classes = self.classes_of(clients.iter());
        Fleet { classes, kinds: self.habits.domains().kinds(clients.into_iter()), habits: Some(habits), devices }
    }

    /// Members of a group that should be up in the busy hours. `readable`, in hundredths of a percent, is what its images want if that is more
    /// than what is wanted of all.
    ///
    /// # Errors
    /// The catalog's.
    pub fn steady_members(&self, geometry: Geometry, layout: Layout, readable: Option<u16>) -> Result<usize, Refusal> {
        let habits = self.habits.attendance();
        let classes = self.classes_of(self.takers()?.keys());
        let fleet = Fleet { classes, habits: Some(&habits), ..Fleet::default() };
        let all = self.goal_for("")?;
        let readable = readable.map(share).or(all.readable);
        Ok(geometry::steady(&fleet, &Goal { layout, readable, ..all }, geometry))
    }

    /// Labels changed, or a stash joined or left.
    ///
    /// # Errors
    /// The catalog's.
    pub fn look_at_labels(&self) -> Result<(), Refusal> {
        write(&self.habits.domains, labels_of_all(&self.catalog).map_err(catalog_refusal)?);
        Ok(())
    }

    /// A minute passed; with it maybe an hour.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn count_attendance(&self) -> Result<(), Refusal> {
        let up: BTreeSet<NodeId> = self.fleet.up().into_keys().collect();
        let habits = self.habits.attendance();
        let over = self.habits.counter.lock().unwrap_or_else(PoisonError::into_inner).minute(unix_s(), &up, &habits);
        let Some((hour, was_up)) = over else { return Ok(()) };
        let noted = self.committer.change(move |change| change.note_hour(hour, |node| was_up.contains(&node)));
        noted.await.map_err(catalog_refusal)?;
        let catalog = self.catalog.clone();
        let histories = tokio::task::spawn_blocking(move || catalog.histories().map(|all| Attendance::of(&all))).await;
        let attendance =
            histories.map_err(|_| Refusal::Failed("look at histories".into()))?.map_err(catalog_refusal)?;
        write(&self.habits.attendance, attendance);
        Ok(())
    }
}

/// How often [`Controller::count_attendance`] is called.
pub const COUNT_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_more_than_all() {
        let wants = |readable| PolicyRecord { readable, ..PolicyRecord::default() };
        let of = |all: Option<u16>| {
            let names = [("", all), ("exam", Some(9_990)), ("kiosk", Some(5_000)), ("lab", None)];
            names.into_iter().map(|(name, readable)| (name.to_string(), wants(readable))).collect()
        };
        let cases = [
            (None, BTreeMap::from([("exam", 9_990), ("kiosk", 5_000)])),
            (Some(9_000), BTreeMap::from([("exam", 9_990)])),
            (Some(9_999), BTreeMap::new()),
        ];
        for (all, expected) in cases {
            assert_eq!(wanted_more(&of(all)), expected, "{all:?}");
        }
    }
}
