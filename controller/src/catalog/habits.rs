//! What an admin wants of the array, what stashes are labelled with, and when they were up.

use std::collections::{BTreeMap, BTreeSet};

use images::{NodeId, wire};
use redb::{ReadableDatabase as _, ReadableTable as _};

use super::records::PolicyRecord;
use super::tables::{DEVICES, HISTORIES, LABELS, NODES, POLICIES};
use super::{Catalog, CatalogError, Change, Result};
use crate::attendance::History;
use crate::domains::Labels;

/// Labels of one stash. What an admin says of stashes lies in the directory, which has a limit.
const LABELS_MAX: usize = 16;

impl Catalog {
    /// What is wanted of all images (under no name), and of some by name.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn policies(&self) -> Result<BTreeMap<String, PolicyRecord>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(POLICIES)?;
        let row = |row: std::result::Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, &[u8]>), _>| {
            let (name, record) = row?;
            Ok((name.value().to_string(), wire::decode(record.value())?))
        };
        table.iter()?.map(row).collect()
    }

    /// Labels of stashes that have some.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn labels(&self) -> Result<BTreeMap<NodeId, Labels>> {
        Ok(self.all(LABELS)?.into_iter().map(|(node, labels)| (NodeId(node), labels)).collect())
    }

    /// Which of the stashes are mass-storage devices.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn devices(&self) -> Result<BTreeSet<NodeId>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(DEVICES)?;
        table.iter()?.map(|row| Ok(NodeId(row?.0.value()))).collect()
    }

    /// When stashes were up.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn histories(&self) -> Result<BTreeMap<NodeId, History>> {
        Ok(self.all(HISTORIES)?.into_iter().map(|(node, history)| (NodeId(node), history)).collect())
    }
}

impl Change<'_> {
    /// Change what is wanted of images of a name, or of all. What wants nothing is forgotten.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn change_policy(&self, name: &str, work: impl FnOnce(&mut PolicyRecord)) -> Result<()> {
        let mut table = self.0.open_table(POLICIES)?;
        let found = table.get(name)?.map(|v| wire::decode::<PolicyRecord>(v.value())).transpose()?;
        let before = found.unwrap_or_default();
        let mut record = before.clone();
        work(&mut record);
        if record == before {
            return Ok(());
        }
        if record == PolicyRecord::default() {
            table.remove(name)?;
        } else {
            table.insert(name, wire::encode(&record).as_slice())?;
        }
        self.note()
    }

    /// Change the labels of a stash.
    ///
    /// # Errors
    /// [`super::CatalogError`]; [`super::CatalogError::Conflict`] if they are too many.
    pub fn change_labels(&self, node: NodeId, work: impl FnOnce(&mut Labels)) -> Result<()> {
        let mut table = self.0.open_table(LABELS)?;
        let found = table.get(node.0)?.map(|v| wire::decode::<Labels>(v.value())).transpose()?;
        let before = found.unwrap_or_default();
        let mut labels = before.clone();
        work(&mut labels);
        if labels == before {
            return Ok(());
        }
        if labels.len() > LABELS_MAX {
            return Err(CatalogError::Conflict(format!(
                "a stash has {LABELS_MAX} labels at the most, and {node} would have more"
            )));
        }
        if labels.is_empty() {
            table.remove(node.0)?;
        } else {
            table.insert(node.0, wire::encode(&labels).as_slice())?;
        }
        self.note()
    }

    /// A stash is a mass-storage device, or is none any more. What it holds would then lie on the wrong kind of member, so it must be empty.
    ///
    /// # Errors
    /// [`super::CatalogError::Conflict`] if it has a place in a group, or gets one.
    pub fn set_device(&self, node: NodeId, is_device: bool) -> Result<()> {
        let mut table = self.0.open_table(DEVICES)?;
        if table.get(node.0)?.is_some() == is_device {
            return Ok(());
        }
        self.check_empty(node)?;
        if is_device {
            drop(table.insert(node.0, ())?)
        } else {
            drop(table.remove(node.0)?)
        }
        drop(table);
        self.change_standing(node, |standing| standing.draining = false)?;
        self.note()
    }

    pub(super) fn is_device(&self, node: NodeId) -> Result<bool> {
        Ok(self.0.open_table(DEVICES)?.get(node.0)?.is_some())
    }

    /// An hour of the week is over: these members were up in it, and the others not.
    ///
    /// # Errors
    /// [`super::CatalogError`].
    pub fn note_hour(&self, hour: usize, was_up: impl Fn(NodeId) -> bool) -> Result<()> {
        let mut table = self.0.open_table(HISTORIES)?;
        for row in self.0.open_table(NODES)?.iter()? {
            let node = row?.0.value();
            let found = table.get(node)?.map(|v| wire::decode::<History>(v.value())).transpose()?;
            let mut history = found.unwrap_or_default();
            history.note(hour, was_up(NodeId(node)));
            table.insert(node, wire::encode(&history).as_slice())?;
        }
        Ok(())
    }

    /// It is no member any more.
    pub(super) fn forget_habits(&self, node: NodeId) -> Result<()> {
        self.0.open_table(HISTORIES)?.remove(node.0)?;
        self.0.open_table(LABELS)?.remove(node.0)?;
        self.0.open_table(DEVICES)?.remove(node.0)?;
        Ok(())
    }
}
