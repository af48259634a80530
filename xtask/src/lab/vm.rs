//! Virtual machines under QEMU's own emulation: nested virtualisation is not to be had everywhere.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::network;
use crate::sample;

/// Machines that run this may be so many times slower than the one that the limits were set on.
const SLOWNESS: u64 = 3;

/// What starts the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Firmware {
    /// SeaBIOS, and QEMU's iPXE on the network card.
    Bios,
    /// OVMF, its own PXE.
    Uefi,
    /// OVMF, its own HTTP boot.
    UefiHttp,
    /// OVMF that enforces Secure Boot with Microsoft's keys.
    SecureBoot,
    /// The same, and it knows the organisation's key, too.
    OwnKey,
}

/// How a disk is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// virtio-blk.
    Virtio,
    /// NVMe.
    Nvme,
    /// SATA, on the chipset's AHCI.
    Sata,
    /// SCSI, on virtio-scsi.
    Scsi,
    /// A stick on USB.
    Usb,
}

/// A disk of a machine.
pub struct VmDisk {
    /// The file.
    pub path: PathBuf,
    /// Serial number.
    pub serial: String,
    /// How it is connected.
    pub kind: DiskKind,
    /// As QEMU takes it after `file=`, where it is not the plain file.
    pub through: Option<String>,
}

/// What a machine is made of.
pub struct VmPlan {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its SMBIOS UUID.
    pub uuid: String,
    /// What starts it.
    pub firmware: Firmware,
    /// Its disks.
    pub disks: Vec<VmDisk>,
    dir: PathBuf,
    number: u8,
}

impl VmPlan {
    pub(super) fn new(name: &str, number: u8, firmware: Firmware, dir: &Path) -> Self {
        Self {
            name: name.into(),
            mac: format!("52:54:00:77:00:{number:02x}"),
            uuid: format!("c0e00000-0000-4000-8000-0000000000{number:02x}"),
            firmware,
            disks: Vec::new(),
            dir: dir.into(),
            number,
        }
    }

    /// Add an empty disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn disk(self, len: u64) -> anyhow::Result<Self> {
        self.disk_on(DiskKind::Virtio, len)
    }

    /// Add an empty disk that is connected like this.
    ///
    /// # Errors
    /// The file system's.
    pub fn disk_on(mut self, kind: DiskKind, len: u64) -> anyhow::Result<Self> {
        let serial = format!("DISK-{}-{}", self.number, self.disks.len());
        let path = self.dir.join(format!("{}-{}.img", self.name, self.disks.len()));
        sample::empty(&path, len)?;
        self.disks.push(VmDisk { path, serial, kind, through: None });
        Ok(self)
    }

    fn firmware_args(&self, command: &mut Command) -> anyhow::Result<()> {
        let (code, vars) = match self.firmware {
            Firmware::Bios => {
                command.args(["-machine", "q35,graphics=off"]);
                return Ok(());
            }
            Firmware::Uefi | Firmware::UefiHttp => ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
            Firmware::SecureBoot | Firmware::OwnKey => ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
        };
        let vars = match self.firmware {
            Firmware::OwnKey => super::keys::variables(),
            _ => Path::new("/usr/share/OVMF").join(vars),
        };
        let own = self.dir.join(format!("{}.vars", self.name));
        if !own.exists() {
            fs::copy(vars, &own)?;
        }
        if matches!(self.firmware, Firmware::SecureBoot | Firmware::OwnKey) {
            command.args(["-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"]);
        } else {
            command.args(["-machine", "q35"]);
        }
        command.arg("-drive").arg(format!("if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/{code}"));
        command.arg("-drive").arg(format!("if=pflash,format=raw,unit=1,file={}", own.display()));
        // What the scenario is not about costs minutes of waiting for answers that do not come.
        command.args(["-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no"]);
        let ipv4 = if self.firmware == Firmware::UefiHttp { "no" } else { "yes" };
        command.arg("-fw_cfg").arg(format!("name=opt/org.tianocore/IPv4PXESupport,string={ipv4}"));
        Ok(())
    }

    /// Power on.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn start(&self) -> anyhow::Result<Vm> {
        let tap = format!("tap{}", self.number);
        network::tap(&tap)?;
        let serial = self.dir.join(format!("{}.serial", self.name));
        let log = File::options().create(true).append(true).open(self.dir.join(format!("{}.qemu", self.name)))?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg",
            "-cpu",
            "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq",
            "-m",
            "768",
            "-display",
            "none",
            "-monitor",
            "none",
        ]);
        command.args(["-uuid", &self.uuid, "-smbios"]).arg(format!("type=1,serial=LAB-{},product=lab", self.number));
        self.firmware_args(&mut command)?;
        command.args(["-device", "virtio-rng-pci"]);
        let rom = if self.firmware == Firmware::Bios { "" } else { ",romfile=" };
        command.arg("-netdev").arg(format!("tap,id=n0,ifname={tap},script=no,downscript=no"));
        command.arg("-device").arg(format!("virtio-net-pci,netdev=n0,mac={},bootindex=0{rom}", self.mac));
        for (i, disk) in self.disks.iter().enumerate() {
            let file = disk.through.clone().unwrap_or_else(|| disk.path.display().to_string());
            command.arg("-drive").arg(format!("if=none,id=d{i},format=raw,file={file}"));
            let device = match disk.kind {
                DiskKind::Virtio => "virtio-blk-pci",
                DiskKind::Nvme => "nvme",
                DiskKind::Sata => "ide-hd",
                DiskKind::Scsi => {
                    command.args(["-device", "virtio-scsi-pci"]);
                    "scsi-hd"
                }
                DiskKind::Usb => {
                    command.args(["-device", "qemu-xhci"]);
                    "usb-storage"
                }
            };
            command.arg("-device").arg(format!("{device},drive=d{i},serial={},bootindex={}", disk.serial, i + 1));
        }
        command.arg("-serial").arg(format!("file:{}", serial.display()));
        let _ = fs::remove_file(&serial);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("start QEMU")?;
        Ok(Vm { child, serial, name: self.name.clone(), started: Instant::now() })
    }
}

