//! Digests of a disk's contents, span by span.
//!
//! A span is [`SPAN_LEN`] bytes of the disk. Its digest covers where its non-zero blocks lie and what they hold, so zeros
//! cost nothing, spans can be hashed in parallel and out of order, and a difference is located to 16 MiB. What a person
//! compares is one SHA-256 over all of them.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::extent;
use crate::ids::ContentDigest;
use crate::limits::SPAN_LEN;

/// The digest of one span that is not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Disk offset divided by [`SPAN_LEN`].
    pub index: u64,
    /// BLAKE3 over the table of runs and the BLAKE3 of their bytes.
    pub digest: [u8; 32],
}

/// Hashes non-zero extents that arrive in disk order.
#[derive(Default)]
pub struct SpanHasher {
    index: u64,
    /// (offset in the span, length) of each run, 4 + 4 bytes little endian.
    runs: Vec<(u32, u32)>,
    bytes: blake3::Hasher,
    done: Vec<Span>,
}

impl SpanHasher {
    /// Take a non-zero extent. Neighbouring extents count as one run however they are split.
    pub fn push(&mut self, mut disk_offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let index = disk_offset / SPAN_LEN;
            if index != self.index {
                self.close();
                self.index = index;
            }
            let within = disk_offset % SPAN_LEN;
            let (now, later) = bytes.split_at(bytes.len().min((SPAN_LEN - within) as usize));
            match self.runs.last_mut() {
                Some((start, len)) if u64::from(*start) + u64::from(*len) == within => *len += now.len() as u32,
                _ => self.runs.push((within as u32, now.len() as u32)),
            }
            self.bytes.update(now);
            disk_offset += now.len() as u64;
            bytes = later;
        }
    }

    fn close(&mut self) {
        if self.runs.is_empty() {
            return;
        }
        let mut outer = blake3::Hasher::new_derive_key("coe 2026 span digest v1");
        for (start, len) in self.runs.drain(..) {
            outer.update(&start.to_le_bytes()).update(&len.to_le_bytes());
        }
        outer.update(self.bytes.finalize().as_bytes());
        self.bytes.reset();
        self.done.push(Span { index: self.index, digest: *outer.finalize().as_bytes() });
    }

    /// Spans that are complete so far.
    pub fn take_done(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.done)
    }

    /// Close the last span; all spans since the last [`SpanHasher::take_done`].
    #[must_use]
    pub fn finish(mut self) -> Vec<Span> {
        self.close();
        self.done
    }
}

/// The digest of one span from its raw bytes, zeros included; `None` where it is all zero.
#[must_use]
pub fn span_of(index: u64, bytes: &[u8]) -> Option<Span> {
    let mut hasher = SpanHasher { index, ..SpanHasher::default() };
    for range in extent::in_use(bytes) {
        hasher.push(index * SPAN_LEN + range.start as u64, &bytes[range]);
    }
    hasher.finish().pop()
}

/// Accumulates the digest that a person sees, from spans in disk order.
pub struct ContentHasher(Sha256);

impl ContentHasher {
    /// For a disk of `disk_len` bytes.
    #[must_use]
    pub fn new(disk_len: u64) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"coe content v1\0\0");
        hasher.update(disk_len.to_le_bytes());
        Self(hasher)
    }

    /// Add the next span.
    pub fn push(&mut self, span: &Span) {
        self.0.update(span.index.to_le_bytes());
        self.0.update(span.digest);
    }

    /// The digest.
    #[must_use]
    pub fn finish(self) -> ContentDigest {
        ContentDigest(self.0.finalize().into())
    }
}

/// The digest that a person sees, of a disk of `disk_len` bytes with these spans in disk order.
#[must_use]
pub fn content_digest(disk_len: u64, spans: &[Span]) -> ContentDigest {
    let mut hasher = ContentHasher::new(disk_len);
    spans.iter().for_each(|span| hasher.push(span));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_does_not_matter_and_position_does() {
        let mut disk = vec![0u8; SPAN_LEN as usize * 2];
        disk[5000] = 1;
        disk[SPAN_LEN as usize - 1] = 2;
        disk[SPAN_LEN as usize] = 3;
        let mut whole = SpanHasher::default();
        for r in extent::in_use(&disk) {
            whole.push(r.start as u64, &disk[r]);
        }
        let whole = whole.finish();
        let each: Vec<Span> =
            disk.chunks(SPAN_LEN as usize).enumerate().filter_map(|(i, bytes)| span_of(i as u64, bytes)).collect();
        assert_eq!(whole, each);
        let mut split = SpanHasher::default();
        for r in extent::in_use(&disk) {
            for at in r.clone().step_by(4096) {
                split.push(at as u64, &disk[at..r.end.min(at + 4096)]);
            }
        }
        assert_eq!(whole, split.finish());

        disk.swap(5000, 9000);
        assert_ne!(span_of(0, &disk[..SPAN_LEN as usize]).unwrap(), each[0]);
        assert_ne!(content_digest(1, &each), content_digest(2, &each));
    }
}
