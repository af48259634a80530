//! What the controller notes for the one that may have to take its place: what an admin said of images and stashes, and what it thinks of
//! stashes. It lies sealed in the directory, so clients keep it, and cannot read it.

use std::collections::{BTreeMap, BTreeSet};

use images::keys::OwnerKey;
use images::{NodeId, wire};
use protocol::directory::Directory;
use protocol::limits::NOTES_LEN_MAX;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, CatalogError, Change, PolicyRecord, SaidRecord, Standing};
use crate::domains::Labels;

/// A form of notes that cannot be read as this one has another number.
const VERSION: u8 = 1;
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

fn encode(note: &impl Serialize) -> Vec<u8> {
    [&[VERSION][..], &wire::encode(note)].concat()
}

fn decode<T: DeserializeOwned + Serialize>(note: &[u8]) -> Option<T> {
    let (version, rest) = note.split_first()?;
    wire::decode(rest).ok().filter(|_| *version == VERSION)
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

    /// As rows of the directory. What is too much for it is left out.
    #[must_use]
    pub fn seal(&self, owner: &OwnerKey) -> BTreeMap<u16, Vec<u8>> {
        let mut by_row: BTreeMap<u16, BTreeMap<&NodeId, &OfNode>> = BTreeMap::new();
        for (node, of_node) in &self.nodes {
            by_row.entry(node.0[0].into()).or_default().insert(node, of_node);
        }
        let of_images = (self.images != OfImages::default()).then(|| (OF_IMAGES, encode(&self.images)));
        let of_nodes = by_row.iter().map(|(row, nodes)| (*row, encode(nodes)));
        let (mut rows, mut len, mut left_out) = (BTreeMap::new(), 0, 0);
        for (row, note) in of_images.into_iter().chain(of_nodes) {
            let sealed = owner.seal_note(row, &note);
            if len + sealed.len() > NOTES_LEN_MAX {
                left_out += 1;
                continue;
            }
            len += sealed.len();
            rows.insert(row, sealed);
        }
        if left_out > 0 {
            tracing::warn!(left_out, "a controller that is recovered would not know all labels: they are too long");
        }
        rows
    }

    /// The same, the other way round; and how many rows cannot be read.
    #[must_use]
    pub fn open(directory: &Directory, owner: &OwnerKey) -> (Self, u64) {
        let (mut notes, mut unread) = (Self::default(), 0);
        for (&row, sealed) in directory.notes.iter() {
            let note = owner.open_note(row, sealed).unwrap_or_default();
            let is_read = match row {
                OF_IMAGES => decode(&note).map(|images| notes.images = images),
                _ => decode(&note).map(|nodes: BTreeMap<NodeId, OfNode>| notes.nodes.extend(nodes)),
            };
            unread += u64::from(is_read.is_none());
        }
        (notes, unread)
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
        let pass_on = |catalog: &Catalog| catalog.change(|c| c.pass_on_notes()).unwrap();
        assert!(catalog.has_new_notes().unwrap() && epoch(&catalog) == before);
        pass_on(&catalog);
        let noted = epoch(&catalog);
        assert!(noted > before && !catalog.has_new_notes().unwrap(), "clients hear of it, once");
        // A stash that is silent, and what was so before, is no news to clients.
        catalog
            .change(|c| {
                c.change_labels(node(1), |labels| *labels = rack.clone())?;
                c.change_standing(node(3), |s| s.silent_s = 60).map(drop)
            })
            .unwrap();
        pass_on(&catalog);
        assert_eq!(epoch(&catalog), noted);
        let many = |labels: &mut Labels| labels.extend((0..17).map(|i| (format!("l{i}"), "x".to_string())));
        assert!(catalog.change(|c| c.change_labels(node(1), many)).is_err());

        let (notes, owner) = (Notes::of(&catalog).unwrap(), OwnerKey([1; 32]));
        let rows = notes.seal(&owner);
        assert_eq!(rows, notes.seal(&owner), "what did not change is not sent again");
        let contents = Contents { notes: rows, ..Contents::default() };
        let directory = Directory::next(None, ArrayId([0; 32]), Line([0; 8]), Epoch(1), contents);
        let rows = directory.notes.rows() as u64;
        assert_eq!(Notes::open(&directory, &OwnerKey([2; 32])), (Notes::default(), rows));
        assert_eq!(Notes::open(&directory, &owner), (notes, 0));

        let other = Catalog::in_memory().unwrap();
        let members: BTreeSet<NodeId> = [node(1), node(3)].into();
        other
            .change(|c| {
                join(c)?;
                Notes::open(&directory, &owner).0.restore(c, &members)
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
