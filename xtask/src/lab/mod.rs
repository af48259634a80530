//! `cargo xtask lab`: a network of namespaces with somebody else's DHCP server, the product's programs, and virtual machines that
//! boot from it.

mod file_systems;
mod keys;
pub mod network;
mod scenarios;
mod vm;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum as _};

use crate::fleet::{Fleet, Plan};
use crate::{coe_image, netboot, setup, shell};

use scenarios::Scenario;
pub use vm::{DiskKind, Firmware, Vm, VmPlan};

/// (program, package) for the lab.
pub const NEEDS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("ip", "iproute2"),
    ("dnsmasq", "dnsmasq-base"),
    ("tcpdump", "tcpdump"),
    ("openssl", "openssl"),
    ("python3", "python3-venv"),
];
/// (file, package) that are no programs.
pub const NEEDS_FILES: &[(&str, &str)] =
    &[("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"), ("/usr/lib/ipxe/qemu/efi-virtio.rom", "ipxe-qemu")];
/// Scenarios that run at the same time, where they share a network without being in each other's way.
const TOGETHER: usize = 3;

/// Virtual machines that boot from a network and install themselves
#[derive(Subcommand)]
pub enum LabCommand {
    /// Run scenarios
    Test(Test),
    /// Start machines, and leave them to you
    Up(Up),
}

/// Run scenarios, each from power-on to the installed system's own word
#[derive(Args)]
pub struct Test {
    /// Names of scenarios [default: all]
    scenarios: Vec<String>,
    /// List them
    #[arg(long)]
    list: bool,
    /// Work in this folder, and keep it
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Start the network, an array, a boot server, and some machines with empty disks; say how to watch; stop when interrupted
#[derive(Args)]
pub struct Up {
    /// Machines
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=4))]
    machines: u8,
    /// Their firmware
    #[arg(long, value_enum, default_value = "bios")]
    firmware: Firmware,
    /// Work in this folder
    #[arg(long, value_name = "DIR", default_value = "/tmp/coe-lab")]
    dir: PathBuf,
}

/// Which DHCP server the machines find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dhcp {
    /// Somebody else's; the boot server is a proxy.
    Foreign,
    /// The boot server's own.
    Own,
}

/// How the boot server is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Who gives addresses.
    pub dhcp: Dhcp,
    /// What UEFI loads, as `--uefi` takes it.
    pub uefi: &'static str,
}

/// What scenarios run in.
pub struct Lab {
    dir: PathBuf,
    bin: PathBuf,
    fleet: RwLock<Fleet>,
    bootd: Mutex<Option<(Setup, Child)>>,
    machines: AtomicU8,
    stashes: Mutex<()>,
    /// The image that is installed, as a file.
    pub image: PathBuf,
}

impl Lab {
    /// An array, and a boot server with this boot set.
    ///
    /// # Errors
    /// If a program fails.
    pub fn start(dir: &Path, set: &Path) -> anyhow::Result<Self> {
        let bin = shell::target_dir().join("release");
        let plan = Plan { stashes: 4, size: "2GiB".into(), address: network::ADDRESS, ..Plan::default() };
        let fleet = Fleet::start(&bin, &dir.join("array"), &plan)?;
        let image = shell::target_dir().join("micro.img");
        fleet.ctl(&["boot", "publish", set.to_str().context("a path in UTF-8")?])?;
        let ticket = fleet.ticket(&["--boot"])?;
        let mut join = fleet.command("coe-bootd");
        shell::output(join.args(["join", &ticket, "--dir"]).arg(dir.join("bootd")))?;
        let machines = AtomicU8::new(0);
        Ok(Self {
            dir: dir.into(),
            bin,
            fleet: RwLock::new(fleet),
            bootd: Mutex::default(),
            machines,
            stashes: Mutex::default(),
            image,
        })
    }

    /// The same, with all images that scenarios install.
    fn with_images(dir: &Path) -> anyhow::Result<Self> {
        let lab = Self::start(dir, &shell::target_dir().join("boot-set"))?;
        let large = shell::target_dir().join("micro-large.img");
        for (image, name, tag) in [(&lab.image, "micro", "1"), (&large, "micro", "large"), (&debian(), "debian", "12")]
        {
            lab.fleet().publish(image, &["--name", name, "--tag", tag])?;
        }
        for image in file_systems::images(dir)? {
            let name = image.file_stem().and_then(|name| name.to_str()).context("a name in UTF-8")?;
            lab.fleet().publish(&image, &["--name", name, "--tag", "1"])?;
        }
        Ok(lab)
    }

