//! The main job with real processes: publish, lose stashes, install, compare.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tests::fleet::{TestFleet, start};
use tests::gpt_4096;
use xtask::{compare, sample, setup, shell};

const MIB: u64 = 1 << 20;

/// What an installation says when it fails.
fn refused(t: &TestFleet, args: &[&str]) -> String {
    let mut command = t.fleet.command("coe-installer");
    command.args(args);
    let out = command.output().expect("coe-installer starts");
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Many kinds of disks; each is published, installed on a disk of the same length, and on a larger one where it has a GPT.
#[test]
fn every_kind_of_disk_comes_back() {
    setup::need(setup::DISKS).unwrap();
    let t = start(5);
    let part = t.file("part");
    let tree = t.file("tree");
    sample::tree(&tree, 20_000_000).unwrap();
    let run = |program: &str, args: &[&str], path: &Path| {
        shell::output(setup::tool(program).args(args).arg(path)).unwrap();
    };
    let kinds: &[(&str, &str, &dyn Fn(&Path))] = &[
        ("gpt", "gpt", &|p| sample::disk(p, 20_000_000).unwrap()),
        ("gpt-4096", "gpt", &|p| gpt_4096::write(p)),
        ("mbr", "mbr", &|p| {
            sample::empty(p, 200 * MIB).unwrap();
            let script = "label: dos\nlabel-id: 0xc0ec0e00\ndisk1 : start=2048, size=65536, type=83, bootable\n\
                          disk2 : start=67584, size=122880, type=5\ndisk3 : start=200000, size=100000, type=83\n\
                          disk5 : size=40960, type=83\ndisk6 : size=40960, type=7\n";
            sample::partition(p, script).unwrap();
            sample::ext4(&part, 32 * MIB, &tree.join("usr/bin")).ok();
            sample::place(&part, p, MIB).unwrap();
            fs::OpenOptions::new()
                .write(true)
                .open(p)
                .unwrap()
                .write_all_at(&sample::noise(1, 3_000_000), 100 * MIB)
                .unwrap();
        }),
        ("damaged-primary", "gpt", &|p| {
            sample::disk(p, 5_000_000).unwrap();
            fs::OpenOptions::new().write(true).open(p).unwrap().write_all_at(&[0xFF; 512], 512).unwrap();
        }),
        ("ext4", "none", &|p| sample::ext4(p, 96 * MIB, &tree).unwrap()),
        ("fat", "none", &|p| sample::fat(p, 64 * MIB, 512).unwrap()),
        ("ntfs", "none", &|p| {
            sample::empty(p, 64 * MIB).unwrap();
            run("mkntfs", &["-F", "-Q", "-q"], p);
        }),
        ("xfs", "none", &|p| {
            sample::empty(p, 320 * MIB).unwrap();
            run("mkfs.xfs", &["-q"], p);
        }),
        ("noise", "none", &|p| fs::write(p, sample::noise(2, 40_000_000)).unwrap()),
        ("zeros", "none", &|p| sample::empty(p, 512 * MIB).unwrap()),
        ("odd", "none", &|p| fs::write(p, sample::noise(3, 5_000_001)).unwrap()),
        ("tiny", "none", &|p| fs::write(p, b"x").unwrap()),
    ];
    for (name, table, make) in kinds {
        let image = t.file(&format!("{name}.img"));
        make(&image);
        let published = t.fleet.publish(&image, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(published["image"], format!("{name}:1"), "the name follows from the file");
        assert_eq!(published["table"], *table, "{name}");
        let len = fs::metadata(&image).unwrap().len();
        let target = t.file("target.img");
        let installed = t.fleet.install(name, &target, len).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(installed["content"], published["content"]);
        if *name == "damaged-primary" {
            // The primary is mended from the backup; all else is the same.
            assert_eq!(installed["fitted"], true);
            let verify = shell::output(setup::tool("sfdisk").arg("--verify").arg(&target)).unwrap();
            assert!(verify.contains("No errors"), "{verify}");
            continue;
        }
        assert_eq!(fs::read(&image).unwrap(), fs::read(&target).unwrap(), "{name}: every byte");
        if *table == "gpt" {
            t.fleet.install(name, &target, len + 48 * MIB + 512 * 7).unwrap_or_else(|e| panic!("{name}: {e}"));
            if *name == "gpt-4096" {
                check_moved_4096(&image, &target);
            } else {
                compare::installed(&image, &target).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        }
    }
    assert_eq!(t.fleet.ctl(&["verify", "--deep"]).unwrap()["problem_count"], 0);
}

/// The 4096-byte GPT on a larger disk: both headers from the specification's rules, at their places, and all between unchanged.
fn check_moved_4096(image: &Path, target: &Path) {
    let (before, after) = (fs::read(image).unwrap(), fs::read(target).unwrap());
    let last = after.len() as u64 / 4096 - 1;
    let entries = before[8192..8192 + 16384].to_vec();
    assert_eq!(after[4096..8192], gpt_4096::header(1, last, 2, last, &entries), "primary header");
    let at = last as usize * 4096;
    assert_eq!(after[at..at + 4096], gpt_4096::header(last, 1, last - 4, last, &entries), "backup header");
    assert_eq!(after[at - 16384..at], entries, "backup entries");
    let old_end = before.len() - 5 * 4096;
    assert_eq!(before[8192..old_end], after[8192..old_end], "everything between the tables");
    assert!(after[old_end..before.len()].iter().all(|&b| b == 0), "the old backup is gone");
}

#[test]
fn m_stashes_and_the_mass_storage_may_go_and_one_more_is_a_clear_error() {
    setup::need(setup::DISKS).unwrap();
    let mut t = start(7);
    let image = t.file("disk.img");
    sample::disk(&image, 60_000_000).unwrap();
    let len = fs::metadata(&image).unwrap().len();
    let published = t.fleet.publish(&image, &["--data", "4", "--parity", "3"]).unwrap();
    assert_eq!(published["geometry"], "4+3");
    let again = t.fleet.publish(&image, &["--name", "disk", "--tag", "1"]).unwrap_err().to_string();
    assert!(again.contains("never changes"), "{again}");
    fs::remove_dir_all(t.fleet.mass_storage_dir()).unwrap();
    for stash in [0, 3, 6] {
        t.fleet.kill_stash(stash);
    }
    let target = t.file("target.img");
    let rebuilt = |installed: &serde_json::Value| installed["rebuilt"].as_u64().unwrap();
    let before = rebuilt(&t.fleet.install("disk:1", &target, len + 10 * MIB).unwrap());
    compare::installed(&image, &target).unwrap();

    t.fleet.kill_stash(1);
    sample::empty(&target, len).unwrap();
    let error = refused(&t, &["--image", "disk:1", "--disk", target.to_str().unwrap()]);
    assert!(error.contains("disk:1 cannot be installed now"), "{error}");
    assert!(error.contains("3 of 4 pieces"), "{error}");
    for stash in [0, 1, 3, 6] {
        assert!(error.contains(&t.fleet.stashes[stash].node), "names stash {stash}: {error}");
    }
    let first = &fs::read(&target).unwrap()[..MIB as usize];
    assert!(first.iter().all(|&b| b == 0), "nothing was written to the first blocks");

    // Whoever comes back serves again.
    t.fleet.bring_back_stash(1).unwrap();
    t.fleet.install("disk:1", &target, len).unwrap();
    compare::installed(&image, &target).unwrap();

    // Three others are away. Chance says who has parity only, but that is three at the most.
    for stash in [0, 3, 6] {
        t.fleet.bring_back_stash(stash).unwrap();
    }
    for stash in [1, 2, 4] {
        t.fleet.kill_stash(stash);
    }
    t.fleet.wait_until_up(4).unwrap();
    let after = rebuilt(&t.fleet.install("disk:1", &target, len).unwrap());
    compare::installed(&image, &target).unwrap();
    assert!(before + after > 0, "parity was needed");
}

#[test]
fn the_controller_may_be_killed_at_any_point_of_a_publication() {
    let mut t = start(4);
    let image = t.file("disk.img");
    let mut rng = tests::world::Rng::new(20);
    let mut interrupted = 0;
    for round in 0..20 {
        fs::write(&image, sample::noise(100 + round, 60_000_000)).unwrap();
        let mut publish = t.fleet.command("coe-ctl");
        publish.args(["publish", "--json", "--name", "disk", "--tag", &round.to_string()]).arg(&image);
        publish.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut publish = publish.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(rng.below(900)));
        t.fleet.kill_controller();
        // It notices the loss after some seconds; it is not what is tested here.
        interrupted += usize::from(publish.try_wait().unwrap().is_none());
        let _ = publish.kill();
        publish.wait().unwrap();
        t.fleet.start_controller().unwrap();
        t.fleet.wait_until_up(4).unwrap();
        let verified = t.fleet.ctl(&["verify", "--deep"]).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(verified["problem_count"], 0, "round {round}");
    }
    assert!(interrupted >= 5, "only {interrupted} of 20 kills met a publication");
    if t.fleet.ctl(&["show", "disk:19"]).is_err() {
        t.fleet.publish(&image, &["--name", "disk", "--tag", "19"]).unwrap();
    }
    t.fleet.ctl(&["sweep"]).unwrap();
    nothing_unreferenced(&t);
    let target = t.file("target.img");
    t.fleet.install("disk:19", &target, 60_000_000).unwrap();
    assert_eq!(fs::read(&image).unwrap(), fs::read(&target).unwrap());
    for published in t.fleet.ctl(&["images"]).unwrap().as_array().unwrap() {
        t.fleet.ctl(&["rm", published["image"].as_str().unwrap()]).unwrap();
    }
    nothing_unreferenced(&t);
    xtask::fleet::wait_for("empty stashes", || {
        let nodes = t.fleet.ctl(&["nodes"]).unwrap();
        nodes.as_array().unwrap().iter().all(|n| n["fragments"] == 0)
    })
    .unwrap();
}

/// What lies on mass storage is what the catalog knows, and nothing waits to be cleaned.
fn nothing_unreferenced(t: &TestFleet) {
    fn files(dir: &Path) -> u64 {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| if e.path().is_dir() { files(&e.path()) } else { 1 }).sum()
    }
    let status = t.fleet.ctl(&["status"]).unwrap();
    for field in ["pending", "unreferenced", "trash"] {
        assert_eq!(status[field], 0, "{field}: {status}");
    }
    xtask::fleet::wait_for("mass storage to hold what the catalog knows", || {
        status["segments"] == files(&t.fleet.mass_storage_dir().join("segments"))
    })
    .unwrap_or_else(|e| panic!("{e}: {status}"));
}

#[test]
fn a_second_version_sends_only_what_is_new() {
    setup::need(setup::DISKS).unwrap();
    let t = start(4);
    let image = t.file("disk.img");
    sample::disk(&image, 40_000_000).unwrap();
    let first = t.fleet.publish(&image, &[]).unwrap();
    let unchanged = t.fleet.publish(&image, &[]).unwrap();
    assert_eq!(
        (&unchanged["image"], &unchanged["sealed"]),
        (&"disk:2".into(), &0.into()),
        "the tag counts up, nothing is sent"
    );
    assert_eq!(unchanged["content"], first["content"]);
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&sample::noise(9, 1_000_000), 80 * MIB).unwrap();
    let third = t.fleet.publish(&image, &[]).unwrap();
    let sealed = third["sealed"].as_u64().unwrap();
    assert!((1_000_000..1_500_000).contains(&sealed), "{sealed} bytes for a change of a million");
    // Removing the first version leaves what the others need.
    t.fleet.ctl(&["rm", "disk:1"]).unwrap();
    t.fleet.ctl(&["rm", "disk:2"]).unwrap();
    let target = t.file("target.img");
    let len = fs::metadata(&image).unwrap().len();
    t.fleet.install("disk", &target, len).unwrap();
    assert_eq!(fs::read(&image).unwrap(), fs::read(&target).unwrap());
    assert!(t.fleet.ctl(&["show", "disk:1"]).is_err());
}

