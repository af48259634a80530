//! The directory: the array's file allocation table. One writer, an epoch, signed; a member never goes back to an older one.
//!
//! Two directories of one array are compared by their [`Mark`]: a *term*, which a person's word alone counts up, an epoch inside it, and the
//! *line* that it belongs to. A controller begins a new line with every start, and its directories name the lines that they come from
//! and where each ended. So a controller that went on from an old backup, or beside another one, is recognised as a fork however
//! far it got: members keep what they have and say so, until a person decides by a new term.

mod table;
mod update;

pub use table::Table;
pub use update::{SignedDirectory, Update};

use std::collections::BTreeMap;
use std::net::SocketAddr;

use images::manifest::{ArrayKey, ImageName, SignError};
use images::parity::Geometry;
use images::shares::{Order, ShareDigest};
use images::wire::{self, DecodeError};
use images::{ArrayId, GroupId, ManifestId, NodeId};
use serde::{Deserialize, Serialize};

use crate::limits::{ADDRESSES_MAX, DIRECTORY_ROWS_MAX, MEMBERS_MAX, SHARES_MAX};
use crate::machine::{Mac, Marks, Uuid};
use crate::message::boot::{Deployment, SealedOrder};

const PURPOSE: &str = "directory";
/// Lines that a directory names. A member that slept through more starts of its controller takes the newest on its signature alone.
const LINES_MAX: usize = 512;
/// For so many epochs it is remembered what was removed; whoever is further behind gets the whole directory.
const REMOVALS_KEPT: u64 = 4096;

/// Counts changes of the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What one start of one controller signs. Random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Line(pub [u8; 8]);

/// What tells a directory from every other of the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// Counts up when a person overrules what members know.
    pub term: u64,
    /// Counts up with each change.
    pub epoch: Epoch,
    /// Who signed it.
    pub line: Line,
    /// First half of the BLAKE3 of its canonical bytes.
    pub digest: [u8; 16],
}

/// What another directory is, seen from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This very one.
    Same,
    /// A predecessor, or of an earlier term.
    Older,
    /// A later one, as far as numbers say.
    Newer,
    /// Neither comes from the other: two controllers went on from the same directory.
    Fork,
}

/// A store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
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
    /// n members. Only a mass-storage device is there several times.
    pub members: Vec<NodeId>,
}

/// How an image's key can be had while the controller is away: from shares of so many stashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Shares that are needed, 2 at least.
    pub threshold: u8,
    /// Who has one, and what tells it from a wrong one.
    pub holders: Vec<(NodeId, ShareDigest)>,
}

/// A published image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// BLAKE3 of the root.
    pub manifest: ManifestId,
    /// Counts publications: the newest tag of a name has the highest.
    pub number: u64,
    /// The signed root as a page of the array.
    pub root: images::manifest::PageRef,
    /// The manifest's key, sealed for the authority.
    pub sealed_key: Vec<u8>,
    /// Whether it may be installed while the controller is away, and how.
    pub offline: Option<Shares>,
}

/// What is to become of a machine, for a boot server and an installer that the controller is not there to tell. Only what a boot server
/// must know can be read here; the rest opens with what the holders of shares of the image's key give to this deployment alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The deployment's number.
    pub id: u32,
    /// What to install.
    pub image: ImageName,
    /// Not before this, seconds since 1970.
    pub not_before_unix_s: u64,
    /// Whether to give a shell when it fails.
    pub rescue: bool,
    /// A [`crate::message::boot::SealedOrder`].
    pub order: Order,
    /// The row of sealed cloud-init data that belongs to it.
    pub user_data: Option<[u8; 32]>,
}

impl Planned {
    /// All of it, from its opened order. `None` if this is not what the array's controller sealed.
    #[must_use]
    pub fn read(&self, directory: &Directory, order: &[u8]) -> Option<Deployment> {
        let order: SealedOrder = wire::decode(order).ok()?;
        let user_data = match (&self.user_data, order.user_data_key) {
            (Some(digest), Some(key)) => {
                Some(String::from_utf8(key.open(directory.user_data.get(digest)?).ok()?).ok()?)
            }
            _ => None,
        };
        let deployment = Deployment { user_data, ..order.deployment };
        (deployment.id == self.id && deployment.image == self.image).then_some(deployment)
    }
}

/// A machine that an admin approved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What people call it.
    pub name: String,
    /// SMBIOS UUID.
    pub uuid: Option<Uuid>,
    /// Serial number.
    pub serial: Option<String>,
    /// All Ethernet addresses that it was seen with.
    pub macs: Vec<Mac>,
    /// Groups.
    pub groups: Vec<String>,
    /// What is to become of it, if it may become that while the controller is away.
    pub planned: Option<Planned>,
}

impl Host {
    /// What it is known by.
    #[must_use]
    pub fn marks(&self) -> Marks<'_> {
        Marks { uuid: self.uuid, serial: self.serial.as_deref(), macs: &self.macs }
    }
}

