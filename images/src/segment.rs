//! Segments: chunks packed together, compressed, then sealed. The unit of protection.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use crate::ids::{ChunkId, SegmentId};
use crate::keys::{self, OpenError, OwnerKey, SegmentKey};
use crate::limits::{SEALED_MAX, SEGMENT_HEADER_LEN, SEGMENT_PLAIN_MAX, TAG_LEN};

const MAGIC: [u8; 4] = *b"CSEG";
const VERSION: u8 = 1;
/// Where the edition is in the header.
const EDITION: usize = 6;

/// How the payload of a segment is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Coding {
    /// As it is: compression would have made it longer.
    Stored = 0,
    /// One zstd frame (RFC 8878).
    Zstd = 1,
}

/// Chunks on their way into a segment.
#[derive(Default)]
pub struct Packer {
    data: Vec<u8>,
    chunk_lens: Vec<u32>,
}

/// A full segment before compression.
pub struct Plain {
    /// Chunk bytes, one behind the other.
    pub data: Vec<u8>,
    /// Length of each chunk, bytes. Kept in the segment so that a chunk index can be rebuilt from segments alone.
    pub chunk_lens: Vec<u32>,
}

impl Plain {
    /// Its chunks and their lengths, in order.
    #[must_use]
    pub fn chunks(&self) -> Vec<(ChunkId, u32)> {
        let mut rest = self.data.as_slice();
        let mut chunk = |&len: &u32| {
            let (chunk, after) = rest.split_at(rest.len().min(len as usize));
            rest = after;
            (ChunkId::of(chunk), len)
        };
        self.chunk_lens.iter().map(&mut chunk).collect()
    }
}

impl Packer {
    /// Whether a chunk of `len` bytes still fits.
    #[must_use]
    pub fn fits(&self, len: usize) -> bool {
        self.data.len() + len + 4 * (self.chunk_lens.len() + 1) <= SEGMENT_PLAIN_MAX
    }

    /// Whether nothing was packed yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunk_lens.is_empty()
    }

    /// Add a chunk; the answer is its byte offset in the segment.
    ///
    /// # Panics
    /// If it does not fit: ask [`Packer::fits`] first.
    pub fn push(&mut self, chunk: &[u8]) -> u32 {
        assert!(self.fits(chunk.len()), "chunk does not fit the segment");
        let offset = self.data.len() as u32;
        if self.data.capacity() == 0 {
            self.data.reserve_exact(SEGMENT_PLAIN_MAX);
        }
        self.data.extend_from_slice(chunk);
        self.chunk_lens.push(chunk.len() as u32);
        offset
    }

    /// Hand over what is packed and start anew.
    pub fn take(&mut self) -> Plain {
        Plain { data: std::mem::take(&mut self.data), chunk_lens: std::mem::take(&mut self.chunk_lens) }
    }
}

/// A sealed segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Header, ciphertext, tag.
    pub bytes: Vec<u8>,
    /// BLAKE3 of `bytes`.
    pub id: SegmentId,
    /// Opens it.
    pub key: SegmentKey,
    /// Chunk bytes inside, before compression.
    pub data_len: u32,
}

/// Compress: zstd contexts cost megabytes to set up, so each thread keeps its own.
fn compress(level: i32, source: &[u8], into: &mut Vec<u8>) -> Option<usize> {
    thread_local!(static CONTEXT: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) });
    CONTEXT.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|(have, _)| *have != level) {
            *slot = Some((level, Compressor::new(level).ok()?));
        }
        let (_, compressor) = slot.as_mut()?;
        let from = into.len();
        // One byte less than the source: what does not get shorter is stored as it is.
        into.resize(from + source.len().saturating_sub(1), 0);
        let written = compressor.compress_to_buffer(source, &mut into[from..]).ok();
        into.truncate(from + written.unwrap_or(0));
        written
    })
}

/// Header and coded payload of a segment, not encrypted yet.
pub struct Coded {
    bytes: Vec<u8>,
    data_len: u32,
}

