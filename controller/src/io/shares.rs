//! Splitting an image's key among stashes, so that it can be installed while the controller is away.

use std::time::Duration;

use images::ManifestId;
use images::NodeId;
use images::keys::ManifestKey;
use images::parity::Geometry;
use images::shares::{self, KeyShare};
use protocol::directory::Shares;
use protocol::io::rpc::{self, CallError};
use protocol::limits::SHARES_MAX;
use protocol::message::{Refusal, store};

use super::controller::Controller;

/// How long a stash may take to keep a share.
const KEEP_WITHIN: Duration = Duration::from_secs(10);

/// How many shares are needed, and how many are given out: as many stashes must join hands as for the data, two at least, and as many
/// may be lost, one at least: so many must answer before any installation, with the controller, too. `None` with fewer stashes than that.
#[must_use]
pub fn plan(geometry: Geometry, stashes: usize) -> Option<(u8, u8)> {
    let threshold = geometry.data().max(2);
    let holders = (threshold + geometry.parity().max(1)).min(stashes).min(SHARES_MAX);
    (holders > threshold).then_some((threshold as u8, holders as u8))
}

impl Controller {
    /// Split a key among stashes that are up, each of which has its share durably when this returns. `None` if too few keep one: then the
    /// controller alone has the key.
    ///
    /// # Errors
    /// If there is no randomness.
    pub(super) async fn split_key(
        &self,
        manifest: ManifestId,
        key: &ManifestKey,
        geometry: Geometry,
    ) -> Result<Option<Shares>, Refusal> {
        let mut up: Vec<NodeId> = self.takers()?.into_keys().collect();
        // Another order for every image: no stash has more shares than others.
        up.sort_by_key(|node| *blake3::Hasher::new().update(&manifest.0).update(&node.0).finalize().as_bytes());
        let Some((threshold, wanted)) = plan(geometry, up.len()) else { return Ok(None) };
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| Refusal::Failed("no random bytes".into()))?;
        let split = shares::split(key, threshold, wanted, &seed).map_err(|e| Refusal::Failed(e.to_string()))?;
        // All at the same time; a share that its stash did not keep goes to the next one.
        let (mut holders, mut waiting, mut candidates) = (Vec::new(), split, up.into_iter());
        while !waiting.is_empty() {
            let tries: Vec<_> = waiting.drain(..).zip(candidates.by_ref()).collect();
            if tries.is_empty() {
                break;
            }
            let put = |(share, node): (KeyShare, NodeId)| async move {
                let secret = self.authority.owner_key.holder_secret(&manifest, &node);
                let kept = self.put_share(node, store::PutShare { manifest, share: share.clone(), secret }).await;
                (share, node, kept)
            };
            for (share, node, kept) in futures_util::future::join_all(tries.into_iter().map(put)).await {
                match kept {
                    Ok(()) => holders.push((share.number(), node, share.digest())),
                    Err(error) => {
                        tracing::warn!(%node, %error, "share of a key not kept, picking another member");
                        waiting.push(share);
                    }
                }
            }
        }
        holders.sort_by_key(|(number, ..)| *number);
        let holders: Vec<_> = holders.into_iter().map(|(_, node, digest)| (node, digest)).collect();
        if holders.len() < usize::from(threshold) {
            tracing::warn!(
                kept = holders.len(),
                threshold,
                "too few stashes keep a share: the controller alone has the image's key"
            );
            return Ok(None);
        }
        Ok(Some(Shares { threshold, holders }))
    }

    /// Split a key anew, because a holder of a share leaves. If too few are up for that, it is tried again later; with a fleet that is too
    /// small for it, the controller alone has the key.
    ///
    /// # Errors
    /// If too few are up.
    pub(super) async fn split_key_again(
        &self,
        manifest: ManifestId,
        key: &ManifestKey,
        geometry: Geometry,
    ) -> Result<Option<Shares>, Refusal> {
        let split = self.split_key(manifest, key, geometry).await?;
        if split.is_none() && plan(geometry, self.clients_that_stay()?).is_some() {
            return Err(Refusal::Unavailable("too few stashes are up to share the key of an image".into()));
        }
        Ok(split)
    }

    /// Stashes, up or not, that may take something and are expected back; mass-storage devices apart.
    pub(super) fn clients_that_stay(&self) -> Result<usize, Refusal> {
        Ok(self.lasting_fleet()?.0.len())
    }

    async fn put_share(&self, node: NodeId, put: store::PutShare) -> Result<(), CallError> {
        let kept = async { rpc::call(&self.pool.get(node).await?, put, &[]).await.map(drop) };
        let silent = || CallError::Unreachable(node.to_string());
        tokio::time::timeout(KEEP_WITHIN, kept).await.unwrap_or_else(|_| Err(silent()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_one_alone() {
        let plan = |k, m, stashes| plan(Geometry::new(k, m).unwrap(), stashes);
        assert_eq!(plan(6, 2, 8), Some((6, 8)));
        assert_eq!(plan(1, 2, 8), Some((2, 4)));
        assert_eq!(plan(1, 1, 2), None, "no machine could be installed while one of the two is off");
        assert_eq!(plan(1, 1, 3), Some((2, 3)));
        assert_eq!(plan(1, 0, 1), None);
        assert_eq!(plan(1, 0, 5), Some((2, 3)));
        assert_eq!(plan(4, 0, 4), None);
        assert_eq!(plan(32, 16, 100), Some((32, 48)));
    }
}
