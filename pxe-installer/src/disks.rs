//! Which disk: chosen by what the admin said of it, never by the kernel's name, and refused wherever that leaves a doubt.

use protocol::message::boot::DiskPolicy;

/// A disk as this machine sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskFacts {
    /// Device file.
    pub path: String,
    /// Bytes.
    pub len: u64,
    /// Whether it turns.
    pub is_rotating: bool,
    /// Whether it is a stick, a card, or at the end of a USB cable.
    pub is_removable: bool,
    /// Whether it cannot be written.
    pub is_read_only: bool,
    /// Serial number.
    pub serial: Option<String>,
    /// World wide name.
    pub wwn: Option<String>,
    /// What it is a part of: RAID, multipath, a mounted file system.
    pub part_of: Option<String>,
}

impl DiskFacts {
    /// For people: what tells it from others.
    #[must_use]
    pub fn describe(&self) -> String {
        let name = self.path.trim_start_matches("/dev/");
        let gb = self.len as f64 / 1e9;
        let serial = self.serial.as_ref().map_or(String::new(), |s| format!(", serial={s}"));
        let wwn = self.wwn.as_ref().map_or(String::new(), |w| format!(", wwn={w}"));
        format!("{name} ({gb:.1} GB{serial}{wwn})")
    }

    /// Why nothing may be installed on it, whoever asks.
    fn refusal(&self, needed: u64) -> Option<String> {
        if let Some(whole) = &self.part_of {
            Some(format!("is {whole}"))
        } else if self.is_removable {
            Some("is removable".into())
        } else if self.is_read_only {
            Some("is read-only".into())
        } else if self.len < needed {
            Some(format!("is too small: the image needs {needed} bytes, it has {}", self.len))
        } else {
            None
        }
    }
}

/// A world wide name without the prefixes that the kernel, `lsblk` and labels write differently.
fn plain_wwn(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    ["naa.", "eui.", "uuid.", "0x"].iter().find_map(|p| text.strip_prefix(p)).unwrap_or(&text).to_string()
}

/// The disk for an image that needs `needed` bytes.
///
/// # Errors
/// Says which disks there are, and what the admin can say to decide.
pub fn choose<'a>(disks: &'a [DiskFacts], policy: &DiskPolicy, needed: u64) -> Result<&'a DiskFacts, String> {
    let listed = |which: &[&DiskFacts]| which.iter().map(|d| d.describe()).collect::<Vec<_>>().join("; ");
    let all = listed(&disks.iter().collect::<Vec<_>>());
    if disks.is_empty() {
        return Err("this machine has no disk, or its driver is missing from the boot set".into());
    }
    let named = |what: &str, found: Vec<&'a DiskFacts>| match found.as_slice() {
        [disk] => Ok(*disk),
        [] => Err(format!("no disk here has {what}. There is: {all}")),
        _ => Err(format!("several disks have {what}: {}", listed(&found))),
    };
    let disk = match policy {
        DiskPolicy::Serial(want) => {
            named(&format!("serial={want}"), disks.iter().filter(|d| d.serial.as_ref() == Some(want)).collect())?
        }
        DiskPolicy::Wwn(want) => {
            let is_it = |d: &&DiskFacts| d.wwn.as_ref().is_some_and(|w| plain_wwn(w) == plain_wwn(want));
            named(&format!("wwn={want}"), disks.iter().filter(is_it).collect())?
        }
        DiskPolicy::Only => {
            // A small disk counts, too: it may be the one that is not meant.
            let fixed: Vec<&DiskFacts> = disks.iter().filter(|d| !d.is_removable).collect();
            match fixed.as_slice() {
                [disk] => *disk,
                [] => return Err(format!("there are only removable disks: {all}")),
                _ => {
                    let more = "Say which: --disk serial=…, wwn=… or smallest-ssd";
                    return Err(format!("which disk? There are {}: {}. {more}", fixed.len(), listed(&fixed)));
                }
            }
        }
        DiskPolicy::SmallestSsd => {
            // One that is refused for what it is part of is not passed over for the next larger: that one may be somebody's data.
            let is_meant = |d: &&DiskFacts| !d.is_rotating && !d.is_removable && d.len >= needed;
            let mut fit: Vec<&DiskFacts> = disks.iter().filter(is_meant).collect();
            fit.sort_by_key(|d| d.len);
            match fit.as_slice() {
                [] => return Err(format!("no solid-state disk here is large enough. There is: {all}")),
                [a, b, ..] if a.len == b.len => {
                    return Err(format!("two solid-state disks are equally small: {}", listed(&[a, b])));
                }
                [disk, ..] => *disk,
            }
        }
    };
    match disk.refusal(needed) {
        Some(why) => Err(format!("{} {why}", disk.describe())),
        None => Ok(disk),
    }
}

