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

/// One thing that can fail: a number instead of its key and value.
pub type Domain = usize;

/// The domains of a fleet.
#[derive(Clone, Debug, Default)]
pub struct Domains {
    of: BTreeMap<NodeId, Vec<Domain>>,
    names: Vec<(String, String)>,
    /// For each domain, how many there are of its kind.
    kinds: Vec<usize>,
}

impl Domains {
    /// From labels.
    #[must_use]
    pub fn new(labels: &BTreeMap<NodeId, Labels>) -> Self {
        let names: BTreeSet<(&String, &String)> = labels.values().flatten().collect();
        let names: Vec<(String, String)> = names.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let number = |name: (&String, &String)| names.binary_search_by(|(k, v)| (k, v).cmp(&name)).ok();
        let of = labels.iter().map(|(node, labels)| (*node, labels.iter().filter_map(number).collect())).collect();
        let kinds = names.iter().map(|(key, _)| names.iter().filter(|(k, _)| k == key).count()).collect();
        Self { of, names, kinds }
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

    /// Kinds of things that can fail, and how many there are of each.
    #[must_use]
    pub fn kinds(&self) -> BTreeMap<String, usize> {
        self.names.iter().zip(&self.kinds).map(|((key, _), count)| (key.clone(), *count)).collect()
    }

    /// Pieces of a group that one domain should have at the most: its even share, and no more than can be lost. A kind of which there is
    /// only one sets no limit.
    #[must_use]
    pub fn share(&self, domain: Domain, geometry: Geometry) -> usize {
        match self.kinds.get(domain) {
            Some(1) | None => usize::MAX,
            Some(kinds) => geometry.pieces().div_ceil(*kinds).min(geometry.parity()).max(1),
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
    pub fn crowded<'a>(
        &'a self,
        counts: &'a BTreeMap<Domain, usize>,
        geometry: Geometry,
    ) -> impl Iterator<Item = Domain> + 'a {
        let limit = geometry.parity().max(1);
        let is_crowded =
            move |(domain, count): &(&Domain, &usize)| **count > limit && self.share(**domain, geometry) != usize::MAX;
        counts.iter().filter(is_crowded).map(|(domain, _)| *domain)
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
        let domains = Domains::new(&all);
        assert_eq!(domains.kinds(), BTreeMap::from([("rack".to_string(), 3), ("site".to_string(), 1)]));
        let geometry = Geometry::new(4, 2).unwrap();
        let counts = domains.count([0, 3, 6, 1].into_iter().map(id));
        let crowded: Vec<String> = domains.crowded(&counts, geometry).map(|d| domains.name(d)).collect();
        assert_eq!(crowded, ["rack=a"], "the only site is nobody's fault");
        let rack = domains.of(id(0))[0];
        assert_eq!(domains.share(rack, geometry), 2);
        assert_eq!(domains.share(rack, Geometry::new(8, 2).unwrap()), 2, "no more than can be lost");
        assert_eq!(domains.share(domains.of(id(0))[1], geometry), usize::MAX);
        assert!(domains.of(id(99)).is_empty());
        assert!(
            is_valid_part("a-3.x") && !is_valid_part("") && !is_valid_part("a b") && !is_valid_part(&"x".repeat(41))
        );
    }
}
