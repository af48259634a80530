//! The seeded worlds ([`world`]), a writer that is killed ([`killed`]), what tests with real processes share ([`hostile`], [`fleet`]),
//! years of a large fleet
//! ([`fleet_model`]), and what fuzzers run ([`fuzz`]).

pub mod fleet;
pub mod fleet_model;
pub mod fuzz;
pub mod gpt_4096;
pub mod hostile;
pub mod killed;
pub mod world;
