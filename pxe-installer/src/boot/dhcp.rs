//! DHCP for machines that boot from the network (RFC 2131, 2132, 4578; UEFI specification 2.10, chapter 24).
//!
//! Beside somebody else's DHCP server only the boot part is answered, with no address in it (proxyDHCP, PXE specification 2.1,
//! 2.2.3); a machine that has nothing to do hears nothing, and goes on to its disk.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Decoder};
use protocol::machine::{Facts, Firmware, Mac, Uuid};

/// The file that each kind of firmware loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UefiLoader {
    /// iPXE where an answer comes beside another DHCP server, shim where it does not: see `docs/network-boot.md`.
    Auto,
    /// Debian's signed shim, then its signed GRUB.
    Shim,
    /// One signed file with kernel and initramfs.
    Uki,
    /// iPXE, which Secure Boot refuses.
    Ipxe,
}

/// What the boot server is set to.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its own address.
    pub address: Ipv4Addr,
    /// Its HTTP port.
    pub http_port: u16,
    /// Whether another server gives addresses.
    pub is_proxy: bool,
    /// What UEFI loads.
    pub uefi: UefiLoader,
    /// Names of the files that there are.
    pub files: Vec<String>,
}

/// What asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A PC BIOS's PXE.
    Bios,
    /// UEFI's PXE, x86-64.
    Uefi64,
    /// UEFI's PXE, arm64.
    UefiArm64,
    /// UEFI's HTTP boot, x86-64.
    Http64,
    /// iPXE, whatever started it.
    Ipxe,
    /// The installer, started from a signed file that is the same for all machines: it asks where its ticket is.
    Installer,
    /// Firmware that there is nothing for.
    Unknown(u16),
}

/// A boot request, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What asks.
    pub client: Client,
    /// Who it is.
    pub facts: Facts,
}

/// How the installer calls itself (option 77, user class).
pub const INSTALLER_CLASS: &[u8] = b"coe-installer";
/// Bytes in front of the options: the fixed part and the magic cookie (RFC 2131, 2; RFC 2132, 2).
const FIXED_LEN: usize = 240;
/// Options that are looked at, and the lengths that they can have. All others are left out before a message is decoded: `dhcproto`
/// panics on some lengths and values of options that nobody needs here.
const KNOWN: &[(u8, std::ops::RangeInclusive<u8>)] = &[
    // Requested address, message type, server, parameter list, largest message, class, client id.
    (50, 4..=4),
    (53, 1..=1),
    (54, 4..=4),
    (55, 1..=255),
    (57, 2..=2),
    (60, 1..=255),
    (61, 2..=255),
    // Boot file, user class, architecture, network interface, machine.
    (67, 1..=255),
    (77, 1..=255),
    (93, 2..=2),
    (94, 3..=3),
    (97, 17..=17),
];

/// A message from its packet; nothing from noise.
#[must_use]
pub fn decode(packet: &[u8]) -> Option<Message> {
    let (fixed, mut rest) = packet.split_at_checked(FIXED_LEN)?;
    let mut clean = fixed.to_vec();
    while let [code, after @ ..] = rest {
        match (*code, after) {
            (0, _) => rest = after,
            (255, _) => break,
            (code, [len, value @ ..]) => {
                let (value, after) = value.split_at_checked(usize::from(*len))?;
                if KNOWN.iter().any(|(known, lengths)| *known == code && lengths.contains(len)) {
                    clean.extend_from_slice(&[code, *len]);
                    clean.extend_from_slice(value);
                }
                rest = after;
            }
            (_, []) => return None,
        }
    }
    clean.push(255);
    Message::decode(&mut Decoder::new(&clean)).ok()
}

/// The Ethernet address that a message is from.
#[must_use]
pub fn mac_of(message: &Message) -> Option<Mac> {
    // The length is the sender's word, and may be longer than the field.
    if message.hlen() != 6 {
        return None;
    }
    let bytes: [u8; 6] = message.chaddr().try_into().ok()?;
    (message.htype() == HType::Eth && bytes != [0; 6] && bytes[0] & 1 == 0).then_some(Mac(bytes))
}

