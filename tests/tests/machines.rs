//! Machines that boot from the network, as the controller sees them: real messages from a boot server, an installer and a stash.

use std::fs;

use protocol::identity::{CONTROLLER_NAME, Role};
use protocol::io::credentials::Credentials;
use protocol::io::rpc::{self, CallError};
use protocol::io::words;
use protocol::io::{endpoint, tls};
use protocol::machine::{Facts, Firmware, Mac, Uuid};
use protocol::message::boot::{
    AskBoot, BootOrder, DeployStage, DiskPolicy, Finishing, GetDeployment, Progress, TakeBoot, Told,
};
use protocol::message::image::{GetImage, Report, Word};
use protocol::message::{Call, Refusal};
use protocol::ticket::Ticket;
use tests::fleet::{TestFleet, start};
use xtask::sample;

async fn ask<C: Call>(member: &Credentials, message: C) -> Result<C::Reply, CallError> {
    let endpoint = endpoint::client(tls::client(member, tls::ALPN_MEMBER).unwrap()).unwrap();
    let connection = rpc::connect_any(&endpoint, &member.controller, CONTROLLER_NAME).await?;
    Ok(rpc::call(&connection, message, &[]).await?.0)
}

async fn join(ticket: &str) -> Credentials {
    Credentials::join(&ticket.parse::<Ticket>().unwrap()).await.unwrap()
}

fn machine(number: u8) -> Facts {
    let uuid = Some(Uuid([number; 16]));
    Facts { uuid, macs: vec![Mac([2, 0, 0, 0, 0, number])], firmware: Some(Firmware::Bios), ..Facts::default() }
}

fn state(t: &TestFleet, host: &str) -> String {
    let all = t.fleet.ctl(&["deploy", "list"]).unwrap();
    let mine = all.as_array().unwrap().iter().rev().find(|d| d["host"] == host).unwrap();
    mine["state"].as_str().unwrap().into()
}

fn publish(t: &TestFleet) {
    for name in ["one", "two"] {
        let image = t.file(name);
        fs::write(&image, sample::noise(3, 100_000)).unwrap();
        t.fleet.publish(&image, &["--name", name, "--tag", "1"]).unwrap();
    }
}

