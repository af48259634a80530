//! A day of twelve stashes in three racks: what an admin wants is kept while stashes are killed, wiped, drained, added and moved to other racks.

use std::fs;

use serde_json::Value;
use tests::fleet::{STASH_SIZE, TestFleet, closed, start};
use xtask::fleet::wait_for;
use xtask::sample;

const LEN: usize = 12_000_000;

fn publish(t: &TestFleet, name: &str, seed: u64) -> Value {
    let image = t.file(name);
    fs::write(&image, sample::noise(seed, LEN)).unwrap();
    t.fleet.publish(&image, &["--name", name]).unwrap()
}

fn installs(t: &TestFleet, name: &str) {
    let (target, image) = (t.file("target"), t.file(name));
    t.fleet.install(name, &target, LEN as u64).unwrap();
    assert!(fs::read(&target).unwrap() == fs::read(&image).unwrap(), "{name} is installed");
    fs::remove_file(&target).unwrap();
}

fn label(t: &TestFleet, stashes: &[usize], label: &str) {
    let nodes = stashes.iter().map(|stash| t.fleet.stashes[*stash].node.as_str());
    let args: Vec<&str> = ["node", "label"].into_iter().chain(nodes).chain(["--set", label]).collect();
    assert_eq!(t.fleet.ctl(&args).unwrap().as_array().unwrap().len(), stashes.len());
}

fn health(t: &TestFleet) -> Value {
    t.fleet.ctl(&["status"]).unwrap()["health"].clone()
}

fn is_green(t: &TestFleet) -> bool {
    let health = health(t);
    ["missing", "damaged", "moves", "stuck", "lost_segments", "crowded", "unsteady"]
        .iter()
        .all(|what| health[what] == 0)
}

fn wait_until_green(t: &TestFleet) {
    wait_for("everything to be where it should", || is_green(t)).unwrap_or_else(|e| panic!("{e}: {}", health(t)));
}

fn groups(t: &TestFleet, image: &str) -> Vec<Value> {
    t.fleet.ctl(&["explain", image]).unwrap()["groups"].as_array().unwrap().clone()
}

fn kill_and_wait(t: &mut TestFleet, stashes: &[usize]) {
    for stash in stashes {
        t.fleet.kill_stash(*stash);
    }
    let left = t.fleet.running();
    t.fleet.wait_until_up(left).unwrap();
}

