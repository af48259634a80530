//! Who is not let in: each kind of stranger, against real endpoints.

use images::fragment::{FragmentHeader, FragmentId};
use images::parity::Geometry;
use images::{FragmentDigest, SegmentId};
use protocol::identity::{CONTROLLER_NAME, Role, server_name};
use protocol::io::credentials::{Credentials, file_of};
use protocol::io::rpc::{self, CallError};
use protocol::io::{endpoint, tls};
use protocol::message::{Call, Refusal, fetch, member, publish, store};
use protocol::ticket::Ticket;
use tests::fleet::{TestFleet, start};

async fn ask<C: Call>(member: &Credentials, address: &str, name: &str, message: C) -> Result<C::Reply, CallError> {
    let endpoint = endpoint::client(tls::client(member, tls::ALPN_MEMBER).unwrap()).unwrap();
    let connection = rpc::connect_any(&endpoint, &[address.to_string()], name).await?;
    Ok(rpc::call(&connection, message, &[]).await?.0)
}

fn admin(t: &TestFleet) -> Credentials {
    Credentials::load(&file_of(&t.fleet.dir().join("home"), Role::Admin)).unwrap()
}

fn stash(t: &TestFleet) -> Credentials {
    Credentials::load(&file_of(&t.fleet.stashes[0].dir, Role::Stash)).unwrap()
}

fn begin() -> publish::Begin {
    publish::Begin {
        name: "x".into(),
        tag: None,
        geometry: None,
        layout: Some(publish::Layout::Mirror),
        disk_len: 1,
        offline: false,
    }
}

fn heartbeat() -> member::Heartbeat {
    member::Heartbeat {
        port: 1,
        capacity: 1,
        used: 0,
        fragments: 0,
        fold: 0,
        directory: None,
        lost: Vec::new(),
        aside: None,
        wish: None,
        serves_installers: false,
    }
}

fn put() -> store::PutFragment {
    let header = FragmentHeader {
        id: FragmentId { segment: SegmentId([0; 32]), piece: 0 },
        geometry: Geometry::new(1, 0).unwrap(),
        sealed_len: 0,
        digest: FragmentDigest::of(b""),
    };
    store::PutFragment { owner: store::OWNER_IMAGES, header }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_more_than_their_certificate_permits() {
    let (t, other) = (start(1), start(0));
    let (admin, stash) = (admin(&t), stash(&t));
    let controller = admin.controller[0].clone();
    let nodes = t.fleet.ctl(&["nodes"]).unwrap();
    let stash_address = nodes[0]["addresses"][0].as_str().unwrap().to_string();
    let stash_name = server_name(Role::Stash, stash.identity.node);

    // A role may say only its own messages.
    let refused = ask(&stash, &controller, CONTROLLER_NAME, begin()).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(Refusal::NotAllowed(Role::Stash))), "{refused}");
    assert!(std::error::Error::source(&refused).is_none(), "a person reads it once");
    let refused = ask(&admin, &controller, CONTROLLER_NAME, heartbeat()).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(Refusal::NotAllowed(Role::Admin))), "{refused}");
    for member in [&stash, &admin] {
        let refused = ask(member, &stash_address, &stash_name, put()).await.unwrap_err();
        assert!(matches!(refused, CallError::Refused(Refusal::NotAllowed(_))), "{refused}");
    }
    // And a member may read: ciphertext is no secret among members.
    let fragment = fetch::GetFragment { fragment: FragmentId { segment: SegmentId([0; 32]), piece: 0 } };
    let missing = ask(&stash, &stash_address, &stash_name, fragment).await.unwrap_err();
    assert!(matches!(missing, CallError::Refused(Refusal::NotFound(_))), "{missing}");

    // Another array's certificate opens nothing, at the controller or at a stash.
    let foreign = Credentials::load(&file_of(&other.fleet.dir().join("home"), Role::Admin)).unwrap();
    for (address, name) in [(&controller, CONTROLLER_NAME), (&stash_address, stash_name.as_str())] {
        let refused = ask(&foreign, address, name, begin()).await.unwrap_err();
        assert!(matches!(refused, CallError::Connection(_)), "{refused:?}");
        assert!(refused.to_string().contains("another array"), "{refused}");
    }
    // Nor does it when its owner believes in this array's authority: then it is the server that refuses.
    let mixed = Credentials { authority: admin.authority.clone(), ..foreign.clone() };
    for (address, name) in [(&controller, CONTROLLER_NAME), (&stash_address, stash_name.as_str())] {
        let refused = ask(&mixed, address, name, begin()).await.unwrap_err();
        assert!(matches!(refused, CallError::Connection(_)), "{refused:?}");
    }
    // A member is asked for by name: another member at its address does not pass for it.
    let impostor = server_name(Role::Stash, admin.identity.node);
    let refused = ask(&admin, &stash_address, &impostor, put()).await.unwrap_err();
    assert!(matches!(refused, CallError::Connection(_)), "{refused:?}");
}

