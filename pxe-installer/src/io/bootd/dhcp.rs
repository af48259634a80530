//! DHCP on the wire.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use dhcproto::Encodable as _;
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use protocol::machine::Mac;
use socket2::Type;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use super::{Bootd, Interface, socket_on};
use crate::boot::dhcp::{Asked, Client, decode, mac_of, understand};
use crate::boot::leases::{LEASE_S, Leases};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Where a machine asks a boot server once it has an address (PXE specification 2.1).
const BOOT_PORT: u16 = 4011;
/// Requests under way. More are noise, and firmware asks again.
const TOGETHER: usize = 64;
/// An offer is kept for so long.
const OFFER_S: u32 = 60;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn open(interface: &Interface, port: u16) -> std::io::Result<UdpSocket> {
    let socket = socket_on(interface, Ipv4Addr::UNSPECIFIED, port, Type::DGRAM)?;
    socket.set_broadcast(true)?;
    UdpSocket::from_std(socket.into())
}

/// The sockets.
pub(super) struct Sockets {
    server: Arc<UdpSocket>,
    boot: Arc<UdpSocket>,
    leases: Arc<Mutex<Leases>>,
}

impl Sockets {
    pub(super) fn open(bootd: &Bootd) -> std::io::Result<Self> {
        let name = &bootd.interface;
        Ok(Self {
            server: Arc::new(open(name, SERVER_PORT)?),
            boot: Arc::new(open(name, BOOT_PORT)?),
            leases: Arc::default(),
        })
    }

    pub(super) async fn serve(self, bootd: Arc<Bootd>) {
        let slots = Arc::new(Semaphore::new(TOGETHER));
        let (mut a, mut b) = (vec![0; 1500], vec![0; 1500]);
        loop {
            let (packet, from, socket) = tokio::select! {
                Ok((len, from)) = self.server.recv_from(&mut a) => (&a[..len], from, &self.server),
                Ok((len, from)) = self.boot.recv_from(&mut b) => (&b[..len], from, &self.boot),
                else => return,
            };
            // Noise gets nothing.
            let Some(message) = decode(packet) else { continue };
            let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
            let (bootd, socket, leases) = (bootd.clone(), socket.clone(), self.leases.clone());
            let is_boot_port = Arc::ptr_eq(&socket, &self.boot);
            tokio::spawn(async move {
                let _slot = slot;
                if let Some(reply) = answer(&bootd, &leases, &message, is_boot_port).await
                    && let Ok(bytes) = reply.to_vec()
                    && let Err(error) = socket.send_to(&bytes, destination(&reply, from, is_boot_port)).await
                {
                    tracing::warn!(%error, "DHCP answer not sent");
                }
            });
        }
    }
}

/// Where an answer goes (RFC 2131, 4.1).
fn destination(reply: &Message, from: SocketAddr, is_boot_port: bool) -> SocketAddr {
    if is_boot_port {
        return from;
    }
    let to = if !reply.giaddr().is_unspecified() {
        SocketAddrV4::new(reply.giaddr(), SERVER_PORT)
    } else if !reply.ciaddr().is_unspecified() {
        SocketAddrV4::new(reply.ciaddr(), CLIENT_PORT)
    } else {
        SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
    };
    to.into()
}

/// The boot file for a machine that has something to do.
async fn boot_file(bootd: &Arc<Bootd>, asked: &Asked) -> Option<String> {
    let order = match bootd.machines.ask(asked, false).await {
        Ok(order) => order,
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "machine not answered");
            return None;
        }
    };
    let mac = asked.facts.macs.first()?;
    if !order.install {
        tracing::debug!(host = %order.host, %mac, "nothing to do");
        return None;
    }
    match bootd.config().boot_file(asked) {
        Ok(file) => {
            tracing::info!(host = %order.host, %mac, client = ?asked.client, %file, "boots the installer");
            match asked.client {
                Client::Ipxe => bootd.machines.runs_ipxe(*mac),
                Client::Uefi64 | Client::Http64 if file.ends_with("snponly.efi") => {
                    tokio::spawn(warn_if_silent(bootd.clone(), *mac, order.host));
                }
                _ => {}
            }
            Some(file)
        }
        Err(why) => {
            tracing::warn!(host = %order.host, %mac, client = ?asked.client, why, "machine not answered");
            None
        }
    }
}