/// A machine that runs; it loses its power when this is dropped.
pub struct Vm {
    child: Child,
    serial: PathBuf,
    name: String,
    /// Power-on.
    pub started: Instant,
}

impl Vm {
    /// What the console said so far.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.serial).unwrap_or_default()).into_owned()
    }

    /// Wait for words on the console; the answer is the line they are on.
    ///
    /// # Errors
    /// If they do not come in time, or the machine stops.
    pub fn expect(&mut self, words: &str, seconds: u64) -> anyhow::Result<String> {
        self.expect_any(&[words], seconds)
    }

    /// Wait until these words were said so many times; the answer is the last line they are on.
    ///
    /// # Errors
    /// If they do not come in time, or the machine stops.
    pub fn expect_times(&mut self, words: &str, times: usize, seconds: u64) -> anyhow::Result<String> {
        self.wait(&[words], times, seconds)
    }

    /// Wait for any of these words; the answer is the line they are on.
    ///
    /// # Errors
    /// If they do not come in time, or the machine stops.
    pub fn expect_any(&mut self, words: &[&str], seconds: u64) -> anyhow::Result<String> {
        self.wait(words, 1, seconds)
    }

    fn wait(&mut self, words: &[&str], times: usize, seconds: u64) -> anyhow::Result<String> {
        let start = Instant::now();
        loop {
            let console = self.console();
            if let Some((at, _)) = words.iter().find_map(|w| console.match_indices(w).nth(times - 1)) {
                let line = console[at..].lines().next().unwrap_or_default();
                return Ok(line.trim().to_string());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || start.elapsed() > Duration::from_secs(seconds * SLOWNESS) {
                let plain: String = console.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
                let last: Vec<&str> = plain.lines().filter(|l| !l.trim().is_empty()).rev().take(6).collect();
                let last = last.into_iter().rev().collect::<Vec<_>>().join("\n        ");
                let how = if ended.is_some() { "it stopped" } else { "it did not come in time" };
                bail!(
                    "{}: waited {} s for {words:?}: {how}; its console says:\n        {last}",
                    self.name,
                    start.elapsed().as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Cut the power.
    pub fn power_off(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
