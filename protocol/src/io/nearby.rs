//! Finding members on the same network by multicast DNS (RFC 6762, RFC 6763), when nobody knows their addresses any more. What is heard
//! is a hint: who somebody is, TLS decides.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use images::{ArrayId, NodeId};
use mdns_sd::{ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};

use crate::identity::Role;
use crate::limits::ADDRESSES_MAX;

const SERVICE: &str = "_coe._udp.local.";
/// How long answers are waited for.
const LOOK_FOR: Duration = Duration::from_secs(2);
/// A network is not asked more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(20);

type Members = HashMap<NodeId, Vec<SocketAddr>>;

/// Who was heard.
#[derive(Clone, Default)]
struct Heard {
    stashes: Members,
    controllers: Members,
}

/// Multicast DNS for one array. Nothing is started before it is needed.
pub struct Nearby {
    array: ArrayId,
    daemon: OnceLock<Option<ServiceDaemon>>,
    found: tokio::sync::Mutex<Option<(Instant, Heard)>>,
}

impl Nearby {
    /// For an array.
    #[must_use]
    pub fn new(array: ArrayId) -> Self {
        Self { array, daemon: OnceLock::new(), found: tokio::sync::Mutex::default() }
    }

    fn daemon(&self) -> Option<&ServiceDaemon> {
        let start = || {
            let started = ServiceDaemon::new();
            started.inspect_err(|error| tracing::info!(%error, "no multicast DNS here")).ok()
        };
        self.daemon.get_or_init(start).as_ref()
    }

    /// Answer whoever looks for members: this stash, or controller, listens there.
    pub fn announce(&self, role: Role, node: NodeId, listen: SocketAddr) {
        let Some(daemon) = self.daemon() else { return };
        let (name, host) = (node.to_string(), format!("coe-{}.local.", node.short()));
        let text = [("array", self.array.to_string()), ("node", name.clone()), ("role", role.to_string())];
        let address = if listen.ip().is_unspecified() { String::new() } else { listen.ip().to_string() };
        let said = ServiceInfo::new(SERVICE, &name, &host, address.as_str(), listen.port(), &text[..])
            .and_then(|info| daemon.register(if address.is_empty() { info.enable_addr_auto() } else { info }));
        if let Err(error) = said {
            tracing::info!(%error, "not announced by multicast DNS");
        }
    }

    fn member(&self, service: &ResolvedService) -> Option<(NodeId, Vec<SocketAddr>)> {
        let array: ArrayId = service.get_property_val_str("array")?.parse().ok()?;
        let node = service.get_property_val_str("node")?.parse().ok()?;
        let addresses = service.addresses.iter().map(|ip| SocketAddr::new(ip.to_ip_addr(), service.port));
        (array == self.array).then(|| (node, addresses.take(ADDRESSES_MAX).collect()))
    }

    /// Stashes that answer now, or answered some seconds ago. Callers that come at the same time share one look.
    pub async fn look(&self) -> Members {
        self.listen().await.stashes
    }

    /// Where a controller answers.
    pub async fn look_for_controller(&self) -> Vec<SocketAddr> {
        self.listen().await.controllers.into_values().flatten().collect()
    }

    async fn listen(&self) -> Heard {
        let mut found = self.found.lock().await;
        if let Some((_, heard)) = found.as_ref().filter(|(at, _)| at.elapsed() < LOOK_EVERY) {
            return heard.clone();
        }
        let mut heard = Heard::default();
        if let Some(daemon) = self.daemon()
            && let Ok(events) = daemon.browse(SERVICE)
        {
            let listen = async {
                while let Ok(event) = events.recv_async().await {
                    if let ServiceEvent::ServiceResolved(service) = event {
                        let is_controller = service.get_property_val_str("role") == Some(Role::Controller.as_str());
                        let of_role = if is_controller { &mut heard.controllers } else { &mut heard.stashes };
                        of_role.extend(self.member(&service));
                    }
                }
            };
            let _ = tokio::time::timeout(LOOK_FOR, listen).await;
            let _ = daemon.stop_browse(SERVICE);
        }
        *found = Some((Instant::now(), heard.clone()));
        heard
    }
}

impl Drop for Nearby {
    fn drop(&mut self) {
        if let Some(Some(daemon)) = self.daemon.get() {
            let _ = daemon.shutdown();
        }
    }
}
