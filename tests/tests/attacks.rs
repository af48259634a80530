//! Attacks on the mirror link, by members of the array with real certificates, against real stashes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use controller::io::authority::{Authority, Secrets};
use images::keys::HolderSecret;
use images::manifest::ArrayKey;
use images::{ArrayId, NodeId, wire};
use protocol::directory::{Contents, Directory, Epoch, Line, Mark, SignedDirectory, Update};
use protocol::identity::{CONTROLLER_NAME, Identity, Role, STASH_NAME, delegate_domain, server_name};
use protocol::io::array::Array;
use protocol::io::credentials::{Credentials, file_of, request_certificate};
use protocol::io::directory::DirectoryKeeper;
use protocol::io::issue::{Admitted, Delegate, member_params};
use protocol::io::rpc::{self, Answer, CallError};
use protocol::io::statement::Statement;
use protocol::io::words;
use protocol::io::{endpoint, tls};
use protocol::message::boot::GetDelegation;
use protocol::message::image::{LeaveReport, REPORT_PURPOSE, Report, Word};
use protocol::message::member::{GetDirectory, Heartbeat, OfferDirectory, TheDirectory};
use protocol::message::{Call, Refusal, Request, store};
use protocol::ticket::Ticket;
use rcgen::{Issuer, KeyPair, PublicKeyData as _, SanType};
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
        for member in [&stash, &admin] {
            let answer = ask(member, &address, OfferDirectory { update: update.clone() }).await.unwrap();
            assert_eq!(answer.mark, Some(now), "{what}");
        }
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
    let keeper = DirectoryKeeper::in_home(home.path(), &admin);
    let found = Array::reach(socket, &admin, &keeper, &[at]).await.unwrap();
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
    let share = || store::GetShare { image: name.clone(), manifest: head.manifest, order: None };

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
    let given = ask(&approved, &t.fleet.stash_address(1).unwrap(), share()).await.unwrap();
    let store::TheShare::Given { share: mine, token: None, .. } = given else { panic!("{given:?}") };
    let plant = store::PutShare { manifest: head.manifest, share: mine.clone(), secret: HolderSecret([0; 32]) };
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

