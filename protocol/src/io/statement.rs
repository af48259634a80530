//! What a member says, signed with the key of its certificate, so that others can pass it on.

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use images::ArrayId;
use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::credentials::Credentials;
use super::tls::{self, Bearer};

/// Bytes of the certificates that a statement brings along.
pub const CERTIFICATES_LEN_MAX: usize = 3072;

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// What is said.
    pub bytes: Vec<u8>,
    /// Certificate (DER) of whoever says it.
    certificate: Vec<u8>,
    /// Certificates between it and the authority's.
    chain: Vec<Vec<u8>>,
    /// ECDSA over P-256 and SHA-256, ASN.1.
    signature: Vec<u8>,
}

/// Not what a member of this array said.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the statement is not signed by a member of this array")]
pub struct StatementError;

/// What is really signed: the purpose goes along, so that nothing said for one is taken for another.
fn message(purpose: &str, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("coe 2026 statement v1");
    hasher.update(&(purpose.len() as u64).to_le_bytes()).update(purpose.as_bytes()).update(bytes);
    *hasher.finalize().as_bytes()
}

impl Statement {
    /// Say something.
    ///
    /// # Errors
    /// If the member's key is damaged.
    pub fn sign(member: &Credentials, purpose: &str, bytes: Vec<u8>) -> Result<Self, StatementError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &member.key).map_err(|_| StatementError)?;
        let signature = key.sign(&SystemRandom::new(), &message(purpose, &bytes)).map_err(|_| StatementError)?;
        let (certificate, chain) = (member.certificate.clone(), member.chain.clone());
        Ok(Self { bytes, certificate, chain, signature: signature.as_ref().to_vec() })
    }

    /// Names it: whoever passes the same on twice is recognised.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        *blake3::Hasher::new().update(&self.certificate).update(&self.bytes).finalize().as_bytes()
    }

    /// Who said it. That the certificate has expired by now does not matter: it may have waited for days. Whoever takes it first takes it from
    /// the one who says it, on a connection whose certificate is good at that time.
    ///
    /// # Errors
    /// [`StatementError`] if no member of this array did, or not this.
    pub fn verify(&self, purpose: &str, authority: &[u8], array: ArrayId) -> Result<Bearer, StatementError> {
        let certificates = || [&self.certificate].into_iter().chain(&self.chain);
        if self.chain.len() > 1 || certificates().map(Vec::len).sum::<usize>() > CERTIFICATES_LEN_MAX {
            return Err(StatementError);
        }
        let (_, certificate) = X509Certificate::from_der(&self.certificate).map_err(|_| StatementError)?;
        // Clocks differ: what counts is when the last of them began.
        let then = tls::began_unix_s(certificates()).ok_or(StatementError)? + 1;
        let then = UnixTime::since_unix_epoch(Duration::from_secs(then));
        let said_by = tls::bearer_at(authority, array, &self.certificate, &self.chain, then).ok_or(StatementError)?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &certificate.public_key().subject_public_key.data);
        key.verify(&message(purpose, &self.bytes), &self.signature).map_err(|_| StatementError)?;
        Ok(said_by)
    }
}
