//! The stash: the hidden distributed storage file on a client, and the service that owns it.
//!
//! [`store`] is the file's logic over a small [`storage`] trait; it knows no network, no clock and no file system. [`format`]
//! has every byte layout, drawn in `docs/formats.md`. `io/` is the service: QUIC in front, a real file behind.

pub mod cli;
pub mod format;
pub mod io;
pub mod limits;
pub mod manners;
pub mod release;
pub mod storage;
pub mod store;
