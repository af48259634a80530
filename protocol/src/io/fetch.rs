//! Drives the [getter](crate::getter) over QUIC: real requests, real time, and proof of every byte before it counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use images::NodeId;
use images::fragment::FragmentId;
use images::manifest::SegmentEntry;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use super::pool::Pool;
use super::rpc::{self, CallError};
use super::stage::{Stage, StageReport};
use crate::directory::Epoch;
use crate::getter::{Action, Event, Fault, Getter, JobId, Patience, PeerReport, RequestId, Shortfall, Want};
use crate::message::{Refusal, fetch};

/// Verified pieces of one segment: (piece number, payload), k of them.
pub type Pieces = Vec<(usize, Bytes)>;

/// What fetching took so far.
#[derive(Clone, Debug, Default)]
pub struct FetchReport {
    /// Each holder that was asked.
    pub peers: Vec<(NodeId, PeerReport)>,
    /// Requests sent because another holder was slow.
    pub hedges: u64,
    /// Holders whose directory was older than the one in use, with their epoch.
    pub behind: Vec<(NodeId, Epoch)>,
    /// Verifying what came.
    pub verify: StageReport,
}

struct Job {
    entry: Arc<SegmentEntry>,
    holders: Vec<NodeId>,
    answer: oneshot::Sender<Result<Pieces, Shortfall>>,
}

enum Message {
    Fetch(Job),
    Report(oneshot::Sender<FetchReport>),
}

/// Fetches segments; clones share one getter.
#[derive(Clone)]
pub struct Fetcher(mpsc::UnboundedSender<Message>);

impl Fetcher {
    /// Start one. `epoch` is the directory's that holders come from.
    #[must_use]
    pub fn start(pool: Arc<Pool>, patience: Patience, epoch: Epoch) -> Self {
        let (send, receive) = mpsc::unbounded_channel();
        tokio::spawn(run(pool, patience, epoch, receive));
        Self(send)
    }

    /// Any k verified pieces of a segment.
    ///
    /// # Errors
    /// [`Shortfall`] when fewer than k can be had.
    ///
    /// # Panics
    /// If the getter's task was killed, which only the runtime's shutdown does.
    pub async fn fetch(&self, entry: Arc<SegmentEntry>, holders: Vec<NodeId>) -> Result<Pieces, Shortfall> {
        let (answer, result) = oneshot::channel();
        let job = Message::Fetch(Job { entry, holders, answer });
        self.0.send(job).map_err(drop).expect("the getter runs as long as its runtime");
        result.await.expect("the getter answers every job")
    }

    /// What it took so far.
    pub async fn report(&self) -> FetchReport {
        let (answer, result) = oneshot::channel();
        let _ = self.0.send(Message::Report(answer));
        result.await.unwrap_or_default()
    }
}

struct Running {
    job: Job,
    pieces: Pieces,
}

struct Arrived {
    request: RequestId,
    job: JobId,
    node: NodeId,
    piece: u8,
    result: Result<(Bytes, Epoch), Fault>,
}

