//! Images that are to be cut anew.

use axum::Json;
use axum::extract::State;
use protocol::message::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::routes::{Answer, Shared};
use crate::catalog::SaidRecord;
use crate::io::controller::{Controller, catalog_refusal};
use crate::io::restripe::{Due, When};

/// When an image is cut anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestripeState {
    /// Now.
    UnderWay,
    /// Next.
    Next,
    /// In the hours of the policy's window.
    InItsHours,
    /// When the fleet has suggested it for long enough.
    Settles,
    /// It was tried, and failed; it is tried again.
    Failed,
}

/// An image that is to be cut anew.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RestripeInfo {
    /// `name:tag`.
    pub image: String,
    /// `k+m layout` of most of it.
    pub is: String,
    /// `k+m layout` that is wanted.
    pub wanted: String,
    /// Why.
    pub why: String,
    /// Sealed bytes to be cut anew.
    pub bytes: u64,
    /// When.
    pub state: RestripeState,
    /// Seconds until it has been suggested for long enough.
    pub settles_in_s: Option<u64>,
    /// What went wrong.
    pub problem: Option<String>,
    /// Segments that are cut anew, of those that are to be.
    pub done: u64,
    /// See `done`.
    pub of: u64,
    /// Seconds until that is done, at the speed so far.
    pub eta_s: Option<u64>,
}

/// An image to be cut anew as policies want, whatever hour it is and whatever was said when it was published.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RestripeRequest {
    /// `name`, for its newest tag, or `name:tag`.
    pub image: String,
}

/// Whether there is anything to do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RestripeAnswer {
    /// `name:tag`.
    pub image: String,
    /// What is done; none if the image is as it should be.
    pub due: Option<RestripeInfo>,
}

impl Controller {
    pub(super) fn restripe_infos(&self) -> Result<Vec<RestripeInfo>, Refusal> {
        Ok(self.restripes_due()?.into_iter().map(|due| self.restripe_info(due)).collect())
    }

    fn restripe_info(&self, due: Due) -> RestripeInfo {
        let running = self.restripes.running().filter(|running| running.image == due.image);
        let (state, settles_in_s, problem) = match due.when {
            When::UnderWay => (RestripeState::UnderWay, None, None),
            When::Next => (RestripeState::Next, None, None),
            When::InItsHours => (RestripeState::InItsHours, None, None),
            When::Settles(in_s) => (RestripeState::Settles, Some(in_s), None),
            When::Failed(what) => (RestripeState::Failed, None, Some(what)),
        };
        RestripeInfo {
            image: due.image.to_string(),
            is: due.is.to_string(),
            wanted: due.wanted.to_string(),
            why: due.why.to_string(),
            bytes: due.bytes,
            state,
            settles_in_s,
            problem,
            done: running.as_ref().map_or(0, |running| running.done),
            of: running.as_ref().map_or(0, |running| running.of),
            eta_s: running.and_then(|running| running.eta_s()),
        }
    }
}

/// Images that are to be cut anew
#[utoipa::path(get, path = "/v1/restripe", responses((status = 200, body = [RestripeInfo])))]
pub(super) async fn list_restripes(State(c): Shared) -> Answer<Vec<RestripeInfo>> {
    Ok(Json(c.restripe_infos()?))
}

/// Cut an image anew now
#[utoipa::path(post, path = "/v1/restripe", request_body = RestripeRequest,
    responses((status = 200, body = RestripeAnswer), (status = 404)))]
pub(super) async fn restripe(State(c): Shared, Json(ask): Json<RestripeRequest>) -> Answer<RestripeAnswer> {
    let (name, tag) = ask.image.split_once(':').map_or((ask.image.as_str(), None), |(name, tag)| (name, Some(tag)));
    let (image, _) = c.find_image(name, tag)?;
    let of = image.clone();
    let forgotten = c.committer.change(move |change| change.put_said(&of, &SaidRecord::default()));
    forgotten.await.map_err(catalog_refusal)?;
    let find = || Ok::<_, Refusal>(c.restripes_due()?.into_iter().find(|due| due.image == image));
    if find()?.is_some() {
        tracing::info!(%image, "an admin wants an image cut anew");
        c.restripes.ask(image.clone());
    }
    let due = find()?.map(|due| c.restripe_info(due));
    Ok(Json(RestripeAnswer { image: image.to_string(), due }))
}