/// What `coe-ctl` says when it refuses.
fn refused(t: &TestFleet, args: &[&str]) -> String {
    format!("{:#}", t.fleet.ctl(args).unwrap_err())
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_first_request_to_a_joined_stash() {
    let t = start(1);
    publish(&t);
    let boot = join(&t.fleet.ticket(&["--boot"]).unwrap()).await;
    let request = |number| AskBoot { facts: machine(number), is_dry_run: false };

    // Nobody knows it: it is noted, and hears nothing. Only asking what would be said notes nothing.
    let look = AskBoot { facts: machine(9), is_dry_run: true };
    assert!(!ask(&boot, look).await.unwrap().install);
    let order = ask(&boot, request(1)).await.unwrap();
    assert_eq!(order, BootOrder { host: "host-1".into(), install: false });
    let hosts = t.fleet.ctl(&["host", "list"]).unwrap();
    assert_eq!((hosts.as_array().unwrap().len(), &hosts[0]["approved"]), (1, &false.into()));
    let no_ticket = ask(&boot, TakeBoot { facts: machine(1) }).await.unwrap_err();
    assert!(matches!(no_ticket, CallError::Refused(Refusal::NotAdmitted(_))), "{no_ticket}");
    assert!(refused(&t, &["deploy", "one:1", "--host", "host-1"]).contains("not approved"));

    // Approved, it still has nothing to do until something is deployed.
    t.fleet.ctl(&["host", "approve", "02:00:00:00:00:01"]).unwrap();
    t.fleet.ctl(&["host", "label", "host-1", "--name", "pc-1", "--group", "lab"]).unwrap();
    assert!(!ask(&boot, request(1)).await.unwrap().install);
    assert!(refused(&t, &["deploy", "nothing", "--host", "pc-1"]).contains("not found"));
    assert!(refused(&t, &["deploy", "one:1", "--host", "pc-1", "--hostname", "a b"]).contains("host name"));
    assert!(refused(&t, &["deploy", "one:1", "--host", "pc-1", "--stash", "64MiB"]).contains("256 MiB"));
    let plan =
        ["deploy", "one", "--group", "lab", "--hostname", "lab-{n:02}", "--stash", "1GiB", "--disk", "serial=S1"];
    t.fleet.ctl(&plan).unwrap();
    assert!(refused(&t, &plan).contains("cancel it first"));
    assert!(ask(&boot, request(1)).await.unwrap().install);

    // The installer gets its deployment, that image, and no other.
    let taken = ask(&boot, TakeBoot { facts: machine(1) }).await.unwrap();
    let installer = join(&taken.ticket).await;
    assert_eq!(installer.identity.role, Role::Installer);
    let again = Credentials::join(&taken.ticket.parse::<Ticket>().unwrap()).await;
    assert!(again.is_err(), "the right is good once");
    let full = Facts { serial: Some("SN-1".into()), product: "Example 9000".into(), ..machine(1) };
    let deployment = ask(&installer, GetDeployment { facts: full }).await.unwrap();
    assert_eq!((deployment.host.as_str(), deployment.hostname.as_deref()), ("pc-1", Some("lab-01")));
    assert_eq!(deployment.disk, DiskPolicy::Serial("S1".into()));
    assert_eq!(state(&t, "pc-1"), "installing");
    let get = |name: &str| GetImage { name: name.into(), tag: Some("1".into()) };
    ask(&installer, get("one")).await.unwrap();
    for (member, name) in [(&installer, "two"), (&boot, "one")] {
        let other = ask(member, get(name)).await.unwrap_err();
        assert!(matches!(other, CallError::Refused(Refusal::NotAdmitted(_))), "{other}");
    }

    // It stops, and goes on when the admin says so.
    let stopped = Progress { stage: DeployStage::Stopped, stopped: Some("which disk?".into()), ..Progress::default() };
    assert_eq!(ask(&installer, stopped.clone()).await.unwrap(), Told::GoOn);
    assert_eq!(state(&t, "pc-1"), "stopped");
    assert!(!ask(&boot, request(1)).await.unwrap().install, "it waits for the admin's word");
    t.fleet.ctl(&["deploy", "retry", "1"]).unwrap();
    assert_eq!(ask(&installer, stopped).await.unwrap(), Told::Again);

    // Cut off at the very end, it hears at its next start what it was about to finish.
    let finishing = Finishing { serial: "S1".into(), head: [7; 32], rest: [8; 32] };
    let said = Progress { stage: DeployStage::Finish, finishing: Some(finishing.clone()), ..Progress::default() };
    assert_eq!(ask(&installer, said).await.unwrap(), Told::GoOn);
    let deployment = ask(&installer, GetDeployment { facts: machine(1) }).await.unwrap();
    assert_eq!(deployment.finishing, Some(finishing));

    // Installed when it says so; deployed when the machine's stash has joined.
    let deployment = ask(&installer, GetDeployment { facts: machine(1) }).await.unwrap();
    let report = Report { image: deployment.image, error: None, lied: Vec::new(), written: 100_000, took_ms: 1 };
    ask(&installer, words::say(Word::Ended(report))).await.unwrap();
    assert_eq!(state(&t, "pc-1"), "installed");
    assert!(!ask(&boot, request(1)).await.unwrap().install);
    let late = ask(&installer, get("one")).await.unwrap_err();
    assert!(matches!(late, CallError::Refused(Refusal::NotAdmitted(_))), "the right ends with the deployment: {late}");
    let stash = join(&deployment.stash.unwrap().ticket).await;
    assert_eq!(stash.identity.role, Role::Stash);
    assert_eq!(state(&t, "pc-1"), "deployed");
    let host = t.fleet.ctl(&["host", "show", "pc-1"]).unwrap();
    assert_eq!((&host["serial"], &host["product"]), (&"SN-1".into(), &"Example 9000".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_of_new_machines_and_a_change_of_mind() {
    let t = start(1);
    publish(&t);
    let boot = join(&t.fleet.ticket(&["--boot"]).unwrap()).await;
    let request = |number| AskBoot { facts: machine(number), is_dry_run: false };
    assert!(!ask(&boot, request(1)).await.unwrap().install);
    t.fleet.ctl(&["deploy", "one:1", "--auto-approve"]).unwrap();
    assert!(!ask(&boot, request(1)).await.unwrap().install, "this one was known before, and waits for a word");
    assert!(ask(&boot, request(2)).await.unwrap().install);
    t.fleet.ctl(&["deploy", "one:1", "--auto-approve", "--for", "0"]).unwrap();
    assert!(!ask(&boot, request(3)).await.unwrap().install);

    // Cancelled while the installer runs: it is told.
    let taken = ask(&boot, TakeBoot { facts: machine(2) }).await.unwrap();
    let installer = join(&taken.ticket).await;
    ask(&installer, GetDeployment { facts: machine(2) }).await.unwrap();
    t.fleet.ctl(&["deploy", "cancel", "1"]).unwrap();
    assert_eq!(ask(&installer, Progress::default()).await.unwrap(), Told::Cancelled);
    assert!(!ask(&boot, request(2)).await.unwrap().install);
    assert!(refused(&t, &["deploy", "cancel", "1"]).contains("cancelled"));

    // Not before its time.
    t.fleet.ctl(&["deploy", "one:1", "--host", "host-2", "--at", "00:00"]).unwrap();
    assert!(!ask(&boot, request(2)).await.unwrap().install);

    // A list, and machines in it that are known already.
    let list = t.file("hosts.csv");
    fs::write(&list, "name,mac,uuid,group\nroom-1,02:00:00:00:00:03,,room\nroom-7,02:00:00:00:00:07,,room\n").unwrap();
    t.fleet.ctl(&["host", "import", list.to_str().unwrap()]).unwrap();
    let hosts = t.fleet.ctl(&["host", "list"]).unwrap();
    assert_eq!(hosts.as_array().unwrap().len(), 4, "one of them asked to boot before: {hosts}");
    t.fleet.ctl(&["deploy", "two:1", "--group", "room"]).unwrap();
    assert!(ask(&boot, request(7)).await.unwrap().install, "known by its address only, until it says its UUID");
    t.fleet.ctl(&["host", "forget", "room-7"]).unwrap();
    assert!(!ask(&boot, request(7)).await.unwrap().install);
}
