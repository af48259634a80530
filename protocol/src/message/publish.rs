//! `coe-ctl publish` to the controller. Sealed segments travel once, and only those that are new.

use std::ops::Range;

use images::disk::Layout as DiskLayout;
use images::keys::{OwnerKey, SegmentKey};
use images::manifest::{ImageName, Run};
use images::parity::Geometry;
use images::span::Span;
use images::{ChunkId, ContentDigest, ManifestId, SegmentId};
use serde::{Deserialize, Serialize};

/// Who keeps what of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// k + m pieces on clients, and a whole copy on the controller's mass storage.
    #[default]
    Mirror,
    /// k + m pieces on clients only.
    Clients,
    /// k pieces on clients, m on mass-storage devices.
    ParityOnController,
    /// k pieces on mass-storage devices, m on clients.
    ParityOnClients,
}

impl Layout {
    /// Pieces that lie on mass-storage devices.
    #[must_use]
    pub fn on_devices(self, geometry: Geometry) -> Range<usize> {
        match self {
            Self::Mirror | Self::Clients => 0..0,
            Self::ParityOnController => geometry.data()..geometry.pieces(),
            Self::ParityOnClients => 0..geometry.data(),
        }
    }

    /// Number of pieces that lie on clients, each on another one.
    #[must_use]
    pub fn on_clients(self, geometry: Geometry) -> usize {
        geometry.pieces() - self.on_devices(geometry).len()
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mirror => "mirror",
            Self::Clients => "clients",
            Self::ParityOnController => "parity-on-controller",
            Self::ParityOnClients => "parity-on-clients",
        })
    }
}

impl std::str::FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Mirror, Self::Clients, Self::ParityOnController, Self::ParityOnClients];
        let found = all.into_iter().find(|layout| layout.to_string() == text);
        found.ok_or_else(|| format!("a layout is one of {}", all.map(|layout| layout.to_string()).join(", ")))
    }
}

/// Start a publication, or go on with one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begin {
    /// Name of the image.
    pub name: String,
    /// Tag; without one the controller counts up.
    pub tag: Option<String>,
    /// Geometry of new segments; without one it follows from the policy and the fleet.
    pub geometry: Option<Geometry>,
    /// Layout of new segments; without one the policy's.
    pub layout: Option<Layout>,
    /// Disk length in bytes.
    pub disk_len: u64,
    /// Whether the image may be installed while the controller is away.
    pub offline: bool,
}

/// The publication is open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begun {
    /// Names it in the messages that follow.
    pub session: u64,
    /// The name it will have.
    pub image: ImageName,
    /// Geometry of new segments.
    pub geometry: Geometry,
    /// Seals them.
    pub owner_key: OwnerKey,
    /// What of the policy cannot be kept now, for a person.
    pub unmet: Vec<String>,
}

/// Which of these chunks are there?
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Have {
    /// The publication.
    pub session: u64,
    /// At most [`crate::limits::HAVE_MAX`].
    pub chunks: Vec<ChunkId>,
}

/// Where a known chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkPlace {
    /// Segment.
    pub segment: SegmentId,
    /// Byte offset in its chunk bytes.
    pub offset: u32,
}

/// One answer for each chunk that was asked about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Known {
    /// `None`: the chunk is new.
    pub places: Vec<Option<ChunkPlace>>,
}

/// A new segment; its sealed bytes follow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutSegment {
    /// The publication.
    pub session: u64,
    /// BLAKE3 of the bytes that follow.
    pub id: SegmentId,
    /// Opens it.
    pub key: SegmentKey,
    /// Chunk bytes inside.
    pub data_len: u32,
    /// Chunks inside, with their lengths, in order.
    pub chunks: Vec<(ChunkId, u32)>,
}

/// The segment is durable on all its holders.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SegmentStored {
    /// Payload bytes that went to stashes.
    pub sent: u64,
    /// Holders that did not confirm and were replaced.
    pub replaced: u32,
}

/// A segment of the image and where its bytes go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DraftSegment {
    /// Segment.
    pub id: SegmentId,
    /// Runs.
    pub runs: Vec<Run>,
}

/// Part of the draft.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutRuns {
    /// The publication.
    pub session: u64,
    /// Position of this page, from 0.
    pub index: u32,
    /// Segments of the page.
    pub segments: Vec<DraftSegment>,
}

/// Part of the draft.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutSpans {
    /// The publication.
    pub session: u64,
    /// Position of this page, from 0.
    pub index: u32,
    /// Spans in disk order.
    pub spans: Vec<Span>,
}

/// The controller has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accepted;

/// Sign and publish.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finish {
    /// The publication.
    pub session: u64,
    /// Number of pages that [`PutRuns`] brought.
    pub run_pages: u32,
    /// Number of pages that [`PutSpans`] brought.
    pub span_pages: u32,
    /// Partition table.
    pub disk: DiskLayout,
    /// What a person compares.
    pub content: ContentDigest,
    /// Plain SHA-256 of the file, where one was checked.
    pub source_sha256: Option<[u8; 32]>,
    /// Bytes in use on the disk.
    pub in_use: u64,
}

/// The image is published.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Published {
    /// Its name.
    pub image: ImageName,
    /// Its manifest.
    pub manifest: ManifestId,
    /// Segments it refers to.
    pub segments: u64,
    /// Their sealed bytes.
    pub sealed: u64,
    /// Whether it can be installed while the controller is away.
    pub offline: bool,
    /// Segments shared with earlier images that have less parity, or no copy on mass storage, than this publication asked for.
    pub weaker: u64,
}
