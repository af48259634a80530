//! What a stash costs: speed against plain writing and reading, memory, time to open, bytes written.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use client_stash::io::file::FileStorage;
use client_stash::limits::REGIONS_MIN;
use client_stash::storage::Storage;
use client_stash::store::Store;
use images::fragment::{FragmentHeader, FragmentId};
use images::parity::Geometry;
use images::{ArrayId, FragmentDigest, NodeId, SegmentId};
use protocol::message::store::{OWNER_IMAGES, Owner};
use tests::world::Rng;

const ARRAY: ArrayId = ArrayId([1; 32]);
const NODE: NodeId = NodeId([2; 16]);
/// A fifth of a segment, as 5 + 2 makes them.
const PAYLOAD: usize = 4 * 1024 * 1024 / 5;
/// Puts that one sync acknowledges.
const BATCH: usize = 8;
/// Reads that are made one after the other before it is the other one's turn.
const IN_TURN: usize = 16;
const MIB: f64 = 1_000_000.0;

type Item = (Owner, FragmentHeader, Bytes);

fn item(number: u64, len: usize) -> Item {
    let mut payload = vec![0; len];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut payload);
    let header = FragmentHeader {
        id: FragmentId { segment: SegmentId(*blake3::hash(&payload).as_bytes()), piece: 0 },
        geometry: Geometry::new(1, 0).expect("a geometry"),
        sealed_len: len as u32,
        digest: FragmentDigest::of(&payload),
    };
    (OWNER_IMAGES, header, payload.into())
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn create(path: &Path, regions: u32) -> anyhow::Result<Store<FileStorage>> {
    let _ = std::fs::remove_file(path);
    Ok(Store::create(FileStorage::open(path, true)?, ARRAY, NODE, regions)?)
}

