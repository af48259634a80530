//! Verification: every holder proves that it holds its piece, mass storage that it holds its copy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Cursor, Read as _};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bao::decode::SliceDecoder;
use images::fragment::FragmentId;
use images::manifest::ImageName;
use images::{FragmentDigest, NodeId, SegmentId};
use protocol::io::pool::Pool;
use protocol::io::rpc::{self, CallError};
use protocol::message::{Refusal, store};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use utoipa::ToSchema;

use super::controller::{Controller, catalog_refusal};
use super::sweep::segments_of;
use crate::catalog::{CatalogError, GroupRecord, SegmentRecord};

/// Bytes that a holder proves of each piece: one BLAKE3 chunk group; where they lie is random.
const PROVE_LEN: u32 = 4096;
/// How long a holder may take: one with a hung disk keeps its connection alive and never answers.
const PROVE_WITHIN: Duration = Duration::from_secs(30);
/// Segments that are looked up at the same time.
const SOME: usize = 1024;
/// Proofs under way.
const TOGETHER: usize = 32;
/// Problems that are listed one by one; the rest is counted.
const LISTED_MAX: usize = 1000;

/// Something that is not as it should be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Segment.
    pub segment: String,
    /// Piece number; none for the copy on mass storage.
    pub piece: Option<u8>,
    /// The holder; none for mass storage.
    pub node: Option<String>,
    /// What is wrong.
    pub what: String,
}

/// How far a verification is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Segments to look at.
    pub segments: u64,
    /// Segments looked at.
    pub done: u64,
    /// Pieces proven.
    pub pieces_proven: u64,
    /// Copies on mass storage found whole.
    pub copies_proven: u64,
    /// Segments of which fewer than k pieces and no copy were proven.
    pub unreadable: u64,
    /// Number of problems.
    pub problem_count: u64,
    /// The first problems, by segment.
    pub problems: Vec<Problem>,
    /// Whether it is complete.
    pub finished: bool,
    /// Why it could not be completed.
    pub error: Option<String>,
}

/// Verifications since the start.
#[derive(Default)]
pub struct Jobs(Mutex<HashMap<u64, Verification>>);

impl Jobs {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Verification>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far a verification is.
    #[must_use]
    pub fn get(&self, job: u64) -> Option<Verification> {
        self.lock().get(&job).cloned()
    }

    fn update(&self, job: u64, work: impl FnOnce(&mut Verification)) {
        work(self.lock().entry(job).or_default());
    }
}

fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness a holder could prepare; a fixed range still proves that the bytes are there.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Any id: what comes after it was picked by chance.
pub(super) fn random_segment() -> SegmentId {
    let mut id = [0; 32];
    id.chunks_exact_mut(8).for_each(|some| some.copy_from_slice(&random_u64().to_le_bytes()));
    SegmentId(id)
}

/// Why a holder has not proven that it has a piece.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    /// It could not be asked, or cannot answer now. That says nothing of the piece.
    #[error("{0}")]
    Silent(String),
    /// It says so itself.
    #[error("its holder does not have it")]
    NotThere,
    /// It answered something else.
    #[error("its holder failed the proof: what it has is not the piece")]
    Wrong,
}

impl Unproven {
    /// Whether the piece is to be made anew.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        !matches!(self, Self::Silent(_))
    }
}

