//! Sizes of the stash file, and what must hold between them.

use images::limits::{FRAGMENT_HEADER_LEN, SEALED_MAX};
use protocol::limits::{STASH_LEN_MAX, STASH_LEN_MIN};

/// File and region headers are written in slots of this size; a disk writes at most one of two slots torn.
pub const SLOT_LEN: u64 = 4096;
/// Room in front of the first region: two copies of two file header slots, the rest reserved.
pub const FILE_HEAD_LEN: u64 = 1024 * 1024;
/// Where the second copy of the file header lies.
pub const FILE_HEADER_COPY: u64 = 512 * 1024;
/// Where file headers lie.
pub const FILE_HEADER_SLOTS: [u64; 4] = [0, SLOT_LEN, FILE_HEADER_COPY, FILE_HEADER_COPY + SLOT_LEN];
/// One region: large enough that its table is read in one go for hundreds of fragments, small enough to be reused soon.
pub const REGION_LEN: u64 = 64 * 1024 * 1024;
/// Regions that a file may have; those of tests are small.
pub const REGION_LEN_MIN: u64 = 64 * 1024;
/// See [`REGION_LEN_MIN`].
pub const REGION_LEN_MAX: u64 = 128 * 1024 * 1024;
/// Two region header slots.
pub const REGION_HEAD_LEN: u64 = 2 * SLOT_LEN;
/// Records start on these boundaries, so that a torn write never damages a neighbour.
pub const RECORD_ALIGN: u64 = 4096;
/// Record header in bytes.
pub const RECORD_HEADER_LEN: usize = 48 + FRAGMENT_HEADER_LEN;
/// Region table header in bytes; its entries are record headers.
pub const TABLE_HEADER_LEN: usize = 32;
/// Regions that belong to nobody: one for deletions, one for copying what is needed out of others.
pub const SPARES: usize = 2;
/// A stash has some regions for fragments, and the spare ones.
pub const REGIONS_MIN: u32 = (STASH_LEN_MIN / REGION_LEN) as u32;
/// See [`STASH_LEN_MAX`].
pub const REGIONS_MAX: u32 = (STASH_LEN_MAX / REGION_LEN) as u32;
/// Owners that may have a partition.
pub const PARTITIONS_MAX: usize = 256;
/// Puts that one sync may acknowledge together.
pub const BATCH_MAX: usize = 64;

const _: () = {
    assert!(FILE_HEAD_LEN >= FILE_HEADER_COPY + 2 * SLOT_LEN && FILE_HEAD_LEN.is_multiple_of(RECORD_ALIGN));
    assert!(REGION_LEN.is_multiple_of(RECORD_ALIGN) && REGION_LEN <= REGION_LEN_MAX && REGION_LEN >= REGION_LEN_MIN);
    assert!(SEALED_MAX as u64 * 8 < REGION_LEN, "a region holds several of the largest fragments");
    assert!(REGION_LEN_MAX / RECORD_ALIGN <= 1 << 15, "a place in a region is a number of 15 bits");
    assert!(96 + PARTITIONS_MAX as u64 * 8 + 4 <= SLOT_LEN, "all partitions fit a slot");
    assert!(REGIONS_MIN as usize > SPARES);
};
