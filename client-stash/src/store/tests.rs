use images::SegmentId;
use images::fragment::split;
use images::parity::{Codec, Geometry};

use super::*;
use crate::limits::RECORD_HEADER_LEN;
use crate::storage::{Fault, SimDisk};

const ARRAY: ArrayId = ArrayId([1; 32]);
const NODE: NodeId = NodeId([2; 16]);
const OWNER: Owner = OWNER_IMAGES;

/// A fragment whose bytes follow from `seed`.
fn fragment(seed: u32, len: usize) -> (Owner, FragmentHeader, Bytes) {
    let mut sealed = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut sealed);
    let sealed = Bytes::from(sealed);
    let codec = Codec::new(Geometry::new(1, 0).unwrap());
    let (header, payload) = split(&codec, SegmentId::of(&sealed), &sealed).remove(0);
    (OWNER, header, payload)
}

/// A stash with so many regions, one of the spare ones among them.
fn create(regions: u32) -> Store<SimDisk> {
    Store::create(SimDisk::default(), ARRAY, NODE, regions + 1).unwrap()
}

/// Close without ceremony and open what is on the medium.
fn reopen(store: Store<SimDisk>) -> Store<SimDisk> {
    let storage = store.storage();
    drop(store);
    Store::open(Arc::into_inner(storage).expect("the last handle"), ARRAY, NODE).unwrap()
}

fn check<S: Storage>(store: &Store<S>, expected: &[(Owner, FragmentHeader, Bytes)]) {
    let reader = store.reader();
    let mut ids: Vec<FragmentId> = expected.iter().map(|(_, h, _)| h.id).collect();
    ids.sort();
    assert_eq!(reader.inventory(), ids);
    for (_, header, payload) in expected {
        assert_eq!(reader.get(header.id).unwrap(), (*header, payload.clone()));
    }
}

#[test]
fn what_was_put_is_there_after_opening_again() {
    let mut store = create(4);
    let items: Vec<_> = (0..40).map(|i| fragment(i, 1 + 70_000 * i as usize)).collect();
    for batch in items.chunks(7) {
        assert!(store.put(batch.to_vec()).iter().all(Result::is_ok));
    }
    check(&store, &items);
    let store = reopen(store);
    check(&store, &items);
    check(&reopen(store), &items);
}

#[test]
fn a_fragment_that_is_not_what_it_says_is_refused() {
    let mut store = create(3);
    let (owner, header, _) = fragment(1, 100);
    let result = store.put(vec![(owner, header, Bytes::from_static(&[0; 100]))]);
    assert!(matches!(result[0], Err(StoreError::Fragment(_))));
    check(&store, &[]);
}

#[test]
fn a_foreign_file_is_refused() {
    let storage = create(3).storage();
    let storage = Arc::into_inner(storage).expect("the last handle");
    assert!(matches!(Store::open(storage, ARRAY, NodeId([9; 16])), Err(OpenError::Foreign { .. })));
    assert!(matches!(Store::open(SimDisk::default(), ARRAY, NODE), Err(OpenError::Header)));
    assert!(matches!(Store::create(SimDisk::default(), ARRAY, NODE, 3), Err(OpenError::Size(3))));
}

#[test]
fn deletions_last_and_give_space_back() {
    let mut store = create(3);
    // Many times the capacity goes through, so regions must be reused.
    let mut kept = Vec::new();
    for round in 0..40 {
        let items: Vec<_> = (0..6).map(|i| fragment(round * 100 + i, 4_000_000)).collect();
        assert!(store.put(items.clone()).iter().all(Result::is_ok), "round {round}");
        let ids: Vec<_> = items.iter().map(|(_, h, _)| h.id).collect();
        let (gone, stays) = if round == 39 { ids.split_at(5) } else { ids.split_at(6) };
        store.delete(gone).unwrap();
        kept = stays.to_vec();
    }
    assert_eq!(store.reader().inventory(), kept);
    let store = reopen(store);
    assert_eq!(store.reader().inventory(), kept);
}

