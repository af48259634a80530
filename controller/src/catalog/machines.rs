//! Machines and deployments in the catalog.

use images::{NodeId, wire};
use protocol::identity::Role;
use protocol::ticket::secret_hash;
use redb::{ReadableTable as _, TableDefinition, WriteTransaction};

use super::{BootServerRecord, Catalog, CatalogError, Change, Result, TicketRecord, rows};
use crate::deploy::{AutoApprove, DeployRecord, State};
use crate::hosts::HostRecord;

const HOSTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("hosts1");
const DEPLOYMENTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("deployments3");
/// Hash of a ticket's secret to the deployment that it is for.
const GRANTS: TableDefinition<'_, [u8; 32], u32> = TableDefinition::new("grants1");
/// Boot servers.
const BOOT_SERVERS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("boot-servers1");
/// One row at most.
const AUTO: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("auto3");

/// A right to join, for a machine that is still to be installed, perhaps while the controller is away.
const STASH_TICKET_S: u64 = 210 * 24 * 3600;

pub(super) fn create_all(transaction: &WriteTransaction) -> Result<()> {
    transaction.open_table(HOSTS)?;
    transaction.open_table(DEPLOYMENTS)?;
    transaction.open_table(GRANTS)?;
    transaction.open_table(AUTO)?;
    transaction.open_table(BOOT_SERVERS)?;
    Ok(())
}

impl Catalog {
    /// All machines.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn hosts(&self) -> Result<Vec<(u32, HostRecord)>> {
        self.all(HOSTS)
    }

    /// All deployments, the oldest first.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn deployments(&self) -> Result<Vec<(u32, DeployRecord)>> {
        self.all(DEPLOYMENTS)
    }

    /// A deployment.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn deployment(&self, id: u32) -> Result<Option<DeployRecord>> {
        self.get(DEPLOYMENTS, id)
    }

    /// All boot servers.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn boot_servers(&self) -> Result<Vec<(NodeId, BootServerRecord)>> {
        Ok(self.all(BOOT_SERVERS)?.into_iter().map(|(node, record)| (NodeId(node), record)).collect())
    }

    /// A boot server.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn boot_server(&self, node: NodeId) -> Result<Option<BootServerRecord>> {
        self.get(BOOT_SERVERS, node.0)
    }

    /// What happens to machines that nobody knows.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn auto_approve(&self) -> Result<Option<AutoApprove>> {
        self.get(AUTO, 0)
    }
}

