//! Where the image comes from: the controller for the manifest and its key, stashes for the bytes; while the controller is away, stashes
//! for everything.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use images::NodeId;
use images::keys::{ManifestKey, SegmentKey};
use images::manifest::{PageRef, Root, SegmentEntry, SegmentPage, SpanPage};
use protocol::directory::{Directory, DirectoryError, SignedDirectory, Update};
use protocol::identity::Role;
use protocol::io::array::Array;
use protocol::io::credentials::{Credentials, CredentialsError, file_of};
use protocol::io::directory::{DirectoryKeeper, KeepError};
use protocol::io::link::Link;
use protocol::io::words;
use protocol::io::{rpc, tls};
use protocol::message::Refusal;
use protocol::message::image::{GetImage, GetPage, ImageGrant, LeftReport, MANIFEST_PURPOSE, Report, Word};
use protocol::ticket::Ticket;
use tokio::sync::OnceCell;

/// How long a controller may take that is there. One whose machine is off answers nothing at all.
const CONTROLLER_WITHIN: Duration = Duration::from_secs(20);

/// So long the controller is asked alone; then stashes are looked for, too, in case it is away.
const CONTROLLER_ALONE_FOR: Duration = Duration::from_millis(100);

/// A controller that has not even been connected to by then is not waited for, once stashes can do without it.
const CONNECTED_WITHIN: Duration = Duration::from_millis(400);

/// A segment and its key.
pub struct Segment {
    /// From the manifest.
    pub entry: Arc<SegmentEntry>,
    /// Opens it.
    pub key: SegmentKey,
}

/// An image that may be installed.
pub struct Source {
    controller: Arc<Link>,
    array: Array,
    /// The verified root.
    pub root: Root,
    /// Had when it is first needed: stashes write down who asks them for it.
    key: OnceCell<ManifestKey>,
    /// Whether the controller was asked, and not stashes.
    pub from_controller: bool,
}

/// Credentials for an installation: from a ticket, which is then used up, or those of the last ticket, or an admin's.
///
/// # Errors
/// If there are none, or the ticket is not for an installer.
pub async fn credentials(home: &Path, ticket: Option<Ticket>) -> anyhow::Result<Credentials> {
    let file = file_of(home, Role::Installer);
    if let Some(ticket) = ticket {
        if ticket.role != Role::Installer {
            bail!("this ticket is for role {}: create one with `coe-ctl token create --installer`", ticket.role);
        }
        let saved = Credentials::load(&file).ok().filter(|c| c.identity.array == ticket.array);
        let member = match (Credentials::join_and_learn(&ticket).await, saved) {
            (Ok((member, directory)), _) => {
                keep_directory(&DirectoryKeeper::in_home(home, &member), directory);
                member
            }
            // The ticket was used by the try before this one, on this machine.
            (Err(CredentialsError::Join(rpc::CallError::Refused(_))), Some(saved)) => return Ok(saved),
            (Err(error), _) => return Err(error.into()),
        };
        // Kept, so that an installation that fails can be tried again without another ticket.
        member.save(&file)?;
        return Ok(member);
    }
    let found = [file, file_of(home, Role::Admin)].into_iter().find(|f| f.exists());
    let file = found
        .context("nobody said that this machine may install: give --ticket, from `coe-ctl token create --installer`")?;
    Ok(Credentials::load(&file)?)
}

/// Keep the directory that came with credentials, for the time when nobody is there to ask. Without it stashes are looked for on the
/// same network.
pub(super) fn keep_directory(keeper: &DirectoryKeeper, directory: Option<Update>) {
    if let Some(update) = directory
        && let Err(error) = keeper.take(update)
    {
        tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "directory not kept");
    }
}

