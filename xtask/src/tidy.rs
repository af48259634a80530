//! `cargo xtask tidy`: taste that a machine can check.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use crate::shell;

/// Check the purity rule, file lengths and the walls between crates
#[derive(Args)]
pub struct Tidy {}

/// No file is longer.
const LINES_MAX: usize = 800;
/// Half of all files are at most this long.
const LINES_MEDIAN_MAX: usize = 200;

/// What only `io/`, `cli/`, `bin/` and `main.rs` may name: each of these makes a function depend on the world.
const IMPURE: &[&str] = &[
    "tokio::",
    "quinn::",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::thread",
    "std::process",
    "SystemTime",
    "Instant::now",
    "rand::",
    "aws_lc_rs::rand",
    "std::env",
];
/// Crates whose sources are pure but for those folders.
const PRODUCT: &[&str] = &["images", "protocol", "controller", "client-stash", "pxe-installer"];
const WORLDLY: &[&str] = &["/io/", "/cli/", "/bin/"];
const WORLDLY_FILES: &[&str] = &["main.rs", "tests.rs"];

/// Which crates of the workspace a crate may depend on.
const WALLS: &[(&str, &[&str])] = &[
    ("images", &[]),
    ("protocol", &["images"]),
    ("controller", &["images", "protocol"]),
    ("client-stash", &["images", "protocol"]),
    ("pxe-installer", &["images", "protocol"]),
    ("xtask", &[]),
];

fn rust_files(folder: &Path, out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                rust_files(&path, out)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    Ok(())
}

fn is_worldly(path: &str) -> bool {
    WORLDLY.iter().any(|folder| path.contains(folder)) || WORLDLY_FILES.iter().any(|file| path.ends_with(file))
}

/// Lines of code in front of the tests of a file.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").enumerate();
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn check_files(complaints: &mut Vec<String>) -> anyhow::Result<()> {
    let mut lengths = Vec::new();
    let crates: Vec<&str> = PRODUCT.iter().chain(&["tests", "xtask"]).copied().collect();
    for name in crates {
        let mut files = Vec::new();
        rust_files(&shell::root().join(name), &mut files)?;
        for file in files {
            let shown = file.strip_prefix(shell::root())?.display().to_string();
            let text = fs::read_to_string(&file)?;
            let lines = text.lines().count();
            lengths.push(lines);
            if lines > LINES_MAX {
                complaints.push(format!("{shown}: {lines} lines, at most {LINES_MAX}"));
            }
            if !text.starts_with("//!") && !shown.ends_with("tests.rs") {
                complaints.push(format!("{shown}: no //! that says what it is for"));
            }
            if PRODUCT.contains(&name) && !is_worldly(&format!("/{shown}")) {
                for (number, line) in code(&text) {
                    if let Some(word) = IMPURE.iter().find(|word| line.contains(*word)) {
                        complaints.push(format!("{shown}:{}: {word} outside io/, cli/, bin/", number + 1));
                    }
                }
            }
        }
    }
    lengths.sort_unstable();
    let median = lengths.get(lengths.len() / 2).copied().unwrap_or(0);
    if median > LINES_MEDIAN_MAX {
        complaints.push(format!("the median file has {median} lines, at most {LINES_MEDIAN_MAX}"));
    }
    println!("{} files, median {median} lines", lengths.len());
    Ok(())
}

fn check_walls(complaints: &mut Vec<String>) -> anyhow::Result<()> {
    let allowed: BTreeMap<_, _> = WALLS.iter().copied().collect();
    for (name, may) in &allowed {
        let manifest = fs::read_to_string(shell::root().join(name).join("Cargo.toml"))?;
        for other in PRODUCT.iter().chain(&["tests", "xtask"]) {
            let depends = manifest.lines().any(|line| {
                line.strip_prefix(other).is_some_and(|rest| rest.starts_with('.') || rest.trim_start().starts_with('='))
            });
            if depends && !may.contains(other) {
                complaints.push(format!("{name} must not depend on {other}"));
            }
        }
    }
    Ok(())
}

/// Check everything.
///
/// # Errors
/// Lists all that is wrong.
pub fn check() -> anyhow::Result<()> {
    let mut complaints = Vec::new();
    check_files(&mut complaints)?;
    check_walls(&mut complaints)?;
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{} complaints:\n  {}", complaints.len(), complaints.join("\n  "))
}

impl Tidy {
    /// Run it.
    ///
    /// # Errors
    /// Lists all that is wrong.
    pub fn run(&self) -> anyhow::Result<()> {
        check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_tests_and_worldly_files_are_left_out() {
        let text = "use a;\n// tokio:: here\nfn f() {}\n#[cfg(test)]\nmod tests { use tokio::x; }\n";
        assert_eq!(code(text).map(|(i, _)| i).collect::<Vec<_>>(), [0, 2]);
        assert!(is_worldly("/controller/src/io/api.rs") && is_worldly("/client-stash/src/main.rs"));
        assert!(!is_worldly("/images/src/segment.rs"));
    }
}
