//! What the controller notes for the one that may have to take its place: what an admin said of images and stashes, and what it thinks of
//! stashes. It lies sealed in the directory, so clients keep it, and cannot read it.

use std::collections::{BTreeMap, BTreeSet};

use images::keys::OwnerKey;
use images::{NodeId, wire};
use protocol::directory::Directory;
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, CatalogError, Change, PolicyRecord, SaidRecord, Standing};
use crate::domains::Labels;

/// Rows below this one are of stashes, by the first byte of their names: a label that changes is a short row.
const OF_IMAGES: u16 = 1 << 8;

/// Of a stash.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct OfNode {
    labels: Labels,
    is_device: bool,
    standing: Standing,
}

/// Of images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct OfImages {
    policies: BTreeMap<String, PolicyRecord>,
    said: BTreeMap<String, SaidRecord>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notes {
    nodes: BTreeMap<NodeId, OfNode>,
    images: OfImages,
}

impl Notes {
    /// What a catalog knows.
    ///
    /// # Errors
    /// The catalog's.
    pub fn of(catalog: &Catalog) -> Result<Self, CatalogError> {
        let (mut standings, mut labels, devices) = (catalog.standings()?, catalog.labels()?, catalog.devices()?);
        let mut nodes = BTreeMap::new();
        for (node, _) in catalog.nodes()? {
            let standing = standings.remove(&node).unwrap_or_default().without_silence();
            let labels = labels.remove(&node).unwrap_or_default();
            let of_node = OfNode { labels, is_device: devices.contains(&node), standing };
            if of_node != OfNode::default() {
                nodes.insert(node, of_node);
            }
        }
        Ok(Self { nodes, images: OfImages { policies: catalog.policies()?, said: catalog.said()? } })
    }

    /// As rows of the directory.
    #[must_use]
    pub fn seal(&self, owner: &OwnerKey) -> BTreeMap<u16, Vec<u8>> {
        let mut by_row: BTreeMap<u16, BTreeMap<&NodeId, &OfNode>> = BTreeMap::new();
        for (node, of_node) in &self.nodes {
            by_row.entry(node.0[0].into()).or_default().insert(node, of_node);
        }
        let mut rows: BTreeMap<u16, Vec<u8>> =
            by_row.iter().map(|(row, nodes)| (*row, owner.seal_note(*row, &wire::encode(nodes)))).collect();
        if self.images != OfImages::default() {
            rows.insert(OF_IMAGES, owner.seal_note(OF_IMAGES, &wire::encode(&self.images)));
        }
        rows
    }

    /// The same, the other way round. Rows that cannot be opened are left out, and named in the log.
    #[must_use]
    pub fn open(directory: &Directory, owner: &OwnerKey) -> Self {
        let mut notes = Self::default();
        for (&row, sealed) in directory.notes.iter() {
            let Ok(bytes) = owner.open_note(row, sealed) else {
                tracing::warn!(row, "a note of the controller of before cannot be opened");
                continue;
            };
            let is_read = match row {
                OF_IMAGES => wire::decode(&bytes).map(|images| notes.images = images).is_ok(),
                _ => wire::decode::<BTreeMap<NodeId, OfNode>>(&bytes).map(|nodes| notes.nodes.extend(nodes)).is_ok(),
            };
            if !is_read {
                tracing::warn!(row, "a note of the controller of before cannot be read");
            }
        }
        notes
    }

    /// Into an empty catalog that knows its members.
    ///
    /// # Errors
    /// The catalog's.
    pub fn restore(self, change: &Change<'_>, members: &BTreeSet<NodeId>) -> Result<(), CatalogError> {
        for (node, of_node) in self.nodes.into_iter().filter(|(node, _)| members.contains(node)) {
            if of_node.is_device {
                change.restore_device(node)?;
            }
            change.change_labels(node, |labels| *labels = of_node.labels)?;
            change.change_standing(node, |standing| *standing = of_node.standing)?;
        }
        for (name, record) in self.images.policies {
            change.change_policy(&name, |policy| *policy = record)?;
        }
        for (image, said) in self.images.said {
            if let Ok(image) = image.parse() {
                change.put_said(&image, &said)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use images::ArrayId;
    use protocol::directory::{Contents, Epoch, Line};
    use protocol::identity::Role;

    use super::*;
    use crate::catalog::NodeRecord;

    #[test]
    fn what_was_noted_is_there_again_and_nobody_else_reads_it() {
        let node = |i: u8| NodeId([i; 16]);
        let join = |change: &Change<'_>| {
            (1..4).try_for_each(|i| {
                let record = NodeRecord { role: Role::Stash, addresses: Vec::new(), capacity: 1, joined_unix_s: 0 };
                change.put_node(node(i), &record)
            })
        };
        let rack = Labels::from([("rack".to_string(), "a3".to_string())]);
        let catalog = Catalog::in_memory().unwrap();
        let epoch = |catalog: &Catalog| catalog.epoch().unwrap();
        catalog.change(|c| join(c)).unwrap();
        let before = epoch(&catalog);
        catalog
            .change(|c| {
                c.change_labels(node(1), |labels| *labels = rack.clone())?;
                c.set_device(node(2), true)?;
                c.change_standing(node(3), |s| (s.draining, s.distrusted, s.host) = (true, true, Some(7)))?;
                c.change_policy("exam", |policy| policy.survive = Some(5))?;
                c.put_said(
                    &"debian:12".parse().unwrap(),
                    &SaidRecord { geometry: None, layout: Some(Default::default()) },
                )
            })
            .unwrap();
        assert!(epoch(&catalog) > before, "clients hear of it");
        let noted = epoch(&catalog);
        catalog.change(|c| c.change_standing(node(3), |s| s.silent_s = 60).map(drop)).unwrap();
        assert_eq!(epoch(&catalog), noted, "a stash that is silent is no news to clients");

        let (notes, owner) = (Notes::of(&catalog).unwrap(), OwnerKey([1; 32]));
        let rows = notes.seal(&owner);
        assert_eq!(rows, notes.seal(&owner), "what did not change is not sent again");
        let contents = Contents { notes: rows, ..Contents::default() };
        let directory = Directory::next(None, ArrayId([0; 32]), Line([0; 8]), Epoch(1), contents);
        assert_eq!(Notes::open(&directory, &OwnerKey([2; 32])), Notes::default());
        assert_eq!(Notes::open(&directory, &owner), notes);

        let other = Catalog::in_memory().unwrap();
        let members: BTreeSet<NodeId> = [node(1), node(3)].into();
        other
            .change(|c| {
                join(c)?;
                Notes::open(&directory, &owner).restore(c, &members)
            })
            .unwrap();
        assert_eq!(other.labels().unwrap(), BTreeMap::from([(node(1), rack)]));
        assert!(other.devices().unwrap().is_empty(), "that one is no member any more");
        let standing = other.standing(node(3)).unwrap();
        assert_eq!(
            (standing.draining, standing.distrusted, standing.host, standing.silent_s),
            (true, true, Some(7), 0)
        );
        assert_eq!(other.policies().unwrap(), catalog.policies().unwrap());
        assert_eq!(other.said().unwrap(), catalog.said().unwrap());
    }
}
