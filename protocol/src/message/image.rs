//! An installer to the controller.

use images::NodeId;
use images::keys::ManifestKey;
use images::manifest::{ImageName, Signed};
use serde::{Deserialize, Serialize};

use crate::directory::Update;

/// Ask for all that is needed to install an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetImage {
    /// Name and tag; an empty tag means the newest.
    pub name: String,
    /// See `name`.
    pub tag: Option<String>,
}

/// All that is needed, but for the pages and the bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageGrant {
    /// The manifest's root, signed for [`MANIFEST_PURPOSE`].
    pub manifest: Signed,
    /// Opens the segment keys.
    pub key: ManifestKey,
    /// Who holds what, signed.
    pub directory: Update,
}

/// What a manifest's root is signed for.
pub const MANIFEST_PURPOSE: &str = "manifest";

/// Ask for a page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetPage {
    /// BLAKE3 of the page.
    pub digest: [u8; 32],
}

/// The page; its bytes follow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page;

/// How an installation ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// What was installed.
    pub image: ImageName,
    /// The error, if it failed.
    pub error: Option<String>,
    /// Holders that returned wrong bytes, and what they did.
    pub lied: Vec<(NodeId, String)>,
    /// Bytes written.
    pub written: u64,
    /// From the first request to the last comparison, milliseconds.
    pub took_ms: u64,
}

/// The controller has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reported;
