//! The seeded worlds ([`world`]), a writer that is killed ([`killed`]), what tests with real processes share ([`hostile`], [`fleet`]),
//! and what fuzzers run ([`fuzz`]).

pub mod fleet;
pub mod fuzz;
pub mod gpt_4096;
pub mod hostile;
pub mod killed;
pub mod world;
