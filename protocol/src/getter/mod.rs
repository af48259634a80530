//! Fetches any k of n pieces of segments, without a socket or a clock.
//!
//! The owner feeds events and the time, and carries out actions. The getter picks which piece to ask of whom: the holder that
//! is expected to answer first, least loaded among equals. It hedges a holder that is slow (a further piece from somebody
//! else; the first k win), never asks a holder again that lied, backs off from one that fails, and gives up only when fewer
//! than k pieces can still come, naming what is missing.

mod peers;

pub use peers::{PeerReport, Peers};

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use images::NodeId;
use images::fragment::FragmentId;
use images::ids::SegmentId;

/// A parity piece is asked for when a data piece is expected to take so many times as long.
const PARITY_WORTH: u32 = 4;

/// Time since any fixed start.
pub type Now = Duration;

/// How patient the getter is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A request without an answer after this is lost.
    pub timeout: Duration,
    /// No hedge earlier than this, whatever was measured: a LAN round trip and a disk read are below it.
    pub hedge_min: Duration,
    /// A request is slow when it takes this many times the usual.
    pub hedge_factor: u32,
    /// Tries of one piece at one holder.
    pub attempts: u32,
    /// First pause after a holder failed; doubles with each failure in a row.
    pub backoff: Duration,
    /// Failures in a row after which nobody waits for a holder.
    pub failures: u32,
    /// When such a holder is tried again.
    pub gone: Duration,
    /// Requests under way at one holder.
    pub per_holder: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            hedge_min: Duration::from_millis(150),
            hedge_factor: 4,
            attempts: 3,
            backoff: Duration::from_millis(200),
            failures: 4,
            gone: Duration::from_secs(30),
            per_holder: 8,
        }
    }
}

impl Patience {
    /// Of repair: holders let installers go first, and no byte is to travel twice because one of them took its time.
    #[must_use]
    pub fn unhurried() -> Self {
        Self { hedge_min: Duration::from_millis(500), ..Self::default() }
    }
}

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names a segment that is wanted; the owner chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// A segment that is wanted.
#[derive(Clone, Debug)]
pub struct Want {
    /// Its name here.
    pub job: JobId,
    /// The segment.
    pub segment: SegmentId,
    /// k.
    pub need: usize,
    /// Holder of each of the n pieces.
    pub holders: Vec<NodeId>,
}

/// How a request ended without a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The holder cannot be reached, or the connection broke.
    Unreachable,
    /// The holder does not have the piece.
    NotThere,
    /// The holder is there, and cannot answer now.
    Busy,
    /// No answer in time.
    TimedOut,
    /// The holder was not asked any more: with all that it and others could have, there are too few pieces.
    NotAsked,
    /// An answer that is not the piece: what was wrong with it.
    Lied(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable => f.write_str("unreachable"),
            Self::NotThere => f.write_str("does not have it"),
            Self::Busy => f.write_str("busy"),
            Self::TimedOut => f.write_str("no answer"),
            Self::NotAsked => f.write_str("was not asked: there are too few others"),
            Self::Lied(what) => write!(f, "returned wrong data: {what}"),
        }
    }
}

/// What the owner saw.
#[derive(Clone, Debug)]
pub enum Event {
    /// A verified piece.
    Got {
        /// The request.
        request: RequestId,
        /// Payload bytes.
        len: u64,
    },
    /// No piece.
    Failed {
        /// The request.
        request: RequestId,
        /// Why.
        fault: Fault,
    },
}

/// Why a segment cannot be had: the pieces that did not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The segment.
    pub segment: SegmentId,
    /// Pieces that came.
    pub have: usize,
    /// k.
    pub need: usize,
    /// Each piece that did not come: its number, its holder, the last fault.
    pub missing: Vec<(u8, NodeId, Fault)>,
}

impl std::fmt::Display for Shortfall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} pieces of {} can be had", self.have, self.need, self.segment.short())?;
        self.missing
            .iter()
            .try_for_each(|(piece, node, fault)| write!(f, "; piece {piece} on {}: {fault}", node.short()))
    }
}

impl std::error::Error for Shortfall {}

/// What the owner must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask a holder for a fragment; answer with an event that names `request`.
    Fetch {
        /// The request.
        request: RequestId,
        /// For which job.
        job: JobId,
        /// Whom to ask.
        node: NodeId,
        /// What for.
        fragment: FragmentId,
    },
    /// The answer is no longer wanted. An event for it may still come, and is ignored.
    Cancel(RequestId),
    /// k pieces are there.
    Complete(JobId),
    /// k pieces will not come.
    GiveUp(JobId, Shortfall),
}

