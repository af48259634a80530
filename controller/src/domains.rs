//! Failure domains: what takes several stashes along when it fails, as labels say: a rack, a building's power, a site.

use std::collections::{BTreeMap, BTreeSet};

use images::NodeId;
use images::parity::Geometry;

/// What a stash is in, such as rack: a3. Each key is a kind of thing that fails.
pub type Labels = BTreeMap<String, String>;

/// Characters of a key or a value.
const PART_MAX: usize = 40;

/// Whether this can be a label's key or value.
#[must_use]
pub fn is_valid_part(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.is_empty() && text.len() <= PART_MAX && text.chars().all(is_plain)
}

/// The kind of domains that each mass-storage device is one of: nobody can label anything so.
const DEVICE: &str = "mass storage";

/// One thing that can fail: a number instead of its key and value.
pub type Domain = usize;

/// What can be wrong with a place for a piece, the worst first: its domain would have more pieces than can be lost.
pub const CROWDS: usize = 4;
/// It is off in busy hours, and the group has too few that are not.
pub const UNSTEADY: usize = 2;
/// Its domain would have more than its share.
pub const UNEVEN: usize = 1;

/// The domains of a fleet.
#[derive(Clone, Debug, Default)]
pub struct Domains {
    of: BTreeMap<NodeId, Vec<Domain>>,
    names: Vec<(String, String)>,
    /// For each domain, how many places there are that do not fail together with another: domains of its kind, and whatever has no label.
    places: Vec<usize>,
}

/// What there is of a kind of domains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// Stashes in each domain.
    pub sizes: Vec<usize>,
    /// Stashes without such a label.
    pub others: usize,
}

impl Kind {
    /// Whether one of them would take more of these pieces along than can be lost, however they are spread. Of one that everything is in,
    /// nothing can be done.
    #[must_use]
    pub fn is_crowded(&self, pieces: usize, may_be_lost: usize) -> bool {
        let places = self.sizes.iter().map(|size| (*size).min(may_be_lost)).sum::<usize>() + self.others;
        !self.is_everywhere() && places < pieces
    }

    /// Whether everything is in one domain.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.sizes.len() < 2 && self.others == 0
    }
}

impl Domains {
    /// From the labels of all stashes; some may have none. A mass-storage device fails by itself, and is no place for what clients should have.
    #[must_use]
    pub fn new(labels: &BTreeMap<NodeId, Labels>, devices: &BTreeSet<NodeId>) -> Self {
        let (devices, clients): (BTreeMap<_, _>, BTreeMap<_, _>) =
            labels.iter().map(|(node, labels)| (*node, labels.clone())).partition(|(node, _)| devices.contains(node));
        let itself = |node: &NodeId| (*node, Labels::from([(DEVICE.to_string(), node.to_string())]));
        let (mut all, devices) = (Self::of_labels(&clients), Self::of_labels(&devices.keys().map(itself).collect()));
        let first = all.names.len();
        let further = |(node, domains): (NodeId, Vec<Domain>)| (node, domains.iter().map(|d| d + first).collect());
        all.of.extend(devices.of.into_iter().map(further));
        all.names.extend(devices.names);
        all.places.extend(devices.places);
        all
    }

    fn of_labels(labels: &BTreeMap<NodeId, Labels>) -> Self {
        let names: BTreeSet<(&String, &String)> = labels.values().flatten().collect();
        let names: Vec<(String, String)> = names.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let (mut domains, mut labelled): (BTreeMap<&String, usize>, BTreeMap<&String, usize>) = Default::default();
        names.iter().for_each(|(key, _)| *domains.entry(key).or_default() += 1);
        labels.values().flat_map(BTreeMap::keys).for_each(|key| *labelled.entry(key).or_default() += 1);
        let places = |(key, _): &(String, String)| domains[key] + usize::from(labelled[key] < labels.len());
        let places = names.iter().map(places).collect();
        let number = |name: (&String, &String)| names.binary_search_by(|(k, v)| (k, v).cmp(&name)).ok();
        let of = labels.iter().map(|(node, labels)| (*node, labels.iter().filter_map(number).collect())).collect();
        Self { of, names, places }
    }

    /// What a stash is in.
    #[must_use]
    pub fn of(&self, node: NodeId) -> &[Domain] {
        self.of.get(&node).map_or(&[], Vec::as_slice)
    }

    /// `rack=a3`.
    #[must_use]
    pub fn name(&self, domain: Domain) -> String {
        self.names.get(domain).map_or(String::new(), |(key, value)| format!("{key}={value}"))
    }

