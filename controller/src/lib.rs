//! The controller of an array, and the command line that steers it.
//!
//! [`geometry`] and [`placement`] decide: how many pieces, on whom, and what to do when a holder does not confirm. They are
//! plain values. [`catalog`] remembers. `io/` is the daemon, and the sending half of `coe-ctl publish`; `cli/` is what
//! people type.

pub mod catalog;
pub mod cli;
pub mod deploy;
pub mod draft;
pub mod geometry;
pub mod hosts;
pub mod io;
pub mod placement;
pub mod repair;
