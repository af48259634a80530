use images::manifest::PageRef;
use proptest::prelude::*;

use super::*;

const ARRAY: ArrayId = ArrayId([5; 32]);

fn key() -> ArrayKey {
    ArrayKey::from_seed(&[1; 32]).unwrap()
}

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn contents(members: &[u8], capacity: u64) -> Contents {
    let member = |n: &u8| (node(*n), Member { addresses: Vec::new(), capacity });
    Contents { members: members.iter().map(member).collect(), ..Contents::default() }
}

fn next(previous: Option<&SignedDirectory>, epoch: u64, contents: Contents) -> SignedDirectory {
    next_by(1, previous, epoch, contents)
}

/// By one start of a controller.
fn next_by(line: u8, previous: Option<&SignedDirectory>, epoch: u64, contents: Contents) -> SignedDirectory {
    Directory::next(previous, ARRAY, Line([line; 8]), Epoch(epoch), contents).sign(&key())
}

fn take(held: Option<&SignedDirectory>, update: Update) -> Result<SignedDirectory, DirectoryError> {
    SignedDirectory::take(held, update, ARRAY, &key().public())
}

/// A line of directories, each with another set of members.
fn line(len: u64) -> Vec<SignedDirectory> {
    let mut line: Vec<SignedDirectory> = Vec::new();
    for epoch in 1..=len {
        line.push(next(line.last(), epoch, contents(&[1, epoch as u8], epoch / 3)));
    }
    line
}

#[test]
fn only_the_array_s_own_directory_opens() {
    let one = next(None, 3, contents(&[1], 0));
    assert_eq!(SignedDirectory::open(&one.encode(), ARRAY, &key().public()).as_ref(), Ok(&one));
    let other = ArrayId([6; 32]);
    assert_eq!(SignedDirectory::open(&one.encode(), other, &key().public()), Err(DirectoryError::Array(ARRAY)));
    let stranger = ArrayKey::from_seed(&[2; 32]).unwrap();
    let forged = one.directory().clone().sign(&stranger);
    assert!(matches!(take(None, forged.whole()), Err(DirectoryError::Signature(_))));
    let mut update = one.whole();
    update.changes.epoch = Epoch(9);
    assert!(matches!(take(None, update), Err(DirectoryError::Signature(_))));
    let group = Group { geometry: Geometry::new(2, 1).unwrap(), members: vec![node(0)] };
    let bad = next(None, 3, Contents { groups: BTreeMap::from([(GroupId(1), group)]), ..contents(&[], 0) });
    assert_eq!(take(None, bad.whole()), Err(DirectoryError::Invalid));
    let head = Head {
        manifest: ManifestId([0; 32]),
        number: 1,
        root: PageRef { digest: [0; 32], len: 1, group: GroupId(1) },
        sealed_key: Vec::new(),
        offline: Some(Shares { threshold: 1, holders: vec![(node(1), ShareDigest([0; 32]))] }),
    };
    let heads = BTreeMap::from([("a:1".parse().unwrap(), head)]);
    let bad = next(None, 3, Contents { heads, ..contents(&[], 0) });
    assert_eq!(take(None, bad.whole()), Err(DirectoryError::Invalid), "one stash could read the image");
}

#[test]
fn changes_lead_to_the_same_directory_and_nothing_can_be_left_out() {
    let line = line(60);
    let newest = line.last().unwrap();
    for old in &line[..59] {
        let update = newest.update_for(Some(old.mark())).unwrap();
        assert!(update.from.is_some());
        assert_eq!(&take(Some(old), update.clone()).unwrap(), newest);
        let mut less = update;
        less.changes.members = less.changes.members.since(Epoch(59));
        assert!(take(Some(old), less).is_err() || old.mark().epoch == Epoch(59));
    }
    assert_eq!(newest.update_for(Some(newest.mark())), None);
    let step = newest.update_for(Some(line[57].mark())).unwrap();
    assert_eq!(take(Some(&line[56]), step), Err(DirectoryError::Base));
}

#[test]
fn never_back() {
    let line = line(40);
    for (at, held) in line.iter().enumerate() {
        for old in &line[..=at] {
            assert_eq!(take(Some(held), old.whole()), Err(DirectoryError::Stale(old.mark())));
        }
    }
}

#[test]
fn a_fork_is_refused_until_a_person_decides() {
    let line = line(10);
    // A controller from yesterday's backup goes on from epoch 6 and overtakes, however far.
    let mut stale = vec![line[5].clone()];
    for epoch in 7..=3000 {
        stale.push(next_by(2, stale.last(), epoch, contents(&[99], 1)));
    }
    let held = line.last().unwrap();
    for stale in [&stale[8], stale.last().unwrap()] {
        assert_eq!(take(Some(held), stale.whole()), Err(DirectoryError::Fork(stale.mark())));
        assert_eq!(take(Some(stale), held.whole()), Err(DirectoryError::Stale(held.mark())));
        assert_eq!(stale.directory().compare(stale.mark(), held.mark()), Verdict::Fork, "it sees that itself");
        assert_eq!(stale.directory().compare(stale.mark(), line[5].mark()), Verdict::Older);
        assert_eq!(&take(Some(&line[2]), stale.whole()).unwrap(), stale, "who knows no better");
    }
    let stale = stale.last().unwrap();
    // Both at the same epoch.
    let twin = next_by(3, Some(&line[8]), 10, contents(&[77], 1));
    assert_eq!(take(Some(held), twin.whole()), Err(DirectoryError::Fork(twin.mark())));
    // The person's word: a new term, whatever its epoch.
    let decided = stale.directory().clone().in_term(2).sign(&key());
    assert_eq!(take(Some(held), decided.whole()).unwrap(), decided);
    assert_eq!(take(Some(&decided), held.whole()), Err(DirectoryError::Stale(held.mark())));
    let after = next_by(4, Some(&decided), 3001, contents(&[99], 2));
    assert_eq!(after.mark().term, 2);
    assert_eq!(take(Some(&decided), after.update_for(Some(decided.mark())).unwrap()).unwrap(), after);
}

#[test]
fn who_slept_long_takes_the_newest() {
    let line = line(100);
    let newest = line.last().unwrap();
    assert_eq!(&take(Some(&line[3]), newest.whole()).unwrap(), newest);
}

proptest! {
    /// Whatever changes, and wherever one starts from, updates lead to the signed directory.
    #[test]
    fn updates_add_up(steps in proptest::collection::vec((proptest::collection::btree_set(0u8..20, 0..10), 0u64..3), 1..30), from in 0usize..30) {
        let mut line: Vec<SignedDirectory> = Vec::new();
        for (at, (members, capacity)) in steps.iter().enumerate() {
            let members: Vec<u8> = members.iter().copied().collect();
            line.push(next(line.last(), 2 * at as u64 + 1, contents(&members, *capacity)));
        }
        let old = &line[from.min(line.len() - 1)];
        let newest = line.last().unwrap();
        if let Some(update) = newest.update_for(Some(old.mark())) {
            let taken = take(Some(old), update);
            prop_assert_eq!(taken.as_ref(), Ok(newest));
        }
        let now: Vec<NodeId> = newest.directory().members.iter().map(|(node, _)| *node).collect();
        let want: Vec<NodeId> = steps.last().unwrap().0.iter().map(|n| node(*n)).collect();
        prop_assert_eq!(now, want);
    }
}