#[test]
fn a_full_stash_says_so_keeps_what_it_has_and_can_still_delete() {
    let mut store = create(3);
    let mut stored = Vec::new();
    for i in 0.. {
        let item = fragment(i, 4_000_000);
        match store.put(vec![item.clone()]).remove(0) {
            Ok(()) => stored.push(item),
            Err(StoreError::Full) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(stored.len() >= 30, "two regions hold {} fragments of 4 MB", stored.len());
    let mut store = reopen(store);
    check(&store, &stored);
    let ids: Vec<_> = stored.iter().map(|(_, h, _)| h.id).collect();
    store.delete(&ids).unwrap();
    assert!(store.put(stored.clone()).iter().all(Result::is_ok), "its space is given back");
    check(&store, &stored);
}

#[test]
fn a_failed_sync_acknowledges_nothing_and_the_store_goes_on_elsewhere() {
    let mut store = create(3);
    let first = fragment(1, 5000);
    store.put(vec![first.clone()]).remove(0).unwrap();
    store.storage().arm(0, Fault::SyncFails);
    let lost = fragment(2, 5000);
    assert!(matches!(store.put(vec![lost]).remove(0), Err(StoreError::Io(_))));
    let third = fragment(3, 5000);
    store.put(vec![third.clone()]).remove(0).unwrap();
    check(&store, &[first, third]);
}

#[test]
fn rot_is_found_on_read_reported_once_and_never_served() {
    let mut store = create(3);
    let item = fragment(1, 5000);
    store.put(vec![item.clone()]).remove(0).unwrap();
    let at = store.layout.offset(0) + REGION_HEAD_LEN + RECORD_HEADER_LEN as u64 + 77;
    store.storage().rot(at, 0x20);
    let reader = store.reader();
    assert!(matches!(reader.get(item.1.id), Err(StoreError::Damaged(_))));
    assert!(matches!(reader.get(item.1.id), Err(StoreError::NotHere(_))));
    assert_eq!(reader.take_damaged(), [item.1.id]);
    assert_eq!(reader.take_damaged(), []);
    store.put(vec![item.clone()]).remove(0).unwrap();
    assert_eq!(reader.get(item.1.id).unwrap().1, item.2, "a repaired fragment is served again");
}

#[test]
fn another_geometry_of_the_same_piece_replaces_the_old_one_for_good() {
    let mut store = create(3);
    let sealed = Bytes::from(vec![5; 9000]);
    let segment = SegmentId::of(&sealed);
    let of = |k, m| split(&Codec::new(Geometry::new(k, m).unwrap()), segment, &sealed).remove(0);
    for (header, payload) in [of(2, 1), of(3, 1)] {
        store.put(vec![(OWNER, header, payload)]).remove(0).unwrap();
    }
    assert_eq!(store.reader().get(of(3, 1).0.id).unwrap(), of(3, 1));
    assert_eq!(reopen(store).reader().get(of(3, 1).0.id).unwrap(), of(3, 1));
}

#[test]
fn a_sync_that_fails_while_a_region_fills_acknowledges_nothing_of_the_batch() {
    let mut store = create(4);
    for i in 0..15 {
        store.put(vec![fragment(i, 4_000_000)]).remove(0).unwrap();
    }
    store.storage().arm(0, Fault::SyncFails);
    // The first still fits; the second seals the region, and that sync fails.
    let batch: Vec<_> = (100..102).map(|i| fragment(i, 3_000_000)).collect();
    assert!(store.put(batch.clone()).iter().all(Result::is_err));
    assert!(store.put(batch.clone()).iter().all(Result::is_ok));
    assert_eq!(store.reader().get(batch[0].1.id).unwrap().1, batch[0].2);
}

#[test]
fn a_torn_payload_is_never_acknowledged_again_without_being_written() {
    let mut store = create(3);
    let (first, second) = (fragment(1, 9000), fragment(2, 9000));
    store.put(vec![first.clone(), second.clone()]).into_iter().for_each(|r| r.unwrap());
    // The first one's payload did not reach the disk, and what came behind it did.
    store.storage().rot(store.layout.offset(0) + REGION_HEAD_LEN + 5000, 1);
    let mut store = reopen(store);
    store.put(vec![first.clone()]).remove(0).unwrap();
    check(&store, &[first, second]);
}

#[test]
fn a_damaged_record_header_hides_nothing_behind_it() {
    let mut store = create(3);
    let items: Vec<_> = (0..5).map(|i| fragment(i, 9000)).collect();
    assert!(store.put(items.clone()).iter().all(Result::is_ok));
    let second = store.layout.offset(0) + REGION_HEAD_LEN + 12288;
    store.storage().rot(second + 40, 1);
    let mut store = reopen(store);
    let kept: Vec<_> = [0, 2, 3, 4].map(|i| items[i].clone()).to_vec();
    check(&store, &kept);
    let more = fragment(9, 50_000);
    store.put(vec![more.clone()]).remove(0).unwrap();
    check(&reopen(store), &[kept, vec![more]].concat());
}

/// Whatever is deleted in whatever order: what [`Store::begin_shrink`] says will fit, does.
#[test]
fn what_fits_a_smaller_file_gets_there() {
    let mut state = 1u64;
    let mut below = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    for round in 0..60 {
        let regions = 6 + below(5) as u32;
        let mut store = Store::create_with(SimDisk::default(), ARRAY, NODE, regions, 4 << 20).unwrap();
        let sizes = if below(2) == 0 { (131_072, 1) } else { (60_000, 200_000) };
        let mut kept = Vec::new();
        for i in 0..10_000 {
            let item = fragment(round * 10_000 + i, sizes.0 + below(sizes.1) as usize);
            if store.put(vec![item.clone()])[0].is_err() {
                break;
            }
            kept.push(item);
        }
        let stays = 1 + below(9);
        let (gone, mut left): (Vec<_>, Vec<_>) = kept.into_iter().partition(|_| below(10) >= stays);
        let gone: Vec<FragmentId> = gone.iter().map(|(_, header, _)| header.id).collect();
        gone.chunks(1 + below(40) as usize).for_each(|some| store.delete(some).unwrap());
        for wanted in (REGIONS_MIN..regions).rev() {
            if store.excess(wanted) > 0 {
                break;
            }
            store.begin_shrink(wanted, OWNER).unwrap();
            for step in 0.. {
                match store.shrink_some(OWNER) {
                    Ok(Shrinking::Done) => break,
                    Ok(Shrinking::Left(_)) => assert!(step < 100, "round {round}: it never ends"),
                    Err(error) => panic!("round {round}: {regions} regions to {wanted}: {error}"),
                }
            }
            if below(3) == 0 && left.len() > 4 {
                let (_, header, _) = left.remove(below(left.len() as u64) as usize);
                store.delete(&[header.id]).unwrap();
            }
        }
        check(&store, &left);
    }
}

/// A stash that is nearly full, of which fragments go here and there: what is dead is not copied around, it goes back to the file
/// system, and the file never takes more than its size.
#[test]
fn what_is_dead_gives_its_space_back_without_copying() {
    use crate::io::file::FileStorage;
    use std::os::unix::fs::MetadataExt as _;
    const LEN: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stash");
    let about = || std::fs::metadata(&path).unwrap();
    let storage = FileStorage::open(&path, true).unwrap();
    let (size, regions) = (FILE_HEAD_LEN + 18 * LEN, 18);
    let can_punch = storage.punch(0, 4096).unwrap();
    let mut store = Store::create_with(storage, ARRAY, NODE, regions, LEN).unwrap();
    let mut next = 0;
    let mut some = |count: usize| {
        next += count as u32;
        (next - count as u32..next).map(|i| fragment(i, 50_000)).collect::<Vec<_>>()
    };
    let mut kept = some(16 * 20 * 8 / 10);
    assert!(store.put(kept.clone()).iter().all(Result::is_ok));
    for round in 0..30 {
        let (gone, left): (Vec<_>, Vec<_>) = kept.into_iter().enumerate().partition(|(i, _)| i % 5 == round % 5);
        let ids: Vec<FragmentId> = gone.iter().map(|(_, item)| item.1.id).collect();
        kept = left.into_iter().map(|(_, item)| item).collect();
        store.delete(&ids).unwrap();
        let new = some(ids.len());
        assert!(store.put(new.clone()).iter().all(Result::is_ok), "round {round}: {:?}", store.usage());
        kept.extend(new);
        if can_punch {
            // The file system's own records of what lies where, and what a spare region more takes for a moment.
            assert!(about().blocks() * 512 <= size + LEN, "round {round}: {:?}", store.usage());
            assert!(store.usage().file <= size + LEN);
        }
    }
    check(&store, &kept);
    assert!(!can_punch || about().len() > size, "it is longer than its size, with holes");
    drop(store);
    let mut store = Store::open(FileStorage::open(&path, false).unwrap(), ARRAY, NODE).unwrap();
    check(&store, &kept);
    assert_eq!(store.region_count(), regions);
    assert!(!store.has_borrowed());
    let ids: Vec<FragmentId> = kept.iter().map(|item| item.1.id).collect();
    store.delete(&ids).unwrap();
    store.retract().unwrap();
    store.grow(regions + 2, OWNER).unwrap();
    let full: Vec<bool> = some(18 * 18).into_iter().map(|item| store.put(vec![item])[0].is_ok()).collect();
    assert!(full.iter().all(|stored| *stored), "all of it is free again: {:?}", store.usage());
    assert!(about().blocks() * 512 <= size + 3 * LEN);
}
