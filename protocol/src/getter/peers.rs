//! What the getter knows of each holder.

use std::collections::BTreeMap;
use std::time::Duration;

use images::NodeId;

use super::{Fault, Now, Patience};

/// What is told of a holder at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerReport {
    /// Pieces that it delivered.
    pub pieces: u64,
    /// Payload bytes of these.
    pub bytes: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Requests that were slow enough to be hedged.
    pub slow: u64,
    /// What was wrong with the first wrong piece.
    pub lied: Option<String>,
    /// The last fault.
    pub last_fault: Option<String>,
}

#[derive(Default)]
struct Peer {
    under_way: usize,
    /// Requests under way that are slow.
    slow_under_way: usize,
    latency: Option<Duration>,
    failures_in_a_row: u32,
    blocked_until: Option<Now>,
    /// It failed so often that nobody waits for it until it is tried again.
    gone: bool,
    report: PeerReport,
}

/// All holders that were asked so far.
#[derive(Default)]
pub struct Peers {
    peers: BTreeMap<NodeId, Peer>,
    usual: Option<Duration>,
}

/// An exponentially weighted mean over about eight samples.
fn blend(mean: Option<Duration>, sample: Duration) -> Duration {
    mean.map_or(sample, |mean| (mean * 7 + sample) / 8)
}

impl Peers {
    pub(super) fn asked(&mut self, node: NodeId) {
        self.peers.entry(node).or_default().under_way += 1;
    }

    pub(super) fn cancelled(&mut self, node: NodeId) {
        self.ended(node);
    }

    fn ended(&mut self, node: NodeId) -> &mut Peer {
        let peer = self.peers.entry(node).or_default();
        peer.under_way = peer.under_way.saturating_sub(1);
        peer.slow_under_way = peer.slow_under_way.min(peer.under_way);
        peer
    }

    pub(super) fn answered(&mut self, node: NodeId, took: Duration, len: u64) {
        self.usual = Some(blend(self.usual, took));
        let peer = self.ended(node);
        peer.latency = Some(blend(peer.latency, took));
        peer.failures_in_a_row = 0;
        peer.gone = false;
        peer.slow_under_way = 0;
        peer.report.pieces += 1;
        peer.report.bytes += len;
    }

    pub(super) fn failed(&mut self, node: NodeId, fault: &Fault, now: Now, patience: &Patience) {
        let peer = self.ended(node);
        peer.report.failures += 1;
        peer.report.last_fault = Some(fault.to_string());
        match fault {
            Fault::Lied(what) => {
                peer.report.lied.get_or_insert_with(|| what.clone());
            }
            // A holder without a piece answers well, and may have the next one.
            Fault::NotThere | Fault::NotAsked => {}
            // Requests that fail together count once.
            Fault::Unreachable | Fault::Busy | Fault::TimedOut if peer.blocked_until.is_none() => {
                peer.failures_in_a_row += 1;
                peer.gone = peer.failures_in_a_row >= patience.failures;
                let pause = patience.backoff * 2u32.pow(peer.failures_in_a_row.min(5) - 1);
                peer.blocked_until = Some(now + if peer.gone { patience.gone } else { pause });
            }
            Fault::Unreachable | Fault::Busy | Fault::TimedOut => {}
        }
    }

    pub(super) fn slow(&mut self, node: NodeId) {
        let peer = self.peers.entry(node).or_default();
        peer.slow_under_way += 1;
        peer.report.slow += 1;
    }

    pub(super) fn release(&mut self, now: Now) {
        for peer in self.peers.values_mut() {
            peer.blocked_until = peer.blocked_until.filter(|&until| until > now);
            peer.gone &= peer.blocked_until.is_some();
        }
    }

    pub(super) fn next_release(&self) -> Option<Now> {
        self.peers.values().filter_map(|peer| peer.blocked_until).min()
    }

    pub(super) fn can_ask(&self, node: NodeId, per_holder: usize) -> bool {
        self.peers.get(&node).is_none_or(|p| {
            // One that is slow now gets nothing more on top until it answers.
            let room = if p.slow_under_way > 0 { p.under_way == 0 } else { p.under_way < per_holder };
            room && p.blocked_until.is_none() && p.report.lied.is_none()
        })
    }

    /// Whether nothing can be expected of a holder: it lied, or is gone for now.
    pub(super) fn hopeless(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|p| p.gone || p.report.lied.is_some())
    }

    pub(super) fn lie(&self, node: NodeId) -> Option<String> {
        self.peers.get(&node)?.report.lied.clone()
    }

    /// When an answer can be expected of a holder, in its own units: latency for each request in front of this one.
    pub(super) fn expected(&self, node: NodeId) -> Duration {
        let usual = self.usual.unwrap_or_default();
        self.peers.get(&node).map_or(usual, |p| p.latency.unwrap_or(usual) * (p.under_way as u32 + 1))
    }

    pub(super) fn slow_after(&self, patience: &Patience) -> Duration {
        (self.usual.unwrap_or_default() * patience.hedge_factor).max(patience.hedge_min)
    }

    /// What is told of each holder.
    pub fn reports(&self) -> impl Iterator<Item = (NodeId, &PeerReport)> {
        self.peers.iter().map(|(&node, peer)| (node, &peer.report))
    }
}