#[derive(Clone, Debug)]
enum Piece {
    /// Not asked for, after `attempts` tries and the last one's fault.
    Idle {
        attempts: u32,
        fault: Option<Fault>,
    },
    /// Asked for.
    Asked {
        request: RequestId,
        attempts: u32,
    },
    Got,
    /// Never to be had from this holder.
    Dead(Fault),
}

struct Job {
    want: Want,
    pieces: Vec<Piece>,
    /// Slow requests that another piece stands in for.
    hedged: usize,
}

struct Asked {
    job: JobId,
    piece: u8,
    node: NodeId,
    at: Now,
    slow: bool,
}

/// The getter.
pub struct Getter {
    patience: Patience,
    peers: Peers,
    jobs: BTreeMap<JobId, Job>,
    asked: BTreeMap<RequestId, Asked>,
    next_request: u64,
    actions: VecDeque<Action>,
    /// Pieces asked for because another holder was slow.
    hedges: u64,
}

impl Getter {
    /// An empty getter.
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            peers: Peers::default(),
            jobs: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_request: 0,
            actions: VecDeque::new(),
            hedges: 0,
        }
    }

    /// Want a segment.
    pub fn want(&mut self, want: Want, now: Now) {
        let pieces = vec![Piece::Idle { attempts: 0, fault: None }; want.holders.len()];
        let job = want.job;
        self.jobs.insert(job, Job { want, pieces, hedged: 0 });
        self.schedule(job, now);
    }

    /// Something happened.
    pub fn handle(&mut self, event: Event, now: Now) {
        let request = match event {
            Event::Got { request, .. } | Event::Failed { request, .. } => request,
        };
        let Some(asked) = self.asked.remove(&request) else {
            return;
        };
        match event {
            Event::Got { len, .. } => {
                self.peers.answered(asked.node, now.saturating_sub(asked.at), len);
                self.settle(asked.job, asked.piece, asked.slow, Piece::Got);
            }
            Event::Failed { fault, .. } => self.fail(&asked, fault, now),
        }
        self.schedule_all(now);
    }

    fn fail(&mut self, asked: &Asked, fault: Fault, now: Now) {
        self.peers.failed(asked.node, &fault, now, &self.patience);
        let attempts = self.jobs.get(&asked.job).map_or(1, |job| match &job.pieces[usize::from(asked.piece)] {
            Piece::Asked { attempts, .. } => attempts + 1,
            _ => 1,
        });
        let last = attempts >= self.patience.attempts;
        let piece = match fault {
            Fault::Lied(_) | Fault::NotThere => Piece::Dead(fault),
            fault if last => Piece::Dead(fault),
            fault => Piece::Idle { attempts, fault: Some(fault) },
        };
        self.settle(asked.job, asked.piece, asked.slow, piece);
    }

    fn settle(&mut self, job: JobId, piece: u8, was_slow: bool, state: Piece) {
        if let Some(job) = self.jobs.get_mut(&job) {
            job.hedged -= usize::from(was_slow);
            job.pieces[usize::from(piece)] = state;
        }
    }

    /// Time passed: look for requests that are slow or lost.
    pub fn tick(&mut self, now: Now) {
        let lost: Vec<RequestId> = self
            .asked
            .iter()
            .filter(|(_, asked)| now.saturating_sub(asked.at) >= self.patience.timeout)
            .map(|(&request, _)| request)
            .collect();
        for request in lost {
            self.actions.push_back(Action::Cancel(request));
            if let Some(asked) = self.asked.remove(&request) {
                self.fail(&asked, Fault::TimedOut, now);
            }
        }
        for asked in self.asked.values_mut().filter(|asked| !asked.slow) {
            if now.saturating_sub(asked.at) >= self.peers.slow_after(&self.patience) {
                asked.slow = true;
                self.peers.slow(asked.node);
                if let Some(job) = self.jobs.get_mut(&asked.job) {
                    job.hedged += 1;
                }
            }
        }
        self.schedule_all(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Getter::tick`] must be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Now> {
        let slow_after = self.peers.slow_after(&self.patience);
        let asked = self.asked.values().map(|asked| {
            asked.at + if asked.slow { self.patience.timeout } else { slow_after.min(self.patience.timeout) }
        });
        let waiting = self.jobs.values().any(|job| job.pieces.iter().any(|p| matches!(p, Piece::Idle { .. })));
        asked.chain(self.peers.next_release().filter(|_| waiting)).min()
    }

    /// What is known of each holder.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Requests sent because another holder was slow.
    #[must_use]
    pub fn hedges(&self) -> u64 {
        self.hedges
    }

    fn schedule_all(&mut self, now: Now) {
        self.peers.release(now);
        let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
        for job in jobs {
            self.schedule(job, now);
        }
    }

    fn schedule(&mut self, id: JobId, now: Now) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let count = |test: fn(&Piece) -> bool| job.pieces.iter().filter(|p| test(p)).count();
        let have = count(|p| matches!(p, Piece::Got));
        if have >= job.want.need {
            return self.finish(id, Action::Complete(id));
        }
        let asked = count(|p| matches!(p, Piece::Asked { .. }));
        let open: Vec<u8> = (0..job.pieces.len() as u8)
            .filter(|&i| matches!(job.pieces[usize::from(i)], Piece::Idle { .. }))
            .filter(|&i| !self.peers.hopeless(job.want.holders[usize::from(i)]))
            .collect();
        if have + asked + open.len() < job.want.need {
            let shortfall = shortfall(job, have, &self.peers);
            return self.finish(id, Action::GiveUp(id, shortfall));
        }
        // A slow request still counts as asked once its stand-in is found: it may yet be the k-th answer.
        let missing = (job.want.need + job.hedged).saturating_sub(have + asked);
        let plain = job.want.need.saturating_sub(have + asked);
        for n in 0..missing {
            if !self.ask_best(id, &open, now) {
                break;
            }
            self.hedges += u64::from(n >= plain);
        }
    }

    /// Ask the best holder among `open` pieces. False when nobody can be asked now.
    fn ask_best(&mut self, id: JobId, open: &[u8], now: Now) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        let idle = |i: u8, job: &Job| match job.pieces[usize::from(i)] {
            Piece::Idle { attempts, .. } => Some(attempts),
            _ => None,
        };
        let best = open
            .iter()
            .filter_map(|&i| Some((i, idle(i, job)?, job.want.holders[usize::from(i)])))
            .filter(|(_, _, node)| self.peers.can_ask(*node, self.patience.per_holder))
            // A parity piece costs reconstruction: it must be worth it. Ties go round, so that segments spread over equal
            // holders.
            .min_by_key(|(i, attempts, node)| {
                let expected = self.peers.expected(*node);
                let is_parity = usize::from(*i) >= job.want.need;
                let turn = i.wrapping_add(job.want.segment.0[0]) % job.want.holders.len() as u8;
                (*attempts, if is_parity { expected * PARITY_WORTH } else { expected }, is_parity, turn)
            });
        let Some((piece, attempts, node)) = best else {
            return false;
        };
        let request = RequestId(self.next_request);
        self.next_request += 1;
        job.pieces[usize::from(piece)] = Piece::Asked { request, attempts };
        self.asked.insert(request, Asked { job: id, piece, node, at: now, slow: false });
        self.peers.asked(node);
        let fragment = FragmentId { segment: job.want.segment, piece };
        self.actions.push_back(Action::Fetch { request, job: id, node, fragment });
        true
    }

    fn finish(&mut self, id: JobId, action: Action) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        for piece in job.pieces {
            if let Piece::Asked { request, .. } = piece {
                self.actions.push_back(Action::Cancel(request));
                if let Some(asked) = self.asked.remove(&request) {
                    self.peers.cancelled(asked.node);
                }
            }
        }
        self.actions.push_back(action);
    }
}

fn shortfall(job: &Job, have: usize, peers: &Peers) -> Shortfall {
    let missing = job.pieces.iter().zip(&job.want.holders).enumerate().filter_map(|(i, (piece, &node))| {
        let fault = match piece {
            Piece::Got => return None,
            Piece::Dead(fault) => fault.clone(),
            Piece::Idle { fault: Some(fault), .. } => fault.clone(),
            Piece::Idle { .. } | Piece::Asked { .. } => match peers.lie(node) {
                Some(what) => Fault::Lied(what),
                None if peers.hopeless(node) => Fault::Unreachable,
                None => Fault::NotAsked,
            },
        };
        Some((i as u8, node, fault))
    });
    Shortfall { segment: job.want.segment, have, need: job.want.need, missing: missing.collect() }
}

#[cfg(test)]
mod tests;
