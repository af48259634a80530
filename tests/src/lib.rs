//! The seeded world ([`world`]), and what tests with real processes share ([`hostile`], [`fleet`]).

pub mod fleet;
pub mod gpt_4096;
pub mod hostile;
pub mod world;