/// A TLS client that knows the authority and shows no certificate.
fn bare(admin: &Credentials, alpn: &[u8]) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(admin.authority.clone().into()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_without_a_certificate_may_only_enroll() {
    let t = start(1);
    let admin = admin(&t);
    let nodes = t.fleet.ctl(&["nodes"]).unwrap();
    let stash_address = nodes[0]["addresses"][0].as_str().unwrap().to_string();
    let stash_name = server_name(Role::Stash, stash(&t).identity.node);
    let places = [(admin.controller[0].clone(), CONTROLLER_NAME.to_string()), (stash_address, stash_name)];
    for (address, name) in &places {
        let endpoint = endpoint::client(bare(&admin, tls::ALPN_MEMBER)).unwrap();
        let result = async {
            let connection = rpc::connect_any(&endpoint, std::slice::from_ref(address), name).await?;
            rpc::call(&connection, begin(), &[]).await.map(drop)
        };
        let refused = result.await.unwrap_err();
        assert!(!matches!(refused, CallError::Refused(_)), "not even a stream is answered: {refused:?}");
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }
    // Over the door for strangers only a ticket counts.
    let endpoint = endpoint::client(bare(&admin, tls::ALPN_ENROLL)).unwrap();
    let connection = rpc::connect_any(&endpoint, &admin.controller, CONTROLLER_NAME).await.unwrap();
    let refused = rpc::call(&connection, begin(), &[]).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(Refusal::NotAdmitted(_))), "{refused:?}");
    // The stash has no such door.
    let refused =
        rpc::connect_any(&endpoint, &places[1..].iter().map(|p| p.0.clone()).collect::<Vec<_>>(), &places[1].1).await;
    assert!(refused.is_err());

    // HTTPS: no certificate, and a stash's.
    let url = format!("https://{CONTROLLER_NAME}:{}/v1/status", admin.controller[0].rsplit_once(':').unwrap().1);
    let client = |config: rustls::ClientConfig| {
        let address = admin.controller[0].parse().unwrap();
        reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .resolve(CONTROLLER_NAME, address)
            .no_proxy()
            .build()
            .unwrap()
    };
    assert!(client(bare(&admin, b"http/1.1")).get(&url).send().await.is_err());
    let answer = client(tls::client(&stash(&t), b"http/1.1").unwrap()).get(&url).send().await.unwrap();
    assert_eq!(answer.status(), 403);
    let openapi = client(tls::client(&admin, b"http/1.1").unwrap())
        .get(url.replace("/v1/status", "/openapi.json"))
        .send()
        .await
        .unwrap();
    let openapi: serde_json::Value = openapi.json().await.unwrap();
    assert!(openapi["paths"]["/v1/images/{name}/{tag}"]["delete"].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_work_once_in_time_and_in_their_own_array() {
    let (t, other) = (start(0), start(0));
    let ticket: Ticket = t.fleet.ticket(&[]).unwrap().parse().unwrap();
    Credentials::join(&ticket).await.unwrap();
    let used = Credentials::join(&ticket).await.err().map(|e| format!("{:#}", anyhow::Error::new(e)));
    assert!(used.as_ref().is_some_and(|e| e.contains("used or expired")), "{used:?}");

    let expired: Ticket = t.fleet.ticket(&["--minutes", "0"]).unwrap().parse().unwrap();
    assert!(Credentials::join(&expired).await.is_err());

    let guessed = Ticket { secret: [9; 16], ..ticket.clone() };
    assert!(Credentials::join(&guessed).await.is_err());

    // A ticket names its array: a controller of another one is recognised before anything is told to it.
    let there: Ticket = other.fleet.ticket(&[]).unwrap().parse().unwrap();
    let astray =
        Ticket { addresses: there.addresses.clone(), ..t.fleet.ticket(&[]).unwrap().parse::<Ticket>().unwrap() };
    let error = Credentials::join(&astray).await.err().map(|e| format!("{:#}", anyhow::Error::new(e)));
    assert!(error.as_ref().is_some_and(|e| e.contains("another array")), "{error:?}");
    Credentials::join(&there).await.unwrap();

    // So is a ticket of another array by a boot file that was signed for one; nothing is told to that array, whose ticket stays good.
    let foreign = other.fleet.ticket(&["--installer"]).unwrap();
    let mut deploy = t.fleet.command("coe-installer");
    deploy.args(["deploy", "--array", &astray.array.to_string(), "--ticket", &foreign, "--home"]);
    let out = deploy.arg(t.file("installer")).output().unwrap();
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("signed for another"), "{out:?}");
    Credentials::join(&foreign.parse().unwrap()).await.unwrap();

    // A ticket for one role does not give another.
    let installer = t.fleet.ticket(&["--installer"]).unwrap();
    let mut join = t.fleet.command("coe-stash");
    join.args(["join", &installer, "--size", "1GiB", "--dir"]).arg(t.file("stash"));
    let out = join.output().unwrap();
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("role installer"));
}
