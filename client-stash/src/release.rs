//! What this stash does for others only if its own directory permits it: give a share of an image's key away, delete.

use images::NodeId;
use protocol::directory::{Directory, Mark, SignedDirectory};
use protocol::identity::Role;
use protocol::io::tls::Bearer;
use protocol::message::boot::BOOT_IMAGE;
use protocol::message::store::GetShare;

/// What may be answered to who asks for a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The share; and for this deployment a token.
    Share(Option<u32>),
    /// This deployment was carried out: its machine would be installed again, over whatever somebody did on it since.
    Done(u32),
}

/// Whether a share may leave. `who` is the asker, the directory the newest that this stash has seen; `is_done` tells whether a deployment
/// was carried out. `Err` says why not.
///
/// # Errors
/// The reason, for the asker and the audit record.
pub fn check(
    directory: Option<&Directory>,
    own: NodeId,
    who: &Bearer,
    ask: &GetShare,
    is_done: impl Fn(u32) -> bool,
) -> Result<Release, &'static str> {
    let directory = directory.ok_or("this stash has not seen a directory yet")?;
    let head = directory.heads.get(&ask.image).filter(|head| head.manifest == ask.manifest);
    let head = head.ok_or("the image is not published, as far as this stash knows")?;
    let shares = head.offline.as_ref().ok_or("the image was published with --offline deny")?;
    if !shares.holders.iter().any(|(node, _)| *node == own) {
        return Err("this stash has no share of that image's key");
    }
    if who.issuer.is_some_and(|boot_server| !directory.common().policy.boot_servers.contains(&boot_server)) {
        return Err("the boot server that admitted this installer may not: `coe-ctl boot servers`");
    }
    match who.identity.role {
        // Boot files are for every machine that boots.
        Role::Boot if ask.image.name() == BOOT_IMAGE => Ok(Release::Share(None)),
        Role::Installer => {
            let host = who.host.ok_or(
                "the installer's certificate names no machine: `coe-ctl token create --installer --host NAME`",
            )?;
            let host = directory.hosts.get(&host).ok_or("the machine is not approved: `coe-ctl host approve`")?;
            match who.deployment {
                Some(id) => {
                    let planned =
                        host.planned.as_ref().filter(|planned| planned.id == id && planned.image == ask.image);
                    planned.ok_or("this is not what is planned for the machine: `coe-ctl deploy`")?;
                    if is_done(id) { Ok(Release::Done(id)) } else { Ok(Release::Share(Some(id))) }
                }
                // A boot server admits for a deployment; the controller also for a person who types the commands.
                None if who.issuer.is_some() => Err("the installer's certificate names no deployment"),
                None => Ok(Release::Share(None)),
            }
        }
        _ => Err("only an installer gets an image's key"),
    }
}

