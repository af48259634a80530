//! The seeded world ([`world`]), and what tests with real processes share ([`hostile`], [`fleet`]).

pub mod fleet;
pub mod hostile;
pub mod world;
