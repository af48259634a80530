//! The mirror link: the controller's process is killed and its folder deleted, and everything goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tests::fleet::{TestFleet, start};
use xtask::{compare, fleet, sample, setup, shell};

/// An installer with a home of its own.
fn installer(t: &TestFleet, home: &Path, args: &[&str]) -> Command {
    let mut command = t.fleet.command("coe-installer");
    command.env("COE_HOME", home).args(args);
    command
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Know a machine, and let an installer join for it while the controller is there. The answer is its home.
fn approved_installer(t: &TestFleet, name: &str, serial: &str) -> PathBuf {
    t.fleet.approve_host(name, serial).unwrap();
    let ticket = t.fleet.ticket(&["--installer", "--host", name]).unwrap();
    joined(t, name, &ticket)
}

fn joined(t: &TestFleet, name: &str, ticket: &str) -> PathBuf {
    let (home, scratch) = (t.file(&format!("home-{name}")), t.file("scratch.img"));
    sample::empty(&scratch, 1 << 30).unwrap();
    let args = ["--dry-run", "--image", "disk:1", "--ticket", ticket, "--disk", scratch.to_str().unwrap()];
    shell::output(&mut installer(t, &home, &args)).unwrap();
    home
}

/// Kill the controller and delete all that it has; everybody has heard of the newest directory before.
fn lose_controller(t: &mut TestFleet) {
    t.fleet.wait_until_told().unwrap();
    t.fleet.kill_controller();
    fs::remove_dir_all(t.fleet.controller_dir()).unwrap();
}

#[test]
fn an_approved_machine_is_installed_without_the_controller() {
    setup::need(setup::DISKS).unwrap();
    let mut t = start(6);
    let image = t.file("disk.img");
    sample::disk(&image, 30_000_000).unwrap();
    let len = fs::metadata(&image).unwrap().len();
    let published = t.fleet.publish(&image, &["--data", "3", "--parity", "2"]).unwrap();
    assert_eq!(published["offline"], true);
    let denied = t.fleet.publish(&image, &["--name", "denied", "--tag", "1", "--offline", "deny"]).unwrap();
    assert_eq!(denied["offline"], false);
    assert_eq!(t.fleet.ctl(&["verify", "--deep"]).unwrap()["problem_count"], 0, "pages are protected, too");

    let pieces_before = t.fleet.ctl(&["verify", "disk:1"]).unwrap()["pieces_proven"].as_u64();
    let (images_before, shown_before) = (t.fleet.ctl(&["images"]).unwrap(), t.fleet.ctl(&["show", "disk:1"]).unwrap());
    let approved = approved_installer(&t, "lab-01", "S1");
    let anonymous = joined(&t, "anonymous", &t.fleet.ticket(&["--installer"]).unwrap());
    let revoked = approved_installer(&t, "lab-02", "S2");
    t.fleet.ctl(&["host", "forget", "lab-02"]).unwrap();
    lose_controller(&mut t);

    // Two stashes may be lost besides.
    t.fleet.kill_stash(1);
    t.fleet.kill_stash(4);
    let target = t.file("target.img");
    sample::empty(&target, len).unwrap();
    let disk = target.to_str().unwrap();
    let out = shell::output(&mut installer(&t, &approved, &["--image", "disk:1", "--disk", disk])).unwrap();
    assert!(out.contains("installed disk:1"), "{out}");
    compare::installed(&image, &target).unwrap();

    // With no address known at all, the stashes on this network are found; or any one that is named will do.
    fs::remove_file(approved.join("directory")).unwrap();
    sample::empty(&target, len).unwrap();
    shell::output(&mut installer(&t, &approved, &["--image", "disk:1", "--disk", disk])).unwrap();
    compare::installed(&image, &target).unwrap();
    fs::remove_file(approved.join("directory")).unwrap();
    sample::empty(&target, len).unwrap();
    let args = ["--image", "disk", "--disk", disk, "--via", &t.fleet.stash_address(0).unwrap()];
    shell::output(&mut installer(&t, &approved, &args)).unwrap();
    compare::installed(&image, &target).unwrap();

    // An admin sees the same through any stash.
    let via = t.fleet.stash_address(2).unwrap();
    let listed = t.fleet.ctl(&["images", "--via", &via]).unwrap();
    assert_eq!(listed, images_before);
    assert_eq!(t.fleet.ctl(&["show", "disk:1", "--via", &via]).unwrap(), shown_before);
    let verified = shell::output(t.fleet.command("coe-ctl").args(["verify", "disk:1", "--json", "--via", &via]));
    assert!(verified.is_err(), "two stashes are away");
    t.fleet.start_stash(1).unwrap();
    t.fleet.start_stash(4).unwrap();
    // They are back on other ports, which no directory knows: they are found by multicast DNS.
    let mut verified = serde_json::Value::Null;
    fleet::wait_for("all holders to be found", || {
        verified = t.fleet.ctl(&["verify", "disk:1", "--via", &via]).unwrap_or_default();
        verified["problem_count"] == 0
    })
    .unwrap();
    assert_eq!(verified["pieces_proven"].as_u64(), pieces_before);

    // Nobody else gets the key; and nothing was written for them.
    sample::empty(&target, len).unwrap();
    let cases = [
        (&anonymous, "disk:1", "names no machine"),
        (&revoked, "disk:1", "not approved"),
        (&approved, "denied:1", "--offline deny"),
        (&approved, "missing:1", "not found"),
    ];
    for (home, image, why) in cases {
        let out = installer(&t, home, &["--image", image, "--disk", disk]).output().unwrap();
        assert!(!out.status.success() && said(&out).contains(why), "{image}: {}", said(&out));
    }
    assert!(fs::read(&target).unwrap().iter().all(|b| *b == 0));

    // Every request for a share was written down where it was made.
    let logs = t.fleet.stashes.iter().flat_map(|s| [s.dir.join("audit.log"), s.dir.join("refused.log")]);
    let audit: String = logs.filter_map(|log| fs::read_to_string(log).ok()).collect();
    let lines: Vec<serde_json::Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|l| l["image"] == "disk:1" && l["refused"].is_null() && l["host"].is_u64()), "{audit}");
    assert!(lines.iter().any(|l| l["refused"].as_str().is_some_and(|why| why.contains("not approved"))), "{audit}");

    // With one stash less than shares are needed, the key cannot be had by anybody.
    for stash in [0, 1, 2, 4] {
        t.fleet.kill_stash(stash);
    }
    let out = installer(&t, &approved, &["--image", "disk:1", "--disk", disk]).output().unwrap();
    assert!(!out.status.success(), "{}", said(&out));
}