/// What a message asks for, if it is a boot request.
#[must_use]
pub fn understand(message: &Message) -> Option<Asked> {
    if message.opcode() != Opcode::BootRequest {
        return None;
    }
    let mac = mac_of(message)?;
    let options = message.opts();
    let class = match options.get(OptionCode::ClassIdentifier) {
        Some(DhcpOption::ClassIdentifier(class)) => class.as_slice(),
        _ => return None,
    };
    let is_http = class.starts_with(b"HTTPClient");
    if !is_http && !class.starts_with(b"PXEClient") {
        return None;
    }
    let arch = match options.get(OptionCode::ClientSystemArchitecture) {
        Some(DhcpOption::ClientSystemArchitecture(arch)) => u16::from(*arch),
        _ => 0,
    };
    let uuid = match options.get(OptionCode::ClientMachineIdentifier) {
        // Type 0 is a GUID; nothing else is defined.
        Some(DhcpOption::ClientMachineIdentifier(bytes)) => match bytes.as_slice() {
            [0, uuid @ ..] => uuid.try_into().ok().map(Uuid::from_wire),
            _ => None,
        },
        _ => None,
    };
    let class = match options.get(OptionCode::UserClass) {
        Some(DhcpOption::UserClass(class)) => class.as_slice(),
        _ => &[],
    };
    let is_of = |user: &[u8]| class.windows(user.len()).any(|w| w == user);
    // Architectures: IANA, "Processor Architecture Types".
    let client = match (is_of(b"iPXE"), arch) {
        (true, _) => Client::Ipxe,
        _ if is_of(INSTALLER_CLASS) => Client::Installer,
        (_, 0) => Client::Bios,
        (_, 7 | 9) => Client::Uefi64,
        (_, 11) => Client::UefiArm64,
        (_, 16) => Client::Http64,
        (_, other) => Client::Unknown(other),
    };
    let firmware = match arch {
        0 => Some(Firmware::Bios),
        _ => Some(Firmware::Uefi),
    };
    let facts = Facts { uuid, macs: vec![mac], firmware, ..Facts::default() };
    Some(Asked { client, facts })
}

impl Config {
    fn has(&self, name: &'static str) -> Option<&'static str> {
        self.files.iter().any(|f| f == name).then_some(name)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}:{}/{path}", self.address, self.http_port)
    }

