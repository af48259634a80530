use super::*;

const POLICY: Policy = Policy { gone_after_s: 1000, together: 16, is_open: true, better_together: 16 };

fn plan(
    policy: &Policy,
    nodes: &BTreeMap<NodeId, Seen>,
    groups: &BTreeMap<GroupId, Whole>,
    under_way: &BTreeMap<Seat, MoveRecord>,
    now_unix_s: u64,
) -> Plan {
    super::plan(policy, nodes, groups, under_way, &Domains::default(), now_unix_s)
}

fn id(i: u8) -> NodeId {
    NodeId([i; 16])
}

fn fleet(count: u8) -> BTreeMap<NodeId, Seen> {
    (0..count).map(|i| (id(i), Seen { is_up: true, free: 1000, ..Seen::default() })).collect()
}

fn group(number: u32, k: u8, m: u8, members: &[u8], bytes: u64) -> (GroupId, Whole) {
    let geometry = Geometry::new(k, m).unwrap();
    let members = members.iter().map(|i| id(*i)).collect();
    let (vacant, steady) = (BTreeSet::new(), k.into());
    (GroupId(number), Whole { geometry, members, vacant, bytes, steady, is_copied: false })
}

fn moves(plan: &Plan) -> Vec<(u32, u8, NodeId, NodeId, Option<NodeId>)> {
    plan.begin.iter().map(|(seat, r, _)| (seat.0.0, seat.1, r.from, r.to, r.via)).collect()
}

#[test]
fn who_leaves_is_replaced_at_once_and_who_is_away_is_waited_for() {
    let groups = BTreeMap::from([group(1, 2, 2, &[0, 1, 2, 3], 10)]);
    let mut nodes = fleet(6);
    assert_eq!(plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7), Plan::default());
    let away = nodes.get_mut(&id(0)).unwrap();
    (away.is_up, away.silent_s) = (false, 1000);
    assert_eq!(plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7), Plan::default());
    nodes.get_mut(&id(1)).unwrap().standing.draining = true;
    let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
    assert_eq!(moves(&planned), [(1, 1, id(1), id(4), None)]);
    // While it is under way, nothing is planned twice; when its target is to be empty, too, it is given up.
    let under_way = BTreeMap::from([(planned.begin[0].0, planned.begin[0].1.clone())]);
    assert_eq!(plan(&POLICY, &nodes, &groups, &under_way, 8), Plan::default());
    nodes.get_mut(&id(4)).unwrap().standing.leaving = true;
    let planned = plan(&POLICY, &nodes, &groups, &under_way, 8);
    assert_eq!(planned.give_up, [(GroupId(1), 1)]);
}

#[test]
fn what_a_group_can_lose_is_what_is_there_beyond_k() {
    let (_, mut whole) = group(1, 2, 2, &[0, 1, 2, 3], 10);
    let mut nodes = fleet(4);
    let margin = |whole: &Whole, nodes: &_| super::margin(whole, nodes, &POLICY);
    assert_eq!(margin(&whole, &nodes), 2);
    // Away, or to be empty, is not lost.
    let first = nodes.get_mut(&id(0)).unwrap();
    (first.is_up, first.silent_s, first.standing.draining) = (false, 1000, true);
    assert_eq!(margin(&whole, &nodes), 2);
    nodes.get_mut(&id(0)).unwrap().silent_s = 1001;
    assert_eq!(margin(&whole, &nodes), 1);
    whole.vacant.insert(3);
    assert_eq!(margin(&whole, &nodes), 0);
    nodes.remove(&id(1));
    assert_eq!(margin(&whole, &nodes), 0, "it cannot be read any more");
}

