use std::collections::BTreeMap;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn node(i: u8) -> NodeId {
    NodeId([i; 16])
}

/// How a simulated holder behaves.
#[derive(Clone, Copy)]
enum Holder {
    Answers(u64),
    Stalls,
    Refuses(fn() -> Fault),
}

/// Runs one getter against holders until all jobs end; the answer is each job's last action and the time.
fn run(holders: &[Holder], need: usize, jobs: u64, rotate: u8) -> (BTreeMap<u64, Action>, Now, Getter) {
    let mut getter = Getter::new(Patience::default());
    let mut now = Now::ZERO;
    for job in 0..jobs {
        // As groups do, each job starts with another holder.
        let nodes = (0..holders.len() as u8).map(|i| node((i + job as u8 % rotate) % holders.len() as u8)).collect();
        getter.want(Want { job: JobId(job), segment: SegmentId([job as u8; 32]), need, holders: nodes }, now);
    }
    let (mut queue, mut ended): (Vec<(Now, Event)>, _) = (Vec::new(), BTreeMap::new());
    while ended.len() < jobs as usize {
        while let Some(action) = getter.poll_action() {
            match action {
                Action::Fetch { request, node, .. } => match holders[usize::from(node.0[0])] {
                    Holder::Answers(ms) => queue.push((now + MS * ms as u32, Event::Got { request, len: 1 })),
                    Holder::Refuses(fault) => {
                        queue.push((now + MS, Event::Failed { request, fault: fault() }));
                    }
                    Holder::Stalls => {}
                },
                Action::Cancel(request) => queue.retain(
                    |(_, e)| !matches!(e, Event::Got { request: r, .. } | Event::Failed { request: r, .. } if *r == request),
                ),
                Action::Complete(job) => drop(ended.insert(job.0, Action::Complete(job))),
                Action::GiveUp(job, why) => drop(ended.insert(job.0, Action::GiveUp(job, why))),
            }
        }
        queue.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let next_event = queue.last().map(|(at, _)| *at);
        let next_tick = getter.poll_timeout();
        match (next_event, next_tick) {
            (Some(at), tick) if tick.is_none_or(|tick| at <= tick) => {
                let (_, event) = queue.pop().expect("just seen");
                now = at;
                getter.handle(event, now);
            }
            (_, Some(tick)) => {
                now = now.max(tick);
                getter.tick(now);
            }
            (_, None) => assert!(ended.len() == jobs as usize, "nothing left to wait for, and jobs unfinished"),
        }
        assert!(now < Duration::from_secs(600), "does not end");
    }
    (ended, now, getter)
}

#[test]
fn outcomes_and_how_long_they_take() {
    use Holder::{Answers, Refuses, Stalls};
    let lies: fn() -> Fault = || Fault::Lied("digest".into());
    let gone: fn() -> Fault = || Fault::Unreachable;
    let empty: fn() -> Fault = || Fault::NotThere;
    let a = Answers(5);
    // name, holders, k, whether all jobs complete, within how many ms
    let cases: &[(&str, &[Holder], usize, bool, u64)] = &[
        ("all well", &[a, a, a, a], 2, true, 200),
        ("m stall", &[Stalls, a, Stalls, a], 2, true, 1_000),
        ("m lie", &[Refuses(lies), a, Refuses(lies), a], 2, true, 200),
        ("m are gone", &[Refuses(gone), Refuses(gone), a, a], 2, true, 500),
        ("m have nothing", &[Refuses(empty), a, a, Refuses(empty)], 2, true, 200),
        ("one of each", &[Refuses(empty), Stalls, Refuses(lies), Refuses(gone), a, a], 2, true, 1_000),
        ("one slow holder does not hold up", &[Answers(9_000), a, a], 2, true, 1_000),
        ("the slow one is needed", &[Answers(2_000), a], 2, true, 200_000),
        ("k - 1 left", &[a, Refuses(gone), Refuses(lies)], 2, false, 10_000),
        ("nobody", &[Refuses(gone), Refuses(gone)], 1, false, 10_000),
    ];
    for (name, holders, need, completes, within_ms) in cases {
        let (ended, took, _) = run(holders, *need, 20, 1);
        for action in ended.values() {
            assert_eq!(matches!(action, Action::Complete(_)), *completes, "{name}: {action:?}");
        }
        assert!(took <= MS * *within_ms as u32, "{name}: took {took:?}");
    }
}

#[test]
fn a_shortfall_names_every_missing_piece() {
    let holders =
        [Holder::Answers(1), Holder::Refuses(|| Fault::Lied("digest".into())), Holder::Refuses(|| Fault::NotThere)];
    let (ended, _, getter) = run(&holders, 2, 1, 1);
    let Some(Action::GiveUp(_, shortfall)) = ended.get(&0) else { panic!("must give up") };
    assert_eq!(shortfall.missing.len() + shortfall.have, 3);
    assert!(shortfall.missing.contains(&(1, node(1), Fault::Lied("digest".into()))));
    assert!(shortfall.missing.contains(&(2, node(2), Fault::NotThere)));
    let liar = getter.peers().reports().find(|(n, _)| *n == node(1)).expect("was asked");
    assert_eq!(liar.1.lied.as_deref(), Some("digest"));
}

#[test]
fn load_spreads_over_equal_holders() {
    let (_, _, getter) = run(&[Holder::Answers(5); 8], 4, 200, 8);
    for (node, report) in getter.peers().reports() {
        assert!((60..=140).contains(&report.pieces), "{node} served {} of 800", report.pieces);
    }
    assert_eq!(getter.hedges(), 0);
}
