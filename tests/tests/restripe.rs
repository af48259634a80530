//! Fleet and policies change: what is published follows, without being published again, and without anybody who is installing noticing.

use std::fs;
use std::path::PathBuf;
use std::process::Child;

use serde_json::Value;
use tests::fleet::{STASH_SIZE, TestFleet, start};
use xtask::fleet::wait_for;
use xtask::sample;

const LEN: usize = 24_000_000;

/// Half of it is the same for all images.
fn publish(t: &TestFleet, name: &str, seed: u64, more: &[&str]) -> PathBuf {
    let image = t.file(name);
    let bytes = [sample::noise(1, LEN / 2), sample::noise(seed, LEN / 2)].concat();
    fs::write(&image, bytes).unwrap();
    t.fleet.publish(&image, &[&["--name", name], more].concat()).unwrap();
    image
}

fn installs(t: &TestFleet, name: &str) {
    let target = t.file("target");
    t.fleet.install(name, &target, LEN as u64).unwrap();
    is_installed(t, name, &target);
}

fn is_installed(t: &TestFleet, name: &str, target: &std::path::Path) {
    assert!(fs::read(target).unwrap() == fs::read(t.file(name)).unwrap(), "{name} is installed");
    fs::remove_file(target).unwrap();
}

/// Geometries of an image's segments, without the pages of its manifest.
fn geometries(t: &TestFleet, image: &str) -> Vec<String> {
    let explained = t.fleet.ctl(&["explain", image]).unwrap();
    let groups = explained["groups"].as_array().unwrap();
    let mut all: Vec<String> = groups.iter().map(|g| g["geometry"].as_str().unwrap().to_string()).collect();
    all.retain(|geometry| !geometry.starts_with("1+"));
    all.sort();
    all.dedup();
    all
}

/// The fewest copies of a page of an image's manifest.
fn page_copies(t: &TestFleet, image: &str) -> u64 {
    let explained = t.fleet.ctl(&["explain", image]).unwrap();
    let groups = explained["groups"].as_array().unwrap();
    let copies = |g: &Value| Some(1 + g["geometry"].as_str()?.strip_prefix("1+")?.parse::<u64>().ok()?);
    groups.iter().filter_map(copies).min().unwrap()
}

fn due(t: &TestFleet) -> Vec<Value> {
    t.fleet.ctl(&["restripe"]).unwrap().as_array().unwrap().clone()
}

fn status(t: &TestFleet, what: &str) -> u64 {
    t.fleet.ctl(&["status"]).unwrap()[what].as_u64().unwrap()
}

/// Start an installation, and stop it when it has begun to write.
fn half_an_installation(t: &TestFleet, name: &str, target: &std::path::Path) -> Child {
    sample::empty(target, LEN as u64).unwrap();
    let mut command = t.fleet.command("coe-installer");
    let child = command.args(["--json", "--image", name, "--disk"]).arg(target).spawn().unwrap();
    let has_begun = || fs::read(target).is_ok_and(|bytes| bytes.iter().any(|byte| *byte != 0));
    wait_for("an installation to begin", has_begun).unwrap();
    signal(&child, "-STOP");
    child
}