#[test]
fn what_nothing_can_be_made_for_keeps_nobody_waiting() {
    let groups = BTreeMap::from([group(1, 3, 1, &[0, 1, 2, 3], 10), group(2, 2, 2, &[4, 5, 6, 7], 10)]);
    let mut nodes = fleet(14);
    for gone in [0, 1, 4] {
        let node = nodes.get_mut(&id(gone)).unwrap();
        (node.is_up, node.standing.lost) = (false, true);
    }
    // Three of group 1 are needed, and two are there: its move takes the only room, and does not go on.
    let in_vain = MoveRecord { from: id(0), to: id(8), via: None, since_unix_s: 0 };
    let under_way = BTreeMap::from([((GroupId(1), 0), in_vain)]);
    let policy = Policy { together: 1, ..POLICY };
    let of_group = |planned: Plan| planned.begin.iter().map(|(seat, ..)| seat.0.0).collect::<Vec<u32>>();
    assert_eq!(of_group(plan(&policy, &nodes, &groups, &under_way, 1)), [2]);
    // When one is back, that move is one like any other.
    (nodes.get_mut(&id(1)).unwrap().is_up, nodes.get_mut(&id(1)).unwrap().standing.lost) = (true, false);
    assert!(of_group(plan(&policy, &nodes, &groups, &under_way, 1)).is_empty());
}

#[test]
fn who_joins_takes_a_part() {
    // Four stashes of 100, with four groups of 10 on each; then with three of 18: few stashes have few groups, and each is a large part.
    let (many, few) = (take_a_part(4, 10), take_a_part(3, 18));
    assert!(many.iter().all(|held| (2..=4).contains(held)) && many[4] + many[5] >= 4, "{many:?}");
    assert!(few.iter().all(|held| (1..=3).contains(held)) && few[4] + few[5] >= 3, "{few:?}");
}

/// Two stashes join four that have all groups. How many each has in the end.
fn take_a_part(count: u32, bytes: u64) -> Vec<usize> {
    let mut groups: BTreeMap<_, _> = (1..=count).map(|g| group(g, 2, 2, &[0, 1, 2, 3], bytes)).collect();
    let of_100 = |free| Seen { is_up: true, free, capacity: 100, ..Seen::default() };
    let free = 100 - u64::from(count) * bytes;
    let mut nodes: BTreeMap<NodeId, Seen> = (0..4).map(|i| (id(i), of_100(free))).collect();
    assert_eq!(plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 1), Plan::default());
    nodes.extend((4..6).map(|i| (id(i), of_100(100))));
    let mut rounds = 0;
    loop {
        let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), rounds);
        assert!(planned.begin.iter().all(|(.., why)| *why == Why::Fuller) && rounds < 10, "{planned:?}");
        if planned.begin.is_empty() {
            break;
        }
        for ((group, piece), record, _) in planned.begin {
            groups.get_mut(&group).unwrap().members[usize::from(piece)] = record.to;
            nodes.get_mut(&record.to).unwrap().free -= bytes;
            nodes.get_mut(&record.from).unwrap().free += bytes;
        }
        rounds += 1;
    }
    let held = |i| groups.values().filter(|g| g.members.contains(&id(i))).count();
    let all = (0..6).map(held).collect();
    // In other hours nothing moves.
    nodes.extend((6..8).map(|i| (id(i), of_100(100))));
    let closed = Policy { is_open: false, ..POLICY };
    assert_eq!(plan(&closed, &nodes, &groups, &BTreeMap::new(), 1), Plan::default());
    all
}

#[test]
fn no_two_moves_wait_for_each_other() {
    let to = |from, to, via: Option<u8>| MoveRecord { from: id(from), to: id(to), via: via.map(id), since_unix_s: 0 };
    let seat = |piece| (GroupId(1), piece);
    // Device 20 was lost, then device 21; 30 and 31 take their pieces. The first of 30's is done.
    let under_way: BTreeMap<Seat, MoveRecord> =
        [(12, to(20, 31, Some(30))), (11, to(21, 31, None)), (13, to(21, 30, Some(31)))]
            .map(|(piece, record)| (seat(piece), record))
            .into();
    let is_up = |node| node != id(20) && node != id(21);
    let waiting: Vec<u8> =
        under_way.iter().filter(|(s, r)| waits(**s, r, &under_way, is_up)).map(|(s, _)| s.1).collect();
    assert_eq!(waiting, [13]);
    assert_eq!(made_along(seat(11), &under_way[&seat(11)], &under_way, is_up), [11, 13]);
    // What a device is to have of what is lost is made from one read; what can be copied waits for nothing.
    let under_way: BTreeMap<Seat, MoveRecord> =
        [(4, to(20, 30, None)), (5, to(20, 30, None)), (6, to(9, 30, None))].map(|(p, r)| (seat(p), r)).into();
    let waiting: Vec<u8> =
        under_way.iter().filter(|(s, r)| waits(**s, r, &under_way, is_up)).map(|(s, _)| s.1).collect();
    assert_eq!(waiting, [5]);
    assert_eq!(made_along(seat(4), &under_way[&seat(4)], &under_way, is_up), [4, 5]);
    assert_eq!(made_along(seat(6), &under_way[&seat(6)], &under_way, is_up), [6]);
}

