//! The disk that is written: what is refused, how it is made zero, how it is made durable.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail};
use images::ContentDigest;
use images::disk::{ReadAt as _, SectorSize, Table};
use images::extent::is_zero;
use images::manifest::Root;
use protocol::io::disk::DiskFile;
use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate};

use crate::first_blocks::FIRST_LEN;

/// Zeros that are written at once where a range cannot be made zero otherwise.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Where an installation under way leaves its mark: in what is held back to the end, and so is overwritten by it.
const MARK_OFFSET: u64 = FIRST_LEN / 2;
const MARK_MAGIC: [u8; 16] = *b"COE INSTALLING 1";

/// The mark of an installation: it goes on after a power cut, and its remains are nobody's data.
fn mark_of(content: &ContentDigest) -> Vec<u8> {
    let mut mark = [&MARK_MAGIC[..], &content.0].concat();
    let check = blake3::hash(&mark);
    mark.extend_from_slice(check.as_bytes());
    mark.resize(4096, 0);
    mark
}

/// What the person said about the disk.
pub struct Consent {
    /// `--wipe`: the serial number of the disk whose contents may go.
    pub wipe: Option<String>,
}

/// A disk that may be written.
pub struct Target {
    file: File,
    /// Keeps others away from a disk.
    claim: Mutex<Option<File>>,
    path: PathBuf,
    len: u64,
    is_block_device: bool,
    /// Contents whose installation was interrupted here.
    interrupted: Option<ContentDigest>,
}

/// What the kernel calls a block device, from its device number.
fn sys_folder(rdev: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default()
}

/// What a file below `/sys` says; `None` for one that is missing or empty.
pub(super) fn sys_text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_string()).filter(|t| !t.is_empty())
}

/// The serial number of a SATA, SAS or SCSI disk: vital product data, page 0x80, four bytes of header (SPC-5, 7.7.18).
fn scsi_serial(sys: &Path) -> Option<String> {
    let page = fs::read(sys.join("device/vpd_pg80")).ok()?;
    let text =
        String::from_utf8_lossy(page.get(4..)?).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_string();
    (!text.is_empty()).then_some(text)
}

/// A disk's serial number or WWN, as `lsblk -o NAME,SERIAL,WWN` shows it; of a loop device its file; of a file, its name. A kernel
/// name is none: it may be another disk after the next boot.
pub(super) fn serial(path: &Path, sys: Option<&Path>) -> Option<String> {
    const NAMES: [&str; 2] = ["device/serial", "serial"];
    const LESS_COMMON: [&str; 3] = ["device/wwid", "wwid", "loop/backing_file"];
    match sys {
        Some(sys) => {
            let of = |names: &[&str]| names.iter().find_map(|name| sys_text(&sys.join(name)));
            of(&NAMES).or_else(|| scsi_serial(sys)).or_else(|| of(&LESS_COMMON))
        }
        None => path.file_name().map(|name| name.to_string_lossy().into_owned()),
    }
}

/// Device numbers of what is mounted or swapped on.
fn in_use_devices() -> Vec<(u64, String)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut devices: Vec<(u64, String)> = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(numbers), Some(place)) = (fields.get(2), fields.get(4)) else {
            continue;
        };
        if let Some((major, minor)) = numbers.split_once(':')
            && let (Ok(major), Ok(minor)) = (major.parse(), minor.parse())
        {
            devices.push((rustix::fs::makedev(major, minor), format!("mounted at {place}")));
        }
    }
    for line in fs::read_to_string("/proc/swaps").unwrap_or_default().lines().skip(1) {
        let path = line.split_whitespace().next().unwrap_or_default();
        if let Ok(meta) = fs::metadata(path) {
            devices.push((if meta.rdev() != 0 { meta.rdev() } else { meta.dev() }, "swapped on".into()));
        }
    }
    devices
}

fn refuse_block_device(path: &Path, sys: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    if sys.join("partition").exists() {
        bail!("{shown} is a partition; an image is a whole disk: name the disk");
    }
    if sys_text(&sys.join("ro")).as_deref() == Some("1") {
        bail!("{shown} is read-only");
    }
    let number = |folder: &Path| {
        let text = sys_text(&folder.join("dev"))?;
        let (major, minor) = text.split_once(':')?;
        Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    let partitions =
        fs::read_dir(sys).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.join("partition").exists());
    let folders: Vec<PathBuf> = std::iter::once(sys.to_path_buf()).chain(partitions).collect();
    let in_use = in_use_devices();
    for folder in folders {
        let name = folder.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        if let Some((_, how)) = in_use.iter().find(|(dev, _)| Some(*dev) == number(&folder)) {
            bail!("{shown} is in use: {name} is {how}");
        }
        if let Some(holder) = fs::read_dir(folder.join("holders")).into_iter().flatten().flatten().next() {
            bail!("{shown} is in use: {} is built on {name}", holder.file_name().to_string_lossy());
        }
    }
    Ok(())
}

