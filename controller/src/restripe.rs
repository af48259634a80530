//! Which segments of an image are to be cut anew, because policy or fleet have changed since they were published. Pure.

use images::parity::Geometry;
use protocol::message::publish::Layout;

use crate::geometry::{Choice, Fleet, Goal, misses, usual_parity};

/// Segments that cost so many times the bytes that they could are cut anew. Less is not worth the traffic: every byte travels once more.
const DEAR: f64 = 1.2;

/// How segments are cut, and who keeps what of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// k + m.
    pub geometry: Geometry,
    /// Who keeps what.
    pub layout: Layout,
}

/// What a layout comes to in this geometry: parity on devices, if there is none, is data on clients and nothing else.
#[must_use]
pub fn effective(layout: Layout, geometry: Geometry) -> Layout {
    match layout {
        Layout::ParityOnController if layout.on_devices(geometry).is_empty() => Layout::Clients,
        layout => layout,
    }
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.geometry, self.layout)
    }
}

/// Why they are to be cut anew, the least reason first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// They take more room than they need.
    Dear,
    /// They are read less often than is wanted, or a failure domain takes too many pieces along.
    Misses,
    /// They survive fewer losses than a fleet of this size usually does.
    Small,
    /// They have more holders than there are stashes: whoever is lost cannot be replaced.
    Shrunk,
    /// They survive fewer losses than is wanted.
    Survives,
    /// Copies are wanted.
    Copies,
    /// They are to be kept by others.
    Layout,
    /// The same as [`Self::Shrunk`], and one of their holders is to go.
    Leaves,
    /// They survive no loss at all.
    Bare,
}

impl Why {
    /// Whether it is not to wait: somebody said so, or the next loss is one too many. What only follows from the fleet, and how it behaves, may
    /// be otherwise tomorrow.
    #[must_use]
    pub fn is_pressing(self) -> bool {
        matches!(self, Self::Survives | Self::Copies | Self::Layout | Self::Leaves | Self::Bare)
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dear => "takes more room than it needs",
            Self::Misses => "is read less often than is wanted, or a failure domain takes too many pieces along",
            Self::Small => "survives fewer losses than is usual for this fleet",
            Self::Bare => "survives no loss at all",
            Self::Shrunk => "has more holders than there are stashes",
            Self::Leaves => "has more holders than stay",
            Self::Survives => "survives fewer losses than are wanted",
            Self::Copies => "is to be kept as copies",
            Self::Layout => "is to be kept by others",
        })
    }
}

/// What segments are held against.
pub struct Wanted<'a> {
    /// What the fleet is like.
    pub fleet: &'a Fleet<'a>,
    /// What is wanted.
    pub goal: Goal,
    /// What follows from both for new segments.
    pub choice: Choice,
}

