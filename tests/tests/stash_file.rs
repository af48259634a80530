//! The stash file on real file systems, and files that earlier programs wrote.

use std::path::Path;
use std::process::Command;

use client_stash::storage::{SimDisk, Storage as _};
use client_stash::store::Store;
use images::{ArrayId, NodeId};
use tests::{fuzz, killed};
use xtask::{sample, setup, shell};

/// As many times as CI has time for; `cargo xtask sim stash --kill 10000` does the rest.
#[test]
fn killed_at_any_moment_it_keeps_what_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let acknowledged =
        killed::kill(Path::new(env!("CARGO_BIN_EXE_stash_writer")), &folder.path().join("stash"), 1000).unwrap();
    assert!(acknowledged > 1000, "{acknowledged} acknowledged in 1000 rounds");
}

#[test]
fn on_a_full_disk_it_keeps_what_it_has_and_works() {
    if !setup::is_root() {
        println!("NOTE: not root, so no file system could be mounted");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| shell::output(Command::new("mount").args(args)).map(drop).unwrap();
    let at = folder.path().join("mounted");
    std::fs::create_dir(&at).unwrap();
    let (image, path) = (folder.path().join("ext4"), at.to_str().unwrap());
    sample::empty(&image, 24 << 20).unwrap();
    shell::output(setup::tool("mkfs.ext4").arg("-q").arg(&image)).unwrap();
    for args in
        [["-t", "tmpfs", "-o", "size=8m", "tmpfs", path], ["-t", "ext4", "-o", "loop", image.to_str().unwrap(), path]]
    {
        mount(&args);
        let done = killed::on_a_full_disk(&at);
        shell::output(Command::new("umount").arg(&at)).unwrap();
        done.unwrap();
    }
}

/// A file of each format version that was ever released opens for ever, with everything that was in it.
#[test]
fn files_of_every_version_open() {
    let holes = "6c4b7175f2c0093243bbb1e782bd2cf8f52e42b05fd34fbe39e3eb07d7c43869";
    let plain = "07e8b01156652bd7b6efc3246e7f1b3980c3f79688e7189bf0fc9a94af9ef893";
    // file, fragments, BLAKE3 of all of them, owners, times that it was opened
    let files = [("stash-2", 11, plain, &[1, 9][..], 5), ("stash-2-holes", 12, holes, &[1], 2)];
    for (name, fragments, digest, owners, session) in files {
        let golden = format!("{}/golden/{name}.patches", env!("CARGO_MANIFEST_DIR"));
        let disk = fuzz::stash_from_patches(&std::fs::read(golden).unwrap());
        let mut store = Store::open(disk, ArrayId([1; 32]), NodeId([2; 16])).unwrap();
        let mut hasher = blake3::Hasher::new();
        for id in store.reader().inventory() {
            let (header, payload) = store.reader().get(id).unwrap();
            hasher.update(&header.encode()).update(&payload);
        }
        assert_eq!((store.reader().fragments(), hasher.finalize().to_hex().as_str()), (fragments, digest), "{name}");
        let usage = store.usage();
        assert_eq!(usage.partitions.keys().copied().collect::<Vec<_>>(), owners, "{name}");
        assert_eq!(usage.session, session, "{name}");
    }
}

#[test]
fn patches_are_the_file() {
    let disk = fuzz::small_stash();
    let copy = fuzz::stash_from_patches(&fuzz::patches_of(&disk));
    let read = |disk: &SimDisk| {
        let mut bytes = vec![0; disk.len().unwrap() as usize];
        disk.read_exact_at(0, &mut bytes).unwrap();
        bytes
    };
    assert!(read(&disk) == read(&copy));
}
