//! QUIC endpoints, tuned as measured (`docs/decisions/0004-transport.md`).

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt};
use rustix::net::sockopt;

use crate::limits::{IDLE_TIMEOUT, KEEP_ALIVE, RECEIVE_WINDOW, SOCKET_BUFFER, STREAMS_PER_CONNECTION, UDP_PAYLOAD_MAX};

fn transport() -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(UDP_PAYLOAD_MAX);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(STREAMS_PER_CONNECTION.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(RECEIVE_WINDOW.into())
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(u64::from(RECEIVE_WINDOW) * 2)
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("seconds fit")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .mtu_discovery_config(Some(mtu));
    Arc::new(config)
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // Beyond the system's limit only with privilege; less is slower under bursts, not wrong.
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
    }
    let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
    Ok(socket)
}

fn endpoint(address: SocketAddr, server: Option<quinn::ServerConfig>) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(UDP_PAYLOAD_MAX).map_err(io::Error::other)?;
    Endpoint::new(config, server, socket(address)?, Arc::new(TokioRuntime))
}

/// How to ask, for [`Endpoint::set_default_client_config`].
///
/// # Panics
/// If `tls` lacks TLS 1.3, which [`super::tls`] never leaves out.
#[must_use]
pub fn client_config(tls: rustls::ClientConfig) -> quinn::ClientConfig {
    let crypto = QuicClientConfig::try_from(tls).expect("TLS 1.3 cipher suites");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    config
}

/// How to answer, for [`Endpoint::set_server_config`].
///
/// # Panics
/// If `tls` lacks TLS 1.3, which [`super::tls`] never leaves out.
#[must_use]
pub fn server_config(tls: rustls::ServerConfig) -> quinn::ServerConfig {
    let crypto = QuicServerConfig::try_from(tls).expect("TLS 1.3 cipher suites");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    config
}

/// An endpoint that only asks.
///
/// # Errors
/// The socket's.
pub fn client(tls: rustls::ClientConfig) -> io::Result<Endpoint> {
    // IPv4 and IPv6 need a socket each; dual-stack sockets are not to be had everywhere, and installers run on IPv4.
    let mut endpoint = endpoint((Ipv4Addr::UNSPECIFIED, 0).into(), None)?;
    endpoint.set_default_client_config(client_config(tls));
    Ok(endpoint)
}

/// An endpoint that answers at `address`, and asks as `client`.
///
/// # Errors
/// The socket's, for one if the port is taken.
pub fn server(address: SocketAddr, tls: rustls::ServerConfig, client: rustls::ClientConfig) -> io::Result<Endpoint> {
    let mut endpoint = endpoint(address, Some(server_config(tls)))?;
    endpoint.set_default_client_config(client_config(client));
    Ok(endpoint)
}
