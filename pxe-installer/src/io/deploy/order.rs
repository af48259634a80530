//! What this machine is to become: the controller says it, and while it is away the directory does.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use protocol::io::array::Array;
use protocol::io::credentials::Credentials;
use protocol::io::directory::DirectoryKeeper;
use protocol::io::link::Link;
use protocol::io::tls;
use protocol::machine::Facts;
use protocol::message::boot::{Deployment, Finishing, GetDeployment};
use protocol::message::image::{LeftReport, Word};

use crate::io::source::Source;

/// So long a controller is asked that admitted this installer itself.
const CONTROLLER_WITHIN: Duration = Duration::from_secs(10);
/// So long one that was away a moment ago, when a boot server admitted this installer.
const ABSENT_CONTROLLER_WITHIN: Duration = Duration::from_secs(1);

/// The deployment; and where its image comes from, if that was found out on the way.
pub(super) async fn get(
    link: &Arc<Link>,
    keeper: &DirectoryKeeper,
    member: &Credentials,
    facts: &Facts,
) -> anyhow::Result<(Deployment, Option<Source>)> {
    let within = if member.chain.is_empty() { CONTROLLER_WITHIN } else { ABSENT_CONTROLLER_WITHIN };
    match tokio::time::timeout(within, link.call(GetDeployment { facts: facts.clone() })).await {
        Ok(Ok((deployment, _))) => return Ok((deployment, None)),
        Ok(Err(error)) if !error.is_absence() => return Err(error.into()),
        _ => super::say("the controller does not answer; asking stashes what to do"),
    }
    let (deployment, source) = of_directory(link, keeper, member, facts).await?;
    Ok((deployment, Some(source)))
}

async fn of_directory(
    link: &Arc<Link>,
    keeper: &DirectoryKeeper,
    member: &Credentials,
    facts: &Facts,
) -> anyhow::Result<(Deployment, Source)> {
    let array = Array::reach(link.endpoint.clone(), member, keeper, &[]).await.context("reach the array")?;
    let own = tls::bearer_of(&member.certificate, member.identity.array).context("read the own certificate")?;
    let directory = array.directory();
    let host = own.host.and_then(|number| directory.hosts.get(&number));
    let host = host.context("the machine that this installer was admitted for is not approved any more")?;
    ensure!(host.marks().can_be(facts), "this machine is not {}, whose deployment it asks for", host.name);
    let planned = host.planned.as_ref().filter(|planned| Some(planned.id) == own.deployment);
    let planned = planned.with_context(|| format!("nothing is planned for {} without the controller", host.name))?;
    let (image, head) = array.find(planned.image.name(), Some(planned.image.tag()))?;
    let released = array.key(&image, &head, Some(&planned.order)).await?;
    let order = released.order.and_then(|order| planned.read(directory, &order));
    let order = order.context("what is planned for this machine cannot be read")?;
    let deployment = Deployment { finishing: last_finishing(released.left).or(order.finishing.clone()), ..order };
    let source = Source::of_stashes(link.clone(), array, image.name(), Some(image.tag())).await?;
    Ok((deployment, source.with_key(released.key)))
}

/// The disk that the last installer before this one was about to make bootable.
fn last_finishing(left: Vec<LeftReport>) -> Option<Finishing> {
    let finishing = left.into_iter().filter_map(|left| match left.word {
        Word::Progress(progress) => Some((left.at_unix_ms, progress.finishing?)),
        Word::Ended(_) => None,
    });
    finishing.max_by_key(|(at, _)| *at).map(|(_, finishing)| finishing)
}
