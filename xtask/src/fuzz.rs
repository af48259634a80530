//! `cargo xtask fuzz`: libFuzzer on whatever strangers' bytes reach.

use std::process::Command;

use anyhow::bail;
use clap::Args;

use crate::shell;

/// What can be fuzzed: functions of `tests/src/fuzz.rs`.
const TARGETS: [&str; 6] = ["dhcp", "tftp", "partition_table", "boot_set", "stash_file", "stash_structures"];

/// Fuzz what reads bytes from strangers
#[derive(Args)]
#[command(after_help = "Examples:\n  cargo xtask fuzz --seconds 60\n  cargo xtask fuzz dhcp --seconds 3600")]
pub struct Fuzz {
    /// Which [default: all, one after the other]
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long each
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

impl Fuzz {
    /// Run it.
    ///
    /// # Errors
    /// If a target fails: the input is kept below `tests/fuzz/artifacts`.
    pub fn run(&self) -> anyhow::Result<()> {
        if Command::new("cargo-fuzz").arg("--version").output().is_err() {
            println!("installing cargo-fuzz");
            shell::run(&mut shell::cargo(&["install", "cargo-fuzz", "--locked", "--quiet"]))?;
        }
        for target in TARGETS.iter().filter(|t| self.target.as_deref().is_none_or(|only| only == **t)) {
            println!("== {target}");
            let seconds = format!("-max_total_time={}", self.seconds);
            let mut run = shell::cargo(&["fuzz", "run", "--fuzz-dir", "tests/fuzz", target, "--"]);
            // The sanitizer's switches are unstable, and all that is here is a stable toolchain.
            run.args([seconds.as_str(), "-print_final_stats=1"]).env("RUSTC_BOOTSTRAP", "1");
            if shell::run(&mut run).is_err() {
                bail!("{target} does not survive an input below tests/fuzz/artifacts/{target}: make it a test");
            }
        }
        Ok(())
    }
}
