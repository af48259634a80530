//! Content-defined chunking (FastCDC, 2020 variant; Xia et al., "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems") over extents that arrive in disk order.

use fastcdc::v2020::FastCDC;

use crate::limits::{CHUNK_AVG, CHUNK_MAX, CHUNK_MIN};

/// A chunk's bytes and its place on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Byte offset on the disk.
    pub disk_offset: u64,
    /// At most [`CHUNK_MAX`] bytes.
    pub bytes: &'a [u8],
}

/// Cuts extents into chunks. Boundaries depend on content since the extent's start only, so the same file contents give
/// the same chunks wherever they lie.
#[derive(Default)]
pub struct Chunker {
    /// Bytes of the current extent that are not cut yet.
    pending: Vec<u8>,
    /// Where `pending` starts on the disk.
    disk_offset: u64,
}

impl Chunker {
    /// Take the next extent, or the continuation of the last one; a gap ends the extent before it. Chunks that are
    /// certain go to `emit`.
    pub fn push(&mut self, disk_offset: u64, bytes: &[u8], emit: &mut impl FnMut(Chunk<'_>)) {
        if self.disk_offset + self.pending.len() as u64 != disk_offset {
            self.finish(emit);
            self.disk_offset = disk_offset;
        }
        self.pending.extend_from_slice(bytes);
        self.cut(CHUNK_MAX, emit);
    }

    /// The extent ends here: cut all that is left.
    pub fn finish(&mut self, emit: &mut impl FnMut(Chunk<'_>)) {
        self.cut(1, emit);
    }

    /// Cut while at least `need` bytes are left: a cut is certain only once the longest possible chunk is in sight.
    fn cut(&mut self, need: usize, emit: &mut impl FnMut(Chunk<'_>)) {
        let mut start = 0;
        let cdc = FastCDC::new(&self.pending, CHUNK_MIN, CHUNK_AVG, CHUNK_MAX);
        while self.pending.len() - start >= need.max(1) {
            let (_, end) = cdc.cut(start, self.pending.len() - start);
            emit(Chunk { disk_offset: self.disk_offset + start as u64, bytes: &self.pending[start..end] });
            start = end;
        }
        self.pending.drain(..start);
        self.disk_offset += start as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    fn chunks_of(pieces: &[(u64, &[u8])]) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        let mut chunker = Chunker::default();
        let mut emit = |c: Chunk<'_>| out.push((c.disk_offset, c.bytes.to_vec()));
        for (at, bytes) in pieces {
            chunker.push(*at, bytes, &mut emit);
        }
        chunker.finish(&mut emit);
        out
    }

    #[test]
    fn chunks_do_not_depend_on_how_bytes_arrive() {
        let data = noise(1, 1_000_003);
        let whole = chunks_of(&[(8192, &data)]);
        let split: Vec<(u64, &[u8])> =
            data.chunks(4096).enumerate().map(|(i, c)| (8192 + 4096 * i as u64, c)).collect();
        assert_eq!(whole, chunks_of(&split));
        assert_eq!(whole.concat_bytes(), data);
        assert!(whole.iter().all(|(_, c)| c.len() <= CHUNK_MAX));
    }

    #[test]
    fn a_gap_ends_a_chunk_and_resets_the_boundaries() {
        let data = noise(2, 300_000);
        let both = chunks_of(&[(0, &data), (1 << 20, &data)]);
        let (first, second) = both.split_at(both.len() / 2);
        assert!(first.iter().zip(second).all(|(a, b)| a.1 == b.1 && b.0 == a.0 + (1 << 20)));
    }

    trait ConcatBytes {
        fn concat_bytes(&self) -> Vec<u8>;
    }
    impl ConcatBytes for Vec<(u64, Vec<u8>)> {
        fn concat_bytes(&self) -> Vec<u8> {
            self.iter().flat_map(|(_, b)| b.clone()).collect()
        }
    }
}
