//! `cargo xtask ci`: everything that must hold before a change lands.

use std::process::Command;
use std::time::Instant;

use clap::Args;

use crate::{lab, setup, shell, tidy};

/// Format, clippy, tidy, deny, all tests, virtual machines that install themselves, and thousands of seeded worlds
#[derive(Args)]
pub struct Ci {}

/// Worlds and their seeds: more than a hundred years of an array are among them.
const SEEDS: &[&[&str]] = &[
    &["fleet", "--seeds", "4000"],
    &["mirror", "--seeds", "1000"],
    &["stash", "--seeds", "2000"],
    &["stash", "--every-call", "--seeds", "40"],
    &["array", "--seeds", "2000"],
];

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
    /// Run it. All is compiled once, as it is shipped: overflowing sums stop it there, too.
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
        step("build", || shell::run(&mut shell::cargo(&["build", "--quiet", "--release", "--workspace", "--bins"])))?;
        step("test", || shell::run(&mut shell::cargo(&["test", "--quiet", "--release", "--workspace"])))?;
        step("lab", lab::check)?;
        // Tests run a few of these seeds.
        SEEDS.iter().try_for_each(|world| {
            let sim = ["run", "--quiet", "--release", "--package", "tests", "--bin", "sim", "--"];
            step(&format!("sim {}", world.join(" ")), || shell::run(shell::cargo(&sim).args(*world)))
        })
    }
}
