//! The lab's network: one namespace with a bridge for machines and services, one with somebody else's DHCP server.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

use crate::setup::{self, tool};
use crate::shell;

/// Where machines and services are.
pub const NAMESPACE: &str = "coe-lab";
/// The host of somebody else's DHCP server, at the end of a cable.
pub const OTHER_HOST: &str = "coe-lab-dhcp";
/// The network all are on.
pub const BRIDGE: &str = "br0";
/// The host of controller, boot server and stashes.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// What the boot server lends when it is the DHCP server.
pub const OWN_RANGE: &str = "10.77.0.50-10.77.0.90";
/// Beginning of the Ethernet addresses of machines to whom the other DHCP server names the boot server as next-server.
pub const TOLD_NEXT_SERVER: &str = "52:54:00:78";
/// This end of the cable to the other host.
pub const CABLE: &str = "to-dhcp";

fn ip(args: &str) -> anyhow::Result<()> {
    shell::output(tool("ip").args(args.split_whitespace())).map(drop)
}

fn kill_all(namespace: &str) {
    let pids = shell::output(tool("ip").args(["netns", "pids", namespace])).unwrap_or_default();
    for pid in pids.split_whitespace() {
        let _ = Command::new("kill").args(["-9", pid]).status();
    }
}

fn remove_all() {
    for namespace in [NAMESPACE, OTHER_HOST] {
        kill_all(namespace);
        let _ = ip(&format!("netns del {namespace}"));
    }
}

/// Whether this machine permits a lab: namespaces, and network cards for virtual machines.
#[must_use]
pub fn is_possible() -> bool {
    const PROBE: &str = "coe-lab-probe";
    let _ = ip(&format!("netns del {PROBE}"));
    let made = ip(&format!("netns add {PROBE}")).and_then(|()| ip(&format!("-n {PROBE} tuntap add tap0 mode tap")));
    let _ = ip(&format!("netns del {PROBE}"));
    made.is_ok()
}

/// Says to the process inside the namespace that it is there.
const INSIDE: &str = "COE_LAB_INSIDE";

/// Whether this process runs in the network.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Say so at once where namespaces cannot be made.
///
/// # Errors
/// If this is not root.
pub fn require_root() -> anyhow::Result<()> {
    if !setup::is_root() {
        bail!("this makes network namespaces, and needs root for that");
    }
    Ok(())
}

/// Build the network, and run this very program in it with these arguments.
///
/// # Errors
/// If this is not root, or the program in there fails.
pub fn run_inside(args: &[OsString]) -> anyhow::Result<()> {
    require_root()?;
    let _network = Network::build()?;
    // By number: cargo may have put another program in this one's place since it was started.
    let this = format!("/proc/{}/exe", std::process::id());
    let mut command = tool("ip");
    command.args(["netns", "exec", NAMESPACE, &this]).args(args);
    shell::run(command.env(INSIDE, "1"))
}

/// The network; it goes when this is dropped, with everything that runs in it.
pub struct Network {
    dhcp: Child,
}

impl Network {
    /// Build it, after removing what an interrupted run left.
    ///
    /// # Errors
    /// If namespaces are not permitted here.
    fn build() -> anyhow::Result<Self> {
        remove_all();
        for line in [
            &format!("netns add {NAMESPACE}"),
            &format!("netns add {OTHER_HOST}"),
            &format!("-n {NAMESPACE} link set lo up"),
            &format!("-n {NAMESPACE} link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0 forward_delay 0"),
            &format!("-n {NAMESPACE} addr add {ADDRESS}/24 dev {BRIDGE}"),
            &format!("-n {NAMESPACE} link set {BRIDGE} up"),
            &format!("-n {NAMESPACE} link add {CABLE} type veth peer name eth0 netns {OTHER_HOST}"),
            &format!("-n {NAMESPACE} link set {CABLE} master {BRIDGE} up"),
            &format!("-n {OTHER_HOST} link set lo up"),
            &format!("-n {OTHER_HOST} addr add 10.77.0.2/24 dev eth0"),
            &format!("-n {OTHER_HOST} link set eth0 up"),
        ] {
            ip(line).context("build the lab's network")?;
        }
        let mut command = tool("ip");
        command.args([
            "netns",
            "exec",
            OTHER_HOST,
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
        ]);
        command.args([
            "--interface=eth0",
            "--bind-interfaces",
            "--dhcp-range=10.77.0.100,10.77.0.200,1h",
            "--dhcp-option=3",
        ]);
        // Some machines are told of the boot server as their next-server, as an admin can do it on any DHCP server.
        command.arg(format!("--dhcp-boot=tag:next,,,{ADDRESS}"));
        // dnsmasq may offer one address to two machines that ask in the same second, and then answers one of them only.
        for number in 1..50 {
            command.arg(format!("--dhcp-host=52:54:00:77:00:{number:02x},10.77.0.{}", 100 + number));
            command.arg(format!("--dhcp-host={TOLD_NEXT_SERVER}:00:{number:02x},set:next,10.77.0.{}", 150 + number));
        }
        command.args(["--dhcp-leasefile=/dev/null", "--dhcp-authoritative", "--pid-file=", "--user=root"]);
        let dhcp = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start dnsmasq")?;
        Ok(Self { dhcp })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.dhcp.kill();
        let _ = self.dhcp.wait();
        remove_all();
    }
}

/// Connect or cut the other DHCP server.
///
/// # Errors
/// If `ip` fails.
pub fn foreign_dhcp(is_there: bool) -> anyhow::Result<()> {
    ip(&format!("link set {CABLE} {}", if is_there { "up" } else { "down" }))
}

/// A network card's host side, on the bridge.
///
/// # Errors
/// If `ip` fails.
pub fn tap(name: &str) -> anyhow::Result<()> {
    let _ = ip(&format!("link del {name}"));
    ip(&format!("tuntap add {name} mode tap"))?;
    ip(&format!("link set {name} master {BRIDGE} up"))
}

/// Records what machines ask and are told while they boot, until it is dropped.
pub struct Capture(Child);

/// Record DHCP and the beginnings of TFTP.
///
/// # Errors
/// If tcpdump cannot be started.
pub fn capture(file: &Path) -> anyhow::Result<Capture> {
    let mut command = tool("tcpdump");
    command.args(["-q", "-U", "-i", BRIDGE, "-s", "600", "-Z", "root", "-w"]).arg(file);
    command.args([
        "udp port 67 or udp port 68 or udp port 69 or udp port 4011 or udp port 9 or (tcp port 7480 and tcp[tcpflags] & tcp-syn != 0)",
    ]);
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start tcpdump")?;
    Ok(Capture(child))
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
