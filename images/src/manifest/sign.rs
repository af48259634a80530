//! Signatures of the array (Ed25519, RFC 8032), each bound to what it signs.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

/// The array's signing key. Only the controller has it.
pub struct ArrayKey(Ed25519KeyPair);

/// Verifies what the array signed. Members learn it when they join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayPublicKey(pub [u8; 32]);

/// A signature that is not the array's, or a key that is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not signed by this array for this purpose")]
pub struct SignError;

/// Bytes and the array's signature over them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// What is signed, canonical.
    pub bytes: Vec<u8>,
    /// 64 bytes.
    pub signature: Vec<u8>,
}

impl ArrayKey {
    /// From 32 secret bytes.
    ///
    /// # Errors
    /// If they are not 32.
    pub fn from_seed(seed: &[u8]) -> Result<Self, SignError> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|_| SignError)
    }

    /// The public half.
    ///
    /// # Panics
    /// Never: an Ed25519 public key has 32 bytes.
    #[must_use]
    pub fn public(&self) -> ArrayPublicKey {
        ArrayPublicKey(self.0.public_key().as_ref().try_into().expect("32 bytes"))
    }

    /// Sign `bytes` for one `purpose` ("manifest", "directory"): a signature for one is worthless for the other.
    #[must_use]
    pub fn sign(&self, purpose: &str, bytes: Vec<u8>) -> Signed {
        let signature = self.0.sign(&message(purpose, &bytes)).as_ref().to_vec();
        Signed { bytes, signature }
    }
}

impl Signed {
    /// The bytes, if the array signed them for this purpose.
    ///
    /// # Errors
    /// [`SignError`] otherwise.
    pub fn verify(&self, purpose: &str, key: &ArrayPublicKey) -> Result<&[u8], SignError> {
        UnparsedPublicKey::new(&ED25519, &key.0)
            .verify(&message(purpose, &self.bytes), &self.signature)
            .map_err(|_| SignError)?;
        Ok(&self.bytes)
    }
}

/// What is really signed: a fixed-length digest that includes the purpose.
fn message(purpose: &str, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("coe 2026 array signature v1");
    hasher.update(&(purpose.len() as u64).to_le_bytes()).update(purpose.as_bytes()).update(bytes);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_key_purpose_and_bytes() {
        let key = ArrayKey::from_seed(&[1; 32]).unwrap();
        let signed = key.sign("manifest", b"bytes".to_vec());
        assert_eq!(signed.verify("manifest", &key.public()), Ok(&b"bytes"[..]));
        assert!(signed.verify("directory", &key.public()).is_err());
        assert!(signed.verify("manifest", &ArrayKey::from_seed(&[2; 32]).unwrap().public()).is_err());
        let forged = Signed { bytes: b"other".to_vec(), ..signed };
        assert!(forged.verify("manifest", &key.public()).is_err());
    }
}
