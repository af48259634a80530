//! When members hold a directory that this catalog does not know: it is an old copy, or another controller directs the array. Then this
//! one stands down: it answers questions, changes nothing, deletes nothing, and waits for a person's word.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use images::NodeId;
use protocol::directory::{Directory, Epoch, Mark, SignedDirectory, Verdict};
use protocol::io::rpc::{self, CallError};
use protocol::message::Refusal;
use protocol::message::member::{GetDirectory, OfferDirectory};
use quinn::Connection;

use super::controller::{Controller, catalog_refusal};
use super::unix_s;
use crate::deploy::State;

/// How long a member may take to show its directory.
const SHOW_WITHIN: Duration = Duration::from_secs(10);

/// What a controller that stands down says to whoever wants something changed.
fn refusal(theirs: Mark, ours: Mark) -> Refusal {
    let (epoch, own) = (theirs.epoch, ours.epoch);
    Refusal::Unavailable(format!(
        "this controller stands down: clients hold a directory (epoch {epoch}) that its catalog (epoch {own}) does not know. Either the \
         catalog is an old copy: then build it again from the clients, `coe-controller recover` into an empty folder. Or another \
         controller directs this array: then stop one of them. To go on with this catalog and drop what only the clients know: `coe-ctl \
         overrule --epoch {epoch}`"
    ))
}

/// Tell a member of a directory, if its own is older. The answer is what it holds now.
///
/// # Errors
/// The member's.
pub(super) async fn tell(connection: &Connection, directory: &SignedDirectory) -> Result<Option<Mark>, CallError> {
    let ask = GetDirectory { have: Some(directory.mark()) };
    let theirs = rpc::call(connection, ask, &[]).await?.0.mark;
    match directory.update_for(theirs) {
        Some(update) => Ok(rpc::call(connection, OfferDirectory { update }, &[]).await?.0.mark),
        None => Ok(theirs),
    }
}

impl Controller {
    /// What a member claims to have is neither this controller's newest directory nor one that came before it.
    ///
    /// # Errors
    /// The catalog's.
    pub(super) fn is_strange(&self, mark: Option<Mark>) -> Result<bool, Refusal> {
        let Some(mark) = mark else { return Ok(false) };
        let own = self.directory().map_err(catalog_refusal)?;
        Ok(matches!(own.directory().compare(own.mark(), mark), Verdict::Newer | Verdict::Fork))
    }

    /// Ask a member for the directory that it claims to have. If the array's key signed it, this controller stands down.
    pub(super) async fn look_at(self: Arc<Self>, node: NodeId) {
        let show = async {
            let connection = self.pool.get(node).await?;
            rpc::call(&connection, GetDirectory { have: None }, &[]).await
        };
        let update = match tokio::time::timeout(SHOW_WITHIN, show).await {
            Ok(Ok((shown, _))) => shown.update,
            Ok(Err(CallError::Refused(_) | CallError::Malformed)) => None,
            // It may be right: it is asked again at its next report.
            Ok(Err(_)) | Err(_) => return,
        };
        let key = self.authority.array_key.public();
        match update.map(|update| SignedDirectory::take(None, update, self.array(), &key)) {
            Some(Ok(theirs)) if self.is_strange(Some(theirs.mark())).unwrap_or(false) => self.stand_down(node, theirs),
            Some(Ok(_)) => {}
            None | Some(Err(_)) => {
                tracing::warn!(%node, "a stash claims a directory that this array did not sign; it is not asked again");
                self.disbelieved.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
            }
        }
    }

    /// Whether a member claimed a directory before that it could not show.
    pub(super) fn disbelieves(&self, node: NodeId) -> bool {
        self.disbelieved.lock().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    fn stand_down(&self, node: NodeId, theirs: SignedDirectory) {
        let mut rival = self.rival.lock().unwrap_or_else(PoisonError::into_inner);
        let is_newer = |known: &SignedDirectory| {
            (theirs.mark().term, theirs.mark().epoch) > (known.mark().term, known.mark().epoch)
        };
        if rival.as_ref().is_none_or(is_newer) {
            let mark = theirs.mark();
            tracing::error!(%node, epoch = %mark.epoch, term = mark.term,
                "clients hold a directory that this catalog does not know: this controller stands down, see `coe-ctl status`");
            *rival = Some(theirs);
        }
    }

    /// Whether this controller may change anything.
    ///
    /// # Errors
    /// If it stands down; with what can be done.
    pub fn check_in_charge(&self) -> Result<(), Refusal> {
        let theirs = self.rival.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(SignedDirectory::mark);
        match theirs {
            None => Ok(()),
            Some(theirs) => Err(refusal(theirs, self.directory().map_err(catalog_refusal)?.mark())),
        }
    }

    /// A person's word: this catalog is right, whatever members hold. `epoch` is theirs, so that nobody says it of what they did not see.
    ///
    /// # Errors
    /// If nothing is to be overruled, or not that.
    pub fn overrule(&self, epoch: u64) -> Result<Epoch, Refusal> {
        let own = self.directory().map_err(catalog_refusal)?;
        let mut rival = self.rival.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(theirs) = rival.as_ref().map(SignedDirectory::mark) else {
            return Err(Refusal::Invalid("clients hold nothing that this controller does not know".into()));
        };
        if theirs.epoch.0 != epoch {
            return Err(Refusal::Invalid(format!("clients hold epoch {} by now, not {epoch}", theirs.epoch)));
        }
        let (term, next) = (own.mark().term.max(theirs.term) + 1, Epoch(own.mark().epoch.max(theirs.epoch).0 + 1));
        // Numbers that clients know stay theirs: a new deployment must not be taken for one of the same number that is done.
        let common = rival.as_ref().map(|rival| rival.directory().common()).unwrap_or_default();
        // And what they do not plan any more is done, or was called off, while this catalog did not hear of it: a person has to look.
        let planned: BTreeSet<u32> = { rival.iter() }
            .flat_map(|rival| rival.directory().hosts.iter())
            .filter_map(|(_, host)| Some(host.planned.as_ref()?.id))
            .collect();
        let open = self.catalog.deployments().map_err(catalog_refusal)?;
        let doubtful = open.into_iter().filter(|(id, deployment)| {
            deployment.state.wants_boot() && *id <= common.last_deployment && !planned.contains(id)
        });
        let doubtful: Vec<u32> = doubtful.map(|(id, _)| id).collect();
        let changed = self.catalog.change(|change| {
            change.restore_host_number(common.last_host)?;
            change.restore_deployments(&[], common.last_deployment)?;
            doubtful.iter().try_for_each(|id| {
                change.change_deployment(*id, |deployment| {
                    let why = "clients did not plan this any more when they were overruled: is the machine installed?";
                    (deployment.state, deployment.since_unix_s) = (State::Stopped(why.into()), unix_s());
                    Ok(())
                })
            })
        });
        changed.map_err(catalog_refusal)?;
        let contents = self.contents().map_err(catalog_refusal)?;
        let directory = Directory::next(Some(&own), self.array(), self.line, next, contents).in_term(term);
        self.keep_directory(directory.sign(&self.authority.array_key)).map_err(catalog_refusal)?;
        tracing::warn!(term, epoch = %next, over = %theirs.epoch, "overruled what clients held");
        *rival = None;
        Ok(next)
    }
}
