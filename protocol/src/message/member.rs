//! A stash to its controller, and members about the directory.

use serde::{Deserialize, Serialize};

use crate::directory::{Mark, Update};

/// A stash is there, and has this much.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// UDP port it listens on; the address is where the message came from.
    pub port: u16,
    /// Bytes it offers.
    pub capacity: u64,
    /// Bytes that it needs for its fragments; what is dead gives way.
    pub used: u64,
    /// Live fragments.
    pub fragments: u64,
    /// Their fold: see [`images::fragment::FragmentId::fold`].
    pub fold: u64,
    /// Newest directory it has.
    pub directory: Option<Mark>,
    /// Records that it found damaged, and can no longer serve.
    pub lost: Vec<images::fragment::FragmentId>,
    /// Why it takes nothing and gives nothing for now; nothing is lost by that.
    pub aside: Option<Aside>,
    /// It goes for good, or must have less.
    pub wish: Option<Wish>,
    /// Somebody who installs was served since the last report: repair goes slowly there.
    pub serves_installers: bool,
}

/// What a stash wants to be rid of. Until the array has it elsewhere, it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// Everything: its owner wants it gone.
    Leave,
    /// Everything, and nobody waits for that: what it holds is lost now.
    LeaveNow,
    /// So many bytes: its disk is needed for something else.
    Less(u64),
    /// So many bytes, at once: its disk is full. What others can make anew is dropped before they have.
    LessNow(u64),
}

/// Why a stash stands aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aside {
    /// Its machine's owner wants it to.
    Paused,
    /// Its machine's network costs money now.
    Metered,
    /// Its medium is unplugged.
    Away,
}

impl std::fmt::Display for Aside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Paused => "paused",
            Self::Metered => "metered",
            Self::Away => "away",
        })
    }
}

/// The controller heard it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// The directory, if the stash's was older.
    pub directory: Option<Update>,
    /// When to report again, milliseconds.
    pub again_ms: u32,
    /// Fragments that it must still hold, if it wants to leave. With none it is no member any more.
    pub to_hand_over: Option<u64>,
    /// Whether this controller directs the array; one that stands down does not, and the stash may find another.
    pub in_charge: bool,
}

/// Which directory have you? And what is newer in it than in mine?
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetDirectory {
    /// The newest that the asker has.
    pub have: Option<Mark>,
}

/// The newest directory of whoever was asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TheDirectory {
    /// Its mark; none if it has no directory yet.
    pub mark: Option<Mark>,
    /// What leads to it, if the asker's is older.
    pub update: Option<Update>,
}

/// Here is a newer directory than yours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfferDirectory {
    /// What leads to it.
    pub update: Update,
}

/// What whoever was offered it has now: the new one, or what it holds on to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HaveDirectory {
    /// The newest.
    pub mark: Option<Mark>,
}

/// Ask for a fresh certificate for the same key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Renew {
    /// PKCS #10 request (DER), signed by the key of the certificate in use.
    pub csr: Vec<u8>,
}

/// The fresh certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Renewed {
    /// Certificate (DER).
    pub certificate: Vec<u8>,
}
