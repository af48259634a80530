//! A member's connection to its controller, made when it is needed and made anew when it broke.

use std::sync::PoisonError;

use bytes::Bytes;
use quinn::{Connection, Endpoint};
use tokio::sync::Mutex;

use super::credentials::Credentials;
use super::rpc::{self, CallError};
use super::{endpoint, tls};
use crate::identity::CONTROLLER_NAME;
use crate::message::Call;

/// The way to the controller.
pub struct Link {
    /// Connects to others, too.
    pub endpoint: Endpoint,
    addresses: Vec<String>,
    connection: Mutex<Option<Connection>>,
    /// With the certificate of now, once that was renewed.
    fresh: std::sync::Mutex<Option<quinn::ClientConfig>>,
}

impl Link {
    /// For a member; nothing is connected yet.
    ///
    /// # Errors
    /// If a socket cannot be had, or the credentials are damaged.
    pub fn new(member: &Credentials) -> anyhow::Result<Self> {
        let endpoint = endpoint::client(tls::client(member, tls::ALPN_MEMBER)?)?;
        Ok(Self {
            endpoint,
            addresses: member.controller.clone(),
            connection: Mutex::default(),
            fresh: std::sync::Mutex::default(),
        })
    }

    /// Connect with a fresh certificate from now on.
    ///
    /// # Errors
    /// If the credentials are damaged.
    pub async fn renew(&self, member: &Credentials) -> anyhow::Result<()> {
        let mut held = self.connection.lock().await;
        *self.fresh.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(endpoint::client_config(tls::client(member, tls::ALPN_MEMBER)?));
        *held = None;
        Ok(())
    }

    async fn connection(&self) -> Result<Connection, CallError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|c| c.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        let mut endpoint = self.endpoint.clone();
        if let Some(fresh) = self.fresh.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            endpoint.set_default_client_config(fresh);
        }
        let connection = rpc::connect_any(&endpoint, &self.addresses, CONTROLLER_NAME).await?;
        *held = Some(connection.clone());
        Ok(connection)
    }

    /// Whether the controller has answered the handshake.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.try_lock().is_ok_and(|held| held.as_ref().is_some_and(|c| c.close_reason().is_none()))
    }

    /// Ask the controller. The caller sets its own time limit.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call<C: Call>(&self, message: C) -> Result<(C::Reply, Bytes), CallError> {
        rpc::call(&self.connection().await?, message, &[]).await
    }
}