/// What an admin decided for the time in which the controller is away. What may become of an image is in its [`Head`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Boot servers that may then admit installers.
    pub boot_servers: Vec<NodeId>,
}

/// What is true of the whole array.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// Where the controller listens, `host:port`.
    pub controller: Vec<String>,
    /// The authority's secrets, sealed to the recovery kit.
    pub sealed_authority: Vec<u8>,
    /// The highest number that a machine was ever given: a number is never given again.
    pub last_host: u32,
    /// The same for deployments.
    pub last_deployment: u32,
    /// What was decided.
    pub policy: Policy,
}

/// All that a directory says, without when it changed.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The array as a whole.
    pub common: Common,
    /// Stores.
    pub members: BTreeMap<NodeId, Member>,
    /// Groups that published images use.
    pub groups: BTreeMap<GroupId, Group>,
    /// Published images.
    pub heads: BTreeMap<ImageName, Head>,
    /// Machines that may be installed, by their numbers.
    pub hosts: BTreeMap<u32, Host>,
    /// cloud-init data of planned deployments, sealed, by the BLAKE3 of what is here: machines of one deployment share theirs.
    pub user_data: BTreeMap<[u8; 32], Vec<u8>>,
    /// What the controller notes for the one that may have to take its place, sealed.
    pub notes: BTreeMap<u16, Vec<u8>>,
}

/// The directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The array.
    pub array: ArrayId,
    /// Counts up when a person overrules what members know.
    pub term: u64,
    /// Counts up with each change.
    pub epoch: Epoch,
    /// Who signed it.
    line: Line,
    /// The lines of this term that it comes from, and the last epoch of each that is a predecessor; the newest last.
    lines: Vec<(Line, Epoch)>,
    /// Removals up to here are not listed any more.
    forgotten: Epoch,
    common: Table<(), Common>,
    /// Stores.
    pub members: Table<NodeId, Member>,
    /// Groups that published images use.
    pub groups: Table<GroupId, Group>,
    /// Published images.
    pub heads: Table<ImageName, Head>,
    /// Machines that may be installed, by their numbers.
    pub hosts: Table<u32, Host>,
    /// Sealed cloud-init data, by its BLAKE3.
    pub user_data: Table<[u8; 32], Vec<u8>>,
    /// What only a controller of this array can read.
    pub notes: Table<u16, Vec<u8>>,
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
    /// Changes of a directory that is not here.
    #[error("these are changes of another directory than the one that is here")]
    Base,
    /// The one that is here is as new, or newer.
    #[error("epoch {} of term {} is not newer than what is here", .0.epoch, .0.term)]
    Stale(Mark),
    /// It does not come from the one that is here: two controllers direct this array.
    #[error("epoch {} of term {} does not come from the directory that is here: two controllers direct this array", .0.epoch, .0.term)]
    Fork(Mark),
}

impl Directory {
    /// The first directory of a term, or the one that follows `previous`; `epoch` must be higher than the previous one's.
    #[must_use]
    pub fn next(
        previous: Option<&SignedDirectory>,
        array: ArrayId,
        line: Line,
        epoch: Epoch,
        contents: Contents,
    ) -> Self {
        let (mut lines, mut forgotten, mut term) = (Vec::new(), Epoch(0), 1);
        if let Some(previous) = previous {
            let mark = previous.mark();
            lines.clone_from(&previous.directory().lines);
            if mark.line != line {
                lines.push((mark.line, mark.epoch));
                lines.drain(..lines.len().saturating_sub(LINES_MAX));
            }
            (forgotten, term) = (previous.directory().forgotten, mark.term);
        }
        let forgotten = forgotten.max(Epoch(epoch.0.saturating_sub(REMOVALS_KEPT)));
        let empty = Self {
            array,
            term,
            epoch,
            line,
            lines,
            forgotten,
            common: Table::default(),
            members: Table::default(),
            groups: Table::default(),
            heads: Table::default(),
            hosts: Table::default(),
            user_data: Table::default(),
            notes: Table::default(),
        };
        let before = previous.map_or(&empty, |p| p.directory());
        Self {
            common: before.common.advance(BTreeMap::from([((), contents.common)]), epoch, forgotten),
            members: before.members.advance(contents.members, epoch, forgotten),
            groups: before.groups.advance(contents.groups, epoch, forgotten),
            heads: before.heads.advance(contents.heads, epoch, forgotten),
            hosts: before.hosts.advance(contents.hosts, epoch, forgotten),
            user_data: before.user_data.advance(contents.user_data, epoch, forgotten),
            notes: before.notes.advance(contents.notes, epoch, forgotten),
            ..empty
        }
    }

    /// Overrule whatever members know: this directory in a new term.
    #[must_use]
    pub fn in_term(self, term: u64) -> Self {
        Self { term, lines: Vec::new(), ..self }
    }

