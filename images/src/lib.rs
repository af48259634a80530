//! Disk images as bytes in, bytes out.
//!
//! This crate turns a disk into chunks, segments, fragments and a signed manifest, and turns any k of n fragments back into
//! verified bytes with their place on the disk. It deliberately knows no peers, no files, no clock and no entropy source:
//! whoever calls it brings bytes, time and randomness. `docs/formats.md` draws every layout that is encoded here.

pub mod bundle;
pub mod chunk;
pub mod disk;
pub mod extent;
pub mod fragment;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod manifest;
pub mod parity;
pub mod segment;
pub mod shares;
pub mod span;
pub mod wire;

pub use ids::{ArrayId, ChunkId, ContentDigest, FragmentDigest, GroupId, ManifestId, NodeId, SegmentId};
