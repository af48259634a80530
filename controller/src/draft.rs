//! From a publisher's draft to a signed manifest: fragments, groups and keys come from the catalog, in one transaction with
//! the references that keep the segments.

use std::collections::BTreeSet;

use images::disk::Layout as DiskLayout;
use images::keys::ManifestKey;
use images::limits::{PAGE_LEN_MAX, ROOT_LEN_MAX};
use images::manifest::{
    ArrayKey, ImageName, PageError, PageRef, Root, SegmentEntry, SegmentPage, SpanPage, Totals, Version,
};
use images::parity::Geometry;
use images::span::{ContentHasher, Span};
use images::{ArrayId, ContentDigest};
use protocol::message::image::MANIFEST_PURPOSE;
use protocol::message::publish::{DraftSegment, Published};

use crate::catalog::{CatalogError, Change, ImageRecord, keys_of};

/// All that a publisher said of an image.
pub struct Draft {
    /// The array.
    pub array: ArrayId,
    /// Its name.
    pub image: ImageName,
    /// Seconds since 1970.
    pub created_unix_s: u64,
    /// Disk length, bytes.
    pub disk_len: u64,
    /// Partition table.
    pub disk: DiskLayout,
    /// What a person compares.
    pub content: ContentDigest,
    /// Plain SHA-256 of the file, where one was checked.
    pub source_sha256: Option<[u8; 32]>,
    /// Bytes in use.
    pub in_use: u64,
    /// Segments and runs, page by page.
    pub run_pages: Vec<Vec<DraftSegment>>,
    /// Read-back digests, page by page.
    pub span_pages: Vec<Vec<Span>>,
    /// Segments that are protected less than was asked for.
    pub weaker: u64,
    /// Seals the segment keys.
    pub key: ManifestKey,
}

fn invalid(error: &PageError) -> CatalogError {
    CatalogError::Conflict(format!("the draft is refused: {error}"))
}

impl Draft {
    /// Publish it.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if the name is taken, a segment is missing, or the draft contradicts itself.
    pub fn publish(&self, change: &Change<'_>, array_key: &ArrayKey) -> Result<Published, CatalogError> {
        let mut totals = Totals { in_use: self.in_use, ..Totals::default() };
        let segment_pages = self.put_segment_pages(change, &mut totals)?;
        let span_pages = self.put_span_pages(change)?;
        let root = Root {
            version: Version::V1,
            array: self.array,
            image: self.image.clone(),
            created_unix_s: self.created_unix_s,
            disk_len: self.disk_len,
            disk: self.disk.clone(),
            content: self.content,
            source_sha256: self.source_sha256,
            totals,
            segment_pages,
            span_pages,
        };
        let bytes = root.encode();
        if bytes.len() > ROOT_LEN_MAX {
            return Err(CatalogError::Conflict("the manifest's root is too long".into()));
        }
        let signed = array_key.sign(MANIFEST_PURPOSE, bytes);
        let manifest = root.id();
        let record = ImageRecord { number: 0, manifest, signed, key: self.key.clone() };
        change.put_image(&self.image, &record)?;
        Ok(Published {
            image: self.image.clone(),
            manifest,
            segments: totals.segments,
            sealed: totals.sealed,
            weaker: self.weaker,
        })
    }

    fn put_segment_pages(&self, change: &Change<'_>, totals: &mut Totals) -> Result<Vec<PageRef>, CatalogError> {
        let mut seen = BTreeSet::new();
        let mut pages = Vec::with_capacity(self.run_pages.len());
        for (index, draft) in self.run_pages.iter().enumerate() {
            let records = draft.iter().map(|s| change.refer(&s.id)).collect::<Result<Vec<_>, _>>()?;
            let mut entries = Vec::with_capacity(draft.len());
            for (segment, record) in draft.iter().zip(&records) {
                let geometry = geometry_of(change, record.group)?;
                if seen.insert(segment.id) {
                    totals.segments += 1;
                    totals.data += u64::from(record.data_len);
                    totals.sealed += u64::from(record.sealed_len);
                }
                entries.push(SegmentEntry {
                    id: segment.id,
                    sealed_len: record.sealed_len,
                    data_len: record.data_len,
                    group: record.group,
                    geometry,
                    fragments: record.fragments.clone(),
                    runs: segment.runs.clone(),
                });
            }
            let bytes = SegmentPage::seal(index as u32, entries, &keys_of(&records), &self.key).encode();
            // What an installer would refuse must not be published.
            SegmentPage::decode(&bytes, index as u32, self.disk_len).map_err(|e| invalid(&e))?;
            pages.push(put_page(change, &bytes)?);
        }
        Ok(pages)
    }

    fn put_span_pages(&self, change: &Change<'_>) -> Result<Vec<PageRef>, CatalogError> {
        let mut content = ContentHasher::new(self.disk_len);
        let mut pages = Vec::with_capacity(self.span_pages.len());
        for spans in &self.span_pages {
            spans.iter().for_each(|span| content.push(span));
            let bytes = SpanPage { spans: spans.clone() }.encode();
            SpanPage::decode(&bytes).map_err(|e| invalid(&e))?;
            pages.push(put_page(change, &bytes)?);
        }
        if content.finish() != self.content {
            return Err(CatalogError::Conflict("the draft's digests contradict each other".into()));
        }
        Ok(pages)
    }
}

fn put_page(change: &Change<'_>, bytes: &[u8]) -> Result<PageRef, CatalogError> {
    if bytes.len() > PAGE_LEN_MAX {
        return Err(CatalogError::Conflict("a manifest page is too long".into()));
    }
    let page = PageRef::of(bytes);
    change.put_page(&page.digest, bytes)?;
    Ok(page)
}

fn geometry_of(change: &Change<'_>, group: images::GroupId) -> Result<Geometry, CatalogError> {
    let group = change.group(group)?.ok_or_else(|| CatalogError::Conflict("a segment without a group".into()))?;
    Ok(group.geometry)
}
