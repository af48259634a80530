//! Reading fragments beside the one that writes.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use images::FragmentDigest;
use images::fragment::{FragmentHeader, FragmentId};

use super::index::{Index, Place};
use super::{Layout, StoreError};
use crate::format::{Content, RecordHeader};
use crate::limits::{RECORD_HEADER_LEN, SLOT_LEN};
use crate::storage::Storage;

/// Bytes that are hashed while more are read.
const READ_PIECE: usize = 128 << 10;

/// Reads while the store writes.
pub struct Reader<S> {
    storage: Arc<S>,
    layout: Layout,
    index: Arc<RwLock<Index>>,
    reading: Arc<AtomicUsize>,
}

/// One of those that read now.
struct Reading<'a>(&'a AtomicUsize);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl<S> Clone for Reader<S> {
    fn clone(&self) -> Self {
        let (storage, index, reading) = (self.storage.clone(), self.index.clone(), self.reading.clone());
        Self { storage, layout: self.layout, index, reading }
    }
}

impl<S: Storage> Reader<S> {
    pub(super) fn new(storage: Arc<S>, layout: Layout, index: Arc<RwLock<Index>>) -> Self {
        Self { storage, layout, index, reading: Arc::default() }
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that is here, in order.
    #[must_use]
    pub fn inventory(&self) -> Vec<FragmentId> {
        self.index().iter().map(|(id, _)| *id).collect()
    }

    /// The next `count` fragments behind `after`, in order.
    #[must_use]
    pub fn inventory_behind(&self, after: Option<FragmentId>, count: usize) -> Vec<FragmentId> {
        self.index().iter_behind(after).take(count).copied().collect()
    }

    /// Everything that is here, with its place, in the order in which it lies in the file.
    #[must_use]
    pub fn in_order_on_disk(&self) -> Vec<(Place, FragmentId)> {
        let mut all: Vec<(Place, FragmentId)> = self.index().iter().map(|(id, place)| (*place, *id)).collect();
        all.sort_unstable();
        all
    }

    /// How many fragments are here, and their fold.
    #[must_use]
    pub fn fold(&self) -> (u64, u64) {
        let index = self.index();
        (index.len() as u64, index.iter().fold(0, |fold, (id, _)| fold ^ id.fold()))
    }

    /// Number of fragments that are here.
    #[must_use]
    pub fn fragments(&self) -> usize {
        self.index().len()
    }

    /// Fragments that were here and are damaged, once each.
    #[must_use]
    pub fn take_damaged(&self) -> Vec<FragmentId> {
        self.index.write().unwrap_or_else(PoisonError::into_inner).take_damaged()
    }

    fn at(&self, place: Place) -> u64 {
        self.layout.offset(place.region) + place.offset()
    }

    /// Read a fragment and verify it.
    ///
    /// # Errors
    /// [`StoreError::NotHere`]; [`StoreError::Damaged`] if the medium changed it, and from then on it is not here;
    /// [`StoreError::Io`] if the medium fails, which says nothing of the fragment.
    pub fn get(&self, id: FragmentId) -> Result<(FragmentHeader, Bytes), StoreError> {
        loop {
            let place = self.index().get(&id).ok_or(StoreError::NotHere(id))?;
            let read = self.get_at(id, place);
            // It may have been moved between the look-up and the read.
            if read.is_ok() || self.index().get(&id).is_none_or(|now| now == place) {
                return read;
            }
        }
    }

    fn get_at(&self, id: FragmentId, place: Place) -> Result<(FragmentHeader, Bytes), StoreError> {
        match self.read_and_verify(id, place) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => self.lose(id, place),
            Err(error) => {
                let end = self.at(place) + place.record_len();
                // Another program cut the file off: what was there is not there any more.
                let is_cut_off = error.kind() == std::io::ErrorKind::UnexpectedEof;
                match self.storage.len() {
                    Ok(len) if is_cut_off && len < end => self.lose(id, place),
                    _ => Err(error.into()),
                }
            }
        }
    }

    /// None: it is not what it should be. A part of a record is hashed while the system reads the next one ahead.
    fn read_and_verify(&self, id: FragmentId, place: Place) -> std::io::Result<Option<(FragmentHeader, Bytes)>> {
        let (at, mut bytes) = (self.at(place), vec![0; place.record_len() as usize]);
        // Who reads alone hashes while the system reads ahead. Beside others the processor is busy anyhow, and a read in one piece is cheaper.
        let is_alone = self.reading.fetch_add(1, Relaxed) == 0;
        let _reading = Reading(&self.reading);
        if !is_alone {
            self.storage.will_read(at, place.record_len());
        }
        let (mut header, mut hasher) = (None, blake3::Hasher::new());
        let mut done = 0;
        for piece in bytes.chunks_mut(READ_PIECE) {
            self.storage.read_exact_at(at + done as u64, piece)?;
            let header: &FragmentHeader = match &header {
                Some(header) => header,
                None => {
                    let head: &[u8; RECORD_HEADER_LEN] =
                        piece.first_chunk().expect("a record is longer than its header");
                    let is_it = |r: &RecordHeader| {
                        r.content.id() == id && (r.region, u64::from(r.offset)) == (place.region, place.offset())
                    };
                    match RecordHeader::decode(head).filter(is_it).map(|record| record.content) {
                        Some(Content::Put(found)) => header.insert(found),
                        _ => return Ok(None),
                    }
                }
            };
            let payload_from = RECORD_HEADER_LEN.saturating_sub(done).min(piece.len());
            let payload_until = (RECORD_HEADER_LEN + header.payload_len()).saturating_sub(done).min(piece.len());
            hasher.update(&piece[payload_from..payload_until.max(payload_from)]);
            done += piece.len();
        }
        let Some(header) = header else { return Ok(None) };
        let end = RECORD_HEADER_LEN + header.payload_len();
        let is_it = end <= bytes.len() && header.digest == FragmentDigest(*hasher.finalize().as_bytes());
        Ok(is_it.then(|| (header, Bytes::from(bytes).slice(RECORD_HEADER_LEN..end))))
    }

    /// It is damaged, unless its region was reused between the look-up and the read; then the index says so by now.
    fn lose<T>(&self, id: FragmentId, place: Place) -> Result<T, StoreError> {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if index.get(&id) != Some(place) {
            return Err(StoreError::NotHere(id));
        }
        index.mark_damaged(id);
        Err(StoreError::Damaged(id))
    }

    /// Read a fragment past whatever the system remembers of it, and verify it.
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub fn get_from_medium(&self, id: FragmentId) -> Result<(FragmentHeader, Bytes), StoreError> {
        let place = self.index().get(&id).ok_or(StoreError::NotHere(id))?;
        self.storage.forget(self.at(place), place.record_len());
        self.get(id)
    }

    /// The same; and where the medium fails twice for this record and not
    /// for the file, the record is lost like a damaged one.
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub fn examine(&self, id: FragmentId) -> Result<(FragmentHeader, Bytes), StoreError> {
        let place = self.index().get(&id).ok_or(StoreError::NotHere(id))?;
        match self.get_from_medium(id) {
            Err(StoreError::Io(_)) => {}
            result => return result,
        }
        match self.get(id) {
            Err(StoreError::Io(error)) => {
                self.storage.forget(0, SLOT_LEN);
                let mut head = [0; SLOT_LEN as usize];
                if self.storage.read_exact_at(0, &mut head).is_err() {
                    // The medium is away.
                    return Err(error.into());
                }
                self.lose(id, place)
            }
            result => result,
        }
    }
}
