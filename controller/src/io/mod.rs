//! The parts of the controller that touch the world: the daemon, and the publisher that runs in `coe-ctl`.

pub mod api;
pub mod authority;
pub mod commit;
pub mod controller;
mod copies;
pub mod finish;
pub mod fleet;
pub mod folder;
pub mod grant;
pub mod habits;
pub mod inventory;
pub mod kit;
mod lost;
pub mod machines;
pub mod mass_storage;
pub mod members;
pub mod notes;
pub mod planned;
pub mod publisher;
pub mod recover;
pub mod repair;
pub mod restripe;
pub mod rival;
pub mod service;
pub mod session;
pub mod shares;
pub mod spread;
pub mod sweep;
pub mod verify;

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 by this machine's clock.
#[must_use]
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
