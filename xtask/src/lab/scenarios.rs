//! The scenarios, each from power-on to the installed system's own word.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};

use super::{Dhcp, Firmware, Lab, VmPlan};

const MIB: u64 = 1 << 20;
/// Larger than the image: its table must be fitted.
const DISK_LEN: u64 = 1024 * MIB;

/// A scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub what: &'static str,
    /// Runs it.
    pub run: fn(&mut Lab) -> anyhow::Result<()>,
}

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "bios-proxy",
        what: "BIOS beside another DHCP server; its stash joins the array",
        run: bios_proxy,
    },
    Scenario { name: "uefi-proxy", what: "UEFI beside another DHCP server", run: uefi_proxy },
    Scenario { name: "uefi-http", what: "UEFI HTTP boot beside another DHCP server", run: uefi_http },
    Scenario { name: "secure-boot", what: "Secure Boot, signed loaders, the boot server's own DHCP", run: secure_boot },
    Scenario { name: "unapproved", what: "a machine that nobody approved gets nothing", run: unapproved },
    Scenario { name: "two-disks", what: "two disks: refuses, and goes on once the admin says which", run: two_disks },
    Scenario { name: "power-cut", what: "power cut in the middle; resumed", run: power_cut },
    Scenario { name: "stashes-die", what: "as many stashes as may be lost are killed in the middle", run: stashes_die },
];

/// Know a machine, and plan its deployment.
fn plan(lab: &Lab, vm: &VmPlan, more: &[&str]) -> anyhow::Result<()> {
    let list = vm.disks[0].path.with_extension("csv");
    std::fs::write(&list, format!("name,uuid\n{},{}\n", vm.name, vm.uuid))?;
    lab.ctl(&["host", "import", list.to_str().context("a path in UTF-8")?])?;
    deploy(lab, &vm.name, more)
}

fn deploy(lab: &Lab, host: &str, more: &[&str]) -> anyhow::Result<()> {
    lab.ctl(&[&["deploy", "micro:1", "--host", host, "--hostname", host], more].concat()).map(drop)
}

/// Everything in front of the root, which is the machine's own by now, is the image's, byte for byte; and the table is fitted.
fn check_disk(lab: &Lab, disk: &Path) -> anyhow::Result<()> {
    let (image, disk) = (File::open(&lab.image)?, File::open(disk)?);
    let (mut want, mut have) = (vec![0; 41 * MIB as usize], vec![0; 41 * MIB as usize]);
    image.read_exact_at(&mut want, MIB)?;
    disk.read_exact_at(&mut have, MIB)?;
    ensure!(want == have, "the disk's first partitions differ from the image");
    let mut end = [0; 8];
    disk.read_exact_at(&mut end, DISK_LEN - 512)?;
    ensure!(&end == b"EFI PART", "there is no backup table at the disk's end");
    Ok(())
}

/// Power on, and wait until the installed system says that it is up under its name.
fn install(lab: &Lab, vm: &VmPlan, seconds: u64) -> anyhow::Result<()> {
    let mut machine = vm.start()?;
    machine.expect("coe: installed; starting", seconds)?;
    let proven = machine.started.elapsed().as_secs();
    let up = machine.expect("coe-micro: UP", 120)?;
    ensure!(up.contains(&format!("UP {} ", vm.name)), "it is up under another name: {up}");
    machine.expect("coe-micro: READY", 60)?;
    println!(
        "      {:24} installed {proven} s after power-on, up from its disk after {} s",
        vm.name,
        machine.started.elapsed().as_secs()
    );
    machine.power_off();
    check_disk(lab, &vm.disks[0].path)
}

fn bios_proxy(lab: &mut Lab) -> anyhow::Result<()> {
    lab.serve(Dhcp::Foreign)?;
    let vm = lab.machine("bios", Firmware::Bios).disk(DISK_LEN)?;
    plan(lab, &vm, &["--stash", "128MiB"])?;
    let mut machine = vm.start()?;
    machine.expect("coe: installed; starting", 150)?;
    lab.wait_for_state("bios", "installed", 10)?;
    machine.expect("coe-micro: UP bios ", 90)?;
    lab.wait_for_state("bios", "deployed", 60)?;
    println!("      {:24} deployed, with its stash, {} s after power-on", vm.name, machine.started.elapsed().as_secs());
    machine.power_off();
    check_disk(lab, &vm.disks[0].path)
}

fn uefi_proxy(lab: &mut Lab) -> anyhow::Result<()> {
    lab.serve(Dhcp::Foreign)?;
    let vm = lab.machine("uefi", Firmware::Uefi).disk(DISK_LEN)?;
    plan(lab, &vm, &[])?;
    install(lab, &vm, 180)
}