impl Change<'_> {
    /// All machines, as this transaction sees them.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn hosts(&self) -> Result<Vec<(u32, HostRecord)>> {
        rows(&self.0.open_table(HOSTS)?)
    }

    /// Change what is known of a machine.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if there is none.
    pub fn change_host(&self, id: u32, change: impl FnOnce(&mut HostRecord)) -> Result<()> {
        let found = self.hosts()?.into_iter().find(|(known, _)| *known == id);
        let (_, mut host) = found.ok_or_else(|| CatalogError::Conflict("the machine was forgotten".into()))?;
        change(&mut host);
        self.put_host(Some(id), &host).map(drop)
    }

    /// Keep a machine; a new one without a number gets the next.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if its name is another's.
    pub fn put_host(&self, id: Option<u32>, record: &HostRecord) -> Result<u32> {
        let id = match id {
            Some(id) => id,
            None => self.count_up("host")? as u32,
        };
        let mut record = record.clone();
        let others: Vec<String> =
            self.hosts()?.into_iter().filter(|(other, _)| *other != id).map(|(_, host)| host.name).collect();
        if record.name.is_empty() {
            let names = (0..).map(|n| if n == 0 { format!("host-{id}") } else { format!("host-{id}-{n}") });
            record.name = names.into_iter().find(|name| !others.contains(name)).unwrap_or_default();
        }
        if others.contains(&record.name) {
            return Err(CatalogError::Conflict(format!("another machine is called {}", record.name)));
        }
        let mut table = self.0.open_table(HOSTS)?;
        let before =
            table.insert(id, wire::encode(&record).as_slice())?.map(|v| wire::decode(v.value())).transpose()?;
        let listed = |host: &HostRecord| host.approved.then(|| host.listed(None));
        if before.as_ref().and_then(listed) != listed(&record) {
            self.bump_epoch()?;
        }
        Ok(id)
    }

    /// Forget a machine, and its deployments.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn remove_host(&self, id: u32) -> Result<()> {
        let gone = self.0.open_table(HOSTS)?.remove(id)?.map(|v| wire::decode::<HostRecord>(v.value())).transpose()?;
        if gone.is_some_and(|host| host.approved) {
            self.bump_epoch()?;
        }
        let mut table = self.0.open_table(DEPLOYMENTS)?;
        let mut gone = Vec::new();
        for row in table.iter()? {
            let (key, value) = row?;
            let record: DeployRecord = wire::decode(value.value())?;
            if record.host == id {
                gone.push((key.value(), secret_hash(&record.stash_secret)));
            }
        }
        for (key, ticket) in gone {
            table.remove(key)?;
            self.forget_tickets(&[ticket])?;
        }
        Ok(())
    }

    /// Keep what is known of a boot server.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn put_boot_server(&self, node: NodeId, record: &BootServerRecord) -> Result<()> {
        let mut table = self.0.open_table(BOOT_SERVERS)?;
        let before = table.insert(node.0, wire::encode(record).as_slice())?;
        let before = before.map(|v| wire::decode::<BootServerRecord>(v.value())).transpose()?;
        if before.is_some_and(|b| b.offline) != record.offline {
            self.bump_epoch()?;
        }
        Ok(())
    }

    /// Change what is known of a boot server. One that is not known, because the controller was rebuilt, may nothing yet.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn change_boot_server(&self, node: NodeId, change: impl FnOnce(&mut BootServerRecord)) -> Result<()> {
        let known = self.0.open_table(BOOT_SERVERS)?.get(node.0)?.map(|v| wire::decode(v.value())).transpose()?;
        let mut record = known.unwrap_or_default();
        change(&mut record);
        self.put_boot_server(node, &record)
    }

    /// Keep a new deployment, and the ticket of its machine's stash.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if another of the same machine is open.
    pub fn add_deployment(&self, record: &DeployRecord) -> Result<u32> {
        let id = self.count_up("deployment")? as u32;
        self.put_deployment(id, record)?;
        Ok(id)
    }

    /// Keep a deployment under the number that it has.
    pub(super) fn put_deployment(&self, id: u32, record: &DeployRecord) -> Result<()> {
        let mut table = self.0.open_table(DEPLOYMENTS)?;
        for row in table.iter()? {
            let (key, value) = row?;
            let other: DeployRecord = wire::decode(value.value())?;
            if other.host == record.host && other.state.is_open() {
                let why =
                    format!("deployment {} of this machine is {}: cancel it first", key.value(), other.state.as_str());
                return Err(CatalogError::Conflict(why));
            }
        }
        table.insert(id, wire::encode(record).as_slice())?;
        if record.stash_size > 0 {
            let hash = secret_hash(&record.stash_secret);
            self.put_grant(hash, id)?;
            let expires_unix_s = record.not_before_unix_s.max(record.since_unix_s).saturating_add(STASH_TICKET_S);
            self.put_ticket(hash, &TicketRecord::new(Role::Stash, expires_unix_s))?;
        }
        self.bump_epoch()?;
        Ok(())
    }

    /// A machine is installed: its stash joins soon, or never.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn expect_stash(&self, record: &DeployRecord, until_unix_s: u64) -> Result<()> {
        let hash = secret_hash(&record.stash_secret);
        match self.ticket(hash)?.filter(|_| record.stash_size > 0) {
            Some(ticket) => self.put_ticket(hash, &TicketRecord { expires_unix_s: until_unix_s, ..ticket }),
            None => Ok(()),
        }
    }

    /// Change a deployment.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if there is none, or `change` refuses.
    pub fn change_deployment(&self, id: u32, change: impl FnOnce(&mut DeployRecord) -> Result<()>) -> Result<()> {
        let mut table = self.0.open_table(DEPLOYMENTS)?;
        let found = table.get(id)?.map(|v| wire::decode::<DeployRecord>(v.value())).transpose()?;
        let before = found.ok_or_else(|| CatalogError::Conflict(format!("there is no deployment {id}")))?;
        let mut record = before.clone();
        change(&mut record)?;
        table.insert(id, wire::encode(&record).as_slice())?;
        if before.told() != record.told() {
            self.bump_epoch()?;
        }
        if record.state == State::Cancelled && before.state != State::Cancelled {
            self.forget_tickets(&[secret_hash(&record.stash_secret)])?;
        }
        Ok(())
    }

    /// A deployment, as this transaction sees it.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn deployment(&self, id: u32) -> Result<Option<DeployRecord>> {
        let table = self.0.open_table(DEPLOYMENTS)?;
        let found = table.get(id)?.map(|v| wire::decode(v.value())).transpose()?;
        Ok(found)
    }

    /// A ticket is for a deployment.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn put_grant(&self, ticket: [u8; 32], deployment: u32) -> Result<()> {
        self.0.open_table(GRANTS)?.insert(ticket, deployment)?;
        Ok(())
    }

    /// Nobody can come with a ticket any more.
    pub(super) fn remove_grant(&self, ticket: [u8; 32]) -> Result<()> {
        self.0.open_table(GRANTS)?.remove(ticket)?;
        Ok(())
    }

    /// A member came with a ticket: the deployment that it was for.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn use_grant(&self, ticket: [u8; 32]) -> Result<Option<u32>> {
        let deployment = self.0.open_table(GRANTS)?.remove(ticket)?.map(|v| v.value());
        Ok(deployment)
    }

    /// What happens to machines that nobody knows, as this transaction sees it.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn auto_approve(&self) -> Result<Option<AutoApprove>> {
        let table = self.0.open_table(AUTO)?;
        let found = table.get(0)?.map(|v| wire::decode(v.value())).transpose()?;
        Ok(found)
    }

    /// What happens to machines that nobody knows; `None` for nothing.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn set_auto_approve(&self, auto: Option<&AutoApprove>) -> Result<()> {
        let mut table = self.0.open_table(AUTO)?;
        match auto {
            Some(auto) => drop(table.insert(0, wire::encode(auto).as_slice())?),
            None => drop(table.remove(0)?),
        }
        Ok(())
    }
}
