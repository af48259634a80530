//! `--via STASH`: what any one stash tells, while the controller is away.

use std::collections::BTreeMap;

use anyhow::Context as _;
use clap::Args;
use images::SegmentId;
use images::manifest::{ImageName, Root, SegmentEntry, SegmentPage};
use protocol::io::array::Array;
use protocol::io::directory::DirectoryKeeper;
use protocol::io::{endpoint, tls};
use tokio::task::JoinSet;

use super::{Common, client, table};
use crate::io::verify::{Problem, Verification, prove};

/// Proofs under way.
const TOGETHER: usize = 32;

/// Whom to ask.
#[derive(Args)]
pub struct Via {
    /// Ask this stash and not the controller, host:port; may be given more than once
    #[arg(long, value_name = "ADDRESS")]
    via: Vec<String>,
}

impl Via {
    /// The array through these stashes; `None` if the controller is to be asked.
    pub(super) async fn array(&self, common: &Common) -> anyhow::Result<Option<Array>> {
        if self.via.is_empty() {
            return Ok(None);
        }
        let admin = client::credentials(common)?;
        let socket = endpoint::client(tls::client(&admin, tls::ALPN_MEMBER)?)?;
        Array::reach(socket, &admin, &DirectoryKeeper::in_home(&common.home, &admin), &self.via).await.map(Some)
    }
}

/// An image's root, or those of all.
pub(super) async fn roots(array: &Array, image: Option<&ImageName>) -> anyhow::Result<Vec<Root>> {
    let mut roots = Vec::new();
    for (name, head) in array.directory().heads.iter().filter(|(name, _)| image.is_none_or(|only| only == *name)) {
        roots.push(array.root(name, head).await.with_context(|| format!("read the manifest of {name}"))?);
    }
    match image {
        Some(image) if roots.is_empty() => anyhow::bail!("{image} not found"),
        _ => Ok(roots),
    }
}

/// Let every holder prove its pieces, manifests' pages included.
pub(super) async fn verify(array: &Array, image: Option<&ImageName>) -> anyhow::Result<Verification> {
    let mut segments: BTreeMap<SegmentId, SegmentEntry> = BTreeMap::new();
    for root in roots(array, image).await? {
        let head = array.find(root.image.name(), Some(root.image.tag()))?.1;
        for page in root.segment_pages.iter().chain(&root.span_pages).chain([&head.root]) {
            let group = array.directory().groups.get(&page.group).context("a page of an unknown group")?;
            segments.insert(SegmentId(page.digest), page.entry(group.geometry));
        }
        for (index, page) in root.segment_pages.iter().enumerate() {
            let page = SegmentPage::decode(&array.page(page).await?, index as u32, root.disk_len)?;
            segments.extend(page.segments.into_iter().map(|entry| (entry.id, entry)));
        }
    }
    let bar = table::bar(segments.len() as u64, "verify");
    let mut v = Verification { segments: segments.len() as u64, finished: true, ..Verification::default() };
    let (mut tasks, mut entries) = (JoinSet::new(), segments.into_values());
    loop {
        while tasks.len() < TOGETHER
            && let Some(entry) = entries.next()
        {
            let (array, holders) = (array.clone(), array.holders(&entry)?);
            tasks.spawn(async move {
                let (mut problems, payload_len) =
                    (Vec::new(), entry.geometry.piece_len(entry.sealed_len as usize) as u64);
                for (piece, node) in holders.into_iter().enumerate() {
                    let proven = prove(array.pool(), entry.id, entry.fragments[piece], payload_len, piece as u8, node);
                    if let Err(what) = proven.await {
                        let (segment, node) = (entry.id.to_string(), Some(node.to_string()));
                        let what = what.to_string();
                        problems.push(Problem { segment, piece: Some(piece as u8), node, what });
                    }
                }
                (entry.geometry, problems)
            });
        }
        let Some(done) = tasks.join_next().await else { break };
        let (geometry, problems) = done.context("verify a segment")?;
        let proven = geometry.pieces() - problems.len();
        v.done += 1;
        v.pieces_proven += proven as u64;
        v.unreadable += u64::from(proven < geometry.data());
        v.problem_count += problems.len() as u64;
        v.problems.extend(problems);
        bar.set_position(v.done);
    }
    bar.finish_and_clear();
    Ok(v)
}
