//! `cargo xtask bench delta`: what a second version of an image costs, against casync.

use clap::Args;

/// New bytes of a second version: after a package upgrade in place, and with its file system made anew
#[derive(Args)]
pub struct Delta {}

impl Delta {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        anyhow::bail!("not yet")
    }
}