    /// Where everything of this lab lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn fleet(&self) -> RwLockReadGuard<'_, Fleet> {
        self.fleet.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn fleet_mut(&self) -> RwLockWriteGuard<'_, Fleet> {
        self.fleet.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// `coe-ctl`, with `--json`.
    ///
    /// # Errors
    /// If it fails; with what it says.
    pub fn ctl(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        self.fleet().ctl(args)
    }

    /// Have the stashes to oneself, as long as the answer lives: others kill none meanwhile.
    pub fn own_stashes(&self) -> MutexGuard<'_, ()> {
        self.stashes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SIGKILL the controller and delete its folder, once every stash knows all that it said. The answer is its recovery kit, and where it
    /// listened.
    ///
    /// # Errors
    /// If a stash does not hear of it.
    pub fn lose_controller(&self) -> anyhow::Result<(PathBuf, String)> {
        self.fleet().wait_until_told()?;
        self.fleet().wait_until_boot_servers_are_told()?;
        let listens = self.fleet().controller_listens()?;
        Ok((self.fleet_mut().lose_controller()?, listens))
    }

    /// Have a new controller where the old one was, from the clients alone.
    ///
    /// # Errors
    /// If it is not to be had.
    pub fn recover_controller(&self, (kit, listen): &(PathBuf, String)) -> anyhow::Result<()> {
        let mut fleet = self.fleet_mut();
        fleet.recover_controller(kit, listen, &[])?;
        fleet.start_controller()
    }

    /// SIGKILL a stash of the array.
    pub fn kill_stash(&self, number: usize) {
        self.fleet_mut().kill_stash(number);
    }

    /// Start a stash again.
    ///
    /// # Errors
    /// If it does not come back.
    pub fn bring_back_stash(&self, number: usize) -> anyhow::Result<()> {
        self.fleet_mut().bring_back_stash(number)
    }

    /// Wait until the controller has heard so many stashes.
    ///
    /// # Errors
    /// If it does not in a minute.
    pub fn wait_until_up(&self, count: usize) -> anyhow::Result<()> {
        self.fleet().wait_until_up(count)
    }

    /// Have this DHCP server on the network, and the boot server set to it.
    ///
    /// # Errors
    /// If the boot server does not start.
    pub fn serve(&self, setup: Setup) -> anyhow::Result<()> {
        if self.bootd().as_ref().is_some_and(|(now, _)| *now == setup) {
            return Ok(());
        }
        self.stop_bootd();
        network::foreign_dhcp(setup.dhcp == Dhcp::Foreign)?;
        let path = self.dir.join("bootd.log");
        let log = File::options().create(true).append(true).open(&path)?;
        let before = fs::metadata(&path)?.len();
        let mut command = Command::new(self.bin.join("coe-bootd"));
        command.args(["serve", "--interface", network::BRIDGE, "--uefi", setup.uefi, "--dir"]);
        command.arg(self.dir.join("bootd"));
        if setup.dhcp == Dhcp::Own {
            command.args(["--dhcp-range", network::OWN_RANGE]);
        }
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("start coe-bootd")?;
        *self.bootd() = Some((setup, child));
        let said =
            || fs::read(&path).map(|b| String::from_utf8_lossy(&b[before as usize..]).into_owned()).unwrap_or_default();
        crate::fleet::wait_for("the boot set", || said().contains("boot set is here"))
    }

    fn bootd(&self) -> MutexGuard<'_, Option<(Setup, Child)>> {
        self.bootd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SIGKILL the boot server; the answer is how it was set.
    pub fn stop_bootd(&self) -> Option<Setup> {
        let (setup, mut child) = self.bootd().take()?;
        let _ = child.kill();
        let _ = child.wait();
        Some(setup)
    }

    /// A new machine's plan, with a number of its own.
    pub fn machine(&self, name: &str, firmware: Firmware) -> VmPlan {
        let number = self.machines.fetch_add(1, Relaxed) + 1;
        VmPlan::new(name, number, firmware, &self.dir)
    }

