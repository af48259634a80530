//! Whole copies on mass storage that are gone: made anew out of pieces, and only where mass storage is. A folder without its mark is a
//! disk that is not mounted, or a new one: an admin says which.

use std::sync::Arc;

use images::fragment::assemble;
use images::parity::Codec;
use images::{NodeId, SegmentId};
use protocol::getter::Patience;
use protocol::io::fetch::Fetcher;
use protocol::message::Refusal;
use tokio::task::JoinSet;

use super::controller::{Controller, catalog_refusal};
use super::repair::entry_of;
use super::verify::random_segment;
use crate::catalog::{GroupRecord, SegmentRecord};

/// Copies that are made at the same time.
const TOGETHER: usize = 8;
/// Segments in one transaction.
const CHANGE_TOGETHER: usize = 512;

/// A segment out of any k of its pieces, and the bytes that were fetched for that.
pub(super) async fn from_pieces(
    id: SegmentId,
    record: &SegmentRecord,
    group: GroupRecord,
    fetcher: &Fetcher,
) -> Result<(Vec<u8>, u64), Refusal> {
    let entry = Arc::new(entry_of(id, record, &group));
    let pieces = fetcher.fetch(entry.clone(), group.members).await;
    let pieces = pieces.map_err(|shortfall| Refusal::Unavailable(shortfall.to_string()))?;
    let fetched = pieces.iter().map(|(_, payload)| payload.len() as u64).sum();
    let codec = Codec::new(entry.geometry);
    let made = tokio::task::spawn_blocking(move || assemble(&codec, entry.id, entry.sealed_len, &pieces)).await;
    let made = made.map_err(|_| Refusal::Failed("assemble a segment".into()))?;
    Ok((made.map_err(|e| Refusal::Failed(format!("assemble a segment: {e}")))?, fetched))
}

impl Controller {
    /// Mark mass storage as this array's if it is, or if nothing was ever put there.
    ///
    /// # Errors
    /// The catalog's, or the folder's.
    pub fn look_at_mass_storage(&self) -> anyhow::Result<()> {
        if self.mass_storage.is_there() {
            return Ok(());
        }
        if self.mass_storage.has_segments() || !self.catalog.has_copies()? {
            return Ok(self.mass_storage.mark()?);
        }
        tracing::error!(folder = %self.mass_storage.path().display(), "mass storage is empty: mount its disk, or say `coe-ctl repair --new-mass-storage`");
        Ok(())
    }

    /// Mass storage is new and empty: from now on copies are kept there, and those of before are made anew.
    ///
    /// # Errors
    /// If it is not empty, or the catalog fails.
    pub async fn take_new_mass_storage(&self) -> Result<u64, Refusal> {
        if self.mass_storage.look().await || self.mass_storage.has_segments() {
            return Err(Refusal::Invalid(
                "mass storage is there, and this array's: copies that are missing are made anew without a word".into(),
            ));
        }
        let (mut count, mut after) = (0, None);
        loop {
            let some = self.catalog.segments_after(after, CHANGE_TOGETHER).map_err(catalog_refusal)?;
            let Some((last, _)) = some.last() else { break };
            after = Some(*last);
            let some: Vec<SegmentId> = some.into_iter().filter(|(_, r)| r.on_mass_storage).map(|(id, _)| id).collect();
            count += some.len() as u64;
            let noted = self.committer.change(move |change| some.iter().try_for_each(|id| change.note_lost_copy(id)));
            noted.await.map_err(catalog_refusal)?;
        }
        self.mass_storage.mark().map_err(|e| Refusal::Failed(format!("mass storage: {e}")))?;
        tracing::info!(copies = count, "mass storage is new, copies are made anew");
        Ok(count)
    }

    /// A copy is gone, or damaged.
    pub(super) async fn note_lost_copy(&self, segment: SegmentId) {
        if !self.mass_storage.is_there() {
            return;
        }
        let noted = self.committer.change(move |change| change.note_lost_copy(&segment));
        if let Err(error) = noted.await {
            tracing::warn!(%error, "a lost copy is not noted");
        }
    }

    /// Make some copies anew, in the hours for what can wait.
    pub(super) async fn mend_copies(self: &Arc<Self>) -> Result<(), Refusal> {
        if !self.mass_storage.look().await && self.mass_storage.has_segments() {
            // Of an array of before there was a mark, and mounted only now.
            self.mass_storage.mark().map_err(|e| Refusal::Failed(format!("mass storage: {e}")))?;
        }
        if !self.mass_storage.is_there() || !self.is_open()? {
            return Ok(());
        }
        // Some that cannot be had now must not keep the others waiting.
        self.repairs.copies.retain(|id| self.catalog.is_lost_copy(id).unwrap_or(true));
        let some = self.catalog.lost_copies(&random_segment(), TOGETHER).map_err(catalog_refusal)?;
        let (up, mut lost) = (self.fleet.up(), Vec::with_capacity(some.len()));
        for id in some {
            let Some(record) = self.catalog.segment(&id).map_err(catalog_refusal)? else { continue };
            let group = self.catalog.group(record.group).map_err(catalog_refusal)?;
            let members = group.map(|group| group.members).unwrap_or_default();
            let up: Vec<NodeId> = members.into_iter().filter(|node| up.contains_key(node)).collect();
            if self.repairs.copies.is_due(&id, &up) {
                lost.push((id, up));
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        let epoch = self.directory().map_err(catalog_refusal)?.mark().epoch;
        let fetcher = Fetcher::start(self.pool.clone(), Patience::unhurried(), epoch);
        let mut tasks = JoinSet::new();
        for (id, up) in lost {
            let (controller, fetcher) = (self.clone(), fetcher.clone());
            tasks.spawn(async move {
                let fetched = controller.make_copy(id, up, &fetcher).await?;
                controller.keep_pace(fetched).await
            });
        }
        let done: Vec<Result<(), Refusal>> = tasks.join_all().await;
        done.into_iter().collect()
    }

    /// Make one anew; the answer is the bytes that were fetched for it.
    async fn make_copy(&self, id: SegmentId, up: Vec<NodeId>, fetcher: &Fetcher) -> Result<u64, Refusal> {
        // What is deleted meanwhile must not come back.
        let _alive = self.deleting.read().await;
        self.check_in_charge()?;
        let Some(record) = self.catalog.segment(&id).map_err(catalog_refusal)? else { return Ok(0) };
        let Some(group) = self.catalog.group(record.group).map_err(catalog_refusal)? else { return Ok(0) };
        let (sealed, fetched) = match from_pieces(id, &record, group, fetcher).await {
            Ok(made) => made,
            Err(why) => {
                tracing::warn!(segment = %id, %why, "a lost copy cannot be made anew now");
                self.repairs.copies.failed(id, up);
                return Ok(0);
            }
        };
        let put = self.mass_storage.put(&id, sealed.into()).await;
        put.map_err(|e| Refusal::Failed(format!("mass storage: {e}")))?;
        let done = self.committer.change(move |change| change.copy_is_back(&id));
        done.await.map_err(catalog_refusal)?;
        Ok(fetched)
    }
}