/// Compress. What does not get shorter is stored as it is.
#[must_use]
pub fn code(plain: Plain, level: i32) -> Coded {
    let Plain { data: mut body, chunk_lens } = plain;
    let data_len = body.len() as u32;
    for len in &chunk_lens {
        body.extend_from_slice(&len.to_le_bytes());
    }
    let mut bytes = Vec::with_capacity(SEGMENT_HEADER_LEN + body.len() + TAG_LEN);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VERSION, Coding::Zstd as u8, 0, 0]);
    bytes.extend_from_slice(&data_len.to_le_bytes());
    bytes.extend_from_slice(&(chunk_lens.len() as u32).to_le_bytes());
    if compress(level, &body, &mut bytes).is_none() {
        bytes[5] = Coding::Stored as u8;
        bytes.extend_from_slice(&body);
    }
    Coded { bytes, data_len }
}

/// Encrypt, after compressing: ciphertext does not compress, and the key follows from what is sealed.
///
/// # Panics
/// Never: what [`Packer`] takes fits a sealed segment.
#[must_use]
pub fn seal(coded: Coded, owner: &OwnerKey) -> Sealed {
    let Coded { mut bytes, data_len } = coded;
    let key = owner.segment_key(&blake3::hash(&bytes));
    keys::seal_in_place(&key.0, 0, &mut bytes, SEGMENT_HEADER_LEN);
    assert!(bytes.len() <= SEALED_MAX, "sealed segment exceeds its limit");
    Sealed { id: SegmentId::of(&bytes), bytes, key, data_len }
}

/// Which edition of its contents sealed bytes are. The first is 0; an array that restripes a segment makes the next one, so that pieces of both can
/// lie on the same stash under names of their own.
///
/// # Errors
/// [`SegmentError::Header`].
pub fn edition(sealed: &[u8]) -> Result<u8, SegmentError> {
    check_header(sealed).map(|header| header[EDITION])
}

/// The same contents as another edition: other ciphertext, another key, another name. Nothing is compressed anew.
///
/// # Errors
/// [`SegmentError`] if `key` does not open it.
pub fn seal_again(sealed: &[u8], key: &SegmentKey, edition: u8, owner: &OwnerKey) -> Result<Sealed, SegmentError> {
    let Payload { data_len, bytes: payload, .. } = unseal(sealed, key)?;
    let mut bytes = Vec::with_capacity(sealed.len());
    bytes.extend_from_slice(&sealed[..SEGMENT_HEADER_LEN]);
    bytes[EDITION] = edition;
    bytes.extend_from_slice(&payload);
    Ok(seal(Coded { bytes, data_len: data_len as u32 }, owner))
}

/// Why sealed bytes cannot be opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SegmentError {
    /// Not a segment, or of a version this program does not know.
    #[error("not a segment of version {VERSION}")]
    Header,
    /// Wrong key or changed bytes.
    #[error("open the segment")]
    Open(#[from] OpenError),
    /// Authentic bytes that do not hold what the header says.
    #[error("the segment's payload contradicts its header")]
    Payload,
}

fn decompress(source: &[u8], len: usize) -> Option<Vec<u8>> {
    thread_local!(static CONTEXT: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) });
    CONTEXT.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(Decompressor::new().ok()?);
        }
        slot.as_mut()?.decompress(source, len).ok().filter(|out| out.len() == len)
    })
}

/// An authentic payload, not decompressed yet.
pub struct Payload {
    coding: u8,
    data_len: usize,
    body_len: usize,
    bytes: Vec<u8>,
}

fn check_header(sealed: &[u8]) -> Result<&[u8], SegmentError> {
    let header = sealed.get(..SEGMENT_HEADER_LEN).ok_or(SegmentError::Header)?;
    let is_known = header[..4] == MAGIC && header[4] == VERSION && header[7] == 0;
    is_known.then_some(header).ok_or(SegmentError::Header)
}

/// Authenticate and decrypt sealed bytes.
///
/// # Errors
/// [`SegmentError`].
pub fn unseal(sealed: &[u8], key: &SegmentKey) -> Result<Payload, SegmentError> {
    let header = check_header(sealed)?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
    let (data_len, chunk_count) = (word(8), word(12));
    let body_len = chunk_count.checked_mul(4).and_then(|table| table.checked_add(data_len));
    let body_len = body_len.filter(|&len| len <= SEGMENT_PLAIN_MAX).ok_or(SegmentError::Header)?;
    let bytes = keys::open(&key.0, 0, sealed, SEGMENT_HEADER_LEN)?;
    Ok(Payload { coding: header[5], data_len, body_len, bytes })
}

