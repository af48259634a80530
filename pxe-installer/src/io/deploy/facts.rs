//! What this machine says of itself.

use std::fs;
use std::path::Path;

use protocol::machine::{Facts, Firmware, Mac};

use crate::io::target::sys_text;

fn firmware() -> Firmware {
    if !Path::new("/sys/firmware/efi").exists() {
        return Firmware::Bios;
    }
    // Four bytes of attributes, then the value (Linux, efivarfs; UEFI specification, 3.3).
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    match fs::read(variable) {
        Ok(bytes) if bytes.last() == Some(&1) && bytes.len() == 5 => Firmware::SecureBoot,
        _ => Firmware::Uefi,
    }
}

/// Ethernet addresses of network cards, not of what is only software.
fn macs() -> Vec<Mac> {
    let cards = fs::read_dir("/sys/class/net").into_iter().flatten().flatten().map(|e| e.path());
    cards
        .filter(|card| card.join("device").exists())
        .filter_map(|card| sys_text(&card.join("address"))?.parse().ok())
        .collect()
}

/// Everything.
pub(super) fn of_this_machine() -> Facts {
    let dmi = |name: &str| sys_text(&Path::new("/sys/class/dmi/id").join(name));
    let product: Vec<String> = ["sys_vendor", "product_name"].iter().filter_map(|n| dmi(n)).collect();
    Facts {
        uuid: dmi("product_uuid").and_then(|u| u.parse().ok()),
        serial: dmi("product_serial"),
        macs: macs(),
        product: product.join(" "),
        firmware: Some(firmware()),
    }
    .cleaned()
}
