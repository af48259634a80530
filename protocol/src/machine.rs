//! A machine as it describes itself when it boots: who it is, and which disks it has.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `52-54-00-12-34-56`, for paths and kernel options.
    #[must_use]
    pub fn dashed(self) -> String {
        self.to_string().replace(':', "-")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not an Ethernet address or a UUID.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not {wanted}")]
pub struct NotAnAddress {
    text: String,
    wanted: &'static str,
}

/// Exactly `N` bytes of hex digits, with any of `:`, `-` and `.` between them.
fn hex<const N: usize>(text: &str, wanted: &'static str) -> Result<[u8; N], NotAnAddress> {
    let fail = || NotAnAddress { text: text.chars().take(64).collect(), wanted };
    let digits: Vec<u8> = text.trim().bytes().filter(|b| !b":-.".contains(b)).collect();
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(&digits).map_err(|_| fail())?;
    bytes.try_into().map_err(|_| fail())
}

impl FromStr for Mac {
    type Err = NotAnAddress;
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        hex(text, "an Ethernet address such as 52:54:00:12:34:56").map(Self)
    }
}

/// A SMBIOS UUID, its bytes in the order of its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// As it travels in DHCP option 97 and SMBIOS from 2.6 on: the first three fields are little endian (RFC 4578, 2.3; SMBIOS
    /// 3.7, 7.2.1).
    #[must_use]
    pub fn from_wire(mut bytes: [u8; 16]) -> Self {
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        Self(bytes)
    }

    /// The same, the other way round.
    #[must_use]
    pub fn to_wire(self) -> [u8; 16] {
        Self::from_wire(self.0).0
    }

    /// Whether two are one machine's. Firmware from before SMBIOS 2.6 disagrees with the kernel about the order of bytes.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self == other || Self::from_wire(self.0) == *other
    }

    /// Whether it tells machines apart: boards that were never given one say all zeros, all ones, or a vendor's example.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        const EXAMPLES: [&str; 2] = ["03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009"];
        let is_flat = self.0.iter().all(|b| *b == 0) || self.0.iter().all(|b| *b == 0xff);
        !is_flat && !EXAMPLES.contains(&self.to_string().as_str())
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = data_encoding::HEXLOWER.encode(&self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = NotAnAddress;
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        hex(text, "a UUID").map(Self)
    }
}

/// What starts the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Firmware {
    /// PC BIOS, or the compatibility module of UEFI.
    Bios,
    /// UEFI.
    Uefi,
    /// UEFI that enforces signatures.
    SecureBoot,
}

impl Firmware {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bios => "BIOS",
            Self::Uefi => "UEFI",
            Self::SecureBoot => "UEFI, Secure Boot",
        }
    }
}

/// Who a machine is. No single part is enough: UUIDs may be missing, and a network card in a dock is many machines'.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// SMBIOS UUID.
    pub uuid: Option<Uuid>,
    /// Serial number of the machine.
    pub serial: Option<String>,
    /// Ethernet addresses; while it boots only the one it boots with.
    pub macs: Vec<Mac>,
    /// Vendor and product.
    pub product: String,
    /// What starts it.
    pub firmware: Option<Firmware>,
}

/// What tells a known machine from others.
#[derive(Clone, Copy, Debug)]
pub struct Marks<'a> {
    /// SMBIOS UUID.
    pub uuid: Option<Uuid>,
    /// Serial number.
    pub serial: Option<&'a str>,
    /// All Ethernet addresses that it was seen with.
    pub macs: &'a [Mac],
}

impl Marks<'_> {
    /// Whether these facts, now in full, can be this machine's.
    #[must_use]
    pub fn can_be(&self, facts: &Facts) -> bool {
        let other_uuid = self.uuid.zip(facts.uuid).is_some_and(|(a, b)| !a.is_same(&b));
        let other_serial = self.serial.zip(facts.serial.as_deref()).is_some_and(|(a, b)| a != b);
        !other_uuid && !other_serial
    }
}