fn signal(child: &Child, signal: &str) {
    let done = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

#[test]
fn what_is_published_follows_fleet_and_policies() {
    let mut t = start(4);
    publish(&t, "one", 2, &[]);
    publish(&t, "two", 3, &[]);
    publish(&t, "said", 4, &["--data", "1", "--parity", "1"]);
    assert_eq!((geometries(&t, "one"), page_copies(&t, "one")), (vec!["2+1".to_string()], 2));
    assert!(due(&t).is_empty(), "{:?}", due(&t));
    let (segments, sealed) = (status(&t, "segments"), status(&t, "sealed"));

    // The fleet grows. Nothing is done about it before it has been so for a week; unless somebody says so.
    for _ in 0..5 {
        t.fleet.add_stash(STASH_SIZE).unwrap();
    }
    t.fleet.wait_until_up(9).unwrap();
    let waiting = due(&t);
    let of: Vec<&str> = waiting.iter().map(|info| info["image"].as_str().unwrap()).collect();
    assert_eq!(of, ["one:1", "two:1"], "what was said of an image is kept: {waiting:?}");
    assert!(waiting.iter().all(|info| info["state"] == "settles" && info["wanted"] == "6+2 mirror"), "{waiting:?}");

    // Whoever is installing it meanwhile goes on with what it began with.
    let target = t.file("half");
    let mut half = half_an_installation(&t, "one", &target);
    let shown = t.fleet.ctl(&["show", "one:1"]).unwrap();
    t.fleet.ctl(&["restripe", "one", "--wait"]).unwrap();
    signal(&half, "-CONT");
    assert!(half.wait().unwrap().success());
    is_installed(&t, "one", &target);
    let now = t.fleet.ctl(&["show", "one:1"]).unwrap();
    assert_eq!((&now["content"], &now["created_unix_s"]), (&shown["content"], &shown["created_unix_s"]));
    assert_ne!(now["manifest"], shown["manifest"]);

    assert_eq!((geometries(&t, "one"), page_copies(&t, "one")), (vec!["6+2".to_string()], 3));
    assert_eq!(geometries(&t, "two"), ["2+1"]);
    t.fleet.ctl(&["restripe", "two:1", "--wait"]).unwrap();
    assert_eq!(geometries(&t, "two"), ["6+2"]);
    assert!(due(&t).is_empty());
    assert!(t.fleet.ctl(&["restripe", "two:1"]).unwrap()["due"].is_null());

    // What two images share is there once, in the old edition and in the new one; then only in the new one.
    assert!(status(&t, "sealed") < 2 * sealed + sealed / 10, "{} of {sealed}", status(&t, "sealed"));
    t.fleet.ctl(&["gc"]).unwrap();
    assert!(status(&t, "segments") > segments, "kept for a day");
    t.fleet.ctl(&["gc", "--superseded"]).unwrap();
    wait_for("what was before to be deleted", || t.fleet.ctl(&["gc"]).unwrap()["waiting"] == 0).unwrap();
    // What `said` shares with them has two editions now.
    assert!(status(&t, "sealed") < sealed + sealed / 2, "{} of {sealed}", status(&t, "sealed"));
    assert_eq!(t.fleet.ctl(&["verify", "--deep"]).unwrap()["problem_count"], 0);

    // It survives what it could not before.
    t.fleet.kill_stash(0);
    t.fleet.kill_stash(8);
    t.fleet.wait_until_up(7).unwrap();
    ["one", "two"].iter().for_each(|name| installs(&t, name));
    t.fleet.bring_back_stash(0).unwrap();
    t.fleet.bring_back_stash(8).unwrap();
    t.fleet.wait_until_up(9).unwrap();

    // Somebody wants more: that is done without being asked for, in spite of a controller that dies in the middle.
    let set = t.fleet.ctl(&["policy", "set", "--survive", "3", "--limit", "5MB"]).unwrap();
    assert_eq!((&set["geometry"], set["restripe"].as_array().unwrap().len()), (&"5+3".into(), 2), "{set}");
    wait_for("it to begin", || due(&t).iter().any(|info| info["state"] == "under-way" && info["done"] != 0)).unwrap();
    t.fleet.kill_controller();
    t.fleet.start_controller().unwrap();
    t.fleet.wait_until_up(9).unwrap();
    t.fleet.ctl(&["policy", "set", "--limit", "0"]).unwrap();
    wait_for("all to be cut anew", || due(&t).is_empty()).unwrap();
    for name in ["one", "two"] {
        assert_eq!((geometries(&t, name), page_copies(&t, name)), (vec!["5+3".to_string()], 4));
    }
    t.fleet.ctl(&["gc", "--superseded"]).unwrap();
    wait_for("what was before to be deleted", || t.fleet.ctl(&["gc"]).unwrap()["waiting"] == 0).unwrap();
    assert_eq!(t.fleet.ctl(&["verify", "--deep"]).unwrap()["problem_count"], 0);
    assert_eq!((status(&t, "unreferenced"), status(&t, "trash"), status(&t, "pending")), (0, 0, 0));

    // An image that was cut anew can be removed, and published again.
    t.fleet.ctl(&["rm", "two:1"]).unwrap();
    publish(&t, "two", 3, &[]);
    t.fleet.kill_controller();
    for stash in [1, 3, 7] {
        t.fleet.kill_stash(stash);
    }
    t.fleet.start_controller().unwrap();
    t.fleet.wait_until_up(6).unwrap();
    ["one", "two"].iter().for_each(|name| installs(&t, name));
}

#[test]
fn a_layout_that_is_wanted_later_is_kept_too() {
    let mut t = start(5);
    publish(&t, "one", 5, &[]);
    // Not in these hours, unless somebody asks.
    t.fleet.ctl(&["policy", "set", "--window", &tests::fleet::closed()]).unwrap();
    t.fleet.ctl(&["policy", "set", "--layout", "clients", "--redundant"]).unwrap();
    let waiting = due(&t);
    assert_eq!((waiting.len(), &waiting[0]["state"]), (1, &"in-its-hours".into()), "{waiting:?}");
    let copies = || fs::read_dir(t.fleet.mass_storage_dir().join("segments")).map_or(0, Iterator::count);
    assert!(copies() > 0);
    t.fleet.ctl(&["restripe", "one", "--wait"]).unwrap();
    t.fleet.ctl(&["gc", "--superseded"]).unwrap();
    let groups = t.fleet.ctl(&["explain", "one:1"]).unwrap()["groups"].clone();
    assert!(groups.as_array().unwrap().iter().all(|g| g["geometry"] == "1+1"), "{groups}");
    // A page of the manifest that is the same as before stays where it is.
    assert!(t.fleet.ctl(&["verify", "one:1"]).unwrap()["copies_proven"].as_u64() <= Some(1));
    installs(&t, "one");

    // Where there is no room, that is said, and nothing changes.
    t.fleet.ctl(&["policy", "set", "--survive", "4"]).unwrap();
    for stash in 2..5 {
        t.fleet.kill_stash(stash);
    }
    t.fleet.wait_until_up(2).unwrap();
    let refused = t.fleet.ctl(&["restripe", "one", "--wait"]).unwrap_err().to_string();
    assert!(refused.contains("was not cut anew"), "{refused}");
    assert!(refused.contains("stashes") || refused.contains("unreachable"), "{refused}");
    assert_eq!(due(&t)[0]["state"], "failed");
}

/// More are to go than a group can do without, and nobody is there to replace them: images are cut anew for those that stay.
#[test]
fn holders_leave_that_nobody_can_replace() {
    let mut t = start(6);
    t.fleet.ctl(&["policy", "set", "--survive", "2"]).unwrap();
    publish(&t, "one", 6, &[]);
    assert_eq!(geometries(&t, "one:1"), ["3+2"]);

    // What is published while some are away is cut for the others. That is said, and can be mended when they are back.
    t.fleet.kill_stash(4);
    t.fleet.kill_stash(5);
    t.fleet.wait_until_up(4).unwrap();
    let image = t.file("two");
    fs::write(&image, sample::noise(7, LEN)).unwrap();
    let published = t.fleet.publish(&image, &["--name", "two"]).unwrap();
    let said = published["unmet"][0].as_str().unwrap_or_default();
    assert!(published["geometry"] == "1+2" && said.contains("2 of 6 stashes are away"), "{published}");
    t.fleet.bring_back_stash(4).unwrap();
    t.fleet.bring_back_stash(5).unwrap();
    t.fleet.wait_until_up(6).unwrap();
    let waiting = due(&t);
    assert_eq!((waiting.len(), &waiting[0]["state"]), (1, &"settles".into()), "{waiting:?}");
    t.fleet.ctl(&["restripe", "two", "--wait"]).unwrap();
    assert_eq!(geometries(&t, "two:1"), ["3+2"]);
    t.fleet.ctl(&["gc", "--superseded"]).unwrap();

    let go: Vec<String> = (0..3).map(|stash| t.fleet.stashes[stash].node.clone()).collect();
    let named = |what: &[&str]| -> Vec<String> { what.iter().map(ToString::to_string).chain(go.clone()).collect() };
    let ctl = |args: Vec<String>| t.fleet.ctl(&args.iter().map(String::as_str).collect::<Vec<_>>());
    ctl(named(&["node", "drain"])).unwrap();
    for name in ["one:1", "two:1"] {
        wait_for("it to be cut anew", || geometries(&t, name).is_empty()).unwrap();
    }
    // Only what they had before still lies where nobody should be left.
    t.fleet.ctl(&["gc", "--superseded"]).unwrap();
    ctl(named(&["node", "remove", "--wait"])).unwrap();
    (0..3).for_each(|stash| t.fleet.kill_stash(stash));
    ["one", "two"].iter().for_each(|name| installs(&t, name));
    let verified = t.fleet.ctl(&["verify"]).unwrap();
    assert_eq!(verified["problem_count"], 0, "{verified}");
    assert_eq!(due(&t), Vec::<Value>::new());
}
