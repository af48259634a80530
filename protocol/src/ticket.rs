//! Tickets: one-time rights that a person can paste.
//!
//! `coe1` and the base32 (RFC 4648, lower case) of a postcard value and four bytes of its BLAKE3, so that a typing error is
//! told from a ticket that is refused.

use data_encoding::BASE32_NOPAD_NOCASE;
use images::{ArrayId, NodeId, wire};
use serde::{Deserialize, Serialize};

use crate::identity::Role;

const PREFIX: &str = "coe1";
const TEXT_MAX: usize = 2048;

/// The right to join an array once, in one role.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// SHA-256 of the authority's certificate: the holder recognises the array before it trusts it.
    pub array: ArrayId,
    /// The role that it grants.
    pub role: Role,
    /// The right itself. The controller keeps only its hash.
    pub secret: [u8; 16],
    /// Where whoever gave it listens, `host:port`.
    pub addresses: Vec<String>,
    /// The boot server that gave it while the controller was away; `None`: the controller did.
    pub issuer: Option<NodeId>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({} for {:?})", self.role, self.array)
    }
}

/// Text that is not a ticket.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TicketError {
    /// It does not start like one.
    #[error("a ticket starts with {PREFIX}")]
    Prefix,
    /// It was cut, or mistyped.
    #[error("the ticket is incomplete or mistyped: copy it whole")]
    Checksum,
}

/// What the controller keeps of a ticket's secret.
#[must_use]
pub fn secret_hash(secret: &[u8; 16]) -> [u8; 32] {
    blake3::derive_key("coe 2026 ticket v1", secret)
}

impl std::fmt::Display for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = wire::encode(self);
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..4]);
        write!(f, "{PREFIX}{}", BASE32_NOPAD_NOCASE.encode(&bytes).to_ascii_lowercase())
    }
}

impl std::str::FromStr for Ticket {
    type Err = TicketError;
    fn from_str(text: &str) -> Result<Self, TicketError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TicketError::Prefix)?;
        if body.len() > TEXT_MAX {
            return Err(TicketError::Checksum);
        }
        let bytes = BASE32_NOPAD_NOCASE.decode(body.as_bytes()).map_err(|_| TicketError::Checksum)?;
        let (value, check) = bytes.split_last_chunk::<4>().ok_or(TicketError::Checksum)?;
        if blake3::hash(value).as_bytes()[..4] != *check {
            return Err(TicketError::Checksum);
        }
        wire::decode(value).map_err(|_| TicketError::Checksum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_typing_errors() {
        let ticket = Ticket {
            array: ArrayId([1; 32]),
            role: Role::Stash,
            secret: [3; 16],
            addresses: vec!["10.0.0.1:7400".into()],
            issuer: Some(NodeId([5; 16])),
        };
        let text = ticket.to_string();
        assert_eq!(text.parse(), Ok(ticket.clone()));
        assert_eq!(format!("  {text}\n").parse(), Ok(ticket));
        assert_eq!(text[1..].parse::<Ticket>(), Err(TicketError::Prefix));
        for at in PREFIX.len()..text.len() {
            let mut typo = text.clone().into_bytes();
            typo[at] = if typo[at] == b'a' { b'b' } else { b'a' };
            let typo = String::from_utf8(typo).unwrap();
            assert_eq!(typo.parse::<Ticket>(), Err(TicketError::Checksum), "position {at}");
            assert_eq!(text[..at].parse::<Ticket>(), Err(TicketError::Checksum), "cut at {at}");
        }
    }
}
