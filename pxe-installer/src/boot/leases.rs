//! Addresses for an isolated network that has no other DHCP server.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::str::FromStr;

use protocol::machine::Mac;
use serde::{Deserialize, Serialize};

/// Seconds that an address is lent for.
pub const LEASE_S: u32 = 3600;
/// Seconds that an address stays away after somebody else was found to use it.
const DECLINED_S: u64 = 600;

/// Addresses from the first to the last, both in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// First.
    pub first: Ipv4Addr,
    /// Last.
    pub last: Ipv4Addr,
}

impl FromStr for AddressRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("{text:?} is not FIRST-LAST, such as 10.0.0.100-10.0.0.200");
        let (first, last) = text.split_once('-').ok_or_else(wanted)?;
        let first: Ipv4Addr = first.trim().parse().map_err(|_| wanted())?;
        let last: Ipv4Addr = last.trim().parse().map_err(|_| wanted())?;
        if first > last || u32::from(last) - u32::from(first) > 65_535 {
            return Err(wanted());
        }
        Ok(Self { first, last })
    }
}

/// Who has which address.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Leases {
    by_address: HashMap<Ipv4Addr, (Option<Mac>, u64)>,
}

impl Leases {
    fn is_free(&self, address: Ipv4Addr, mac: Mac, now_s: u64) -> bool {
        self.by_address.get(&address).is_none_or(|(who, until)| *who == Some(mac) || *until <= now_s)
    }

    /// An address for a machine: the one it has, else the one that it always gets if that is free, else the next. Lent at the
    /// answer to its request; an offer is kept for a minute.
    pub fn lend(&mut self, range: AddressRange, own: Ipv4Addr, mac: Mac, now_s: u64, for_s: u32) -> Option<Ipv4Addr> {
        let count = u32::from(range.last) - u32::from(range.first) + 1;
        let held = self.by_address.iter().find(|(_, (who, _))| *who == Some(mac)).map(|(address, _)| *address);
        let held = held.filter(|a| (range.first..=range.last).contains(a));
        let hash = blake3::hash(&mac.0);
        let start = u32::from_le_bytes(hash.as_bytes()[..4].try_into().expect("4 bytes")) % count;
        let candidates = (0..count).map(|i| Ipv4Addr::from(u32::from(range.first) + (start + i) % count));
        let address = held.into_iter().chain(candidates).find(|a| *a != own && self.is_free(*a, mac, now_s))?;
        self.by_address.insert(address, (Some(mac), now_s + u64::from(for_s)));
        Some(address)
    }

    /// A machine gives its address back.
    pub fn release(&mut self, mac: Mac) {
        self.by_address.retain(|_, (who, _)| *who != Some(mac));
    }

    /// A machine found that somebody else uses an address.
    pub fn decline(&mut self, address: Ipv4Addr, mac: Mac, now_s: u64) {
        // Only who was offered it can tell; anybody else would be taking addresses away.
        if let Some(lease) = self.by_address.get_mut(&address).filter(|(who, _)| *who == Some(mac)) {
            *lease = (None, now_s + DECLINED_S);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_an_address_of_their_own() {
        let range: AddressRange = "10.0.0.10-10.0.0.13".parse().unwrap();
        let own = Ipv4Addr::new(10, 0, 0, 12);
        let mac = |n| Mac([2, 0, 0, 0, 0, n]);
        let mut leases = Leases::default();
        let mut given: Vec<_> = (0..3).map(|n| leases.lend(range, own, mac(n), 0, 60).unwrap()).collect();
        assert_eq!(leases.lend(range, own, mac(0), 30, 60), Some(given[0]), "the same again");
        assert_eq!(leases.lend(range, own, mac(9), 30, 60), None, "none is left");
        assert!(leases.lend(range, own, mac(9), 61, 60).is_some(), "one has ended");
        given.sort();
        given.dedup();
        assert_eq!(given.len(), 3);
        assert!(!given.contains(&own));
        let mut fresh = Leases::default();
        let first = fresh.lend(range, own, mac(5), 0, 60).unwrap();
        assert_eq!(Leases::default().lend(range, own, mac(5), 0, 60), Some(first), "also when all was forgotten");
        fresh.decline(first, mac(6), 0);
        assert_eq!(fresh.lend(range, own, mac(5), 1, 60), Some(first), "that was somebody else's word");
        fresh.decline(first, mac(5), 0);
        assert_ne!(fresh.lend(range, own, mac(5), 1, 60), Some(first));
    }

    #[test]
    fn ranges() {
        for bad in ["", "10.0.0.1", "10.0.0.9-10.0.0.1", "10.0.0.1-11.0.0.1", "a-b"] {
            assert!(bad.parse::<AddressRange>().is_err(), "{bad}");
        }
    }
}
