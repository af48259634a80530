//! Who asks, and what the controller says of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use protocol::io::credentials::Credentials;
use protocol::io::link::Link;
use protocol::machine::{Facts, Mac};
use protocol::message::Call;
use protocol::message::boot::{AskBoot, BootOrder, BootTicket, TakeBoot};

use crate::boot::dhcp::Asked;

/// Firmware asks again after a second or two: an answer that comes later is of no use.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// Firmware loads iPXE, and iPXE asks for an address itself, in a few seconds; an emulated machine takes longer.
const IPXE_STARTS_WITHIN: Duration = Duration::from_secs(45);
/// Machines whose facts are remembered between their DHCP request and their loader's.
const REMEMBERED_MAX: usize = 4096;

/// The controller, and what is remembered of machines that asked.
pub struct Machines {
    /// This boot server.
    pub member: Credentials,
    controller: Link,
    remembered: Mutex<HashMap<Mac, Facts>>,
    /// Machines that were given iPXE, and have not been heard as iPXE yet.
    given_ipxe: Mutex<HashSet<Mac>>,
}

impl Machines {
    /// For a boot server with these credentials.
    ///
    /// # Errors
    /// If a socket cannot be had.
    pub fn new(member: Credentials) -> anyhow::Result<Self> {
        let controller = Link::new(&member).context("open a UDP socket")?;
        Ok(Self { member, controller, remembered: Mutex::default(), given_ipxe: Mutex::default() })
    }

    async fn call<C: Call>(&self, message: C) -> anyhow::Result<C::Reply> {
        let (reply, _) = tokio::time::timeout(ANSWER_WITHIN, self.controller.call(message))
            .await
            .context("the controller does not answer")??;
        Ok(reply)
    }

    /// What a machine has to do.
    ///
    /// # Errors
    /// If the controller cannot be asked in time.
    pub async fn ask(&self, asked: &Asked, is_dry_run: bool) -> anyhow::Result<BootOrder> {
        if let Some(mac) = asked.facts.macs.first().filter(|_| !is_dry_run) {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
            let known = remembered.entry(*mac).or_default();
            let uuid = asked.facts.uuid.or(known.uuid);
            *known = Facts { uuid, ..asked.facts.clone() };
        }
        self.call(AskBoot { facts: asked.facts.clone(), is_dry_run }).await
    }

    /// A machine was given iPXE. Whether it was not heard again: under Secure Boot its firmware refuses what nobody signed, and only the
    /// machine's own screen says so.
    pub async fn stays_silent(&self, mac: Mac) -> bool {
        let with = |work: &dyn Fn(&mut HashSet<Mac>) -> bool| {
            let mut given = self.given_ipxe.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut given)
        };
        // It asks more than once before it loads anything.
        if !with(&|given| given.len() < REMEMBERED_MAX && given.insert(mac)) {
            return false;
        }
        tokio::time::sleep(IPXE_STARTS_WITHIN).await;
        with(&|given| given.remove(&mac))
    }

    /// A machine runs iPXE.
    pub fn runs_ipxe(&self, mac: Mac) {
        self.given_ipxe.lock().unwrap_or_else(PoisonError::into_inner).remove(&mac);
    }

    /// The right to install, for a machine that loads the installer.
    ///
    /// # Errors
    /// If it has nothing to do, or the controller cannot be asked.
    pub async fn take(&self, mac: Mac) -> anyhow::Result<BootTicket> {
        let known = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(&mac).cloned();
        self.call(TakeBoot { facts: known.unwrap_or_else(|| Facts { macs: vec![mac], ..Facts::default() }) }).await
    }
}
