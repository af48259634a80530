//! A stash and the owner of its machine: pausing, scrubbing, and everybody else.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};

use tests::fleet::{TestFleet, programs, start};
use xtask::fleet::wait_for;
use xtask::restless::{Restless, SmallDisk};
use xtask::{sample, setup};

fn coe_stash(t: &TestFleet, stash: usize, args: &[&str]) -> Output {
    let mut command = t.fleet.command("coe-stash");
    command.args(args).arg("--json").env("COE_STASH_DIR", &t.fleet.stashes[stash].dir).output().unwrap()
}

fn json(out: &Output) -> serde_json::Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&out.stderr)))
}

fn paused(t: &TestFleet) -> usize {
    let nodes = t.fleet.ctl(&["nodes"]).unwrap();
    nodes.as_array().unwrap().iter().filter(|node| node["aside"] == "paused").count()
}

#[test]
fn its_owner_pauses_it_and_the_array_does_without() {
    let mut t = start(4);
    let image = t.file("disk");
    fs::write(&image, sample::noise(5, 3_000_000)).unwrap();
    t.fleet.publish(&image, &["--name", "disk", "--data", "2", "--parity", "1"]).unwrap();

    let answer = coe_stash(&t, 0, &["pause"]);
    assert_eq!(json(&answer)["paused"], true);
    wait_for("the controller to hear of it", || paused(&t) == 1).unwrap();
    let node = t.fleet.stash_status(0).unwrap();
    assert_eq!(node["live"]["paused"], true);
    let before = node["live"]["fragments"].as_u64().unwrap();
    assert!(before > 0);
    // Nothing is declared lost, and nothing new goes there; what is there is not asked for.
    let other = t.file("other");
    fs::write(&other, sample::noise(6, 3_000_000)).unwrap();
    t.fleet.publish(&other, &["--name", "other", "--data", "2", "--parity", "1"]).unwrap();
    let target = t.file("target");
    for (name, want) in [("disk", &image), ("other", &other)] {
        t.fleet.install(name, &target, 3_000_000).unwrap();
        assert!(fs::read(&target).unwrap() == fs::read(want).unwrap(), "{name} is installed without it");
        fs::remove_file(&target).unwrap();
    }
    assert_eq!(t.fleet.stash_status(0).unwrap()["live"]["fragments"].as_u64(), Some(before));
    let refused = coe_stash(&t, 0, &["scrub", "--now"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("resume"));

    // It holds across a restart.
    t.fleet.kill_stash(0);
    let gone = coe_stash(&t, 0, &["resume"]);
    assert!(!gone.status.success() && String::from_utf8_lossy(&gone.stderr).contains("coe-stash serve"));
    assert!(t.fleet.stash_status(0).unwrap()["live"].is_null());
    t.fleet.start_stash(0).unwrap();
    wait_for("the stash to be back, and paused", || {
        t.fleet.stash_status(0).is_ok_and(|status| status["live"]["paused"] == true)
    })
    .unwrap();
    assert_eq!(json(&coe_stash(&t, 0, &["resume"]))["paused"], false);
    t.fleet.wait_until_up(4).unwrap();
    // Killed, it did not say goodbye: the controller's old connection to it has to end first.
    wait_for("all pieces to be proven", || t.fleet.ctl(&["verify", "--deep"]).is_ok()).unwrap();
}

#[test]
fn scrubbing_finds_what_nobody_asked_for() {
    let t = start(3);
    let image = t.file("disk");
    fs::write(&image, sample::noise(7, 3_000_000)).unwrap();
    t.fleet.publish(&image, &["--name", "disk", "--data", "2", "--parity", "1"]).unwrap();
    let clean = coe_stash(&t, 1, &["scrub", "--now"]);
    assert!(clean.status.success(), "{}", String::from_utf8_lossy(&clean.stderr));
    let clean = json(&clean);
    assert!(clean["checked"].as_u64() > Some(0) && clean["checked"] == clean["of"], "{clean}");
    assert_eq!((&clean["damaged"], &clean["unreadable"]), (&0.into(), &0.into()));

    // The first record's payload, 128 bytes behind its header, which lies behind the region's two header slots.
    let file = fs::File::options().read(true).write(true).open(t.fleet.stashes[1].dir.join(".stash")).unwrap();
    let (at, mut byte) = ((1 << 20) + 8192 + 128 + 100, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let found = coe_stash(&t, 1, &["scrub", "--now"]);
    assert_eq!(found.status.code(), Some(1));
    assert_eq!(json(&found)["damaged"], 1);
    // It is not served any more, and the array knows that it has one piece less.
    let verified = t.fleet.command("coe-ctl").args(["verify", "--json"]).output().unwrap();
    assert_eq!(json(&verified)["problem_count"], 1);
    let again = json(&coe_stash(&t, 1, &["scrub", "--now"]));
    assert_eq!((&again["damaged"], again["of"].as_u64()), (&0.into(), clean["of"].as_u64().map(|n| n - 1)));
}

/// Another user of the same machine.
fn as_nobody(t: &TestFleet, program: &Path, args: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).args(args);
    command.current_dir(t.file("..")).output().unwrap()
}

#[test]
fn nobody_else_on_the_machine_gets_at_it() {
    if !setup::is_root() {
        println!("NOTE: not root, so nobody else could be tried");
        return;
    }
    let t = start(1);
    let stash = t.fleet.stashes[0].dir.clone();
    // All folders above it are open: what protects it is its own.
    let mut above = stash.parent();
    while let Some(folder) = above.filter(|folder| *folder != Path::new("/")) {
        let mode = fs::metadata(folder).unwrap().permissions().mode();
        fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o755)).unwrap();
        above = folder.parent();
    }
    for name in [".stash", "stash.json", "settings.json", "directory", ".control"] {
        // It was heard before it has written down everything that it heard.
        wait_for(name, || stash.join(name).symlink_metadata().is_ok()).unwrap();
        let mode = fs::symlink_metadata(stash.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(&stash).unwrap().permissions().mode() & 0o777, 0o700);
    let path = |name: &str| stash.join(name).to_str().unwrap().to_string();
    let pid = t.fleet.pids().last().unwrap().to_string();
    let link = t.file("link").to_str().unwrap().to_string();
    let (file, folder) = (path(".stash"), stash.to_str().unwrap().to_string());
    let into = format!("of={file}");
    let tries: [(&str, Vec<&str>); 7] = [
        ("/bin/ls", vec![&folder]),
        ("/bin/cat", vec![&file]),
        ("/bin/ln", vec![&file, &link]),
        ("/usr/bin/truncate", vec!["-s", "0", &file]),
        ("/bin/dd", vec!["if=/dev/zero", &into, "conv=notrunc", "count=1"]),
        ("/bin/kill", vec!["-STOP", &pid]),
        ("/bin/rm", vec!["-rf", &folder]),
    ];
    for (program, args) in tries {
        let out = as_nobody(&t, Path::new(program), &args);
        assert!(!out.status.success(), "{program} {args:?}");
    }
    let binary = t.file("coe-stash");
    fs::copy(programs().join("coe-stash"), &binary).unwrap();
    assert!(as_nobody(&t, &binary, &["--version"]).status.success(), "the program itself is everybody's");
    let out = as_nobody(&t, &binary, &["pause", "--dir", &folder]);
    assert!(!out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert!(stash.join(".stash").exists() && !t.file("link").exists());
    assert_eq!(t.fleet.stash_status(0).unwrap()["live"]["paused"], false);
}

#[test]
fn stashes_of_restless_owners_lose_nothing() {
    let mut t = start(8);
    let small = SmallDisk::add(&mut t.fleet).unwrap();
    let count = t.fleet.stashes.len();
    t.fleet.wait_until_up(count).unwrap();
    let program = programs().join("coe-stash");
    let restless = Restless::start(&program, &t.fleet, 0, 1, small.as_ref());
    let target = t.file("target");
    for round in 0..5 {
        let (image, name) = (t.file("image"), format!("image-{round}"));
        fs::write(&image, sample::noise(round, 40_000_000)).unwrap();
        t.fleet.publish(&image, &["--name", &name, "--data", "4", "--parity", "2"]).unwrap();
        t.fleet.install(&name, &target, 40_000_000).unwrap();
        assert!(fs::read(&target).unwrap() == fs::read(&image).unwrap(), "{name} is installed");
        fs::remove_file(&target).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    let counts = restless.stop().unwrap();
    assert!(counts.resized > 3 && counts.unplugged > 0, "{counts:?}");
    assert!(small.is_none() || counts.filled > 0 && counts.gave_back > 0, "{counts:?}");
    wait_for("all to be there", || {
        let nodes = t.fleet.ctl(&["nodes"]).unwrap();
        nodes.as_array().unwrap().iter().all(|node| node["aside"].is_null())
    })
    .unwrap();
    let verified = t.fleet.ctl(&["verify"]).unwrap();
    assert_eq!(verified["problem_count"], 0, "{verified}");
    for stash in 0..count {
        let live = &t.fleet.stash_status(stash).unwrap()["live"];
        assert!(live["last_error"].is_null(), "stash {stash}: {live}");
        let images = &live["partitions"]["1"];
        assert_eq!(images["live"].as_u64().unwrap() + images["dead"].as_u64().unwrap(), live["used"].as_u64().unwrap());
    }
    drop(t.fleet);
    drop(small);
}

#[test]
fn its_owner_resizes_and_limits_it() {
    let t = start(3);
    let image = t.file("disk");
    fs::write(&image, sample::noise(5, 30_000_000)).unwrap();
    t.fleet.publish(&image, &["--name", "disk", "--data", "2", "--parity", "1"]).unwrap();
    let file = t.fleet.stashes[0].dir.join(".stash");
    let len = || fs::metadata(&file).unwrap().len();
    let mib = |n: u64| (n << 20) + (1 << 20);
    assert_eq!(len(), mib(512));
    for (size, want) in [("2GiB", 2048), ("1GiB", 1024), ("512MiB", 512), ("513MiB", 512), ("640MiB", 640)] {
        let out = coe_stash(&t, 0, &["resize", size]);
        assert!(out.status.success(), "{size}: {}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(len(), mib(want), "{size}");
    }
    for (size, why) in [("128MiB", "256 MiB"), ("15TiB", "do not fit"), ("99TiB", "16 TiB")] {
        let out = coe_stash(&t, 0, &["resize", size]);
        let said = String::from_utf8_lossy(&out.stderr).to_string();
        assert!(!out.status.success() && said.contains(why), "{size}: {said}");
    }
    let status = t.fleet.stash_status(0).unwrap();
    assert_eq!(status["size"], 640 << 20);
    wait_for("the controller to know", || {
        let nodes = t.fleet.ctl(&["nodes"]).unwrap();
        nodes.as_array().unwrap().iter().any(|node| node["capacity"] == (640 - 128) << 20)
    })
    .unwrap();
    let verified = t.fleet.ctl(&["verify"]).unwrap();
    assert_eq!(verified["problem_count"], 0, "{verified}");

    assert_eq!(json(&coe_stash(&t, 0, &["limit", "--network", "3MB"])).as_array().unwrap().len(), 1);
    assert_eq!(t.fleet.stash_status(0).unwrap()["live"]["machine"]["network"], 3_000_000);
    let out = coe_stash(&t, 0, &["limit", "--clear", "--disk", "9MB", "--from", "25:00"]);
    assert!(!out.status.success(), "there is no such hour");
    coe_stash(&t, 0, &["limit", "--clear"]);
    assert!(t.fleet.stash_status(0).unwrap()["live"]["machine"]["network"].is_null());

    // A folder that was copied to another machine does not serve.
    let copy = t.file("copy");
    xtask::shell::output(Command::new("cp").arg("-a").arg(&t.fleet.stashes[1].dir).arg(&copy)).unwrap();
    let settings = copy.join("settings.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&settings).unwrap()).unwrap();
    if value["machine"].is_string() {
        value["machine"] = "another".into();
        fs::write(&settings, value.to_string()).unwrap();
        let out = t.fleet.command("coe-stash").args(["serve", "--dir"]).arg(&copy).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).to_string() + &String::from_utf8_lossy(&out.stdout);
        assert!(!out.status.success() && said.contains("--same-machine"), "{said}");
    }
}