async fn run(pool: Arc<Pool>, patience: Patience, epoch: Epoch, mut messages: mpsc::UnboundedReceiver<Message>) {
    let start = Instant::now();
    let mut getter = Getter::new(patience);
    let mut running: HashMap<JobId, Running> = HashMap::new();
    let mut requests: HashMap<RequestId, AbortHandle> = HashMap::new();
    let mut tasks: JoinSet<Arrived> = JoinSet::new();
    let mut behind: HashMap<NodeId, Epoch> = HashMap::new();
    let mut next_job = 0;
    let verify = Arc::new(Stage::default());
    loop {
        while let Some(action) = getter.poll_action() {
            act(action, &pool, &verify, &mut running, &mut requests, &mut tasks);
        }
        let wake = getter.poll_timeout().map(|at| tokio::time::Instant::from_std(start + at));
        tokio::select! {
            message = messages.recv() => match message {
                None => return,
                Some(Message::Fetch(job)) => {
                    let id = JobId(next_job);
                    next_job += 1;
                    let want = Want {
                        job: id,
                        segment: job.entry.id,
                        need: job.entry.geometry.data(),
                        holders: job.holders.clone(),
                    };
                    running.insert(id, Running { job, pieces: Vec::new() });
                    getter.want(want, start.elapsed());
                }
                Some(Message::Report(answer)) => {
                    let peers = getter.peers().reports().map(|(node, report)| (node, report.clone())).collect();
                    let behind = behind.iter().map(|(&node, &epoch)| (node, epoch)).collect();
                    let _ = answer.send(FetchReport { peers, hedges: getter.hedges(), behind, verify: verify.report() });
                }
            },
            Some(done) = tasks.join_next() => {
                // A cancelled task has nothing to say; a panic in one is a bug and shows in the log.
                let Ok(arrived) = done else { continue };
                requests.remove(&arrived.request);
                let request = arrived.request;
                let event = match arrived.result {
                    Ok((payload, their_epoch)) => {
                        if their_epoch < epoch {
                            behind.insert(arrived.node, their_epoch);
                        }
                        let len = payload.len() as u64;
                        if let Some(running) = running.get_mut(&arrived.job) {
                            running.pieces.push((arrived.piece.into(), payload));
                        }
                        Event::Got { request, len }
                    }
                    Err(fault) => Event::Failed { request, fault },
                };
                getter.handle(event, start.elapsed());
            }
            () = async { tokio::time::sleep_until(wake.expect("guarded")).await }, if wake.is_some() => {
                getter.tick(start.elapsed());
            }
        }
    }
}

fn act(
    action: Action,
    pool: &Arc<Pool>,
    verify: &Arc<Stage>,
    running: &mut HashMap<JobId, Running>,
    requests: &mut HashMap<RequestId, AbortHandle>,
    tasks: &mut JoinSet<Arrived>,
) {
    match action {
        Action::Fetch { request, job, node, fragment } => {
            let Some(running) = running.get(&job) else {
                return;
            };
            let entry = running.job.entry.clone();
            let (pool, verify) = (pool.clone(), verify.clone());
            let piece = fragment.piece;
            let handle = tasks.spawn(async move {
                let result = fetch_one(&pool, &verify, node, fragment, &entry).await;
                Arrived { request, job, node, piece, result }
            });
            requests.insert(request, handle);
        }
        Action::Cancel(request) => {
            if let Some(handle) = requests.remove(&request) {
                handle.abort();
            }
        }
        Action::Complete(job) => {
            if let Some(done) = running.remove(&job) {
                let _ = done.job.answer.send(Ok(done.pieces));
            }
        }
        Action::GiveUp(job, shortfall) => {
            if let Some(done) = running.remove(&job) {
                let _ = done.job.answer.send(Err(shortfall));
            }
        }
    }
}

async fn fetch_one(
    pool: &Pool,
    verify: &Stage,
    node: NodeId,
    fragment: FragmentId,
    entry: &SegmentEntry,
) -> Result<(Bytes, Epoch), Fault> {
    let connection = pool.get(node).await.map_err(|_| Fault::Unreachable)?;
    let answer = rpc::call(&connection, fetch::GetFragment { fragment }, &[]).await;
    let (reply, payload) = answer.map_err(|error| match error {
        CallError::Refused(Refusal::NotFound(_)) => Fault::NotThere,
        CallError::Refused(_) => Fault::Busy,
        CallError::Malformed => Fault::Lied("not an answer of this protocol".into()),
        _ => Fault::Unreachable,
    })?;
    let expected = entry.fragment(fragment.piece);
    if reply.header.id != fragment {
        return Err(Fault::Lied(format!("asked for {fragment}, got {}", reply.header.id)));
    }
    verify.run(payload.len(), || expected.verify(&payload)).map_err(|e| Fault::Lied(e.to_string()))?;
    Ok((payload, reply.epoch))
}