    /// Wait until a deployment of a machine is in a state; the answer is why it stopped, if it did.
    ///
    /// # Errors
    /// If it does not come to that in time.
    pub fn wait_for_state(&self, host: &str, state: &str, seconds: u64) -> anyhow::Result<String> {
        let start = Instant::now();
        loop {
            let all = self.ctl(&["deploy", "list"])?;
            let mine = all.as_array().into_iter().flatten().rev().find(|d| d["host"] == host);
            let mine = mine.with_context(|| format!("{host} has no deployment"))?;
            let now = mine["state"].as_str().unwrap_or_default();
            let why = mine["why"].as_str().unwrap_or_default().to_string();
            if now == state {
                return Ok(why);
            }
            if start.elapsed() > Duration::from_secs(seconds) || (now == "stopped" && state != "stopped") {
                bail!("{host} is {now} after {} s, not {state}. {why}", start.elapsed().as_secs());
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop_bootd();
    }
}

/// Debian's image; made once, because that takes two minutes.
fn debian() -> PathBuf {
    shell::target_dir().join("lab/debian.img")
}

/// Build whatever the scenarios need.
fn prepare() -> anyhow::Result<()> {
    setup::need(NEEDS)?;
    setup::need(file_systems::NEEDS)?;
    setup::need_files(NEEDS_FILES)?;
    let set = shell::target_dir().join("boot-set");
    netboot::build("amd64", false, Some(&keys::make()?), &set)?;
    coe_image::micro(&shell::target_dir().join("micro.img"), 0)?;
    coe_image::micro(&shell::target_dir().join("micro-large.img"), 60_000_000)?;
    let (recipe, made) = (debian().with_extension("recipe"), fs::read_to_string(debian().with_extension("recipe")));
    if !debian().exists() || made.ok().is_none_or(|made| made != coe_image::DEBIAN_RECIPE) {
        coe_image::debian("cloud-amd64", &debian())?;
        fs::write(recipe, coe_image::DEBIAN_RECIPE)?;
    }
    Ok(())
}

/// All scenarios, as a part of all tests. A machine that permits no lab says so.
///
/// # Errors
/// If a scenario fails.
pub fn check() -> anyhow::Result<()> {
    if !setup::is_root() {
        println!("NOTE: not root, so no virtual machines were booted: `sudo cargo xtask lab test`");
        return Ok(());
    }
    setup::need(NEEDS)?;
    if !network::is_possible() {
        println!("NOTE: network namespaces or taps are not permitted here, so no virtual machines were booted");
        return Ok(());
    }
    Test { scenarios: Vec::new(), list: false, dir: None }.run()
}

/// Run `lab` with these arguments in the network, with whatever the scenarios need.
fn inside(args: &[OsString]) -> anyhow::Result<()> {
    network::require_root()?;
    prepare()?;
    network::run_inside(&[&["lab".into()], args].concat())
}

impl Up {
    fn run(&self) -> anyhow::Result<()> {
        if !network::is_inside() {
            fs::create_dir_all(&self.dir)?;
            let firmware = self.firmware.to_possible_value().context("a firmware")?;
            let (machines, dir) = (self.machines.to_string(), fs::canonicalize(&self.dir)?);
            let args = ["up", "--machines", &machines, "--firmware", firmware.get_name(), "--dir"];
            let mut args: Vec<OsString> = args.iter().map(OsString::from).collect();
            args.push(dir.into_os_string());
            return inside(&args);
        }
        let _ = fs::remove_dir_all(&self.dir);
        fs::create_dir_all(&self.dir)?;
        let lab = Lab::with_images(&self.dir)?;
        lab.serve(match self.firmware {
            Firmware::SecureBoot => Setup { dhcp: Dhcp::Own, uefi: "shim" },
            Firmware::OwnKey => Setup { dhcp: Dhcp::Foreign, uefi: "uki" },
            _ => Setup { dhcp: Dhcp::Foreign, uefi: "ipxe" },
        })?;
        let mut plans = Vec::new();
        for number in 1..=self.machines {
            plans.push(lab.machine(&format!("pc-{number}"), self.firmware).disk(scenarios::DISK_LEN)?);
        }
        let (dir, bin) = (self.dir.display(), lab.bin.display());
        println!("\nIn another terminal, as root:");
        println!("  export COE_HOME={dir}/array/home PATH={bin}:$PATH");
        println!("  alias lab='ip netns exec {}'", network::NAMESPACE);
        println!(
            "  lab coe-ctl host list; lab coe-ctl host approve host-1; lab coe-ctl deploy micro:1 --host host-1 --hostname lab-01"
        );
        println!("  lab coe-ctl deploy watch; tail -f {dir}/bootd.log; lab tcpdump -i {}", network::BRIDGE);
        plans.iter().for_each(|vm| println!("  tail -f {dir}/{}.serial     # its console", vm.name));
        println!("A machine with nothing to do is started again every minute. Ctrl-C ends everything.");
        loop {
            let running: Vec<Vm> = plans.iter().map(VmPlan::start).collect::<anyhow::Result<_>>()?;
            let start = Instant::now();
            // Whoever installs is left alone; the others have found an empty disk by now.
            while start.elapsed() < Duration::from_secs(60) || running.iter().any(|vm| vm.console().contains("coe: ")) {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

impl LabCommand {
    /// Run it.
    ///
    /// # Errors
    /// If a scenario fails, or the lab cannot be built.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Test(test) => test.run(),
            Self::Up(up) => up.run(),
        }
    }
}

impl Test {
    /// Run it.
    ///
    /// # Errors
    /// If a scenario fails, or the lab cannot be built.
    pub fn run(&self) -> anyhow::Result<()> {
        if self.list {
            scenarios::ALL.iter().for_each(|s| println!("{:24} {}", s.name, s.what));
            return Ok(());
        }
        if let Some(unknown) = self.scenarios.iter().find(|n| !scenarios::ALL.iter().any(|s| s.name == **n)) {
            bail!("there is no scenario {unknown}: `cargo xtask lab test --list`");
        }
        if network::is_inside() {
            return self.run_inside();
        }
        let mut args = vec![OsString::from("test")];
        args.extend(self.scenarios.iter().map(OsString::from));
        if let Some(dir) = &self.dir {
            fs::create_dir_all(dir)?;
            args.extend(["--dir".into(), fs::canonicalize(dir)?.into_os_string()]);
        }
        inside(&args)
    }

    fn run_inside(&self) -> anyhow::Result<()> {
        let temporary = tempfile::Builder::new().prefix("coe-lab-").tempdir()?;
        let dir = self.dir.clone().unwrap_or_else(|| temporary.path().to_path_buf());
        let result = self.run_all(&dir);
        if result.is_err() && self.dir.is_none() {
            println!("consoles, logs and packets are kept in {}", temporary.keep().display());
        }
        result
    }

    fn run_all(&self, dir: &Path) -> anyhow::Result<()> {
        let _capture = network::capture(&dir.join("network.pcap"))?;
        let start = Instant::now();
        let lab = Lab::with_images(dir)?;
        println!("array and boot set: {:.0} s", start.elapsed().as_secs_f64());
        let chosen =
            scenarios::ALL.iter().filter(|s| self.scenarios.is_empty() || self.scenarios.iter().any(|n| n == s.name));
        let mut waiting: Vec<&Scenario> = chosen.collect();
        let mut failed = Vec::new();
        while let Some(first) = waiting.first() {
            let setup = first.setup;
            let (mut now, later): (Vec<&Scenario>, Vec<&Scenario>) =
                waiting.into_iter().partition(|s| s.setup == setup);
            waiting = later;
            lab.serve(setup)?;
            let alone: Vec<&Scenario> = now.extract_if(.., |s| s.is_alone).collect();
            failed.extend(run_together(&lab, now));
            failed.extend(alone.into_iter().filter(|s| !s.run_and_say(&lab)).map(|s| s.name));
        }
        println!("lab: {:.1} minutes", start.elapsed().as_secs_f64() / 60.0);
        if failed.is_empty() { Ok(()) } else { bail!("{} failed", failed.join(", ")) }
    }
}

/// Run scenarios, some at a time; the answer is who failed. Machines wait for firmware and timeouts much of their time.
fn run_together(lab: &Lab, scenarios: Vec<&'static Scenario>) -> Vec<&'static str> {
    let (queue, failed) = (Mutex::new(scenarios.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..TOGETHER {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(scenario) = next else { return };
                    if !scenario.run_and_say(lab) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(scenario.name);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}
