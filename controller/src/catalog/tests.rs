mod moves;

use super::*;
use images::FragmentDigest;
use images::keys::SegmentKey;

fn catalog() -> Catalog {
    Catalog::in_memory().unwrap()
}

fn node(i: u8) -> NodeId {
    NodeId([i; 16])
}

fn new_segment(i: u8, holders: [u8; 2]) -> NewSegment {
    NewSegment {
        id: SegmentId([i; 32]),
        record: SegmentRecord {
            sealed_len: 10,
            data_len: 30,
            key: SegmentKey([i; 32]),
            group: GroupId(0),
            fragments: vec![FragmentDigest([0; 32]); 2],
            on_mass_storage: true,
            references: 0,
            stored_unix_s: 0,
        },
        chunks: vec![(ChunkId([i; 32]), 10), (ChunkId([99; 32]), 20)],
        geometry: Geometry::new(1, 1).unwrap(),
        holders: holders.map(node).to_vec(),
    }
}

fn image_record() -> ImageRecord {
    let signed = images::manifest::Signed { bytes: Vec::new(), signature: Vec::new() };
    let key = images::keys::ManifestKey([0; 32]);
    let root = images::manifest::PageRef::of(b"root", images::GroupId(1));
    ImageRecord { number: 0, manifest: images::ManifestId([0; 32]), signed, root, key, offline: None }
}

#[test]
fn a_second_try_of_a_durable_segment_leaves_the_first_one_s_pieces() {
    let catalog = catalog();
    let id = SegmentId([1; 32]);
    catalog.change(|c| c.put_segment(&new_segment(1, [1, 2]))).unwrap();
    let again = PendingRecord { sent: vec![(0, node(1)), (1, node(5))], copy: true };
    catalog.change(|c| c.put_pending(id, &again)).unwrap();
    assert!(catalog.change(|c| c.put_segment(&new_segment(1, [1, 5]))).is_err());
    catalog.change(|c| c.abandon(&id)).unwrap();
    let other = TrashKey::Fragment { node: node(5), segment: id, piece: 1 };
    assert_eq!(catalog.trash().unwrap(), [other], "only what the durable segment does not use");
}

#[test]
fn a_segment_s_life() {
    let catalog = catalog();
    let id = SegmentId([1; 32]);
    let sent = PendingRecord { sent: vec![(0, node(1)), (1, node(2))], copy: true };
    catalog.change(|c| c.put_pending(id, &sent)).unwrap();
    let more = PendingRecord { sent: vec![(1, node(3)), (0, node(1))], copy: false };
    catalog.change(|c| c.put_pending(id, &more)).unwrap();
    assert_eq!(catalog.places(&[ChunkId([1; 32])]).unwrap(), [None], "pending chunks are not known");

    catalog.change(|c| c.put_segment(&new_segment(1, [1, 3]))).unwrap();
    assert_eq!(catalog.pending().unwrap(), []);
    let second = catalog.places(&[ChunkId([99; 32])]).unwrap();
    assert_eq!(second, [Some(ChunkPlace { segment: id, offset: 10 })]);
    let replaced = TrashKey::Fragment { node: node(2), segment: id, piece: 1 };
    assert_eq!(catalog.trash().unwrap(), [replaced], "the replaced member may have its piece");
    catalog.change(|c| c.remove_trash(&replaced)).unwrap();

    catalog.change(|c| c.refer(&id)).unwrap();
    assert!(!catalog.change(|c| c.reclaim(&id)).unwrap(), "it is referred to");
    let image: ImageName = "a:1".parse().unwrap();
    catalog.change(|c| c.put_image(&image, &image_record())).unwrap();
    catalog.change(|c| c.remove_image(&image, &[id])).unwrap();
    let twice = catalog.change(|c| c.remove_image(&image, &[id]));
    assert!(matches!(twice, Err(CatalogError::Conflict(_))), "removed once");
    assert!(catalog.change(|c| c.reclaim(&id)).unwrap());
    assert_eq!(catalog.trash().unwrap().len(), 3, "two pieces and the copy");
    assert_eq!(catalog.places(&[ChunkId([1; 32]), ChunkId([99; 32])]).unwrap(), [None, None]);
    assert_eq!(catalog.groups().unwrap()[&GroupId(1)].segments, 0);
}

#[test]
fn reclaiming_leaves_chunks_that_moved_to_another_segment() {
    let catalog = catalog();
    catalog.change(|c| c.put_segment(&new_segment(1, [1, 2]))).unwrap();
    catalog.change(|c| c.put_segment(&new_segment(2, [1, 2]))).unwrap();
    catalog.change(|c| c.reclaim(&SegmentId([1; 32]))).unwrap();
    let place = catalog.places(&[ChunkId([99; 32])]).unwrap()[0];
    assert_eq!(place.map(|p| p.segment), Some(SegmentId([2; 32])));
    assert_eq!(catalog.groups().unwrap().len(), 1, "equal holders are one group");
}

