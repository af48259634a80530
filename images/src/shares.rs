//! A manifest's key in shares (Shamir over GF(2^8), byte by byte): any `threshold` of them give it, fewer say nothing of it.

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};
use serde::{Deserialize, Serialize};
use vsss_rs::Gf256;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::keys::{HolderSecret, ManifestKey, OpenError, OwnerKey, Token, open, seal_in_place};

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

impl HolderSecret {
    /// The token for a deployment's order.
    #[must_use]
    pub fn token(&self, deployment: u32, tag: &[u8; 32]) -> Token {
        let mut hasher = blake3::Hasher::new_derive_key("coe 2026 deployment token v1");
        hasher.update(&self.0).update(&deployment.to_le_bytes()).update(tag);
        Token(*hasher.finalize().as_bytes())
    }
}

impl Token {
    fn check(&self) -> [u8; 8] {
        let digest = blake3::derive_key("coe 2026 deployment token check v1", &self.0);
        *digest.first_chunk().expect("32 bytes are more than 8")
    }

    fn mask(&self, bytes: &mut [u8]) {
        bytes.iter_mut().zip(self.0).for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// Bytes for the installer of one deployment: the key is in shares, each hidden by the token of its holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Follows from what is sealed.
    pub tag: [u8; 32],
    /// AES-256-GCM, with the tag in front.
    sealed: Vec<u8>,
    /// In the order of holders: what tells the right token, and the share of the key under it.
    hidden: Vec<([u8; 8], [u8; 32])>,
}

impl Order {
    /// Seal for whoever gets tokens of `threshold` holders, whose secrets these are. The same bytes give the same order.
    ///
    /// # Errors
    /// [`ShareError`] for numbers that do not fit.
    pub fn seal(
        owner: &OwnerKey,
        deployment: u32,
        threshold: u8,
        holders: &[HolderSecret],
        bytes: &[u8],
    ) -> Result<Self, ShareError> {
        let tag = owner.order_tag(deployment, bytes);
        let key = owner.order_key(&tag);
        let count = u8::try_from(holders.len()).map_err(|_| ShareError)?;
        let shares = split(&ManifestKey(key), threshold, count, &owner.order_seed(&tag))?;
        let hide = |(share, holder): (KeyShare, &HolderSecret)| {
            let token = holder.token(deployment, &tag);
            let mut hidden: [u8; 32] = share.0[1..].try_into().expect("a share of 32 bytes");
            token.mask(&mut hidden);
            (token.check(), hidden)
        };
        let hidden = shares.into_iter().zip(holders).map(hide).collect();
        let mut sealed = [&tag[..], bytes].concat();
        seal_in_place(&key, 0, &mut sealed, tag.len());
        Ok(Self { tag, sealed, hidden })
    }

    /// Bytes of it.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "none is empty")]
    pub fn len(&self) -> usize {
        self.sealed.len() + self.hidden.len() * 40
    }

    /// Whether this is the token of a holder, by its place among the holders.
    #[must_use]
    pub fn is_token(&self, holder: usize, token: &Token) -> bool {
        self.hidden.get(holder).is_some_and(|(check, _)| *check == token.check())
    }

    /// Open it with tokens, each by its holder's place.
    ///
    /// # Errors
    /// [`OpenError`] if they are too few, or one is wrong.
    pub fn open(&self, tokens: &[(usize, Token)]) -> Result<Vec<u8>, OpenError> {
        let share = |(holder, token): &(usize, Token)| {
            let (_, hidden) = self.hidden.get(*holder)?;
            let mut bytes = vec![u8::try_from(holder + 1).ok()?];
            bytes.extend_from_slice(hidden);
            token.mask(&mut bytes[1..]);
            Some(KeyShare(bytes))
        };
        let shares: Option<Vec<KeyShare>> = tokens.iter().map(share).collect();
        let key = combine(&shares.ok_or(OpenError)?).map_err(|_| OpenError)?;
        open(&key.0, 0, &self.sealed, self.tag.len())
    }

    /// Open it as its owner.
    ///
    /// # Errors
    /// [`OpenError`] if it is another owner's.
    pub fn open_as_owner(&self, owner: &OwnerKey) -> Result<Vec<u8>, OpenError> {
        open(&owner.order_key(&self.tag), 0, &self.sealed, self.tag.len())
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
    fn an_order_opens_with_its_own_tokens_only() {
        let owner = OwnerKey([1; 32]);
        let secrets: Vec<HolderSecret> = (0..4).map(|n| HolderSecret([n; 32])).collect();
        let order = Order::seal(&owner, 7, 2, &secrets, b"disk, name, ticket").unwrap();
        assert_eq!(Order::seal(&owner, 7, 2, &secrets, b"disk, name, ticket").unwrap(), order, "the same is the same");
        let token = |deployment, holder: usize| (holder, secrets[holder].token(deployment, &order.tag));
        assert_eq!(order.open(&[token(7, 1), token(7, 3)]).unwrap(), b"disk, name, ticket");
        assert!(order.is_token(1, &token(7, 1).1) && !order.is_token(1, &token(7, 2).1));
        assert_eq!(order.open(&[token(8, 1), token(8, 3)]), Err(OpenError), "another deployment's");
        assert_eq!(order.open(&[token(7, 1)]), Err(OpenError), "too few");
        assert_eq!(order.open(&[token(7, 1), token(7, 1)]), Err(OpenError));
        assert_eq!(order.open(&[token(7, 1), (9, token(7, 3).1)]), Err(OpenError));
        assert_eq!(order.open_as_owner(&owner).unwrap(), b"disk, name, ticket");
        assert_eq!(order.open_as_owner(&OwnerKey([2; 32])), Err(OpenError));
        let other = Order::seal(&owner, 7, 2, &secrets, b"another disk").unwrap();
        assert_eq!(other.open(&[token(7, 1), token(7, 3)]), Err(OpenError), "tokens are for one order");
        assert!(!order.sealed.windows(4).any(|w| w == b"disk"));
    }

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
