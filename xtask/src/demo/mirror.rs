//! `cargo xtask demo --controller-dies`: the mirror link, start to end.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use super::{number, step};
use crate::fleet::{Fleet, free_port};
use crate::shell::mb;
use crate::{compare, sample, shell};

/// Publish, kill the controller and delete its folder, install, recover a controller from the clients, publish a second version, and
/// install that.
pub(super) fn run(fleet: &mut Fleet, dir: &Path, image: &Path, sample_mb: u64) -> anyhow::Result<()> {
    let len = std::fs::metadata(image)?.len();
    let target = dir.join("installed.img");

    step("coe-ctl publish; know one machine, and let its installer join");
    let published = fleet.publish(image, &["--name", "sample", "--tag", "1"])?;
    fleet.approve_host("lab-01", "S1")?;
    let ticket = fleet.ticket(&["--installer", "--host", "lab-01"])?;
    let home = dir.join("lab-01");
    let installer = |fleet: &Fleet, image: &str, more: &[&str]| -> anyhow::Result<Value> {
        sample::empty(&target, len)?;
        let mut command: Command = fleet.command("coe-installer");
        command.env("COE_HOME", &home).args(["--json", "--image", image, "--disk"]).arg(&target).args(more);
        Ok(serde_json::from_str(&shell::output(&mut command)?)?)
    };
    let timed = |fleet: &Fleet, image: &str, more: &[&str]| {
        let start = Instant::now();
        installer(fleet, image, more).map(|installed| (installed, start.elapsed().as_secs_f64()))
    };
    let (_, with_s) = timed(fleet, "sample:1", &["--ticket", &ticket])?;
    println!("installed with the controller there: {with_s:.1} s");
    fleet.wait_until_told()?;

    step("SIGKILL the controller, and delete its folder");
    let kit = fleet.lose_controller()?;
    println!("{} is gone", fleet.controller_dir().display());

    step("coe-installer, from the stashes alone");
    let (installed, without_s) = timed(fleet, "sample:1", &[])?;
    println!("{}", compare::installed(image, &target)?);

    step("coe-controller recover, from the recovery kit and one stash's address");
    let recovered = fleet.recover_controller(&kit, &format!("127.0.0.1:{}", free_port()?), &["--mass-storage"])?;
    fleet.start_controller()?;
    fleet.wait_until_up(fleet.stashes.len())?;
    println!("all {} stashes came to the new controller", fleet.stashes.len());
    let verified = fleet.ctl(&["verify", "--deep"])?;

    step("publish a second version, and install that");
    let second = dir.join("second.img");
    sample::disk(&second, sample_mb * 1_100_000)?;
    let next = fleet.publish(&second, &["--name", "sample", "--tag", "2"])?;
    sample::empty(&target, std::fs::metadata(&second)?.len())?;
    fleet.install("sample:2", &target, std::fs::metadata(&second)?.len())?;
    println!("{}", compare::installed(&second, &target)?);

    println!("\n== summary");
    println!(
        "publish    {} in use; {} stored (sealed)",
        mb(number(&published, "in_use")),
        mb(number(&published, "sealed"))
    );
    println!(
        "install    {with_s:.1} s with the controller, {without_s:.1} s without: {:.2} times; {} pieces",
        without_s / with_s,
        installed["pieces"]
    );
    println!(
        "recover    {} images, {} stashes, {} machines, {} segments; {} in {:.1} s, {:.0} MB/s",
        recovered["images"],
        recovered["stashes"],
        recovered["hosts"],
        recovered["segments"],
        mb(number(&recovered, "fetched")),
        number(&recovered, "took_s"),
        number(&recovered, "fetched") / 1e6 / number(&recovered, "took_s").max(1e-9)
    );
    println!("verify     {} pieces proven, {} problems", verified["pieces_proven"], verified["problem_count"]);
    println!("second     {} of {} chunks were known to the new controller", next["known_chunks"], next["chunks"]);
    println!("RESULT     both versions are on the disk as they were published; the old controller was never missed");
    Ok(())
}
