//! The installer: builds a disk from an image in the array, and says "installed" only after it has read the disk back.
//!
//! [`first_blocks`] holds back what makes a disk bootable until everything else is proven; [`gaps`] knows what must become zero,
//! [`settled`] what can be read back already.
//! `io/` fetches, writes and compares.

pub mod boot;
pub mod cli;
pub mod disks;
pub mod first_blocks;
pub mod gaps;
pub mod io;
pub mod settled;
