//! The part of the protocol that touches the world: TLS, QUIC, time, files.

pub mod array;
pub mod credentials;
pub mod directory;
pub mod disk;
pub mod endpoint;
pub mod fetch;
pub mod issue;
pub mod link;
pub mod nearby;
pub mod pool;
pub mod program;
pub mod rpc;
pub mod stage;
pub mod statement;
pub mod tls;
pub mod words;
