//! The part of the stash that touches the world.

pub mod file;
pub mod folder;
mod gossip;
pub mod heartbeat;
pub mod reports;
pub mod service;
pub mod shares;
pub mod words;
pub mod writer;