impl Source {
    /// Ask for an image and check everything that the answer claims. The controller is asked first; while it is away, or if stashes to ask
    /// are named in `via` (`host:port`), they tell what they know. `keeper` keeps the directory for that day.
    ///
    /// # Errors
    /// If neither can be reached, or they refuse, or the answer is not the array's.
    pub async fn open(
        member: &Credentials,
        keeper: &DirectoryKeeper,
        via: &[String],
        name: &str,
        tag: Option<String>,
    ) -> anyhow::Result<Self> {
        let controller = Arc::new(Link::new(member).context("open a UDP socket")?);
        let endpoint = controller.endpoint.clone();
        let stashes = async move {
            // A controller that is there answers long before this.
            if via.is_empty() {
                tokio::time::sleep(CONTROLLER_ALONE_FOR).await;
            }
            Array::reach(endpoint, member, keeper, via).await
        };
        let mut stashes = std::pin::pin!(stashes);
        let mut reached = None;
        if via.is_empty() {
            let (link, get) = (controller.clone(), GetImage { name: name.into(), tag: tag.clone() });
            let asked = async move { link.call(get).await };
            let mut asked = std::pin::pin!(tokio::time::timeout(CONTROLLER_WITHIN, asked));
            let mut patience = std::pin::pin!(tokio::time::sleep(CONNECTED_WITHIN));
            let mut is_patient = true;
            let answer = loop {
                tokio::select! {
                    biased;
                    answer = &mut asked => break Some(answer),
                    array = &mut stashes, if reached.is_none() => reached = Some(array),
                    () = &mut patience, if is_patient => is_patient = false,
                }
                let may_go_on = !is_patient && !controller.is_connected();
                if may_go_on && reached.as_ref().is_some_and(|array| suffices(array, member, name, tag.as_deref())) {
                    break None;
                }
            };
            match answer {
                None => tracing::warn!("the controller does not answer, going on with stashes"),
                Some(Ok(Ok((grant, _)))) => {
                    let granted = Self::granted(member, keeper, controller.clone(), grant, name, tag.as_deref())?;
                    match granted {
                        Some(source) => return Ok(source),
                        None => tracing::warn!(
                            "the controller's directory is older than what stashes have told before; asking stashes"
                        ),
                    }
                }
                Some(Ok(Err(rpc::CallError::Refused(Refusal::Unavailable(why))))) => {
                    tracing::warn!(why, "the controller does not grant images now, asking stashes");
                }
                Some(Ok(Err(error @ rpc::CallError::Refused(_)))) => return Err(error.into()),
                Some(Ok(Err(error))) => tracing::warn!(%error, "the controller is away, asking stashes"),
                Some(Err(_)) => tracing::warn!("the controller does not answer, asking stashes"),
            }
        }
        let array = match reached {
            Some(array) => array,
            None => stashes.await,
        };
        let array = array.context("reach the array without its controller")?;
        Self::of_stashes(controller, array, name, tag.as_deref()).await
    }

    /// An image, as stashes tell of it.
    ///
    /// # Errors
    /// If they do not know it, or its manifest cannot be had.
    pub async fn of_stashes(
        controller: Arc<Link>,
        array: Array,
        name: &str,
        tag: Option<&str>,
    ) -> anyhow::Result<Self> {
        let (image, head) = array.find(name, tag)?;
        let root = array.root(&image, &head).await?;
        Ok(Self { controller, array, root, key: OnceCell::new(), from_controller: false })
    }

    fn granted(
        member: &Credentials,
        keeper: &DirectoryKeeper,
        controller: Arc<Link>,
        grant: ImageGrant,
        name: &str,
        tag: Option<&str>,
    ) -> anyhow::Result<Option<Self>> {
        let signed = grant.manifest.verify(MANIFEST_PURPOSE, &member.array_key).context("verify the manifest")?;
        let root = Root::decode(signed).context("decode the manifest")?;
        if root.array != member.identity.array
            || root.image.name() != name
            || tag.is_some_and(|t| t != root.image.tag())
        {
            bail!("the controller answered with another image, {}", root.image);
        }
        let (array, key) = (member.identity.array, &member.array_key);
        let directory = SignedDirectory::take(None, grant.directory.clone(), array, key)?;
        match keeper.take(grant.directory) {
            Err(KeepError::Refused(DirectoryError::Stale(mark))) if keeper.mark() != Some(mark) => return Ok(None),
            Err(KeepError::Refused(error @ DirectoryError::Fork(_))) => return Err(error.into()),
            // It is for a try while the controller is away. An installation does not fail because that cannot be kept.
            Err(error @ KeepError::File(..)) => tracing::debug!(error = format!("{error:#}"), "directory not kept"),
            Ok(_) | Err(_) => {}
        }
        let array = Array::new(controller.endpoint.clone(), member, Arc::new(directory));
        Ok(Some(Self { controller, array, root, key: OnceCell::from(grant.key), from_controller: true }))
    }

