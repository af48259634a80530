//! The controller to a stash.

use images::ManifestId;
use images::fragment::{FragmentHeader, FragmentId};
use images::manifest::ImageName;
use images::shares::KeyShare;
use serde::{Deserialize, Serialize};

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
}

/// Ask for a share, to install the image while the controller is away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetShare {
    /// The image.
    pub image: ImageName,
    /// Its manifest.
    pub manifest: ManifestId,
}

/// The share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TheShare {
    /// The share.
    pub share: KeyShare,
    /// What an earlier installer of the same deployment last left here: a [`super::image::LeftReport`].
    pub left: Option<Statement>,
}
