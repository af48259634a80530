//! A stranger with a ticket to the controller, or to a boot server in its place: the only edge without a certificate on the asking side.

use images::NodeId;
use serde::{Deserialize, Serialize};

use crate::directory::Update;

/// Trade a ticket for a certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enroll {
    /// From the ticket.
    pub secret: [u8; 16],
    /// PKCS #10 request (DER); only its public key and its proof of possession count.
    pub csr: Vec<u8>,
}

/// A place in the array.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enrolled {
    /// Who the asker is from now on.
    pub node: NodeId,
    /// Its certificate (DER).
    pub certificate: Vec<u8>,
    /// Certificates between it and the authority's (DER).
    pub chain: Vec<Vec<u8>>,
    /// Where the controller listens, `host:port`.
    pub controller: Vec<String>,
    /// For an installer: it may have to go on without whoever admitted it.
    pub directory: Option<Update>,
}
