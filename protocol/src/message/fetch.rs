//! Anybody of the array to a stash: reading.

use images::fragment::{FragmentHeader, FragmentId};
use serde::{Deserialize, Serialize};

use crate::directory::Epoch;

/// Ask for a fragment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetFragment {
    /// Which.
    pub fragment: FragmentId,
}

/// The fragment; its payload follows. The asker checks both against the signed manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fragment {
    /// As it was stored.
    pub header: FragmentHeader,
    /// Newest directory that the holder has, so that one that fell behind is noticed.
    pub epoch: Epoch,
}
