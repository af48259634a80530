//! Pages of a manifest.

use serde::{Deserialize, Serialize};

use crate::fragment::{FragmentHeader, FragmentId};
use crate::ids::{FragmentDigest, GroupId, SegmentId};
use crate::keys::{self, ManifestKey, OpenError, SegmentKey};
use crate::limits::{PAGE_LEN_MAX, PAGE_RUNS_MAX, PAGE_SEGMENTS_MAX, PAGE_SPANS_MAX, SEALED_MAX, SEGMENT_PLAIN_MAX};
use crate::parity::Geometry;
use crate::span::Span;
use crate::wire::{self, DecodeError};

/// Neighbouring bytes of a segment that are neighbours on the disk too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Byte offset on the disk.
    pub disk_offset: u64,
    /// Byte offset in the segment's chunk bytes.
    pub segment_offset: u32,
    /// Bytes.
    pub len: u32,
}

impl Run {
    /// Grow by `next` if it follows directly in both places.
    pub fn merge(&mut self, next: &Run) -> bool {
        let follows = self.disk_offset + u64::from(self.len) == next.disk_offset
            && u64::from(self.segment_offset) + u64::from(self.len) == u64::from(next.segment_offset);
        if follows {
            self.len += next.len;
        }
        follows
    }
}

/// One segment of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEntry {
    /// BLAKE3 of the sealed bytes.
    pub id: SegmentId,
    /// Sealed bytes.
    pub sealed_len: u32,
    /// Chunk bytes inside.
    pub data_len: u32,
    /// The protection group that keeps it; who that is, the directory says.
    pub group: GroupId,
    /// Its geometry.
    pub geometry: Geometry,
    /// Digest of the payload of each piece, n of them.
    pub fragments: Vec<FragmentDigest>,
    /// Where its bytes go.
    pub runs: Vec<Run>,
}

impl SegmentEntry {
    /// The header that piece `piece` must have.
    ///
    /// # Panics
    /// If `piece` is not below n.
    #[must_use]
    pub fn fragment(&self, piece: u8) -> FragmentHeader {
        FragmentHeader {
            id: FragmentId { segment: self.id, piece },
            geometry: self.geometry,
            sealed_len: self.sealed_len,
            digest: self.fragments[usize::from(piece)],
        }
    }
}

/// Up to [`PAGE_SEGMENTS_MAX`] segments, and their keys sealed under the manifest's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentPage {
    /// Position of the page in its manifest; also the nonce of `sealed_keys`.
    pub index: u32,
    /// The segments.
    pub segments: Vec<SegmentEntry>,
    /// The segments' keys in the same order, 32 bytes each, AES-256-GCM.
    pub sealed_keys: Vec<u8>,
}

