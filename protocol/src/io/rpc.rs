//! One request, one answer, one stream: a length-prefixed frame each way, each with an optional body.
//!
//! `u32 frame length | postcard frame | u32 body length | body`, little endian. Lengths are checked against the limit of the
//! message before anything is allocated.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use images::{ArrayId, wire};
use quinn::{Connection, Endpoint, ReadExactError, RecvStream, SendStream, VarInt};

use super::tls::{self, Bearer};
use crate::identity::Role;
use crate::limits::{BODY_MAX, CONNECT_TIMEOUT, ENROLL_FRAME_MAX, FRAME_MAX, GUEST_FRAME_MAX};
use crate::message::{Call, Refusal, Request};

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The name does not lead anywhere.
    #[error("find {0}: check the address and that the name resolves")]
    Resolve(String),
    /// Nobody answers there.
    #[error("no answer from {0}: is it running, and is its UDP port open?")]
    Unreachable(String),
    /// The connection broke, or was refused; TLS reasons come this way.
    #[error("{}", explain(.0))]
    Connection(quinn::ConnectionError),
    /// The stream broke.
    #[error("the connection broke")]
    Stream,
    /// Bytes that are not an answer.
    #[error("the other side sent something that is not an answer")]
    Malformed,
    /// It was understood, and not carried out.
    #[error("refused: {0}")]
    Refused(Refusal),
}

// By hand: what says all of its cause must not name it as its source, or a person reads it twice.
impl From<quinn::ConnectionError> for CallError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl CallError {
    /// Whether it says no more than that the other side is not to be reckoned with now: it does not answer, or stands down.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        !matches!(self, Self::Refused(refusal) if !matches!(refusal, Refusal::Unavailable(_)))
    }
}

/// A TLS alert in words that say what to do. Codes: RFC 8446, section 6; QUIC adds 0x100 (RFC 9001, section 4.8).
fn explain(error: &quinn::ConnectionError) -> String {
    let code = match error {
        quinn::ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        quinn::ConnectionError::TransportError(e) => u64::from(e.code),
        _ => 0,
    };
    match code.checked_sub(0x100) {
        Some(42 | 43 | 46 | 48 | 51) => {
            "the certificates do not match: one side belongs to another array, was removed from this one, or has a wrong clock".into()
        }
        Some(45) => "a certificate has expired: check the clock on both machines, then join again".into(),
        Some(116) => "the other side wants a certificate: join the array first".into(),
        Some(120) => "the other side speaks another version of the protocol: update the older one".into(),
        _ => format!("the connection broke: {error}"),
    }
}

/// Close code of a peer whose certificate says nothing that this array knows.
const CLOSE_NO_IDENTITY: VarInt = VarInt::from_u32(0x174);

async fn read_len(recv: &mut RecvStream, limit: usize) -> Result<usize, CallError> {
    let mut len = [0; 4];
    recv.read_exact(&mut len).await.map_err(read_error)?;
    let len = u32::from_le_bytes(len) as usize;
    if len <= limit { Ok(len) } else { Err(CallError::Malformed) }
}

fn read_error(error: ReadExactError) -> CallError {
    match error {
        ReadExactError::ReadError(quinn::ReadError::ConnectionLost(lost)) => lost.into(),
        ReadExactError::ReadError(_) => CallError::Stream,
        ReadExactError::FinishedEarly(_) => CallError::Malformed,
    }
}

async fn read_block(recv: &mut RecvStream, limit: usize) -> Result<Vec<u8>, CallError> {
    let mut block = vec![0; read_len(recv, limit).await?];
    recv.read_exact(&mut block).await.map_err(read_error)?;
    Ok(block)
}

async fn write(send: &mut SendStream, frame: Vec<u8>, body: &[Bytes]) -> Result<(), CallError> {
    let lost = |e| match e {
        quinn::WriteError::ConnectionLost(lost) => lost.into(),
        _ => CallError::Stream,
    };
    let body_len: usize = body.iter().map(Bytes::len).sum();
    let mut head = Vec::with_capacity(frame.len() + 8);
    head.extend_from_slice(&(frame.len() as u32).to_le_bytes());
    head.extend_from_slice(&frame);
    head.extend_from_slice(&(body_len as u32).to_le_bytes());
    send.write_chunk(head.into()).await.map_err(lost)?;
    for part in body {
        send.write_chunk(part.clone()).await.map_err(lost)?;
    }
    send.finish().map_err(|_| CallError::Stream)
}

/// Ask, and wait for the answer and its body. The caller sets its own time limit.
///
/// # Errors
/// [`CallError`].
pub async fn call<C: Call>(
    connection: &Connection,
    message: C,
    body: &[Bytes],
) -> Result<(C::Reply, Bytes), CallError> {
    let (mut send, mut recv) = connection.open_bi().await?;
    write(&mut send, wire::encode(&message.into_request()), body).await?;
    let frame = read_block(&mut recv, FRAME_MAX).await?;
    let reply: Result<C::Reply, Refusal> = wire::decode(&frame).map_err(|_| CallError::Malformed)?;
    let reply = reply?;
    let body = read_block(&mut recv, BODY_MAX).await?;
    Ok((reply, body.into()))
}

