//! Images whose segments are cut anew: the manifest of before stays until nobody can be using it any more.

use std::collections::BTreeMap;

use images::manifest::ImageName;
use images::{ManifestId, SegmentId, wire};
use redb::{ReadableDatabase as _, ReadableTable as _};

use super::records::{ImageRecord, RetiredRecord, SaidRecord};
use super::tables::{CHUNKS, IMAGES, RETIRED, SAID, SEGMENT_CHUNKS};
use super::{Catalog, CatalogError, Change, Result};

impl Catalog {
    /// What was said of single images when they were published, instead of a policy: by `name:tag`.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn said(&self) -> Result<BTreeMap<String, SaidRecord>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(SAID)?;
        let row = |row: std::result::Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, &[u8]>), _>| {
            let (name, said) = row?;
            Ok((name.value().to_string(), wire::decode(said.value())?))
        };
        table.iter()?.map(row).collect()
    }

    /// Manifests that were replaced.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn retired(&self) -> Result<Vec<(ManifestId, RetiredRecord)>> {
        Ok(self.all(RETIRED)?.into_iter().map(|(id, record)| (ManifestId(id), record)).collect())
    }

    /// Another edition of a segment: the one whose chunks are given to new images.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn newer_edition(&self, id: &SegmentId) -> Result<Option<SegmentId>> {
        let read = self.0.begin_read()?;
        let chunks = read.open_table(SEGMENT_CHUNKS)?;
        let Some(own) = chunks.get(id.0)? else { return Ok(None) };
        let Some(first) = own.value().first_chunk::<32>() else { return Ok(None) };
        let Some((other, _)) = read.open_table(CHUNKS)?.get(*first)?.map(|place| place.value()) else {
            return Ok(None);
        };
        let is_same = other != id.0 && chunks.get(other)?.is_some_and(|theirs| theirs.value() == own.value());
        Ok(is_same.then_some(SegmentId(other)))
    }
}

impl Change<'_> {
    /// Keep what was said of an image; of one of which nothing was, nothing is kept.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn put_said(&self, image: &ImageName, said: &SaidRecord) -> Result<()> {
        let (mut table, key) = (self.0.open_table(SAID)?, image.to_string());
        if *said == SaidRecord::default() {
            table.remove(key.as_str())?;
        } else {
            table.insert(key.as_str(), wire::encode(said).as_slice())?;
        }
        self.note()
    }

    /// An image has another manifest, of the same contents, from now on. That of before keeps its references.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if the image is not the one that `before` was of.
    pub fn replace_image(
        &self,
        image: &ImageName,
        before: ManifestId,
        record: &ImageRecord,
        until_unix_s: u64,
    ) -> Result<()> {
        let mut table = self.0.open_table(IMAGES)?;
        let key = image.to_string();
        let found = table.get(key.as_str())?.map(|v| wire::decode::<ImageRecord>(v.value())).transpose()?;
        let Some(old) = found.filter(|old| old.manifest == before) else {
            return Err(CatalogError::Conflict(format!("{image} was removed or replaced meanwhile")));
        };
        let record = ImageRecord { number: old.number, ..record.clone() };
        table.insert(key.as_str(), wire::encode(&record).as_slice())?;
        let retired = RetiredRecord { image: key, record: old, until_unix_s };
        self.0.open_table(RETIRED)?.insert(before.0, wire::encode(&retired).as_slice())?;
        self.bump_epoch()
    }

    /// Nobody uses a manifest of before any more: one reference less of each of `segments`, its pages included.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn forget_retired(&self, manifest: &ManifestId, segments: &[SegmentId]) -> Result<()> {
        if self.0.open_table(RETIRED)?.remove(manifest.0)?.is_none() {
            return Err(CatalogError::Conflict("the manifest was forgotten meanwhile".into()));
        }
        segments.iter().try_for_each(|segment| self.count_reference(segment, -1).map(drop))
    }
}
