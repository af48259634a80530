//! Network boot: a boot server to its controller, and an installer that a deployment started.

use images::keys::ContentKey;
use images::manifest::ImageName;
use serde::{Deserialize, Serialize};

use crate::machine::Facts;

/// The image that holds boot files; a boot server may have no other.
pub const BOOT_IMAGE: &str = "coe-boot";

/// A boot server asks for the right to admit installers while the controller is away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetDelegation {
    /// PKCS #10 request (DER) over the key that it will sign with; only that key counts.
    pub csr: Vec<u8>,
}

/// The right, for some days.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delegation {
    /// Certificate of an intermediate authority (DER), good for installers that this boot server names only; `None` if an admin decided
    /// that this boot server has to wait for the controller.
    pub certificate: Option<Vec<u8>>,
}

/// A machine asks to boot from the network. Has it anything to do?
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskBoot {
    /// Who it is, as far as a boot request says.
    pub facts: Facts,
    /// Only say what would be answered: a machine that nobody knows is not noted.
    pub is_dry_run: bool,
}

/// What the machine has to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOrder {
    /// What people call it.
    pub host: String,
    /// Whether it is to be installed now. Otherwise it gets no answer, and goes on to its disk.
    pub install: bool,
}

/// The machine loads the installer now: give it its right.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TakeBoot {
    /// Who it is.
    pub facts: Facts,
}

/// The right, for the kernel's command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BootTicket {
    /// One-time, short-lived, for this machine's deployment only.
    pub ticket: String,
    /// What time it is, seconds since 1970: a clock that was never set lets no certificate be valid.
    pub unix_s: u64,
    /// Whether the admin asked for a shell if the installation fails.
    pub rescue: bool,
}

/// Which disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskPolicy {
    /// The only disk that an operating system can go on; if there are two, the installer stops.
    Only,
    /// The disk with this serial number.
    Serial(String),
    /// The disk with this world wide name.
    Wwn(String),
    /// The smallest disk that does not rotate and is large enough; if two are equal, the installer stops.
    SmallestSsd,
}

/// A new member's start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StashJoin {
    /// Its ticket.
    pub ticket: String,
    /// What it offers, bytes.
    pub size: u64,
}

/// A disk is about to become bootable. Whoever finds its first blocks like this later knows that all of it was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finishing {
    /// Serial number of the disk.
    pub serial: String,
    /// BLAKE3 of its very first bytes, which are written last of all.
    pub head: [u8; 32],
    /// BLAKE3 of its first blocks behind them.
    pub rest: [u8; 32],
}

/// What is sealed in the directory for the installer of one deployment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SealedOrder {
    /// What to do, without `user_data`.
    pub deployment: Deployment,
    /// Opens the row with that.
    pub user_data_key: Option<ContentKey>,
}

/// The installer asks what to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetDeployment {
    /// Who the machine is, now in full.
    pub facts: Facts,
}

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deployment {
    /// Its number.
    pub id: u32,
    /// What people call the machine.
    pub host: String,
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
    /// How it becomes a member.
    pub stash: Option<StashJoin>,
    /// What a try before this one was about to finish, if it was cut off after that.
    pub finishing: Option<Finishing>,
}

/// What the installer is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeployStage {
    /// Looking at disks.
    #[default]
    Prepare,
    /// Fetching, writing, reading back.
    Install,
    /// Reading back the rest.
    Compare,
    /// Fitting and naming.
    Finish,
    /// Waiting for the admin's word.
    Stopped,
}

/// What holds the installation up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    /// Not known yet.
    #[default]
    Unknown,
    /// The network, or what peers have to give.
    Peers,
    /// Decompression and proof.
    Processor,
    /// The disk.
    Disk,
}

/// How far it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What it does.
    pub stage: DeployStage,
    /// Bytes done.
    pub done: u64,
    /// Of these.
    pub total: u64,
    /// What holds it up.
    pub limit: Limit,
    /// Why it stopped.
    pub stopped: Option<String>,
    /// The disk that it makes bootable next.
    pub finishing: Option<Finishing>,
}

/// What the installer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Go on, or go on waiting.
    GoOn,
    /// Start again, as the admin said.
    Again,
    /// Give up: the deployment was cancelled.
    Cancelled,
}