fn refuse_file(path: &Path) -> anyhow::Result<()> {
    let exact = fs::canonicalize(path)?;
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        if sys_text(&device.path().join("loop/backing_file")).is_some_and(|f| Path::new(&f) == exact) {
            bail!("{} is in use: /dev/{} is built on it", path.display(), device.file_name().to_string_lossy());
        }
    }
    Ok(())
}

impl Target {
    /// Open a disk for an image, after everything that speaks against it was looked for. Nothing is written.
    ///
    /// # Errors
    /// If the path is not a whole disk or a file, the disk is too small, in use, has other sectors than the image's table, or
    /// holds data that nobody said may go.
    pub fn open(path: &Path, root: &Root, consent: &Consent) -> anyhow::Result<Self> {
        let shown = path.display();
        let meta = fs::metadata(path).with_context(|| {
            format!("find {shown}: name an existing disk or file exactly (`truncate -s SIZE FILE` makes a file)")
        })?;
        let kind = meta.file_type();
        let is_block_device = kind.is_block_device();
        if !is_block_device && !kind.is_file() {
            bail!("{shown} is neither a disk nor a file");
        }
        let sys = is_block_device.then(|| sys_folder(meta.rdev()));
        match &sys {
            Some(sys) => refuse_block_device(path, sys)?,
            None => refuse_file(path)?,
        }
        let claim = Mutex::new(if is_block_device { Some(claim(path)?) } else { None });
        let file = OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("open {shown}"))?;
        let len = DiskFile::from_file(file.try_clone()?)?.len();
        if len < root.disk_len {
            bail!("{shown} is too small: {} needs {} bytes, it has {len}", root.image, root.disk_len);
        }
        if let Some(sys) = &sys {
            check_sectors(path, sys, root)?;
        }
        let mut target = Self { file, claim, path: path.into(), len, is_block_device, interrupted: None };
        target.interrupted = target.read_mark().with_context(|| format!("read {shown}"))?;
        target.check_wipe(serial(path, sys.as_deref()).as_deref(), consent)?;
        Ok(target)
    }

    fn check_wipe(&self, serial: Option<&str>, consent: &Consent) -> anyhow::Result<()> {
        let shown = self.path.display();
        match (&consent.wipe, serial) {
            (Some(said), Some(serial)) if said == serial => Ok(()),
            (Some(said), Some(serial)) => {
                bail!("--wipe names {said:?}, and {shown} is {serial:?}: nothing was written")
            }
            (None, _) if self.interrupted.is_some() || !self.holds_data()? => Ok(()),
            (None, Some(serial)) => {
                bail!("{shown} holds data. If all of it may be destroyed, say so: --wipe {serial:?}")
            }
            (_, None) => bail!(
                "{shown} reports no serial number, so nobody can say for certain that it is the one meant. If all on it may be \
                 destroyed, clear it first (`blkdiscard -z {shown}`) and run this again without --wipe"
            ),
        }
    }

    /// Whether a table or a file system could be here: anything but zeros at either end, or any data in a file.
    fn holds_data(&self) -> io::Result<bool> {
        let disk = DiskFile::from_file(self.file.try_clone()?)?;
        let mut buffer = vec![0; self.len.min(FIRST_LEN) as usize];
        for offset in [0, self.len - buffer.len() as u64] {
            disk.read_exact_at(offset, &mut buffer)?;
            if !is_zero(&buffer) {
                return Ok(true);
            }
        }
        Ok(!self.is_block_device && disk.next_data(0)?.is_some())
    }

    fn read_mark(&self) -> io::Result<Option<ContentDigest>> {
        if self.len < FIRST_LEN {
            return Ok(None);
        }
        // Everything else here is written last, so beside a mark that holds there are zeros: a disk that was put to other use in the
        // meantime, around a mark that nobody saw, holds data.
        let mut first = vec![0; FIRST_LEN as usize];
        self.file.read_exact_at(&mut first, 0)?;
        let block: Vec<u8> = first.splice(MARK_OFFSET as usize..MARK_OFFSET as usize + 4096, []).collect();
        if !is_zero(&first) {
            return Ok(None);
        }
        let mut content = [0; 32];
        content.copy_from_slice(&block[MARK_MAGIC.len()..][..32]);
        let content = ContentDigest(content);
        Ok((block == mark_of(&content)).then_some(content))
    }

    /// Whether an installation of these contents was interrupted here: zeros and all that was written are as it left them.
    #[must_use]
    pub fn resumes(&self, content: &ContentDigest) -> bool {
        self.interrupted.as_ref() == Some(content)
    }

    /// What is here does not count any more: the next try begins anew.
    ///
    /// # Errors
    /// The medium's.
    pub fn unmark(&self) -> io::Result<()> {
        self.zero(MARK_OFFSET..MARK_OFFSET + 4096)?;
        self.file.sync_data()
    }

    /// From here on the disk holds parts of these contents and zeros, and nothing else.
    ///
    /// # Errors
    /// The medium's.
    pub fn mark(&self, content: &ContentDigest) -> io::Result<()> {
        if self.len >= FIRST_LEN {
            // First what the mark says.
            self.file.sync_data()?;
            self.write(MARK_OFFSET, &mark_of(content))?;
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Make the disk unbootable and its old tables unreadable before anything else. Of a file, make everything zero; of a disk
    /// the gaps follow. Says whether gaps are zero now.
    ///
    /// # Errors
    /// The medium's.
    pub fn clear(&self) -> io::Result<bool> {
        if self.is_block_device {
            let end = FIRST_LEN.min(self.len);
            self.zero(0..end)?;
            self.zero(self.len - end..self.len)?;
            self.file.sync_data()?;
            return Ok(false);
        }
        self.file.set_len(0)?;
        self.file.set_len(self.len)?;
        self.file.sync_all()?;
        Ok(true)
    }

    /// Make a range read as zero.
    ///
    /// # Errors
    /// The medium's.
    pub fn zero(&self, range: std::ops::Range<u64>) -> io::Result<()> {
        // On a block device this becomes BLKZEROOUT: the disk zeroes by itself where it can.
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, flags, range.start, range.end - range.start).is_ok() {
            return Ok(());
        }
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    /// Let others use what is on a disk for a while, such as mount its partitions, until [`Target::claim_again`].
    pub fn release(&self) {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Keep others away again.
    ///
    /// # Errors
    /// If the disk is still in use.
    pub fn claim_again(&self) -> anyhow::Result<()> {
        if self.is_block_device {
            *self.claim.lock().unwrap_or_else(PoisonError::into_inner) = Some(claim(&self.path)?);
        }
        Ok(())
    }

    /// Write.
    ///
    /// # Errors
    /// The medium's. Some disks report only at [`Target::sync`].
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Make what was written so far durable.
    ///
    /// # Errors
    /// The medium's: write errors show here, once.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Make everything durable, and forget what memory holds of it: the next read comes from the disk.
    ///
    /// # Errors
    /// The medium's: write errors show here.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        Ok(fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    /// Forget what memory holds of a durable range: the next read comes from the disk.
    ///
    /// # Errors
    /// The medium's.
    pub fn forget(&self, range: std::ops::Range<u64>) -> io::Result<()> {
        let len = std::num::NonZeroU64::new(range.end - range.start);
        Ok(fadvise(&self.file, range.start, len, Advice::DontNeed)?)
    }

    /// For reading back.
    ///
    /// # Errors
    /// The medium's.
    pub fn reader(&self) -> io::Result<DiskFile> {
        DiskFile::from_file(self.file.try_clone()?)
    }
}

/// The beginning of a disk as the medium has it, whatever memory holds of it.
///
/// # Errors
/// The medium's.
pub fn read_from_medium(path: &Path, len: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// With O_EXCL the kernel itself refuses a disk that is mounted or built on, and keeps others away as long as the file is open.
fn claim(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::EXCL.bits().cast_signed());
    options.open(path).with_context(|| format!("open {} for writing: is it in use?", path.display()))
}

fn check_sectors(path: &Path, sys: &Path, root: &Root) -> anyhow::Result<()> {
    let bytes = sys_text(&sys.join("queue/logical_block_size")).and_then(|t| t.parse().ok());
    let have = bytes.and_then(SectorSize::from_bytes);
    let want = root.disk.sector_size;
    if root.disk.table != Table::None && have.is_some_and(|have| have != want) {
        bail!(
            "{} has sectors of {} bytes, and the partition table of {} counts in {}: it would not be found there",
            path.display(),
            bytes.unwrap_or(0),
            root.image,
            want.bytes()
        );
    }
    Ok(())
}
