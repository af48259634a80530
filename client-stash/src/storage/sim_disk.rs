//! A disk in memory that keeps written and durable bytes apart, crashes, and fails as disks do.

use std::collections::BTreeMap;
use std::io;
use std::mem::{Discriminant, discriminant};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Storage;

const PAGE: usize = 4096;
const TEAR: usize = 512;

type Pages = BTreeMap<u64, Arc<[u8; PAGE]>>;

/// What a call may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails; a write is carried out in part.
    Eio,
    /// From now on nothing more can be written or reserved.
    NoSpace,
    /// The next sync fails, and what it should have saved is lost, though reads show it until it is forgotten.
    SyncFails,
    /// The next sync says that it saved what it did not.
    SyncLies,
    /// The next write goes to so many blocks of 4 KiB further on.
    Misdirected(u64),
}

/// A disk in memory. Writes reach the medium at a sync, or, at a crash, in part and torn at 512 bytes. Cloning it is cheap.
#[derive(Default)]
pub struct SimDisk(Mutex<Inner>);

#[derive(Clone)]
enum Change {
    Write(u64, Arc<[u8]>),
    Len(u64),
    /// Pages from here on, so many.
    Punch(u64, u64),
}

#[derive(Clone, Default)]
struct State {
    durable: Pages,
    durable_len: u64,
    written: Pages,
    len: u64,
    /// Since the last sync, in order.
    unsynced: Vec<Change>,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// The state before each call that changes something, while that is recorded.
    boundaries: Option<Vec<State>>,
    /// Calls so far, by the kind of fault that they could meet.
    calls: Vec<(Discriminant<Fault>, u64)>,
    bytes_given_back: u64,
    fault: Option<(u64, Fault)>,
    is_full: bool,
    bad: Option<std::ops::Range<u64>>,
    bytes_written: u64,
}

fn write_pages(pages: &mut Pages, mut offset: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let within = (offset % PAGE as u64) as usize;
        let (now, later) = bytes.split_at(bytes.len().min(PAGE - within));
        let page = pages.entry(offset / PAGE as u64).or_insert_with(|| Arc::new([0; PAGE]));
        Arc::make_mut(page)[within..within + now.len()].copy_from_slice(now);
        offset += now.len() as u64;
        bytes = later;
    }
}

fn cut(pages: &mut Pages, len: u64) {
    pages.split_off(&len.div_ceil(PAGE as u64));
    let within = (len % PAGE as u64) as usize;
    if within > 0
        && let Some(page) = pages.get_mut(&(len / PAGE as u64))
    {
        Arc::make_mut(page)[within..].fill(0);
    }
}

impl State {
    fn apply(pages: &mut Pages, len: &mut u64, change: &Change) {
        match change {
            Change::Write(offset, bytes) => {
                write_pages(pages, *offset, bytes);
                *len = (*len).max(offset + bytes.len() as u64);
            }
            Change::Len(new) => {
                if new < len {
                    cut(pages, *new);
                }
                *len = *new;
            }
            Change::Punch(first, count) => {
                let gone: Vec<u64> = pages.range(*first..first + count).map(|(page, _)| *page).collect();
                gone.iter().for_each(|page| drop(pages.remove(page)));
            }
        }
    }

    fn change(&mut self, change: Change) {
        Self::apply(&mut self.written, &mut self.len, &change);
        self.unsynced.push(change);
    }

    fn crash(&mut self, mut keep: impl FnMut() -> bool) {
        for change in std::mem::take(&mut self.unsynced) {
            let parts: Vec<Change> = match &change {
                Change::Write(offset, bytes) => {
                    let part = |(i, sector): (usize, &[u8])| Change::Write(offset + (i * TEAR) as u64, sector.into());
                    bytes.chunks(TEAR).enumerate().map(part).collect()
                }
                Change::Punch(first, count) => (*first..first + count).map(|page| Change::Punch(page, 1)).collect(),
                Change::Len(_) => vec![change],
            };
            for part in parts {
                if keep() {
                    Self::apply(&mut self.durable, &mut self.durable_len, &part);
                }
            }
        }
        (self.written, self.len) = (self.durable.clone(), self.durable_len);
    }
}

impl Inner {
    /// Count a call; the fault that it meets, if it is one of `kinds`.
    fn call(&mut self, kinds: &[Fault]) -> Option<Fault> {
        for kind in kinds.iter().map(discriminant) {
            match self.calls.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, calls)) => *calls += 1,
                None => self.calls.push((kind, 1)),
            }
        }
        let (at, fault) = self.fault?;
        let is_for = |kind: &Fault| discriminant(kind) == discriminant(&fault);
        if self.calls_for(fault) < at || !kinds.iter().any(is_for) {
            return None;
        }
        self.fault = None;
        Some(fault)
    }

    fn calls_for(&self, fault: Fault) -> u64 {
        let known = self.calls.iter().find(|(kind, _)| *kind == discriminant(&fault));
        known.map_or(0, |(_, calls)| *calls)
    }

    fn boundary(&mut self) {
        if let Some(boundaries) = &mut self.boundaries {
            boundaries.push(self.state.clone());
        }
    }

    fn is_bad(&self, offset: u64, len: u64) -> bool {
        self.bad.as_ref().is_some_and(|bad| offset < bad.end && bad.start < offset + len)
    }
}