/// Why a page is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PageError {
    /// Not a page at all.
    #[error("decode the page")]
    Decode(#[from] DecodeError),
    /// Numbers that contradict each other or a limit.
    #[error("the page contradicts itself: {0}")]
    Invalid(&'static str),
    /// The manifest's key does not open it.
    #[error("open the segment keys")]
    Keys(#[from] OpenError),
}

impl SegmentPage {
    /// Build a page from entries and their keys.
    #[must_use]
    pub fn seal(index: u32, segments: Vec<SegmentEntry>, segment_keys: &[SegmentKey], key: &ManifestKey) -> Self {
        let mut sealed_keys: Vec<u8> = segment_keys.iter().flat_map(|k| k.0).collect();
        keys::seal_in_place(&key.0, u64::from(index), &mut sealed_keys, 0);
        Self { index, segments, sealed_keys }
    }

    /// The segments' keys.
    ///
    /// # Errors
    /// If `key` is not this manifest's.
    pub fn keys(&self, key: &ManifestKey) -> Result<Vec<SegmentKey>, PageError> {
        let plain = keys::open(&key.0, u64::from(self.index), &self.sealed_keys, 0)?;
        if plain.len() != self.segments.len() * 32 {
            return Err(PageError::Invalid("keys do not match segments"));
        }
        let one = |k: &[u8]| SegmentKey(k.try_into().expect("32 bytes"));
        Ok(plain.chunks_exact(32).map(one).collect())
    }

    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Decode a page of a disk of `disk_len` bytes and check every number that a writer will rely on.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn decode(bytes: &[u8], index: u32, disk_len: u64) -> Result<Self, PageError> {
        let page: Self = wire::decode_canonical(bytes, PAGE_LEN_MAX)?;
        if page.index != index {
            return Err(PageError::Invalid("page number"));
        }
        if page.segments.len() > PAGE_SEGMENTS_MAX {
            return Err(PageError::Invalid("too many segments"));
        }
        for segment in &page.segments {
            check_segment(segment, disk_len)?;
        }
        Ok(page)
    }
}

fn check_segment(segment: &SegmentEntry, disk_len: u64) -> Result<(), PageError> {
    if segment.fragments.len() != segment.geometry.pieces() {
        return Err(PageError::Invalid("fragment digests do not match the geometry"));
    }
    if segment.sealed_len as usize > SEALED_MAX || segment.data_len as usize > SEGMENT_PLAIN_MAX {
        return Err(PageError::Invalid("segment too long"));
    }
    if segment.runs.len() > PAGE_RUNS_MAX {
        return Err(PageError::Invalid("too many runs"));
    }
    for run in &segment.runs {
        let in_disk = run.disk_offset.checked_add(run.len.into()).is_some_and(|end| end <= disk_len);
        let in_segment = run.segment_offset.checked_add(run.len).is_some_and(|end| end <= segment.data_len);
        if !in_disk || !in_segment {
            return Err(PageError::Invalid("a run leaves the disk or its segment"));
        }
    }
    Ok(())
}

/// Read-back digests in disk order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanPage {
    /// Spans that are not all zero.
    pub spans: Vec<Span>,
    /// Counts up when the page is stored anew with another protection: each edition has a name of its own.
    pub edition: u32,
}

impl SpanPage {
    /// Canonical bytes: the spans, then the edition unless it is 0.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self.edition {
            0 => wire::encode(&self.spans),
            edition => wire::encode(&(&self.spans, edition)),
        }
    }

    /// Decode; spans must ascend.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let first = wire::decode_canonical(bytes, PAGE_LEN_MAX).map(|spans| Self { spans, edition: 0 });
        let page = match first {
            Ok(page) => page,
            Err(error) => match wire::decode_canonical(bytes, PAGE_LEN_MAX) {
                Ok((spans, edition)) if edition > 0 => Self { spans, edition },
                _ => return Err(error.into()),
            },
        };
        if page.spans.len() > PAGE_SPANS_MAX {
            return Err(PageError::Invalid("too many spans"));
        }
        if page.spans.windows(2).any(|w| w[0].index >= w[1].index) {
            return Err(PageError::Invalid("spans out of order"));
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> SegmentEntry {
        SegmentEntry {
            id: SegmentId([1; 32]),
            sealed_len: 1000,
            data_len: 4000,
            group: GroupId(3),
            geometry: Geometry::new(2, 1).unwrap(),
            fragments: vec![FragmentDigest([2; 32]); 3],
            runs: vec![Run { disk_offset: 8192, segment_offset: 0, len: 4000 }],
        }
    }

    #[test]
    fn round_trip_and_keys() {
        let keys = [SegmentKey([9; 32])];
        let page = SegmentPage::seal(5, vec![entry()], &keys, &ManifestKey([4; 32]));
        let decoded = SegmentPage::decode(&page.encode(), 5, 1 << 20).unwrap();
        assert_eq!(decoded, page);
        assert_eq!(decoded.keys(&ManifestKey([4; 32])).unwrap(), keys);
        assert_eq!(decoded.keys(&ManifestKey([5; 32])), Err(PageError::Keys(OpenError)));
        assert!(SegmentPage::decode(&page.encode(), 6, 1 << 20).is_err());
        assert!(SegmentPage::decode(&page.encode(), 5, 8192).is_err(), "a run beyond the disk");
    }

    #[test]
    fn editions_of_a_span_page_are_told_apart() {
        let span = |index| Span { index, digest: [7; 32] };
        for spans in [vec![], vec![span(1), span(5)]] {
            let pages = [0, 1, 300].map(|edition| SpanPage { spans: spans.clone(), edition });
            for page in &pages {
                assert_eq!(SpanPage::decode(&page.encode()).as_ref(), Ok(page));
            }
            assert_eq!(pages[0].encode(), wire::encode(&spans), "the first is as it always was");
            let mut long = pages[0].encode();
            long.push(0);
            assert!(SpanPage::decode(&long).is_err(), "no edition is said when it is the first");
        }
    }

    #[test]
    fn numbers_that_lie_are_refused() {
        let cases: &[(&str, fn(&mut SegmentEntry))] = &[
            ("digests", |e| e.fragments.truncate(2)),
            ("sealed", |e| e.sealed_len = u32::MAX),
            ("data", |e| e.data_len = u32::MAX),
            ("disk", |e| e.runs[0].disk_offset = u64::MAX),
            ("segment", |e| e.runs[0].segment_offset = 1),
            ("wrap", |e| e.runs[0].segment_offset = u32::MAX),
        ];
        for (what, change) in cases {
            let mut bad = entry();
            change(&mut bad);
            let page = SegmentPage::seal(0, vec![bad], &[SegmentKey([0; 32])], &ManifestKey([4; 32]));
            assert!(matches!(SegmentPage::decode(&page.encode(), 0, 1 << 20), Err(PageError::Invalid(_))), "{what}");
        }
    }

    #[test]
    fn runs_merge_only_when_both_sides_follow() {
        let run = |disk_offset, segment_offset, len| Run { disk_offset, segment_offset, len };
        let mut first = run(0, 0, 10);
        assert!(!first.merge(&run(10, 11, 5)));
        assert!(!first.merge(&run(11, 10, 5)));
        assert!(first.merge(&run(10, 10, 5)));
        assert_eq!(first, run(0, 0, 15));
    }
}
