//! The names of things: fixed-size identifiers that print as hexadecimal and never get mixed up.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};

/// Text that is not an identifier.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected {expected} hexadecimal digits")]
pub struct ParseIdError {
    expected: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), HEXLOWER_PERMISSIVE.encode(&self.0[..4]))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                HEXLOWER_PERMISSIVE
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(Self)
                    .ok_or(ParseIdError { expected: $len * 2 })
            }
        }

        impl $name {
            /// The first eight digits, for tables and logs.
            #[must_use]
            pub fn short(&self) -> String {
                HEXLOWER_PERMISSIVE.encode(&self.0[..4])
            }
        }
    };
}

id!(
    /// An array: SHA-256 of its authority's certificate (DER).
    ArrayId, 32
);
id!(
    /// A member, named by the first 16 bytes of the BLAKE3 of its public key (DER SubjectPublicKeyInfo). An address is
    /// never an identity.
    NodeId, 16
);
id!(
    /// A content-defined chunk: BLAKE3 of its bytes.
    ChunkId, 32
);
id!(
    /// A segment: BLAKE3 of its sealed bytes.
    SegmentId, 32
);
id!(
    /// A fragment's payload: BLAKE3 of its bytes.
    FragmentDigest, 32
);
id!(
    /// A manifest: BLAKE3 of its root's canonical bytes.
    ManifestId, 32
);
id!(
    /// What a person compares: SHA-256 over the contents of a disk, see [`crate::span::content_digest`].
    ContentDigest, 32
);

impl SegmentId {
    /// Name sealed bytes.
    #[must_use]
    pub fn of(sealed: &[u8]) -> Self {
        Self(*blake3::hash(sealed).as_bytes())
    }
}

impl SegmentId {
    /// What it adds, by exclusive or, to the fold of a set of segments: see [`crate::fragment::FragmentId::fold`].
    #[must_use]
    pub fn fold(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().expect("8 of 32 bytes"))
    }
}

impl ChunkId {
    /// Name a chunk.
    #[must_use]
    pub fn of(chunk: &[u8]) -> Self {
        Self(*blake3::hash(chunk).as_bytes())
    }
}

impl FragmentDigest {
    /// Name a fragment's payload.
    #[must_use]
    pub fn of(payload: &[u8]) -> Self {
        Self(*blake3::hash(payload).as_bytes())
    }
}

impl NodeId {
    /// Name a member by its public key (DER SubjectPublicKeyInfo).
    #[must_use]
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(spki_der).as_bytes()[..16]);
        Self(id)
    }
}

/// A protection group's number, unique in an array for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub u32);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        let id = SegmentId::of(b"bytes");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("xyz".parse::<SegmentId>(), Err(ParseIdError { expected: 64 }));
    }
}