#[test]
fn an_interrupted_publication_goes_on_where_it_was() {
    let t = start(3);
    let image = t.file("disk.img");
    fs::write(&image, sample::noise(11, 150_000_000)).unwrap();
    let mut publish = t.fleet.command("coe-ctl");
    publish.args(["publish", "--json"]).arg(&image).stdout(std::process::Stdio::null());
    let mut publish = publish.spawn().unwrap();
    xtask::fleet::wait_for("some segments", || t.fleet.ctl(&["status"]).unwrap()["segments"].as_u64() > Some(3))
        .unwrap();
    publish.kill().unwrap();
    publish.wait().unwrap();
    let again = t.fleet.publish(&image, &[]).unwrap();
    assert_eq!(again["image"], "disk:1", "the name was not used up");
    assert!(again["known_chunks"].as_u64() > Some(100), "what was sent is not sent again: {again}");
    assert_eq!(t.fleet.ctl(&["verify"]).unwrap()["problem_count"], 0);
    // Nobody goes on with this one, and its rest need not stay.
    fs::write(&image, sample::noise(12, 150_000_000)).unwrap();
    let mut publish = t.fleet.command("coe-ctl");
    let mut publish = publish.arg("publish").arg(&image).stdout(std::process::Stdio::null()).spawn().unwrap();
    let rest = || t.fleet.ctl(&["status"]).unwrap()["unreferenced"].as_u64() > Some(3);
    xtask::fleet::wait_for("some segments", rest).unwrap();
    // It does not end in this moment.
    assert!(std::process::Command::new("kill").args(["-STOP", &publish.id().to_string()]).status().unwrap().success());
    assert_eq!(t.fleet.ctl(&["gc"]).unwrap()["is_publishing"], true);
    publish.kill().unwrap();
    publish.wait().unwrap();
    let is_collected = || t.fleet.ctl(&["gc"]).unwrap()["is_publishing"] == false && !rest();
    xtask::fleet::wait_for("its rest to be collected", is_collected).unwrap();
    assert_eq!(t.fleet.ctl(&["verify"]).unwrap()["problem_count"], 0);
}

