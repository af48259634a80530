//! The seeded worlds, a few seeds each: `cargo xtask ci` runs thousands, compiled for speed. A failure names its seed;
//! `cargo xtask sim WORLD --seed N` replays it.

use std::ops::Range;

use tests::world::{self, Failure};

fn hold<S>(seeds: Range<u64>, replay: &str, run: impl Fn(u64) -> Result<S, Failure>) {
    let failures: Vec<String> =
        seeds.filter_map(|seed| run(seed).err().map(|f| format!("seed {seed}: {}", f.0))).collect();
    assert!(failures.is_empty(), "replay with `{replay} --seed N`\n{}", failures.join("\n"));
}

#[test]
fn seeds() {
    hold(0..40, "cargo xtask sim", |seed| world::run(seed, false));
}

#[test]
fn mirror_seeds() {
    hold(0..100, "cargo xtask sim mirror", |seed| world::run_mirror(seed, false));
}

#[test]
fn stash_seeds() {
    hold(0..100, "cargo xtask sim stash", |seed| world::run_stash(seed, false));
}

#[test]
fn each_call_to_a_stash_medium_fails_in_turn() {
    hold(0..1, "cargo xtask sim stash --every-call", |seed| world::run_stash_every_call(seed, false));
}

/// Two months of 62 stashes each, and what it takes to get right afterwards.
#[test]
fn array_seeds() {
    hold(0..4, "cargo xtask sim array", |seed| world::run_array(seed, false));
}

#[test]
fn the_same_seed_is_the_same_world() {
    let once = format!("{:?}", world::run(7, false).unwrap());
    assert_eq!(once, format!("{:?}", world::run(7, false).unwrap()));
}