/// Mark disks that are one disk, reached on several paths: writing to one of them would go around whatever joins them.
pub fn mark_multipath(disks: &mut [DiskFacts]) {
    let ids: Vec<Option<String>> = disks.iter().map(|d| d.wwn.clone()).collect();
    for (i, disk) in disks.iter_mut().enumerate() {
        let others = ids.iter().enumerate().filter(|(j, id)| *j != i && id.is_some() && **id == ids[i]).count();
        if others > 0 && disk.part_of.is_none() {
            disk.part_of = Some(format!("one of {} paths to the same disk (multipath)", others + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, gb: u64, serial: &str) -> DiskFacts {
        DiskFacts {
            path: format!("/dev/{name}"),
            len: gb * 1_000_000_000,
            serial: (!serial.is_empty()).then(|| serial.into()),
            ..DiskFacts::default()
        }
    }

    fn chosen(disks: &[DiskFacts], policy: &DiskPolicy) -> Result<String, String> {
        choose(disks, policy, 10_000_000_000).map(|d| d.path.clone())
    }

    #[test]
    fn doubt_refuses() {
        let (a, b, small) = (disk("sda", 100, "A"), disk("sdb", 200, "B"), disk("mmcblk0", 4, "M"));
        let stick = DiskFacts { is_removable: true, ..disk("sdc", 64, "U") };
        let is = |path: &str| Ok(format!("/dev/{path}"));
        assert_eq!(chosen(std::slice::from_ref(&a), &DiskPolicy::Only), is("sda"));
        assert_eq!(chosen(&[a.clone(), stick.clone()], &DiskPolicy::Only), is("sda"));
        let both = chosen(&[a.clone(), b.clone()], &DiskPolicy::Only).unwrap_err();
        assert!(both.contains("serial=A") && both.contains("serial=B") && both.contains("--disk"), "{both}");
        assert!(chosen(&[a.clone(), small.clone()], &DiskPolicy::Only).is_err());
        assert!(chosen(std::slice::from_ref(&stick), &DiskPolicy::Only).is_err());
        assert!(chosen(&[], &DiskPolicy::Only).is_err());
        assert!(chosen(&[small], &DiskPolicy::Only).unwrap_err().contains("too small"));
        let serial = |s: &str| DiskPolicy::Serial(s.into());
        assert_eq!(chosen(&[a.clone(), b.clone()], &serial("B")), is("sdb"));
        assert!(chosen(&[a.clone(), b], &serial("C")).unwrap_err().contains("serial=A"));
        assert!(chosen(&[a.clone(), disk("sdz", 100, "A")], &serial("A")).is_err());
        assert!(chosen(&[stick], &serial("U")).unwrap_err().contains("removable"));
    }

    #[test]
    fn the_smallest_that_does_not_turn() {
        let (a, b, small) = (disk("nvme0n1", 250, "A"), disk("nvme1n1", 500, "B"), disk("mmcblk0", 4, "M"));
        let turning = DiskFacts { is_rotating: true, ..disk("sda", 20, "T") };
        assert_eq!(
            chosen(&[b.clone(), turning, a.clone(), small], &DiskPolicy::SmallestSsd),
            Ok("/dev/nvme0n1".into())
        );
        let taken = DiskFacts { part_of: Some("a member of a RAID".into()), ..a.clone() };
        let refused = chosen(&[b.clone(), taken], &DiskPolicy::SmallestSsd).unwrap_err();
        assert!(refused.contains("RAID"), "the next larger is not taken instead: {refused}");
        assert!(chosen(&[a.clone(), DiskFacts { path: "/dev/x".into(), ..a }, b], &DiskPolicy::SmallestSsd).is_err());
    }

    #[test]
    fn parts_of_something_larger_are_refused() {
        let raid = DiskFacts { part_of: Some("a member of a RAID".into()), ..disk("sda", 100, "A") };
        assert!(chosen(&[raid], &DiskPolicy::Serial("A".into())).unwrap_err().contains("RAID"));
        let mut paths = [disk("sda", 100, "A"), disk("sdb", 100, "A"), disk("sdc", 100, "C")];
        for (path, wwn) in paths.iter_mut().zip(["w1", "w1", "w2"]) {
            path.wwn = Some(wwn.into());
        }
        mark_multipath(&mut paths);
        assert!(chosen(&paths, &DiskPolicy::Wwn("W1".into())).is_err());
        assert!(paths[0].part_of.as_ref().unwrap().contains("multipath"));
        assert_eq!(chosen(&paths, &DiskPolicy::Wwn("0xW2".into())), Ok("/dev/sdc".into()));
    }
}
