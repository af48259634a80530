//! The part of the stash that touches the world.

pub mod file;
pub mod folder;
pub mod heartbeat;
pub mod service;
pub mod writer;
