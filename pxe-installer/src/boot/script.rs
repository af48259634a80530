//! What loaders are told: scripts for iPXE, configuration for GRUB.

use protocol::machine::Mac;
use protocol::message::boot::BootTicket;

/// What the installer's kernel is told on every machine. A signed kernel is told the same, by `cargo xtask netboot --sign`.
const FOR_ALL: &str = include_str!("../../initramfs/kernel-options").trim_ascii();

/// What one machine's installer is told: options of the kernel's command line, or, where that is signed and the same for all, what
/// the installer fetches.
#[must_use]
pub fn options(ticket: &BootTicket) -> String {
    let rescue = if ticket.rescue { " coe.rescue=1" } else { "" };
    format!("coe.time={} coe.ticket={}{rescue}", ticket.unix_s, ticket.ticket)
}

/// The kernel's command line. `net.ifnames=0` is left out on purpose: names do not matter, BOOTIF does.
fn command_line(mac: Mac, ticket: &BootTicket) -> String {
    format!("{FOR_ALL} BOOTIF=01-{} {}", mac.dashed(), options(ticket))
}

/// For iPXE: load the installer over HTTP from `base`, such as `http://10.0.0.1:7480`.
#[must_use]
pub fn ipxe(base: &str, mac: Mac, ticket: &BootTicket) -> String {
    let line = command_line(mac, ticket);
    format!(
        "#!ipxe\nkernel {base}/boot/vmlinuz initrd=initrd.img {line}\ninitrd --name initrd.img {base}/boot/initrd.img\nboot\n"
    )
}

/// For iPXE that has nothing to do: on to the next boot device.
pub const IPXE_NOTHING: &str = "#!ipxe\necho coe: nothing to do\nexit\n";

/// For GRUB: load the installer over TFTP, from where GRUB itself came.
#[must_use]
pub fn grub(mac: Mac, ticket: &BootTicket) -> String {
    format!("set timeout=0\nlinux /vmlinuz {}\ninitrd /initrd.img\nboot\n", command_line(mac, ticket))
}

/// For GRUB that asked for the configuration of all: each machine has its own.
pub const GRUB_FOR_ALL: &str = "configfile /host/$net_default_mac/grub.cfg\n";
/// For GRUB that has nothing to do.
pub const GRUB_NOTHING: &str = "exit\n";

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// A file of the boot set.
    File(String),
    /// A machine's GRUB configuration.
    Grub(Mac),
    /// The GRUB configuration that sends each machine to its own.
    GrubForAll,
}

/// Understand a TFTP path. Anything that is not one of the few known shapes is nothing: there is no file system behind it.
#[must_use]
pub fn understand(path: &str) -> Option<Asked> {
    let path = path.trim_start_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["host", mac, "grub.cfg"] => mac.parse().ok().map(Asked::Grub),
        // GRUB looks for a configuration by Ethernet address before the common one: grub.cfg-01-aa-bb-…
        ["grub" | "boot", "grub.cfg"] | ["boot", "grub", "grub.cfg"] | ["grub", "x86_64-efi", "grub.cfg"] => {
            Some(Asked::GrubForAll)
        }
        ["grub", name] => name.strip_prefix("grub.cfg-01-")?.parse().ok().map(Asked::Grub),
        [name] if images::bundle::is_plain_name(name) => Some(Asked::File((*name).to_string())),
        ["boot", name] if images::bundle::is_plain_name(name) => Some(Asked::File((*name).to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
        assert_eq!(understand("/vmlinuz"), Some(Asked::File("vmlinuz".into())));
        assert_eq!(understand("grub/grub.cfg"), Some(Asked::GrubForAll));
        assert_eq!(understand("/grub/grub.cfg-01-52-54-00-00-00-01"), Some(Asked::Grub(mac)));
        assert_eq!(understand("/host/52:54:00:00:00:01/grub.cfg"), Some(Asked::Grub(mac)));
        for bad in [
            "",
            "/",
            "../etc/passwd",
            "boot/../../etc/shadow",
            "/etc/passwd",
            "host/x/grub.cfg",
            "boot/.ssh",
            "a/b/c/d",
            "..\\x",
        ] {
            assert_eq!(understand(bad), None, "{bad}");
        }
    }

    #[test]
    fn scripts_name_the_machine_and_its_right() {
        let ticket = BootTicket { ticket: "coe1abc".into(), unix_s: 1_800_000_000, rescue: true };
        let mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
        for text in [ipxe("http://10.0.0.1:80", mac, &ticket), grub(mac, &ticket)] {
            for part in ["BOOTIF=01-52-54-00-00-00-01", "coe.ticket=coe1abc", "coe.time=1800000000", "coe.rescue=1"] {
                assert!(text.contains(part), "{part}");
            }
        }
    }
}