/// Let a holder prove that it has a piece: a random range of it, which verifies against the piece's digest.
///
/// # Errors
/// [`Unproven`].
pub async fn prove(
    pool: &Pool,
    segment: SegmentId,
    digest: FragmentDigest,
    payload_len: u64,
    piece: u8,
    node: NodeId,
) -> Result<(), Unproven> {
    let offset = random_u64() % payload_len.max(1);
    let fragment = FragmentId { segment, piece };
    let connection = pool.get(node).await.map_err(|e| Unproven::Silent(e.to_string()))?;
    let message = store::Prove { fragment, offset: offset as u32, len: PROVE_LEN };
    let proof = tokio::time::timeout(PROVE_WITHIN, rpc::call(&connection, message, &[])).await;
    let slice = match proof.map_err(|_| Unproven::Silent("its holder did not answer".into()))? {
        Ok((_, slice)) => slice,
        Err(CallError::Refused(Refusal::NotFound(_))) => return Err(Unproven::NotThere),
        Err(error) => return Err(Unproven::Silent(error.to_string())),
    };
    let mut range = Vec::new();
    let decoder = SliceDecoder::new(Cursor::new(slice), &blake3::Hash::from(digest.0), offset, PROVE_LEN.into());
    let read = { decoder }.take(u64::from(PROVE_LEN)).read_to_end(&mut range);
    let expected = (payload_len - offset).min(PROVE_LEN.into());
    match read {
        Ok(len) if len as u64 == expected => Ok(()),
        _ => Err(Unproven::Wrong),
    }
}

impl Controller {
    /// Start a verification of one image, or of everything. `deep` reads every copy on mass storage.
    ///
    /// # Errors
    /// If there is no such image.
    pub fn start_verify(self: &Arc<Self>, image: Option<ImageName>, deep: bool) -> Result<u64, Refusal> {
        let segments = |image: ImageName| {
            let (_, record) = self.find_image(image.name(), Some(image.tag()))?;
            let segments = segments_of(&self.catalog, &record).map_err(catalog_refusal)?;
            Ok(segments.into_iter().collect::<BTreeSet<SegmentId>>())
        };
        let wanted = image.map(segments).transpose()?;
        let job = random_u64() >> 12; // fits a JSON number
        self.jobs.update(job, |_| {});
        let controller = self.clone();
        tokio::spawn(async move {
            let result = controller.verify(job, wanted, deep).await;
            controller.jobs.update(job, |v| {
                v.finished = true;
                v.error = result.err().map(|e| e.to_string());
            });
        });
        Ok(job)
    }

