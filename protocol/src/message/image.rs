//! An installer to the controller.

use images::NodeId;
use images::keys::ManifestKey;
use images::manifest::{ImageName, Signed};
use serde::{Deserialize, Serialize};

use crate::directory::Update;
use crate::io::statement::Statement;

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

/// What a [`Report`] that is left with stashes is signed for.
pub const REPORT_PURPOSE: &str = "report";

/// A report as it waits for the controller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeftReport {
    /// Random: two reports that say the same are two.
    pub nonce: [u8; 16],
    /// What is reported.
    pub report: Report,
}

/// The controller is away: keep this for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeaveReport {
    /// A [`LeftReport`], signed for [`REPORT_PURPOSE`].
    pub statement: Statement,
}

/// It is kept, durably.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Left;

/// Reports that installers left with a stash.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PassReports {
    /// At most [`crate::limits::REPORTS_TOGETHER`].
    pub statements: Vec<Statement>,
}

/// The controller has them; the stash may forget them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Passed;
