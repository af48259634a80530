//! From a publisher's draft to a manifest's pages: fragments, groups and keys come from the catalog.

use std::collections::BTreeSet;

use images::disk::Layout as DiskLayout;
use images::keys::ManifestKey;
use images::limits::PAGE_LEN_MAX;
use images::manifest::{ImageName, PageError, PageRef, Root, SegmentEntry, SegmentPage, SpanPage, Totals, Version};
use images::span::{ContentHasher, Span};
use images::{ArrayId, ContentDigest, SegmentId};
use protocol::message::publish::DraftSegment;

use crate::catalog::{Catalog, CatalogError, not_here};

/// A manifest's pages.
pub struct Pages {
    /// Of segments.
    pub segments: Vec<Vec<u8>>,
    /// Of read-back digests.
    pub spans: Vec<Vec<u8>>,
    /// What they add up to.
    pub totals: Totals,
}

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
    /// Of these pages.
    pub span_edition: u32,
    /// Seals the segment keys.
    pub key: ManifestKey,
}

fn invalid(error: &PageError) -> CatalogError {
    CatalogError::Conflict(format!("the draft is refused: {error}"))
}

impl Draft {
    /// The pages, encoded. Nothing may be deleted from the catalog until they are published.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if a segment is missing, or the draft contradicts itself.
    pub fn pages(&self, catalog: &Catalog) -> Result<Pages, CatalogError> {
        let mut totals = Totals { in_use: self.in_use, ..Totals::default() };
        let segments = self.segment_pages(catalog, &mut totals)?;
        let pages = Pages { segments, spans: self.encode_spans()?, totals };
        if pages.segments.iter().chain(&pages.spans).any(|bytes| bytes.len() > PAGE_LEN_MAX) {
            return Err(CatalogError::Conflict("a manifest page is too long".into()));
        }
        Ok(pages)
    }

    /// The root over pages that are stored.
    #[must_use]
    pub fn root(&self, totals: Totals, segment_pages: Vec<PageRef>, span_pages: Vec<PageRef>) -> Root {
        Root {
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
        }
    }

    /// Segments that the image refers to, as often as it does.
    pub fn segments(&self) -> impl Iterator<Item = SegmentId> {
        self.run_pages.iter().flatten().map(|s| s.id)
    }

    fn segment_pages(&self, catalog: &Catalog, totals: &mut Totals) -> Result<Vec<Vec<u8>>, CatalogError> {
        let groups = catalog.groups()?;
        let mut seen = BTreeSet::new();
        let mut pages = Vec::with_capacity(self.run_pages.len());
        for (index, draft) in self.run_pages.iter().enumerate() {
            let (mut entries, mut keys) = (Vec::with_capacity(draft.len()), Vec::with_capacity(draft.len()));
            for segment in draft {
                let record = catalog.segment(&segment.id)?.ok_or_else(|| not_here(&segment.id))?;
                let group = groups.get(&record.group);
                let group = group.ok_or_else(|| CatalogError::Conflict("a segment without a group".into()))?;
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
                    geometry: group.geometry,
                    fragments: record.fragments,
                    runs: segment.runs.clone(),
                });
                keys.push(record.key);
            }
            let bytes = SegmentPage::seal(index as u32, entries, &keys, &self.key).encode();
            // What an installer would refuse must not be published.
            SegmentPage::decode(&bytes, index as u32, self.disk_len).map_err(|e| invalid(&e))?;
            pages.push(bytes);
        }
        Ok(pages)
    }

    /// Pages of read-back digests, encoded.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if they contradict each other.
    pub fn encode_spans(&self) -> Result<Vec<Vec<u8>>, CatalogError> {
        let mut content = ContentHasher::new(self.disk_len);
        let mut pages = Vec::with_capacity(self.span_pages.len());
        for spans in &self.span_pages {
            spans.iter().for_each(|span| content.push(span));
            let bytes = SpanPage { spans: spans.clone(), edition: self.span_edition }.encode();
            SpanPage::decode(&bytes).map_err(|e| invalid(&e))?;
            pages.push(bytes);
        }
        if content.finish() != self.content {
            return Err(CatalogError::Conflict("the draft's digests contradict each other".into()));
        }
        Ok(pages)
    }
}