/// The known machine that these facts are of, by its number.
///
/// A UUID decides. A serial number decides where one of both has no UUID. An Ethernet address decides only where one of both has
/// neither, and only if a single machine has it: cards in docks are shared.
#[must_use]
pub fn identify<'a>(known: impl Iterator<Item = (u32, Marks<'a>)> + Clone, facts: &Facts) -> Option<u32> {
    if let Some(uuid) = facts.uuid
        && let Some((id, _)) = known.clone().find(|(_, h)| h.uuid.is_some_and(|known| known.is_same(&uuid)))
    {
        return Some(id);
    }
    let other = |a: Option<Uuid>| a.is_some() && facts.uuid.is_some();
    if let Some(serial) = facts.serial.as_deref()
        && let Some((id, _)) = known.clone().find(|(_, h)| h.serial == Some(serial) && !other(h.uuid))
    {
        return Some(id);
    }
    let is_known_otherwise =
        |h: &Marks<'_>| (h.uuid.is_some() && facts.uuid.is_some()) || (h.serial.is_some() && facts.serial.is_some());
    let mut with_mac = known.filter(|(_, h)| h.macs.iter().any(|mac| facts.macs.contains(mac)));
    match (with_mac.next(), with_mac.next()) {
        (Some((id, host)), None) if !is_known_otherwise(&host) => Some(id),
        _ => None,
    }
}

/// Ethernet addresses that are kept of one machine.
pub const MACS_MAX: usize = 32;
/// Bytes of a text about a machine.
pub const TEXT_MAX: usize = 256;

impl Facts {
    /// Without what is too long, and without what tells nothing: text that a vendor forgot to fill in.
    #[must_use]
    pub fn cleaned(mut self) -> Self {
        const NOTHING: [&str; 8] = [
            "",
            "0",
            "none",
            "not specified",
            "default string",
            "to be filled by o.e.m.",
            "system serial number",
            "0123456789",
        ];
        let clean =
            |text: &str| text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect::<String>().trim().to_string();
        self.uuid = self.uuid.filter(Uuid::is_unique);
        self.serial = self.serial.map(|s| clean(&s)).filter(|s| !NOTHING.contains(&s.to_ascii_lowercase().as_str()));
        self.product = clean(&self.product);
        self.macs.retain(|mac| mac.0 != [0; 6] && mac.0[0] & 1 == 0);
        self.macs.sort();
        self.macs.dedup();
        self.macs.truncate(MACS_MAX);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_every_spelling() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0xab, 0x56]);
        for text in ["52:54:00:12:ab:56", "52-54-00-12-AB-56", "5254.0012.ab56", " 52540012ab56 "] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
        for text in ["", "52:54:00:12:ab", "52:54:00:12:ab:56:01", "52:54:00:12:ab:5g"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn uuids_that_tell_machines_apart() {
        let uuid: Uuid = "4c4c4544-0042-3510-8052-b4c04f4d3232".parse().unwrap();
        assert_eq!(uuid.to_string(), "4c4c4544-0042-3510-8052-b4c04f4d3232");
        assert!(uuid.is_unique());
        let wire = [0x44, 0x45, 0x4c, 0x4c, 0x42, 0, 0x10, 0x35, 0x80, 0x52, 0xb4, 0xc0, 0x4f, 0x4d, 0x32, 0x32];
        assert_eq!(Uuid::from_wire(wire), uuid);
        for text in ["00000000-0000-0000-0000-000000000000", "03000200-0400-0500-0006-000700080009"] {
            assert!(!text.parse::<Uuid>().unwrap().is_unique());
        }
    }

    #[test]
    fn facts_that_tell_nothing_go() {
        let facts = Facts {
            uuid: Some(Uuid([0xff; 16])),
            serial: Some("To Be Filled By O.E.M.".into()),
            macs: vec![Mac([0; 6]), Mac([1, 2, 3, 4, 5, 6]), Mac([2, 2, 3, 4, 5, 6]), Mac([2, 2, 3, 4, 5, 6])],
            product: "x\u{7}y ".into(),
            firmware: None,
        };
        let clean = facts.cleaned();
        assert_eq!((clean.uuid, clean.serial.as_deref(), clean.product.as_str()), (None, None, "xy"));
        assert_eq!(clean.macs, [Mac([2, 2, 3, 4, 5, 6])]);
    }
}
