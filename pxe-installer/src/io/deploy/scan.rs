//! The disks of this machine, as the kernel describes them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use crate::disks::{DiskFacts, mark_multipath};
use crate::io::target::sys_text;

/// Time without a new disk.
const QUIET: Duration = Duration::from_secs(3);
/// And at least so many seconds after the kernel's start.
const UP_S: u64 = 15;

/// What is not a disk although it is a block device.
const NOT_DISKS: [&str; 8] = ["loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd"];

/// Signatures of disks that are parts of something larger: (offset from the start, or from the end where negative; bytes; what).
const SIGNATURES: &[(i64, &[u8], &str)] = &[
    // Linux RAID, versions 1.2, 1.1 and 1.0, and 0.90 (kernel, include/uapi/linux/raid/md_p.h).
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a Linux RAID"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a Linux RAID"),
    (-8192, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a Linux RAID"),
    (-65536, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a Linux RAID"),
    // Intel RST (mdadm, super-intel.c), and the common format DDF (SNIA, 4.2).
    (-1024, b"Intel Raid ISM Cfg Sig. ", "a member of an Intel RST RAID"),
    (-512, &[0xde, 0x11, 0xde, 0x11], "a member of a hardware RAID (DDF)"),
    (-512, &[0x11, 0xde, 0x11, 0xde], "a member of a hardware RAID (DDF)"),
];

fn signature(device: &Path, len: u64) -> Option<String> {
    let file = File::open(device).ok()?;
    SIGNATURES.iter().find_map(|(offset, magic, what)| {
        let at = if *offset < 0 { len.checked_sub(offset.unsigned_abs())? } else { offset.unsigned_abs() };
        let mut found = vec![0; magic.len()];
        file.read_exact_at(&mut found, at).ok()?;
        (found == *magic).then(|| (*what).to_string())
    })
}

fn disk(sys: &Path) -> Option<DiskFacts> {
    let name = sys.file_name()?.to_str()?;
    if NOT_DISKS.iter().any(|not| name.starts_with(not)) || !sys.join("device").exists() {
        return None;
    }
    // One path of several to an NVMe disk, which the kernel shows as one.
    if sys_text(&sys.join("hidden")).as_deref() == Some("1") {
        return None;
    }
    // eMMC has hardware partitions for booting and for secrets, which are no disks.
    if name.contains("boot") || name.contains("rpmb") {
        return None;
    }
    let len = sys_text(&sys.join("size"))?.parse::<u64>().ok()? * 512;
    if len == 0 {
        return None;
    }
    let path = format!("/dev/{name}");
    let is = |file: &str| sys_text(&sys.join(file)).as_deref() == Some("1");
    let real = fs::canonicalize(sys).unwrap_or_default().to_string_lossy().into_owned();
    let is_card = sys_text(&sys.join("device/type")).as_deref() == Some("SD");
    let first = |names: &[&str]| names.iter().find_map(|n| sys_text(&sys.join(n)));
    let holders = fs::read_dir(sys.join("holders")).into_iter().flatten().flatten().next();
    let held = holders.map(|h| format!("in use by {}", h.file_name().to_string_lossy()));
    Some(DiskFacts {
        len,
        is_rotating: is("queue/rotational") && !name.starts_with("vd"),
        is_removable: is("removable") || real.contains("/usb") || is_card,
        is_read_only: is("ro"),
        serial: crate::io::target::serial(Path::new(&path), Some(sys)),
        wwn: first(&["wwid", "device/wwid"]),
        part_of: held.or_else(|| signature(Path::new(&path), len)),
        path,
    })
}

/// All disks, once none has appeared for a while: a controller may take its time, and the disk that comes late may be the one that is
/// meant, or make the choice a doubt.
pub(super) async fn disks() -> Vec<DiskFacts> {
    let mut before = scan();
    loop {
        tokio::time::sleep(QUIET).await;
        let now = scan();
        let up_s = sys_text(Path::new("/proc/uptime"))
            .and_then(|t| t.split('.').next()?.parse::<u64>().ok())
            .unwrap_or(u64::MAX);
        if now == before && up_s >= UP_S {
            return now;
        }
        before = now;
    }
}

fn scan() -> Vec<DiskFacts> {
    let mut found: Vec<DiskFacts> =
        fs::read_dir("/sys/block").into_iter().flatten().flatten().filter_map(|e| disk(&e.path())).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    mark_multipath(&mut found);
    found
}
