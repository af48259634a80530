//! The seeded world, as many seeds as CI has time for. A failure names its seed; `cargo xtask sim --seed N` replays it.

#[test]
fn seeds() {
    let failures: Vec<String> = (0..400)
        .filter_map(|seed| tests::world::run(seed, false).err().map(|f| format!("seed {seed}: {}", f.0)))
        .collect();
    assert!(failures.is_empty(), "replay with `cargo xtask sim --seed N`\n{}", failures.join("\n"));
}

#[test]
fn mirror_seeds() {
    let failures: Vec<String> = (0..1000)
        .filter_map(|seed| tests::world::run_mirror(seed, false).err().map(|f| format!("seed {seed}: {}", f.0)))
        .collect();
    assert!(failures.is_empty(), "replay with `cargo xtask sim --mirror --seed N`\n{}", failures.join("\n"));
}

#[test]
fn the_same_seed_is_the_same_world() {
    let once = format!("{:?}", tests::world::run(7, false).unwrap());
    assert_eq!(once, format!("{:?}", tests::world::run(7, false).unwrap()));
}