fn eio() -> io::Error {
    io::Error::other("simulated medium error")
}

impl SimDisk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(state: State) -> Self {
        Self(Mutex::new(Inner { state, ..Inner::default() }))
    }

    /// Another disk with the same bytes, durable and not, and the same calls behind it; it meets no faults.
    #[must_use]
    pub fn copy(&self) -> Self {
        let inner = self.inner();
        Self(Mutex::new(Inner { state: inner.state.clone(), calls: inner.calls.clone(), ..Inner::default() }))
    }

    /// Lose power: of what was not synced, `keep` decides for each 512-byte sector whether it reached the medium.
    pub fn crash(&self, keep: impl FnMut() -> bool) {
        self.inner().state.crash(keep);
    }

    /// From now on, remember the state before each call that changes something.
    pub fn record_boundaries(&self) {
        self.inner().boundaries = Some(Vec::new());
    }

    /// The states that were remembered since the last time, as disks.
    #[must_use]
    pub fn take_boundaries(&self) -> Vec<Self> {
        let mut inner = self.inner();
        inner.boundaries.as_mut().map(std::mem::take).unwrap_or_default().into_iter().map(Self::of).collect()
    }

    /// Calls so far that could meet such a fault.
    #[must_use]
    pub fn calls_for(&self, fault: Fault) -> u64 {
        self.inner().calls_for(fault)
    }

    /// Bytes whose space was given back so far.
    #[must_use]
    pub fn bytes_given_back(&self) -> u64 {
        self.inner().bytes_given_back
    }

    /// Bytes that were written so far.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.inner().bytes_written
    }

    /// Let the first call that `fault` is for, from such a call number `at` on, meet it.
    pub fn arm(&self, at: u64, fault: Fault) {
        self.inner().fault = Some((at, fault));
    }

    /// Whether the fault that was armed has not happened yet.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.inner().fault.is_some()
    }

    /// No more faults.
    pub fn heal(&self) {
        let mut inner = self.inner();
        (inner.fault, inner.is_full, inner.bad) = (None, false, None);
    }

    /// There is room again.
    pub fn heal_space(&self) {
        self.inner().is_full = false;
    }

    /// This range cannot be read any more.
    pub fn spoil(&self, range: std::ops::Range<u64>) {
        self.inner().bad = Some(range);
    }

    /// Flip bits on the medium, as rot does.
    pub fn rot(&self, offset: u64, mask: u8) {
        let mut byte = [0];
        self.read_exact_at(offset, &mut byte).expect("rot within the disk");
        self.overwrite(offset, &[byte[0] ^ mask]);
    }

    /// Put bytes on the medium behind its user's back.
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) {
        let mut inner = self.inner();
        write_pages(&mut inner.state.durable, offset, bytes);
        write_pages(&mut inner.state.written, offset, bytes);
    }
}

impl Storage for SimDisk {
    fn len(&self) -> io::Result<u64> {
        let mut inner = self.inner();
        if inner.call(&[Fault::Eio]).is_some() {
            return Err(eio());
        }
        Ok(inner.state.len)
    }