#[test]
fn layout_clients_keeps_nothing_on_mass_storage() {
    let mut t = start(4);
    let image = t.file("disk.img");
    fs::write(&image, sample::noise(10, 20_000_000)).unwrap();
    t.fleet.publish(&image, &["--layout", "clients", "--data", "2", "--parity", "2"]).unwrap();
    assert!(!t.fleet.mass_storage_dir().join("segments").exists());
    let verified = t.fleet.ctl(&["verify"]).unwrap();
    assert_eq!((&verified["copies_proven"], &verified["problem_count"]), (&0.into(), &0.into()));
    // Any two of four.
    let target = t.file("target.img");
    for (a, b) in [(0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2)] {
        t.fleet.kill_stash(a);
        t.fleet.kill_stash(b);
        t.fleet.install("disk", &target, 20_000_000).unwrap();
        assert_eq!(fs::read(&image).unwrap(), fs::read(&target).unwrap(), "without {a} and {b}");
        t.fleet.bring_back_stash(a).unwrap();
        t.fleet.bring_back_stash(b).unwrap();
    }
}

#[test]
fn an_interrupted_installation_goes_on_where_it_was() {
    use std::os::unix::fs::MetadataExt as _;
    let t = start(3);
    let image = t.file("disk.img");
    let mut contents = sample::noise(21, 400_000_000);
    contents[200_000_000..300_000_000].fill(0);
    fs::write(&image, contents).unwrap();
    t.fleet.publish(&image, &[]).unwrap();
    let target = t.file("target.img");
    sample::empty(&target, 500_000_000).unwrap();
    let mut install = t.fleet.command("coe-installer");
    install.args(["--json", "--image", "disk:1", "--disk"]).arg(&target).stdout(std::process::Stdio::null());
    let mut install = install.spawn().unwrap();
    xtask::fleet::wait_for("some of it", || fs::metadata(&target).unwrap().blocks() * 512 > 100_000_000).unwrap();
    install.kill().unwrap();
    assert!(!install.wait().unwrap().success(), "it was interrupted");
    // What it wrote and was damaged meanwhile is not believed.
    let file = fs::OpenOptions::new().write(true).open(&target).unwrap();
    file.write_all_at(b"damage", 40 * MIB).unwrap();
    // Nor is what something wrote where the image has nothing, as growing a file system does.
    file.write_all_at(b"more", 250_000_000).unwrap();
    let mut again = t.fleet.command("coe-installer");
    again.args(["--json", "--image", "disk:1", "--disk"]).arg(&target);
    let again: serde_json::Value = serde_json::from_str(&shell::output(&mut again).unwrap()).unwrap();
    let (resumed, written) = (again["resumed"].as_u64().unwrap(), again["written"].as_u64().unwrap());
    assert!(resumed >= 16 * MIB && written < 400_000_000, "it began anew: {again}");
    assert_eq!(fs::read(&target).unwrap()[..400_000_000], fs::read(&image).unwrap());
    // And now it is somebody's data.
    let error = refused(&t, &["--image", "disk:1", "--disk", target.to_str().unwrap()]);
    assert!(error.contains("holds data"), "{error}");
}

