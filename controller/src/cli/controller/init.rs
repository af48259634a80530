//! `coe-controller init`

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, value_parser};
use protocol::identity::Role;
use protocol::io::credentials::{default_home, file_of};

use super::Which;
use crate::io::folder::Settings;

/// Ten years.
const DAYS_MAX: u64 = 3650;

/// Make a new array: its authority, its keys, an empty catalog
///
/// Also makes the first admin's credentials, so that `coe-ctl` works for you at once.
#[derive(Args)]
#[command(after_help = "Example:\n  coe-controller init --name school --address controller.school.example:7400")]
pub struct Init {
    /// Name of the array, for certificates
    #[arg(long, default_value = "coe")]
    name: String,
    /// Where to listen: UDP for members, TCP for people
    #[arg(long, default_value = "0.0.0.0:7400", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where others find it, host:port; may be given several times [default: this machine's address]
    #[arg(long, value_name = "HOST:PORT")]
    address: Vec<String>,
    /// Folder of the mass storage
    #[arg(long, default_value = "mass-storage", value_name = "DIR")]
    mass_storage: PathBuf,
    /// Folder of the admin's credentials
    #[arg(long, env = "COE_HOME", default_value_os_t = default_home(), value_name = "DIR")]
    home: PathBuf,
    /// Where to write the recovery kit [default: recovery-kit.age in the controller's folder]
    #[arg(long, value_name = "FILE")]
    kit: Option<PathBuf>,
    /// How often stashes report, milliseconds
    #[arg(long, default_value_t = 5000, value_name = "MS", value_parser = value_parser!(u32).range(100..=60_000))]
    heartbeat_ms: u32,
    /// How long segments of an unfinished publication are kept
    #[arg(long, default_value_t = 24, value_name = "HOURS", value_parser = value_parser!(u64).range(0..=DAYS_MAX * 24))]
    keep_unfinished_hours: u64,
    /// How long a stash may be away before it is not expected back, and its pieces are made anew elsewhere
    #[arg(long, default_value_t = 14, value_name = "DAYS", value_parser = value_parser!(u64).range(1..=DAYS_MAX))]
    gone_after_days: u64,
    /// How long a fleet must have been of another size before images are cut anew for it
    #[arg(long, default_value_t = 7, value_name = "DAYS", value_parser = value_parser!(u64).range(0..=DAYS_MAX))]
    restripe_after_days: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// The address that others would use: the one packets leave from. Nothing is sent to find out.
fn own_address() -> IpAddr {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // TEST-NET-1 (RFC 5737); connecting a UDP socket only looks up the route.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    probe().unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// Where others find a controller: where its admin says, or at this machine's own address.
pub(super) fn addresses(listen: SocketAddr, said: &[String]) -> Vec<String> {
    if !said.is_empty() {
        return said.to_vec();
    }
    let ip = if listen.ip().is_unspecified() { own_address() } else { listen.ip() };
    vec![SocketAddr::new(ip, listen.port()).to_string()]
}

impl Init {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let admin_file = file_of(&self.home, Role::Admin);
        if admin_file.exists() {
            bail!("{} holds an admin's credentials already; choose another --home", admin_file.display());
        }
        let addresses = addresses(self.listen, &self.address);
        let settings = Settings {
            listen: self.listen,
            addresses: addresses.clone(),
            mass_storage: self.mass_storage,
            heartbeat_ms: self.heartbeat_ms,
            keep_unfinished_s: self.keep_unfinished_hours * 3600,
            gone_after_s: self.gone_after_days * 24 * 3600,
            restripe_after_s: self.restripe_after_days * 24 * 3600,
        };
        let folder = self.which.folder();
        let kit_file = self.kit.clone().unwrap_or_else(|| folder.path().join("recovery-kit.age"));
        if kit_file.exists() {
            bail!("{} exists already; choose another --kit", kit_file.display());
        }
        let (authority, kit) = folder.create(&self.name, &settings, &kit_file)?;
        authority.credentials(Role::Admin, addresses.clone())?.save(&admin_file)?;
        let array = authority.array();
        if self.json {
            let value = serde_json::json!({
                "array": array.to_string(), "dir": folder.path(), "addresses": addresses, "admin": admin_file,
                "kit": kit_file, "phrase": kit.phrase,
            });
            println!("{value}");
            return Ok(());
        }
        println!("array       {array}");
        println!("folder      {}   (authority.json is the array: back it up, keep it secret)", folder.path().display());
        println!("address     {}", addresses.join(", "));
        println!("admin       {}   (coe-ctl uses it)", admin_file.display());
        println!("recovery    {}", kit_file.display());
        println!("phrase      {}", kit.phrase);
        println!(
            "\nMove the recovery kit off this machine, and write its phrase down: it is not shown again. With both, a lost\n\
             controller is built again from the clients alone (`coe-controller recover`)."
        );
        println!("\nNext:\n  {}\n  coe-ctl token create        # a ticket for each stash", self.which.serve());
        Ok(())
    }
}
