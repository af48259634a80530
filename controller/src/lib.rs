//! The controller of an array, and the command line that steers it.
//!
//! [`attendance`], [`domains`], [`paths`] and [`doubles`] say what the fleet is like; [`geometry`], [`placement`], [`repair`] and [`restripe`] decide: how many pieces,
//! on whom, what to do when a holder does not confirm, who is replaced, and what is cut anew; [`leases`] are the room that is promised meanwhile. They are
//! plain values. [`catalog`] remembers. `io/` is the daemon, and the sending half of `coe-ctl publish`; `cli/` is what people type.

pub mod attendance;
pub mod catalog;
pub mod cli;
pub mod deploy;
pub mod domains;
pub mod doubles;
pub mod draft;
pub mod geometry;
pub mod hosts;
pub mod io;
pub mod leases;
pub mod paths;
pub mod placement;
pub mod repair;
pub mod restripe;