#[test]
fn an_image_that_is_cut_anew_has_both_editions_for_a_while() {
    let catalog = catalog();
    let (old, new) = (SegmentId([1; 32]), SegmentId([2; 32]));
    let image: ImageName = "a:1".parse().unwrap();
    let second = NewSegment { chunks: new_segment(1, [1, 2]).chunks, ..new_segment(2, [3, 4]) };
    catalog
        .change(|c| {
            c.put_segment(&new_segment(1, [1, 2]))?;
            c.refer(&old)?;
            c.put_image(&image, &image_record())
        })
        .unwrap();
    assert_eq!(catalog.newer_edition(&old).unwrap(), None);
    catalog.change(|c| c.put_segment(&second)).unwrap();
    assert_eq!((catalog.newer_edition(&old).unwrap(), catalog.newer_edition(&new).unwrap()), (Some(new), None));
    let (before, after) = (images::ManifestId([0; 32]), images::ManifestId([9; 32]));
    let record = ImageRecord { manifest: after, ..image_record() };
    let replace = |from| {
        catalog.change(|c| {
            c.refer(&new)?;
            c.replace_image(&image, from, &record, 100)
        })
    };
    assert!(matches!(replace(after), Err(CatalogError::Conflict(_))), "it is another one by now");
    assert_eq!(catalog.segment(&new).unwrap().unwrap().references, 0, "nothing of it stays");
    replace(before).unwrap();
    let known = catalog.image(&image).unwrap().unwrap();
    assert_eq!((known.manifest, known.number), (after, 1), "it is as new as it was");
    assert!(!catalog.change(|c| c.reclaim(&old)).unwrap(), "somebody may be installing it");
    let retired = catalog.retired().unwrap();
    assert_eq!((retired.len(), retired[0].0, retired[0].1.until_unix_s), (1, before, 100));
    catalog.change(|c| c.forget_retired(&before, &[old])).unwrap();
    assert!(catalog.change(|c| c.forget_retired(&before, &[old])).is_err(), "once");
    assert!(catalog.change(|c| c.reclaim(&old)).unwrap());
    assert_eq!(catalog.places(&[ChunkId([1; 32])]).unwrap()[0].map(|p| p.segment), Some(new), "chunks stay known");
}

#[test]
fn an_abandoned_segment_becomes_trash_where_it_may_lie() {
    let catalog = catalog();
    let id = SegmentId([1; 32]);
    let sent = PendingRecord { sent: vec![(0, node(1))], copy: true };
    catalog.change(|c| c.put_pending(id, &sent)).unwrap();
    catalog.change(|c| c.abandon(&id)).unwrap();
    assert_eq!(catalog.pending().unwrap(), []);
    assert_eq!(catalog.trash().unwrap().len(), 2);
}

#[test]
fn a_change_that_fails_leaves_nothing() {
    let catalog = catalog();
    let result = catalog.change(|c| {
        c.put_segment(&new_segment(1, [1, 2]))?;
        c.refer(&SegmentId([9; 32]))
    });
    assert!(matches!(result, Err(CatalogError::Conflict(_))));
    assert!(catalog.segments().unwrap().is_empty());
}

#[test]
fn habits_labels_and_policies_last_as_long_as_what_they_are_of() {
    let catalog = catalog();
    let record = NodeRecord { role: protocol::identity::Role::Stash, addresses: vec![], capacity: 1, joined_unix_s: 0 };
    let rack = || [("rack".to_string(), "a".to_string())].into();
    catalog
        .change(|c| {
            (1..=4).try_for_each(|i| c.put_node(node(i), &record))?;
            c.change_labels(node(1), |labels| *labels = rack())?;
            // Five days, in which 1 is always there, 2 and 4 by day, and 3 never.
            (0..120).try_for_each(|hour| c.note_hour(hour, |n| n == node(1) || (n != node(3) && hour % 24 < 10)))
        })
        .unwrap();
    let habits = crate::attendance::Attendance::of(&catalog.histories().unwrap());
    use crate::attendance::Class::{Always, Office, Rare};
    assert_eq!([1, 2, 3].map(|i| habits.class(node(i))), [Always, Office, Rare]);
    assert_eq!(catalog.labels().unwrap(), BTreeMap::from([(node(1), rack())]));
    catalog.change(|c| c.remove_node(node(1))).unwrap();
    assert!(catalog.labels().unwrap().is_empty() && !catalog.histories().unwrap().contains_key(&node(1)));

    let survive = |record: &mut PolicyRecord, n| record.survive = n;
    catalog.change(|c| c.change_policy("exam", |r| survive(r, Some(3)))).unwrap();
    catalog.change(|c| c.change_policy("exam", |r| r.redundant = Some(true))).unwrap();
    let wanted = PolicyRecord { survive: Some(3), redundant: Some(true), ..PolicyRecord::default() };
    assert_eq!(catalog.policies().unwrap(), BTreeMap::from([("exam".to_string(), wanted)]));
    catalog.change(|c| c.change_policy("exam", |r| *r = PolicyRecord::default())).unwrap();
    assert!(catalog.policies().unwrap().is_empty(), "what wants nothing is forgotten");
}
