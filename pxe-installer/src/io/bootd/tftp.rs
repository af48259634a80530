//! TFTP on the wire: a socket for each transfer.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use socket2::Type;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::{Bootd, files, socket_on};
use crate::boot::script::{self, Asked};
use crate::boot::tftp::{ErrorCode, Next, Request, Transfer, data_header, error};

const PORT: u16 = 69;
/// Transfers under way.
const TOGETHER: usize = 256;
/// A transfer that takes longer is somebody playing.
const LONGEST: Duration = Duration::from_secs(1800);

/// What is sent.
enum Contents {
    File(File, u64),
    Text(String),
}

impl Contents {
    fn len(&self) -> u64 {
        match self {
            Self::File(_, len) => *len,
            Self::Text(text) => text.len() as u64,
        }
    }

    fn read(&self, range: std::ops::Range<u64>, into: &mut Vec<u8>) -> std::io::Result<()> {
        match self {
            Self::File(file, _) => {
                let start = into.len();
                into.resize(start + (range.end - range.start) as usize, 0);
                file.read_exact_at(&mut into[start..], range.start)
            }
            Self::Text(text) => {
                into.extend_from_slice(&text.as_bytes()[range.start as usize..range.end as usize]);
                Ok(())
            }
        }
    }
}

async fn find(bootd: &Bootd, path: &str) -> Option<Contents> {
    match script::understand(path)? {
        Asked::File(name) => {
            let file = File::open(files::current(&bootd.folder).join(name)).ok()?;
            let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some(Contents::File(file, meta.len()))
        }
        Asked::GrubForAll => Some(Contents::Text(script::GRUB_FOR_ALL.into())),
        Asked::Grub(mac) => Some(Contents::Text(match bootd.machines.take(mac).await {
            Ok(ticket) => script::grub(mac, &ticket),
            Err(error) => {
                tracing::info!(%mac, error = format!("{error:#}"), "GRUB has nothing to do");
                script::GRUB_NOTHING.into()
            }
        })),
    }
}

pub(super) fn listen(bootd: &Bootd) -> std::io::Result<UdpSocket> {
    let socket = socket_on(&bootd.interface, bootd.interface.address, PORT, Type::DGRAM)?;
    UdpSocket::from_std(socket.into())
}

pub(super) async fn serve(socket: UdpSocket, bootd: Arc<Bootd>) {
    let slots = Arc::new(Semaphore::new(TOGETHER));
    let mut buffer = vec![0; 1500];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else { continue };
        let request = match Request::parse(&buffer[..len]) {
            Ok(request) => request,
            Err(None) => continue,
            Err(Some(answer)) => {
                let _ = socket.send_to(&answer, from).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let bootd = bootd.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let sent = tokio::time::timeout(LONGEST, send(&bootd, &request, from)).await;
            if let Ok(Err(error)) = sent {
                tracing::debug!(path = request.path, %from, %error, "TFTP transfer ended early");
            }
        });
    }
}

async fn send(bootd: &Bootd, request: &Request, to: SocketAddr) -> std::io::Result<()> {
    let own: Ipv4Addr = bootd.interface.address;
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(to).await?;
    let Some(contents) = find(bootd, &request.path).await else {
        tracing::debug!(path = request.path, %to, "TFTP: not here");
        socket.send(&error(ErrorCode::NotFound, "not here")).await?;
        return Ok(());
    };
    tracing::info!(path = request.path, %to, bytes = contents.len(), "TFTP");
    let mut transfer = Transfer::new(request, contents.len());
    let (mut packet, mut said) = (Vec::with_capacity(1500), [0; 600]);
    let mut next = transfer.start();
    let mut deadline = Instant::now() + transfer.timeout;
    loop {
        match next {
            Next::Packet(bytes) => {
                socket.send(&bytes).await?;
                deadline = Instant::now() + transfer.timeout;
            }
            Next::Blocks(blocks) => {
                for (number, range) in blocks {
                    packet.clear();
                    packet.extend_from_slice(&data_header(number));
                    contents.read(range, &mut packet)?;
                    socket.send(&packet).await?;
                }
                deadline = Instant::now() + transfer.timeout;
            }
            Next::Wait => {}
            Next::Done | Next::GiveUp => return Ok(()),
        }
        next = match timeout_at(deadline, socket.recv(&mut said)).await {
            Ok(received) => transfer.on_packet(&said[..received?]),
            Err(_) => transfer.on_timeout(),
        };
    }
}
