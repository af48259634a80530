//! How many pieces a segment is cut into, from the number of stashes.

use images::parity::Geometry;

/// k + m for a fleet of `stashes`. A quarter of the pieces may be lost, and from four stashes on at least one stays out of each
/// group, so that a holder that fails in the middle of a publication has somebody to stand in for it.
#[must_use]
pub fn for_fleet(stashes: usize) -> Option<Geometry> {
    let (data, parity) = match stashes {
        0 => return None,
        1 => (1, 0),
        2 => (1, 1),
        3 | 4 => (2, 1),
        5 => (3, 1),
        6 => (3, 2),
        7 => (4, 2),
        8 => (5, 2),
        9 => (6, 2),
        10 => (6, 3),
        11 => (7, 3),
        12 => (8, 3),
        13 => (9, 3),
        14 => (10, 3),
        _ => (10, 4),
    };
    Geometry::new(data, parity).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_the_fleet_and_leaves_a_spare() {
        assert_eq!(for_fleet(0), None);
        for n in 1..200 {
            let g = for_fleet(n).unwrap();
            assert!(g.pieces() <= n, "{g} does not fit {n}");
            assert!(n < 4 || g.pieces() < n, "{g} leaves no spare of {n}");
            assert!(n < 2 || g.parity() >= 1, "{n} stashes must survive a loss");
            assert!(for_fleet(n + 1).unwrap().parity() >= g.parity());
        }
    }
}
