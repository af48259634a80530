//! Room at stashes that is promised to segments on their way. More places than needed are reserved; confirmations decide; the rest is released,
//! and what nobody releases expires. So segments that are placed at the same time do not count on the same room.

use std::collections::BTreeMap;
use std::time::Duration;

use images::NodeId;

use crate::placement::{CONFIRM_WITHIN, Now};

/// A lease that was not renewed for so long ends: its segment waits for one confirmation at the longest before it asks somebody else.
const LASTS: Duration = CONFIRM_WITHIN.saturating_mul(3);

/// Names a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseId(u64);

struct Lease {
    until: Now,
    nodes: Vec<NodeId>,
    bytes: u64,
}

/// All leases.
#[derive(Default)]
pub struct Leases {
    next: u64,
    open: BTreeMap<LeaseId, Lease>,
    reserved: BTreeMap<NodeId, u64>,
}

impl Leases {
    /// Reserve so many bytes at each of these; one that is named several times is to have several pieces.
    pub fn reserve(&mut self, nodes: Vec<NodeId>, bytes: u64, now: Now) -> LeaseId {
        self.expire(now);
        self.next += 1;
        let id = LeaseId(self.next);
        for node in &nodes {
            *self.reserved.entry(*node).or_default() += bytes;
        }
        self.open.insert(id, Lease { until: now + LASTS, nodes, bytes });
        id
    }

    /// Its segment is still on its way.
    pub fn renew(&mut self, id: LeaseId, now: Now) {
        if let Some(lease) = self.open.get_mut(&id) {
            lease.until = now + LASTS;
        }
    }

    /// Its segment has its places, or will have none. One that expired is released already.
    pub fn release(&mut self, id: LeaseId) {
        let Some(lease) = self.open.remove(&id) else { return };
        for node in lease.nodes {
            if let Some(reserved) = self.reserved.get_mut(&node) {
                *reserved = reserved.saturating_sub(lease.bytes);
                if *reserved == 0 {
                    self.reserved.remove(&node);
                }
            }
        }
    }

    /// Time passed.
    pub fn expire(&mut self, now: Now) {
        let over: Vec<LeaseId> = self.open.iter().filter(|(_, lease)| lease.until <= now).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.release(id));
    }

    /// Whether nothing is promised.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Bytes that are promised at a member.
    #[must_use]
    pub fn reserved(&self, node: NodeId) -> u64 {
        self.reserved.get(&node).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_adds_up_and_ends() {
        let node = |i: u8| NodeId([i; 16]);
        let mut leases = Leases::default();
        let one = leases.reserve([1, 2, 2].map(node).to_vec(), 10, Now::ZERO);
        let two = leases.reserve([2, 3].map(node).to_vec(), 5, Now::ZERO);
        assert_eq!([1, 2, 3, 4].map(|i| leases.reserved(node(i))), [10, 25, 5, 0]);
        leases.release(one);
        leases.release(one);
        assert_eq!([1, 2, 3].map(|i| leases.reserved(node(i))), [0, 5, 5]);
        leases.renew(two, LASTS - Duration::from_secs(1));
        leases.expire(LASTS);
        assert_eq!(leases.reserved(node(2)), 5, "it was renewed");
        leases.expire(LASTS * 2);
        assert_eq!(leases.reserved(node(2)), 0);
        leases.release(two);
        assert!(leases.reserved.is_empty() && leases.is_empty());
    }
}
