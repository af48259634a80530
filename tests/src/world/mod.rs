//! The seeded world: the real cores — placement, store, getter, codec — under a simulated network, disk and clock.
//!
//! Everything follows from a seed. Messages are delayed, reordered and lost; stashes crash in the middle of writes and come back
//! with what their disk kept, torn at 512 bytes; some are slow, some lie. Checked throughout: what a stash confirmed is there
//! after any crash, byte for byte; and a segment that was acknowledged is readable while k of its holders are up and honest.

mod rng;
mod run;

pub use rng::Rng;
pub use run::{Failure, Stats, run};
