//! Members come, report, and renew.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use images::NodeId;
use protocol::identity::{Identity, Role};
use protocol::io::issue::{Admitted, BACKDATE, DELEGATION_LASTS};
use protocol::io::rpc::Peer;
use protocol::limits::STASH_LEN_MAX;
use protocol::message::boot::{Delegation, GetDelegation};
use protocol::message::{Refusal, enroll, member};
use protocol::ticket::secret_hash;

use super::controller::{Controller, catalog_refusal};
use super::fleet::Pulse;
use super::unix_s;
use crate::catalog::{BootServerRecord, CatalogError, NodeRecord, Standing, TicketRecord};
use crate::deploy::State;

/// Tell a stranger as little as possible: whether a ticket was used or never existed is the admin's business.
const TICKET_REFUSED: &str = "the ticket is unknown, used or expired: ask for a new one (`coe-ctl token create`)";

/// A report with numbers that a stash can have: they are added up.
fn within_limits(beat: member::Heartbeat) -> member::Heartbeat {
    let capacity = beat.capacity.min(STASH_LEN_MAX);
    let wish = beat.wish.map(|wish| match wish {
        member::Wish::Less(bytes) => member::Wish::Less(bytes.min(STASH_LEN_MAX)),
        member::Wish::LessNow(bytes) => member::Wish::LessNow(bytes.min(STASH_LEN_MAX)),
        other => other,
    });
    member::Heartbeat { capacity, used: beat.used.min(capacity), wish, ..beat }
}

impl Controller {
    /// Trade a ticket for a certificate. The ticket is used up in the same transaction that makes the member known.
    ///
    /// # Errors
    /// [`Refusal::NotAdmitted`].
    pub async fn enroll(&self, request: enroll::Enroll) -> Result<enroll::Enrolled, Refusal> {
        let invalid = |e: super::authority::AuthorityError| Refusal::Invalid(e.to_string());
        let hash = secret_hash(&request.secret);
        let node = self.authority.node_of(&request.csr).map_err(invalid)?;
        let admitted = std::sync::Arc::new(std::sync::Mutex::new(None));
        let granted = admitted.clone();
        let heard = self.fleet.heard_now();
        let used = self.committer.change(move |change| {
            let now = unix_s();
            let ticket = change.ticket(hash)?.filter(|t| t.used_by.is_none() && now < t.expires_unix_s);
            let ticket = ticket.ok_or_else(|| CatalogError::Conflict(TICKET_REFUSED.into()))?;
            change.put_ticket(hash, &TicketRecord { used_by: Some(node), ..ticket.clone() })?;
            let deployment = change.use_grant(hash)?;
            let host = match deployment {
                Some(deployment) => change.deployment(deployment)?.map(|d| d.host),
                None => ticket.host,
            };
            let admitted = Admitted { host, deployment };
            *granted.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((ticket.role, admitted));
            if ticket.role == Role::Boot {
                let (joined_unix_s, offline) = (now, ticket.offline);
                change
                    .put_boot_server(node, &BootServerRecord { joined_unix_s, offline, delegated_until_unix_s: 0 })?;
            }
            if ticket.role == Role::Stash {
                if let Some(deployment) = deployment {
                    let deployed = change.change_deployment(deployment, |d| {
                        // Its ticket was on the installed disk only: however far the reports are, the machine is up.
                        if d.state != State::Cancelled {
                            (d.state, d.since_unix_s) = (State::Deployed, now);
                        }
                        Ok(())
                    });
                    // The deployment may have been forgotten meanwhile; the machine joins all the same.
                    deployed.or_else(|e| if matches!(e, CatalogError::Conflict(_)) { Ok(()) } else { Err(e) })?;
                }
                let record = NodeRecord { role: ticket.role, addresses: Vec::new(), capacity: 0, joined_unix_s: now };
                change.put_node(node, &record)?;
                // Who was sent away once, and has the same key, begins anew.
                change.change_standing(node, |standing| *standing = Standing::default())?;
                if let Some(host) = host {
                    for before in change.succeed(node, host, |node| heard.contains(&node))? {
                        tracing::info!(node = %before, by = %node, host, "a machine was installed anew: its stash of before is gone");
                    }
                }
                change.bump_epoch()?;
            }
            Ok(())
        });
        used.await.map_err(|e| match e {
            CatalogError::Conflict(why) => Refusal::NotAdmitted(why),
            other => catalog_refusal(other),
        })?;
        let admitted = admitted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let (role, admitted) = admitted.ok_or_else(|| Refusal::NotAdmitted(TICKET_REFUSED.into()))?;
        let is_installer = role == Role::Installer;
        let admitted = if is_installer { admitted } else { Admitted::default() };
        let (_, certificate) = self.authority.issue(role, &request.csr, admitted).map_err(invalid)?;
        let directory = self.directory().map_err(catalog_refusal)?;
        if role == Role::Stash {
            self.look_at_labels()?;
        }
        tracing::info!(%node, %role, "member joined");
        Ok(enroll::Enrolled {
            node,
            certificate,
            chain: Vec::new(),
            controller: self.settings.addresses.clone(),
            directory: is_installer.then(|| directory.whole()),
        })
    }