impl Wanted<'_> {
    /// As new segments are cut.
    #[must_use]
    pub fn cut(&self) -> Cut {
        Cut { geometry: self.choice.geometry, layout: effective(self.goal.layout, self.choice.geometry) }
    }

    fn stashes(&self) -> usize {
        self.fleet.classes.values().sum()
    }

    /// Losses that must be survived, as far as the fleet can.
    fn parity(&self) -> usize {
        self.goal.survive.map_or(usual_parity(self.stashes()), usize::from).min(self.choice.geometry.parity())
    }

    /// Why segments that are cut so are to be cut anew, if they are. Those that are better than is wanted stay, as long as there is a stash for
    /// each piece.
    #[must_use]
    pub fn why(&self, is: Cut) -> Option<Why> {
        let overhead = |geometry: Geometry| geometry.pieces() as f64 / geometry.data() as f64;
        let wanted = self.choice.geometry;
        let misses = |geometry| misses(self.fleet, &self.goal, geometry);
        match () {
            () if is.layout != self.cut().layout => Some(Why::Layout),
            () if self.goal.redundant && is.geometry.data() > 1 => Some(Why::Copies),
            () if is.geometry.parity() < self.parity() => Some(self.weaker(is.geometry.parity())),
            () if is.layout.on_clients(is.geometry) > self.stashes() => Some(Why::Shrunk),
            () if misses(is.geometry) > misses(wanted) => Some(Why::Misses),
            () if overhead(is.geometry) > DEAR * overhead(wanted) => Some(Why::Dear),
            () => None,
        }
    }

    /// The same for pages of manifests, which are copies on clients.
    #[must_use]
    pub fn why_pages(&self, copies: Geometry) -> Option<Why> {
        match () {
            () if copies.parity() < self.parity().min(self.stashes().saturating_sub(1)) => {
                Some(self.weaker(copies.parity()))
            }
            () if copies.pieces() > self.stashes() => Some(Why::Shrunk),
            () => None,
        }
    }

    fn weaker(&self, parity: usize) -> Why {
        match () {
            () if parity == 0 => Why::Bare,
            () if self.goal.survive.is_some() => Why::Survives,
            () => Why::Small,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::attendance::Class;
    use crate::geometry::choose;

    fn fleet(stashes: usize) -> Fleet<'static> {
        Fleet { classes: BTreeMap::from([(Class::New, stashes)]), ..Fleet::default() }
    }

    fn why(stashes: usize, goal: Goal, data: u8, parity: u8, layout: Layout) -> Option<Why> {
        let fleet = fleet(stashes);
        let choice = choose(&fleet, &goal).unwrap();
        let cut = Cut { geometry: Geometry::new(data, parity).unwrap(), layout };
        Wanted { fleet: &fleet, goal, choice }.why(cut)
    }

    #[test]
    fn only_what_is_worth_it_is_cut_anew() {
        use Layout::{Clients, Mirror, ParityOnController};
        let usual = Goal::default();
        let survive = |n| Goal { survive: Some(n), ..usual };
        let cases = [
            // As it would be published now, and nearly so.
            (15, usual, (10, 4), Mirror, None),
            (15, usual, (9, 4), Mirror, None),
            (14, usual, (9, 4), Mirror, None),
            // The fleet has grown.
            (15, usual, (3, 1), Mirror, Some(Why::Small)),
            (2, usual, (1, 0), Mirror, Some(Why::Bare)),
            (1, usual, (1, 0), Mirror, None),
            (15, usual, (4, 4), Mirror, Some(Why::Dear)),
            // The fleet has shrunk: what there is survives more, and may stay, if there is somebody for each piece.
            (14, usual, (10, 4), Mirror, None),
            (13, usual, (10, 4), Mirror, Some(Why::Shrunk)),
            (12, survive(5), (10, 4), Mirror, Some(Why::Survives)),
            // Somebody wants something else.
            (15, survive(5), (10, 4), Mirror, Some(Why::Survives)),
            (15, survive(2), (10, 4), Mirror, None),
            (15, survive(1), (10, 4), Mirror, Some(Why::Dear)),
            (15, Goal { redundant: true, ..usual }, (10, 4), Mirror, Some(Why::Copies)),
            (15, Goal { redundant: true, ..usual }, (1, 4), Mirror, None),
            (15, usual, (1, 4), Mirror, Some(Why::Dear)),
            (15, Goal { layout: Clients, ..usual }, (10, 4), Mirror, Some(Why::Layout)),
            // What cannot be had is not waited for.
            (4, survive(9), (1, 2), Mirror, None),
            // Pieces on devices need no stash.
            (6, Goal { layout: ParityOnController, ..usual }, (6, 2), ParityOnController, None),
            (5, Goal { layout: ParityOnController, ..usual }, (6, 2), ParityOnController, Some(Why::Shrunk)),
        ];
        for (stashes, goal, (data, parity), layout, expected) in cases {
            assert_eq!(why(stashes, goal, data, parity, layout), expected, "{stashes} {goal:?} {data}+{parity}");
        }
    }

    #[test]
    fn what_was_cut_anew_is_not_cut_again() {
        for stashes in 1..40 {
            for survive in [None, Some(1), Some(3), Some(6)] {
                for redundant in [false, true] {
                    let goal = Goal { survive, redundant, ..Goal::default() };
                    let g = choose(&fleet(stashes), &goal).unwrap().geometry;
                    assert_eq!(
                        why(stashes, goal, g.data() as u8, g.parity() as u8, goal.layout),
                        None,
                        "{stashes}: {g}"
                    );
                    let goal = Goal { layout: Layout::ParityOnController, survive: Some(0), ..goal };
                    let g = choose(&fleet(stashes), &goal).unwrap().geometry;
                    let is = effective(goal.layout, g);
                    assert_eq!(why(stashes, goal, g.data() as u8, g.parity() as u8, is), None, "{stashes}: {g} {is}");
                }
            }
        }
    }

    #[test]
    fn pages_have_as_many_copies_as_are_wanted() {
        let fleet = fleet(15);
        let goal = Goal { survive: Some(3), ..Goal::default() };
        let wanted = Wanted { fleet: &fleet, goal, choice: choose(&fleet, &goal).unwrap() };
        let copies = |m| Geometry::new(1, m).unwrap();
        assert_eq!(wanted.why_pages(copies(3)), None);
        assert_eq!(wanted.why_pages(copies(14)), None);
        assert_eq!(wanted.why_pages(copies(15)), Some(Why::Shrunk));
        assert_eq!(wanted.why_pages(copies(1)), Some(Why::Survives));
        let (fleet, goal) = (self::fleet(2), Goal { survive: Some(3), ..Goal::default() });
        let wanted = Wanted { fleet: &fleet, goal, choice: choose(&fleet, &goal).unwrap() };
        assert_eq!(wanted.why_pages(copies(1)), None, "there are no more clients");
    }
}
