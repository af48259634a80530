//! A real stash file, and a process that writes to it until it is killed.
//!
//! The writer says on its standard output what it is about to do, and what was acknowledged. Whoever killed it opens the file and
//! compares: what was acknowledged is there, byte for byte; what was under way is there or not.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use client_stash::io::file::FileStorage;
use client_stash::store::{Shrinking, Store, StoreError};
use images::fragment::{FragmentHeader, FragmentId, split};
use images::parity::{Codec, Geometry};
use images::{ArrayId, NodeId, SegmentId};
use protocol::message::store::OWNER_IMAGES;

use crate::world::Rng;

const ARRAY: ArrayId = ArrayId([1; 32]);
const NODE: NodeId = NodeId([2; 16]);
const REGION: u64 = 256 * 1024;
const POOL: u64 = 60;

/// The fragments that go to and fro.
fn pool() -> Vec<(FragmentHeader, Bytes)> {
    let mut rng = Rng::new(1);
    let codec = Codec::new(Geometry::new(1, 0).expect("a geometry"));
    let piece = |_| {
        let len = 1 + rng.below(50_000) as usize;
        let sealed = Bytes::from(rng.bytes(len));
        split(&codec, SegmentId::of(&sealed), &sealed).remove(0)
    };
    (0..POOL).map(piece).collect()
}

/// Make an empty stash file with small regions.
///
/// # Errors
/// The file system's.
pub fn create(file: &Path, regions: u32) -> anyhow::Result<()> {
    let storage = FileStorage::open(file, true)?;
    Store::create_with(storage, ARRAY, NODE, regions, REGION)?;
    Ok(())
}

