//! The part of the installer that touches the world.

pub mod install;
pub mod proof;
pub mod source;
pub mod target;
