//! Where the image comes from: the controller for the manifest, stashes for the bytes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use images::NodeId;
use images::keys::{ManifestKey, SegmentKey};
use images::manifest::{PageRef, Root, SegmentEntry, SegmentPage, SpanPage};
use protocol::directory::Directory;
use protocol::getter::Patience;
use protocol::identity::Role;
use protocol::io::credentials::{Credentials, CredentialsError, file_of};
use protocol::io::fetch::Fetcher;
use protocol::io::link::Link;
use protocol::io::pool::Pool;
use protocol::io::rpc;
use protocol::message::image::{GetImage, GetPage, MANIFEST_PURPOSE, Report};
use protocol::ticket::Ticket;

/// A controller that restarts in the middle of an installation is waited for.
const CONTROLLER_BACK_WITHIN: Duration = Duration::from_secs(120);

/// A segment and its key.
pub struct Segment {
    /// From the manifest.
    pub entry: Arc<SegmentEntry>,
    /// Opens it.
    pub key: SegmentKey,
}

/// An image that may be installed.
pub struct Source {
    controller: Link,
    /// The verified root.
    pub root: Root,
    /// Who holds what.
    pub directory: Directory,
    key: ManifestKey,
    /// Fetches segments.
    pub fetcher: Fetcher,
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
        let member = match (Credentials::join(&ticket).await, saved) {
            (Ok(member), _) => member,
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

impl Source {
    /// Ask for an image and check everything that the answer claims.
    ///
    /// # Errors
    /// If the controller cannot be reached or refuses, or the answer is not the array's.
    pub async fn open(member: &Credentials, name: &str, tag: Option<String>) -> anyhow::Result<Self> {
        let controller = Link::new(member).context("open a UDP socket")?;
        let (grant, _) = match controller.call(GetImage { name: name.into(), tag: tag.clone() }).await {
            Err(error @ rpc::CallError::Refused(_)) => return Err(error.into()),
            other => other.context("reach the controller")?,
        };
        let signed = grant.manifest.verify(MANIFEST_PURPOSE, &member.array_key).context("verify the manifest")?;
        let root = Root::decode(signed).context("decode the manifest")?;
        if root.array != member.identity.array
            || root.image.name() != name
            || tag.is_some_and(|t| t != root.image.tag())
        {
            bail!("the controller answered with another image, {}", root.image);
        }
        let directory = Directory::open(&grant.directory, member.identity.array, &member.array_key)?;
        let pool = Arc::new(Pool::new(controller.endpoint.clone()));
        pool.learn(&directory);
        let fetcher = Fetcher::start(pool, Patience::default(), directory.epoch);
        Ok(Self { controller, root, directory, key: grant.key, fetcher })
    }

    async fn page(&self, page: &PageRef) -> anyhow::Result<Vec<u8>> {
        let start = Instant::now();
        let bytes = loop {
            match self.controller.call(GetPage { digest: page.digest }).await {
                Ok((_, bytes)) => break bytes,
                Err(error @ rpc::CallError::Refused(_)) => return Err(error.into()),
                Err(error) if start.elapsed() > CONTROLLER_BACK_WITHIN => return Err(error.into()),
                Err(error) => tracing::warn!(%error, "controller is away, trying again"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        if !page.matches(&bytes) {
            bail!("the controller sent a page that is not the manifest's");
        }
        Ok(bytes.to_vec())
    }

    /// Segments of one page.
    ///
    /// # Errors
    /// If the page cannot be had, or is not what the root says.
    pub async fn segments(&self, index: usize) -> anyhow::Result<Vec<Segment>> {
        let bytes = self.page(&self.root.segment_pages[index]).await?;
        let page = SegmentPage::decode(&bytes, index as u32, self.root.disk_len)?;
        let keys = page.keys(&self.key)?;
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
        let group = self.directory.groups.get(&entry.group).filter(|g| g.geometry == entry.geometry);
        let group = group.with_context(|| format!("the directory does not know group {}", entry.group))?;
        Ok(group.members.clone())
    }

    /// Tell the controller how it went.
    ///
    /// # Errors
    /// If it did not hear it.
    pub async fn deliver(&self, report: Report) -> Result<(), rpc::CallError> {
        self.controller.call(report).await.map(drop)
    }

    /// Tell the controller how it went. An installation does not fail because nobody hears of it.
    pub async fn report(&self, report: Report) {
        if let Err(error) = self.deliver(report).await {
            tracing::warn!(%error, "report not delivered");
        }
    }
}
