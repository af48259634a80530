//! `coe-bootd`: answers machines that boot from the network.

mod dhcp;
mod files;
mod http;
mod machines;
mod substitute;
mod tftp;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, bail};
use protocol::identity::Role;
use protocol::io::credentials::{Credentials, file_of};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

pub use machines::Machines;

use crate::boot::dhcp::{Asked, Config, UefiLoader};
use crate::boot::leases::AddressRange;

/// What the admin chose, in one file; the command line outranks it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Network interface to serve.
    pub interface: Option<String>,
    /// `FIRST-LAST`: be the DHCP server of an isolated network. Without it another server gives addresses.
    pub dhcp_range: Option<String>,
    /// Router that the DHCP server tells of.
    pub router: Option<Ipv4Addr>,
    /// Name servers that the DHCP server tells of.
    pub dns: Vec<Ipv4Addr>,
    /// `auto`, `shim`, `uki` or `ipxe`.
    pub uefi: Option<String>,
    /// TCP port for HTTP.
    pub http_port: Option<u16>,
    /// UDP port at which installers are admitted while the controller is away.
    pub admit_port: Option<u16>,
}

/// Port for boot files over HTTP, unless told otherwise.
const HTTP_PORT: u16 = 7480;
/// Port at which installers are admitted, unless told otherwise.
const ADMIT_PORT: u16 = 7481;

/// An interface and its address.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    name: String,
    address: Ipv4Addr,
    netmask: Ipv4Addr,
}

/// The interface to serve: the one that is named, or the only one.
fn interface(name: Option<&str>) -> anyhow::Result<Interface> {
    let all = if_addrs::get_if_addrs().context("list network interfaces")?;
    let mut found: Vec<Interface> = Vec::new();
    for i in all.into_iter().filter(|i| !i.is_loopback() && name.is_none_or(|n| n == i.name)) {
        if let if_addrs::IfAddr::V4(v4) = i.addr {
            found.push(Interface { name: i.name, address: v4.ip, netmask: v4.netmask });
        }
    }
    match (found.len(), name) {
        (0, Some(name)) => bail!("there is no interface {name} with an IPv4 address"),
        (0, None) => bail!("no network interface has an IPv4 address"),
        (1, _) | (_, Some(_)) => Ok(found.remove(0)),
        _ => {
            let names: Vec<String> = found.iter().map(|i| format!("{} ({})", i.name, i.address)).collect();
            bail!("which network shall be served? Give --interface, one of {}", names.join(", "))
        }
    }
}

/// A socket on one interface only: what comes in on another is not ours to answer.
fn socket_on(interface: &Interface, address: Ipv4Addr, port: u16, kind: Type) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, kind, None)?;
    // Beside a DHCP server on this very host, whose socket is bound alike; and after a restart.
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(interface.name.as_bytes()))?;
    socket.bind(&SocketAddr::from((address, port)).into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A boot server.
pub struct Bootd {
    interface: Interface,
    range: Option<AddressRange>,
    settings: Settings,
    config: RwLock<Config>,
    machines: Machines,
    folder: PathBuf,
}

impl Bootd {
    /// Put it together from its folder and settings.
    ///
    /// # Errors
    /// If it has not joined, or a setting is wrong.
    pub fn new(folder: PathBuf, settings: Settings) -> anyhow::Result<Self> {
        let member = Credentials::load(&file_of(&folder, Role::Boot)).with_context(|| {
            format!("{} is no boot server's folder: run `coe-bootd join TICKET`, with a ticket of `coe-ctl token create --boot`", folder.display())
        })?;
        let interface = interface(settings.interface.as_deref())?;
        let range: Option<AddressRange> =
            settings.dhcp_range.as_deref().map(|r| r.parse()).transpose().map_err(anyhow::Error::msg)?;
        let uefi = match settings.uefi.as_deref().unwrap_or("auto") {
            "auto" => UefiLoader::Auto,
            "shim" => UefiLoader::Shim,
            "uki" => UefiLoader::Uki,
            "ipxe" => UefiLoader::Ipxe,
            other => bail!("uefi is auto, shim, uki or ipxe, not {other:?}"),
        };
        let config = Config {
            address: interface.address,
            http_port: settings.http_port.unwrap_or(HTTP_PORT),
            is_proxy: range.is_none(),
            uefi,
            files: Vec::new(),
        };
        let admit_at = (interface.address, settings.admit_port.unwrap_or(ADMIT_PORT)).into();
        let machines = Machines::new(member, &folder, admit_at)?;
        Ok(Self { interface, range, settings, config: RwLock::new(config), machines, folder })
    }

    fn config(&self) -> Config {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn base(&self) -> String {
        let config = self.config();
        format!("http://{}:{}", config.address, config.http_port)
    }

    /// Say what a machine would be answered.
    ///
    /// # Errors
    /// If the controller cannot be asked.
    pub async fn dry_run(&self, asked: &Asked) -> anyhow::Result<String> {
        files::refresh(self).await.context("fetch the boot set")?;
        let order = self.machines.ask(asked, true).await?;
        if !order.install {
            return Ok(format!("{}: no answer, it goes on to its disk", order.host));
        }
        let address = if self.range.is_some() { "an address and " } else { "" };
        Ok(match self.config().boot_file(asked) {
            Ok(file) => format!("{}: {address}the boot file {file}", order.host),
            Err(why) => format!("{}: no answer, because {why}", order.host),
        })
    }

    /// Serve until the process is told to stop.
    ///
    /// # Errors
    /// If a port cannot be had.
    pub async fn serve(self) -> anyhow::Result<()> {
        let bootd = Arc::new(self);
        let dhcp = dhcp::Sockets::open(&bootd).context("listen for DHCP: is another DHCP server on this host?")?;
        let tftp = tftp::listen(&bootd).context("listen for TFTP on UDP port 69")?;
        let http = http::listen(&bootd).context("listen for HTTP")?;
        let config = bootd.config();
        tracing::info!(interface = %bootd.interface.name, address = %config.address, http_port = config.http_port,
            dhcp = if config.is_proxy { "beside another server" } else { "the only server" }, "boot server serves");
        if config.is_proxy && config.uefi == UefiLoader::Shim {
            tracing::warn!(
                "with another DHCP server GRUB asks that server for its files (GRUB bug 55636): this works only where that server \
                gives this host as its next-server; otherwise use a signed uki.efi, see docs/network-boot.md"
            );
        }
        let admit = bootd.machines.substitute.listen().context("admit installers while the controller is away")?;
        tokio::spawn(admit);
        tokio::spawn(files::keep_fresh(bootd.clone()));
        let for_renewal = bootd.clone();
        tokio::spawn(async move { for_renewal.machines.renew_regularly(&for_renewal.folder).await });
        let for_learning = bootd.clone();
        tokio::spawn(async move { for_learning.machines.learn_regularly().await });
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            () = dhcp.serve(bootd.clone()) => {}
            () = tftp::serve(tftp, bootd.clone()) => {}
            result = http::serve(http, bootd.clone()) => result.context("serve HTTP")?,
            _ = terminate.recv() => {}
            interrupt = tokio::signal::ctrl_c() => interrupt?,
        }
        Ok(())
    }
}