#[test]
fn the_installer_refuses_the_wrong_disk() {
    let t = start(1);
    let image = t.file("disk.img");
    fs::write(&image, sample::noise(6, 3_000_000)).unwrap();
    t.fleet.publish(&image, &[]).unwrap();
    let (small, full, fresh) = (t.file("small"), t.file("full"), t.file("fresh"));
    sample::empty(&small, 2_999_999).unwrap();
    sample::empty(&fresh, 3_000_000).unwrap();
    fs::write(&full, sample::noise(7, 4_000_000)).unwrap();
    let path = |p: &Path| p.to_str().unwrap().to_string();
    let missing = path(&t.file("missing"));
    let cases: &[(&[&str], &str)] = &[
        (&["--image", "disk", "--disk", &path(&small)], "too small"),
        (&["--image", "disk", "--disk", &path(&full)], "holds data"),
        (&["--image", "disk", "--disk", &path(&full), "--wipe", "other"], "nothing was written"),
        (&["--image", "disk", "--disk", &missing], "name an existing disk"),
        (&["--image", "disk", "--disk", "/"], "neither a disk nor a file"),
        (&["--image", "disk", "--disk", "/dev/null"], "neither a disk nor a file"),
        (&["--image", "other", "--disk", &path(&fresh)], "not found"),
        (&["--image", "disk:7", "--disk", &path(&fresh)], "not found"),
        (&["--image", "../etc", "--disk", &path(&fresh)], "NAME:TAG"),
    ];
    for (args, want) in cases {
        let error = refused(&t, args);
        assert!(error.contains(want), "{args:?}: {error}");
    }
    assert_eq!(fs::read(&full).unwrap(), sample::noise(7, 4_000_000), "the full disk was not touched");
    let mut wipe = t.fleet.command("coe-installer");
    shell::output(wipe.args(["--image", "disk", "--wipe", "full", "--disk"]).arg(&full)).unwrap();
    assert_eq!(fs::read(&full).unwrap()[..3_000_000], fs::read(&image).unwrap());
}

