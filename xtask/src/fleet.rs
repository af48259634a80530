//! One controller and some stashes as processes on loopback, each with a folder of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::shell;

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of stashes.
    pub stashes: usize,
    /// Size of each, as `--size` takes it.
    pub size: String,
    /// How often they report, milliseconds.
    pub heartbeat_ms: u32,
    /// Where all listen.
    pub address: Ipv4Addr,
}

impl Default for Plan {
    fn default() -> Self {
        Self { stashes: 8, size: "1GiB".into(), heartbeat_ms: 500, address: Ipv4Addr::LOCALHOST }
    }
}

/// A stash of the fleet.
pub struct Stash {
    /// Its folder.
    pub dir: PathBuf,
    /// Its id.
    pub node: String,
    child: Option<Child>,
}

/// A fleet; it ends when this is dropped.
pub struct Fleet {
    bin: PathBuf,
    dir: PathBuf,
    home: PathBuf,
    phrase: String,
    address: Ipv4Addr,
    controller: Option<Child>,
    /// The stashes.
    pub stashes: Vec<Stash>,
}

/// How long a process may take to come up, or a state to be reached.
const PATIENCE: Duration = Duration::from_secs(60);

/// Wait for a condition.
///
/// # Errors
/// If it does not come about in a minute.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > PATIENCE {
            bail!("waited a minute for {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A port that is free for TCP and UDP.
///
/// # Errors
/// If there is none.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port")
}

fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Fleet {
    /// Make an array in `dir` and start everything.
    ///
    /// # Errors
    /// If a program fails; what it logged is in `dir`.
    pub fn start(bin: &Path, dir: &Path, plan: &Plan) -> anyhow::Result<Self> {
        let mut fleet = Self {
            bin: bin.into(),
            dir: dir.into(),
            home: dir.join("home"),
            phrase: String::new(),
            address: plan.address,
            controller: None,
            stashes: Vec::new(),
        };
        fs::create_dir_all(dir)?;
        let listen = format!("{}:{}", plan.address, free_port()?);
        let heartbeat = plan.heartbeat_ms.to_string();
        let mut init = fleet.command("coe-controller");
        init.args(["init", "--json", "--listen", &listen, "--heartbeat-ms", &heartbeat, "--dir"]);
        let made: Value = serde_json::from_str(&shell::output(init.arg(fleet.controller_dir()))?)?;
        fleet.phrase = made["phrase"].as_str().context("the recovery kit's phrase")?.into();
        fleet.start_controller()?;
        for _ in 0..plan.stashes {
            fleet.add_stash(&plan.size)?;
        }
        fleet.wait_until_up(plan.stashes)?;
        Ok(fleet)
    }

    /// A program of the product, with this fleet's credentials.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.env("COE_HOME", &self.home).env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command
    }

    /// Phrase of the recovery kit, which lies in the controller's folder.
    #[must_use]
    pub fn phrase(&self) -> &str {
        &self.phrase
    }

    /// Be another admin from now on.
    pub fn use_home(&mut self, home: &Path) {
        self.home = home.into();
    }

    /// Where everything lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The controller's folder.
    #[must_use]
    pub fn controller_dir(&self) -> PathBuf {
        self.dir.join("controller")
    }

    /// The folder of its mass storage.
    #[must_use]
    pub fn mass_storage_dir(&self) -> PathBuf {
        self.controller_dir().join("mass-storage")
    }

    fn spawn(&self, program: &str, dir: &Path, log: &str) -> anyhow::Result<Child> {
        let log = File::options().create(true).append(true).open(self.dir.join(log))?;
        let mut command = self.command(program);
        command.args(["serve", "--dir"]).arg(dir).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("start {program}"))
    }

    /// Start the controller, and wait until it answers.
    ///
    /// # Errors
    /// If it does not; its log says why.
    pub fn start_controller(&mut self) -> anyhow::Result<()> {
        self.controller = Some(self.spawn("coe-controller", &self.controller_dir(), "controller.log")?);
        wait_for("the controller", || self.ctl(&["status"]).is_ok())
    }

    /// Where the controller listens, as its folder says.
    ///
    /// # Errors
    /// If it says nothing.
    pub fn controller_listens(&self) -> anyhow::Result<String> {
        let settings: Value = serde_json::from_slice(&fs::read(self.controller_dir().join("settings.json"))?)?;
        Ok(settings["listen"].as_str().context("where the controller listens")?.into())
    }

    /// SIGKILL the controller, and delete its folder. The answer is a copy of its recovery kit.
    ///
    /// # Errors
    /// If there was none, or the folder cannot be deleted.
    pub fn lose_controller(&mut self) -> anyhow::Result<PathBuf> {
        let kit = self.dir.join("kept-recovery-kit.age");
        fs::copy(self.controller_dir().join("recovery-kit.age"), &kit).context("keep the recovery kit")?;
        self.kill_controller();
        fs::remove_dir_all(self.controller_dir())?;
        Ok(kit)
    }

    /// Rebuild a controller from one stash's address, with another admin; it is not started.
    ///
    /// # Errors
    /// If that fails; with what it says.
    pub fn recover_controller(&mut self, kit: &Path, listen: &str, more: &[&str]) -> anyhow::Result<Value> {
        let phrase = self.dir.join("phrase");
        fs::write(&phrase, &self.phrase)?;
        self.home = self.dir.join("new-admin");
        let mut recover = self.command("coe-controller");
        recover.args(["recover", "--json", "--listen", listen, "--from", &self.stash_address(0)?, "--kit"]).arg(kit);
        recover.arg("--phrase-file").arg(phrase).args(more).arg("--dir").arg(self.controller_dir());
        Ok(serde_json::from_str(&shell::output(&mut recover)?)?)
    }

    /// SIGKILL the controller.
    pub fn kill_controller(&mut self) {
        kill(&mut self.controller);
    }

    /// Process ids of all that run: controller first.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.controller.iter().chain(self.stashes.iter().filter_map(|s| s.child.as_ref())).map(Child::id).collect()
    }

    /// Join and start one more stash.
    ///
    /// # Errors
    /// If it does not join.
    pub fn add_stash(&mut self, size: &str) -> anyhow::Result<()> {
        let number = self.stashes.len();
        let dir = self.dir.join(format!("stash-{number}"));
        let ticket = self.ticket(&[])?;
        let mut join = self.command("coe-stash");
        join.args([
            "join",
            &ticket,
            "--json",
            "--size",
            size,
            "--min-free",
            "1MiB",
            "--listen",
            &format!("{}:0", self.address),
            "--dir",
        ]);
        let joined: Value = serde_json::from_str(&shell::output(join.arg(&dir))?)?;
        let node = joined["node"].as_str().context("a node")?.to_string();
        self.stashes.push(Stash { dir, node, child: None });
        self.start_stash(number)
    }

    /// Start a stash again.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_stash(&mut self, number: usize) -> anyhow::Result<()> {
        let child = self.spawn("coe-stash", &self.stashes[number].dir, &format!("stash-{number}.log"))?;
        self.stashes[number].child = Some(child);
        Ok(())
    }

    /// SIGKILL a stash.
    pub fn kill_stash(&mut self, number: usize) {
        kill(&mut self.stashes[number].child);
    }

    /// `coe-stash status` of a stash.
    ///
    /// # Errors
    /// If it fails; with what it says.
    pub fn stash_status(&self, number: usize) -> anyhow::Result<Value> {
        let mut status = self.command("coe-stash");
        let text = shell::output(status.args(["status", "--json", "--dir"]).arg(&self.stashes[number].dir))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Wait until every stash has the controller's newest directory.
    ///
    /// # Errors
    /// If one does not in a minute.
    pub fn wait_until_told(&self) -> anyhow::Result<()> {
        let epoch = self.ctl(&["status"])?["epoch"].as_u64();
        let has = |number| self.stash_status(number).is_ok_and(|status| status["epoch"].as_u64() >= epoch);
        wait_for("the newest directory at every stash", || (0..self.stashes.len()).all(has))
    }

    /// The same of every boot server that joined.
    ///
    /// # Errors
    /// If one does not in a minute.
    pub fn wait_until_boot_servers_are_told(&self) -> anyhow::Result<()> {
        let epoch = self.ctl(&["status"])?["epoch"].as_u64();
        let boot_servers = || self.ctl(&["boot", "servers"]).ok()?.as_array().cloned();
        let have = |servers: Vec<Value>| servers.iter().all(|server| server["epoch"].as_u64() >= epoch);
        wait_for("the newest directory at every boot server", || boot_servers().is_some_and(have))
    }

    /// Know a machine by its serial number, and approve it.
    ///
    /// # Errors
    /// If the controller refuses.
    pub fn approve_host(&self, name: &str, serial: &str) -> anyhow::Result<()> {
        let list = self.dir.join("hosts.csv");
        fs::write(&list, format!("name,serial\n{name},{serial}\n"))?;
        self.ctl(&["host", "import", list.to_str().context("a path in UTF-8")?]).map(drop)
    }

    /// Where a stash listens, as its log said last.
    ///
    /// # Errors
    /// If it has not said so yet.
    pub fn stash_address(&self, number: usize) -> anyhow::Result<String> {
        let log = fs::read_to_string(self.dir.join(format!("stash-{number}.log")))?;
        let said = log.rsplit_once("listen=").and_then(|(_, rest)| rest.split_whitespace().next());
        Ok(said.context("a stash that has not started yet")?.to_string())
    }

    /// Number of stashes that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.stashes.iter().filter(|s| s.child.is_some()).count()
    }

    /// Wait until the controller has heard so many stashes.
    ///
    /// # Errors
    /// If it does not in a minute.
    pub fn wait_until_up(&self, count: usize) -> anyhow::Result<()> {
        wait_for(&format!("{count} stashes"), || self.ctl(&["status"]).is_ok_and(|s| s["stashes_up"] == count))
    }

    /// Where the controller last heard a stash.
    fn address(&self, number: usize) -> Option<Value> {
        let nodes = self.ctl(&["nodes"]).ok()?;
        let mut nodes = nodes.as_array()?.iter();
        nodes.find(|n| n["node"] == self.stashes[number].node).map(|n| n["addresses"].clone())
    }

    /// Start a stash again, and wait until the controller knows its new port.
    ///
    /// # Errors
    /// If it does not in a minute.
    pub fn bring_back_stash(&mut self, number: usize) -> anyhow::Result<()> {
        let before = self.address(number);
        self.start_stash(number)?;
        wait_for(&format!("stash {number} to be back"), || self.address(number) != before)
    }

    /// `coe-ctl`, with `--json`.
    ///
    /// # Errors
    /// If it fails; with what it says.
    pub fn ctl(&self, args: &[&str]) -> anyhow::Result<Value> {
        let text = shell::output(self.command("coe-ctl").args(args).arg("--json"))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A ticket; `["--installer"]`, `["--admin"]`, or for a stash.
    ///
    /// # Errors
    /// If the controller refuses.
    pub fn ticket(&self, what: &[&str]) -> anyhow::Result<String> {
        let answer = self.ctl(&[&["token", "create"], what].concat())?;
        Ok(answer["ticket"].as_str().context("a ticket")?.to_string())
    }

    /// Publish a file; what `coe-ctl publish` tells.
    ///
    /// # Errors
    /// If it fails; with what it says.
    pub fn publish(&self, image: &Path, args: &[&str]) -> anyhow::Result<Value> {
        let image = image.to_str().context("a path in UTF-8")?;
        self.ctl(&[&["publish", image], args].concat())
    }

    /// Install an image on a fresh file of `len` bytes; what `coe-installer` tells.
    ///
    /// # Errors
    /// If it fails; with what it says.
    pub fn install(&self, image: &str, disk: &Path, len: u64) -> anyhow::Result<Value> {
        crate::sample::empty(disk, len)?;
        let mut command = self.command("coe-installer");
        command.args(["--json", "--image", image, "--disk"]).arg(disk);
        Ok(serde_json::from_str(&shell::output(&mut command)?)?)
    }

    /// Leave everything running.
    pub fn keep(mut self) {
        self.controller = None;
        self.stashes.clear();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        kill(&mut self.controller);
        for stash in &mut self.stashes {
            kill(&mut stash.child);
        }
    }
}
