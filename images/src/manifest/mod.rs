//! The manifest: what an image is made of, signed, and read page by page.
//!
//! A small root names the image and lists pages by digest. A *segment page* describes up to
//! [`PAGE_SEGMENTS_MAX`](crate::limits::PAGE_SEGMENTS_MAX) segments with the digest of every fragment and the runs that
//! place their bytes on the disk; a *span page* holds read-back digests. A reader needs one page at a time, so its memory
//! does not grow with the image.

mod page;
mod sign;

pub use page::{PageError, Run, SegmentEntry, SegmentPage, SpanPage};
pub use sign::{ArrayKey, ArrayPublicKey, SignError, Signed};

use serde::{Deserialize, Serialize};

use crate::disk::Layout as DiskLayout;
use crate::ids::{ArrayId, ContentDigest, FragmentDigest, GroupId, ManifestId, SegmentId};
use crate::limits::{IMAGE_LEN_MAX, ROOT_LEN_MAX};
use crate::parity::Geometry;
use crate::wire::{self, DecodeError};

/// Versions of the manifest's encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// The first: root with segment pages and span pages.
    V1,
}

/// `name:tag`, in the characters that are safe in a path, a URL and a shell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(String, String)", into = "(String, String)")]
pub struct ImageName {
    name: String,
    tag: String,
}

/// A name that is not allowed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not an image name: want NAME:TAG, each of 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
)]
pub struct ImageNameError(String);

impl ImageName {
    /// Whether `part` can be a name or a tag.
    #[must_use]
    pub fn is_valid_part(part: &str) -> bool {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        (1..=64).contains(&part.len())
            && part.chars().all(allowed)
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
    }

    /// An image's name and tag.
    ///
    /// # Errors
    /// If either has a character that is not allowed.
    pub fn new(name: &str, tag: &str) -> Result<Self, ImageNameError> {
        if Self::is_valid_part(name) && Self::is_valid_part(tag) {
            Ok(Self { name: name.into(), tag: tag.into() })
        } else {
            Err(ImageNameError(format!("{name}:{tag}")))
        }
    }

    /// The part before the colon.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part behind the colon.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl std::str::FromStr for ImageName {
    type Err = ImageNameError;
    fn from_str(text: &str) -> Result<Self, ImageNameError> {
        let (name, tag) = text.split_once(':').ok_or_else(|| ImageNameError(text.into()))?;
        Self::new(name, tag)
    }
}

impl TryFrom<(String, String)> for ImageName {
    type Error = ImageNameError;
    fn try_from((name, tag): (String, String)) -> Result<Self, ImageNameError> {
        Self::new(&name, &tag)
    }
}

impl From<ImageName> for (String, String) {
    fn from(image: ImageName) -> Self {
        (image.name, image.tag)
    }
}

/// A page, by what it hashes to. Pages lie in the array as segments of redundant geometry (k = 1): each piece is the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRef {
    /// BLAKE3 of the page's bytes.
    pub digest: [u8; 32],
    /// Encoded bytes.
    pub len: u32,
    /// The group that keeps it.
    pub group: GroupId,
}

impl PageRef {
    /// Name a page that lies in a group.
    #[must_use]
    pub fn of(bytes: &[u8], group: GroupId) -> Self {
        Self { digest: *blake3::hash(bytes).as_bytes(), len: bytes.len() as u32, group }
    }

    /// Whether these are the bytes that were named.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        *self == Self::of(bytes, self.group)
    }

    /// As a segment whose pieces are copies, in the geometry of its group.
    #[must_use]
    pub fn entry(&self, geometry: Geometry) -> SegmentEntry {
        SegmentEntry {
            id: SegmentId(self.digest),
            sealed_len: self.len,
            data_len: 0,
            group: self.group,
            geometry,
            fragments: vec![FragmentDigest(self.digest); geometry.pieces()],
            runs: Vec::new(),
        }
    }
}

/// What an image took and takes, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes of the disk that are in use.
    pub in_use: u64,
    /// Chunk bytes of all segments that the image refers to.
    pub data: u64,
    /// Sealed bytes of these segments, before parity.
    pub sealed: u64,
    /// Number of segments.
    pub segments: u64,
}

/// The root of a manifest. Its canonical bytes are what the array's key signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Version of root and pages.
    pub version: Version,
    /// The array it belongs to: a manifest of another array is refused although its signature is good there.
    pub array: ArrayId,
    /// Name and tag.
    pub image: ImageName,
    /// Seconds since 1970 at the controller.
    pub created_unix_s: u64,
    /// Disk length in bytes.
    pub disk_len: u64,
    /// Partition table as read at publish.
    pub disk: DiskLayout,
    /// What a person compares.
    pub content: ContentDigest,
    /// Plain SHA-256 of the image file, where the publisher checked one.
    pub source_sha256: Option<[u8; 32]>,
    /// Sizes.
    pub totals: Totals,
    /// Pages of segments.
    pub segment_pages: Vec<PageRef>,
    /// Pages of read-back digests, in disk order.
    pub span_pages: Vec<PageRef>,
}

impl Root {
    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Decode and check what can be checked without pages.
    ///
    /// # Errors
    /// [`DecodeError`]; also for a disk length beyond [`IMAGE_LEN_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let root: Self = wire::decode_canonical(bytes, ROOT_LEN_MAX)?;
        if root.disk_len > IMAGE_LEN_MAX {
            return Err(DecodeError::TooLong { len: root.disk_len as usize, limit: IMAGE_LEN_MAX as usize });
        }
        Ok(root)
    }

    /// The manifest's name: BLAKE3 of its canonical bytes.
    #[must_use]
    pub fn id(&self) -> ManifestId {
        ManifestId(*blake3::hash(&self.encode()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names() {
        for good in ["debian:12.1", "a:b", "Win_11-Pro:2026.11"] {
            assert_eq!(good.parse::<ImageName>().unwrap().to_string(), good);
        }
        for bad in ["", "debian", "a:", ":b", "a:b:c", "../x:1", "a b:1", ".a:1", &format!("{}:1", "x".repeat(65))] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }
}