    /// Sign it.
    #[must_use]
    pub fn sign(self, key: &ArrayKey) -> SignedDirectory {
        let signed = key.sign(PURPOSE, wire::encode(&self));
        SignedDirectory::new(self, signed.signature)
    }

    /// What tells it from every other.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(&wire::encode(self)).as_bytes()[..16]);
        Mark { term: self.term, epoch: self.epoch, line: self.line, digest }
    }

    /// What another directory is, seen from this one, whose mark is `own`.
    #[must_use]
    pub fn compare(&self, own: Mark, other: Mark) -> Verdict {
        if own == other {
            return Verdict::Same;
        }
        if other.term != own.term {
            return if other.term < own.term { Verdict::Older } else { Verdict::Newer };
        }
        match other.epoch.cmp(&own.epoch) {
            std::cmp::Ordering::Greater => Verdict::Newer,
            std::cmp::Ordering::Equal => Verdict::Fork,
            std::cmp::Ordering::Less => {
                if self.comes_from(other.line, other.epoch) {
                    Verdict::Older
                } else {
                    Verdict::Fork
                }
            }
        }
    }

    /// Whether an earlier epoch of a line of this term is a predecessor.
    fn comes_from(&self, line: Line, epoch: Epoch) -> bool {
        match self.lines.iter().rev().find(|(known, _)| *known == line) {
            Some((_, last)) => epoch <= *last,
            None if line == self.line => true,
            // What lies before the first line of a full list is forgotten.
            None => self.lines.len() == LINES_MAX && self.lines.first().is_some_and(|(_, last)| epoch < *last),
        }
    }

    /// Whether a directory of this mark is a predecessor, and near enough to be brought up by changes alone.
    fn has_passed(&self, other: Mark) -> bool {
        other.term == self.term && other.epoch >= self.forgotten && self.comes_from(other.line, other.epoch)
    }

    fn since(&self, from: Epoch) -> Self {
        Self {
            common: self.common.since(from),
            members: self.members.since(from),
            groups: self.groups.since(from),
            heads: self.heads.since(from),
            hosts: self.hosts.since(from),
            user_data: self.user_data.since(from),
            notes: self.notes.since(from),
            lines: self.lines.clone(),
            ..*self
        }
    }

    fn applied(&self, changes: Self) -> Self {
        let forgotten = changes.forgotten;
        Self {
            common: self.common.applied(changes.common, forgotten),
            members: self.members.applied(changes.members, forgotten),
            groups: self.groups.applied(changes.groups, forgotten),
            heads: self.heads.applied(changes.heads, forgotten),
            hosts: self.hosts.applied(changes.hosts, forgotten),
            user_data: self.user_data.applied(changes.user_data, forgotten),
            notes: self.notes.applied(changes.notes, forgotten),
            ..changes
        }
    }

    /// Whether every member will accept it, as far as numbers go.
    ///
    /// # Errors
    /// [`DirectoryError::Array`] or [`DirectoryError::Invalid`].
    pub fn check(&self, array: ArrayId) -> Result<(), DirectoryError> {
        if self.array != array {
            return Err(DirectoryError::Array(self.array));
        }
        let rows = [
            self.common.rows(),
            self.groups.rows(),
            self.heads.rows(),
            self.hosts.rows(),
            self.user_data.rows(),
            self.notes.rows(),
        ];
        let few = self.members.rows() <= MEMBERS_MAX && rows.iter().all(|rows| *rows <= DIRECTORY_ROWS_MAX);
        let groups_fit = self.groups.iter().all(|(_, g)| g.members.len() == g.geometry.pieces());
        let addresses_fit = self.members.iter().all(|(_, m)| m.addresses.len() <= ADDRESSES_MAX);
        let shares_fit = self
            .heads
            .iter()
            .filter_map(|(_, h)| h.offline.as_ref())
            .all(|s| (2..=s.holders.len()).contains(&usize::from(s.threshold)) && s.holders.len() <= SHARES_MAX);
        if few && groups_fit && addresses_fit && shares_fit && self.lines.len() <= LINES_MAX {
            Ok(())
        } else {
            Err(DirectoryError::Invalid)
        }
    }

    /// The array as a whole.
    #[must_use]
    pub fn common(&self) -> Common {
        self.common.get(&()).cloned().unwrap_or_default()
    }

    /// An image by its name; without a tag the newest.
    #[must_use]
    pub fn head(&self, name: &str, tag: Option<&str>) -> Option<(&ImageName, &Head)> {
        let of_name = self.heads.iter().filter(|(image, _)| image.name() == name);
        match tag {
            Some(tag) => { of_name }.find(|(image, _)| image.tag() == tag),
            None => of_name.max_by_key(|(_, head)| head.number),
        }
    }
}

#[cfg(test)]
mod tests;
