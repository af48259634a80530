//! The part of the stash that touches the world.

pub mod control;
pub mod file;
pub mod folder;
mod gossip;
pub mod heartbeat;
pub mod leave;
mod rebuild;
pub mod reports;
pub mod scrub;
pub mod service;
pub mod shares;
pub mod switch;
pub mod watch;
pub mod words;
pub mod writer;
