//! Every size that a format depends on, and what must hold between them.

/// The unit of "in use": a block that is all zero is not stored. 4 KiB is the block size of ext4, NTFS and XFS.
pub const BLOCK_LEN: usize = 4096;

/// Smallest, average and largest content-defined chunk in bytes. 32 KiB on average stores 4–8 % fewer new bytes for a
/// rebuilt file system than 64 KiB (measured; `docs/decisions/0003-chunk-size.md`).
pub const CHUNK_MIN: usize = 8 * 1024;
/// See [`CHUNK_MIN`].
pub const CHUNK_AVG: usize = 32 * 1024;
/// See [`CHUNK_MIN`].
pub const CHUNK_MAX: usize = 128 * 1024;

/// A sealed segment never exceeds this.
pub const SEALED_MAX: usize = 4 * 1024 * 1024;
/// Segment header in bytes, in front of the ciphertext.
pub const SEGMENT_HEADER_LEN: usize = 16;
/// AES-256-GCM tag in bytes, behind the ciphertext.
pub const TAG_LEN: usize = 16;
/// Chunk bytes and chunk table of one segment, before compression. What does not compress is stored as it is, so
/// this plus header and tag must fit a sealed segment.
pub const SEGMENT_PLAIN_MAX: usize = SEALED_MAX - SEGMENT_HEADER_LEN - TAG_LEN;

/// Disk bytes covered by one read-back digest.
pub const SPAN_LEN: u64 = 16 * 1024 * 1024;

/// Fragment header in bytes.
pub const FRAGMENT_HEADER_LEN: usize = 96;
/// Most data and most parity pieces of one segment. GF(2^8) allows 256 in all; nobody needs more than this.
pub const DATA_PIECES_MAX: usize = 32;
/// See [`DATA_PIECES_MAX`].
pub const PARITY_PIECES_MAX: usize = 16;

/// Segments described by one manifest page, so that a reader's memory does not depend on the image's size.
pub const PAGE_SEGMENTS_MAX: usize = 256;
/// Runs on one manifest page: the writer starts a new page beyond it.
pub const PAGE_RUNS_MAX: usize = 64 * 1024;
/// Encoded manifest page in bytes.
pub const PAGE_LEN_MAX: usize = 4 * 1024 * 1024;
/// Encoded manifest root in bytes: 64 MiB of pages list would be a petabyte image.
pub const ROOT_LEN_MAX: usize = 4 * 1024 * 1024;
/// Read-back digests on one page.
pub const PAGE_SPANS_MAX: usize = 16 * 1024;

/// GPT entries that are accepted; the specification's minimum is 128 and no tool writes more than 1024.
pub const GPT_ENTRIES_MAX: u32 = 1024;
/// Largest image in bytes: 64 TiB keeps every disk offset far from overflow.
pub const IMAGE_LEN_MAX: u64 = 64 << 40;

const _: () = {
    assert!(CHUNK_MIN < CHUNK_AVG && CHUNK_AVG < CHUNK_MAX);
    assert!(CHUNK_MIN.is_multiple_of(BLOCK_LEN));
    assert!(CHUNK_MAX * 4 <= SEGMENT_PLAIN_MAX, "a segment must hold several chunks");
    assert!(SPAN_LEN.is_multiple_of(BLOCK_LEN as u64));
    assert!(DATA_PIECES_MAX + PARITY_PIECES_MAX <= 256);
    assert!(SEALED_MAX <= u32::MAX as usize);
};