#[test]
fn a_day_of_twelve_stashes_in_three_racks() {
    let mut t = start(12);
    for rack in 0..3 {
        label(&t, &[rack, rack + 3, rack + 6, rack + 9], &format!("rack={rack}"));
    }
    // 8 + 3 would be cheaper, and a rack of four pieces more than can be lost.
    let explained = t.fleet.ctl(&["policy", "set", "--survive", "3"]).unwrap();
    assert_eq!(explained["geometry"], "6+3", "{explained}");
    assert_eq!((&explained["unmet"], &explained["domains"][0]["count"]), (&Value::Array(vec![]), &3.into()));
    assert_eq!(publish(&t, "one", 1)["geometry"], "6+3");
    for group in groups(&t, "one") {
        assert!(group["weakness"].is_null() && group["durable"] == group["online"], "{group}");
    }
    assert!(is_green(&t) && health(&t)["spare"] == 3, "{}", health(&t));

    // A rack without power: nothing is lost, nothing moves, everything can be installed.
    kill_and_wait(&mut t, &[0, 3, 6, 9]);
    // Nine of twelve are some of any four; copies of the manifest may all lie in other racks.
    for group in groups(&t, "one") {
        let away = group["durable"].as_u64().unwrap() - group["online"].as_u64().unwrap();
        assert!(away > 0 || group["geometry"] != "6+3", "{group}");
    }
    installs(&t, "one");
    assert!(is_green(&t), "away is not lost: {}", health(&t));
    for stash in [0, 3, 6, 9] {
        t.fleet.bring_back_stash(stash).unwrap();
    }
    t.fleet.wait_until_up(12).unwrap();

    // A disk is gone. Its pieces are made anew, and no rack gets too many.
    let image = t.file("large");
    fs::write(&image, sample::noise(3, 10 * LEN)).unwrap();
    t.fleet.publish(&image, &["--name", "large"]).unwrap();
    kill_and_wait(&mut t, &[4]);
    let id = t.fleet.stashes[4].node.clone();
    t.fleet.ctl(&["policy", "set", "--limit", "10MB"]).unwrap();
    t.fleet.ctl(&["node", "remove", &id, "--lost"]).unwrap();
    // While that takes its time, `status` says what is at risk, what is done about it, and how long it takes.
    let at_risk = health(&t);
    assert!(at_risk["missing"].as_u64() > Some(0) && at_risk["spare"] == 2 && at_risk["stuck"] == 0, "{at_risk}");
    wait_for("it to be said how long it takes", || {
        let health = health(&t);
        health["moves"].as_u64() > Some(0) && health["eta_s"].as_u64() > Some(0)
    })
    .unwrap_or_else(|e| panic!("{e}: {}", health(&t)));
    t.fleet.ctl(&["policy", "set", "--limit", "0"]).unwrap();
    wait_until_green(&t);
    assert_eq!(health(&t)["spare"], 3);
    installs(&t, "one");

    // One is drained, and a new one joins.
    let id = t.fleet.stashes[8].node.clone();
    t.fleet.ctl(&["node", "drain", &id, "--wait"]).unwrap();
    t.fleet.add_stash(STASH_SIZE).unwrap();
    label(&t, &[12], "rack=1");
    publish(&t, "two", 2);
    wait_until_green(&t);
    t.fleet.ctl(&["node", "keep", &id]).unwrap();
    installs(&t, "two");

    // Two machines are carried into another rack: now that one has too many pieces. That is said at once, and mended in its hours.
    t.fleet.ctl(&["policy", "set", "--window", &closed()]).unwrap();
    t.fleet.add_stash(STASH_SIZE).unwrap();
    t.fleet.add_stash(STASH_SIZE).unwrap();
    label(&t, &[13, 14], "rack=0");
    label(&t, &[0, 3], "rack=2");
    wait_for("it to be said", || health(&t)["crowded"].as_u64() > Some(0)).unwrap();
    let weak =
        groups(&t, "one").iter().filter(|g| g["weakness"].as_str().is_some_and(|w| w.starts_with("rack=2"))).count();
    assert!(weak > 0);
    assert_eq!(health(&t)["moves"], 0, "these are not the hours for it");
    t.fleet.ctl(&["policy", "set", "--window", "always"]).unwrap();
    wait_until_green(&t);
    installs(&t, "one");
    // The rack that everything was in may fail now.
    kill_and_wait(&mut t, &[0, 2, 3, 5, 8, 11]);
    installs(&t, "one");
    installs(&t, "two");

    // What is to be deleted at those that are away waits for them; asking deletes nothing.
    t.fleet.ctl(&["rm", "two:1"]).unwrap();
    let would = t.fleet.ctl(&["gc", "--dry-run"]).unwrap();
    assert!(would["waiting"].as_u64() > Some(0) && would["deleted"] == 0, "{would}");
    for stash in [0, 2, 3, 5, 8, 11] {
        t.fleet.bring_back_stash(stash).unwrap();
    }
    wait_for("what was deleted to be gone", || t.fleet.ctl(&["gc"]).unwrap()["waiting"] == 0).unwrap();
    wait_until_green(&t);
    installs(&t, "one");
}

