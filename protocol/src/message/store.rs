//! The controller to a stash.

use images::fragment::{FragmentHeader, FragmentId};
use images::keys::{HolderSecret, Token};
use images::limits::SEALED_MAX;
use images::manifest::{ImageName, SegmentEntry};
use images::parity::Geometry;
use images::shares::KeyShare;
use images::{FragmentDigest, GroupId, ManifestId, NodeId, SegmentId};
use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::directory::Mark;
use crate::io::statement::Statement;

/// Whose partition a fragment goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner(pub u32);

/// The array's own images.
pub const OWNER_IMAGES: Owner = Owner(1);

/// Keep a fragment; its payload follows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutFragment {
    /// The partition.
    pub owner: Owner,
    /// Which fragment, and what it hashes to.
    pub header: FragmentHeader,
}

/// The fragment is durable: it was written and synced, or was there already.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stored;

/// Forget fragments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeleteFragments {
    /// Which.
    pub fragments: Vec<FragmentId>,
    /// The directory of whoever says so. A stash that holds one which that controller does not know refuses: what an old catalog wants
    /// deleted may be needed by now.
    pub directory: Mark,
}

/// They are gone, durably; those that were not there count as gone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deleted;

/// A fragment that a stash is to have, and what it needs for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// The segment.
    pub segment: SegmentId,
    /// Its geometry.
    pub geometry: Geometry,
    /// Its sealed bytes.
    pub sealed_len: u32,
    /// Digest of the payload of each piece, n of them.
    pub fragments: Vec<FragmentDigest>,
    /// Holder of each piece, n of them.
    pub holders: Vec<NodeId>,
    /// Pieces to have. With several, others of them are for members that copy them from here.
    pub pieces: Vec<u8>,
    /// A member that has the pieces, and is asked first.
    pub from: Option<NodeId>,
}

impl Wanted {
    /// Whether the numbers fit each other and the limits.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let n = self.geometry.pieces();
        let counts = self.fragments.len() == n && self.holders.len() == n && !self.pieces.is_empty();
        counts && self.sealed_len as usize <= SEALED_MAX && self.pieces.iter().all(|piece| usize::from(*piece) < n)
    }

    /// As fetching wants it.
    #[must_use]
    pub fn entry(&self) -> SegmentEntry {
        SegmentEntry {
            id: self.segment,
            sealed_len: self.sealed_len,
            data_len: 0,
            group: GroupId(0),
            geometry: self.geometry,
            fragments: self.fragments.clone(),
            runs: Vec::new(),
        }
    }
}

/// Have these fragments: copied from who has them, or made out of any k others of their segments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rebuild {
    /// The partition.
    pub owner: Owner,
    /// Which.
    pub wanted: Vec<Wanted>,
    /// Whoever asks waits so long. Nothing is kept later: it may have been deleted by then.
    pub within_ms: u32,
}

/// What became of a [`Wanted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rebuilt {
    /// All its pieces are here, durably.
    Here {
        /// Payload bytes that were fetched for it.
        fetched: u64,
    },
    /// Too few pieces can be had: what is missing, in words.
    Short(String),
    /// It could not be kept.
    Refused(Refusal),
}

/// What became of each, in their order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcomes {
    /// One for each that was wanted.
    pub outcomes: Vec<Rebuilt>,
}

/// Prove that a fragment is held, by a range of its payload that the asker chose at random.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prove {
    /// Which fragment.
    pub fragment: FragmentId,
    /// Byte offset of the range.
    pub offset: u32,
    /// Its length; the answer is this and some 64 bytes a tree level.
    pub len: u32,
}

/// The range with its BLAKE3 tree path (a Bao slice) follows. It verifies against the fragment's digest, which the asker has;
/// nobody can make one without the bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proof;

/// Keep a share of an image's key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutShare {
    /// The image's manifest.
    pub manifest: ManifestId,
    /// The share.
    pub share: KeyShare,
    /// Tokens for deployments of that image follow from this.
    pub secret: HolderSecret,
}

/// Ask for a share, to install the image while the controller is away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetShare {
    /// The image.
    pub image: ImageName,
    /// Its manifest.
    pub manifest: ManifestId,
    /// Tag of the order of the deployment that the asker's certificate names, if it wants to open that, too.
    pub order: Option<[u8; 32]>,
}

/// What a holder gives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum TheShare {
    /// The share.
    Given {
        /// The share.
        share: KeyShare,
        /// For the order that was asked for.
        token: Option<Token>,
        /// What an earlier installer of the same deployment last left here: a [`super::image::LeftReport`].
        left: Option<Statement>,
    },
    /// Nothing: the asker's deployment was carried out, as its installer said.
    Done(Statement),
}

/// What became of a deployment, as far as a holder of shares of its image's key knows?
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetWord {
    /// The deployment.
    pub deployment: u32,
}

/// That.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TheWord {
    /// What its installer said last: a [`super::image::LeftReport`].
    pub last: Option<Statement>,
}

/// What a stash has: some of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ListFragments {
    /// Those after this one; none from the first one on.
    pub after: Option<FragmentId>,
    /// At the most so many, and no more than [`LIST_MAX`](crate::limits::LIST_MAX).
    pub most: u32,
}

/// Some of what a stash has, in order. Fewer than were asked for: that is all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fragments {
    /// Which.
    pub fragments: Vec<FragmentId>,
}
