//! Fragments: one Reed-Solomon piece of a segment, under a header that lets it verify itself.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{FragmentDigest, SegmentId};
use crate::limits::{FRAGMENT_HEADER_LEN, SEALED_MAX};
use crate::parity::{Codec, Geometry, ReconstructError};

const MAGIC: [u8; 4] = *b"CFRG";
const VERSION: u8 = 1;

/// Which fragment: a piece of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FragmentId {
    /// The segment.
    pub segment: SegmentId,
    /// Piece number, 0 to n - 1; data pieces first.
    pub piece: u8,
}

impl FragmentId {
    /// What it adds, by exclusive or, to the *fold* of a set of fragments: by that two sets are told apart without being sent. Segments are named by
    /// hashes, so eight bytes of a name are as good as chance; the piece rotates them, so that the fold of a piece of many segments follows from the
    /// fold of the segments.
    #[must_use]
    pub fn fold(&self) -> u64 {
        self.segment.fold().rotate_left(u32::from(self.piece))
    }
}

impl std::fmt::Display for FragmentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.segment.short(), self.piece)
    }
}

/// Everything that a store needs to keep a fragment and to check it, without any key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FragmentHeader {
    /// Which fragment.
    pub id: FragmentId,
    /// Geometry of the segment.
    pub geometry: Geometry,
    /// Sealed bytes of the whole segment.
    pub sealed_len: u32,
    /// BLAKE3 of the payload.
    pub digest: FragmentDigest,
}

/// Why bytes are not this fragment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FragmentError {
    /// Not a fragment header, or of a version this program does not know.
    #[error("not a fragment header of version {VERSION}")]
    Header,
    /// A payload of another length.
    #[error("payload of {have} bytes instead of {need}")]
    Length {
        /// Bytes found.
        have: usize,
        /// Bytes that the header promises.
        need: usize,
    },
    /// The right length, the wrong bytes.
    #[error("payload does not match its digest")]
    Digest,
}

impl FragmentHeader {
    /// Payload bytes.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        self.geometry.piece_len(self.sealed_len as usize)
    }

    /// Whether the numbers fit each other and the limits.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        usize::from(self.id.piece) < self.geometry.pieces() && self.sealed_len as usize <= SEALED_MAX
    }

    /// The layout of `docs/formats.md`, section "Fragment".
    #[must_use]
    pub fn encode(&self) -> [u8; FRAGMENT_HEADER_LEN] {
        let mut out = [0; FRAGMENT_HEADER_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&[VERSION, self.geometry.data() as u8, self.geometry.parity() as u8, self.id.piece]);
        out[8..12].copy_from_slice(&self.sealed_len.to_le_bytes());
        out[12..16].copy_from_slice(&(self.payload_len() as u32).to_le_bytes());
        out[16..48].copy_from_slice(&self.id.segment.0);
        out[48..80].copy_from_slice(&self.digest.0);
        let crc = crc32c::crc32c(&out[..FRAGMENT_HEADER_LEN - 4]);
        out[FRAGMENT_HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Undo [`FragmentHeader::encode`].
    ///
    /// # Errors
    /// [`FragmentError::Header`] for anything that `encode` does not write.
    pub fn decode(bytes: &[u8; FRAGMENT_HEADER_LEN]) -> Result<Self, FragmentError> {
        let id = |at: usize| <[u8; 32]>::try_from(&bytes[at..at + 32]).expect("32 bytes");
        let header = Self {
            id: FragmentId { segment: SegmentId(id(16)), piece: bytes[7] },
            geometry: Geometry::new(bytes[5], bytes[6]).map_err(|_| FragmentError::Header)?,
            sealed_len: u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
            digest: FragmentDigest(id(48)),
        };
        if header.is_valid() && header.encode() == *bytes { Ok(header) } else { Err(FragmentError::Header) }
    }

    /// Check a payload against length and digest.
    ///
    /// # Errors
    /// [`FragmentError`] says which of them differs.
    pub fn verify(&self, payload: &[u8]) -> Result<(), FragmentError> {
        if payload.len() != self.payload_len() {
            return Err(FragmentError::Length { have: payload.len(), need: self.payload_len() });
        }
        if FragmentDigest::of(payload) == self.digest { Ok(()) } else { Err(FragmentError::Digest) }
    }
}

/// All fragments of a sealed segment.
#[must_use]
pub fn split(codec: &Codec, segment: SegmentId, sealed: &Bytes) -> Vec<(FragmentHeader, Bytes)> {
    let header = |(piece, payload): (usize, Bytes)| {
        let header = FragmentHeader {
            id: FragmentId { segment, piece: piece as u8 },
            geometry: codec.geometry(),
            sealed_len: sealed.len() as u32,
            digest: FragmentDigest::of(&payload),
        };
        (header, payload)
    };
    codec.encode(sealed).into_iter().enumerate().map(header).collect()
}

/// Why pieces do not give their segment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AssembleError {
    /// Not enough pieces, or wrong ones.
    #[error("reconstruct the segment")]
    Reconstruct(#[from] ReconstructError),
    /// The pieces were each right by their own digest, and still the segment is another: the manifest lies.
    #[error("the pieces do not give segment {0}")]
    WrongSegment(SegmentId),
}

/// A segment's sealed bytes from any k verified payloads.
///
/// # Errors
/// [`AssembleError`]. On success the bytes are the named segment, beyond doubt.
pub fn assemble(
    codec: &Codec,
    segment: SegmentId,
    sealed_len: u32,
    pieces: &[(usize, Bytes)],
) -> Result<Vec<u8>, AssembleError> {
    let sealed = codec.reconstruct(pieces, sealed_len as usize)?;
    if SegmentId::of(&sealed) == segment { Ok(sealed) } else { Err(AssembleError::WrongSegment(segment)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragments() -> (SegmentId, Bytes, Codec, Vec<(FragmentHeader, Bytes)>) {
        let sealed = Bytes::from((0..5000u32).map(|i| ((i * i) >> 3) as u8).collect::<Vec<_>>());
        let segment = SegmentId::of(&sealed);
        let codec = Codec::new(Geometry::new(3, 2).unwrap());
        let all = split(&codec, segment, &sealed);
        (segment, sealed, codec, all)
    }

    #[test]
    fn header_round_trip_and_every_changed_byte_is_noticed() {
        let (_, _, _, all) = fragments();
        for (header, payload) in &all {
            let bytes = header.encode();
            assert_eq!(FragmentHeader::decode(&bytes), Ok(*header));
            assert_eq!(header.verify(payload), Ok(()));
            for at in 0..bytes.len() {
                let mut changed = bytes;
                changed[at] ^= 0x10;
                assert_eq!(FragmentHeader::decode(&changed), Err(FragmentError::Header), "byte {at}");
            }
        }
    }

    #[test]
    fn assembles_from_any_k_and_refuses_another_segment() {
        let (segment, sealed, codec, all) = fragments();
        let some: Vec<(usize, Bytes)> = [4, 1, 3].map(|i| (i, all[i].1.clone())).to_vec();
        assert_eq!(assemble(&codec, segment, 5000, &some).unwrap(), sealed);
        let other = SegmentId::of(b"other");
        assert_eq!(assemble(&codec, other, 5000, &some), Err(AssembleError::WrongSegment(other)));
    }

    #[test]
    fn a_swapped_payload_is_noticed() {
        let (_, _, _, all) = fragments();
        assert_eq!(all[0].0.verify(&all[1].1), Err(FragmentError::Digest));
        assert_eq!(all[0].0.verify(b"x"), Err(FragmentError::Length { have: 1, need: 1667 }));
    }
}