fn uefi_http(lab: &mut Lab) -> anyhow::Result<()> {
    lab.serve(Dhcp::Foreign)?;
    let vm = lab.machine("http", Firmware::UefiHttp).disk(DISK_LEN)?;
    plan(lab, &vm, &[])?;
    install(lab, &vm, 180)
}

fn secure_boot(lab: &mut Lab) -> anyhow::Result<()> {
    lab.serve(Dhcp::Own)?;
    let vm = lab.machine("secure", Firmware::SecureBoot).disk(DISK_LEN)?;
    plan(lab, &vm, &[])?;
    install(lab, &vm, 240)?;
    let host = lab.ctl(&["host", "show", "secure"])?;
    ensure!(host["firmware"] == "UEFI, Secure Boot", "the machine was not under Secure Boot: {}", host["firmware"]);
    Ok(())
}

fn unapproved(lab: &mut Lab) -> anyhow::Result<()> {
    lab.serve(Dhcp::Foreign)?;
    let vm = lab.machine("stranger", Firmware::Bios).disk(DISK_LEN)?;
    let mut machine = vm.start()?;
    // The BIOS gives up on the network, and finds nothing on the empty disk.
    machine.expect("No bootable device", 60)?;
    let hosts = lab.ctl(&["host", "list"])?;
    let known = hosts.as_array().into_iter().flatten().find(|h| h["uuid"] == vm.uuid.as_str());
    let known = known.context("the machine asked to boot, and is not listed")?;
    ensure!(known["approved"] == false, "it is approved");
    let name = known["name"].as_str().context("a name")?;
    let refused = deploy(lab, name, &[]);
    ensure!(refused.is_err_and(|e| format!("{e:#}").contains("not approved")), "it can be deployed without approval");
    lab.ctl(&["host", "approve", &vm.mac])?;
    deploy(lab, name, &[])
}

fn two_disks(lab: &mut Lab) -> anyhow::Result<()> {
    lab.serve(Dhcp::Foreign)?;
    let vm = lab.machine("two-disks", Firmware::Bios).disk(DISK_LEN)?.disk(DISK_LEN)?;
    plan(lab, &vm, &[])?;
    let mut machine = vm.start()?;
    machine.expect("coe: STOPPED", 90)?;
    let why = lab.wait_for_state("two-disks", "stopped", 10)?;
    ensure!(why.contains(&vm.disks[0].serial) && why.contains(&vm.disks[1].serial), "it does not say which: {why}");
    let all = lab.ctl(&["deploy", "list"])?;
    let mine = all.as_array().into_iter().flatten().find(|d| d["host"] == "two-disks").context("a deployment")?;
    lab.ctl(&["deploy", "cancel", &mine["id"].to_string()])?;
    machine.expect("coe: cancelled", 30)?;
    machine.power_off();
    for disk in &vm.disks {
        let mut start = vec![0; MIB as usize];
        File::open(&disk.path)?.read_exact_at(&mut start, 0)?;
        ensure!(start.iter().all(|b| *b == 0), "something was written to a disk that was refused");
    }
    Ok(())
}

fn power_cut(lab: &mut Lab) -> anyhow::Result<()> {
    lab.serve(Dhcp::Foreign)?;
    let vm = lab.machine("power-cut", Firmware::Bios).disk(DISK_LEN)?;
    plan(lab, &vm, &[])?;
    let mut machine = vm.start()?;
    machine.expect("coe: install ", 120)?;
    machine.power_off();
    let mut first = [0; 512];
    File::open(&vm.disks[0].path)?.read_exact_at(&mut first, 0)?;
    ensure!(first.iter().all(|b| *b == 0), "the disk could boot although it is not proven");
    let mut machine = vm.start()?;
    let proven = machine.expect("written and proven in", 150)?;
    ensure!(proven.contains("of it from before"), "it began from the start: {proven}");
    machine.expect("coe-micro: UP power-cut ", 120)?;
    machine.power_off();
    check_disk(lab, &vm.disks[0].path)
}

fn stashes_die(lab: &mut Lab) -> anyhow::Result<()> {
    lab.serve(Dhcp::Foreign)?;
    let vm = lab.machine("orphan", Firmware::Bios).disk(DISK_LEN)?;
    plan(lab, &vm, &[])?;
    let mut machine = vm.start()?;
    machine.expect("coe: disk ", 90)?;
    lab.kill_stash(0);
    machine.expect("coe: installed; starting", 120)?;
    machine.power_off();
    lab.bring_back_stash(0)?;
    check_disk(lab, &vm.disks[0].path)
}