    fn read_exact_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.call(&[Fault::Eio]).is_some() || inner.is_bad(offset, buffer.len() as u64) {
            return Err(eio());
        }
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > inner.state.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !buffer.is_empty() {
            let within = (offset % PAGE as u64) as usize;
            let len = buffer.len().min(PAGE - within);
            let (now, later) = buffer.split_at_mut(len);
            match inner.state.written.get(&(offset / PAGE as u64)) {
                Some(page) => now.copy_from_slice(&page[within..within + len]),
                None => now.fill(0),
            }
            offset += len as u64;
            buffer = later;
        }
        Ok(())
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner();
        let fault = inner.call(&[Fault::Eio, Fault::NoSpace, Fault::Misdirected(0)]);
        inner.boundary();
        if fault == Some(Fault::NoSpace) {
            inner.is_full = true;
        }
        if inner.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inner.bytes_written += bytes.len() as u64;
        let (offset, done) = match fault {
            Some(Fault::Misdirected(blocks)) => (offset + blocks * PAGE as u64, bytes.len()),
            Some(_) => (offset, bytes.len() / 2 / TEAR * TEAR),
            None => (offset, bytes.len()),
        };
        inner.state.change(Change::Write(offset, bytes[..done].into()));
        if fault == Some(Fault::Eio) { Err(eio()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.inner();
        let fault = inner.call(&[Fault::Eio, Fault::SyncFails, Fault::SyncLies]);
        inner.boundary();
        let state = &mut inner.state;
        let changes = std::mem::take(&mut state.unsynced);
        match fault {
            None => {
                for change in changes {
                    State::apply(&mut state.durable, &mut state.durable_len, &change);
                }
                Ok(())
            }
            Some(Fault::SyncLies) => Ok(()),
            Some(_) => Err(io::Error::other("simulated sync failure")),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut inner = self.inner();
        let fault = inner.call(&[Fault::Eio, Fault::NoSpace]);
        inner.boundary();
        if fault == Some(Fault::Eio) {
            return Err(eio());
        }
        if inner.is_full || fault.is_some() {
            inner.is_full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        if offset + len > inner.state.len {
            inner.state.change(Change::Len(offset + len));
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut inner = self.inner();
        let fault = inner.call(&[Fault::Eio]);
        inner.boundary();
        if fault.is_some() {
            return Err(eio());
        }
        if len < inner.state.len {
            inner.state.change(Change::Len(len));
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mut inner = self.inner();
        let fault = inner.call(&[Fault::Eio]);
        inner.boundary();
        let (first, end) = (offset.div_ceil(PAGE as u64), (offset + len) / PAGE as u64);
        let count = end.saturating_sub(first) / if fault.is_some() { 2 } else { 1 };
        inner.bytes_given_back += count * PAGE as u64;
        inner.state.change(Change::Punch(first, count));
        if fault.is_some() { Err(eio()) } else { Ok(true) }
    }

    fn forget(&self, offset: u64, len: u64) {
        let mut inner = self.inner();
        let state = &mut inner.state;
        let pages = offset / PAGE as u64..(offset + len).div_ceil(PAGE as u64);
        // What waits for a sync is dirty, and stays.
        let mut dirty = Pages::new();
        for change in &state.unsynced {
            let pages = match change {
                Change::Write(at, bytes) => at / PAGE as u64..(at + bytes.len() as u64).div_ceil(PAGE as u64),
                Change::Punch(first, count) => *first..first + count,
                Change::Len(_) => continue,
            };
            pages.for_each(|page| drop(dirty.insert(page, Arc::new([0; PAGE]))));
        }
        let remembered: Vec<u64> = state.written.range(pages.clone()).map(|(page, _)| *page).collect();
        for page in remembered.into_iter().filter(|page| !dirty.contains_key(page)) {
            match state.durable.get(&page) {
                Some(bytes) => drop(state.written.insert(page, bytes.clone())),
                None => drop(state.written.remove(&page)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::contract;

    #[test]
    fn keeps_the_contract() {
        contract(&SimDisk::default());
    }

    #[test]
    fn only_synced_bytes_survive_a_crash() {
        let disk = SimDisk::default();
        disk.write_all_at(0, &[1; 1024]).unwrap();
        disk.sync().unwrap();
        disk.write_all_at(0, &[2; 1024]).unwrap();
        let mut sectors = [true, false].into_iter();
        disk.crash(|| sectors.next().unwrap());
        let mut after = [0; 1024];
        disk.read_exact_at(0, &mut after).unwrap();
        assert_eq!((after[0], after[511], after[512], after[1023]), (2, 2, 1, 1), "torn at 512 bytes");
    }

    #[test]
    fn what_a_failed_sync_lost_is_seen_until_it_is_forgotten() {
        for fault in [Fault::SyncFails, Fault::SyncLies] {
            let disk = SimDisk::default();
            disk.allocate(0, 4096).unwrap();
            disk.sync().unwrap();
            disk.write_all_at(0, &[1; 100]).unwrap();
            disk.arm(0, fault);
            assert_eq!(disk.sync().is_ok(), fault == Fault::SyncLies);
            let mut byte = [0];
            disk.read_exact_at(0, &mut byte).unwrap();
            assert_eq!(byte, [1]);
            disk.forget(0, 4096);
            disk.read_exact_at(0, &mut byte).unwrap();
            assert_eq!(byte, [0]);
        }
    }

    #[test]
    fn faults_come_when_they_are_due_and_once() {
        let disk = SimDisk::default();
        disk.arm(2, Fault::Eio);
        disk.write_all_at(0, &[1; 4096]).unwrap();
        assert!(disk.write_all_at(0, &[2; 4096]).is_err());
        let mut bytes = [0; 4096];
        disk.read_exact_at(0, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[4095]), (2, 1), "half of it was written");
        disk.arm(0, Fault::Misdirected(1));
        disk.write_all_at(0, &[3; 4096]).unwrap();
        disk.read_exact_at(4096, &mut bytes).unwrap();
        assert_eq!(bytes[0], 3);
        disk.arm(0, Fault::NoSpace);
        assert!(disk.allocate(0, 1 << 20).is_err());
        assert_eq!(disk.write_all_at(0, b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.heal();
        disk.write_all_at(0, b"x").unwrap();
    }
}
