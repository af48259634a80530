//! The controller of an array, and the command line that steers it.
//!
//! [`geometry`] and [`placement`] decide: how many pieces, on whom, and what to do when a holder does not confirm. They are
//! plain values. [`catalog`] remembers. [`publisher`] is the sending half of `coe-ctl publish`. `io/` is the daemon, `cli/` what
//! people type.

pub mod catalog;
pub mod cli;
pub mod draft;
pub mod geometry;
pub mod io;
pub mod placement;
pub mod publisher;