async fn warn_if_silent(bootd: Arc<Bootd>, mac: Mac, host: String) {
    if bootd.machines.stays_silent(mac).await {
        tracing::warn!(%host, %mac,
            "was given iPXE and was not heard again: if it has Secure Boot, it needs a signed uki.efi, see docs/network-boot.md");
    }
}

async fn answer(bootd: &Arc<Bootd>, leases: &Mutex<Leases>, message: &Message, is_boot_port: bool) -> Option<Message> {
    let asked = understand(message);
    // An installer has its address, and its question must not shorten the lease.
    let is_installer = asked.as_ref().is_some_and(|asked| asked.client == Client::Installer);
    if bootd.range.is_none() || is_boot_port || is_installer {
        let asked = asked?;
        // Whom the other server was meant for is not ours to look up.
        if !is_boot_port && message.opts().msg_type() != Some(MessageType::Discover) {
            return None;
        }
        let file = boot_file(bootd, &asked).await?;
        return bootd.config().proxy(message, &asked, &file, is_boot_port);
    }
    let mut reply = lend(bootd, leases, message)?;
    if reply.opts().msg_type() != Some(MessageType::Nak)
        && let Some(asked) = asked
        && let Some(file) = boot_file(bootd, &asked).await
    {
        bootd.config().add_boot(&mut reply, &asked, &file);
    }
    Some(reply)
}

/// The answer of the only DHCP server.
fn lend(bootd: &Bootd, leases: &Mutex<Leases>, message: &Message) -> Option<Message> {
    let (range, own) = (bootd.range?, bootd.interface.address);
    let mac = mac_of(message)?;
    let options = message.opts();
    let kind = options.msg_type()?;
    let for_another = match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server != own,
        _ => false,
    };
    let mut leases = leases.lock().unwrap_or_else(PoisonError::into_inner);
    if for_another {
        return None;
    }
    let config = bootd.config();
    let mut reply = match kind {
        MessageType::Discover => {
            let address = leases.lend(range, own, mac, now_s(), OFFER_S);
            if address.is_none() {
                tracing::warn!(%mac, "no address is left to lend");
            }
            let mut reply = config.reply_to(message, MessageType::Offer);
            reply.set_yiaddr(address?);
            reply
        }
        MessageType::Request => {
            let wanted = match options.get(OptionCode::RequestedIpAddress) {
                Some(DhcpOption::RequestedIpAddress(address)) => *address,
                _ => message.ciaddr(),
            };
            let address = leases.lend(range, own, mac, now_s(), LEASE_S)?;
            if address != wanted {
                return Some(config.reply_to(message, MessageType::Nak));
            }
            let mut reply = config.reply_to(message, MessageType::Ack);
            reply.set_yiaddr(address).set_ciaddr(message.ciaddr());
            reply
        }
        MessageType::Inform => {
            let mut reply = config.reply_to(message, MessageType::Ack);
            reply.set_ciaddr(message.ciaddr());
            reply
        }
        MessageType::Release => {
            leases.release(mac);
            return None;
        }
        MessageType::Decline => {
            if let Some(DhcpOption::RequestedIpAddress(address)) = options.get(OptionCode::RequestedIpAddress) {
                leases.decline(*address, mac, now_s());
            }
            return None;
        }
        _ => return None,
    };
    let options = reply.opts_mut();
    options.insert(DhcpOption::SubnetMask(bootd.interface.netmask));
    if kind != MessageType::Inform {
        options.insert(DhcpOption::AddressLeaseTime(LEASE_S));
    }
    if let Some(router) = bootd.settings.router {
        options.insert(DhcpOption::Router(vec![router]));
    }
    if !bootd.settings.dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(bootd.settings.dns.clone()));
    }
    Some(reply)
}