    /// The key of the manifest. Asked for before a disk is touched, it is one reason less to stop in the middle.
    ///
    /// # Errors
    /// If too few stashes release their share.
    pub async fn key(&self) -> anyhow::Result<&ManifestKey> {
        let image = &self.root.image;
        let ask = || async {
            let (image, head) = self.array.find(image.name(), Some(image.tag()))?;
            anyhow::Ok(self.array.key(&image, &head, None).await?.key)
        };
        self.key.get_or_try_init(ask).await
    }

    /// The same, and its key is known.
    #[must_use]
    pub fn with_key(self, key: ManifestKey) -> Self {
        Self { key: OnceCell::from(key), ..self }
    }

    /// The array.
    #[must_use]
    pub fn array(&self) -> &Array {
        &self.array
    }

    /// Who holds what.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        self.array.directory()
    }

    /// A page: from the controller while it is there, and from the array if it is not, or went away.
    async fn page(&self, page: &PageRef) -> anyhow::Result<Vec<u8>> {
        if self.from_controller {
            let asked = self.controller.call(GetPage { digest: page.digest });
            match tokio::time::timeout(CONTROLLER_WITHIN, asked).await {
                Ok(Ok((_, bytes))) if page.matches(&bytes) => return Ok(bytes.to_vec()),
                Ok(Ok(_)) => bail!("the controller sent a page that is not the manifest's"),
                Ok(Err(error @ rpc::CallError::Refused(_))) => return Err(error.into()),
                Ok(Err(error)) => tracing::info!(%error, "the controller went away, asking stashes"),
                Err(_) => tracing::info!("the controller does not answer, asking stashes"),
            }
        }
        Ok(self.array.page(page).await?.to_vec())
    }

    /// Segments of one page.
    ///
    /// # Errors
    /// If the page cannot be had, or is not what the root says.
    pub async fn segments(&self, index: usize) -> anyhow::Result<Vec<Segment>> {
        let bytes = self.page(&self.root.segment_pages[index]).await?;
        let page = SegmentPage::decode(&bytes, index as u32, self.root.disk_len)?;
        let keys = page.keys(self.key().await?)?;
        let segment = |(entry, key)| Segment { entry: Arc::new(entry), key };
        Ok(page.segments.into_iter().zip(keys).map(segment).collect())
    }

    /// Spans of one page.
    ///
    /// # Errors
    /// If the page cannot be had, or is not what the root says.
    pub async fn spans(&self, index: usize) -> anyhow::Result<SpanPage> {
        let bytes = self.page(&self.root.span_pages[index]).await?;
        Ok(SpanPage::decode(&bytes)?)
    }

    /// Holders of a segment, piece by piece.
    ///
    /// # Errors
    /// If the directory does not know its group.
    pub fn holders(&self, entry: &SegmentEntry) -> anyhow::Result<Vec<NodeId>> {
        self.array.holders(entry)
    }

    /// Tell the controller how it went; while it is away, leave it with some stashes, which tell it later. An installation does not fail
    /// because nobody hears of it.
    pub async fn report(&self, report: Report) {
        let word = words::say(Word::Ended(report));
        if self.from_controller {
            match tell(&self.controller, &word).await {
                Ok(()) => return,
                Err(error) if !error.is_absence() => return tracing::warn!(%error, "report not delivered"),
                Err(_) => tracing::info!("the controller is away, leaving the report with stashes"),
            }
        }
        if let Err(error) = self.array.leave(&word).await {
            tracing::warn!(%error, "report not delivered");
        }
    }
}

/// Tell the controller itself.
///
/// # Errors
/// If it did not hear it in time, stands down, or refuses it.
pub async fn tell(controller: &Link, word: &LeftReport) -> Result<(), rpc::CallError> {
    match tokio::time::timeout(CONTROLLER_WITHIN, controller.call(word.clone())).await {
        Ok(told) => told.map(drop),
        Err(_) => Err(rpc::CallError::Unreachable("the controller".into())),
    }
}

/// Whether stashes that were reached can stand in for the controller in all that this member needs for an image.
fn suffices(array: &anyhow::Result<Array>, member: &Credentials, name: &str, tag: Option<&str>) -> bool {
    let names_a_machine = || Some(tls::bearer_of(&member.certificate, member.identity.array)?.host.is_some());
    let head = array.as_ref().ok().and_then(|array| array.find(name, tag).ok());
    head.is_some_and(|(_, head)| head.offline.is_some()) && names_a_machine() == Some(true)
}