/// Write the same bytes to a reserved file, with a sync a batch. Seconds.
fn plain_write(path: &Path, items: &[Item]) -> anyhow::Result<f64> {
    let _ = std::fs::remove_file(path);
    let storage = FileStorage::open(path, true)?;
    storage.allocate(0, items.iter().map(|i| i.2.len() as u64 + 8192).sum())?;
    storage.sync()?;
    let start = Instant::now();
    let mut at = 0;
    for batch in items.chunks(BATCH) {
        for (.., payload) in batch {
            storage.write_all_at(at, payload)?;
            at += payload.len() as u64;
        }
        storage.sync()?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// So many read them back in the given order, past the cache: plain, and from the stash, a few from each in turn, because a disk is not as
/// fast now as a second ago. Seconds of both.
fn read_both(
    plain: &Path,
    store: &Store<FileStorage>,
    items: &[Item],
    order: &[usize],
    readers: usize,
) -> anyhow::Result<[f64; 2]> {
    let storage = FileStorage::open(plain, false)?;
    storage.forget(0, storage.len()?);
    store.storage().forget(0, store.storage().len()?);
    let (reader, mut seconds) = (store.reader(), [0.0; 2]);
    let read = |which: usize, i: usize| -> anyhow::Result<()> {
        if which == 0 {
            let mut buffer = vec![0; PAYLOAD];
            storage.read_exact_at((i * PAYLOAD) as u64, &mut buffer)?;
            std::hint::black_box(&buffer);
        } else {
            std::hint::black_box(reader.get(items[i].1.id)?);
        }
        Ok(())
    };
    let all = &|which: usize, some: &[usize]| some.iter().try_for_each(|i| read(which, *i));
    for (turn, few) in order.chunks(IN_TURN).enumerate() {
        for which in [turn % 2, 1 - turn % 2] {
            let start = Instant::now();
            std::thread::scope(|scope| {
                let each = few.chunks(few.len().div_ceil(readers));
                let readers: Vec<_> = each.map(|some| scope.spawn(move || all(which, some))).collect();
                readers.into_iter().try_for_each(|reader| reader.join().expect("reading does not panic"))
            })?;
            seconds[which] += start.elapsed().as_secs_f64();
        }
    }
    Ok(seconds)
}

fn speed(dir: &Path, megabytes: usize, runs: usize) -> anyhow::Result<()> {
    let (stash, plain) = (dir.join("stash"), dir.join("plain"));
    let count = megabytes * 1_000_000 / PAYLOAD;
    let items: Vec<Item> = (0..count as u64).map(|i| item(i, PAYLOAD)).collect();
    let more: Vec<Item> = (0..count as u64 / 4).map(|i| item(1 << 40 | i, PAYLOAD)).collect();
    let total = (count * PAYLOAD) as f64 / MIB;
    let mut rng = Rng::new(7);
    let (mut ratios, mut mixes, mut rows) = (Vec::<[f64; 3]>::new(), Vec::new(), Vec::<[f64; 6]>::new());
    for run in 0..runs {
        let mut order: Vec<usize> = (0..count).collect();
        (1..count).rev().for_each(|j| order.swap(j, rng.below(j as u64 + 1) as usize));
        let mut written = if run % 2 == 0 { plain_write(&plain, &items)? } else { 0.0 };
        let mut store = create(&stash, (megabytes as u32 * 3 / 2).div_ceil(67) + 4)?;
        let start = Instant::now();
        for batch in items.chunks(BATCH) {
            store.put(batch.to_vec()).into_iter().collect::<Result<Vec<_>, _>>()?;
        }
        let put = start.elapsed().as_secs_f64();
        if run % 2 == 1 {
            written = plain_write(&plain, &items)?;
        }
        let [read, got] = read_both(&plain, &store, &items, &order, 1)?;
        let [read_by_four, got_by_four] = read_both(&plain, &store, &items, &order, 4)?;
        let reader = store.reader();
        // One reads while the other writes.
        let start = Instant::now();
        let bytes = std::thread::scope(|scope| -> anyhow::Result<usize> {
            let reads =
                scope.spawn(|| order.iter().take(count / 2).filter(|i| reader.get(items[**i].1.id).is_ok()).count());
            for batch in more.chunks(BATCH) {
                store.put(batch.to_vec()).into_iter().collect::<Result<Vec<_>, _>>()?;
            }
            Ok((more.len() + reads.join().expect("reading does not panic")) * PAYLOAD)
        })?;
        mixes.push(bytes as f64 / MIB / start.elapsed().as_secs_f64());
        let seconds = [written, put, read, got, read_by_four, got_by_four];
        rows.push(seconds.map(|seconds| total / seconds));
        ratios.push([written / put, read / got, read_by_four / got_by_four]);
    }
    let column = |i: usize| median(rows.iter().map(|row| row[i]).collect());
    println!("{total:.0} MB in fragments of {PAYLOAD} bytes, {BATCH} a sync, medians of {runs} runs\n");
    println!("| | plain, MB/s | stash, MB/s | ratio |\n|---|---|---|---|");
    let whats = [
        "put (write and sync)",
        "get (random order, past the cache, verified), one at a time",
        "the same, four at a time",
    ];
    for (i, what) in whats.iter().enumerate() {
        let ratio = median(ratios.iter().map(|row| row[i]).collect());
        println!("| {what} | {:.0} | {:.0} | {ratio:.2} |", column(2 * i), column(2 * i + 1));
    }
    println!("| half of them read while a quarter is written | | {:.0} | |", median(mixes));
    let _ = (std::fs::remove_file(stash), std::fs::remove_file(plain));
    Ok(())
}

fn resident() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

/// Open a stash in a fresh process, which has opened an empty one before: fragments, seconds, resident bytes more than before.
fn open(path: &Path) -> anyhow::Result<()> {
    let empty = path.with_extension("empty");
    drop(create(&empty, REGIONS_MIN)?);
    let before = resident()?;
    let start = Instant::now();
    let store = Store::open(FileStorage::open(path, false)?, ARRAY, NODE)?;
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(empty)?;
    println!("{} {seconds} {}", store.reader().fragments(), resident()?.saturating_sub(before));
    Ok(())
}

fn memory(dir: &Path, counts: &[u64]) -> anyhow::Result<()> {
    println!(
        "\n| fragments | opens in, s | resident, bytes a fragment | tables read, MB | open regions read, MB |\n|---|---|---|---|---|"
    );
    let path = dir.join("many");
    for count in counts {
        let regions = (count * 4096 / (60 << 20)) as u32 + 6;
        let mut store = create(&path, regions)?;
        for first in (0..*count).step_by(4096) {
            let batch = (first..(first + 4096).min(*count)).map(|i| item(i, 64)).collect();
            store.put(batch).into_iter().collect::<Result<Vec<_>, _>>()?;
        }
        drop(store);
        let said = Command::new(std::env::current_exe()?).arg("--open").arg(&path).output()?;
        let said = String::from_utf8(said.stdout)?;
        let numbers: Vec<f64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [fragments, seconds, bytes] = numbers.as_slice() else { anyhow::bail!("it says {said}") };
        let in_open = (count * 4096 % (64 << 20)) as f64 / MIB;
        println!(
            "| {fragments} | {seconds:.2} | {:.0} | {:.1} | {in_open:.0} |",
            bytes / fragments,
            *count as f64 * 144.0 / MIB
        );
    }
    let _ = std::fs::remove_file(path);
    Ok(())
}

/// Counts what is written.
struct Counted(FileStorage, AtomicU64);

impl Storage for Counted {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(offset, buffer)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.1.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.0.write_all_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.0.punch(offset, len)
    }
}

/// A fifth of what is there goes, whole images or single fragments, and as much that is new comes.
fn churn(dir: &Path, fill: f64, is_random: bool) -> anyhow::Result<f64> {
    let (path, regions) = (dir.join("churn"), 34);
    let _ = std::fs::remove_file(&path);
    let storage = Arc::new(Counted(FileStorage::open(&path, true)?, AtomicU64::new(0)));
    let mut store = Store::create(storage.clone(), ARRAY, NODE, regions)?;
    let count = ((f64::from(regions - 2) * 64.0 * 1024.0 * 1024.0 * fill) / (PAYLOAD as f64 + 4096.0)) as u64;
    let (mut here, mut next, mut rng) = (Vec::new(), 0, Rng::new(3));
    let mut fill_up = |store: &mut Store<Arc<Counted>>, here: &mut Vec<FragmentId>| -> anyhow::Result<u64> {
        let mut put = 0;
        while (here.len() as u64) < count {
            let batch: Vec<Item> = (0..BATCH as u64).map(|i| item(next + i, PAYLOAD)).collect();
            next += BATCH as u64;
            here.extend(batch.iter().map(|item| item.1.id));
            put += (batch.len() * PAYLOAD) as u64;
            store.put(batch).into_iter().collect::<Result<Vec<_>, _>>()?;
        }
        Ok(put)
    };
    fill_up(&mut store, &mut here)?;
    let before = storage.1.load(Ordering::Relaxed);
    let mut put = 0;
    for _ in 0..10 {
        let fifth = here.len() / 5;
        if is_random {
            (0..fifth).for_each(|i| {
                let j = i + rng.below((here.len() - i) as u64) as usize;
                here.swap(i, j);
            });
        }
        let gone: Vec<FragmentId> = here.drain(..fifth).collect();
        store.delete(&gone)?;
        put += fill_up(&mut store, &mut here)?;
    }
    let written = storage.1.load(Ordering::Relaxed) - before;
    let _ = std::fs::remove_file(path);
    Ok(written as f64 / put as f64)
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, path] = args.as_slice()
        && word == "--open"
    {
        return open(Path::new(path));
    }
    let [dir, megabytes, runs] = args.as_slice() else { anyhow::bail!("stash_bench DIR MB RUNS") };
    let dir = PathBuf::from(dir);
    speed(&dir, megabytes.parse()?, runs.parse()?)?;
    memory(&dir, &[10_000, 100_000, 1_000_000])?;
    println!("\n| 20 % churn, ten times, bytes written a byte put | oldest first | at random |\n|---|---|---|");
    for fill in [0.6, 0.7, 0.8, 0.9] {
        println!("| {:.0} % full | {:.2} | {:.2} |", fill * 100.0, churn(&dir, fill, false)?, churn(&dir, fill, true)?);
    }
    Ok(())
}
