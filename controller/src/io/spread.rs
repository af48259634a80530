//! Carries out a [placement](crate::placement): pieces to stashes over QUIC, in parallel.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use images::fragment::FragmentHeader;
use images::{GroupId, NodeId, SegmentId};
use protocol::io::rpc;
use protocol::message::{Refusal, store};
use tokio::task::JoinSet;

use super::controller::{Controller, catalog_refusal};
use super::fleet::Leased;
use crate::catalog::{PendingRecord, TrashKey};
use crate::placement::{
    CONFIRM_WITHIN, Candidate, Members, Outcome, Placement, Protection, Send, Wanted, choose, groups_wanted, least_used,
};

/// How often it is looked whether room was released.
const RELEASED_SOON: Duration = Duration::from_millis(500);

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
    /// Members for a segment, and room reserved at them: at the first ones, and at as many more as may fail.
    fn lease_for(
        &self,
        segment: SegmentId,
        protection: Protection,
        piece_len: u64,
    ) -> Result<(Members, Leased<'_>), Refusal> {
        let may_fail = protection.geometry.parity().max(1);
        loop {
            let members = self.members_for(segment, protection, piece_len)?;
            let nodes = members.first.iter().chain(members.spares.iter().take(may_fail)).copied().collect();
            // Who chose at the same time may have reserved the room first: then it is not seen as free any more.
            if let Some(lease) = self.fleet.lease(nodes, piece_len) {
                return Ok((members, lease));
            }
        }
    }

    /// Members for a segment: a group's, and everybody else who could stand in.
    ///
    /// # Errors
    /// If too few stashes are up.
    pub fn members_for(&self, segment: SegmentId, protection: Protection, piece_len: u64) -> Result<Members, Refusal> {
        let Protection { geometry, layout, steady } = protection;
        let ((mut up, mut devices), badly_reached) = (self.takers_by_kind()?, self.fleet.badly_reached());
        for key in self.catalog.trash_of(&segment).map_err(catalog_refusal)? {
            // What is still to be deleted at a member must not be stored there again before it is.
            if let TrashKey::Fragment { node, .. } = key {
                up.remove(&node);
                devices.remove(&node);
            }
        }
        let groups = self.catalog.groups().map_err(catalog_refusal)?;
        let fitting: Vec<(GroupId, &[NodeId], u64)> = groups
            .iter()
            .filter(|(_, g)| protection.fits(g.geometry, &g.members, &devices))
            .map(|(id, g)| (*id, g.members.as_slice(), g.segments))
            .collect();
        let (habits, domains) = (self.habits.attendance(), self.habits.domains());
        let on_clients = layout.on_clients(geometry);
        let steady = steady.min(on_clients);
        let usable: BTreeMap<NodeId, u64> = up.iter().chain(&devices).map(|(node, free)| (*node, *free)).collect();
        let is_strong = |members: &[NodeId]| {
            let is_crowded = || domains.crowded(domains.count(members.iter().copied()), geometry).next().is_some();
            let is_steady = |node: &&NodeId| up.contains_key(node) && habits.class(**node).is_steady();
            !members.iter().any(|node| badly_reached.contains(node))
                && members.iter().filter(is_steady).count() >= steady
                && !is_crowded()
        };
        let (count, wanted_groups) = (fitting.len(), groups_wanted(up.len(), on_clients));
        let may_be_used =
            if count < wanted_groups { Vec::new() } else { least_used(fitting.into_iter(), &usable, piece_len) };
        let strong = may_be_used.iter().find(|(_, members)| is_strong(members));
        // If none of those that are there is as it should be, there may be some more; but not without end.
        let any = || may_be_used.first().filter(|_| count >= 2 * wanted_groups);
        let group = strong.or_else(any);
        let mut loads: BTreeMap<NodeId, u32> = BTreeMap::new();
        for member in groups.values().flat_map(|g| &g.members) {
            *loads.entry(*member).or_default() += 1;
        }
        let candidate = |(&node, &free): (&NodeId, &u64)| Candidate {
            node,
            free,
            groups: loads.get(&node).copied().unwrap_or(0),
            is_steady: habits.class(node).is_steady(),
            is_badly_reached: badly_reached.contains(&node),
            domains: domains.of(node),
        };
        let wanted = Wanted { geometry, pieces: on_clients, steady, domains: &domains };
        let mut ranked = choose(up.iter().map(candidate).collect(), piece_len, &wanted);
        // The emptiest first, and all in turn: none has more pieces of a segment than it must.
        devices.retain(|_, free| *free > piece_len);
        let mut devices: Vec<(NodeId, u64)> = devices.into_iter().collect();
        devices.sort_by_key(|(node, free)| (badly_reached.contains(node), std::cmp::Reverse(*free)));
        let devices: Vec<NodeId> = devices.into_iter().map(|(node, _)| node).collect();
        let first = match group {
            Some((_, members)) => Some(members.to_vec()),
            None => protection.members(&ranked, &devices),
        };
        let first = first.ok_or_else(|| too_few(protection, ranked.len()))?;
        ranked.retain(|node| !first.contains(node));
        Ok(Members { first, spares: ranked, devices })
    }

    /// Put every piece on a member of its own and wait until each is durable.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] if members run out.
    pub async fn spread(
        &self,
        segment: SegmentId,
        protection: Protection,
        pieces: &[(FragmentHeader, Bytes)],
    ) -> Result<Spread, Refusal> {
        let Some((first, _)) = pieces.first() else {
            return Err(Refusal::Invalid("a segment without pieces".into()));
        };
        let piece_len = first.payload_len() as u64;
        let start = Instant::now();
        let (members, lease) = loop {
            match self.lease_for(segment, protection, piece_len) {
                Ok(leased) => break leased,
                // What is reserved and not needed is released soon.
                Err(Refusal::Unavailable(_)) if self.fleet.has_leases() && start.elapsed() < CONFIRM_WITHIN => {
                    tokio::time::sleep(RELEASED_SOON).await;
                }
                Err(refusal) => return Err(refusal),
            }
        };
        let mut placement = Placement::new(&members, start.elapsed());
        let mut sends: JoinSet<(Send, Instant, Result<(), rpc::CallError>)> = JoinSet::new();
        let mut sent = 0;
        loop {
            let next: Vec<Send> = std::iter::from_fn(|| placement.poll_send()).collect();
            if !next.is_empty() {
                lease.renew();
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
                    let begun = Instant::now();
                    (send, begun, put.await)
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
                Some(Ok((send, begun, result))) = sends.join_next() => match result {
                    Ok(()) => {
                        self.fleet.confirmed(send.node, begun.elapsed());
                        placement.confirmed(send);
                    }
                    Err(error) => {
                        match error {
                            rpc::CallError::Refused(Refusal::Full) => self.fleet.is_full(send.node),
                            _ => self.fleet.failed(send.node),
                        }
                        tracing::warn!(node = %send.node, %error, "piece not stored, picking another member");
                        placement.failed(send, start.elapsed());
                    }
                },
                () = tokio::time::sleep_until(deadline.into()) => {
                    placement.tick(start.elapsed()).into_iter().for_each(|node| self.fleet.failed(node));
                }
            }
        }
    }
}

fn too_few(protection: Protection, have: usize) -> Refusal {
    let Protection { geometry, layout, .. } = protection;
    let on_clients = layout.on_clients(geometry);
    Refusal::Unavailable(match have < on_clients {
        true => format!(
            "{geometry} needs {on_clients} stashes that are up and have room, there are {have}: add or start stashes, or publish with \
             fewer pieces (--data, --parity)"
        ),
        false => format!("layout {layout} needs a mass-storage device that is up and has room: see `coe-ctl nodes`"),
    })
}

fn short(need: usize, confirmed: usize, failed: &[NodeId]) -> Refusal {
    let names: Vec<String> = failed.iter().map(images::NodeId::short).collect();
    Refusal::Unavailable(format!(
        "only {confirmed} of {need} pieces were confirmed; these stashes failed and no other is left: {}",
        names.join(", ")
    ))
}
