//! Attacks on the mirror link, by members of the array with real certificates, against real stashes.

use std::sync::Arc;

use images::ArrayId;
use images::manifest::ArrayKey;
use protocol::directory::{Contents, Directory, Epoch, Line, Mark, SignedDirectory, Update};
use protocol::identity::{Role, STASH_NAME, server_name};
use protocol::io::array::Array;
use protocol::io::credentials::{Credentials, file_of};
use protocol::io::rpc::{self, Answer, CallError};
use protocol::io::{endpoint, tls};
use protocol::message::member::{GetDirectory, Heartbeat, OfferDirectory, TheDirectory};
use protocol::message::{Call, Refusal, Request, store};
use protocol::ticket::Ticket;
use tests::fleet::{TestFleet, start};
use xtask::{sample, setup};

async fn ask<C: Call>(member: &Credentials, address: &str, message: C) -> Result<C::Reply, CallError> {
    let endpoint = endpoint::client(tls::client(member, tls::ALPN_MEMBER).unwrap()).unwrap();
    let connection = rpc::connect_any(&endpoint, &[address.to_string()], STASH_NAME).await?;
    Ok(rpc::call(&connection, message, &[]).await?.0)
}

async fn join(t: &TestFleet, what: &[&str]) -> Credentials {
    let ticket: Ticket = t.fleet.ticket(what).unwrap().parse().unwrap();
    Credentials::join(&ticket).await.unwrap()
}

async fn directory_of(member: &Credentials, address: &str) -> (Mark, Update) {
    let told = ask(member, address, GetDirectory { have: None }).await.unwrap();
    (told.mark.unwrap(), told.update.unwrap())
}

