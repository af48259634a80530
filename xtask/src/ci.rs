//! `cargo xtask ci`: everything that must hold before a change lands.

use std::process::Command;
use std::time::Instant;

use clap::Args;

use crate::{lab, setup, shell, tidy};

/// Format, clippy, tidy, deny, all tests, virtual machines that install themselves, and a hundred years of an array
#[derive(Args)]
pub struct Ci {}

fn step(name: &str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let start = Instant::now();
    println!("\n== {name}");
    work()?;
    println!("-- {name}: ok, {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Licences, sources and duplicate versions need no network; advisories need their database.
fn deny() -> anyhow::Result<()> {
    if Command::new("cargo-deny").arg("--version").output().is_err() {
        println!("installing cargo-deny");
        shell::run(&mut shell::cargo(&["install", "cargo-deny", "--locked", "--quiet"]))?;
    }
    shell::run(&mut shell::cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]))?;
    let fetched = shell::cargo(&["deny", "--log-level", "error", "fetch", "db"]).output();
    if fetched.is_ok_and(|out| out.status.success()) {
        return shell::run(&mut shell::cargo(&[
            "deny",
            "--log-level",
            "error",
            "check",
            "--disable-fetch",
            "advisories",
        ]));
    }
    println!("NOTE: the advisory database cannot be reached from here, so advisories were not checked");
    Ok(())
}

impl Ci {
    /// Run it.
    ///
    /// # Errors
    /// If any step fails.
    pub fn run(&self) -> anyhow::Result<()> {
        step("packages", || setup::need(setup::DISKS))?;
        step("format", || shell::run(&mut shell::cargo(&["fmt", "--all", "--check"])))?;
        step("tidy", tidy::check)?;
        let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
        step("clippy", || shell::run(&mut shell::cargo(&clippy)))?;
        step("deny", deny)?;
        step("build", || shell::run(&mut shell::cargo(&["build", "--quiet", "--workspace", "--bins"])))?;
        step("test", || shell::run(&mut shell::cargo(&["test", "--quiet", "--workspace"])))?;
        step("lab", lab::check)?;
        // A hundred years of an array; its tests are a few of these seeds.
        step("sim", || {
            let sim = ["run", "--quiet", "--release", "--package", "tests", "--bin", "sim", "--", "array"];
            shell::run(shell::cargo(&sim).args(["--seeds", "600"]))
        })
    }
}
