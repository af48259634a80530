//! Connections to members, one each, made when first needed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use images::NodeId;
use quinn::{Connection, Endpoint};

use super::nearby::Nearby;
use super::rpc::{self, CallError};
use crate::directory::Directory;
use crate::identity::{Role, server_name};

type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// Connections to stashes.
pub struct Pool {
    endpoint: Mutex<Endpoint>,
    addresses: Mutex<HashMap<NodeId, Vec<SocketAddr>>>,
    connections: Mutex<HashMap<NodeId, Slot>>,
    nearby: Option<Arc<Nearby>>,
}

impl Pool {
    /// An empty pool on an endpoint.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint: Mutex::new(endpoint),
            addresses: Mutex::default(),
            connections: Mutex::default(),
            nearby: None,
        }
    }

    /// The same, and members that do not answer where they were are looked for on this network.
    #[must_use]
    pub fn with_nearby(endpoint: Endpoint, nearby: Arc<Nearby>) -> Self {
        Self { nearby: Some(nearby), ..Self::new(endpoint) }
    }

    /// Connect with a fresh certificate from now on.
    pub fn renew(&self, config: quinn::ClientConfig) {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner).set_default_client_config(config);
    }

    /// Learn where everybody is.
    pub fn learn(&self, directory: &Directory) {
        for (node, member) in directory.members.iter() {
            self.learn_one(*node, member.addresses.clone());
        }
    }

    /// Learn where one member is.
    pub fn learn_one(&self, node: NodeId, addresses: Vec<SocketAddr>) {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).insert(node, addresses);
    }

    /// A member was started anew: whatever was connected to it leads nowhere.
    pub fn forget(&self, node: NodeId) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }

    /// The connection to a stash. Callers that come at the same time share one handshake.
    ///
    /// # Errors
    /// The last address's [`CallError`].
    pub async fn get(&self, node: NodeId) -> Result<Connection, CallError> {
        let slot = self.connections.lock().unwrap_or_else(PoisonError::into_inner).entry(node).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|c| c.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        let known =
            self.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned().unwrap_or_default();
        let connection = match (self.connect(node, &known).await, &self.nearby) {
            (Err(error), Some(nearby)) => {
                let heard = nearby.look().await.remove(&node).filter(|heard| *heard != known).ok_or(error)?;
                let connection = self.connect(node, &heard).await?;
                self.learn_one(node, heard);
                connection
            }
            (tried, _) => tried?,
        };
        *slot = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self, node: NodeId, addresses: &[SocketAddr]) -> Result<Connection, CallError> {
        let mut last = CallError::Unreachable(node.to_string());
        let endpoint = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for address in addresses {
            match rpc::connect(&endpoint, *address, &server_name(Role::Stash, node)).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}
