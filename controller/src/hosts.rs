//! Machines that boot from the network: which known machine is this one, and what may be learnt of it.

use protocol::directory::{Host, Planned};
use protocol::machine::{Facts, Firmware, Mac, Marks, Uuid, identify};
use serde::{Deserialize, Serialize};

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// What people call it; unique.
    pub name: String,
    /// Whether an admin said that it may be installed.
    pub approved: bool,
    /// SMBIOS UUID.
    pub uuid: Option<Uuid>,
    /// Serial number.
    pub serial: Option<String>,
    /// All Ethernet addresses that it was seen with.
    pub macs: Vec<Mac>,
    /// Vendor and product.
    pub product: String,
    /// What starts it.
    pub firmware: Option<Firmware>,
    /// Groups.
    pub groups: Vec<String>,
    /// When it first asked, seconds since 1970.
    pub first_unix_s: u64,
    /// When it last asked.
    pub last_unix_s: u64,
}

impl HostRecord {
    /// Add what these facts say.
    pub fn learn(&mut self, facts: &Facts) {
        self.uuid = self.uuid.or(facts.uuid);
        if self.serial.is_none() {
            self.serial.clone_from(&facts.serial);
        }
        for mac in &facts.macs {
            if !self.macs.contains(mac) && self.macs.len() < protocol::machine::MACS_MAX {
                self.macs.push(*mac);
            }
        }
        if !facts.product.is_empty() {
            self.product.clone_from(&facts.product);
        }
        // A boot request does not tell Secure Boot from UEFI; the installer does.
        if !(self.firmware == Some(Firmware::SecureBoot) && facts.firmware == Some(Firmware::Uefi)) {
            self.firmware = facts.firmware.or(self.firmware);
        }
    }

    /// As the directory lists it, with what is planned for it.
    #[must_use]
    pub fn listed(&self, planned: Option<Planned>) -> Host {
        Host {
            name: self.name.clone(),
            uuid: self.uuid,
            serial: self.serial.clone(),
            macs: self.macs.clone(),
            groups: self.groups.clone(),
            planned,
        }
    }

    /// A machine that the directory lists.
    #[must_use]
    pub fn of_listed(host: &Host) -> Self {
        let host = host.clone();
        Self {
            name: host.name,
            approved: true,
            uuid: host.uuid,
            serial: host.serial,
            macs: host.macs,
            groups: host.groups,
            ..Self::default()
        }
    }

    /// What it is known by.
    #[must_use]
    pub fn marks(&self) -> Marks<'_> {
        Marks { uuid: self.uuid, serial: self.serial.as_deref(), macs: &self.macs }
    }

    /// Whether a person means this one: by name, UUID, serial number or Ethernet address.
    #[must_use]
    pub fn is_called(&self, text: &str) -> bool {
        (self.name == text && !text.is_empty())
            || self.serial.as_deref() == Some(text)
            || text.parse().is_ok_and(|uuid| self.uuid == Some(uuid))
            || text.parse().is_ok_and(|mac| self.macs.contains(&mac))
    }
}

/// The known machine that these facts are of.
#[must_use]
pub fn find(hosts: &[(u32, HostRecord)], facts: &Facts) -> Option<u32> {
    identify(hosts.iter().map(|(id, host)| (*id, host.marks())), facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    fn host(uuid: Option<u8>, serial: Option<&str>, macs: &[u8]) -> HostRecord {
        HostRecord {
            uuid: uuid.map(|n| Uuid([n; 16])),
            serial: serial.map(Into::into),
            macs: macs.iter().map(|n| mac(*n)).collect(),
            ..HostRecord::default()
        }
    }

    fn facts(uuid: Option<u8>, serial: Option<&str>, macs: &[u8]) -> Facts {
        let h = host(uuid, serial, macs);
        Facts { uuid: h.uuid, serial: h.serial, macs: h.macs, ..Facts::default() }
    }

    #[test]
    fn who_is_who() {
        let hosts = [
            (1, host(Some(1), None, &[1])),
            (2, host(Some(2), Some("S2"), &[2, 9])),
            (3, host(Some(3), None, &[9])),
            (4, host(None, Some("S4"), &[])),
            (5, host(None, None, &[5])),
        ];
        let table = [
            (facts(Some(1), None, &[7]), Some(1), "the UUID decides, whatever card it has"),
            (facts(Some(8), None, &[1]), None, "another machine on the same dock"),
            (facts(Some(8), Some("S2"), &[]), None, "two boards, one number: the UUIDs differ"),
            (facts(None, Some("S2"), &[]), Some(2), "the serial number, where it has no UUID"),
            (facts(Some(4), Some("S4"), &[4]), Some(4), "imported by serial number"),
            (facts(Some(5), None, &[5]), Some(5), "imported by address"),
            (facts(None, None, &[2]), Some(2), "a boot request with nothing but an address"),
            (facts(None, None, &[9]), None, "an address that two have"),
            (facts(None, None, &[]), None, "nothing"),
        ];
        for (facts, want, why) in table {
            assert_eq!(find(&hosts, &facts), want, "{why}");
        }
    }

    #[test]
    fn learning_keeps_what_is_known() {
        let mut known = host(Some(1), Some("S"), &[1]);
        known.firmware = Some(Firmware::SecureBoot);
        known.learn(&Facts { macs: vec![mac(2)], firmware: Some(Firmware::Uefi), ..Facts::default() });
        assert_eq!((known.uuid, known.serial.as_deref()), (Some(Uuid([1; 16])), Some("S")));
        assert!(
            known.marks().can_be(&facts(Some(1), None, &[])) && !known.marks().can_be(&facts(Some(1), Some("T"), &[]))
        );
        assert!(!known.marks().can_be(&facts(Some(2), Some("S"), &[1])));
        assert_eq!((known.macs.len(), known.firmware), (2, Some(Firmware::SecureBoot)));
        assert!(known.is_called("02:00:00:00:00:02") && known.is_called("S") && !known.is_called(""));
    }
}
