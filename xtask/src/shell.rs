//! Running programs and saying what went wrong.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// The repository's folder.
///
/// # Panics
/// Never: this crate lies one folder below it.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository")
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo command in the repository.
#[must_use]
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Run, with output going where ours goes.
///
/// # Errors
/// If it cannot be started or does not succeed.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("start {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Run quietly; the answer is what it prints.
///
/// # Errors
/// If it cannot be started or does not succeed; then with what it says of that.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = show(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("start {shown}"))?;
    if !out.status.success() {
        bail!("{shown}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8(out.stdout)?)
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let args = command.get_args().map(|a| a.to_string_lossy().chars().take(80).collect::<String>());
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}

/// Build the product's programs; the answer is their folder.
///
/// # Errors
/// If they do not build.
pub fn build(release: bool) -> anyhow::Result<PathBuf> {
    let mut args = vec!["build", "--bins"];
    args.extend(release.then_some("--release"));
    run(&mut cargo(&args))?;
    Ok(target_dir().join(if release { "release" } else { "debug" }))
}

/// `12.3 MB`.
#[must_use]
pub fn mb(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}
