//! What a boot server says: pure functions from packets to packets.

pub mod dhcp;
pub mod discover;
pub mod leases;
pub mod script;
pub mod tftp;
