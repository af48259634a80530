//! How the installer finds its boot server when its kernel's command line does not say: it asks as firmware does, by DHCP, and the
//! answer's boot file is the URL of its options. A signed boot file is the same for all machines and all sites, so nothing of one
//! machine can be in it.

use dhcproto::Encodable as _;
use dhcproto::v4::{Architecture, DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use protocol::machine::{Facts, Firmware};

use super::dhcp::{INSTALLER_CLASS, decode, mac_of};

/// The question, for a broadcast to port 67. Nothing without an Ethernet address.
#[must_use]
pub fn question(facts: &Facts, number: u32) -> Option<Vec<u8>> {
    let arch = if facts.firmware == Some(Firmware::Bios) { 0 } else { 7 };
    let mut message = Message::default();
    message.set_xid(number).set_chaddr(&facts.macs.first()?.0).set_flags(Flags::default().set_broadcast());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(MessageType::Discover));
    options.insert(DhcpOption::ClassIdentifier(format!("PXEClient:Arch:{arch:05}:UNDI:003000").into_bytes()));
    options.insert(DhcpOption::ClientSystemArchitecture(Architecture::from(arch)));
    options.insert(DhcpOption::UserClass(INSTALLER_CLASS.into()));
    if let Some(uuid) = facts.uuid {
        options.insert(DhcpOption::ClientMachineIdentifier([&[0], &uuid.to_wire()[..]].concat()));
    }
    message.to_vec().ok()
}

/// The URL in an answer to that question; nothing from any other packet.
#[must_use]
pub fn answer(packet: &[u8], facts: &Facts, number: u32) -> Option<String> {
    let message = decode(packet)?;
    let is_ours = message.opcode() == Opcode::BootReply && message.xid() == number;
    if !is_ours || mac_of(&message) != facts.macs.first().copied() {
        return None;
    }
    match message.opts().get(OptionCode::BootfileName)? {
        DhcpOption::BootfileName(url) => String::from_utf8(url.clone()).ok().filter(|url| is_url(url)),
        _ => None,
    }
}

/// `http://10.0.0.1:7480/host/52-54-00-01-02-03/options`, and nothing that a shell or a console would make something else of.
fn is_url(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/.:-".contains(&b);
    text.strip_prefix("http://").is_some_and(|rest| rest.ends_with("/options") && rest.bytes().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::dhcp::{Client, Config, UefiLoader, understand};
    use protocol::machine::{Mac, Uuid};
    use std::net::Ipv4Addr;

    #[test]
    fn the_boot_server_answers_where_the_options_are() {
        let uuid = Uuid::from_wire([7; 16]);
        let mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
        let facts = Facts { uuid: Some(uuid), macs: vec![mac], firmware: Some(Firmware::Uefi), ..Facts::default() };
        let message = decode(&question(&facts, 77).unwrap()).unwrap();
        let asked = understand(&message).unwrap();
        assert_eq!((asked.client, asked.facts.uuid), (Client::Installer, Some(uuid)));
        let config = Config {
            address: Ipv4Addr::new(10, 0, 0, 1),
            http_port: 7480,
            is_proxy: true,
            uefi: UefiLoader::Auto,
            files: Vec::new(),
        };
        let file = config.boot_file(&asked).unwrap();
        let reply = config.proxy(&message, &asked, &file, false).unwrap().to_vec().unwrap();
        let url = "http://10.0.0.1:7480/host/52-54-00-01-02-03/options";
        assert_eq!(answer(&reply, &facts, 77).as_deref(), Some(url));
        assert_eq!(answer(&reply, &facts, 78), None, "an answer to another question");
        let other = Facts { macs: vec![Mac([0x52, 0x54, 0, 1, 2, 4])], ..Facts::default() };
        assert_eq!(answer(&reply, &other, 77), None, "an answer to another machine");
        for file in
            ["undionly.kpxe", "http://x/$(reboot)/options", "http://10.0.0.1/a b/options", "http://10.0.0.1/boot"]
        {
            let reply = config.proxy(&message, &asked, file, false).unwrap().to_vec().unwrap();
            assert_eq!(answer(&reply, &facts, 77), None, "{file}");
        }
        assert_eq!(question(&Facts::default(), 1), None);
    }
}