fn change_something(t: &TestFleet, name: &str) {
    t.fleet.approve_host(name, name).unwrap();
    t.fleet.wait_until_told().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_member_gives_another_a_wrong_directory() {
    let t = start(3);
    let admin = Credentials::load(&file_of(&t.fleet.dir().join("home"), Role::Admin)).unwrap();
    let address = t.fleet.stash_address(0).unwrap();
    change_something(&t, "one");
    let (old, replay) = directory_of(&admin, &address).await;
    change_something(&t, "two");
    let (now, newest) = directory_of(&admin, &address).await;
    assert!(now.epoch > old.epoch);

    let array = admin.identity.array;
    let far = Epoch(now.epoch.0 + 100);
    let sign = |directory: Directory, seed: u8| directory.sign(&ArrayKey::from_seed(&[seed; 32]).unwrap()).whole();
    let held = SignedDirectory::take(None, newest.clone(), array, &admin.array_key).unwrap();
    let mut altered = newest.clone();
    altered.changes.epoch = far;
    let attacks = [
        ("an old one again", replay.clone()),
        (
            "signed by another key",
            sign(Directory::next(Some(&held), array, Line::default(), far, Contents::default()), 1),
        ),
        (
            "of another array",
            sign(Directory::next(None, ArrayId([9; 32]), Line::default(), far, Contents::default()), 2),
        ),
        ("in a higher term, by another key", sign(held.directory().clone().in_term(99), 3)),
        ("the newest with another epoch", altered),
        ("changes of nothing that is here", Update { from: Some(old), ..newest }),
    ];
    let stash = Credentials::load(&file_of(&t.fleet.stashes[1].dir, Role::Stash)).unwrap();
    for (what, update) in attacks {
        let answer = ask(&stash, &address, OfferDirectory { update: update.clone() }).await.unwrap();
        assert_eq!(answer.mark, Some(now), "{what}");
        let refused = ask(&admin, &address, OfferDirectory { update }).await;
        assert!(matches!(refused, Err(CallError::Refused(Refusal::NotAllowed(_)))), "{what}: {refused:?}");
    }
    let status = t.fleet.stash_status(0).unwrap();
    assert_eq!(status["epoch"].as_u64(), Some(now.epoch.0), "and on its disk");

    // A member that keeps the newest one to itself: whoever comes through it finds the others, and theirs.
    let liar = join(&t, &[]).await;
    let server = tls::server(&liar, tls::Admit::Members, &[tls::ALPN_MEMBER]).unwrap();
    let client = tls::client(&liar, tls::ALPN_MEMBER).unwrap();
    let socket = endpoint::server("127.0.0.1:0".parse().unwrap(), server, client).unwrap();
    let at = socket.local_addr().unwrap().to_string();
    tokio::spawn(rpc::serve(socket, array, move |_, request, _| {
        let told = TheDirectory { mark: Some(old), update: Some(replay.clone()) };
        async move {
            match request {
                Request::GetDirectory(_) => Answer::to::<GetDirectory>(Ok(told)),
                _ => Answer::refuse(Refusal::Invalid("no".into())),
            }
        }
    }));
    let home = tempfile::tempdir().unwrap();
    let socket = endpoint::client(tls::client(&admin, tls::ALPN_MEMBER).unwrap()).unwrap();
    let found = Array::reach(socket, &admin, home.path(), &[at]).await.unwrap();
    assert!(found.directory().epoch >= now.epoch, "{} after {}", found.directory().epoch, now.epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_an_approved_installer_gets_a_share() {
    setup::need(setup::DISKS).unwrap();
    let t = start(3);
    let image = t.file("disk.img");
    sample::disk(&image, 2_000_000).unwrap();
    t.fleet.publish(&image, &["--data", "2", "--parity", "1"]).unwrap();
    change_something(&t, "lab-01");
    let admin = Credentials::load(&file_of(&t.fleet.dir().join("home"), Role::Admin)).unwrap();
    let (_, newest) = directory_of(&admin, &t.fleet.stash_address(0).unwrap()).await;
    let held = SignedDirectory::take(None, newest, admin.identity.array, &admin.array_key).unwrap();
    let (name, head) = held.directory().head("disk", None).unwrap();
    let shares = head.offline.as_ref().unwrap();
    assert_eq!((shares.threshold, shares.holders.len()), (2, 3));
    let share = || store::GetShare { image: name.clone(), manifest: head.manifest };

    // A stash that asks for others' shares, a person, a boot server.
    let stash = Credentials::load(&file_of(&t.fleet.stashes[0].dir, Role::Stash)).unwrap();
    for member in [&stash, &admin] {
        for number in 0..3 {
            let answer = ask(member, &t.fleet.stash_address(number).unwrap(), share()).await;
            assert!(matches!(answer, Err(CallError::Refused(Refusal::NotAllowed(_)))), "{answer:?}");
        }
    }
    let boot = join(&t, &["--boot"]).await;
    let anonymous = join(&t, &["--installer"]).await;
    for member in [&boot, &anonymous] {
        let answer = ask(member, &t.fleet.stash_address(1).unwrap(), share()).await;
        assert!(matches!(answer, Err(CallError::Refused(Refusal::NotAdmitted(_)))), "{answer:?}");
    }
    // Nobody but the controller plants one.
    let approved = join(&t, &["--installer", "--host", "lab-01"]).await;
    let mine = ask(&approved, &t.fleet.stash_address(1).unwrap(), share()).await.unwrap().share;
    let plant = store::PutShare { manifest: head.manifest, share: mine.clone() };
    for member in [&stash, &approved] {
        let answer = ask(member, &t.fleet.stash_address(2).unwrap(), plant.clone()).await;
        assert!(matches!(answer, Err(CallError::Refused(Refusal::NotAllowed(_)))), "{answer:?}");
    }
    // One share is not the key, and opens nothing.
    assert!(images::shares::combine(std::slice::from_ref(&mine)).is_err());
    // What a stash has on its disk is its own share, and not the key or another's.
    let others: Vec<_> = shares.holders.iter().filter(|(node, _)| *node != stash.identity.node).collect();
    assert_eq!(others.len(), 2);

    // A stash may not speak for another one either.
    let socket = endpoint::client(tls::client(&stash, tls::ALPN_MEMBER).unwrap()).unwrap();
    let other = server_name(Role::Stash, others[0].0);
    let own_address = t.fleet.stash_address(0).unwrap();
    assert!(rpc::connect_any(&socket, &[own_address], &other).await.is_err());
}

/// A stash that claims a directory which this array never signed changes nothing: the controller goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_stash_cannot_make_the_controller_stand_down() {
    let t = start(1);
    let liar = join(&t, &[]).await;
    let array = liar.identity.array;
    let forged = Directory::next(None, array, Line::default(), Epoch(1_000_000), Contents::default());
    let forged = Arc::new(forged.sign(&ArrayKey::from_seed(&[7; 32]).unwrap()));
    let server = tls::server(&liar, tls::Admit::Members, &[tls::ALPN_MEMBER]).unwrap();
    let socket =
        endpoint::server("127.0.0.1:0".parse().unwrap(), server, tls::client(&liar, tls::ALPN_MEMBER).unwrap())
            .unwrap();
    let port = socket.local_addr().unwrap().port();
    let shown = Arc::new(tokio::sync::Notify::new());
    let (told, seen) = (forged.clone(), shown.clone());
    tokio::spawn(rpc::serve(socket.clone(), array, move |_, request, _| {
        let (told, seen) = (told.clone(), seen.clone());
        async move {
            match request {
                Request::GetDirectory(_) => {
                    seen.notify_one();
                    let reply = TheDirectory { mark: Some(told.mark()), update: Some(told.whole()) };
                    Answer::to::<GetDirectory>(Ok(reply))
                }
                _ => Answer::refuse(Refusal::Invalid("no".into())),
            }
        }
    }));
    let controller = rpc::connect_any(&socket, &liar.controller, protocol::identity::CONTROLLER_NAME).await.unwrap();
    let beat =
        Heartbeat { port, capacity: 1 << 30, used: 0, fragments: 0, directory: Some(forged.mark()), lost: Vec::new() };
    rpc::call(&controller, beat, &[]).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(30), shown.notified()).await.expect("the controller looks");
    // It has seen the forgery by the time it answers the next change.
    change_something(&t, "one");
    assert!(t.fleet.ctl(&["status"]).unwrap()["stands_down"].is_null());
}
