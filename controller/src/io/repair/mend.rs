//! Fragments that their holders have lost are made anew there, and proven.

use std::collections::BTreeMap;
use std::sync::Arc;

use images::{NodeId, SegmentId};
use protocol::message::Refusal;
use protocol::message::store::Rebuilt;
use tokio::task::JoinSet;

use super::moves::wanted;
use crate::catalog::TrashKey;
use crate::io::controller::{Controller, catalog_refusal};
use crate::io::verify::prove;

/// Damaged fragments of one member that are looked at in one round.
const OF_ONE: usize = 64;
/// Members at which fragments are made anew at the same time.
const TOGETHER: usize = 4;

impl Controller {
    /// One round: a member that does not answer keeps nobody else waiting for long.
    pub(super) async fn mend_damaged(self: &Arc<Self>) -> Result<(), Refusal> {
        let mut of_nodes: BTreeMap<NodeId, Vec<(SegmentId, u8)>> = BTreeMap::new();
        let damaged = self.catalog.damaged().map_err(catalog_refusal)?;
        self.repairs.lost.retain(|fragment| damaged.binary_search(fragment).is_ok());
        let there = self.fleet.up();
        for fragment in damaged {
            let Some((node, up)) = self.holder(fragment, &there)? else { continue };
            let of_node = of_nodes.entry(node).or_default();
            if of_node.len() < OF_ONE && self.repairs.lost.is_due(&fragment, &up) {
                of_node.push(fragment);
            }
        }
        let mut tasks = JoinSet::new();
        for (node, fragments) in of_nodes {
            if tasks.len() >= TOGETHER {
                tasks.join_next().await;
            }
            let controller = self.clone();
            tasks.spawn(async move {
                for (id, piece) in fragments {
                    match controller.mend(node, id, piece).await {
                        Ok(fetched) => drop(controller.keep_pace(fetched).await),
                        Err(error) => {
                            tracing::warn!(%node, segment = %id, piece, %error, "a lost fragment is not made anew yet");
                            return;
                        }
                    }
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }

    /// Who should hold a fragment, if it is there and counts; and all of its group that are up.
    fn holder(
        &self,
        (id, piece): (SegmentId, u8),
        there: &BTreeMap<NodeId, u64>,
    ) -> Result<Option<(NodeId, Vec<NodeId>)>, Refusal> {
        let Some(record) = self.catalog.segment(&id).map_err(catalog_refusal)? else { return Ok(None) };
        let group = self.catalog.group(record.group).map_err(catalog_refusal)?;
        let members = group.map(|group| group.members).unwrap_or_default();
        let Some(&node) = members.get(usize::from(piece)) else { return Ok(None) };
        let is_vacant = self.catalog.is_vacant((record.group, piece)).map_err(catalog_refusal)?;
        let counts = self.catalog.standing(node).map_err(catalog_refusal)?.is_durable();
        let up: Vec<NodeId> = members.into_iter().filter(|node| there.contains_key(node)).collect();
        Ok((counts && !is_vacant && up.contains(&node)).then_some((node, up)))
    }

    /// Make one anew; the answer is the bytes that were fetched for it. An error means that its holder is not to be asked for others now.
    async fn mend(&self, node: NodeId, id: SegmentId, piece: u8) -> Result<u64, Refusal> {
        // Neither the segment nor its holder changes as long as this is held: deletions wait.
        let _alive = self.deleting.read().await;
        self.check_in_charge()?;
        let key = TrashKey::Fragment { node, segment: id, piece };
        let Some((_, up)) = self.holder((id, piece), &self.fleet.up())?.filter(|(holder, _)| *holder == node) else {
            return Ok(0);
        };
        if self.catalog.is_trash(&key).map_err(catalog_refusal)? {
            return Ok(0);
        }
        let Some(record) = self.catalog.segment(&id).map_err(catalog_refusal)? else { return Ok(0) };
        let Some(group) = self.catalog.group(record.group).map_err(catalog_refusal)? else { return Ok(0) };
        let mut outcomes = self.rebuild_at(node, vec![wanted(id, &record, &group, vec![piece], None)]).await?;
        let made = match outcomes.pop() {
            Some(Rebuilt::Short(_)) if record.has_copy() => self.put_from_copy(node, id, &group, &[piece]).await,
            Some(outcome) => outcome,
            None => return Ok(0),
        };
        let fetched = match made {
            Rebuilt::Here { fetched } => fetched,
            Rebuilt::Short(what) => {
                tracing::error!(%node, segment = %id, piece, what, "a lost fragment cannot be made anew now");
                self.repairs.lost.failed((id, piece), up);
                return Ok(0);
            }
            Rebuilt::Refused(refusal) => return Err(refusal),
        };
        let len = group.geometry.piece_len(record.sealed_len as usize) as u64;
        let is_proven = match prove(&self.pool, id, record.fragments[usize::from(piece)], len, piece, node).await {
            Ok(()) => true,
            Err(what) if what.is_loss() => {
                tracing::error!(%node, segment = %id, piece, %what, "a stash says that it has what it has not");
                false
            }
            Err(what) => return Err(Refusal::Unavailable(what.to_string())),
        };
        let mended = self.committer.change(move |change| change.mend_damage(node, id, piece, is_proven));
        mended.await.map_err(catalog_refusal)?;
        self.repairs.count(fetched, len);
        tracing::info!(%node, segment = %id, piece, fetched, is_proven, "a lost fragment was made anew");
        Ok(fetched)
    }
}
