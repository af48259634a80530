//! Carries out a [placement](crate::placement): pieces to stashes over QUIC, in parallel.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use images::fragment::FragmentHeader;
use images::parity::Geometry;
use images::{NodeId, SegmentId};
use protocol::io::rpc;
use protocol::message::{Refusal, store};
use tokio::task::JoinSet;

use super::controller::{Controller, catalog_refusal};
use crate::catalog::{GroupRecord, PendingRecord, TrashKey};
use crate::placement::{Candidate, Outcome, Placement, Send, Wanted, choose, groups_wanted, least_used};

/// Where a segment went.
pub struct Spread {
    /// Holder of each piece.
    pub holders: Vec<NodeId>,
    /// Payload bytes sent, failed tries included.
    pub sent: u64,
    /// Members that did not confirm.
    pub replaced: u32,
}

impl Controller {
    /// Members for a segment: a group's first, then everybody else who could stand in.
    ///
    /// # Errors
    /// If too few stashes are up.
    pub fn members_for(
        &self,
        segment: SegmentId,
        geometry: Geometry,
        steady: usize,
        piece_len: u64,
    ) -> Result<Vec<NodeId>, Refusal> {
        let mut up = self.takers()?;
        let trash = self.catalog.trash().map_err(catalog_refusal)?;
        for key in trash {
            // What is still to be deleted at a member must not be stored there again before it is.
            if let TrashKey::Fragment { node, segment: dead, .. } = key
                && dead == segment
            {
                up.remove(&node);
            }
        }
        let groups = self.catalog.groups().map_err(catalog_refusal)?;
        let fitting = || groups.iter().filter(|(_, g)| g.geometry == geometry);
        let (habits, domains) = (self.habits.attendance(), self.habits.domains());
        let steady = steady.min(geometry.pieces());
        let known = fitting().count() >= groups_wanted(up.len(), geometry);
        let least_used = |may_be_weak: bool| {
            let is_weak = |group: &GroupRecord| {
                let members = || group.members.iter().copied();
                let is_crowded = domains.crowded(domains.count(members()), geometry).next().is_some();
                is_crowded || members().filter(|node| habits.class(*node).is_steady()).count() < steady
            };
            let usable = fitting().filter(|(_, g)| may_be_weak || !is_weak(g));
            least_used(usable.map(|(id, g)| (*id, g.members.as_slice(), g.segments)), &up, piece_len)
        };
        // If none of those that are there is as it should be, there may be some more; but not without end.
        let is_enough = fitting().count() >= 2 * groups_wanted(up.len(), geometry);
        let any = || is_enough.then(|| least_used(true)).flatten();
        let group = known.then(|| least_used(false).or_else(any)).flatten();
        let mut loads: BTreeMap<NodeId, u32> = BTreeMap::new();
        for member in groups.values().flat_map(|g| &g.members) {
            *loads.entry(*member).or_default() += 1;
        }
        let candidate = |(&node, &free): (&NodeId, &u64)| Candidate {
            node,
            free,
            groups: loads.get(&node).copied().unwrap_or(0),
            is_steady: habits.class(node).is_steady(),
            domains: domains.of(node),
        };
        let wanted = Wanted { geometry, steady, domains: &domains };
        let ranked = choose(up.iter().map(candidate).collect(), piece_len, &wanted);
        let mut members = group.map_or_else(Vec::new, |id| groups[&id].members.clone());
        let others: Vec<NodeId> = ranked.into_iter().filter(|n| !members.contains(n)).collect();
        members.extend(others);
        if members.len() < geometry.pieces() {
            let (need, have) = (geometry.pieces(), members.len());
            return Err(Refusal::Unavailable(format!(
                "{geometry} needs {need} stashes that are up and have room, there are {have}: add or start stashes, or \
                 publish with fewer pieces (--data, --parity)"
            )));
        }
        Ok(members)
    }

    /// Put every piece on a member of its own and wait until each is durable.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] if members run out.
    pub async fn spread(
        &self,
        segment: SegmentId,
        steady: usize,
        pieces: &[(FragmentHeader, Bytes)],
    ) -> Result<Spread, Refusal> {
        let Some((first, _)) = pieces.first() else {
            return Err(Refusal::Invalid("a segment without pieces".into()));
        };
        let piece_len = first.payload_len() as u64;
        let members = self.members_for(segment, first.geometry, steady, piece_len)?;
        let start = Instant::now();
        let mut placement = Placement::new(first.geometry, &members, start.elapsed());
        let mut sends: JoinSet<(Send, Result<(), rpc::CallError>)> = JoinSet::new();
        let mut sent = 0;
        loop {
            let next: Vec<Send> = std::iter::from_fn(|| placement.poll_send()).collect();
            if !next.is_empty() {
                let intent = PendingRecord { sent: next.iter().map(|s| (s.piece, s.node)).collect(), copy: true };
                let written = self.committer.change(move |change| change.put_pending(segment, &intent));
                written.await.map_err(catalog_refusal)?;
            }
            for send in next {
                let (header, payload) = pieces[usize::from(send.piece)].clone();
                sent += payload.len() as u64;
                let pool = self.pool.clone();
                sends.spawn(async move {
                    let put = async {
                        let connection = pool.get(send.node).await?;
                        let message = store::PutFragment { owner: store::OWNER_IMAGES, header };
                        rpc::call(&connection, message, &[payload]).await.map(drop)
                    };
                    (send, put.await)
                });
            }
            let deadline = match placement.outcome() {
                Outcome::Durable(holders) => {
                    holders.iter().for_each(|&node| self.fleet.took(node, piece_len));
                    return Ok(Spread { holders, sent, replaced: placement.replaced() as u32 });
                }
                Outcome::Short { confirmed, failed } => {
                    return Err(short(pieces.len(), confirmed, &failed));
                }
                Outcome::Pending => placement.poll_timeout().map_or(start, |at| start + at),
            };
            tokio::select! {
                Some(Ok((send, result))) = sends.join_next() => match result {
                    Ok(()) => placement.confirmed(send),
                    Err(error) => {
                        if matches!(error, rpc::CallError::Refused(Refusal::Full)) {
                            self.fleet.is_full(send.node);
                        }
                        tracing::warn!(node = %send.node, %error, "piece not stored, picking another member");
                        placement.failed(send, start.elapsed());
                    }
                },
                () = tokio::time::sleep_until(deadline.into()) => placement.tick(start.elapsed()),
            }
        }
    }
}

fn short(need: usize, confirmed: usize, failed: &[NodeId]) -> Refusal {
    let names: Vec<String> = failed.iter().map(images::NodeId::short).collect();
    Refusal::Unavailable(format!(
        "only {confirmed} of {need} pieces were confirmed; these stashes failed and no other is left: {}",
        names.join(", ")
    ))
}
