//! A manifest's key in shares (Shamir over GF(2^8), byte by byte): any `threshold` of them give it, fewer say nothing of it.

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};
use serde::{Deserialize, Serialize};
use vsss_rs::Gf256;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::keys::ManifestKey;

/// One share: its number, from 1, and a byte for each byte of the key.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct KeyShare(Vec<u8>);

/// BLAKE3 of a share, in a context of its own. A share is as random as the key, so this helps nobody to guess it; it tells a share that was
/// changed from the true one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareDigest(pub [u8; 32]);

/// Shares that cannot be made, or do not fit together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a key is split among 2 to 255 holders, of whom at least 2 and at most all are needed")]
pub struct ShareError;

impl std::fmt::Debug for KeyShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyShare({}, secret)", self.number())
    }
}

impl KeyShare {
    /// Its number, from 1.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.0.first().copied().unwrap_or(0)
    }

    /// What tells it from a wrong one.
    #[must_use]
    pub fn digest(&self) -> ShareDigest {
        ShareDigest(blake3::derive_key("coe 2026 key share v1", &self.0))
    }
}

/// Random bytes that follow from a seed: this crate has no source of its own.
struct FromSeed(blake3::OutputReader);

impl TryRng for FromSeed {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

impl TryCryptoRng for FromSeed {}

/// Split a key among `holders`. `seed` is random, and used for this key only.
///
/// # Errors
/// [`ShareError`].
pub fn split(key: &ManifestKey, threshold: u8, holders: u8, seed: &[u8; 32]) -> Result<Vec<KeyShare>, ShareError> {
    if threshold < 2 || holders < threshold {
        return Err(ShareError);
    }
    let mut hasher = blake3::Hasher::new_derive_key("coe 2026 key shares v1");
    let rng = FromSeed(hasher.update(seed).finalize_xof());
    let shares = Gf256::split_bytes(threshold.into(), holders.into(), key.0, rng).map_err(|_| ShareError)?;
    Ok(shares.into_iter().map(KeyShare).collect())
}

/// The key again, from as many shares as are needed. From fewer, or wrong ones, it is another key: compare digests before.
///
/// # Errors
/// [`ShareError`] if two have the same number, or one is no share of a key.
pub fn combine(shares: &[KeyShare]) -> Result<ManifestKey, ShareError> {
    let bytes: Vec<Vec<u8>> = shares.iter().map(|share| share.0.clone()).collect();
    let key = Gf256::combine_bytes(&bytes).map_err(|_| ShareError)?;
    key.try_into().map(ManifestKey).map_err(|_| ShareError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_threshold_of_shares_and_no_fewer() {
        let key = ManifestKey([42; 32]);
        let shares = split(&key, 3, 5, &[7; 32]).unwrap();
        for a in 0..5 {
            for b in 0..5 {
                for c in 0..5 {
                    let chosen = [shares[a].clone(), shares[b].clone(), shares[c].clone()];
                    let combined = combine(&chosen);
                    if a != b && b != c && a != c {
                        assert_eq!(combined.as_ref(), Ok(&key));
                    } else {
                        assert_ne!(combined.as_ref(), Ok(&key), "fewer than three");
                    }
                }
                assert_ne!(combine(&[shares[a].clone(), shares[b].clone()]).as_ref(), Ok(&key));
            }
        }
        assert!(shares.iter().all(|share| !share.0.windows(8).any(|w| w == [42; 8])));
        assert_eq!(split(&key, 1, 5, &[7; 32]).err(), Some(ShareError), "one holder alone would have the key");
        assert_eq!(split(&key, 3, 2, &[7; 32]).err(), Some(ShareError));
        assert!(combine(&[]).is_err());
    }

    /// Two shares of three leave every key possible: for any other key there is a third share that would complete it.
    #[test]
    fn fewer_shares_say_nothing() {
        let (mine, other) = (ManifestKey([1; 32]), ManifestKey([2; 32]));
        let of = |key: &ManifestKey, seed: u8| split(key, 2, 3, &[seed; 32]).unwrap()[0].0[1];
        let (mut a, mut b) = ([0u32; 256], [0u32; 256]);
        for seed in 0..=255 {
            a[usize::from(of(&mine, seed))] += 1;
            b[usize::from(of(&other, seed))] += 1;
        }
        // The same byte of share 1, over all seeds, is as spread for one key as for the other.
        let spread = |counts: &[u32]| counts.iter().filter(|n| **n > 0).count();
        assert!(spread(&a) > 130 && spread(&b) > 130, "{} {}", spread(&a), spread(&b));
    }
}
