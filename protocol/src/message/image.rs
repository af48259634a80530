//! An installer to the controller.

use images::keys::ManifestKey;
use images::manifest::{ImageName, Signed};
use images::{NodeId, wire};
use serde::{Deserialize, Serialize};

use crate::directory::Update;
use crate::io::statement::Statement;
use crate::message::boot::Progress;

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

/// What a [`LeftReport`] that is left with stashes is signed for.
pub const REPORT_PURPOSE: &str = "report";

/// What may be left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Word {
    /// How an installation ended.
    Ended(Report),
    /// How far it is, at a point that matters.
    Progress(Progress),
}

/// A word as it waits for the controller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeftReport {
    /// Random: two that say the same are two.
    pub nonce: [u8; 16],
    /// When, milliseconds since 1970, by the clock of whoever says it: its words are heard in this order.
    pub at_unix_ms: u64,
    /// What is reported.
    pub word: Word,
}

impl LeftReport {
    /// Whether it says that a deployment was carried out.
    #[must_use]
    pub fn is_success(&self) -> bool {
        matches!(&self.word, Word::Ended(report) if report.error.is_none())
    }

    /// Names it, said by this member: however often and on whatever way it comes, it counts once.
    #[must_use]
    pub fn id(&self, by: NodeId) -> [u8; 32] {
        *blake3::Hasher::new().update(&by.0).update(&wire::encode(self)).finalize().as_bytes()
    }
}

/// The controller is away: keep this for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeaveReport {
    /// A [`LeftReport`], signed for [`REPORT_PURPOSE`].
    pub statement: Statement,
}

/// It is kept, durably.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Left {
    /// Whether it is also kept as the last word of its deployment, and told to whoever asks what became of that.
    pub as_last_word: bool,
}

/// Reports that installers left with a stash.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PassReports {
    /// At most [`crate::limits::REPORTS_TOGETHER`].
    pub statements: Vec<Statement>,
}

/// The controller has them; the stash may forget them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Passed;