/// Connect to the first address that answers.
///
/// # Errors
/// The last address's [`CallError`].
pub async fn connect_any(endpoint: &Endpoint, addresses: &[String], name: &str) -> Result<Connection, CallError> {
    let mut last = CallError::Resolve("the controller: no address is known".into());
    for text in addresses {
        let Ok(resolved) = tokio::net::lookup_host(text).await else {
            last = CallError::Resolve(text.clone());
            continue;
        };
        for address in resolved {
            match connect(endpoint, address, name).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// Connect to one address.
///
/// # Errors
/// [`CallError`], after [`CONNECT_TIMEOUT`] at the latest.
pub async fn connect(endpoint: &Endpoint, address: SocketAddr, name: &str) -> Result<Connection, CallError> {
    let unreachable = || CallError::Unreachable(address.to_string());
    let connecting = endpoint.connect(address, name).map_err(|_| unreachable())?;
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(quinn::ConnectionError::TimedOut)) | Err(_) => Err(unreachable()),
        Ok(Err(error)) => Err(error.into()),
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// From the certificate; `None` for a stranger who may only enroll.
    pub bearer: Option<Bearer>,
    /// Where from.
    pub address: SocketAddr,
    /// On which connection: another one after a restart.
    pub connection: usize,
}

/// An answer, ready to travel.
pub struct Answer {
    frame: Vec<u8>,
    body: Vec<Bytes>,
}

impl Answer {
    /// The answer to a `C`.
    pub fn to<C: Call>(reply: Result<C::Reply, Refusal>) -> Self {
        Self { frame: wire::encode(&reply), body: Vec::new() }
    }

    /// The answer to a `C`, with bulk bytes.
    pub fn with_body<C: Call>(reply: Result<(C::Reply, Bytes), Refusal>) -> Self {
        match reply {
            Ok((reply, body)) => Self { frame: wire::encode(&Ok::<_, Refusal>(reply)), body: vec![body] },
            Err(refusal) => Self::refuse(refusal),
        }
    }

    /// No.
    #[must_use]
    pub fn refuse(refusal: Refusal) -> Self {
        // The variant `Err` is encoded alike whatever the type beside it is.
        Self { frame: wire::encode(&Err::<(), _>(refusal)), body: Vec::new() }
    }
}

/// Answer requests until the endpoint closes. Every request is checked against the asker's role before `handler` sees it.
pub async fn serve<H, F>(endpoint: Endpoint, array: ArrayId, handler: H)
where
    H: Fn(Peer, Request, Bytes) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    serve_until_gone(endpoint, array, handler, |_| {}).await;
}

/// The same, and `gone` hears of each peer whose connection has ended, well or not, when all that it asked is answered.
pub async fn serve_until_gone<H, F, G>(endpoint: Endpoint, array: ArrayId, handler: H, gone: G)
where
    H: Fn(Peer, Request, Bytes) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
    G: Fn(Peer) + Send + Sync + 'static,
{
    let (handler, gone) = (Arc::new(handler), Arc::new(gone));
    while let Some(incoming) = endpoint.accept().await {
        let (handler, gone) = (handler.clone(), gone.clone());
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            let Some(peer) = admit(&connection, array) else {
                connection.close(CLOSE_NO_IDENTITY, b"certificate required");
                return;
            };
            // Nothing is sent: it is closed when nobody has it any more.
            let (alive, mut over) = tokio::sync::mpsc::channel::<()>(1);
            while let Ok((send, recv)) = connection.accept_bi().await {
                let (handler, alive) = (handler.clone(), alive.clone());
                tokio::spawn(async move {
                    answer_one(peer, send, recv, handler).await;
                    drop(alive);
                });
            }
            drop(alive);
            over.recv().await;
            gone(peer);
        });
    }
}

/// A member by its certificate, or a stranger that said that it wants to enroll.
fn admit(connection: &Connection, array: ArrayId) -> Option<Peer> {
    let peer = |bearer| Peer { bearer, address: connection.remote_address(), connection: connection.stable_id() };
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    if data.protocol.as_deref() == Some(tls::ALPN_ENROLL) {
        return Some(peer(None));
    }
    let chain = connection.peer_identity()?.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    Some(peer(Some(tls::bearer_of(chain.first()?, array)?)))
}

async fn answer_one<H, F>(peer: Peer, mut send: SendStream, mut recv: RecvStream, handler: Arc<H>)
where
    H: Fn(Peer, Request, Bytes) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let answer = match read_request(&peer, &mut recv).await {
        Ok((request, body)) => handler(peer, request, body).await,
        Err(Some(refusal)) => Answer::refuse(refusal),
        Err(None) => return,
    };
    let _ = write(&mut send, answer.frame, &answer.body).await;
    // The stream must outlive the function until the peer has it all, or quinn resets it.
    let _ = send.stopped().await;
}

/// A request that the asker's role permits. `Err(None)`: the stream broke or carried noise, and nobody waits for an answer.
async fn read_request(peer: &Peer, recv: &mut RecvStream) -> Result<(Request, Bytes), Option<Refusal>> {
    let role = peer.bearer.map(|bearer| bearer.identity.role);
    let frame_max = match role {
        Some(Role::Controller | Role::Stash | Role::Admin) => FRAME_MAX,
        Some(_) => GUEST_FRAME_MAX,
        None => ENROLL_FRAME_MAX,
    };
    let frame = read_block(recv, frame_max).await.map_err(|_| None)?;
    let noise = || Some(Refusal::Invalid("not a request of this protocol".into()));
    let request: Request = wire::decode(&frame).map_err(|_| noise())?;
    let allowed = match role {
        Some(role) => request.allowed_for(role),
        // A certificate that has expired is renewed this way: its key is proven in the request.
        None => matches!(request, Request::Enroll(_) | Request::Renew(_)),
    };
    if !allowed {
        tracing::warn!(request = request.name(), bearer = ?peer.bearer, address = %peer.address, "request not allowed");
        return Err(Some(match role {
            Some(role) => Refusal::NotAllowed(role),
            None => Refusal::NotAdmitted("a certificate is needed".into()),
        }));
    }
    let body = read_block(recv, request.body_max()).await.map_err(|_| noise())?;
    Ok((request, body.into()))
}
