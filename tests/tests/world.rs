//! The seeded world, as many seeds as CI has time for. A failure names its seed; `cargo xtask sim --seed N` replays it.

use std::ops::Range;

use tests::world::{self, Failure};

/// Two months of 62 stashes each, and what it takes to get right afterwards.
const ARRAY_SEEDS: u64 = 10;

fn hold<S>(seeds: Range<u64>, replay: &str, run: impl Fn(u64) -> Result<S, Failure>) {
    let failures: Vec<String> =
        seeds.filter_map(|seed| run(seed).err().map(|f| format!("seed {seed}: {}", f.0))).collect();
    assert!(failures.is_empty(), "replay with `{replay} --seed N`\n{}", failures.join("\n"));
}

#[test]
fn seeds() {
    hold(0..400, "cargo xtask sim", |seed| world::run(seed, false));
}

#[test]
fn mirror_seeds() {
    hold(0..1000, "cargo xtask sim mirror", |seed| world::run_mirror(seed, false));
}

/// In two halves, for two cores.
#[test]
fn stash_seeds() {
    hold(0..1000, "cargo xtask sim stash", |seed| world::run_stash(seed, false));
}

#[test]
fn more_stash_seeds() {
    hold(1000..2000, "cargo xtask sim stash", |seed| world::run_stash(seed, false));
}

#[test]
fn each_call_to_a_stash_medium_fails_in_turn() {
    hold(0..2, "cargo xtask sim stash --every-call", |seed| world::run_stash_every_call(seed, false));
}

/// In two halves, for two cores.
#[test]
fn array_seeds() {
    hold(0..ARRAY_SEEDS, "cargo xtask sim array", |seed| world::run_array(seed, false));
}

#[test]
fn more_array_seeds() {
    hold(ARRAY_SEEDS..2 * ARRAY_SEEDS, "cargo xtask sim array", |seed| world::run_array(seed, false));
}

#[test]
fn the_same_seed_is_the_same_world() {
    let once = format!("{:?}", world::run(7, false).unwrap());
    assert_eq!(once, format!("{:?}", world::run(7, false).unwrap()));
}
