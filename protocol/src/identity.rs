//! Who somebody is: a role and a node, as a SPIFFE id in a certificate (SPIFFE-ID specification, 2.1).

use std::fmt;
use std::str::FromStr;

use images::{ArrayId, NodeId};
use serde::{Deserialize, Serialize};

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Directs the array.
    Controller,
    /// Keeps fragments.
    Stash,
    /// Installs a machine.
    Installer,
    /// A person who runs the array.
    Admin,
    /// Answers machines that boot from the network.
    Boot,
    /// Rebuilds a controller from the clients; its certificate lies in the recovery kit.
    Recovery,
}

impl Role {
    const ALL: [Self; 6] = [Self::Controller, Self::Stash, Self::Installer, Self::Admin, Self::Boot, Self::Recovery];

    /// As in a SPIFFE id.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Stash => "stash",
            Self::Installer => "installer",
            Self::Admin => "admin",
            Self::Boot => "boot",
            Self::Recovery => "recovery",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that is not an identity of this system.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not spiffe://ARRAY/ROLE/NODE")]
pub struct IdentityError(String);

/// `spiffe://ARRAY/ROLE/NODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The array whose authority vouches.
    pub array: ArrayId,
    /// What it may do.
    pub role: Role,
    /// Who it is.
    pub node: NodeId,
}

/// The name by which everybody asks for the controller, whichever node it is.
pub const CONTROLLER_NAME: &str = "controller.coe.internal";

/// The name by which somebody asks for any one stash, knowing its address only.
pub const STASH_NAME: &str = "stash.coe.internal";

/// Under this name a boot server that acts for an absent controller may issue certificates, and under no other: those of installers. A
/// constraint permits the name itself, too, so it must be nobody's: there is no role of this name.
#[must_use]
pub fn delegate_domain(boot_server: NodeId) -> String {
    format!("{boot_server}.delegate.coe.internal")
}

/// The DNS name in a certificate that a boot server issued for an absent controller.
#[must_use]
pub fn delegated_name(installer: NodeId, boot_server: NodeId) -> String {
    format!("{installer}.{}", delegate_domain(boot_server))
}

/// The DNS name in a member's certificate. A caller asks TLS for exactly the member it means, so a certificate of another
/// member of the same array does not pass.
#[must_use]
pub fn server_name(role: Role, node: NodeId) -> String {
    format!("{node}.{role}.coe.internal")
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}/{}", self.array, self.role, self.node)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let parse = || {
            let mut parts = text.strip_prefix("spiffe://")?.split('/');
            let array = parts.next()?.parse().ok()?;
            let role = parts.next().and_then(|r| Role::ALL.into_iter().find(|role| role.as_str() == r))?;
            let node = parts.next()?.parse().ok()?;
            parts.next().is_none().then_some(Self { array, role, node })
        };
        parse().ok_or_else(|| IdentityError(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let id = Identity { array: ArrayId([1; 32]), role: Role::Stash, node: NodeId([2; 16]) };
        assert_eq!(id.to_string().parse(), Ok(id));
        let text = id.to_string();
        for bad in [&text[1..], &text.replace("stash", "root"), &format!("{text}/x"), &text[..text.len() - 1]] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
