//! The directory: the array's file allocation table. One writer, an epoch, signed; a member never goes back to an older one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use images::manifest::{ArrayKey, ArrayPublicKey, ImageName, SignError, Signed};
use images::parity::Geometry;
use images::wire::{self, DecodeError};
use images::{ArrayId, GroupId, ManifestId, NodeId};
use serde::{Deserialize, Serialize};

use crate::limits::{ADDRESSES_MAX, FRAME_MAX, MEMBERS_MAX};

const PURPOSE: &str = "directory";

/// Counts changes of the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// Where it was last heard from.
    pub addresses: Vec<SocketAddr>,
    /// Bytes that it offers.
    pub capacity: u64,
}

/// A protection group: piece *i* of each of its segments lies on `members[i]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// k + m.
    pub geometry: Geometry,
    /// n members, all different.
    pub members: Vec<NodeId>,
}

/// The directory's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The array.
    pub array: ArrayId,
    /// Counts up with each change.
    pub epoch: Epoch,
    /// Stores.
    pub members: Vec<Member>,
    /// Groups that published images use.
    pub groups: BTreeMap<GroupId, Group>,
    /// Published images.
    pub heads: BTreeMap<ImageName, ManifestId>,
}

/// Why a directory is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DirectoryError {
    /// Somebody else's, or nobody's.
    #[error("verify the directory")]
    Signature(#[from] SignError),
    /// Not a directory.
    #[error("decode the directory")]
    Decode(#[from] DecodeError),
    /// Another array's.
    #[error("the directory belongs to array {0}")]
    Array(ArrayId),
    /// Numbers beyond the limits, or a group that is none.
    #[error("the directory contradicts itself")]
    Invalid,
}

impl Directory {
    /// Sign it.
    #[must_use]
    pub fn sign(&self, key: &ArrayKey) -> Signed {
        key.sign(PURPOSE, wire::encode(self))
    }

    /// Verify and decode.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn open(signed: &Signed, array: ArrayId, key: &ArrayPublicKey) -> Result<Self, DirectoryError> {
        let directory: Self = wire::decode_canonical(signed.verify(PURPOSE, key)?, FRAME_MAX)?;
        if directory.array != array {
            return Err(DirectoryError::Array(directory.array));
        }
        let groups_fit = directory.groups.values().all(|g| g.members.len() == g.geometry.pieces());
        let addresses_fit = directory.members.iter().all(|m| m.addresses.len() <= ADDRESSES_MAX);
        if directory.members.len() > MEMBERS_MAX || !groups_fit || !addresses_fit {
            return Err(DirectoryError::Invalid);
        }
        Ok(directory)
    }

    /// A member, if it is listed.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|m| m.node == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_array_s_own_directory_opens() {
        let key = ArrayKey::from_seed(&[1; 32]).unwrap();
        let mut directory = Directory {
            array: ArrayId([5; 32]),
            epoch: Epoch(3),
            members: Vec::new(),
            groups: BTreeMap::new(),
            heads: BTreeMap::new(),
        };
        let open = |d: &Directory, array| Directory::open(&d.sign(&key), array, &key.public());
        assert_eq!(open(&directory, directory.array).as_ref(), Ok(&directory));
        assert_eq!(open(&directory, ArrayId([6; 32])), Err(DirectoryError::Array(directory.array)));
        let stranger = ArrayKey::from_seed(&[2; 32]).unwrap();
        let forged = directory.sign(&stranger);
        assert!(matches!(Directory::open(&forged, directory.array, &key.public()), Err(DirectoryError::Signature(_))));
        let group = Group { geometry: Geometry::new(2, 1).unwrap(), members: vec![NodeId([0; 16])] };
        directory.groups.insert(GroupId(1), group);
        assert_eq!(open(&directory, directory.array), Err(DirectoryError::Invalid));
    }
}