/// `coe-controller recover` into the fleet's own controller folder, from any one stash.
fn recover(t: &TestFleet, kit: &Path, phrase: &Path, more: &[&str]) -> Output {
    let mut command = t.fleet.command("coe-controller");
    command.env("COE_HOME", t.file("new-admin"));
    let listen = format!("127.0.0.1:{}", fleet::free_port().unwrap());
    command.args([
        "recover",
        "--json",
        "--listen",
        &listen,
        "--heartbeat-ms",
        "300",
        "--from",
        &t.fleet.stash_address(3).unwrap(),
    ]);
    command.arg("--kit").arg(kit).arg("--phrase-file").arg(phrase).arg("--dir").arg(t.fleet.controller_dir());
    command.args(more).output().unwrap()
}

#[test]
fn a_new_controller_is_built_from_the_clients_alone() {
    setup::need(setup::DISKS).unwrap();
    let mut t = start(6);
    let (image, next) = (t.file("disk.img"), t.file("next.img"));
    sample::disk(&image, 30_000_000).unwrap();
    sample::disk(&next, 34_000_000).unwrap();
    let len = fs::metadata(&image).unwrap().len();
    // What an admin said is noted for whoever comes after this controller.
    let node = t.fleet.stashes[1].node.clone();
    t.fleet.ctl(&["node", "label", &node, "--set", "rack=a3"]).unwrap();
    t.fleet.ctl(&["node", "device", &t.fleet.stashes[5].node.clone()]).unwrap();
    t.fleet.ctl(&["policy", "set", "--image", "exam", "--survive", "2"]).unwrap();
    t.fleet.ctl(&["policy", "set", "--window", "20:00-06:00"]).unwrap();
    let first = t.fleet.publish(&image, &["--data", "3", "--parity", "2"]).unwrap();
    let wanted = |t: &TestFleet| {
        let nodes = t.fleet.ctl(&["nodes"]).unwrap();
        let said = nodes.as_array().unwrap().iter().map(|n| (n["labels"].clone(), n["class"].clone()));
        let said: Vec<(serde_json::Value, serde_json::Value)> = said.collect();
        (t.fleet.ctl(&["policy", "show"]).unwrap(), said, t.fleet.ctl(&["restripe"]).unwrap())
    };
    let before = wanted(&t);
    assert_eq!((before.1.iter().filter(|(l, _)| l["rack"] == "a3").count(), &before.2), (1, &serde_json::json!([])));
    assert_eq!(before.1.iter().filter(|(_, class)| class == "mass storage").count(), 1);
    let installer_home = approved_installer(&t, "lab-01", "S1");
    let images = t.fleet.ctl(&["images"]).unwrap();
    // The kit went to a drawer long ago.
    let (kit, phrase) = (t.file("kit.age"), t.file("phrase"));
    fs::copy(t.fleet.controller_dir().join("recovery-kit.age"), &kit).unwrap();
    fs::write(&phrase, t.fleet.phrase()).unwrap();
    lose_controller(&mut t);
    // An installation meanwhile: its report waits with the stashes.
    let target = t.file("target.img");
    sample::empty(&target, len).unwrap();
    let args = ["--image", "disk:1", "--disk", target.to_str().unwrap()];
    shell::output(&mut installer(&t, &installer_home, &args)).unwrap();
    let waiting =
        |t: &TestFleet| (0..6).map(|n| t.fleet.stash_status(n).unwrap()["reports"].as_u64().unwrap()).sum::<u64>();
    assert!(waiting(&t) >= 3, "{}", waiting(&t));
    t.fleet.kill_stash(0);
    t.fleet.kill_stash(5);

    fs::write(t.file("wrong"), "aaaa-bbbb-cccc-dddd-eeee").unwrap();
    let out = recover(&t, &kit, &t.file("wrong"), &[]);
    assert!(!out.status.success() && said(&out).contains("is this its phrase"), "{}", said(&out));
    // More stashes than may be lost are missing: what cannot be had is named by image, and comes when they are back, wherever that is.
    t.fleet.kill_stash(1);
    t.fleet.kill_stash(2);
    let out = recover(&t, &kit, &phrase, &["--mass-storage"]);
    assert_eq!(out.status.code(), Some(1));
    let named = format!("{}{}", String::from_utf8_lossy(&out.stdout), said(&out));
    assert!(named.contains("disk:1"), "{named}");
    t.fleet.start_stash(1).unwrap();
    t.fleet.start_stash(2).unwrap();
    let out = recover(&t, &kit, &phrase, &["--mass-storage"]);
    assert!(out.status.success(), "{}", said(&out));
    let recovered: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&recovered["images"], &recovered["stashes"], &recovered["hosts"]), (&1.into(), &6.into(), &1.into()));
    assert!(recovered["fetched"].as_u64() >= first["sealed"].as_u64());
    // Again: nothing is fetched twice.
    let out = recover(&t, &kit, &phrase, &["--mass-storage"]);
    let again: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(again["fetched"], 0, "{again}");

    // The clients come to the new controller without being touched, and so do those that were off.
    t.fleet.use_home(&t.file("new-admin"));
    t.fleet.start_controller().unwrap();
    t.fleet.wait_until_up(4).unwrap();
    t.fleet.start_stash(0).unwrap();
    t.fleet.start_stash(5).unwrap();
    t.fleet.wait_until_up(6).unwrap();
    assert_eq!(t.fleet.ctl(&["images"]).unwrap(), images);
    assert_eq!(wanted(&t), before);
    fleet::wait_for("the reports to be passed on", || waiting(&t) == 0).unwrap();
    let log = fs::read_to_string(t.fleet.dir().join("controller.log")).unwrap();
    let told = log.lines().filter(|line| line.contains("installed") && line.contains("disk:1")).count();
    assert_eq!(told, 1, "several stashes had it, and it counts once");
    let verified = t.fleet.ctl(&["verify", "--deep"]).unwrap();
    assert_eq!((&verified["problem_count"], &verified["unreadable"]), (&0.into(), &0.into()), "{verified}");
    let hosts = t.fleet.ctl(&["host", "list"]).unwrap();
    assert_eq!(
        (&hosts[0]["name"], &hosts[0]["serial"], &hosts[0]["approved"]),
        (&"lab-01".into(), &"S1".into(), &true.into())
    );

    // The next version shares with the old one, the old one still installs, and nothing of it was lost or is left over.
    let second = t.fleet.publish(&next, &["--name", "disk", "--tag", "2"]).unwrap();
    let (known, chunks) = (second["known_chunks"].as_u64().unwrap(), second["chunks"].as_u64().unwrap());
    assert!(known * 2 > chunks, "{known} of {chunks} chunks were known");
    for (tag, image) in [("disk:1", &image), ("disk:2", &next)] {
        t.fleet.install(tag, &target, fs::metadata(image).unwrap().len().max(len)).unwrap();
        compare::installed(image, &target).unwrap();
    }
    // With an image its shares go: five of its own, where three pieces are needed and two may be lost.
    let shares =
        |t: &TestFleet| (0..6).map(|n| t.fleet.stash_status(n).unwrap()["shares"].as_u64().unwrap()).sum::<u64>();
    let before = shares(&t);
    t.fleet.ctl(&["rm", "disk:1"]).unwrap();
    fleet::wait_for("the shares of the removed image to go", || shares(&t) == before - 5).unwrap();
    assert_eq!(t.fleet.ctl(&["verify", "--deep"]).unwrap()["problem_count"], 0);
    t.fleet.install("disk:2", &target, fs::metadata(&next).unwrap().len()).unwrap();
    compare::installed(&next, &target).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// A controller that comes back with yesterday's catalog changes nothing until a person says so.