/// Decompress a payload: the chunk bytes and the length of each chunk.
///
/// # Errors
/// [`SegmentError::Payload`]; it costs at most [`SEGMENT_PLAIN_MAX`] bytes of memory.
pub fn decode(payload: Payload) -> Result<Plain, SegmentError> {
    let Payload { coding, data_len, body_len, bytes } = payload;
    let mut data = match coding {
        0 if bytes.len() == body_len => bytes,
        1 => decompress(&bytes, body_len).ok_or(SegmentError::Payload)?,
        _ => return Err(SegmentError::Payload),
    };
    let chunk_lens: Vec<u32> =
        data[data_len..].chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
    if chunk_lens.iter().map(|&len| u64::from(len)).sum::<u64>() != data_len as u64 {
        return Err(SegmentError::Payload);
    }
    data.truncate(data_len);
    Ok(Plain { data, chunk_lens })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(sealed: &[u8], key: &SegmentKey) -> Result<Plain, SegmentError> {
        decode(unseal(sealed, key)?)
    }

    fn packed(chunks: &[&[u8]]) -> Plain {
        let mut packer = Packer::default();
        for chunk in chunks {
            packer.push(chunk);
        }
        packer.take()
    }

    #[test]
    fn round_trip_compressible_and_noise() {
        let owner = OwnerKey([7; 32]);
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for chunks in [vec![&[1u8; 9000][..], &[2u8; 5000]], vec![&noise[..]], vec![]] {
            let sealed = seal(code(packed(&chunks), 1), &owner);
            assert_eq!(sealed, seal(code(packed(&chunks), 1), &owner), "equal content must seal to equal bytes");
            let plain = open(&sealed.bytes, &sealed.key).unwrap();
            assert_eq!(plain.data, chunks.concat());
            assert_eq!(plain.chunk_lens, chunks.iter().map(|c| c.len() as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn editions_have_the_same_contents_under_names_of_their_own() {
        let owner = OwnerKey([7; 32]);
        let first = seal(code(packed(&[&[1; 9000], &[2; 50]]), 1), &owner);
        assert_eq!(edition(&first.bytes), Ok(0));
        let second = seal_again(&first.bytes, &first.key, 1, &owner).unwrap();
        assert_eq!(edition(&second.bytes), Ok(1));
        assert!(second.id != first.id && second.key != first.key && second.bytes.len() == first.bytes.len());
        assert_eq!(seal_again(&second.bytes, &second.key, 0, &owner), Ok(first.clone()));
        let (before, after) = (open(&first.bytes, &first.key).unwrap(), open(&second.bytes, &second.key).unwrap());
        assert_eq!((before.data, before.chunk_lens), (after.data, after.chunk_lens));
        assert!(seal_again(&first.bytes, &second.key, 1, &owner).is_err());
    }

    #[test]
    fn a_full_segment_of_noise_fits_its_limit() {
        let mut noise = vec![0; SEALED_MAX];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut packer = Packer::default();
        for chunk in noise.chunks(crate::limits::CHUNK_MIN) {
            if packer.fits(chunk.len()) {
                packer.push(chunk);
            }
        }
        let sealed = seal(code(packer.take(), 1), &OwnerKey([1; 32]));
        assert!(sealed.bytes.len() <= SEALED_MAX);
        open(&sealed.bytes, &sealed.key).unwrap();
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let sealed = seal(code(packed(&[&[3; 500]]), 1), &OwnerKey([7; 32]));
        for at in 0..sealed.bytes.len() {
            let mut changed = sealed.bytes.clone();
            changed[at] ^= 1;
            assert!(open(&changed, &sealed.key).is_err(), "byte {at}");
        }
        for len in 0..sealed.bytes.len() {
            assert!(open(&sealed.bytes[..len], &sealed.key).is_err(), "length {len}");
        }
        let other = OwnerKey([8; 32]).segment_key(&blake3::hash(b""));
        assert!(open(&sealed.bytes, &other).is_err());
    }
}
