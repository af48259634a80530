//! All that is said on a network, and the getter that fetches any k of n pieces.
//!
//! Everything outside `io/` is values and functions: who may say what ([`message`]), who somebody is ([`identity`]), what the
//! array looks like ([`directory`]), and which piece to ask of whom ([`getter`]). Only `io/` knows sockets, TLS and time.

pub mod directory;
pub mod getter;
pub mod identity;
pub mod io;
pub mod limits;
pub mod machine;
pub mod message;
pub mod pace;
pub mod size;
pub mod ticket;