    /// Kinds of things that can fail, and what of these stashes is in them.
    #[must_use]
    pub fn kinds(&self, stashes: impl Iterator<Item = NodeId>) -> BTreeMap<String, Kind> {
        let all: Vec<NodeId> = stashes.collect();
        let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
        for (domain, size) in self.count(all.iter().copied()) {
            kinds.entry(self.names[domain].0.clone()).or_default().sizes.push(size);
        }
        for kind in kinds.values_mut() {
            kind.others = all.len() - kind.sizes.iter().sum::<usize>();
        }
        kinds
    }

    /// Of so many pieces, those that one domain should have at the most: its even share, and no more than may be lost. A kind of which there
    /// is only one sets no limit.
    #[must_use]
    pub fn share(&self, domain: Domain, pieces: usize, may_be_lost: usize) -> usize {
        match self.places.get(domain) {
            Some(1) | None => usize::MAX,
            Some(places) => pieces.div_ceil(*places).min(may_be_lost).max(1),
        }
    }

    /// What is wrong with a group of which so many are in a domain, of the pieces that are on members of its kind.
    #[must_use]
    pub fn fault(&self, domain: Domain, count: usize, pieces: usize, may_be_lost: usize) -> usize {
        match self.share(domain, pieces, may_be_lost) {
            usize::MAX => 0,
            _ if count > may_be_lost.max(1) => CROWDS,
            share => usize::from(count > share) * UNEVEN,
        }
    }

    /// How many of these are in each domain.
    #[must_use]
    pub fn count(&self, members: impl Iterator<Item = NodeId>) -> BTreeMap<Domain, usize> {
        let mut counts = BTreeMap::new();
        for domain in members.flat_map(|node| self.of(node)) {
            *counts.entry(*domain).or_default() += 1;
        }
        counts
    }

    /// Domains that would take more pieces of a group along than can be lost, and could have fewer.
    pub fn crowded(
        &self,
        counts: BTreeMap<Domain, usize>,
        geometry: Geometry,
    ) -> impl Iterator<Item = Domain> + use<'_> {
        let is_crowded = move |(domain, count): &(Domain, usize)| {
            self.fault(*domain, *count, geometry.pieces(), geometry.parity()) == CROWDS
        };
        counts.into_iter().filter(is_crowded).map(|(domain, _)| domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_domain_has_its_share() {
        let labels = |rack: &str, site: &str| {
            Labels::from([("rack".to_string(), rack.to_string()), ("site".to_string(), site.to_string())])
        };
        let id = |i: u8| NodeId([i; 16]);
        let all: BTreeMap<NodeId, Labels> =
            (0..9).map(|i| (id(i), labels(["a", "b", "c"][usize::from(i % 3)], "x"))).collect();
        let domains = Domains::new(&all, &BTreeSet::new());
        let kinds = domains.kinds((0..9).map(id));
        assert_eq!(kinds["rack"], Kind { sizes: vec![3, 3, 3], others: 0 });
        assert!(kinds["site"].is_everywhere() && kinds.len() == 2);
        let geometry = Geometry::new(4, 2).unwrap();
        assert!(!kinds["rack"].is_crowded(6, 2) && kinds["rack"].is_crowded(8, 2));
        // A rack with nearly everything: the others are too few.
        let uneven = Kind { sizes: vec![18, 1, 1], others: 0 };
        assert!(uneven.is_crowded(15, 5));
        assert!(!Kind { others: 8, ..uneven }.is_crowded(15, 5));
        let mut some = all.clone();
        some.insert(id(20), Labels::new());
        assert_eq!(Domains::new(&some, &BTreeSet::new()).share(1, 6, 2), 2, "whatever has no label is another place");
        let counts = domains.count([0, 3, 6, 1].into_iter().map(id));
        let crowded: Vec<String> = domains.crowded(counts, geometry).map(|d| domains.name(d)).collect();
        assert_eq!(crowded, ["rack=a"], "the only site is nobody's fault");
        let rack = domains.of(id(0))[0];
        assert_eq!(domains.share(rack, 6, 2), 2);
        assert_eq!(domains.share(rack, 10, 2), 2, "no more than can be lost");
        assert_eq!(domains.share(domains.of(id(0))[1], 6, 2), usize::MAX);
        assert!(domains.of(id(99)).is_empty());
        assert!(
            is_valid_part("a-3.x") && !is_valid_part("") && !is_valid_part("a b") && !is_valid_part(&"x".repeat(41))
        );
    }
}
