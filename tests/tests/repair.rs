//! Stashes that leave, are sent away, are lost and lose things: the array repairs itself, and everything stays installable.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tests::fleet::{STASH_SIZE, TestFleet, start};
use xtask::fleet::wait_for;
use xtask::restless::SmallDisk;
use xtask::sample;

const LEN: usize = 12_000_000;

fn publish(t: &TestFleet, name: &str, seed: u64) -> std::path::PathBuf {
    let image = t.file(name);
    fs::write(&image, sample::noise(seed, LEN)).unwrap();
    t.fleet.publish(&image, &["--name", name, "--data", "3", "--parity", "2"]).unwrap();
    image
}

fn installs(t: &TestFleet, name: &str, image: &Path) {
    let target = t.file("target");
    t.fleet.install(name, &target, LEN as u64).unwrap();
    assert!(fs::read(&target).unwrap() == fs::read(image).unwrap(), "{name} is installed");
    fs::remove_file(&target).unwrap();
}

fn node(t: &TestFleet, stash: usize) -> Option<Value> {
    let nodes = t.fleet.ctl(&["nodes"]).unwrap();
    nodes.as_array().unwrap().iter().find(|n| n["node"] == t.fleet.stashes[stash].node.as_str()).cloned()
}

fn health(t: &TestFleet) -> Value {
    t.fleet.ctl(&["status"]).unwrap()["health"].clone()
}

fn is_green(health: &Value) -> bool {
    ["missing", "damaged", "moves", "stuck", "lost_segments"].iter().all(|what| health[what] == 0)
}

fn wait_until_green(t: &TestFleet) {
    wait_for("everything to have its holder", || is_green(&health(t)))
        .unwrap_or_else(|e| panic!("{e}: {}", t.fleet.ctl(&["repair"]).unwrap()));
    // A stash that was killed did not say goodbye: the controller's old connection to it has to end first.
    wait_for("all pieces to be proven", || t.fleet.ctl(&["verify"]).is_ok()).unwrap();
}

fn coe_stash(t: &TestFleet, stash: usize, args: &[&str]) -> Output {
    let mut command = t.fleet.command("coe-stash");
    command.args(args).arg("--json").env("COE_STASH_DIR", &t.fleet.stashes[stash].dir).output().unwrap()
}

