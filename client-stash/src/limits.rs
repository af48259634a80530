//! Sizes of the stash file, and what must hold between them.

use images::limits::{FRAGMENT_HEADER_LEN, SEALED_MAX};
use protocol::limits::{STASH_LEN_MAX, STASH_LEN_MIN};

/// File and region headers are written in slots of this size; a disk writes at most one of two slots torn.
pub const SLOT_LEN: u64 = 4096;
/// Room in front of the first region: two file header slots, the rest reserved.
pub const FILE_HEAD_LEN: u64 = 1024 * 1024;
/// One region: large enough that its table is read in one go for hundreds of fragments, small enough to be reused soon.
pub const REGION_LEN: u64 = 64 * 1024 * 1024;
/// Two region header slots.
pub const REGION_HEAD_LEN: u64 = 2 * SLOT_LEN;
/// Records start on these boundaries, so that a torn write never damages a neighbour.
pub const RECORD_ALIGN: u64 = 4096;
/// Record header in bytes.
pub const RECORD_HEADER_LEN: usize = 32 + FRAGMENT_HEADER_LEN;
/// Region table header and one entry of it, bytes.
pub const TABLE_HEADER_LEN: usize = 32;
/// See [`TABLE_HEADER_LEN`].
pub const TABLE_ENTRY_LEN: usize = 8 + RECORD_HEADER_LEN;
/// A stash has at least one region for records and one to move on to.
pub const REGIONS_MIN: u32 = (STASH_LEN_MIN / REGION_LEN) as u32;
/// See [`STASH_LEN_MAX`].
pub const REGIONS_MAX: u32 = (STASH_LEN_MAX / REGION_LEN) as u32;
/// Puts that one sync may acknowledge together.
pub const BATCH_MAX: usize = 64;

const _: () = {
    assert!(FILE_HEAD_LEN >= 2 * SLOT_LEN && FILE_HEAD_LEN.is_multiple_of(RECORD_ALIGN));
    assert!(REGION_LEN.is_multiple_of(RECORD_ALIGN));
    assert!(SEALED_MAX as u64 * 8 < REGION_LEN, "a region holds several of the largest fragments");
    assert!(REGION_LEN <= u32::MAX as u64 && REGIONS_MIN >= 2);
};
