//! The catalog, and what was read of it since it changed last: in most hours little changes, and much is looked at.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::rc::Rc;

use controller::catalog::{
    Catalog, CatalogError, Change, GroupRecord, MoveRecord, NodeRecord, PendingRecord, Seat, SegmentRecord, Standing,
    TrashKey,
};
use images::{GroupId, NodeId, SegmentId};

use crate::world::run::Failure;

/// A catalog that remembers what it said.
pub(super) struct Known(Catalog, RefCell<Read>);

macro_rules! tables {
    ($($name:ident: $of:ty),* $(,)?) => {
        #[derive(Default)]
        struct Read {
            $($name: Option<Rc<$of>>,)*
            segments: Option<Rc<BTreeMap<SegmentId, SegmentRecord>>>,
            segments_of: BTreeMap<GroupId, Rc<Vec<SegmentId>>>,
        }

        impl Known {
            $(pub(super) fn $name(&self) -> Result<Rc<$of>, Failure> {
                if let Some(known) = &self.1.borrow().$name {
                    return Ok(known.clone());
                }
                let read = Rc::new(self.0.$name().map_err(catalog_fails)?);
                self.1.borrow_mut().$name = Some(read.clone());
                Ok(read)
            })*
        }
    };
}

tables! {
    damaged: Vec<(SegmentId, u8)>,
    devices: BTreeSet<NodeId>,
    folds: BTreeMap<NodeId, (u64, u64)>,
    groups: BTreeMap<GroupId, GroupRecord>,
    moves: BTreeMap<Seat, MoveRecord>,
    nodes: Vec<(NodeId, NodeRecord)>,
    pending: Vec<(SegmentId, PendingRecord)>,
    standings: BTreeMap<NodeId, Standing>,
    trash: Vec<TrashKey>,
    vacant: BTreeSet<Seat>,
}

pub(super) fn catalog_fails(error: CatalogError) -> Failure {
    Failure(format!("the catalog says {error}"))
}

/// What is read seldom, or with a key.
impl Deref for Known {
    type Target = Catalog;

    fn deref(&self) -> &Catalog {
        &self.0
    }
}

impl Known {
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self(Catalog::in_memory().map_err(catalog_fails)?, RefCell::default()))
    }

    pub(super) fn change<T>(&self, work: impl FnOnce(&Change<'_>) -> Result<T, CatalogError>) -> Result<T, Failure> {
        let result = self.0.change(work).map_err(catalog_fails);
        self.1.take();
        result
    }

    /// The same; what contradicts what is there by now is no failure.
    pub(super) fn try_change(
        &self,
        work: impl FnOnce(&Change<'_>) -> Result<(), CatalogError>,
    ) -> Result<bool, Failure> {
        let result = self.0.change(work);
        self.1.take();
        match result {
            Ok(()) => Ok(true),
            Err(CatalogError::Conflict(_)) => Ok(false),
            Err(other) => Err(catalog_fails(other)),
        }
    }

    pub(super) fn segments(&self) -> Result<Rc<BTreeMap<SegmentId, SegmentRecord>>, Failure> {
        if let Some(known) = &self.1.borrow().segments {
            return Ok(known.clone());
        }
        let read = Rc::new(self.0.segments().map_err(catalog_fails)?.into_iter().collect::<BTreeMap<_, _>>());
        self.1.borrow_mut().segments = Some(read.clone());
        Ok(read)
    }

    pub(super) fn segments_of(&self, group: GroupId) -> Result<Rc<Vec<SegmentId>>, Failure> {
        if let Some(known) = self.1.borrow().segments_of.get(&group) {
            return Ok(known.clone());
        }
        let read = Rc::new(self.0.segments_of(group).map_err(catalog_fails)?);
        self.1.borrow_mut().segments_of.insert(group, read.clone());
        Ok(read)
    }

    pub(super) fn segment(&self, id: &SegmentId) -> Result<Option<SegmentRecord>, Failure> {
        match &self.1.borrow().segments {
            Some(known) => Ok(known.get(id).cloned()),
            None => self.0.segment(id).map_err(catalog_fails),
        }
    }

    pub(super) fn group(&self, id: GroupId) -> Result<Option<GroupRecord>, Failure> {
        match &self.1.borrow().groups {
            Some(known) => Ok(known.get(&id).cloned()),
            None => self.0.group(id).map_err(catalog_fails),
        }
    }
}
