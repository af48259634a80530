//! The scenarios, each from power-on to the installed system's own word.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::{Dhcp, DiskKind, Firmware, Lab, Setup, Vm, VmPlan, file_systems, network};

const MIB: u64 = 1 << 20;
/// Larger than the image: its table must be fitted.
pub const DISK_LEN: u64 = 1024 * MIB;

/// A scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub what: &'static str,
    /// How the boot server is set meanwhile.
    pub setup: Setup,
    /// Whether it changes what others need: stashes, or all of the processor.
    pub is_alone: bool,
    run: fn(&Lab) -> anyhow::Result<()>,
}

impl Scenario {
    /// Run it, and say how it went. Whether it went well.
    pub fn run_and_say(&self, lab: &Lab) -> bool {
        let start = Instant::now();
        let result = (self.run)(lab);
        let took = start.elapsed().as_secs_f64();
        match &result {
            Ok(()) => println!("ok    {:24} {took:>4.0} s  {}", self.name, self.what),
            Err(error) => println!("FAIL  {:24} {took:>4.0} s  {error:#}", self.name),
        }
        result.is_ok()
    }
}

/// Beside another DHCP server, as most are; UEFI loads iPXE, which needs no signature of the organisation.
const PROXY: Setup = Setup { dhcp: Dhcp::Foreign, uefi: "ipxe" };
const PROXY_SHIM: Setup = Setup { dhcp: Dhcp::Foreign, uefi: "shim" };
const PROXY_UKI: Setup = Setup { dhcp: Dhcp::Foreign, uefi: "auto" };
const OWN: Setup = Setup { dhcp: Dhcp::Own, uefi: "auto" };

const fn scenario(
    name: &'static str,
    setup: Setup,
    what: &'static str,
    run: fn(&Lab) -> anyhow::Result<()>,
) -> Scenario {
    Scenario { name, what, setup, is_alone: false, run }
}

/// All of them; the longest first.
pub const ALL: &[Scenario] = &[
    scenario(
        "debian-helps",
        PROXY,
        "Debian on NVMe: grown, named, joined; its stash is needed for the next machine",
        debian_helps,
    ),
    scenario("power-cut", PROXY, "power cut in the middle, and while the machine is named; resumed", power_cut),
    scenario("bios-proxy", PROXY, "BIOS beside another DHCP server; its root grows", bios_proxy),
    scenario("uefi-proxy", PROXY, "UEFI beside another DHCP server", uefi_proxy),
    scenario("uefi-http", PROXY, "UEFI HTTP boot beside another DHCP server", uefi_http),
    scenario(
        "two-disks",
        PROXY,
        "two disks: refuses, names both, writes nothing; installs on the one that is chosen",
        two_disks,
    ),
    scenario("write-errors", PROXY, "a disk with write errors: reported, not installed", write_errors),
    scenario("unapproved", PROXY, "a machine that nobody approved gets nothing", unapproved),
    scenario("unsigned-refused", PROXY, "under Secure Boot an unsigned loader does not start", unsigned_refused),
    scenario("stashes-die", PROXY, "as many stashes as may be lost are killed in the middle", stashes_die),
    scenario("file-systems", PROXY, "XFS, btrfs and NTFS grow; a recovery partition moves", file_systems::grow),
    Scenario { is_alone: true, ..scenario("four-at-once", PROXY, "four machines at the same time", four_at_once) },
    Scenario {
        is_alone: true,
        ..scenario(
            "controller-gone",
            PROXY,
            "the controller and its folder are gone: installed, not twice; a new controller hears of it",
            controller_gone,
        )
    },
    scenario(
        "signed-uki",
        PROXY_UKI,
        "Secure Boot beside another DHCP server, by the organisation's signature",
        signed_uki,
    ),
    scenario(
        "next-server",
        PROXY_SHIM,
        "Secure Boot beside another DHCP server that names the boot server",
        next_server,
    ),
    scenario("secure-boot", OWN, "Secure Boot, Debian's signed loaders, the boot server's own DHCP", secure_boot),
];

