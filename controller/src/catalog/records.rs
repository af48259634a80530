//! What the tables hold. Postcard; fields are added at the end only, under a new table.

use std::net::SocketAddr;

use images::keys::{ManifestKey, SegmentKey};
use images::manifest::{PageRef, Signed};
use images::parity::Geometry;
use images::{FragmentDigest, GroupId, ManifestId, NodeId, SegmentId};
use protocol::directory::Shares;
use protocol::identity::Role;
use protocol::message::publish::Layout;
use serde::{Deserialize, Serialize};

/// A published image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Counts publications: the newest tag of a name is the one with the highest number.
    pub number: u64,
    /// BLAKE3 of the root.
    pub manifest: ManifestId,
    /// The root, signed.
    pub signed: Signed,
    /// Where the signed root lies in the array.
    pub root: PageRef,
    /// Opens the segment keys.
    pub key: ManifestKey,
    /// Among whom the key is split, if it may be installed while the controller is away.
    pub offline: Option<Shares>,
}

/// A manifest that was replaced by another of the same contents.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RetiredRecord {
    /// `name:tag`.
    pub image: String,
    /// As the image was known.
    pub record: ImageRecord,
    /// Until when installations may use it, seconds since 1970.
    pub until_unix_s: u64,
}

/// What a person said of one image when it was published, whatever policies want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaidRecord {
    /// k + m.
    pub geometry: Option<Geometry>,
    /// Who keeps what.
    pub layout: Option<Layout>,
}

/// A segment that is durable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Sealed bytes.
    pub sealed_len: u32,
    /// Chunk bytes inside.
    pub data_len: u32,
    /// Opens it.
    pub key: SegmentKey,
    /// Who holds it.
    pub group: GroupId,
    /// Digest of each piece.
    pub fragments: Vec<FragmentDigest>,
    /// Whether mass storage has a whole copy.
    pub on_mass_storage: bool,
    /// Images that refer to it.
    pub references: u64,
    /// When it became durable, seconds since 1970.
    pub stored_unix_s: u64,
}

impl SegmentRecord {
    /// Whether it is a page of a manifest, which the catalog has, too.
    #[must_use]
    pub fn is_page(&self) -> bool {
        self.data_len == 0
    }

    /// Whether a whole copy should be somewhere.
    #[must_use]
    pub fn has_copy(&self) -> bool {
        self.on_mass_storage || self.is_page()
    }
}

/// A segment on its way: where its bytes may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRecord {
    /// Pieces that were sent, and to whom.
    pub sent: Vec<(u8, NodeId)>,
    /// Whether mass storage may have a copy.
    pub copy: bool,
}

impl PendingRecord {
    /// Add what is sent further.
    pub fn merge(&mut self, other: &Self) {
        for sent in &other.sent {
            if !self.sent.contains(sent) {
                self.sent.push(*sent);
            }
        }
        self.copy |= other.copy;
    }
}

/// A group and how much it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// k + m.
    pub geometry: Geometry,
    /// Holder of each piece.
    pub members: Vec<NodeId>,
    /// Segments in it.
    pub segments: u64,
}

/// A member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What it may do.
    pub role: Role,
    /// Where it was last heard from.
    pub addresses: Vec<SocketAddr>,
    /// Bytes it offers.
    pub capacity: u64,
    /// When it joined, seconds since 1970.
    pub joined_unix_s: u64,
}

/// What is thought of a member: apart from what it says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Seconds for which it was not heard while this controller ran and heard most others, to the minute. No clock can make it jump.
    pub silent_s: u64,
    /// An admin wants everything that it holds elsewhere.
    pub draining: bool,
    /// Its owner wants it to leave.
    pub leaving: bool,
    /// An admin wants it to be no member any more.
    pub removed: bool,
    /// It is not coming back: an admin said so, or its owner. Kept of members that were removed, too.
    pub lost: bool,
    /// The machine that it was installed on, if that was deployed.
    pub host: Option<u32>,
    /// It said that it had what it has not: nothing new goes there, and what it should have is made anew elsewhere.
    pub distrusted: bool,
}

impl Standing {
    /// What of it clients keep for another controller.
    #[must_use]
    pub fn without_silence(self) -> Self {
        Self { silent_s: 0, ..self }
    }

    /// Whether what it holds counts.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !self.lost && !self.distrusted
    }

    /// Whether everything that it holds is to be elsewhere.
    #[must_use]
    pub fn is_sent_away(&self) -> bool {
        self.draining || self.leaving || self.removed
    }

    /// Whether anything new may go there.
    #[must_use]
    pub fn may_take(&self) -> bool {
        self.is_durable() && !self.is_sent_away()
    }
}

/// A member of a group that is being replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// The member that holds the piece until all is done.
    pub from: NodeId,
    /// The member that will.
    pub to: NodeId,
    /// A third one, which makes the piece for `to` while it makes its own: one read for both.
    pub via: Option<NodeId>,
    /// When it began, seconds since 1970.
    pub since_unix_s: u64,
}