    /// Let a boot server admit installers for some days without this controller, if an admin permits it.
    ///
    /// # Errors
    /// If the request is none.
    pub async fn delegate(&self, who: Identity, ask: &GetDelegation) -> Result<Delegation, Refusal> {
        let now = SystemTime::now();
        let until = now + DELEGATION_LASTS;
        let given = self.authority.delegate(who.node, &ask.csr, now - BACKDATE, until);
        let given = given.map_err(|e| Refusal::Invalid(e.to_string()))?;
        let permitted = Arc::new(AtomicBool::new(false));
        let seen = permitted.clone();
        // Permitted or not is looked up where it is noted: an admin may decide otherwise in the same moment.
        let noted = self.committer.change(move |change| {
            change.change_boot_server(who.node, |known| {
                seen.store(known.offline, Relaxed);
                if known.joined_unix_s == 0 {
                    known.joined_unix_s = unix_s();
                }
                if known.offline {
                    known.delegated_until_unix_s = unix_s() + DELEGATION_LASTS.as_secs();
                }
            })
        });
        noted.await.map_err(catalog_refusal)?;
        Ok(Delegation { certificate: permitted.load(Relaxed).then_some(given) })
    }

    /// A stash reports.
    ///
    /// # Errors
    /// If it is not a member any more.
    pub async fn heartbeat(
        self: &Arc<Self>,
        node: NodeId,
        peer: Peer,
        beat: member::Heartbeat,
    ) -> Result<member::HeartbeatAck, Refusal> {
        let ack = |directory, in_charge, to_hand_over| {
            let again_ms = self.settings.heartbeat_ms;
            Ok(member::HeartbeatAck { directory, again_ms, to_hand_over, in_charge })
        };
        let beat = within_limits(beat);
        let standing = self.catalog.standing(node).map_err(catalog_refusal)?;
        let leaves = matches!(beat.wish, Some(member::Wish::Leave | member::Wish::LeaveNow));
        let Some(known) = self.catalog.node(node).map_err(catalog_refusal)? else {
            // It may not have heard that it could go. Who knows less than it does must not say so.
            if standing.lost && leaves && self.check_in_charge().is_ok() && !self.is_strange(beat.directory)? {
                return ack(None, true, Some(0));
            }
            return Err(Refusal::NotAdmitted("this stash was removed from the array".into()));
        };
        let addresses = vec![SocketAddr::new(peer.address.ip().to_canonical(), beat.port)];
        // Whatever else is to be thought of it: it forgets them once they were heard.
        if !beat.lost.is_empty() {
            let lost = beat.lost.clone();
            let note = self.committer.change(move |change| {
                lost.iter().try_for_each(|f| change.note_damage(node, f.segment, f.piece).map(drop))
            });
            note.await.map_err(catalog_refusal)?;
            for fragment in &beat.lost {
                tracing::warn!(%node, segment = %fragment.segment, piece = fragment.piece, "stash lost a fragment");
            }
            self.repairs.forget_lost(node, &beat.lost);
            self.repairs.wake.notify_one();
        }
        if !self.disbelieves(node) && self.is_strange(beat.directory)? {
            // It may be right, or lie. Until that is known, nothing changes on its word.
            self.pool.learn_one(node, addresses);
            tokio::spawn(self.clone().look_at(node));
            return ack(None, true, None);
        }
        if self.check_in_charge().is_err() {
            return ack(None, false, None);
        }
        self.hear_wish(node, &standing, beat.wish).await?;
        if known.addresses != addresses || known.capacity != beat.capacity {
            let record = NodeRecord { addresses: addresses.clone(), capacity: beat.capacity, ..known };
            let change = self.committer.change(move |change| {
                // It may have been let go meanwhile.
                if change.is_member(node)? {
                    change.put_node(node, &record)?;
                    change.bump_epoch()?;
                }
                Ok(())
            });
            change.await.map_err(catalog_refusal)?;
        }
        self.pool.learn_one(node, addresses);
        let (capacity, used, fragments, fold) = (beat.capacity, beat.used, beat.fragments, beat.fold);
        let (too_much, is_urgent) = match beat.wish {
            Some(member::Wish::Less(bytes)) => (bytes, false),
            Some(member::Wish::LessNow(bytes)) => (bytes, true),
            _ => (0, false),
        };
        let connection = peer.connection;
        if self.fleet.pulse(node).is_none_or(|(before, _)| before.connection != connection) {
            self.pool.forget(node);
        }
        let (at, aside) = (Instant::now(), beat.aside);
        let serves_installers = beat.serves_installers;
        let pulse =
            Pulse { at, connection, capacity, used, fragments, fold, aside, too_much, is_urgent, serves_installers };
        self.fleet.heard(node, pulse);
        let directory = self.directory().map_err(catalog_refusal)?.update_for(beat.directory);
        // Not nothing before it is no member any more: its shares of keys go to others, too.
        let to_hand_over = leaves.then(|| self.to_hand_over(node).map(|left| left.max(1))).transpose()?;
        ack(directory, true, to_hand_over)
    }

