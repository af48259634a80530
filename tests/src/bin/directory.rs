//! What the directory costs: its bytes, those of a change, and how long one takes to be everywhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use images::manifest::{ArrayKey, PageRef};
use images::parity::Geometry;
use images::shares::ShareDigest;
use images::{ArrayId, GroupId, ManifestId, NodeId, wire};
use protocol::directory::{
    Common, Contents, Directory, Epoch, Group, Head, Host, Line, Member, Shares, SignedDirectory,
};
use protocol::machine::{Mac, Uuid};
use tests::world::{Rng, spread};

const ARRAY: ArrayId = ArrayId([7; 32]);
const HEARTBEAT: Duration = Duration::from_secs(5);

/// As many stashes with labels, as many approved machines, groups of 6 + 2 for each eight stashes, fifty images.
fn contents(members: u64) -> Contents {
    let mut rng = Rng::new(members);
    let node = |n: u64| NodeId(Rng::new(n).bytes(16).try_into().expect("16 bytes"));
    let member = |n: u64| {
        let address = format!("10.{}.{}.{}:38211", n >> 16, (n >> 8) & 255, n & 255).parse().expect("an address");
        (node(n), Member { addresses: vec![address], capacity: 40 << 30 })
    };
    let geometry = Geometry::new(6, 2).expect("a geometry");
    let group = |n: u64| (GroupId(n as u32), Group { geometry, members: (0..8).map(|i| node(n * 8 + i)).collect() });
    let head = |n: u64| {
        let holders = (0..8).map(|i| (node(n * 8 + i), ShareDigest([n as u8; 32]))).collect();
        let head = Head {
            manifest: ManifestId([n as u8; 32]),
            number: n,
            root: PageRef { digest: [n as u8; 32], len: 4000, group: GroupId(1) },
            sealed_key: vec![0; 48],
            offline: Some(Shares { threshold: 6, holders }),
        };
        (format!("debian:{n}").parse().expect("a name"), head)
    };
    let mut host = |n: u64| {
        let (uuid, mac) = (rng.bytes(16).try_into().expect("16"), rng.bytes(6).try_into().expect("6"));
        let host = Host {
            name: format!("lab-{n:05}"),
            uuid: Some(Uuid(uuid)),
            serial: Some(format!("PF{n:06}X")),
            macs: vec![Mac(mac)],
            groups: vec!["lab".into()],
            ..Host::default()
        };
        (n as u32, host)
    };
    Contents {
        common: Common {
            controller: vec!["10.0.0.1:7400".into()],
            sealed_authority: vec![0; 1500],
            last_host: members as u32,
            ..Common::default()
        },
        members: (0..members).map(member).collect(),
        groups: (0..members / 8).map(group).collect(),
        heads: (0..50).map(head).collect::<BTreeMap<_, _>>(),
        hosts: (0..members).map(&mut host).collect(),
        // A rack and a building for each stash.
        notes: (0..256).map(|row| (row, vec![row as u8; members as usize * 64 / 256])).collect(),
        ..Contents::default()
    }
}

fn main() {
    let key = ArrayKey::from_seed(&[1; 32]).expect("a key");
    println!("| members | directory, bytes | one address changed, bytes | a member verifies and applies it, ms |");
    println!("|---|---|---|---|");
    for members in [100, 1000, 10_000] {
        let mut now = contents(members);
        // A directory that has lived a while, under a controller that was started forty times.
        let mut line: Vec<SignedDirectory> = Vec::new();
        for epoch in 1..=40 {
            now.members.values_mut().next().expect("a member").capacity += 1;
            let next =
                Directory::next(line.last(), ARRAY, Line([epoch as u8; 8]), Epoch(epoch), now.clone()).sign(&key);
            line.push(next);
        }
        let [.., first, second] = line.as_slice() else { unreachable!("forty of them") };
        let update = second.update_for(Some(first.mark())).expect("it is newer");
        let (whole, delta) = (first.encode().len(), wire::encode(&update).len());
        let start = Instant::now();
        SignedDirectory::take(Some(first), update, ARRAY, &key.public()).expect("it is the array's");
        println!("| {members} | {whole} | {delta} | {:.1} |", start.elapsed().as_secs_f64() * 1e3);
    }
    let mut times: Vec<f64> = (0..21).map(|seed| spread(1000, HEARTBEAT, seed).as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    println!(
        "\nFrom one of 1,000 members to 99 % of them, by gossip alone, heartbeat {} s: {:.0} s (median of {}, {:.0} to {:.0})",
        HEARTBEAT.as_secs(),
        times[times.len() / 2],
        times.len(),
        times[0],
        times[times.len() - 1]
    );
}
