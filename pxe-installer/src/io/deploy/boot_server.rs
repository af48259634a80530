//! Asking a boot server for this machine's options: by DHCP where they are, then for them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use socket2::{Domain, Socket, Type};

use crate::boot::discover::{answer, question};
use crate::io::target::sys_text;

/// Time for an answer, and how often it is asked for.
const WAIT: Duration = Duration::from_secs(4);
const TRIES: u32 = 5;
/// Options are shorter than a kernel's command line.
const OPTIONS_MAX: u64 = 4096;

/// This machine's options, from whichever boot server on this network card's network answers first.
///
/// # Errors
/// If none does.
pub fn boot_options(interface: &str) -> anyhow::Result<String> {
    let url = find(interface)?;
    fetch(&url).with_context(|| format!("fetch {url}"))
}

/// A small text over HTTP/1.0 (RFC 1945): the answer ends with the connection.
fn fetch(url: &str) -> anyhow::Result<String> {
    let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("a URL")?;
    let address: SocketAddr = host.parse().context("an address")?;
    let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
    stream.set_read_timeout(Some(WAIT))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(OPTIONS_MAX).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "it answers {status:?}");
    Ok(body.trim().to_string())
}

fn find(interface: &str) -> anyhow::Result<String> {
    let mut facts = super::facts::of_this_machine();
    let address = format!("/sys/class/net/{interface}/address");
    let mac = sys_text(address.as_ref()).and_then(|text| text.parse().ok());
    facts.macs = vec![mac.with_context(|| format!("there is no network card {interface}"))?];
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into()).context("listen on UDP port 68")?;
    let socket = std::net::UdpSocket::from(socket);
    let mut packet = [0; 1500];
    for number in 1..=TRIES {
        let ask = question(&facts, number).context("put the question together")?;
        socket.send_to(&ask, (Ipv4Addr::BROADCAST, 67)).context("ask for a boot server")?;
        let until = Instant::now() + WAIT;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            let Ok(len) = socket.recv(&mut packet) else { break };
            if let Some(url) = answer(&packet[..len], &facts, number) {
                return Ok(url);
            }
        }
    }
    bail!("no boot server has anything for this machine on {interface}")
}