#[test]
fn a_source_that_is_not_a_whole_raw_disk_is_refused() {
    setup::need(setup::DISKS).unwrap();
    let t = start(1);
    let gpt = t.file("gpt.img");
    sample::disk(&gpt, 2_000_000).unwrap();
    let whole = fs::read(&gpt).unwrap();
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("truncated.img", whole[..whole.len() - 1_500_000].to_vec(), "truncated"),
        ("disk.qcow2", b"QFI\xfb then anything".to_vec(), "qemu-img convert"),
        ("disk.img.gz", b"\x1f\x8b\x08 then anything".to_vec(), "gunzip"),
    ];
    for (name, bytes, want) in cases {
        let path = t.file(name);
        fs::write(&path, bytes).unwrap();
        let error = t.fleet.publish(&path, &["--name", "x"]).unwrap_err().to_string();
        assert!(error.contains(want), "{name}: {error}");
    }
    let error = t.fleet.publish(&gpt, &["--sha256", &"0".repeat(64)]).unwrap_err().to_string();
    assert!(error.contains("not the one expected"), "{error}");
    let error = t.fleet.publish(&gpt, &["--data", "3", "--parity", "1"]).unwrap_err().to_string();
    assert!(error.contains("needs 4 stashes"), "{error}");
    assert!(t.fleet.ctl(&["images"]).unwrap().as_array().unwrap().is_empty(), "nothing was published");
}

#[test]
fn every_command_has_help_with_an_example() {
    let bin = tests::fleet::programs();
    let commands: &[(&str, &[&[&str]])] = &[
        ("coe-controller", &[&[], &["init"], &["serve"]]),
        (
            "coe-ctl",
            &[
                &[],
                &["publish"],
                &["images"],
                &["show"],
                &["rm"],
                &["nodes"],
                &["status"],
                &["verify"],
                &["sweep"],
                &["digest"],
                &["token", "create"],
                &["login"],
                &["host", "list"],
                &["host", "show"],
                &["host", "approve"],
                &["host", "label"],
                &["host", "forget"],
                &["host", "import"],
                &["deploy"],
                &["deploy", "list"],
                &["deploy", "watch"],
                &["deploy", "cancel"],
                &["deploy", "retry"],
                &["boot", "publish"],
            ],
        ),
        ("coe-stash", &[&[], &["join"], &["serve"], &["status"]]),
        ("coe-installer", &[&[], &["deploy"]]),
        ("coe-bootd", &[&[], &["join"], &["serve"]]),
    ];
    for (program, subcommands) in commands {
        for subcommand in *subcommands {
            let mut command = std::process::Command::new(bin.join(program));
            let help = shell::output(command.args(*subcommand).arg("--help")).unwrap();
            assert!(help.contains("Example"), "{program} {subcommand:?}: {help}");
        }
        let wrong = std::process::Command::new(bin.join(program)).arg("--nonsense").output().unwrap();
        assert_eq!(wrong.status.code(), Some(2), "{program}");
    }
}