#[test]
fn a_device_with_too_many_pieces_gives_some_away() {
    // Data on device 8 alone: the other one was removed. Five of ten pieces may be lost.
    let mut groups = BTreeMap::from([group(1, 8, 4, &[8, 8, 8, 8, 8, 8, 8, 8, 0, 1, 2, 3], 10)]);
    let mut nodes = fleet(10);
    (8..10).for_each(|i| nodes.get_mut(&id(i)).unwrap().is_device = true);
    let labels = nodes.keys().map(|n| (*n, Default::default())).collect();
    let domains = Domains::new(&labels, &[8, 9].map(id).into());
    groups.get_mut(&GroupId(1)).unwrap().steady = 0;
    for round in 0..4 {
        let planned = super::plan(&POLICY, &nodes, &groups, &BTreeMap::new(), &domains, round);
        assert_eq!(planned.begin.len(), 1, "round {round}: {planned:?}");
        let ((_, piece), record, why) = planned.begin[0].clone();
        assert_eq!((record.to, why), (id(9), Why::Better));
        groups.get_mut(&GroupId(1)).unwrap().members[usize::from(piece)] = record.to;
    }
    assert_eq!(super::plan(&POLICY, &nodes, &groups, &BTreeMap::new(), &domains, 9), Plan::default(), "four each");
}

#[test]
fn a_mass_storage_device_is_replaced_by_others() {
    // Data on clients 0 to 3, parity on devices 8 and 9.
    let groups = BTreeMap::from([group(1, 4, 3, &[0, 1, 2, 3, 8, 9, 8], 10)]);
    let mut nodes = fleet(12);
    (8..11).for_each(|i| nodes.get_mut(&id(i)).unwrap().is_device = true);
    let labels = nodes.keys().map(|n| (*n, Default::default())).collect();
    let domains = Domains::new(&labels, &[8, 9, 10].map(id).into());
    let plan = |nodes: &_, under_way: &_| super::plan(&POLICY, nodes, &groups, under_way, &domains, 7);
    assert_eq!(plan(&nodes, &BTreeMap::new()), Plan::default());
    nodes.get_mut(&id(8)).unwrap().standing.lost = true;
    let planned = plan(&nodes, &BTreeMap::new());
    let both = [(1, 4, id(8), id(10), None), (1, 6, id(8), id(9), Some(id(10)))];
    assert_eq!(moves(&planned), both, "not to a client, and not both to one");
    nodes.get_mut(&id(9)).unwrap().is_up = false;
    let planned = plan(&nodes, &BTreeMap::new());
    assert_eq!(moves(&planned), [(1, 4, id(8), id(10), None), (1, 6, id(8), id(10), None)], "there is one only");
    let under_way = planned.begin.iter().map(|(seat, record, _)| (*seat, record.clone())).collect();
    assert_eq!(plan(&nodes, &under_way), Plan::default());
    // A client's piece goes to a client, and a device without another one waits.
    nodes.get_mut(&id(10)).unwrap().standing.draining = true;
    nodes.get_mut(&id(0)).unwrap().standing.draining = true;
    let planned = plan(&nodes, &BTreeMap::new());
    assert_eq!(moves(&planned), [(1, 0, id(0), id(4), None)]);
    assert_eq!(planned.stuck.len(), 2);
}