    /// Note what a stash's owner wants of it.
    async fn hear_wish(&self, node: NodeId, standing: &Standing, wish: Option<member::Wish>) -> Result<(), Refusal> {
        let leaving = matches!(wish, Some(member::Wish::Leave | member::Wish::LeaveNow));
        let lost = wish == Some(member::Wish::LeaveNow);
        if standing.leaving == leaving && (standing.lost || !lost) {
            return Ok(());
        }
        tracing::info!(%node, leaving, at_once = lost, "its owner said");
        let change = self.committer.change(move |change| {
            if change.is_member(node)? {
                change.change_standing(node, |s| (s.leaving, s.lost) = (leaving, s.lost || lost))?;
            }
            Ok(())
        });
        change.await.map_err(catalog_refusal)?;
        self.repairs.wake.notify_one();
        self.restripes.wake.notify_one();
        Ok(())
    }

    /// Tell a member what is newer than what it has.
    ///
    /// # Errors
    /// The catalog's.
    pub fn tell_directory(&self, who: Identity, ask: &member::GetDirectory) -> Result<member::TheDirectory, Refusal> {
        if who.role == Role::Boot {
            self.fleet.boot_server_heard(who.node, ask.have.map(|mark| mark.epoch));
        }
        let held = self.directory().map_err(catalog_refusal)?;
        Ok(member::TheDirectory { mark: Some(held.mark()), update: held.update_for(ask.have) })
    }

    /// A fresh certificate for a stash whose old one has expired, as after a long holiday: its key, which the request proves, is
    /// the one that once joined.
    ///
    /// # Errors
    /// If no stash with this key is a member.
    pub fn renew_expired(&self, request: &member::Renew) -> Result<member::Renewed, Refusal> {
        let invalid = |e: super::authority::AuthorityError| Refusal::Invalid(e.to_string());
        let node = self.authority.node_of(&request.csr).map_err(invalid)?;
        let known = self.catalog.node(node).map_err(catalog_refusal)?.filter(|n| n.role == Role::Stash);
        let known = known.ok_or_else(|| Refusal::NotAdmitted("no member has this key: join with a ticket".into()))?;
        let (_, certificate) = self.authority.issue(known.role, &request.csr, Admitted::default()).map_err(invalid)?;
        tracing::info!(%node, "expired certificate renewed");
        Ok(member::Renewed { certificate })
    }

    /// A fresh certificate for the key that a member has already.
    ///
    /// # Errors
    /// If the request is for another key.
    pub fn renew(&self, who: Identity, request: &member::Renew) -> Result<member::Renewed, Refusal> {
        let invalid = |e: super::authority::AuthorityError| Refusal::Invalid(e.to_string());
        if self.authority.node_of(&request.csr).map_err(invalid)? != who.node {
            return Err(Refusal::Invalid("a certificate is renewed for the same key only".into()));
        }
        let (_, certificate) = self.authority.issue(who.role, &request.csr, Admitted::default()).map_err(invalid)?;
        Ok(member::Renewed { certificate })
    }
}
