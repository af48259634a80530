//! Holders that lie, fall behind or stall: the installation succeeds from the others, and says who did what.

use std::fs;

use tests::fleet::start;
use tests::hostile::{Hostile, Manners};
use xtask::sample;

#[tokio::test(flavor = "multi_thread")]
async fn the_install_succeeds_from_the_others_and_names_the_liars() {
    let t = start(3);
    let manners = [
        Manners::WrongBytes,
        Manners::WrongPiece,
        Manners::Short,
        Manners::Gibberish,
        Manners::Stalls,
        Manners::OldEpoch,
    ];
    let mut hostile = Vec::new();
    for m in manners {
        let ticket = t.fleet.ticket(&[]).unwrap();
        hostile.push((m, Hostile::start(&ticket, m, t.dir.path()).await.unwrap()));
    }
    t.fleet.wait_until_up(9).unwrap();
    let offered = t.fleet.ctl(&["status"]).unwrap()["capacity"].as_u64().unwrap();
    assert!((16 << 40..17 << 40).contains(&offered), "no stash offers more than 16 TiB: {offered}");
    let image = t.file("disk.img");
    fs::write(&image, sample::noise(8, 60_000_000)).unwrap();
    // Nine pieces on nine stashes, and four suffice: three honest, and the one that is only behind.
    t.fleet.publish(&image, &["--data", "4", "--parity", "5"]).unwrap();
    let target = t.file("target.img");
    let installed = tokio::task::block_in_place(|| t.fleet.install("disk", &target, 60_000_000)).unwrap();
    assert_eq!(fs::read(&image).unwrap(), fs::read(&target).unwrap());

    let holder = |node: &str| installed["holders"].as_array().unwrap().iter().find(|h| h["node"] == node).cloned();
    for (m, stash) in &hostile {
        let h = holder(&stash.node).unwrap_or_else(|| panic!("{m:?} was not asked: {installed}"));
        let lied = h["lied"].as_str().unwrap_or_default();
        match m {
            Manners::WrongBytes => assert!(lied.contains("digest"), "{h}"),
            Manners::WrongPiece => assert!(lied.contains("asked for"), "{h}"),
            Manners::Short => assert!(lied.contains("instead of"), "{h}"),
            Manners::Gibberish => assert!(!lied.is_empty(), "{h}"),
            Manners::Stalls => assert!(lied.is_empty() && h["pieces"] == 0 && h["slow"].as_u64() > Some(0), "{h}"),
            Manners::OldEpoch => {
                assert!(lied.is_empty() && h["pieces"].as_u64() > Some(0), "its bytes are right: {h}");
                let behind = installed["behind"].as_array().unwrap();
                assert!(behind.iter().any(|b| b[0] == stash.node), "{installed}");
            }
        }
    }
    // The controller heard of it, and shows it.
    let nodes = t.fleet.ctl(&["nodes"]).unwrap();
    let shown = nodes.as_array().unwrap().iter().filter(|n| n["lied"].is_string()).count();
    assert_eq!(shown, 4, "{nodes}");
    // Those that cannot prove what they hold are found without an installation, too.
    let verified = t.fleet.command("coe-ctl").args(["verify", "--json"]).output().unwrap();
    assert_eq!(verified.status.code(), Some(1));
}
