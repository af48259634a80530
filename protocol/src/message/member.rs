//! A stash to its controller.

use images::manifest::Signed;
use serde::{Deserialize, Serialize};

use crate::directory::Epoch;

/// A stash is there, and has this much.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// UDP port it listens on; the address is where the message came from.
    pub port: u16,
    /// Bytes it offers.
    pub capacity: u64,
    /// Bytes in use by records, dead ones included.
    pub used: u64,
    /// Live fragments.
    pub fragments: u64,
    /// Newest directory it has.
    pub epoch: Epoch,
    /// Records that it found damaged, and can no longer serve.
    pub lost: Vec<images::fragment::FragmentId>,
}

/// The controller heard it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// The directory, if the stash's was older.
    pub directory: Option<Signed>,
    /// When to report again, milliseconds.
    pub again_ms: u32,
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