/// A boot server that acts for an absent controller is held to what the controller gave it.
#[tokio::test(flavor = "multi_thread")]
async fn a_boot_server_admits_only_what_it_may() {
    setup::need(setup::DISKS).unwrap();
    let mut t = start(3);
    let image = t.file("disk.img");
    sample::disk(&image, 2_000_000).unwrap();
    t.fleet.publish(&image, &["--data", "2", "--parity", "1"]).unwrap();
    let user_data = t.file("user-data");
    std::fs::write(&user_data, "#cloud-config\n").unwrap();
    for (name, serial) in [("lab-01", "S1"), ("lab-02", "S2"), ("lab-03", "S3")] {
        t.fleet.approve_host(name, serial).unwrap();
    }
    for name in ["lab-01", "lab-02"] {
        let plan = ["deploy", "disk:1", "--host", name, "--hostname", name, "--stash", "1GiB", "--cloud-init"];
        t.fleet.ctl(&[&plan[..], &[user_data.to_str().unwrap()]].concat()).unwrap();
    }
    let (boot, denied) = (join(&t, &["--boot"]).await, join(&t, &["--boot", "--offline", "deny"]).await);
    t.fleet.wait_until_told().unwrap();
    let admin = Credentials::load(&file_of(&t.fleet.dir().join("home"), Role::Admin)).unwrap();
    let addresses: Vec<String> = (0..3).map(|n| t.fleet.stash_address(n).unwrap()).collect();
    let (_, newest) = directory_of(&admin, &addresses[0]).await;
    let held = SignedDirectory::take(None, newest, admin.identity.array, &admin.array_key).unwrap();
    let known = |name: &str| {
        let (number, host) = held.directory().hosts.iter().find(|(_, host)| host.name == name).unwrap();
        (*number, host.planned.clone())
    };
    let (number, plan) = known("lab-01");
    let (neighbour, neighbours_plan) = known("lab-02");
    let (other, nothing) = known("lab-03");
    let (plan, neighbours_plan) = (plan.unwrap(), neighbours_plan.unwrap());
    let planned = plan.id;
    assert!(nothing.is_none());
    assert_eq!(plan.user_data, neighbours_plan.user_data, "it is the same, and there once");
    let (name, head) = held.directory().head("disk", None).unwrap();
    let share = store::GetShare { image: name.clone(), manifest: head.manifest, order: None };

    // The right is given to the one, and not to the other, nor to anybody else.
    let ask_controller = |member: Credentials, csr: Vec<u8>| async move {
        let endpoint = endpoint::client(tls::client(&member, tls::ALPN_MEMBER).unwrap()).unwrap();
        let connection = rpc::connect_any(&endpoint, &member.controller, CONTROLLER_NAME).await.unwrap();
        Ok::<_, CallError>(rpc::call(&connection, GetDelegation { csr }, &[]).await?.0.certificate)
    };
    let (key, csr) = Delegate::request().unwrap();
    let given = ask_controller(boot.clone(), csr.clone()).await.unwrap().expect("it was permitted");
    assert!(ask_controller(denied.clone(), csr.clone()).await.unwrap().is_none());
    let refused = ask_controller(admin.clone(), csr.clone()).await;
    assert!(matches!(refused, Err(CallError::Refused(Refusal::NotAllowed(_)))), "{refused:?}");

    let folder = controller::io::folder::Folder::at(t.fleet.controller_dir());
    let authority = folder.authority().unwrap();
    let foreign = Secrets::create("foreign", &[1; 64]).unwrap().open().unwrap();
    t.fleet.kill_controller();

    let admit = |delegate: &Delegate, host, deployment| {
        let machine = KeyPair::generate().unwrap();
        let admitted = Admitted { host, deployment };
        let csr = request_certificate(&machine).unwrap();
        let (node, certificate, own) = delegate.admit(&csr, admitted, SystemTime::now()).unwrap();
        let identity = Identity { array: boot.identity.array, role: Role::Installer, node };
        Credentials { identity, certificate, chain: vec![own], key: machine.serialize_der(), ..boot.clone() }
    };
    let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
    let delegate = |by: &Authority, boot_server: &Credentials, from, until| {
        let certificate = by.delegate(boot_server.identity.node, &csr, from, until).unwrap();
        Delegate::new(boot_server, certificate, &key).unwrap()
    };
    let good = Delegate::new(&boot, given.clone(), &key).unwrap();
    let right = (Some(number), Some(planned));

    // What no stash even talks to.
    let expired = delegate(&authority, &boot, now - 20 * day, now - day);
    let early = delegate(&authority, &boot, now + day, now + 2 * day);
    let of_foreign = delegate(&foreign, &boot, now - day, now + day);
    let rogue = Delegate::new(&denied, denied.certificate.clone(), &denied.key).unwrap();
    let in_anothers_name = Delegate::new(&denied, given.clone(), &key).unwrap();
    let cases = [
        ("an expired delegation", &expired),
        ("one of tomorrow", &early),
        ("another authority's", &of_foreign),
        ("a boot server without one, with its own certificate in its place", &rogue),
        ("one that names installers of another boot server", &in_anothers_name),
    ];
    for (what, delegate) in cases {
        let installer = admit(delegate, right.0, right.1);
        let answer = ask(&installer, &addresses[0], share.clone()).await;
        assert!(matches!(answer, Err(CallError::Connection(_))), "{what}: {answer:?}");
    }
    // In its own name, which a constraint on names below it permits, too, it is nobody.
    let machine = KeyPair::generate().unwrap();
    let identity = Identity { role: Role::Installer, ..boot.identity };
    let mut params = member_params(identity, Admitted { host: right.0, deployment: None }, None, now, day).unwrap();
    params.subject_alt_names[0] = SanType::DnsName(delegate_domain(boot.identity.node).try_into().unwrap());
    let issuer = Issuer::from_ca_cert_der(&given.as_slice().into(), KeyPair::try_from(key.as_slice()).unwrap());
    let certificate = params.signed_by(&machine, &issuer.unwrap()).unwrap().der().to_vec();
    let own =
        Credentials { identity, certificate, chain: vec![given.clone()], key: machine.serialize_der(), ..boot.clone() };
    let answer = ask(&own, &addresses[0], share.clone()).await;
    assert!(answer.is_err() && !matches!(answer, Err(CallError::Refused(_))), "{answer:?}");

    // With a good one, a boot server makes no stash, no person and no installer as if the controller had admitted it.
    for role in [Role::Stash, Role::Admin, Role::Controller, Role::Installer] {
        let machine = KeyPair::generate().unwrap();
        let node = NodeId::of_public_key(&machine.subject_public_key_info());
        let identity = Identity { array: boot.identity.array, role, node };
        let issuer = Issuer::from_ca_cert_der(&given.as_slice().into(), KeyPair::try_from(key.as_slice()).unwrap());
        let params = member_params(identity, Admitted::default(), None, now, day).unwrap();
        let certificate = params.signed_by(&machine, &issuer.unwrap()).unwrap().der().to_vec();
        let key = machine.serialize_der();
        let forged = Credentials { identity, certificate, chain: vec![given.clone()], key, ..boot.clone() };
        let answer = ask(&forged, &addresses[0], GetDirectory { have: None }).await;
        assert!(matches!(answer, Err(CallError::Connection(_))), "{role}: {answer:?}");
    }
    // What a stash hears, and refuses.
    for (host, deployment) in
        [(Some(number), None), (Some(number), Some(planned + 1)), (Some(other), Some(planned)), (None, None)]
    {
        let answer = ask(&admit(&good, host, deployment), &addresses[0], share.clone()).await;
        assert!(
            matches!(answer, Err(CallError::Refused(Refusal::NotAdmitted(_)))),
            "{host:?} {deployment:?}: {answer:?}"
        );
    }
    let installer = admit(&good, right.0, right.1);
    ask(&installer, &addresses[0], share.clone()).await.expect("this is what it may");

    // An installer opens its own order, and no other one, not of the same image either.
    let home = tempfile::tempdir().unwrap();
    let reach = |member: Credentials| {
        let keeper = DirectoryKeeper::open(home.path().join(member.identity.node.to_string()), &member);
        let via = addresses.clone();
        async move {
            let socket = endpoint::client(tls::client(&member, tls::ALPN_MEMBER).unwrap()).unwrap();
            Array::reach(socket, &member, &keeper, &via).await.unwrap()
        }
    };
    let array = reach(installer.clone()).await;
    let released = array.key(name, head, Some(&plan.order)).await.unwrap();
    let order = plan.read(held.directory(), &released.order.unwrap()).unwrap();
    assert_eq!((order.hostname.as_deref(), order.user_data.as_deref()), (Some("lab-01"), Some("#cloud-config\n")));
    assert_eq!(order.stash.unwrap().ticket.parse::<Ticket>().unwrap().role, Role::Stash);
    assert!(array.key(name, head, Some(&neighbours_plan.order)).await.is_err());
    let of_neighbour = reach(admit(&good, Some(neighbour), Some(neighbours_plan.id))).await;
    assert!(of_neighbour.key(name, head, Some(&plan.order)).await.is_err());
    of_neighbour.key(name, head, Some(&neighbours_plan.order)).await.unwrap();

    // A deployment that is done gets nothing more, whoever admits for it; a word about another's deployment changes nothing.
    let report = Report { image: name.clone(), error: None, lied: Vec::new(), written: 0, took_ms: 0 };
    let word = words::say(Word::Ended(report));
    let say = |member: &Credentials| Statement::sign(member, REPORT_PURPOSE, wire::encode(&word)).unwrap();
    let bystander = admit(&good, Some(other), Some(planned + 1));
    let left = ask(&bystander, &addresses[0], LeaveReport { statement: say(&bystander) }).await.unwrap();
    assert!(!left.as_last_word, "nothing of that number is planned for its machine");
    let stolen = ask(&bystander, &addresses[0], LeaveReport { statement: say(&installer) }).await;
    assert!(matches!(stolen, Err(CallError::Refused(Refusal::Invalid(_)))), "{stolen:?}");
    ask(&installer, &addresses[0], share.clone()).await.expect("still to be done");
    let left = ask(&installer, &addresses[0], LeaveReport { statement: say(&installer) }).await.unwrap();
    assert!(left.as_last_word);
    for again in [&installer, &admit(&good, right.0, right.1)] {
        let answer = ask(again, &addresses[0], share.clone()).await;
        assert!(matches!(answer, Ok(store::TheShare::Done(_))), "{answer:?}");
    }
    ask(&installer, &addresses[1], share.clone()).await.expect("this stash was not told");

    // Taken back, the right is worth nothing from the moment on in which a stash hears of it.
    t.fleet.start_controller().unwrap();
    t.fleet.wait_until_up(3).unwrap();
    // What was said meanwhile is heard; and only of the machine that it was said of.
    let state = |name: &str| {
        let all = t.fleet.ctl(&["deploy", "list"]).unwrap();
        all.as_array().unwrap().iter().find(|d| d["host"] == name).unwrap()["state"].clone()
    };
    xtask::fleet::wait_for("the word of the installer", || state("lab-01") == "installed").unwrap();
    assert_eq!(state("lab-02"), "waiting");
    t.fleet.ctl(&["boot", "offline", &boot.identity.node.to_string(), "deny"]).unwrap();
    t.fleet.wait_until_told().unwrap();
    let late = ask(&admit(&good, right.0, right.1), &addresses[1], share).await;
    assert!(matches!(late, Err(CallError::Refused(Refusal::NotAdmitted(_)))), "{late:?}");
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
    let beat = Heartbeat {
        port,
        capacity: 1 << 30,
        used: 0,
        fragments: 0,
        fold: 0,
        directory: Some(forged.mark()),
        lost: Vec::new(),
        aside: None,
        wish: None,
        serves_installers: false,
    };
    rpc::call(&controller, beat, &[]).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(30), shown.notified()).await.expect("the controller looks");
    // It has seen the forgery by the time it answers the next change.
    change_something(&t, "one");
    assert!(t.fleet.ctl(&["status"]).unwrap()["stands_down"].is_null());
}
