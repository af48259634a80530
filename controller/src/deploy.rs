//! Deployments: what shall become of a machine, and how far that is.

use images::manifest::ImageName;
use protocol::message::boot::{DiskPolicy, Finishing};
use serde::{Deserialize, Serialize};

/// Where a deployment is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// The machine has not come yet.
    Waiting,
    /// The installer runs, or was interrupted; the machine may come again.
    Installing,
    /// The installer stopped, and waits for the admin's word.
    Stopped(String),
    /// Proven on the disk; the machine has not come up with it yet.
    Installed,
    /// The machine came up, and its stash has joined.
    Deployed,
    /// The admin called it off.
    Cancelled,
}

impl State {
    /// In one word.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Installing => "installing",
            Self::Stopped(_) => "stopped",
            Self::Installed => "installed",
            Self::Deployed => "deployed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the machine gets an answer when it boots from the network.
    #[must_use]
    pub fn wants_boot(&self) -> bool {
        matches!(self, Self::Waiting | Self::Installing)
    }

    /// Whether another deployment of the same machine must wait.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Waiting | Self::Installing | Self::Stopped(_))
    }
}

/// What shall become of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeployRecord {
    /// The machine.
    pub host: u32,
    /// What to install.
    pub image: ImageName,
    /// Where.
    pub disk: DiskPolicy,
    /// Whether all on that disk may be destroyed.
    pub wipe: bool,
    /// Whether disk and partitions get new GUIDs.
    pub new_guids: bool,
    /// The machine's name.
    pub hostname: Option<String>,
    /// cloud-init's `user-data`.
    pub user_data: Option<String>,
    /// What the machine's stash offers, bytes; 0 for no stash.
    pub stash_size: u64,
    /// Of the ticket with which that stash joins.
    pub stash_secret: [u8; 16],
    /// Whether to give a shell when it fails.
    pub rescue: bool,
    /// Not before this, seconds since 1970.
    pub not_before_unix_s: u64,
    /// Whether the machine is still to be woken, once it is time.
    pub wake: bool,
    /// The disk that an installation was about to make bootable.
    pub finishing: Option<Finishing>,
    /// Where it is.
    pub state: State,
    /// When that began.
    pub since_unix_s: u64,
}

impl DeployRecord {
    /// This plan for one machine, from now on; `stash_secret` is random.
    #[must_use]
    pub fn for_host(&self, host: u32, hostname: Option<String>, stash_secret: [u8; 16], now_unix_s: u64) -> Self {
        Self { host, hostname, stash_secret, since_unix_s: now_unix_s, ..self.clone() }
    }

    /// What of it others are told, in the directory.
    #[must_use]
    pub fn told(&self) -> Option<&Option<Finishing>> {
        self.state.wants_boot().then_some(&self.finishing)
    }

    /// Whether the machine is to be installed at this time, seconds since 1970.
    #[must_use]
    pub fn is_due(&self, now_unix_s: u64) -> bool {
        self.state.wants_boot() && self.not_before_unix_s <= now_unix_s
    }
}

/// Whoever asks to boot is approved and installed: for a room of new machines, and for a limited time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AutoApprove {
    /// What each becomes.
    pub plan: DeployRecord,
    /// Until then, seconds since 1970.
    pub until_unix_s: u64,
}

/// A disk as a person names it: `serial=…`, `wwn=…`, `smallest-ssd`, `only`.
///
/// # Errors
/// Says what is accepted.
pub fn parse_disk(text: &str) -> Result<DiskPolicy, String> {
    match text.split_once('=') {
        Some(("serial", value)) if !value.is_empty() => Ok(DiskPolicy::Serial(value.into())),
        Some(("wwn", value)) if !value.is_empty() => Ok(DiskPolicy::Wwn(value.into())),
        None if text == "smallest-ssd" => Ok(DiskPolicy::SmallestSsd),
        None if text == "only" => Ok(DiskPolicy::Only),
        _ => Err(format!("--disk is serial=…, wwn=…, smallest-ssd or only, not {text:?}")),
    }
}

/// A machine's name from a pattern: `{n}` is its number among those deployed together, `{n:02}` with zeros in front, `{name}` what it is
/// called here.
///
/// # Errors
/// If the pattern is not understood, or the result is no host name (RFC 1123, 2.1).
pub fn hostname(pattern: &str, number: usize, name: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        out += before;
        let (field, after) = after.split_once('}').ok_or_else(|| format!("{pattern:?} has a {{ without a }}"))?;
        match field.split_once(':') {
            None if field == "n" => out += &number.to_string(),
            None if field == "name" => out += name,
            Some(("n", width)) => {
                let width: usize = width.parse().map_err(|_| format!("{field:?} is not {{n:02}}"))?;
                out += &format!("{number:0width$}", width = width.min(9));
            }
            _ => return Err(format!("{{{field}}} is not known: {{n}}, {{n:02}} or {{name}}")),
        }
        rest = after;
    }
    out += rest;
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if out.len() <= 253 && out.split('.').all(is_label) {
        Ok(out)
    } else {
        Err(format!("{out:?} is not a host name: letters, digits and - only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        assert_eq!(hostname("lab-{n:02}", 3, "x").as_deref(), Ok("lab-03"));
        assert_eq!(hostname("{name}.school.example", 3, "pc7").as_deref(), Ok("pc7.school.example"));
        assert_eq!(hostname("pc{n}", 12, "x").as_deref(), Ok("pc12"));
        for bad in ["", "-a", "a_b", "lab-{n", "lab-{x}", "lab-{n:z}", "a..b", "a;reboot"] {
            assert!(hostname(bad, 1, "x").is_err(), "{bad}");
        }
    }

    #[test]
    fn disks() {
        assert_eq!(parse_disk("serial=S3Z8"), Ok(DiskPolicy::Serial("S3Z8".into())));
        assert_eq!(parse_disk("wwn=eui.01"), Ok(DiskPolicy::Wwn("eui.01".into())));
        assert_eq!(parse_disk("smallest-ssd"), Ok(DiskPolicy::SmallestSsd));
        for bad in ["", "serial=", "/dev/sda", "sda", "serial"] {
            assert!(parse_disk(bad).is_err(), "{bad}");
        }
    }
}
