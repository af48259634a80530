//! The part of the installer that touches the world.

pub mod bootd;
pub mod deploy;
pub mod install;
pub mod proof;
pub mod source;
pub mod target;
