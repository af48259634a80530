//! A TLS listener for axum that tells each request who asks.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use images::ArrayId;
use protocol::identity::Identity;
use protocol::io::credentials::Credentials;
use protocol::io::tls;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::routes;
use crate::io::controller::Controller;

/// A client that does not finish its handshake in this time is dropped.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// The TLS settings, which change when the certificate is renewed.
#[derive(Clone)]
pub struct Acceptor(Arc<RwLock<TlsAcceptor>>);

impl Acceptor {
    fn make(member: &Credentials) -> anyhow::Result<TlsAcceptor> {
        let config = tls::server(member, tls::Admit::Members, &[b"http/1.1"])?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Use a fresh certificate from now on.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn renew(&self, member: &Credentials) -> anyhow::Result<()> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Self::make(member)?;
        Ok(())
    }

    fn current(&self) -> TlsAcceptor {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub struct Caller(pub Option<Identity>);

impl Connected<IncomingStream<'_, TlsConnections>> for Caller {
    fn connect_info(stream: IncomingStream<'_, TlsConnections>) -> Self {
        *stream.remote_addr()
    }
}

/// Connections whose handshake is done.
pub struct TlsConnections {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, Caller)>,
}

impl Listener for TlsConnections {
    type Io = TlsStream<TcpStream>;
    type Addr = Caller;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task runs as long as the process.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        let _ = self.address;
        Ok(Caller(None))
    }
}

/// The HTTPS server, bound and not yet serving.
pub struct Server {
    listener: TcpListener,
    acceptor: Acceptor,
}

impl Server {
    /// Bind.
    ///
    /// # Errors
    /// If the port is taken or the credentials are damaged.
    pub async fn bind(address: SocketAddr, member: &Credentials) -> anyhow::Result<Self> {
        let acceptor = Acceptor(Arc::new(RwLock::new(Acceptor::make(member)?)));
        Ok(Self { listener: TcpListener::bind(address).await?, acceptor })
    }

    /// For renewing.
    #[must_use]
    pub fn acceptor(&self) -> Acceptor {
        self.acceptor.clone()
    }

    /// Serve.
    ///
    /// # Errors
    /// The listener's.
    pub async fn serve(self, controller: Arc<Controller>) -> std::io::Result<()> {
        let array = controller.array();
        let (send, ready) = mpsc::channel(16);
        let address = self.listener.local_addr()?;
        tokio::spawn(accept(self.listener, self.acceptor, array, send));
        let app = routes::router(controller).into_make_service_with_connect_info::<Caller>();
        axum::serve(TlsConnections { address, ready }, app).await
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: Acceptor,
    array: ArrayId,
    send: mpsc::Sender<(TlsStream<TcpStream>, Caller)>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors: let others finish.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, send) = (acceptor.current(), send.clone());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream));
            let Ok(Ok(stream)) = handshake.await else {
                return;
            };
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let caller = Caller(certificate.and_then(|c| Some(tls::bearer_of(c, array)?.identity)));
            let _ = send.send((stream, caller)).await;
        });
    }
}