#[test]
fn what_cannot_be_kept_is_said() {
    let mut t = start(3);
    let explained = t.fleet.ctl(&["policy", "set", "--survive", "3", "--readable", "99.9"]).unwrap();
    assert!(explained["unmet"][0].as_str().unwrap().contains("it takes 5 of them"), "{explained}");
    let published = publish(&t, "one", 3);
    assert_eq!((&published["geometry"], &published["unmet"]), (&"1+2".into(), &explained["unmet"]));
    // Copies for one image, and parity for the others.
    t.fleet.ctl(&["policy", "clear"]).unwrap();
    t.fleet.ctl(&["policy", "set", "--image", "exam", "--redundant", "--layout", "clients"]).unwrap();
    assert_eq!(publish(&t, "exam", 4)["geometry"], "1+1");
    assert_eq!(publish(&t, "two", 5)["geometry"], "2+1");
    let all = t.fleet.ctl(&["policy", "show"]).unwrap();
    assert_eq!(
        (all.as_array().unwrap().len(), &all[0]["image"], &all[0]["redundant"]),
        (1, &"exam".into(), &true.into())
    );
    for (args, why) in [
        (&["policy", "set"][..], "want what"),
        (&["policy", "set", "--readable", "100"], "99.99"),
        (&["policy", "set", "--survive", "17"], "at most 16"),
        (&["policy", "set", "--limit", "50"], "1MB"),
        (&["policy", "clear", "--image", "exam:1"], "without a tag"),
        (&["policy", "clear", "--image", "nobody"], "a policy of images called nobody"),
        (&["policy", "set", "--readable", "nan"], "want a percentage"),
        (&["policy", "set", "--image", "exam", "--window", "20:00-06:00"], "all images"),
        (&["policy", "set", "--window", "20-6"], "20:00-06:00"),
        (&["policy", "set", "--image", "exam:1", "--survive", "1"], "without a tag"),
        (&["node", "label", "ffffffffffff", "--set", "rack=1"], "stash ffffffffffff"),
        (&["explain", "one:99"], "one:99"),
    ] {
        let refused = t.fleet.ctl(args).unwrap_err().to_string();
        assert!(refused.contains(why), "{args:?}: {refused}");
    }
    // Any one of its two holders is enough.
    kill_and_wait(&mut t, &[0]);
    installs(&t, "exam");
}

/// What a layout promises to survive, it survives; when too few pieces are left, that is said, and nothing is written that is not the image.
#[test]
fn each_layout_survives_what_it_promises() {
    for (layout, redundant) in [("clients", false), ("clients", true), ("mirror", false)] {
        let mut t = start(6);
        let mut policy = vec!["policy", "set", "--survive", "2", "--layout", layout];
        policy.extend(redundant.then_some("--redundant"));
        t.fleet.ctl(&policy).unwrap();
        publish(&t, "one", 6);
        let is_whole = |g: &Value| {
            let k: u64 = g["geometry"].as_str().unwrap().split_once('+').unwrap().0.parse().unwrap();
            g["online"].as_u64() >= Some(k)
        };
        kill_and_wait(&mut t, &[0, 1]);
        assert_eq!(health(&t)["not_installable"], serde_json::json!([]));
        installs(&t, "one");
        for lost in 2..6 {
            kill_and_wait(&mut t, &[lost]);
            let (groups, target) = (groups(&t, "one"), t.file("target"));
            if groups.iter().all(is_whole) {
                installs(&t, "one");
            } else if let Err(refused) = t.fleet.install("one", &target, LEN as u64) {
                // Pages of the manifest come from the controller, too: a group that has none online is not the end.
                let refused = refused.to_string();
                assert!(refused.contains("pieces") && refused.contains("unreachable"), "{refused}");
                // An admin hears of it before anybody tries.
                assert_eq!(health(&t)["not_installable"], serde_json::json!(["one:1"]));
                let weak = |g: &Value| g["weakness"].as_str().is_some_and(|weak| weak.contains("needed"));
                assert!(self::groups(&t, "one").iter().any(weak));
                break;
            }
            assert!(lost < 5, "{layout}: without any stash it cannot be installed");
        }
    }
}

fn be_device(t: &TestFleet, stash: usize) {
    t.fleet.ctl(&["node", "device", &t.fleet.stashes[stash].node]).unwrap();
}

fn bring_back(t: &mut TestFleet, stashes: &[usize]) {
    for stash in stashes {
        t.fleet.bring_back_stash(*stash).unwrap();
    }
    t.fleet.wait_until_up(t.fleet.running()).unwrap();
}

fn is_refused(t: &TestFleet, name: &str) {
    let refused = t.fleet.install(name, &t.file("target"), LEN as u64).unwrap_err().to_string();
    assert!(refused.contains("pieces") && refused.contains("unreachable"), "{refused}");
}

/// Of each group of an image that is not of copies: its geometry, and how many pieces lie on mass-storage devices.
fn on_devices(t: &TestFleet, image: &str) -> Vec<(String, u64)> {
    let of = |g: &Value| (g["geometry"].as_str().unwrap().to_string(), g["on_devices"].as_u64().unwrap());
    groups(t, image).iter().map(of).filter(|(geometry, _)| !geometry.starts_with("1+")).collect()
}