fn open(file: &Path) -> anyhow::Result<Store<FileStorage>> {
    let mut tries = 0;
    let storage = loop {
        match FileStorage::open(file, false) {
            // Another thread of this process is starting a program, which holds every file until it has begun.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && tries < 100 => tries += 1,
            storage => break storage?,
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ok(Store::open(storage, ARRAY, NODE)?)
}

/// Write, delete, grow and shrink until killed.
///
/// # Errors
/// If the store says anything else than that it is full; that is said on the standard output, too.
pub fn write(file: &Path, seed: u64) -> anyhow::Result<()> {
    let done = write_on(file, seed);
    if let Err(error) = &done {
        println!("failed {error:#}");
    }
    done
}

fn write_on(file: &Path, seed: u64) -> anyhow::Result<()> {
    let (pool, mut rng) = (pool(), Rng::new(seed));
    let mut store = open(file)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    // As the service does when nobody asks for anything.
    if store.has_borrowed() && store.begin_shrink(store.entitled(), OWNER_IMAGES).is_ok() {
        while matches!(store.shrink_some(OWNER_IMAGES), Ok(Shrinking::Left(_))) {}
        store.stop_shrinking();
    }
    loop {
        let some: Vec<usize> = (0..1 + rng.below(4)).map(|_| rng.below(POOL) as usize).collect();
        match rng.below(10) {
            0..6 => {
                for i in &some {
                    writeln!(out, "putting {i}")?;
                }
                let batch = some.iter().map(|i| (OWNER_IMAGES, pool[*i].0, pool[*i].1.clone())).collect();
                for (i, result) in some.iter().zip(store.put(batch)) {
                    match result {
                        Ok(()) => writeln!(out, "put {i}")?,
                        Err(StoreError::Full) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            6..9 => {
                for i in &some {
                    writeln!(out, "deleting {i}")?;
                }
                let ids: Vec<FragmentId> = some.iter().map(|i| pool[*i].0.id).collect();
                store.delete(&ids).with_context(|| format!("delete, {:?}", store.usage()))?;
                for i in &some {
                    writeln!(out, "deleted {i}")?;
                }
            }
            _ => {
                let regions = 4 + rng.below(6) as u32;
                if regions > store.region_count() {
                    let _ = store.grow(regions, OWNER_IMAGES);
                } else if store.begin_shrink(regions, OWNER_IMAGES).is_ok() {
                    while !matches!(store.shrink_some(OWNER_IMAGES), Ok(Shrinking::Done)) {
                        if !store.is_shrinking() {
                            break;
                        }
                        if rng.one_in(8) {
                            store.stop_shrinking();
                        }
                    }
                }
            }
        }
    }
}

/// Kill the writer so many times, each time at a random moment, and check what it left. `writer` runs [`write()`] with a file and a seed.
/// The answer is the number of operations that were acknowledged.
///
/// # Errors
/// What is not as it should be.
pub fn kill(writer: &Path, file: &Path, times: u64) -> anyhow::Result<u64> {
    let (pool, mut rng) = (pool(), Rng::new(times));
    create(file, 6)?;
    // What may be there.
    let mut allowed: BTreeMap<usize, [bool; 2]> = (0..pool.len()).map(|i| (i, [true, false])).collect();
    let mut acknowledged = 0;
    for round in 0..times {
        let mut command = Command::new(writer);
        let mut child = command.arg(file).arg(round.to_string()).stdout(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(child.stdout.take().context("its output")?);
        // Half of them in the middle of opening, the others while it writes.
        if rng.one_in(2) {
            said.read_line(&mut String::new())?;
        }
        let moment = Duration::from_micros(rng.below(12_000));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(moment);
            child.kill().and_then(|()| child.wait())
        });
        for line in said.lines() {
            let line = line?;
            ensure!(!line.starts_with("failed"), "round {round}: {line}");
            // The last line may have been cut off.
            let Some((word, Ok(i))) = line.split_once(' ').map(|(word, i)| (word, i.parse::<usize>())) else {
                continue;
            };
            let state = allowed.entry(i).or_default();
            match word {
                "putting" => state[1] = true,
                "deleting" => state[0] = true,
                "put" => (*state, acknowledged) = ([false, true], acknowledged + 1),
                "deleted" => (*state, acknowledged) = ([true, false], acknowledged + 1),
                _ => bail!("round {round}: the writer says {line}"),
            }
        }
        let status = killer.join().expect("it only waits")?;
        ensure!(status.code().is_none(), "round {round}: the writer ended by itself, {status}");
        let store = open(file).with_context(|| format!("round {round}"))?;
        for (i, (header, payload)) in pool.iter().enumerate() {
            let is_here = match store.reader().get(header.id) {
                Ok(found) => {
                    ensure!(found == (*header, payload.clone()), "round {round}: fragment {i} has wrong bytes");
                    true
                }
                Err(StoreError::NotHere(_)) => false,
                Err(error) => bail!("round {round}: fragment {i}: {error}"),
            };
            ensure!(allowed[&i][usize::from(is_here)], "round {round}: fragment {i} is here: {is_here}");
            allowed.insert(i, [!is_here, is_here]);
        }
    }
    Ok(acknowledged)
}

/// Put until the store is full, delete, and put again on a disk that has no room for anything else.
///
/// # Errors
/// What is not as it should be.
pub fn on_a_full_disk(folder: &Path) -> anyhow::Result<()> {
    let (pool, file) = (pool(), folder.join(".stash"));
    create(&file, 6)?;
    // Whoever the disk belongs to fills it to the last byte.
    let mut other = std::fs::File::create(folder.join("everything-else"))?;
    while other.write_all(&[7; 4096]).is_ok() {}
    let _ = other.sync_all();
    let mut store = open(&file)?;
    ensure!(matches!(store.grow(40, OWNER_IMAGES), Err(StoreError::Full)), "a full disk lets it grow");
    let mut here = Vec::new();
    for round in 0..4 {
        for (i, (header, payload)) in pool.iter().enumerate() {
            match store.put(vec![(OWNER_IMAGES, *header, payload.clone())]).remove(0) {
                Ok(()) if !here.contains(&i) => here.push(i),
                Ok(()) | Err(StoreError::Full) => {}
                Err(error) => bail!("round {round}, fragment {i}: {error}"),
            }
        }
        ensure!(here.len() > 5, "only {} fragments fit", here.len());
        drop(store);
        store = open(&file)?;
        for i in &here {
            let found = store.reader().get(pool[*i].0.id)?;
            ensure!(found == pool[*i], "fragment {i} has wrong bytes");
        }
        let gone: Vec<usize> = here.drain(..here.len() / 2).collect();
        store.delete(&gone.iter().map(|i| pool[*i].0.id).collect::<Vec<_>>()).context("delete on a full disk")?;
        for i in gone {
            ensure!(store.reader().get(pool[i].0.id).is_err(), "fragment {i} was deleted");
        }
    }
    Ok(())
}
