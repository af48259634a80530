//! The seeded world: the real cores — placement, store, getter, codec — under a simulated network, disk and clock.
//!
//! Everything follows from a seed. Messages are delayed, reordered and lost; stashes crash in the middle of writes and come back
//! with what their disk kept, torn at 512 bytes; some are slow, some lie. Checked throughout: what a stash confirmed is there
//! after any crash, byte for byte; and a segment that was acknowledged is readable while k of its holders are up and honest.
//!
//! `stash` crashes one stash at every boundary, and lets its disk fail in every way.
//!
//! `array` lets months of an array pass: repair, catalog and placement, while stashes come, go, fail and lie.
//!
//! `mirror` does the same for the directory and for shares of keys, while controllers come and go.

mod array;
mod mirror;
mod rng;
mod run;
mod stash;

pub use array::{ArrayStats, run as run_array};
pub use mirror::{MirrorStats, run as run_mirror, spread};
pub use rng::Rng;
pub use run::{Failure, Stats, run};
pub use stash::{StashStats, run as run_stash, run_every_call as run_stash_every_call};