#[test]
fn losses_are_gathered_and_made_from_one_read() {
    let groups = BTreeMap::from([group(1, 4, 4, &[0, 1, 2, 3, 4, 5, 6, 7], 10)]);
    let mut nodes = fleet(11);
    let gone = |nodes: &mut BTreeMap<NodeId, Seen>, i| {
        let node = nodes.get_mut(&id(i)).unwrap();
        (node.is_up, node.silent_s) = (false, 1001);
    };
    gone(&mut nodes, 2);
    let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
    assert_eq!((planned.begin.len(), planned.put_off), (0, 1));
    gone(&mut nodes, 6);
    let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
    assert_eq!(moves(&planned), [(1, 2, id(2), id(8), None), (1, 6, id(6), id(9), Some(id(8)))]);
    // A third one that is found missing meanwhile comes along.
    let under_way = planned.begin.iter().map(|(seat, record, _)| (*seat, record.clone())).collect();
    gone(&mut nodes, 7);
    nodes.get_mut(&id(7)).unwrap().standing.lost = true;
    let planned = plan(&POLICY, &nodes, &groups, &under_way, 7);
    assert_eq!(moves(&planned), [(1, 7, id(7), id(10), Some(id(8)))]);
    // Said by a person, one is enough.
    let mut nodes = fleet(9);
    nodes.get_mut(&id(2)).unwrap().standing.lost = true;
    assert_eq!(moves(&plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7)), [(1, 2, id(2), id(8), None)]);
    nodes.get_mut(&id(8)).unwrap().free = 10;
    let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
    assert_eq!(planned.stuck, [((GroupId(1), 2), id(2), Why::Lost)], "nobody has room");
}

#[test]
fn what_is_weakest_comes_first() {
    let of = |number, members: &[u8]| group(number, 2, 2, members, 10);
    let groups = BTreeMap::from([of(1, &[0, 1, 2, 3]), of(2, &[0, 4, 5, 6]), of(3, &[0, 1, 2, 4])]);
    let mut nodes = fleet(12);
    for i in [4, 5, 6, 0] {
        nodes.get_mut(&id(i)).unwrap().standing.lost = true;
    }
    let planned = plan(&Policy { together: 3, ..POLICY }, &nodes, &groups, &BTreeMap::new(), 7);
    let order: Vec<u32> = planned.begin.iter().map(|(seat, ..)| seat.0.0).collect();
    assert_eq!(order, [3, 3, 1], "of group 2 nothing can be made any more: it must not keep others waiting");
}

#[test]
fn a_full_disk_is_emptied_at_once_where_others_can_do_without() {
    let mut groups = BTreeMap::from([group(1, 2, 2, &[0, 1, 2, 3], 10), group(2, 2, 1, &[0, 1, 2], 10)]);
    let mut nodes = fleet(4);
    let full = nodes.get_mut(&id(0)).unwrap();
    (full.too_much, full.is_urgent) = (100, true);
    let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
    assert_eq!(planned.vacate, [((GroupId(1), 0), id(0))], "of the other group no further one could be lost");
    assert_eq!(moves(&planned), [(2, 0, id(0), id(3), None)]);
    groups.get_mut(&GroupId(1)).unwrap().vacant.insert(0);
    let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
    assert!(planned.vacate.is_empty());
    assert_eq!(planned.stuck, [((GroupId(1), 0), id(0), Why::Lost)], "nobody else is there");
    nodes.insert(id(9), Seen { is_up: true, free: 1000, ..Seen::default() });
    let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
    assert!(moves(&planned).contains(&(1, 0, id(0), id(9), None)), "{planned:?}");
    // Two of the same group at the same time: only one may.
    let mut nodes = fleet(4);
    for i in [0, 1] {
        let full = nodes.get_mut(&id(i)).unwrap();
        (full.too_much, full.is_urgent) = (100, true);
    }
    groups.get_mut(&GroupId(1)).unwrap().vacant.clear();
    assert_eq!(plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7).vacate.len(), 1);
}