    /// The boot file for a client: a name for TFTP, or a URL.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn boot_file(&self, asked: &Asked) -> Result<String, &'static str> {
        let mac = asked.facts.macs.first().map(|mac| mac.dashed()).unwrap_or_default();
        let uki = self.has("uki.efi");
        let name = match asked.client {
            Client::Ipxe => return Ok(self.url(&format!("host/{mac}/boot.ipxe"))),
            Client::Installer => return Ok(self.url(&format!("host/{mac}/options"))),
            Client::Bios => self.has("undionly.kpxe"),
            Client::UefiArm64 => self.has("shimaa64.efi"),
            Client::Http64 => {
                let name = match self.uefi {
                    UefiLoader::Uki => uki,
                    UefiLoader::Ipxe => self.has("snponly.efi"),
                    UefiLoader::Auto | UefiLoader::Shim => uki.or(self.has("snponly.efi")),
                };
                return name
                    .map(|name| self.url(&format!("boot/{name}")))
                    .ok_or("the boot set has no uki.efi and no snponly.efi");
            }
            Client::Uefi64 => match self.uefi {
                UefiLoader::Shim => self.has("shimx64.efi"),
                UefiLoader::Uki => uki,
                UefiLoader::Ipxe => self.has("snponly.efi"),
                // GRUB asks whoever gave the address for its files (savannah #55636), so shim is of no use to a proxy.
                UefiLoader::Auto if self.is_proxy => uki.or(self.has("snponly.efi")),
                UefiLoader::Auto => self.has("shimx64.efi"),
            },
            Client::Unknown(_) => return Err("there are no boot files for this kind of firmware"),
        };
        name.map(Into::into).ok_or("the boot set has no loader for this firmware")
    }

    /// The answer's boot part.
    fn offer_boot(&self, reply: &mut Message, asked: &Asked, file: &str) {
        let is_http = asked.client == Client::Http64;
        reply.set_siaddr(self.address);
        let class: &[u8] = if is_http { b"HTTPClient" } else { b"PXEClient" };
        let options = reply.opts_mut();
        options.insert(DhcpOption::ClassIdentifier(class.into()));
        options.insert(DhcpOption::BootfileName(file.as_bytes().into()));
        if !is_http {
            options.insert(DhcpOption::TFTPServerName(self.address.to_string().into_bytes()));
            // PXE_DISCOVERY_CONTROL, 8: load the file that is named here, look for no other server.
            options.insert(DhcpOption::VendorExtensions(vec![6, 1, 8, 255]));
            if file.len() < 128 {
                reply.set_fname_str(file);
            }
        }
    }

    /// The beginning of an answer.
    #[must_use]
    pub fn reply_to(&self, message: &Message, kind: MessageType) -> Message {
        let mut reply = Message::default();
        reply
            .set_opcode(Opcode::BootReply)
            .set_htype(message.htype())
            .set_xid(message.xid())
            .set_chaddr(message.chaddr())
            .set_giaddr(message.giaddr())
            .set_flags(message.flags());
        reply.opts_mut().insert(DhcpOption::MessageType(kind));
        reply.opts_mut().insert(DhcpOption::ServerIdentifier(self.address));
        if let Some(id) = message.opts().get(OptionCode::ClientMachineIdentifier) {
            reply.opts_mut().insert(id.clone());
        }
        reply
    }

    /// The answer of a proxy to a boot request. `is_boot_port` is port 4011, where a machine asks that has its address already.
    #[must_use]
    pub fn proxy(&self, message: &Message, asked: &Asked, file: &str, is_boot_port: bool) -> Option<Message> {
        let kind = match (message.opts().msg_type()?, is_boot_port) {
            (MessageType::Discover, false) => MessageType::Offer,
            (MessageType::Request | MessageType::Inform, true) => MessageType::Ack,
            _ => return None,
        };
        let mut reply = self.reply_to(message, kind);
        if is_boot_port {
            reply.set_ciaddr(message.ciaddr());
        } else {
            // It has no address yet, whatever it says of unicast.
            reply.set_flags(Flags::default().set_broadcast());
        }
        self.offer_boot(&mut reply, asked, file);
        Some(reply)
    }

    /// Add the boot part to an answer that gives an address.
    pub fn add_boot(&self, reply: &mut Message, asked: &Asked, file: &str) {
        self.offer_boot(reply, asked, file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::Encodable as _;
    use dhcproto::v4::Architecture;

    fn config(is_proxy: bool, uefi: UefiLoader, uki: bool) -> Config {
        let mut files: Vec<String> =
            ["vmlinuz", "initrd.img", "undionly.kpxe", "snponly.efi", "shimx64.efi"].map(Into::into).into();
        files.extend(uki.then(|| "uki.efi".to_string()));
        Config { address: Ipv4Addr::new(10, 0, 0, 1), http_port: 7480, is_proxy, uefi, files }
    }

    fn ask(kind: MessageType, class: &[u8], arch: u16, is_ipxe: bool) -> Message {
        let mut message = Message::default();
        message.set_chaddr(&[0x52, 0x54, 0, 1, 2, 3]);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClassIdentifier(class.into()));
        options.insert(DhcpOption::ClientSystemArchitecture(Architecture::from(arch)));
        options.insert(DhcpOption::ClientMachineIdentifier([vec![0], (1..=16).collect()].concat()));
        if is_ipxe {
            options.insert(DhcpOption::UserClass(b"iPXE".into()));
        }
        message
    }

    #[test]
    fn who_gets_what() {
        use UefiLoader::{Auto, Ipxe, Shim, Uki};
        const PXE: &[u8] = b"PXEClient:Arch:00007:UNDI:003016";
        const HTTP: &[u8] = b"HTTPClient:Arch:00016:UNDI:003001";
        let script = "http://10.0.0.1:7480/host/52-54-00-01-02-03/boot.ipxe";
        // (class, architecture, iPXE, proxy, loader, UKI there) -> file
        let table: &[(&[u8], u16, bool, bool, UefiLoader, bool, Option<&str>)] = &[
            (PXE, 0, false, true, Auto, false, Some("undionly.kpxe")),
            (PXE, 0, true, true, Auto, false, Some(script)),
            (PXE, 7, true, false, Shim, false, Some(script)),
            (PXE, 7, false, true, Auto, false, Some("snponly.efi")),
            (PXE, 9, false, true, Auto, true, Some("uki.efi")),
            (PXE, 7, false, false, Auto, true, Some("shimx64.efi")),
            (PXE, 7, false, true, Shim, true, Some("shimx64.efi")),
            (PXE, 7, false, true, Ipxe, true, Some("snponly.efi")),
            (PXE, 7, false, false, Uki, false, None),
            (PXE, 11, false, true, Auto, false, None),
            (PXE, 6, false, true, Auto, false, None),
            (HTTP, 16, false, true, Auto, false, Some("http://10.0.0.1:7480/boot/snponly.efi")),
            (HTTP, 16, false, true, Auto, true, Some("http://10.0.0.1:7480/boot/uki.efi")),
            (HTTP, 16, false, true, Ipxe, true, Some("http://10.0.0.1:7480/boot/snponly.efi")),
            (HTTP, 16, false, true, Uki, false, None),
        ];
        for (class, arch, is_ipxe, is_proxy, uefi, uki, want) in table {
            let asked = understand(&ask(MessageType::Discover, class, *arch, *is_ipxe)).unwrap();
            let file = config(*is_proxy, *uefi, *uki).boot_file(&asked);
            assert_eq!(file.ok().as_deref(), *want, "{arch} {is_ipxe} {is_proxy} {uefi:?} {uki}");
        }
    }

    #[test]
    fn a_proxy_gives_no_address_and_answers_only_what_is_meant_for_it() {
        let config = config(true, UefiLoader::Auto, false);
        let message = ask(MessageType::Discover, b"PXEClient:Arch:00000:UNDI:002001", 0, false);
        let asked = understand(&message).unwrap();
        assert_eq!(asked.facts.uuid.unwrap().to_string(), "04030201-0605-0807-090a-0b0c0d0e0f10");
        let offer = config.proxy(&message, &asked, "undionly.kpxe", false).unwrap();
        let bytes = offer.to_vec().unwrap();
        let offer = Message::decode(&mut Decoder::new(&bytes)).unwrap();
        assert_eq!((offer.yiaddr(), offer.siaddr()), (Ipv4Addr::UNSPECIFIED, config.address));
        assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!(
            offer.opts().get(OptionCode::ClassIdentifier),
            Some(&DhcpOption::ClassIdentifier(b"PXEClient".into()))
        );
        assert!(config.proxy(&message, &asked, "x", true).is_none());
        let request = ask(MessageType::Request, b"PXEClient", 0, false);
        assert!(config.proxy(&request, &asked, "x", false).is_none(), "that request is for the other server");
        let ack = config.proxy(&request, &asked, "x", true).unwrap();
        assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
    }

    #[test]
    fn options_that_nobody_needs_cannot_hurt() {
        let good = ask(MessageType::Discover, b"PXEClient", 0, false).to_vec().unwrap();
        // A classless route with a prefix of 200 bits; a name of one byte; a length beyond the end.
        for (options, is_fine) in [(&[121, 5, 200, 1, 1, 1, 1][..], true), (&[81, 1, 0], true), (&[12, 200, 1], false)]
        {
            let packet = [&good[..good.len() - 1], options].concat();
            assert_eq!(decode(&packet).is_some_and(|m| understand(&m).is_some()), is_fine, "{options:?}");
        }
        let mut long_address = good;
        long_address[2] = 200;
        assert!(decode(&long_address).is_none_or(|m| understand(&m).is_none()));
    }

    #[test]
    fn other_messages_are_not_understood() {
        assert_eq!(understand(&ask(MessageType::Discover, b"MSFT 5.0", 0, false)), None);
        let mut reply = ask(MessageType::Discover, b"PXEClient", 0, false);
        reply.set_opcode(Opcode::BootReply);
        assert_eq!(understand(&reply), None);
        let mut multicast = ask(MessageType::Discover, b"PXEClient", 0, false);
        multicast.set_chaddr(&[1, 0, 0x5e, 0, 0, 1]);
        assert_eq!(understand(&multicast), None);
    }

    proptest::proptest! {
        #[test]
        fn noise_is_survived(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..800),
            cut in 0usize..400,
            at in 0usize..400,
            with: u8,
        ) {
            let config = config(true, UefiLoader::Auto, true);
            // Noise, noise behind a good beginning, and a good packet that was damaged.
            let mut damaged = ask(MessageType::Discover, b"PXEClient:Arch:00007", 7, true).to_vec().unwrap();
            let len = damaged.len();
            damaged[at % len] = with;
            damaged.truncate(len.saturating_sub(cut / 8));
            let mut good = ask(MessageType::Discover, b"PXEClient", 0, false).to_vec().unwrap();
            good.truncate(FIXED_LEN);
            good.extend_from_slice(&bytes);
            for packet in [bytes, good, damaged] {
                if let Some(message) = decode(&packet)
                    && let Some(asked) = understand(&message)
                    && let Ok(file) = config.boot_file(&asked)
                {
                    for port in [false, true] {
                        if let Some(reply) = config.proxy(&message, &asked, &file, port) {
                            let _ = reply.to_vec();
                        }
                    }
                }
            }
        }
    }
}