#[test]
fn an_old_catalog_stands_down() {
    setup::need(setup::DISKS).unwrap();
    let mut t = start(3);
    let (first, second) = (t.file("disk.img"), t.file("second.img"));
    sample::disk(&first, 4_000_000).unwrap();
    sample::disk(&second, 6_000_000).unwrap();
    t.fleet.publish(&first, &["--name", "disk", "--tag", "1"]).unwrap();
    let installer_home = approved_installer(&t, "lab-01", "S1");
    let (dir, yesterday) = (t.fleet.controller_dir(), t.file("yesterday"));
    t.fleet.kill_controller();
    copy_folder(&dir, &yesterday);
    t.fleet.start_controller().unwrap();
    t.fleet.wait_until_up(3).unwrap();
    t.fleet.publish(&second, &["--name", "disk", "--tag", "2"]).unwrap();
    lose_controller(&mut t);

    copy_folder(&yesterday, &dir);
    t.fleet.start_controller().unwrap();
    fleet::wait_for("the old catalog to stand down", || {
        t.fleet.ctl(&["status"]).is_ok_and(|s| s["stands_down"].as_str().is_some_and(|why| why.contains("overrule")))
    })
    .unwrap();
    for change in [&["sweep"][..], &["rm", "disk:1"], &["host", "forget", "lab-01"], &["token", "create"]] {
        let refused = t.fleet.ctl(change).unwrap_err().to_string();
        assert!(refused.contains("stands down"), "{refused}");
    }
    let refused = t.fleet.publish(&first, &["--name", "x"]).unwrap_err().to_string();
    assert!(refused.contains("stands down"), "{refused}");
    // What only the clients know is still there.
    let target = t.file("target.img");
    let len = fs::metadata(&second).unwrap().len();
    sample::empty(&target, len).unwrap();
    let args = ["--image", "disk:2", "--disk", target.to_str().unwrap(), "--via", &t.fleet.stash_address(1).unwrap()];
    shell::output(&mut installer(&t, &installer_home, &args)).unwrap();
    compare::installed(&second, &target).unwrap();

    // A person decides; and only of what that person saw.
    assert!(t.fleet.ctl(&["overrule", "--epoch", "1"]).is_err());
    let why = t.fleet.ctl(&["status"]).unwrap()["stands_down"].as_str().unwrap().to_string();
    let epoch = why.rsplit(' ').next().unwrap().trim_end_matches('`').to_string();
    t.fleet.ctl(&["overrule", "--epoch", &epoch]).unwrap();
    assert!(t.fleet.ctl(&["status"]).unwrap()["stands_down"].is_null());
    t.fleet.wait_until_up(3).unwrap();
    assert_eq!(t.fleet.ctl(&["images"]).unwrap().as_array().unwrap().len(), 1);
    t.fleet.publish(&second, &["--name", "disk", "--tag", "3"]).unwrap();
    t.fleet.install("disk:3", &target, len).unwrap();
    compare::installed(&second, &target).unwrap();
    fleet::wait_for("the new term at every stash", || {
        (0..t.fleet.stashes.len()).all(|n| t.fleet.stash_status(n).unwrap()["term"] == 2)
    })
    .unwrap();
}
