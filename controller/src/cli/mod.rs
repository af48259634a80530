//! The command lines of `coe-controller` and `coe-ctl`.

pub mod controller;
pub mod ctl;
mod table;
