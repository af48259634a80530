//! The command line of `coe-bootd`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::identity::Role;
use protocol::io::credentials::{Credentials, create_private_dir, file_of};
use protocol::io::program::Log;
use protocol::machine::{Facts, Firmware, Mac};
use protocol::ticket::Ticket;

use crate::boot::dhcp::{Asked, Client};
use crate::io::bootd::{Bootd, Settings};

/// Answer machines that boot from the network
#[derive(Parser)]
#[command(
    name = "coe-bootd",
    version,
    after_help = "Example:\n  coe-bootd join coe1abc…\n  coe-bootd serve --interface eth0"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Join(Join),
    Serve(Serve),
}

#[derive(Args)]
struct Which {
    /// Folder of the boot server
    #[arg(long, env = "COE_BOOTD_DIR", default_value = "/var/lib/coe-bootd", value_name = "DIR")]
    dir: PathBuf,
}

/// Join an array with a ticket
#[derive(Args)]
#[command(after_help = "Example:\n  coe-bootd join coe1abc…\n\nGet a ticket with `coe-ctl token create --boot`.")]
struct Join {
    /// The ticket
    ticket: Ticket,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// Firmware, as --dry-run names it.
#[derive(Clone, Copy, ValueEnum)]
enum FirmwareArg {
    Bios,
    Uefi,
    UefiArm64,
    UefiHttp,
    Ipxe,
}

/// Serve until stopped
///
/// Beside any DHCP server, only the boot part is answered (proxyDHCP), and only to machines that have something to do. With
/// --dhcp-range it is the DHCP server of an isolated network.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  coe-bootd serve --interface eth0\n  coe-bootd serve --interface eth1 --dhcp-range 10.0.0.100-10.0.0.200\n  coe-bootd serve --dry-run 52:54:00:12:34:56 --firmware uefi"
)]
struct Serve {
    /// Settings as JSON: interface, dhcp_range, router, dns, uefi, http_port, admit_port [default: settings.json in the folder, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Network interface to serve
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Be the only DHCP server, and lend these addresses
    #[arg(long, value_name = "FIRST-LAST")]
    dhcp_range: Option<String>,
    /// What UEFI machines load: auto, shim, uki or ipxe
    #[arg(long, value_name = "LOADER")]
    uefi: Option<String>,
    /// TCP port for boot files
    #[arg(long, value_name = "PORT")]
    http_port: Option<u16>,
    /// UDP port at which installers are admitted while the controller is away
    #[arg(long, value_name = "PORT")]
    admit_port: Option<u16>,
    /// Serve nobody, but say what this machine would be answered
    #[arg(long, value_name = "MAC")]
    dry_run: Option<Mac>,
    /// The firmware of --dry-run's machine
    #[arg(long, value_enum, default_value = "bios", requires = "dry_run")]
    firmware: FirmwareArg,
    /// Log one JSON object a line; --dry-run prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

impl Cli {
    /// How the program logs.
    #[must_use]
    pub fn log(&self) -> Log {
        Log::json(matches!(&self.command, Command::Serve(serve) if serve.json))
    }

    /// Carry out what was asked.
    ///
    /// # Errors
    /// What went wrong, for a person.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Join(args) => args.run().await,
            Command::Serve(args) => args.run().await,
        }
    }
}

impl Join {
    async fn run(self) -> anyhow::Result<()> {
        let dir = &self.which.dir;
        let file = file_of(dir, Role::Boot);
        if file.exists() {
            bail!("{} has joined an array already: serve it with `coe-bootd serve`", dir.display());
        }
        if self.ticket.role != Role::Boot {
            bail!("this ticket is for role {}: create one with `coe-ctl token create --boot`", self.ticket.role);
        }
        // A ticket works once: whatever can fail here fails before it is used.
        create_private_dir(dir).with_context(|| format!("make {}", dir.display()))?;
        let member = Credentials::join(&self.ticket).await?;
        member.save(&file)?;
        let node = member.identity.node;
        if self.json {
            println!("{}", serde_json::json!({ "node": node.to_string(), "dir": dir }));
        } else {
            println!("joined as boot server {node}; now run `coe-bootd serve`");
        }
        Ok(())
    }
}

impl Serve {
    fn settings(&self) -> anyhow::Result<Settings> {
        let default = self.which.dir.join("settings.json");
        let file = self.config.clone().or_else(|| default.exists().then_some(default));
        let mut settings = match file {
            Some(file) => {
                let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
                serde_json::from_str(&text).with_context(|| format!("understand {}", file.display()))?
            }
            None => Settings::default(),
        };
        settings.interface = self.interface.clone().or(settings.interface);
        settings.dhcp_range = self.dhcp_range.clone().or(settings.dhcp_range);
        settings.uefi = self.uefi.clone().or(settings.uefi);
        settings.http_port = self.http_port.or(settings.http_port);
        settings.admit_port = self.admit_port.or(settings.admit_port);
        Ok(settings)
    }

    async fn run(self) -> anyhow::Result<()> {
        let bootd = Bootd::new(self.which.dir.clone(), self.settings()?)?;
        let Some(mac) = self.dry_run else { return bootd.serve().await };
        let (client, firmware) = match self.firmware {
            FirmwareArg::Bios => (Client::Bios, Firmware::Bios),
            FirmwareArg::Uefi => (Client::Uefi64, Firmware::Uefi),
            FirmwareArg::UefiArm64 => (Client::UefiArm64, Firmware::Uefi),
            FirmwareArg::UefiHttp => (Client::Http64, Firmware::Uefi),
            FirmwareArg::Ipxe => (Client::Ipxe, Firmware::Bios),
        };
        let facts = Facts { macs: vec![mac], firmware: Some(firmware), ..Facts::default() };
        let answer = bootd.dry_run(&Asked { client, facts }).await?;
        if self.json {
            println!("{}", serde_json::json!({ "mac": mac.to_string(), "answer": answer }));
        } else {
            println!("{answer}");
        }
        Ok(())
    }
}
