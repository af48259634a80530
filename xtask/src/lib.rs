//! Builds, runs, tests and measures everything. The product's programs are used as anybody would use them: as processes.

pub mod bench;
pub mod ci;
pub mod coe_image;
pub mod compare;
pub mod demo;
pub mod fleet;
pub mod fuzz;
pub mod lab;
pub mod netboot;
pub mod restless;
pub mod sample;
pub mod setup;
pub mod shell;
pub mod sim;
pub mod tidy;