/// Whether the word of an installer is kept as the last one of its deployment: if that is planned for its machine, and whoever admitted it
/// may.
#[must_use]
pub fn counts(directory: Option<&Directory>, who: &Bearer) -> Option<u32> {
    let directory = directory?;
    if who.issuer.is_some_and(|boot_server| !directory.common().policy.boot_servers.contains(&boot_server)) {
        return None;
    }
    let planned = directory.hosts.get(&who.host?)?.planned.as_ref()?;
    (Some(planned.id) == who.deployment).then_some(planned.id)
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

    use images::keys::{HolderSecret, OwnerKey};
    use images::manifest::PageRef;
    use images::shares::{Order, ShareDigest};
    use images::{ArrayId, GroupId, ManifestId};
    use protocol::directory::{Common, Contents, Epoch, Head, Host, Line, Planned, Policy, Shares};
    use protocol::identity::Identity;

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
        GetShare { image: image.parse().unwrap(), manifest: ManifestId([manifest; 32]), order: None }
    }

    const BOOT: NodeId = NodeId([5; 16]);

    fn bearer(role: Role, host: Option<u32>) -> Bearer {
        let identity = Identity { array: ArrayId([0; 32]), role, node: NodeId([7; 16]) };
        Bearer { identity, host, deployment: None, issuer: None }
    }

    fn started(host: u32, deployment: u32) -> Bearer {
        Bearer { deployment: Some(deployment), ..bearer(Role::Installer, Some(host)) }
    }

    fn admitted_by(issuer: NodeId, bearer: Bearer) -> Bearer {
        Bearer { issuer: Some(issuer), ..bearer }
    }

    #[test]
    fn only_to_an_installer_of_an_approved_machine() {
        let heads = [("debian:1", head(1, true)), ("secret:1", head(2, false)), ("coe-boot:1", head(3, true))];
        let planned = |id| {
            let image = "debian:1".parse().unwrap();
            let secrets = [HolderSecret([1; 32]), HolderSecret([2; 32])];
            let order = Order::seal(&OwnerKey([3; 32]), id, 2, &secrets, b"order").unwrap();
            Some(Planned { id, image, not_before_unix_s: 0, rescue: false, order, user_data: None })
        };
        let host = |planned| Host { name: "lab".into(), planned, ..Host::default() };
        let contents = Contents {
            common: Common { policy: Policy { boot_servers: vec![BOOT] }, ..Common::default() },
            heads: heads.into_iter().map(|(name, head)| (name.parse().unwrap(), head)).collect(),
            hosts: BTreeMap::from([(7, host(None)), (8, host(planned(30))), (9, host(planned(31)))]),
            ..Contents::default()
        };
        let directory = Directory::next(None, ArrayId([0; 32]), Line::default(), Epoch(1), contents);
        let may =
            |own, who, ask| matches!(check(Some(&directory), own, &who, &ask, |id| id == 31), Ok(Release::Share(_)));
        let by_hand = |host| bearer(Role::Installer, host);
        let table = [
            (OWN, by_hand(Some(7)), ask("debian:1", 1), true, "approved"),
            (OWN, by_hand(Some(6)), ask("debian:1", 1), false, "another machine"),
            (OWN, by_hand(None), ask("debian:1", 1), false, "no machine"),
            (OWN, by_hand(Some(7)), ask("debian:1", 2), false, "another manifest"),
            (OWN, by_hand(Some(7)), ask("debian:2", 1), false, "another image"),
            (OWN, by_hand(Some(7)), ask("secret:1", 2), false, "not while the controller is away"),
            (NodeId([9; 16]), by_hand(Some(7)), ask("debian:1", 1), false, "not a holder"),
            (OWN, bearer(Role::Stash, Some(7)), ask("debian:1", 1), false, "another stash"),
            (OWN, bearer(Role::Admin, Some(7)), ask("debian:1", 1), false, "a person"),
            (OWN, bearer(Role::Boot, None), ask("debian:1", 1), false, "a boot server, for an image"),
            (OWN, bearer(Role::Boot, None), ask("coe-boot:1", 3), true, "a boot server, for boot files"),
            (OWN, started(8, 30), ask("debian:1", 1), true, "as planned"),
            (OWN, started(8, 29), ask("debian:1", 1), false, "an earlier deployment"),
            (OWN, started(7, 30), ask("debian:1", 1), false, "another machine's deployment"),
            (OWN, started(8, 30), ask("coe-boot:1", 3), false, "planned, another image"),
            (OWN, started(9, 31), ask("debian:1", 1), false, "done"),
            (OWN, admitted_by(BOOT, started(8, 30)), ask("debian:1", 1), true, "admitted by a boot server"),
            (OWN, admitted_by(OWN, started(8, 30)), ask("debian:1", 1), false, "by one that may not"),
            (
                OWN,
                admitted_by(BOOT, by_hand(Some(7))),
                ask("debian:1", 1),
                false,
                "by a boot server, for no deployment",
            ),
        ];
        for (own, who, ask, want, why) in table {
            assert_eq!(may(own, who, ask), want, "{why}");
        }
        let done = check(Some(&directory), OWN, &started(9, 31), &ask("debian:1", 1), |id| id == 31);
        assert_eq!(done, Ok(Release::Done(31)));
        let counts = |who: &Bearer| counts(Some(&directory), who);
        assert_eq!(counts(&started(8, 30)), Some(30));
        assert_eq!(counts(&admitted_by(BOOT, started(8, 30))), Some(30));
        let others = [started(8, 31), started(7, 30), by_hand(Some(8)), admitted_by(OWN, started(8, 30))];
        assert_eq!(others.map(|who| counts(&who)), [None; 4]);
        assert!(check(None, OWN, &by_hand(Some(7)), &ask("debian:1", 1), |_| false).is_err(), "no directory");
    }
}