/// Know a machine, and plan its deployment.
fn plan(lab: &Lab, vm: &VmPlan, more: &[&str]) -> anyhow::Result<()> {
    plan_image(lab, vm, "micro:1", more)
}

fn plan_image(lab: &Lab, vm: &VmPlan, image: &str, more: &[&str]) -> anyhow::Result<()> {
    know(lab, vm)?;
    deploy(lab, &vm.name, image, more)
}

/// Know a machine.
pub fn know(lab: &Lab, vm: &VmPlan) -> anyhow::Result<()> {
    let list = vm.disks[0].path.with_extension("csv");
    std::fs::write(&list, format!("name,uuid\n{},{}\n", vm.name, vm.uuid))?;
    lab.ctl(&["host", "import", list.to_str().context("a path in UTF-8")?]).map(drop)
}

/// Plan a deployment in which the installed system gets no name.
pub fn deploy_unnamed(lab: &Lab, host: &str, image: &str, more: &[&str]) -> anyhow::Result<()> {
    lab.ctl(&[&["deploy", image, "--host", host], more].concat()).map(drop)
}

fn deploy(lab: &Lab, host: &str, image: &str, more: &[&str]) -> anyhow::Result<()> {
    deploy_unnamed(lab, host, image, &[&["--hostname", host], more].concat())
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

/// Seconds from power-on until the installer has its disk and begins to fetch, and until all of it is proven.
fn times_of_install(machine: &mut Vm, seconds: u64) -> anyhow::Result<(u64, u64)> {
    machine.expect("coe: disk ", seconds)?;
    let begun = machine.started.elapsed().as_secs();
    machine.expect("coe: installed; starting", seconds)?;
    Ok((begun, machine.started.elapsed().as_secs()))
}

fn say_times(name: &str, (begun, proven): (u64, u64), machine: &Vm) {
    let up = machine.started.elapsed().as_secs();
    println!(
        "      {name:24} seconds after power-on: begins to fetch {begun}, installed {proven}, up from its disk {up}"
    );
}

/// Power on, and wait until the installed system says that it is up under its name.
fn install(lab: &Lab, vm: &VmPlan, seconds: u64) -> anyhow::Result<()> {
    let mut machine = vm.start()?;
    let times = times_of_install(&mut machine, seconds)?;
    let up = machine.expect("coe-micro: UP", 120)?;
    ensure!(up.contains(&format!("UP {} ", vm.name)), "it is up under another name: {up}");
    machine.expect("coe-micro: READY", 60)?;
    say_times(&vm.name, times, &machine);
    machine.power_off();
    check_disk(lab, &vm.disks[0].path)
}

fn bios_proxy(lab: &Lab) -> anyhow::Result<()> {
    let vm = lab.machine("bios", Firmware::Bios).disk(DISK_LEN)?;
    plan(lab, &vm, &[])?;
    let mut machine = vm.start()?;
    let times = times_of_install(&mut machine, 150)?;
    lab.wait_for_state("bios", "installed", 10)?;
    let up = machine.expect("coe-micro: UP bios ", 90)?;
    let blocks: u64 = up.rsplit(' ').next().and_then(|n| n.parse().ok()).context("the root's size")?;
    ensure!(blocks > 700_000, "the root file system did not grow: {blocks} KiB");
    say_times(&vm.name, times, &machine);
    machine.power_off();
    check_disk(lab, &vm.disks[0].path)
}

/// Install a machine that is new.
fn install_new(lab: &Lab, vm: &VmPlan) -> anyhow::Result<()> {
    plan(lab, vm, &[])?;
    install(lab, vm, 240)
}

/// The same, and the machine says that it started under Secure Boot.
fn install_secure(lab: &Lab, vm: &VmPlan) -> anyhow::Result<()> {
    install_new(lab, vm)?;
    let host = lab.ctl(&["host", "show", &vm.name])?;
    ensure!(host["firmware"] == "UEFI, Secure Boot", "the machine was not under Secure Boot: {}", host["firmware"]);
    Ok(())
}

fn uefi_proxy(lab: &Lab) -> anyhow::Result<()> {
    install_new(lab, &lab.machine("uefi", Firmware::Uefi).disk(DISK_LEN)?)
}

fn uefi_http(lab: &Lab) -> anyhow::Result<()> {
    install_new(lab, &lab.machine("http", Firmware::UefiHttp).disk(DISK_LEN)?)
}

fn signed_uki(lab: &Lab) -> anyhow::Result<()> {
    install_secure(lab, &lab.machine("signed", Firmware::OwnKey).disk(DISK_LEN)?)
}

fn next_server(lab: &Lab) -> anyhow::Result<()> {
    let mut vm = lab.machine("next-server", Firmware::SecureBoot).disk(DISK_LEN)?;
    vm.mac.replace_range(..network::TOLD_NEXT_SERVER.len(), network::TOLD_NEXT_SERVER);
    install_secure(lab, &vm)
}

fn secure_boot(lab: &Lab) -> anyhow::Result<()> {
    install_secure(lab, &lab.machine("secure", Firmware::SecureBoot).disk(DISK_LEN)?)
}

fn unapproved(lab: &Lab) -> anyhow::Result<()> {
    let vm = lab.machine("stranger", Firmware::Bios).disk(DISK_LEN)?;
    let mut machine = vm.start()?;
    // The BIOS gives up on the network, and finds nothing on the empty disk.
    machine.expect("No bootable device", 60)?;
    let hosts = lab.ctl(&["host", "list"])?;
    let known = hosts.as_array().into_iter().flatten().find(|h| h["uuid"] == vm.uuid.as_str());
    let known = known.context("the machine asked to boot, and is not listed")?;
    ensure!(known["approved"] == false, "it is approved");
    let name = known["name"].as_str().context("a name")?;
    let refused = deploy(lab, name, "micro:1", &[]);
    ensure!(refused.is_err_and(|e| format!("{e:#}").contains("not approved")), "it can be deployed without approval");
    lab.ctl(&["host", "approve", &vm.mac])?;
    deploy(lab, name, "micro:1", &["--wake"])?;
    machine.power_off();
    // The packet that wakes it: six times 0xff, sixteen times its address.
    let address: Vec<u8> = vm.mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    let wanted = [&[0xff; 6][..], &address.repeat(16)].concat();
    let packets = lab.dir().join("network.pcap");
    crate::fleet::wait_for("the packet that wakes the machine", || {
        std::fs::read(&packets).is_ok_and(|bytes| bytes.windows(wanted.len()).any(|w| w == wanted))
    })
}

fn two_disks(lab: &Lab) -> anyhow::Result<()> {
    let vm = lab.machine("two-disks", Firmware::Bios).disk(DISK_LEN)?.disk(DISK_LEN)?;
    plan(lab, &vm, &[])?;
    let mut machine = vm.start()?;
    machine.expect("coe: STOPPED", 90)?;
    let why = lab.wait_for_state("two-disks", "stopped", 10)?;
    ensure!(why.contains(&vm.disks[0].serial) && why.contains(&vm.disks[1].serial), "it does not say which: {why}");
    let all = lab.ctl(&["deploy", "list"])?;
    let mine = all.as_array().into_iter().flatten().find(|d| d["host"] == "two-disks").context("a deployment")?;
    let id = mine["id"].to_string();
    lab.ctl(&["deploy", "retry", &id])?;
    machine.expect_times("coe: STOPPED", 2, 60)?;
    lab.wait_for_state("two-disks", "stopped", 10)?;
    lab.ctl(&["deploy", "cancel", &id])?;
    machine.expect("coe: cancelled", 30)?;
    machine.power_off();
    for disk in &vm.disks {
        let mut start = vec![0; MIB as usize];
        File::open(&disk.path)?.read_exact_at(&mut start, 0)?;
        ensure!(start.iter().all(|b| *b == 0), "something was written to a disk that was refused");
    }
    deploy(lab, "two-disks", "micro:1", &["--disk", &format!("serial={}", vm.disks[1].serial)])?;
    let mut machine = vm.start()?;
    machine.expect("coe: installed; starting", 150)?;
    machine.power_off();
    let mut start = vec![0; MIB as usize];
    File::open(&vm.disks[0].path)?.read_exact_at(&mut start, 0)?;
    ensure!(start.iter().all(|b| *b == 0), "the other disk was written to");
    check_disk(lab, &vm.disks[1].path)
}

fn ensure_unbootable(vm: &VmPlan) -> anyhow::Result<()> {
    let mut first = [0; 512];
    File::open(&vm.disks[0].path)?.read_exact_at(&mut first, 0)?;
    ensure!(first.iter().all(|b| *b == 0), "the disk could boot although not all of it is done");
    Ok(())
}

fn power_cut(lab: &Lab) -> anyhow::Result<()> {
    let vm = lab.machine("power-cut", Firmware::Bios).disk(DISK_LEN)?;
    plan_image(lab, &vm, "micro:large", &[])?;
    let mut machine = vm.start()?;
    // From half to nine tenths, whenever it is looked at.
    machine.expect_any(&["install  5", "install  6", "install  7", "install  8"], 150)?;
    machine.power_off();
    ensure_unbootable(&vm)?;
    // Once more, while it is named.
    let mut machine = vm.start()?;
    machine.expect("coe: proven; it is named", 180)?;
    // That takes some seconds here. Somewhere else all may be done by now, and reported or not.
    std::thread::sleep(Duration::from_millis(1500));
    machine.power_off();
    let mut machine = vm.start()?;
    let went_on = ["written and proven in", "had come to its end", "coe-micro: UP power-cut "];
    let proven = machine.expect_any(&went_on, 180)?;
    ensure!(!proven.contains("proven") || proven.contains("of it from before"), "it began from the start: {proven}");
    machine.expect("coe-micro: UP power-cut ", 120)?;
    println!("      {:24} {proven}", vm.name);
    Ok(())
}

fn stashes_die(lab: &Lab) -> anyhow::Result<()> {
    let _stashes = lab.own_stashes();
    // A stick that somebody forgot is no reason to ask, and is left alone.
    let vm =
        lab.machine("orphan", Firmware::Bios).disk_on(DiskKind::Sata, DISK_LEN)?.disk_on(DiskKind::Usb, DISK_LEN)?;
    plan(lab, &vm, &[])?;
    let mut machine = vm.start()?;
    machine.expect("coe: disk ", 90)?;
    lab.kill_stash(0);
    machine.expect("coe: installed; starting", 120)?;
    machine.power_off();
    lab.bring_back_stash(0)?;
    check_disk(lab, &vm.disks[0].path)
}

/// Everything that a machine needs is with the clients: its boot files, its right, its deployment with cloud-init data, the image.
fn controller_gone(lab: &Lab) -> anyhow::Result<()> {
    let vm = lab.machine("gone", Firmware::Bios).disk(DISK_LEN)?;
    let user_data = vm.disks[0].path.with_extension("yaml");
    std::fs::write(&user_data, "#cloud-config\n# from the directory\n")?;
    let user_data = user_data.to_str().context("a path in UTF-8")?;
    plan(lab, &vm, &["--stash", "256MiB", "--cloud-init", user_data])?;
    let servers = lab.ctl(&["boot", "servers"])?;
    ensure!(servers[0]["delegated_until_unix_s"].as_u64() > Some(0), "the boot server has no delegation: {servers}");
    let lost = lab.lose_controller()?;
    let mut machine = vm.start()?;
    let times = times_of_install(&mut machine, 240)?;
    ensure!(machine.console().contains("stashes tell it when it is back"), "who was told?");
    let up = machine.expect("coe-micro: UP gone ", 150)?;
    say_times(&vm.name, times, &machine);
    machine.power_off();
    println!("      {:24} {up}", vm.name);
    check_disk(lab, &vm.disks[0].path)?;
    ensure!(holds(&vm.disks[0].path, b"# from the directory")?, "cloud-init data is not on the disk");

    // It boots from the network first. A boot server that knows nothing of it asks those who know.
    let setup = lab.stop_bootd().context("a boot server")?;
    lab.serve(setup)?;
    let mut machine = vm.start()?;
    machine.expect("coe-micro: UP gone ", 150)?;
    ensure!(!machine.console().contains("installer environment"), "the installer was started a second time");
    machine.power_off();

    // A new controller hears what became of the machine before it answers any; then the machine's stash joins it.
    lab.recover_controller(&lost)?;
    lab.wait_for_state("gone", "installed", 60)?;
    let mut machine = vm.start()?;
    machine.expect("coe-micro: UP gone ", 150)?;
    lab.wait_for_state("gone", "deployed", 60)?;
    machine.power_off();
    Ok(())
}

/// Whether a file has these bytes anywhere.
fn holds(file: &Path, bytes: &[u8]) -> anyhow::Result<bool> {
    let (file, mut buffer, mut at) = (File::open(file)?, vec![0; 4 * MIB as usize], 0);
    loop {
        let len = file.read_at(&mut buffer, at)?;
        if buffer[..len].windows(bytes.len()).any(|window| window == bytes) {
            return Ok(true);
        }
        if len <= bytes.len() {
            return Ok(false);
        }
        at += (len - bytes.len()) as u64;
    }
}

fn unsigned_refused(lab: &Lab) -> anyhow::Result<()> {
    // iPXE, which nobody signed.
    let vm = lab.machine("unsigned", Firmware::SecureBoot).disk(DISK_LEN)?;
    plan(lab, &vm, &[])?;
    let mut machine = vm.start()?;
    machine.expect_any(&["Access Denied", "Security Violation"], 90)?;
    machine.power_off();
    let log = lab.dir().join("bootd.log");
    let is_it = |line: &str| line.contains("was given iPXE and was not heard again") && line.contains(&vm.mac);
    let said = || std::fs::read_to_string(&log).is_ok_and(|log| log.lines().any(is_it));
    crate::fleet::wait_for("the boot server's warning", said)?;
    lab.wait_for_state("unsigned", "waiting", 5).map(drop)
}

/// A sector behind an offset in which the image has something.
fn sector_in_use(lab: &Lab, offset: u64) -> anyhow::Result<u64> {
    let mut bytes = vec![0; 100 * MIB as usize];
    File::open(&lab.image)?.read_exact_at(&mut bytes, offset)?;
    let found = bytes.chunks_exact(512).position(|sector| sector.iter().any(|b| *b != 0));
    Ok(offset / 512 + found.context("the image is empty there")? as u64)
}

fn write_errors(lab: &Lab) -> anyhow::Result<()> {
    let mut vm = lab.machine("bad-disk", Firmware::Bios).disk(DISK_LEN)?;
    let bad = sector_in_use(lab, 60 * MIB)?;
    let rules = vm.disks[0].path.with_extension("rules");
    let rule = format!("[inject-error]\nevent = \"none\"\niotype = \"write\"\nerrno = \"5\"\nsector = \"{bad}\"\n");
    std::fs::write(&rules, rule)?;
    vm.disks[0].through = Some(format!("blkdebug:{}:{}", rules.display(), vm.disks[0].path.display()));
    plan(lab, &vm, &[])?;
    let mut machine = vm.start()?;
    let said = machine.expect_any(&["coe: STOPPED", "coe: installed"], 150)?;
    ensure!(said.contains("STOPPED"), "it says that it installed on a disk that does not write: {said}");
    println!("      {:24} {said}", vm.name);
    lab.wait_for_state("bad-disk", "stopped", 10)?;
    machine.power_off();
    ensure_unbootable(&vm)
}

/// What Debian does at its first start, and says: its name, its identity, the size of its root, its keys, its services.
const USER_DATA: &str = r#"#cloud-config
runcmd:
  - [sh, -c, 'echo "coe-debian: $(hostname) id $(cat /etc/machine-id) root $(df -k --output=size / | tail -n 1) keys $(ls /etc/ssh/ssh_host_*_key | wc -l) ssh $(systemctl is-active ssh) disk $(findmnt -n -o SOURCE /)" > /dev/ttyS0']
"#;

/// Wait until Debian is up, and check what it says of itself.
fn expect_debian(machine: &mut Vm, name: &str, root: &str) -> anyhow::Result<()> {
    let said = machine.expect("coe-debian: ", 300)?;
    let words: Vec<&str> = said.split_whitespace().collect();
    let behind = |word: &str| words.iter().position(|w| *w == word).and_then(|at| words.get(at + 1)).copied();
    ensure!(words.get(1) == Some(&name), "it is up under another name: {said}");
    ensure!(behind("id").is_some_and(|id| id.len() == 32), "it has no identity: {said}");
    let kib: u64 = behind("root").and_then(|n| n.parse().ok()).context("the root's size")?;
    ensure!(kib > 14_000_000, "its root did not grow: {said}");
    ensure!(behind("keys").is_some_and(|n| n != "0") && behind("ssh") == Some("active"), "it has no SSH: {said}");
    ensure!(behind("disk") == Some(root), "it is on another disk: {said}");
    Ok(())
}

fn debian_helps(lab: &Lab) -> anyhow::Result<()> {
    let _stashes = lab.own_stashes();
    let first = lab.machine("nvme", Firmware::Bios).disk_on(DiskKind::Nvme, 16 * DISK_LEN)?;
    let user_data = first.disks[0].path.with_extension("yaml");
    std::fs::write(&user_data, USER_DATA)?;
    let user_data = user_data.to_str().context("a path in UTF-8")?;
    plan_image(lab, &first, "debian:12", &["--stash", "256MiB", "--cloud-init", user_data])?;
    let mut helper = first.start()?;
    helper.expect("coe: installed; starting", 240)?;
    expect_debian(&mut helper, "nvme", "/dev/nvme0n1p3")?;
    lab.wait_for_state("nvme", "deployed", 120)?;
    println!(
        "      {:24} deployed, with its stash, {} s after power-on",
        first.name,
        helper.started.elapsed().as_secs()
    );
    lab.wait_until_up(5)?;
    // Four pieces of five are needed, one on each stash; one of the others dies, so the new one must give its own.
    let image = lab.image.with_file_name("micro-2.img");
    crate::coe_image::micro(&image, 20_000_000)?;
    lab.ctl(&[
        "publish",
        image.to_str().context("a path in UTF-8")?,
        "--name",
        "micro",
        "--tag",
        "2",
        "--data",
        "4",
        "--parity",
        "1",
    ])?;
    let next = lab.machine("next", Firmware::Bios).disk(DISK_LEN)?;
    plan_image(lab, &next, "micro:2", &[])?;
    lab.kill_stash(1);
    let mut machine = next.start()?;
    machine.expect("coe: installed; starting", 200)?;
    machine.power_off();
    helper.power_off();
    lab.bring_back_stash(1)
}

fn four_at_once(lab: &Lab) -> anyhow::Result<()> {
    let mut machines = Vec::new();
    for name in ["room-1", "room-2", "room-3", "room-4"] {
        let vm = lab.machine(name, Firmware::Bios).disk(DISK_LEN)?;
        plan(lab, &vm, &[])?;
        let machine = vm.start()?;
        machines.push((vm, machine));
    }
    for (vm, machine) in &mut machines {
        machine.expect(&format!("coe-micro: UP {} ", vm.name), 300)?;
    }
    let last = machines.iter().map(|(_, m)| m.started.elapsed().as_secs()).max().unwrap_or(0);
    println!("      {:24} all up from their disks {last} s after power-on", "four-at-once");
    for (vm, machine) in machines {
        machine.power_off();
        check_disk(lab, &vm.disks[0].path)?;
    }
    Ok(())
}