#[test]
fn stashes_come_and_go_and_nothing_is_lost() {
    let mut t = start(8);
    let one = publish(&t, "one", 1);
    let first = health(&t);
    assert!(is_green(&first) && first["spare"] == 2, "{first}");

    // Sent away by an admin: it is empty, and still a member.
    let id = t.fleet.stashes[0].node.clone();
    let drained = t.fleet.ctl(&["node", "drain", &id[..6], "--wait"]).unwrap();
    assert_eq!(drained[0]["to_hand_over"], 0);
    let info = node(&t, 0).unwrap();
    assert_eq!((&info["to_hand_over"], &info["state"]), (&0.into(), &"draining".into()));
    wait_until_green(&t);
    wait_for("its pieces to be deleted there", || t.fleet.stash_status(0).unwrap()["live"]["fragments"] == 0).unwrap();
    // Nothing new goes there.
    let two = publish(&t, "two", 2);
    assert_eq!(node(&t, 0).unwrap()["to_hand_over"], 0);
    t.fleet.ctl(&["node", "keep", &id]).unwrap();
    assert_eq!(node(&t, 0).unwrap()["state"], "up");

    // Its owner wants it gone: it hands over, and nothing of it stays.
    let folder = t.fleet.stashes[1].dir.clone();
    let out = coe_stash(&t, 1, &["leave"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(
        !folder.exists(),
        "{:?}",
        fs::read_dir(&folder).map(|all| all.flatten().map(|e| e.path()).collect::<Vec<_>>())
    );
    assert!(node(&t, 1).is_none());
    wait_until_green(&t);
    // At once: what it held is made anew from the others.
    let out = coe_stash(&t, 2, &["leave", "--now"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    wait_for("it to be no member", || node(&t, 2).is_none()).unwrap();
    wait_until_green(&t);
    installs(&t, "one", &one);

    // Its disk is gone. It is away and nothing happens, until an admin says so.
    t.fleet.kill_stash(3);
    let id = t.fleet.stashes[3].node.clone();
    wait_for("it to be away", || node(&t, 3).unwrap()["state"] == "away").unwrap();
    // Of two that are named together one is there: that is refused, and nothing becomes of the other.
    let there = t.fleet.ctl(&["node", "remove", &id, &t.fleet.stashes[4].node.clone(), "--lost"]).unwrap_err();
    assert!(there.to_string().contains("is there"), "{there}");
    assert_eq!(node(&t, 3).unwrap()["state"], "away");
    assert_eq!(health(&t)["missing"], 0, "a stash that is away has lost nothing");
    t.fleet.ctl(&["node", "remove", &id, "--lost", "--wait"]).unwrap();
    wait_until_green(&t);
    assert!(node(&t, 3).is_none());

    // Five are left, which is what the images need: one that is lost now cannot be replaced, and that is said.
    t.fleet.kill_stash(4);
    wait_for("it to be away", || node(&t, 4).unwrap()["state"] == "away").unwrap();
    let id = t.fleet.stashes[4].node.clone();
    t.fleet.ctl(&["node", "remove", &id, "--lost"]).unwrap();
    wait_for("it to be said", || health(&t)["stuck"].as_u64() > Some(0)).unwrap();
    let short = health(&t);
    assert!(short["missing"].as_u64() > Some(0) && short["spare"] == 1 && short["lost_segments"] == 0, "{short}");
    let repair = t.fleet.ctl(&["repair"]).unwrap();
    let says = |m: &Value| m["problem"].as_str().is_some_and(|problem| problem.contains("no other stash"));
    assert!(repair["moves"].as_array().unwrap().iter().any(says), "{repair}");
    installs(&t, "two", &two);
    // A new one takes its place, by itself.
    t.fleet.add_stash(STASH_SIZE).unwrap();
    wait_until_green(&t);
    assert!(node(&t, 4).is_none());
    installs(&t, "one", &one);
    installs(&t, "two", &two);
}

#[test]
fn what_a_stash_loses_is_made_anew() {
    let mut t = start(5);
    let image = publish(&t, "one", 3);
    // All of it: the folder is there, and the file is a new one, as after a reinstallation that kept the folder.
    let pieces = t.fleet.stash_status(0).unwrap()["live"]["fragments"].as_u64().unwrap();
    t.fleet.kill_stash(0);
    let file = fs::File::options().write(true).open(t.fleet.stashes[0].dir.join(".stash")).unwrap();
    // The first region, with all that lies in it; the file's own header stays.
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; 64 << 20], 1 << 20).unwrap();
    t.fleet.bring_back_stash(0).unwrap();
    assert!(t.fleet.stash_status(0).unwrap()["live"]["fragments"].as_u64() < Some(pieces));
    // Nobody has noticed yet; a verification does, and what is gone is made anew where it was.
    wait_for("a verification to say so", || {
        let found = t.fleet.command("coe-ctl").args(["verify", "--json"]).output().unwrap();
        String::from_utf8_lossy(&found.stdout).contains("its holder does not have it")
    })
    .unwrap();
    wait_until_green(&t);
    assert_eq!(t.fleet.stash_status(0).unwrap()["live"]["fragments"].as_u64(), Some(pieces));
    for stash in [1, 2] {
        t.fleet.kill_stash(stash);
    }
    installs(&t, "one", &image);
}

#[test]
fn a_controller_that_is_killed_goes_on_where_it_was() {
    let mut t = start(7);
    let image = publish(&t, "one", 4);
    let id = t.fleet.stashes[0].node.clone();
    t.fleet.ctl(&["node", "remove", &id]).unwrap();
    for _ in 0..3 {
        t.fleet.kill_controller();
        t.fleet.start_controller().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(700));
    }
    wait_for("it to be no member", || t.fleet.ctl(&["nodes"]).is_ok() && node(&t, 0).is_none()).unwrap();
    t.fleet.kill_stash(0);
    wait_until_green(&t);
    installs(&t, "one", &image);
}

#[test]
fn a_smaller_stash_gives_away_what_is_too_much() {
    let t = start(6);
    for seed in 0..3 {
        let name = format!("image-{seed}");
        let image = t.file(&name);
        fs::write(&image, sample::noise(seed, 300_000_000)).unwrap();
        t.fleet.publish(&image, &["--name", &name, "--data", "2", "--parity", "1"]).unwrap();
    }
    // Where the pieces went is chance; the fullest has more than the average.
    let used = |stash: usize| t.fleet.stash_status(stash).unwrap()["live"]["used"].as_u64().unwrap();
    let fullest = (0..6).max_by_key(|stash| used(*stash)).unwrap();
    assert!(used(fullest) > 192 << 20, "{}", used(fullest));
    let out = coe_stash(&t, fullest, &["resize", "256MiB"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}: {}", t.fleet.stash_status(fullest).unwrap());
    let len = fs::metadata(t.fleet.stashes[fullest].dir.join(".stash")).unwrap().len();
    assert_eq!(len, 257 << 20);
    wait_until_green(&t);
}

#[test]
fn a_full_disk_gets_back_what_others_can_do_without() {
    let mut t = start(3);
    // 512 MiB on a disk of 900, of which 128 are to stay free: below 51 it is urgent.
    let Some(small) = SmallDisk::add(&mut t.fleet).unwrap() else { return };
    t.fleet.wait_until_up(4).unwrap();
    let image = t.file("one");
    fs::write(&image, sample::noise(9, 680_000_000)).unwrap();
    t.fleet.publish(&image, &["--name", "one", "--data", "2", "--parity", "2"]).unwrap();
    let dir = t.fleet.stashes[small.stash].dir.clone();
    let (file, filler) = (dir.join(".stash"), dir.join("filler"));
    let len = || fs::metadata(&file).unwrap().len();
    let before = len();
    // Nobody else could take its pieces, and without them still one stash may be lost: they are dropped.
    fs::write(&filler, vec![1; 362 << 20]).unwrap();
    wait_for("the disk to get space back", || len() < before).unwrap_or_else(|e| {
        panic!("{e}: {} {}", t.fleet.stash_status(small.stash).unwrap(), t.fleet.ctl(&["nodes"]).unwrap())
    });
    wait_for("it to be said", || health(&t)["missing"].as_u64() > Some(0)).unwrap();
    let short = health(&t);
    assert!(short["lost_segments"] == 0 && short["spare"].as_u64() >= Some(1), "{short}");
    let target = t.file("target");
    t.fleet.install("one", &target, 680_000_000).unwrap();
    assert!(fs::read(&target).unwrap() == fs::read(&image).unwrap());
    // With room again, they are made anew where they were.
    fs::remove_file(&filler).unwrap();
    wait_for("it to be said where they go", || health(&t)["missing"] == 0).unwrap_or_else(|e| {
        let says = |what: &str| t.fleet.ctl(&[what]).unwrap();
        panic!("{e}: {} {} {}", t.fleet.stash_status(small.stash).unwrap(), says("nodes"), says("repair"))
    });
    wait_for("half of them", || health(&t)["damaged"].as_u64() < Some(50)).unwrap();
    wait_until_green(&t);
    assert_eq!(health(&t)["spare"], 2);
    drop(t.fleet);
    drop(small);
}

/// Stashes of which half is in use, and two more: they take their part, and those of before have room again.
#[test]
fn who_joins_takes_a_part() {
    let mut t = start(0);
    (0..4).for_each(|_| t.fleet.add_stash("256MiB").unwrap());
    t.fleet.wait_until_up(4).unwrap();
    let image = t.file("one");
    fs::write(&image, sample::noise(21, 200_000_000)).unwrap();
    t.fleet.publish(&image, &["--name", "one", "--data", "2", "--parity", "1"]).unwrap();
    let held = |t: &TestFleet, stash: usize| node(t, stash).unwrap()["to_hand_over"].as_u64().unwrap();
    let before: Vec<u64> = (0..4).map(|stash| held(&t, stash)).collect();
    // Nobody is much emptier than others: nothing moves.
    assert!(is_green(&health(&t)), "{}", health(&t));
    (0..2).for_each(|_| t.fleet.add_stash("256MiB").unwrap());
    t.fleet.wait_until_up(6).unwrap();
    wait_for("those that joined to have a part", || held(&t, 4) > 0 && held(&t, 5) > 0).unwrap();
    wait_until_green(&t);
    let after: Vec<u64> = (0..6).map(|stash| held(&t, stash)).collect();
    assert_eq!(before.iter().sum::<u64>(), after.iter().sum::<u64>(), "{before:?} {after:?}");
    assert!(after.iter().max() < before.iter().max(), "{before:?} {after:?}");
    let target = t.file("target");
    t.fleet.install("one", &target, 200_000_000).unwrap();
    assert!(fs::read(&target).unwrap() == fs::read(&image).unwrap());
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let inside = |path: std::path::PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flatten().flat_map(|entry| inside(entry.path())).collect()
}

/// Copies that vanish are made anew out of pieces. An empty folder is a disk that is not mounted, until an admin says that it is a new one.
#[test]
fn mass_storage_is_made_anew() {
    let mut t = start(4);
    let one = publish_default(&t, "one", 31);
    let segments = t.fleet.mass_storage_dir().join("segments");
    let copies = files(&segments);
    fs::remove_file(&copies[0]).unwrap();
    fs::write(&copies[1], b"short").unwrap();
    // It says what is wrong, and that is mended.
    assert!(t.fleet.ctl(&["verify"]).is_err());
    wait_for("the copies to be back", || t.fleet.ctl(&["verify", "--deep"]).is_ok()).unwrap();
    assert_eq!(files(&segments).len(), copies.len());

    // Its disk is not mounted: nothing is written to the place where it should be.
    let (folder, aside) = (t.fleet.mass_storage_dir(), t.file("aside"));
    t.fleet.kill_controller();
    fs::rename(&folder, &aside).unwrap();
    fs::create_dir(&folder).unwrap();
    t.fleet.start_controller().unwrap();
    t.fleet.wait_until_up(4).unwrap();
    assert!(health(&t)["mass_storage_away"].is_string(), "{}", health(&t));
    let two = t.file("two");
    fs::write(&two, sample::noise(32, LEN)).unwrap();
    let refused = t.fleet.publish(&two, &["--name", "two"]).unwrap_err().to_string();
    assert!(refused.contains("mount its disk"), "{refused}");
    installs(&t, "one", &one);
    assert!(files(&folder).is_empty());
    // It is mounted again: everything is as it was.
    fs::remove_dir(&folder).unwrap();
    fs::rename(&aside, &folder).unwrap();
    wait_for("mass storage to be back", || health(&t)["mass_storage_away"].is_null()).unwrap();
    t.fleet.publish(&two, &["--name", "two"]).unwrap();
    assert!(t.fleet.ctl(&["repair", "--new-mass-storage"]).unwrap_err().to_string().contains("is there"));

    // It was replaced: an admin says so.
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    t.fleet.ctl(&["repair", "--new-mass-storage", "--wait"]).unwrap();
    t.fleet.ctl(&["verify", "--deep"]).unwrap();
    assert!(is_green(&health(&t)) && health(&t)["lost_copies"] == 0, "{}", health(&t));
    assert!(files(&segments).len() > copies.len());
}

fn publish_default(t: &TestFleet, name: &str, seed: u64) -> std::path::PathBuf {
    let image = t.file(name);
    fs::write(&image, sample::noise(seed, LEN)).unwrap();
    t.fleet.publish(&image, &["--name", name]).unwrap();
    image
}

fn fragments(t: &TestFleet, stash: usize) -> u64 {
    t.fleet.stash_status(stash).unwrap()["live"]["fragments"].as_u64().unwrap_or(0)
}

fn has_fragments(t: &TestFleet, stash: usize, count: u64) {
    wait_for(&format!("stash {stash} to have {count} fragments"), || fragments(t, stash) == count)
        .unwrap_or_else(|e| panic!("{e}: it has {}", fragments(t, stash)));
}

#[test]
fn two_that_speak_as_one_stash_are_noticed() {
    let t = start(3);
    let copy = t.file("copy");
    xtask::shell::output(
        std::process::Command::new("cp").args(["-a", "--sparse=always"]).args([&t.fleet.stashes[0].dir, &copy]),
    )
    .unwrap();
    let mut second = t.fleet.command("coe-stash").args(["serve", "--dir"]).arg(&copy).spawn().unwrap();
    wait_for("it to be noticed", || node(&t, 0).unwrap()["state"] == "double").unwrap();
    assert_eq!(t.fleet.ctl(&["status"]).unwrap()["stashes_up"], 2);
    second.kill().unwrap();
    second.wait().unwrap();
    wait_for("the one that is left to be used again", || node(&t, 0).unwrap()["state"] == "up").unwrap();
}

#[test]
fn a_file_of_before_and_one_that_is_cut_off_are_what_they_should_be_again() {
    let mut t = start(5);
    let one = publish(&t, "one", 11);
    publish(&t, "two", 12);
    let (with_two, file) = (fragments(&t, 0), t.fleet.stashes[0].dir.join(".stash"));
    let backup = t.file("backup");
    t.fleet.kill_stash(0);
    xtask::shell::output(std::process::Command::new("cp").arg("--sparse=always").args([&file, &backup])).unwrap();
    t.fleet.bring_back_stash(0).unwrap();
    t.fleet.wait_until_up(5).unwrap();
    t.fleet.ctl(&["rm", "two:1"]).unwrap();
    wait_for("what was deleted to be gone", || t.fleet.ctl(&["gc"]).unwrap()["waiting"] == 0).unwrap();
    let of_two = with_two - fragments(&t, 0);
    let three = publish(&t, "three", 13);
    let should = fragments(&t, 0);
    assert!(of_two > 0 && should > with_two - of_two);

    // Its file is restored: it has what was deleted, and lacks what came since. That is noticed without anybody asking for it.
    t.fleet.kill_stash(0);
    fs::rename(&backup, &file).unwrap();
    t.fleet.bring_back_stash(0).unwrap();
    t.fleet.wait_until_up(5).unwrap();
    has_fragments(&t, 0, should + of_two);
    // What nobody needs is kept for a day, unless somebody wants it gone.
    t.fleet.ctl(&["gc"]).unwrap();
    has_fragments(&t, 0, should);
    wait_until_green(&t);

    // Another program cuts off the file of one that serves.
    let (before, file) = (fragments(&t, 1), t.fleet.stashes[1].dir.join(".stash"));
    let whole = fs::metadata(&file).unwrap().len();
    fs::File::options().write(true).open(&file).unwrap().set_len((1 << 20) + (1 << 20)).unwrap();
    wait_for("it to be noticed", || fs::metadata(&file).is_ok_and(|meta| meta.len() == whole)).unwrap();
    wait_for("it to have what it had", || t.fleet.stash_status(1).is_ok_and(|s| s["live"]["fragments"] == before))
        .unwrap();
    wait_until_green(&t);
    installs(&t, "one", &one);
    installs(&t, "three", &three);
}

/// Write noise into a stash file that is in use, behind what says where things are.
fn rot(t: &TestFleet, stash: usize) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().write(true).open(t.fleet.stashes[stash].dir.join(".stash")).unwrap();
    let len = file.metadata().unwrap().len();
    for at in ((1 << 20) + (64 << 10)..len).step_by(64 << 10) {
        file.write_all_at(&sample::noise(at, 64), at).unwrap();
    }
}

#[test]
fn what_is_lost_is_said_and_is_back_when_it_is_published_again() {
    let mut t = start(6);
    let image = t.file("one");
    fs::write(&image, sample::noise(41, LEN)).unwrap();
    let publish = || t.fleet.publish(&image, &["--name", "one", "--layout", "clients", "--data", "2", "--parity", "1"]);
    publish().unwrap();
    assert_eq!(health(&t)["spare"], 1);
    (0..6).for_each(|stash| rot(&t, stash));
    let found = t.fleet.ctl(&["verify"]).unwrap_err().to_string();
    assert!(found.contains("cannot") || found.contains("problem"), "{found}");
    let bad = health(&t);
    assert!(bad["lost_segments"].as_u64() > Some(0) && bad["spare"] == 0, "{bad}");
    assert_eq!(bad["not_installable"], serde_json::json!(["one:1"]));
    let groups = t.fleet.ctl(&["explain", "one:1"]).unwrap()["groups"].clone();
    let is_weak = |group: &Value| group["weakness"].as_str().is_some_and(|weak| weak.contains("needed"));
    assert!(groups.as_array().unwrap().iter().any(is_weak), "{groups}");
    let waited = t.fleet.ctl(&["repair", "--wait"]).unwrap_err().to_string();
    assert!(waited.contains("too few others"), "{waited}");
    let refused = t.fleet.install("one", &t.file("target"), LEN as u64).unwrap_err().to_string();
    assert!(refused.contains("too few") && !refused.contains("unreachable"), "all are up: {refused}");
    fs::remove_file(t.file("target")).unwrap();

    // Its contents are sent again, and both versions are whole.
    let again = publish().unwrap();
    assert!(again["image"] == "one:2" && again["known_chunks"] == 0, "{again}");
    ["one:1", "one:2"].iter().for_each(|name| installs(&t, name, &image));
    wait_until_green(&t);

    // The same when too many stashes are gone for good.
    let gone: Vec<String> = (0..3).map(|stash| t.fleet.stashes[stash].node.clone()).collect();
    (0..3).for_each(|stash| t.fleet.kill_stash(stash));
    t.fleet.wait_until_up(3).unwrap();
    t.fleet.ctl(&["node", "remove", &gone[0], &gone[1], &gone[2], "--lost"]).unwrap();
    // Mass storage has kept what was brought back: without it, it is lost.
    fs::remove_dir_all(t.fleet.mass_storage_dir().join("segments")).unwrap();
    wait_for("it to be said", || {
        let _ = t.fleet.ctl(&["verify"]);
        health(&t)["lost_segments"].as_u64() > Some(0)
    })
    .unwrap();
    assert_eq!(t.fleet.publish(&image, &["--name", "one"]).unwrap()["image"], "one:3");
    installs(&t, "one:3", &image);
}