/// What is wanted of images. What is left open follows from what is wanted of all, or from the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Stashes that may be lost.
    pub survive: Option<u8>,
    /// How often a segment can be read from clients in the busy hours, in hundredths of a percent.
    pub readable: Option<u16>,
    /// Who keeps what.
    pub layout: Option<Layout>,
    /// Copies instead of parity.
    pub redundant: Option<bool>,
    /// Of all images only: minutes of the day, local time, between which what can wait is done.
    pub window: Option<(u16, u16)>,
    /// Of all images only: bytes a second that repair may move.
    pub limit: Option<u64>,
}

/// A boot server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BootServerRecord {
    /// When it joined, seconds since 1970.
    pub joined_unix_s: u64,
    /// Whether it may admit installers while the controller is away.
    pub offline: bool,
    /// Until when it can, seconds since 1970; 0: it never asked for the right.
    pub delegated_until_unix_s: u64,
}

/// A ticket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TicketRecord {
    /// The role that it grants.
    pub role: Role,
    /// When it ends, seconds since 1970.
    pub expires_unix_s: u64,
    /// Who used it.
    pub used_by: Option<NodeId>,
    /// The machine that an installer is for.
    pub host: Option<u32>,
    /// Whether a boot server may admit installers while the controller is away.
    pub offline: bool,
}

impl TicketRecord {
    /// An unused one.
    #[must_use]
    pub fn new(role: Role, expires_unix_s: u64) -> Self {
        Self { role, expires_unix_s, used_by: None, host: None, offline: false }
    }
}

/// Something that must be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrashKey {
    /// A piece at a member.
    Fragment {
        /// The member.
        node: NodeId,
        /// The segment.
        segment: SegmentId,
        /// Piece number.
        piece: u8,
    },
    /// The whole copy on mass storage.
    Copy {
        /// The segment.
        segment: SegmentId,
    },
}

/// Stands for mass storage where a member would be named.
pub(super) const MASS_STORAGE: NodeId = NodeId([0; 16]);
const COPY: u8 = u8::MAX;

impl TrashKey {
    /// The segment that goes.
    #[must_use]
    pub fn segment(&self) -> SegmentId {
        match self {
            Self::Fragment { segment, .. } | Self::Copy { segment } => *segment,
        }
    }

    /// Keys of all that is to be deleted at a member.
    pub(super) fn at(node: NodeId) -> std::ops::RangeInclusive<[u8; 49]> {
        let (mut from, mut to) = ([0; 49], [u8::MAX; 49]);
        from[..16].copy_from_slice(&node.0);
        to[..16].copy_from_slice(&node.0);
        from..=to
    }

    /// Keys of all that is to be deleted of a segment, in the order of segments.
    pub(super) fn of(segment: &SegmentId) -> std::ops::RangeInclusive<[u8; 49]> {
        let (mut from, mut to) = ([0; 49], [u8::MAX; 49]);
        from[..32].copy_from_slice(&segment.0);
        to[..32].copy_from_slice(&segment.0);
        from..=to
    }

    fn parts(&self) -> (NodeId, SegmentId, u8) {
        match self {
            Self::Fragment { node, segment, piece } => (*node, *segment, *piece),
            Self::Copy { segment } => (MASS_STORAGE, *segment, COPY),
        }
    }

    fn from_parts(node: &[u8], segment: &[u8], piece: u8) -> Self {
        let node = NodeId(node.try_into().expect("16 bytes"));
        let segment = SegmentId(segment.try_into().expect("32 bytes"));
        match (node, piece) {
            (MASS_STORAGE, COPY) => Self::Copy { segment },
            (node, piece) => Self::Fragment { node, segment, piece },
        }
    }

    pub(super) fn encode(&self) -> [u8; 49] {
        let (node, segment, piece) = self.parts();
        let mut out = [0; 49];
        out[..16].copy_from_slice(&node.0);
        out[16..48].copy_from_slice(&segment.0);
        out[48] = piece;
        out
    }

    pub(super) fn decode(bytes: &[u8; 49]) -> Self {
        Self::from_parts(&bytes[..16], &bytes[16..48], bytes[48])
    }

    /// In the order of segments.
    pub(super) fn encode_by_segment(&self) -> [u8; 49] {
        let (node, segment, piece) = self.parts();
        let mut out = [0; 49];
        out[..32].copy_from_slice(&segment.0);
        out[32..48].copy_from_slice(&node.0);
        out[48] = piece;
        out
    }

    pub(super) fn decode_by_segment(bytes: &[u8; 49]) -> Self {
        Self::from_parts(&bytes[32..48], &bytes[..32], bytes[48])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trash_keys_round_trip() {
        let segment = SegmentId([7; 32]);
        for key in [TrashKey::Copy { segment }, TrashKey::Fragment { node: NodeId([1; 16]), segment, piece: 3 }] {
            assert_eq!(TrashKey::decode(&key.encode()), key);
            assert_eq!(TrashKey::decode_by_segment(&key.encode_by_segment()), key);
        }
    }
}