#[test]
fn mass_storage_devices_keep_parity_or_data() {
    let mut t = start(7);
    let set = |t: &TestFleet, layout: &str, survive: &str| {
        t.fleet.ctl(&["policy", "set", "--survive", survive, "--layout", layout]).unwrap()
    };
    // Without a device there is no such layout.
    let explained = set(&t, "parity-on-controller", "2");
    assert!(explained["unmet"][0].as_str().unwrap().contains("needs a mass-storage device"), "{explained}");
    let image = t.file("none");
    fs::write(&image, sample::noise(9, 1_000_000)).unwrap();
    let refused = t.fleet.publish(&image, &["--name", "none"]).unwrap_err().to_string();
    assert!(refused.contains("coe-ctl node device"), "{refused}");

    // Data on five clients, parity on two devices.
    be_device(&t, 5);
    be_device(&t, 6);
    let explained = set(&t, "parity-on-controller", "2");
    assert_eq!((&explained["geometry"], &explained["unmet"]), (&"4+2".into(), &Value::Array(vec![])), "{explained}");
    publish(&t, "parity", 7);
    let all = on_devices(&t, "parity");
    assert!(!all.is_empty() && all.iter().all(|of| *of == ("4+2".into(), 2)), "{all:?}");
    let refused = t.fleet.ctl(&["node", "device", &t.fleet.stashes[0].node]).unwrap_err().to_string();
    assert!(refused.contains("drain"), "what holds pieces stays what it is: {refused}");
    kill_and_wait(&mut t, &[0, 1]);
    installs(&t, "parity");
    kill_and_wait(&mut t, &[2, 3]);
    is_refused(&t, "parity");
    bring_back(&mut t, &[0, 1, 2, 3]);
    kill_and_wait(&mut t, &[5, 6]);
    installs(&t, "parity");

    // A device is gone for good: the other one has its parity from now on, and no client.
    bring_back(&mut t, &[6]);
    let id = t.fleet.stashes[5].node.clone();
    t.fleet.ctl(&["node", "remove", &id, "--lost", "--wait"]).unwrap();
    wait_until_green(&t);
    let all = on_devices(&t, "parity");
    assert!(all.iter().all(|of| *of == ("4+2".into(), 2)), "{all:?}");
    kill_and_wait(&mut t, &[3, 4]);
    installs(&t, "parity");
    bring_back(&mut t, &[3, 4]);

    // Data on two devices, parity on clients: either device may fail.
    t.fleet.add_stash(STASH_SIZE).unwrap();
    t.fleet.wait_until_up(7).unwrap();
    // All that are named, or none.
    let (empty, full) = (t.fleet.stashes[7].node.clone(), t.fleet.stashes[0].node.clone());
    t.fleet.ctl(&["node", "device", &empty, &full]).unwrap_err();
    let nodes = t.fleet.ctl(&["nodes"]).unwrap();
    let class = nodes.as_array().unwrap().iter().find(|node| node["node"] == empty.as_str()).unwrap()["class"].clone();
    assert_eq!(class, "new");
    be_device(&t, 7);
    let explained = set(&t, "parity-on-clients", "1");
    assert_eq!((&explained["geometry"], &explained["unmet"]), (&"8+4".into(), &Value::Array(vec![])), "{explained}");
    publish(&t, "data", 8);
    let all = on_devices(&t, "data");
    assert!(!all.is_empty() && all.iter().all(|of| *of == ("8+4".into(), 8)), "{all:?}");
    kill_and_wait(&mut t, &[7]);
    installs(&t, "data");
    kill_and_wait(&mut t, &[0, 1, 2, 3, 4]);
    is_refused(&t, "data");
    bring_back(&mut t, &[0, 1, 2, 3, 4, 7]);

    // Replacing a device is a repair like any other.
    let id = t.fleet.stashes[6].node.clone();
    t.fleet.add_stash(STASH_SIZE).unwrap();
    t.fleet.wait_until_up(8).unwrap();
    be_device(&t, 8);
    t.fleet.ctl(&["node", "remove", &id, "--wait"]).unwrap();
    t.fleet.kill_stash(6);
    wait_until_green(&t);
    installs(&t, "data");
    installs(&t, "parity");
    let verified = t.fleet.ctl(&["verify"]).unwrap();
    assert_eq!(verified["problem_count"], 0, "{verified}");
}