    async fn verify(
        self: &Arc<Self>,
        job: u64,
        wanted: Option<BTreeSet<SegmentId>>,
        deep: bool,
    ) -> Result<(), Refusal> {
        let groups: BTreeMap<_, _> = self.catalog.groups().map_err(catalog_refusal)?;
        let total = self.catalog.segment_totals().map_err(catalog_refusal)?.segments;
        self.jobs.update(job, |v| v.segments = wanted.as_ref().map_or(total, |wanted| wanted.len() as u64));
        let slots = Arc::new(Semaphore::new(TOGETHER));
        let mut tasks = JoinSet::new();
        let mut after = None;
        loop {
            let some = self.some_segments(wanted.as_ref(), after).map_err(catalog_refusal)?;
            let Some((last, _)) = some.last() else { break };
            after = Some(*last);
            for (id, record) in some {
                let Ok(slot) = slots.clone().acquire_owned().await else {
                    break;
                };
                let Some(group) = groups.get(&record.group).cloned() else {
                    continue;
                };
                let controller = self.clone();
                tasks.spawn(async move {
                    controller.verify_segment(job, id, &record, &group, deep).await;
                    drop(slot);
                });
                while tasks.try_join_next().is_some() {}
            }
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }

    /// Some segments after an id, of all or of those that are wanted.
    fn some_segments(
        &self,
        wanted: Option<&BTreeSet<SegmentId>>,
        after: Option<SegmentId>,
    ) -> Result<Vec<(SegmentId, SegmentRecord)>, CatalogError> {
        let Some(wanted) = wanted else { return self.catalog.segments_after(after, SOME) };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let some = wanted.range((from, Bound::Unbounded)).take(SOME);
        some.filter_map(|id| Some(self.catalog.segment(id).transpose()?.map(|record| (*id, record)))).collect()
    }

    /// Let holders prove pieces that chance picks, so many: what vanished without a trace is found before it is needed.
    pub(super) async fn audit(&self, count: usize) -> Result<(), Refusal> {
        for _ in 0..count {
            let found = self.catalog.segment_from(&random_segment()).map_err(catalog_refusal)?;
            let Some((id, record)) = found else { return Ok(()) };
            if record.on_mass_storage && self.check_copy(&id, &record, false).await.is_err() {
                self.note_lost_copy(id).await;
            }
            let Some(group) = self.catalog.group(record.group).map_err(catalog_refusal)? else { continue };
            let piece = (random_u64() % group.members.len() as u64) as u8;
            let node = group.members[usize::from(piece)];
            if let Err(what) = self.prove(id, &record, piece, node, &group).await
                && what.is_loss()
            {
                tracing::warn!(%node, segment = %id, piece, %what, "a random proof failed");
                self.note_damage(id, piece, node).await;
            }
        }
        Ok(())
    }

    /// A holder that is there cannot show what it should hold: it is made anew.
    pub(super) async fn note_damage(&self, segment: SegmentId, piece: u8, node: NodeId) {
        let noted = self.committer.change(move |change| change.note_damage(node, segment, piece).map(drop));
        match noted.await {
            Ok(()) => self.repairs.wake.notify_one(),
            Err(error) => tracing::warn!(%error, "damage not noted"),
        }
    }

    async fn verify_segment(&self, job: u64, id: SegmentId, record: &SegmentRecord, group: &GroupRecord, deep: bool) {
        let mut problems = Vec::new();
        let mut proven = 0;
        for (piece, &node) in group.members.iter().enumerate() {
            match self.prove(id, record, piece as u8, node, group).await {
                Ok(()) => proven += 1,
                Err(what) => {
                    if what.is_loss() {
                        self.note_damage(id, piece as u8, node).await;
                    }
                    problems.push(Problem {
                        segment: id.to_string(),
                        piece: Some(piece as u8),
                        node: Some(node.to_string()),
                        what: what.to_string(),
                    });
                }
            }
        }
        let mut copies = 0;
        if record.on_mass_storage {
            match self.check_copy(&id, record, deep).await {
                Ok(()) => copies = 1,
                Err(what) => {
                    self.note_lost_copy(id).await;
                    problems.push(Problem { segment: id.to_string(), piece: None, node: None, what });
                }
            }
        }
        let readable = proven >= group.geometry.data() || copies == 1;
        self.jobs.update(job, |v| {
            v.done += 1;
            v.pieces_proven += proven as u64;
            v.copies_proven += copies;
            v.unreadable += u64::from(!readable);
            v.problem_count += problems.len() as u64;
            let room = LISTED_MAX.saturating_sub(v.problems.len());
            v.problems.extend(problems.into_iter().take(room));
        });
    }

    pub(super) async fn prove(
        &self,
        segment: SegmentId,
        record: &SegmentRecord,
        piece: u8,
        node: NodeId,
        group: &GroupRecord,
    ) -> Result<(), Unproven> {
        if !self.fleet.up().contains_key(&node) {
            return Err(Unproven::Silent("its holder is away".into()));
        }
        let payload_len = group.geometry.piece_len(record.sealed_len as usize) as u64;
        prove(&self.pool, segment, record.fragments[usize::from(piece)], payload_len, piece, node).await
    }

    async fn check_copy(&self, id: &SegmentId, record: &SegmentRecord, deep: bool) -> Result<(), String> {
        if !deep {
            let len = self.mass_storage.len(id).await.map_err(|e| e.to_string())?;
            return match len {
                None => Err("missing on mass storage".into()),
                Some(len) if len == u64::from(record.sealed_len) => Ok(()),
                Some(_) => Err("has a wrong length on mass storage".into()),
            };
        }
        let bytes = self.mass_storage.get(id).await.map_err(|_| "missing on mass storage".to_string())?;
        if SegmentId::of(&bytes) == *id { Ok(()) } else { Err("damaged on mass storage".into()) }
    }
}