#[test]
fn pieces_that_lie_badly_are_moved_in_their_hours() {
    // Two racks of four; a group of 2 + 2 has three pieces in rack 0.
    let rack = |i: u8| BTreeMap::from([("rack".to_string(), (i / 4).to_string())]);
    let domains = Domains::new(&(0..8).map(|i| (id(i), rack(i))).collect(), &BTreeSet::new());
    let groups = BTreeMap::from([group(1, 2, 2, &[0, 1, 2, 4], 10)]);
    let mut nodes = fleet(8);
    let now = |nodes: &BTreeMap<NodeId, Seen>, is_open| {
        super::plan(&Policy { is_open, ..POLICY }, nodes, &groups, &BTreeMap::new(), &domains, 7)
    };
    assert_eq!(moves(&now(&nodes, true)), [(1, 2, id(2), id(5), None)]);
    assert_eq!(now(&nodes, false), Plan::default(), "it can wait");
    // If nobody is there in the other rack, it stays, and is nobody's trouble.
    for i in 5..8 {
        nodes.get_mut(&id(i)).unwrap().is_up = false;
    }
    assert_eq!(now(&nodes, true), Plan::default());
    // A member that is lost is replaced all the same, and by the best that is there.
    nodes.get_mut(&id(4)).unwrap().standing.lost = true;
    assert_eq!(moves(&now(&nodes, true))[0], (1, 3, id(4), id(3), None));
    nodes.get_mut(&id(7)).unwrap().is_up = true;
    assert_eq!(moves(&now(&nodes, true))[0], (1, 3, id(4), id(7), None));

    // Of four members three are off in the busy hours: two must not be.
    let nothing = Domains::default();
    let mut nodes = fleet(8);
    for i in [0, 1, 2, 5] {
        nodes.get_mut(&id(i)).unwrap().is_unsteady = true;
    }
    let planned = super::plan(&POLICY, &nodes, &groups, &BTreeMap::new(), &nothing, 7);
    assert_eq!(moves(&planned), [(1, 2, id(2), id(3), None)]);
    let weak: Vec<Weak> = weaknesses(&groups[&GroupId(1)], &nodes, &nothing).collect();
    assert_eq!(weak, [Weak::Unsteady(1)]);
    // Nobody moves to whoever is new.
    (3..8).for_each(|i| nodes.get_mut(&id(i)).unwrap().is_new = true);
    assert_eq!(super::plan(&POLICY, &nodes, &groups, &BTreeMap::new(), &nothing, 7), Plan::default());
    // All in one building, which nobody can help, and three of four in one rack, which somebody can.
    let labels = |i: u8| {
        let both = [("building", 0), ("rack", i / 4)];
        both.map(|(key, value)| (key.to_string(), value.to_string())).into_iter().collect()
    };
    let mut both: BTreeMap<NodeId, crate::domains::Labels> = (0..8).map(|i| (id(i), labels(i))).collect();
    both.insert(id(9), [("building".to_string(), "1".to_string())].into());
    let planned = super::plan(&POLICY, &fleet(8), &groups, &BTreeMap::new(), &Domains::new(&both, &BTreeSet::new()), 7);
    assert_eq!(moves(&planned), [(1, 2, id(2), id(5), None)]);
}

#[test]
fn what_is_due_waits_for_its_hours_unless_it_becomes_more() {
    let groups = BTreeMap::from([group(1, 4, 4, &[0, 1, 2, 3, 4, 5, 6, 7], 10)]);
    let mut nodes = fleet(12);
    let closed = Policy { is_open: false, ..POLICY };
    for (gone, begins) in [(0, 0), (1, 0), (2, 3)] {
        let node = nodes.get_mut(&id(gone)).unwrap();
        (node.is_up, node.silent_s) = (false, 1001);
        assert_eq!(plan(&closed, &nodes, &groups, &BTreeMap::new(), 7).begin.len(), begins, "{gone}");
    }
}

#[test]
fn a_member_with_less_room_gives_what_is_enough() {
    let groups: BTreeMap<_, _> =
        [(1, 30), (2, 50), (3, 80)].map(|(i, bytes)| group(i, 2, 1, &[0, 1, 2], bytes)).into_iter().collect();
    let mut nodes = fleet(5);
    for (too_much, want) in [(1, vec![1]), (40, vec![2]), (81, vec![3, 1]), (1000, vec![3, 2, 1])] {
        nodes.get_mut(&id(0)).unwrap().too_much = too_much;
        let planned = plan(&POLICY, &nodes, &groups, &BTreeMap::new(), 7);
        assert_eq!(planned.begin.iter().map(|(seat, ..)| seat.0.0).collect::<Vec<_>>(), want, "{too_much}");
    }
}
