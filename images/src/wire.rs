//! Postcard with the two promises that a format needs: no trailing bytes, and one encoding for one value.

use serde::{Serialize, de::DeserializeOwned};

/// Why bytes are not the value that was expected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end early, or hold a value out of range.
    #[error("malformed bytes")]
    Malformed(#[from] postcard::Error),
    /// Valid bytes, followed by more.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// The same value has a shorter encoding; accepting both would give one manifest two names.
    #[error("not the canonical encoding")]
    NotCanonical,
    /// Longer than the limit of its kind.
    #[error("{len} bytes exceed the limit of {limit}")]
    TooLong {
        /// Length that was found, bytes.
        len: usize,
        /// Limit, bytes.
        limit: usize,
    },
}

/// Encode a value. Serialising plain data into memory cannot fail.
///
/// # Panics
/// If a type's `Serialize` refuses, which is a bug in that type.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data serialises")
}

/// Decode a value that fills `bytes` exactly. Postcard never allocates more than the input can hold.
///
/// # Errors
/// [`DecodeError`] for anything else.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::Trailing(rest.len())) }
}

/// Decode a value of at most `limit` bytes and insist that its encoding is the canonical one.
///
/// # Errors
/// [`DecodeError`] for anything else.
pub fn decode_canonical<T: Serialize + DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLong { len: bytes.len(), limit });
    }
    let value = decode(bytes)?;
    if encode(&value) == bytes { Ok(value) } else { Err(DecodeError::NotCanonical) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_trailing_and_long_forms() {
        assert_eq!(decode::<u32>(&[5]), Ok(5));
        assert_eq!(decode::<u32>(&[5, 0]), Err(DecodeError::Trailing(1)));
        assert_eq!(decode_canonical::<u32>(&[0x85, 0x00], 8), Err(DecodeError::NotCanonical));
        assert_eq!(decode_canonical::<u32>(&[5], 0), Err(DecodeError::TooLong { len: 1, limit: 0 }));
    }
}
