//! Which parts of a disk are in use: the blocks that are not all zero.
//!
//! A zero block is reproduced as a zero block, so partition tables, boot code and their empty slots come back exactly
//! without being named here. Reading file systems for what is free comes on top of this, not instead.

use crate::limits::BLOCK_LEN;

/// Whether every byte is zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Folding 64 bytes into one word compiles to vector ORs; a byte-wise `all` stops at each byte.
    let mut chunks = bytes.chunks_exact(64);
    for chunk in &mut chunks {
        let mut any = 0u64;
        for word in chunk.chunks_exact(8) {
            any |= u64::from_ne_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
        }
        if any != 0 {
            return false;
        }
    }
    chunks.remainder().iter().all(|&b| b == 0)
}

/// Maximal runs of non-zero blocks of `buffer`, as byte ranges within it. `buffer` starts on a block boundary of the
/// disk; its last block may be short, as at the end of an image with an odd number of bytes.
pub fn in_use(buffer: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let block_end = |at: usize| buffer.len().min(at + BLOCK_LEN);
        while at < buffer.len() && is_zero(&buffer[at..block_end(at)]) {
            at = block_end(at);
        }
        let start = at;
        while at < buffer.len() && !is_zero(&buffer[at..block_end(at)]) {
            at = block_end(at);
        }
        (start < at).then_some(start..at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_runs_of_blocks() {
        let mut disk = vec![0u8; 5 * BLOCK_LEN + 7];
        let cases: &[(&[usize], &[std::ops::Range<usize>])] = &[
            (&[], &[]),
            (&[0], &[0..4096]),
            (&[4095, 4096], &[0..8192]),
            (&[8192], &[0..12288]),
            (&[5 * 4096 + 6], &[0..12288, 20480..20487]),
        ];
        for (set, want) in cases {
            for &at in *set {
                disk[at] = 1;
            }
            assert_eq!(in_use(&disk).collect::<Vec<_>>(), *want);
        }
    }
}
