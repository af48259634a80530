//! What this stash does for others only if its own directory permits it: give a share of an image's key away, delete.

use images::NodeId;
use protocol::directory::{Directory, Mark, SignedDirectory};
use protocol::identity::Role;
use protocol::message::boot::BOOT_IMAGE;
use protocol::message::store::GetShare;

/// Whether a share may leave. `host` is the machine that the asker's certificate was given for; the directory is the newest that this
/// stash has seen. `Err` says why not.
///
/// # Errors
/// The reason, for the asker and the audit record.
pub fn check(
    directory: Option<&Directory>,
    own: NodeId,
    role: Role,
    host: Option<u32>,
    ask: &GetShare,
) -> Result<(), &'static str> {
    let directory = directory.ok_or("this stash has not seen a directory yet")?;
    let head = directory.heads.get(&ask.image).filter(|head| head.manifest == ask.manifest);
    let head = head.ok_or("the image is not published, as far as this stash knows")?;
    let shares = head.offline.as_ref().ok_or("the image was published with --offline deny")?;
    if !shares.holders.iter().any(|(node, _)| *node == own) {
        return Err("this stash has no share of that image's key");
    }
    match role {
        // Boot files are for every machine that boots.
        Role::Boot if ask.image.name() == BOOT_IMAGE => Ok(()),
        Role::Installer => {
            let host = host.ok_or(
                "the installer's certificate names no machine: `coe-ctl token create --installer --host NAME`",
            )?;
            directory.hosts.get(&host).map(drop).ok_or("the machine is not approved: `coe-ctl host approve`")
        }
        _ => Err("only an installer gets an image's key"),
    }
}

/// Whether a controller with this directory may have something deleted: only if this stash holds the same one. A controller tells a stash
/// its directory before, and one that this stash knows better than is refused then.
///
/// # Errors
/// The reason.
pub fn may_delete(held: Option<&SignedDirectory>, theirs: Mark) -> Result<(), &'static str> {
    if held.is_some_and(|held| held.mark() == theirs) {
        Ok(())
    } else {
        Err("this stash holds another directory than the controller, and deletes nothing on its word")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use images::manifest::PageRef;
    use images::shares::ShareDigest;
    use images::{ArrayId, GroupId, ManifestId};
    use protocol::directory::{Contents, Epoch, Head, Host, Line, Shares};

    use super::*;

    const OWN: NodeId = NodeId([1; 16]);

    fn head(manifest: u8, offline: bool) -> Head {
        let holders = vec![(OWN, ShareDigest([0; 32])), (NodeId([2; 16]), ShareDigest([0; 32]))];
        Head {
            manifest: ManifestId([manifest; 32]),
            number: 1,
            root: PageRef { digest: [0; 32], len: 0, group: GroupId(1) },
            sealed_key: Vec::new(),
            offline: offline.then_some(Shares { threshold: 2, holders }),
        }
    }

    fn ask(image: &str, manifest: u8) -> GetShare {
        GetShare { image: image.parse().unwrap(), manifest: ManifestId([manifest; 32]) }
    }

    #[test]
    fn only_to_an_installer_of_an_approved_machine() {
        let heads = [("debian:1", head(1, true)), ("secret:1", head(2, false)), ("coe-boot:1", head(3, true))];
        let contents = Contents {
            heads: heads.into_iter().map(|(name, head)| (name.parse().unwrap(), head)).collect(),
            hosts: BTreeMap::from([(7, Host { name: "lab-07".into(), ..Host::default() })]),
            ..Contents::default()
        };
        let directory = Directory::next(None, ArrayId([0; 32]), Line::default(), Epoch(1), contents);
        let may = |own, role, host, ask| check(Some(&directory), own, role, host, &ask).is_ok();
        let table = [
            (OWN, Role::Installer, Some(7), ask("debian:1", 1), true, "approved"),
            (OWN, Role::Installer, Some(8), ask("debian:1", 1), false, "another machine"),
            (OWN, Role::Installer, None, ask("debian:1", 1), false, "no machine"),
            (OWN, Role::Installer, Some(7), ask("debian:1", 2), false, "another manifest"),
            (OWN, Role::Installer, Some(7), ask("debian:2", 1), false, "another image"),
            (OWN, Role::Installer, Some(7), ask("secret:1", 2), false, "not while the controller is away"),
            (NodeId([9; 16]), Role::Installer, Some(7), ask("debian:1", 1), false, "not a holder"),
            (OWN, Role::Stash, Some(7), ask("debian:1", 1), false, "another stash"),
            (OWN, Role::Admin, Some(7), ask("debian:1", 1), false, "a person"),
            (OWN, Role::Boot, None, ask("debian:1", 1), false, "a boot server, for an image"),
            (OWN, Role::Boot, None, ask("coe-boot:1", 3), true, "a boot server, for boot files"),
        ];
        for (own, role, host, ask, want, why) in table {
            assert_eq!(may(own, role, host, ask), want, "{why}");
        }
        assert!(check(None, OWN, Role::Installer, Some(7), &ask("debian:1", 1)).is_err(), "no directory");
    }
}
