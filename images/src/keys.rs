//! Keys and how they follow from each other.
//!
//! A segment's key derives from its owner's key and its content: equal content of one owner gives the same sealed bytes
//! (deduplication), and nobody without the owner's key can test a guess. A manifest's key is random and opens the list of
//! segment keys on its pages.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::ids::{ManifestId, NodeId};
use crate::limits::TAG_LEN;

/// A ciphertext that this key did not seal, or that was changed since.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("authentication failed: wrong key, or changed bytes")]
pub struct OpenError;

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
        pub struct $name(pub [u8; 32]);

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }
    };
}

key!(
    /// An owner's root secret. The array's own images have one; each client's data will have another.
    OwnerKey
);
key!(
    /// Opens one segment.
    SegmentKey
);
key!(
    /// Opens the segment keys of one manifest.
    ManifestKey
);
key!(
    /// Opens bytes that it was made from.
    ContentKey
);
key!(
    /// What a holder of a share of a manifest's key keeps besides: tokens for deployments follow from it.
    HolderSecret
);
key!(
    /// What a holder gives to the installer of one deployment, for its order of one tag.
    Token
);

impl OwnerKey {
    /// The key of a segment whose header and compressed payload hash to `content`. Hashing what is sealed, not what was
    /// compressed, keeps two compression levels of the same bytes from sharing a key and a nonce.
    #[must_use]
    pub fn segment_key(&self, content: &blake3::Hash) -> SegmentKey {
        let mut hasher = blake3::Hasher::new_derive_key("coe 2026 segment key v1");
        hasher.update(&self.0).update(content.as_bytes());
        SegmentKey(*hasher.finalize().as_bytes())
    }
}

impl OwnerKey {
    fn wrapping_key(&self, manifest: &ManifestId) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("coe 2026 manifest key wrap v1");
        hasher.update(&self.0).update(&manifest.0);
        *hasher.finalize().as_bytes()
    }

    /// Seal the key of a manifest for whoever has the owner's key. A manifest has one key for ever, so nothing repeats.
    #[must_use]
    pub fn seal_manifest_key(&self, manifest: &ManifestId, key: &ManifestKey) -> Vec<u8> {
        let mut sealed = key.0.to_vec();
        seal_in_place(&self.wrapping_key(manifest), 0, &mut sealed, 0);
        sealed
    }

    /// The key of a manifest again.
    ///
    /// # Errors
    /// [`OpenError`] if it was sealed by another owner, or for another manifest.
    pub fn open_manifest_key(&self, manifest: &ManifestId, sealed: &[u8]) -> Result<ManifestKey, OpenError> {
        let key = open(&self.wrapping_key(manifest), 0, sealed, 0)?;
        key.try_into().map(ManifestKey).map_err(|_| OpenError)
    }
}

impl OwnerKey {
    fn derive(&self, context: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        *hasher.finalize().as_bytes()
    }

    /// Depends on all of it and on the owner, so equal orders are sealed alike, different ones never under one key, and nobody else can test a
    /// guess.
    pub(crate) fn order_tag(&self, deployment: u32, bytes: &[u8]) -> [u8; 32] {
        self.derive("coe 2026 order tag v1", &[&deployment.to_le_bytes(), bytes])
    }

    pub(crate) fn order_key(&self, tag: &[u8; 32]) -> [u8; 32] {
        self.derive("coe 2026 order key v1", &[tag])
    }

    pub(crate) fn order_seed(&self, tag: &[u8; 32]) -> [u8; 32] {
        self.derive("coe 2026 order shares v1", &[tag])
    }

    /// What a holder of a share of an image's key is given besides.
    #[must_use]
    pub fn holder_secret(&self, manifest: &ManifestId, holder: &NodeId) -> HolderSecret {
        HolderSecret(self.derive("coe 2026 holder secret v1", &[&manifest.0, &holder.0]))
    }

    /// Seal a note of the array to itself. Equal notes of one row are sealed alike, different ones never under one key.
    #[must_use]
    pub fn seal_note(&self, row: u16, note: &[u8]) -> Vec<u8> {
        let tag = self.derive("coe 2026 note tag v1", &[&row.to_le_bytes(), note]);
        let mut sealed = [&tag, note].concat();
        seal_in_place(&self.note_key(row, &tag), 0, &mut sealed, tag.len());
        sealed
    }

    /// The note again.
    ///
    /// # Errors
    /// [`OpenError`] if it was sealed by another owner, or for another row.
    pub fn open_note(&self, row: u16, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let tag = sealed.first_chunk::<32>().ok_or(OpenError)?;
        open(&self.note_key(row, tag), 0, sealed, tag.len())
    }

    fn note_key(&self, row: u16, tag: &[u8; 32]) -> [u8; 32] {
        self.derive("coe 2026 note key v1", &[&row.to_le_bytes(), tag])
    }

    /// A key for these bytes and no others.
    #[must_use]
    pub fn content_key(&self, bytes: &[u8]) -> ContentKey {
        ContentKey(self.derive("coe 2026 content key v1", &[bytes]))
    }
}

impl ContentKey {
    /// Seal the bytes that the key was made for, and nothing else.
    #[must_use]
    pub fn seal(&self, bytes: &[u8]) -> Vec<u8> {
        let mut sealed = bytes.to_vec();
        seal_in_place(&self.0, 0, &mut sealed, 0);
        sealed
    }

    /// The bytes again.
    ///
    /// # Errors
    /// [`OpenError`] if they are others.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        open(&self.0, 0, sealed, 0)
    }
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes"))
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Encrypt `buffer[from..]` in place and append the tag; `buffer[..from]` is authenticated. `counter` must never repeat
/// under one key with other bytes.
pub(crate) fn seal_in_place(key: &[u8; 32], counter: u64, buffer: &mut Vec<u8>, from: usize) {
    let (header, body) = buffer.split_at_mut(from);
    let tag = cipher(key)
        .seal_in_place_separate_tag(nonce(counter), Aad::from(&*header), body)
        .expect("a segment is far below the AES-GCM limit");
    buffer.extend_from_slice(tag.as_ref());
}

/// Undo [`seal_in_place`] into a fresh buffer.
pub(crate) fn open(key: &[u8; 32], counter: u64, sealed: &[u8], from: usize) -> Result<Vec<u8>, OpenError> {
    if sealed.len() < from + TAG_LEN {
        return Err(OpenError);
    }
    let (header, body) = sealed.split_at(from);
    let mut out = vec![0; body.len() - TAG_LEN];
    let (ciphertext, tag) = body.split_at(body.len() - TAG_LEN);
    cipher(key)
        .open_separate_gather(nonce(counter), Aad::from(header), ciphertext, tag, &mut out)
        .map_err(|_| OpenError)?;
    Ok(out)
}
