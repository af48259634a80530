//! The array seen through its stashes, with its controller or without: the newest directory, manifests, and keys from their shares.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use images::keys::ManifestKey;
use images::manifest::{ImageName, PageRef, Root, SegmentEntry, Signed};
use images::shares::{self, KeyShare, Order};
use images::wire;
use images::{GroupId, NodeId};
use quinn::{Connection, Endpoint};
use tokio::task::JoinSet;

use super::credentials::Credentials;
use super::directory::{DirectoryKeeper, KeepError};
use super::fetch::{FetchReport, Fetcher, Pieces};
use super::nearby::Nearby;
use super::pool::Pool;
use super::rpc::{self, CallError};
use super::statement::Statement;
use super::tls;
use super::words;
use crate::directory::{Directory, DirectoryError, Head, Mark, SignedDirectory, Verdict};
use crate::getter::{Patience, Shortfall};
use crate::identity::STASH_NAME;
use crate::limits::GUEST_FRAME_MAX;
use crate::message::image::{LeaveReport, Left, LeftReport, MANIFEST_PURPOSE, REPORT_PURPOSE};
use crate::message::member::{GetDirectory, OfferDirectory, TheDirectory};
use crate::message::store::{GetShare, TheShare};

/// How long a stash may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The same for one that may have to be looked for first, on its old address and on the network.
const FOUND_AND_ANSWERED_WITHIN: Duration = Duration::from_secs(15);
/// So many members are asked which directory is the newest: one that keeps a newer one to itself is outvoted by any other.
const ASKED: usize = 8;
/// Nobody is left out, and all are waited for.
const EVERYBODY: usize = usize::MAX;

/// Stashes that keep a report, where so many answer.
const REPORT_COPIES: usize = 3;
/// How long the others are waited for, once half have answered.
const WAIT_FOR_OTHERS: Duration = Duration::from_millis(500);

/// An installer's deployment was carried out before: its machine is installed, and has only to be started.
#[derive(Debug, thiserror::Error)]
#[error("this deployment is done")]
pub struct AlreadyDone;

/// What holders of shares gave.
pub struct Released {
    /// Opens the image.
    pub key: ManifestKey,
    /// The order that was asked for.
    pub order: Option<Vec<u8>>,
    /// What earlier installers of the same deployment left with them.
    pub left: Vec<LeftReport>,
}

/// The array.
#[derive(Clone)]
pub struct Array {
    member: Arc<Credentials>,
    pool: Arc<Pool>,
    directory: Arc<SignedDirectory>,
    /// Newer ones, learnt because pieces were not where the first one says.
    newest: Arc<tokio::sync::Mutex<Arc<SignedDirectory>>>,
    fetcher: Fetcher,
}

/// What a member has that is newer than `have`; `None` from one that does not answer.
async fn told_by(connection: &Connection, have: Option<Mark>) -> Option<TheDirectory> {
    let asked = rpc::call(connection, GetDirectory { have }, &[]);
    Some(tokio::time::timeout(ANSWER_WITHIN, asked).await.ok()?.ok()?.0)
}

/// Members from all over a directory, whose order is as good as chance.
fn some_of(directory: &Directory, most: usize) -> Vec<NodeId> {
    let all: Vec<NodeId> = directory.members.iter().map(|(node, _)| *node).collect();
    let step = (all.len() / most).max(1);
    all.into_iter().step_by(step).take(most).collect()
}

/// Ask members for their newest directory, and keep the newest of all.
async fn look_for_newer(
    pool: &Arc<Pool>,
    keeper: &DirectoryKeeper,
    via: &[Connection],
    most: usize,
) -> anyhow::Result<usize> {
    let have = keeper.mark();
    let mut asks: JoinSet<Option<(Connection, Mark)>> = JoinSet::new();
    for connection in via {
        let connection = connection.clone();
        asks.spawn(async move {
            let mark = told_by(&connection, have).await?.mark?;
            Some((connection, mark))
        });
    }
    if let Some(held) = keeper.held() {
        pool.learn(held.directory());
        for node in some_of(held.directory(), most) {
            let pool = pool.clone();
            asks.spawn(async move {
                let connection = pool.get(node).await.ok()?;
                let mark = told_by(&connection, have).await?.mark?;
                Some((connection, mark))
            });
        }
    }
    // Whoever is away is not waited for once half of those that were asked have answered.
    let (asked, mut answers) = (asks.len(), Vec::new());
    let mut enough = None;
    while !asks.is_empty() {
        let next = tokio::select! {
            next = asks.join_next() => next,
            () = async { tokio::time::sleep_until(enough.expect("guarded")).await }, if enough.is_some() => break,
        };
        answers.extend(next.and_then(Result::ok).flatten());
        if enough.is_none() && answers.len() * 2 >= asked && most != EVERYBODY {
            enough = Some(tokio::time::Instant::now() + WAIT_FOR_OTHERS);
        }
    }
    let heard = answers.len();
    let all = answers.clone();
    answers.sort_by_key(|(_, mark)| std::cmp::Reverse((mark.term, mark.epoch)));
    // The newest claim first. A claim is nothing before the array's signature is seen, so every one that is not a predecessor of what is held
    // by then is looked at.
    for (connection, claim) in answers {
        let is_known = |held: &SignedDirectory| {
            matches!(held.directory().compare(held.mark(), claim), Verdict::Same | Verdict::Older)
        };
        if keeper.held().is_some_and(|held| is_known(&held)) {
            continue;
        }
        let whole = told_by(&connection, None).await.and_then(|told| told.update);
        let Some(update) = whole else { continue };
        match keeper.take(update) {
            Ok(_) | Err(KeepError::Refused(DirectoryError::Stale(_))) => {}
            Err(KeepError::Refused(error @ DirectoryError::Fork(_))) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(from = %connection.remote_address(), error = format!("{error:#}"), "directory refused")
            }
        }
    }
    pass_on(keeper, all);
    Ok(heard)
}

/// Tell those who have an older directory what is newer. Nobody waits for it.
fn pass_on(keeper: &DirectoryKeeper, members: Vec<(Connection, Mark)>) {
    let Some(held) = keeper.held() else { return };
    for (connection, theirs) in members {
        let update = held.update_for(Some(theirs));
        if let Some(update) = update.filter(|update| wire::encode(update).len() < GUEST_FRAME_MAX / 2) {
            tokio::spawn(async move {
                let offered = rpc::call(&connection, OfferDirectory { update }, &[]);
                let _ = tokio::time::timeout(ANSWER_WITHIN, offered).await;
            });
        }
    }
}

impl Array {
    /// The array as a directory describes it.
    #[must_use]
    pub fn new(endpoint: Endpoint, member: &Credentials, directory: Arc<SignedDirectory>) -> Self {
        let nearby = Arc::new(Nearby::new(member.identity.array));
        Self::with_pool(Arc::new(Pool::with_nearby(endpoint, nearby)), member, directory)
    }

    fn with_pool(pool: Arc<Pool>, member: &Credentials, directory: Arc<SignedDirectory>) -> Self {
        pool.learn(directory.directory());
        let fetcher = Fetcher::start(pool.clone(), Patience::default(), directory.mark().epoch);
        let newest = Arc::new(tokio::sync::Mutex::new(directory.clone()));
        Self { member: Arc::new(member.clone()), pool, directory, newest, fetcher }
    }

    /// Find the array without its controller: through stashes at `via` (`host:port`), through those of the directory that was kept, or
    /// through those that are on the same network.
    ///
    /// # Errors
    /// If no stash answers.
    pub async fn reach(
        endpoint: Endpoint,
        member: &Credentials,
        keeper: &DirectoryKeeper,
        via: &[String],
    ) -> anyhow::Result<Self> {
        Self::reach_asking(endpoint, member, keeper, via, ASKED).await
    }

    /// The same, and every stash is asked for its directory: where the newest must not be missed, however few have it.
    ///
    /// # Errors
    /// If no stash answers.
    pub async fn reach_all(
        endpoint: Endpoint,
        member: &Credentials,
        keeper: &DirectoryKeeper,
        via: &[String],
    ) -> anyhow::Result<Self> {
        Self::reach_asking(endpoint, member, keeper, via, EVERYBODY).await
    }

    async fn reach_asking(
        endpoint: Endpoint,
        member: &Credentials,
        keeper: &DirectoryKeeper,
        via: &[String],
        most: usize,
    ) -> anyhow::Result<Self> {
        let (mut connections, mut last) = (Vec::new(), None);
        for address in via {
            match rpc::connect_any(&endpoint, std::slice::from_ref(address), STASH_NAME).await {
                Ok(connection) => connections.push(connection),
                Err(error) => last = Some(error),
            }
        }
        if connections.is_empty()
            && let Some(error) = last
        {
            return Err(error.into());
        }
        let nearby = Arc::new(Nearby::new(member.identity.array));
        let pool = Arc::new(Pool::with_nearby(endpoint.clone(), nearby.clone()));
        let before = keeper.mark();
        let mut heard = look_for_newer(&pool, keeper, &connections, most).await?;
        if heard == 0 {
            for (node, addresses) in nearby.look().await.into_iter().take(ASKED) {
                pool.learn_one(node, addresses);
                connections.extend(pool.get(node).await.ok());
            }
            heard = look_for_newer(&pool, keeper, &connections, most).await?;
        }
        if keeper.mark() != before {
            // The stashes that this directory names may know a newer one.
            heard = heard.max(look_for_newer(&pool, keeper, &connections, most).await?);
        }
        let Some(held) = keeper.held().filter(|_| heard > 0) else {
            bail!(
                "no stash of the array answers, and none is on this network: name one that is up with --via HOST:PORT \
                 (`coe-stash status` on it shows its port)"
            );
        };
        Ok(Self::with_pool(pool, member, held))
    }

    /// Who holds what.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        self.directory.directory()
    }

    /// The same, with its signature.
    #[must_use]
    pub fn signed_directory(&self) -> Arc<SignedDirectory> {
        self.directory.clone()
    }

    /// Connections to stashes.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// An image; without a tag the newest.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn find(&self, name: &str, tag: Option<&str>) -> anyhow::Result<(ImageName, Head)> {
        let found = self.directory().head(name, tag);
        let (image, head) = found.with_context(|| format!("image {name}:{} not found", tag.unwrap_or("(any)")))?;
        Ok((image.clone(), head.clone()))
    }

    /// Holders of a segment, piece by piece.
    ///
    /// # Errors
    /// If the directory does not know its group.
    pub fn holders(&self, entry: &SegmentEntry) -> anyhow::Result<Vec<NodeId>> {
        let group = self.directory().groups.get(&entry.group).filter(|g| g.geometry == entry.geometry);
        let group = group.with_context(|| format!("the directory does not know group {}", entry.group))?;
        Ok(group.members.clone())
    }

    /// Any k verified pieces of a segment. Where its holders were replaced since this array was reached, the new ones are asked.
    ///
    /// # Errors
    /// [`Shortfall`] when fewer than k can be had.
    pub async fn fetch(&self, entry: Arc<SegmentEntry>, mut holders: Vec<NodeId>) -> Result<Pieces, Shortfall> {
        loop {
            let shortfall = match self.fetcher.fetch(entry.clone(), holders.clone()).await {
                Ok(pieces) => return Ok(pieces),
                Err(shortfall) => shortfall,
            };
            match self.holders_now(entry.group, &holders).await {
                Some(now) => holders = now,
                None => return Err(shortfall),
            }
        }
    }

    /// Holders of a group by the newest directory that its holders of before have; `None` if they are the same.
    async fn holders_now(&self, group: GroupId, before: &[NodeId]) -> Option<Vec<NodeId>> {
        let mut newest = self.newest.lock().await;
        let other = |held: &SignedDirectory| {
            held.directory().groups.get(&group).map(|g| g.members.clone()).filter(|members| members != before)
        };
        if let Some(now) = other(&newest) {
            return Some(now);
        }
        let have = Some(newest.mark());
        let ask = |node: NodeId| async move {
            let asked = async { told_by(&self.pool.get(node).await.ok()?, have).await };
            tokio::time::timeout(ANSWER_WITHIN, asked).await.ok().flatten()
        };
        let (array, key) = (self.member.identity.array, &self.member.array_key);
        for told in futures_util::future::join_all(before.iter().copied().map(ask)).await.into_iter().flatten() {
            let Some(update) = told.update else { continue };
            if let Ok(newer) = SignedDirectory::take(Some(&newest), update, array, key) {
                self.pool.learn(newer.directory());
                *newest = Arc::new(newer);
            }
        }
        other(&newest)
    }

    /// What fetching took so far.
    pub async fn report(&self) -> FetchReport {
        self.fetcher.report().await
    }

    /// A page of a manifest, from whichever of its holders answers.
    ///
    /// # Errors
    /// If none has it.
    pub async fn page(&self, page: &PageRef) -> anyhow::Result<Bytes> {
        let group = self.directory().groups.get(&page.group);
        let group = group.with_context(|| format!("the directory does not know group {}", page.group))?;
        if group.geometry.data() != 1 {
            bail!("group {} does not keep copies, so a page cannot lie there", page.group);
        }
        let fetched = self.fetch(Arc::new(page.entry(group.geometry)), group.members.clone()).await;
        let pieces = fetched.context("fetch a page of the manifest")?;
        let bytes = pieces.into_iter().next().map(|(_, bytes)| bytes).filter(|bytes| page.matches(bytes));
        bytes.context("a page of the manifest is not what it is called")
    }

    /// The root of an image, verified.
    ///
    /// # Errors
    /// If it cannot be had, or is not what the directory says.
    pub async fn root(&self, image: &ImageName, head: &Head) -> anyhow::Result<Root> {
        let signed: Signed = wire::decode(&self.page(&head.root).await?).context("decode the signed manifest")?;
        let bytes = signed.verify(MANIFEST_PURPOSE, &self.member.array_key).context("verify the manifest")?;
        let root = Root::decode(bytes).context("decode the manifest")?;
        if root.array != self.member.identity.array || root.image != *image || root.id() != head.manifest {
            bail!("the array answered with another image, {}", root.image);
        }
        Ok(root)
    }

    /// Leave a word with some stashes, for the controller.
    ///
    /// # Errors
    /// The last stash's, if none kept it.
    pub async fn leave(&self, word: &LeftReport) -> Result<(), CallError> {
        let (with, kept) = (some_of(self.directory(), ASKED), |_: &Left| true);
        self.leave_with(word, with, kept, 1, REPORT_COPIES).await
    }

    /// Leave a word with all who have shares of an image's key: whoever asks these for the key next hears it.
    ///
    /// # Errors
    /// The last stash's, if none kept it.
    pub async fn leave_with_holders(&self, image: &ImageName, word: &LeftReport) -> Result<(), CallError> {
        let plan = self.directory().heads.get(image).and_then(|head| head.offline.as_ref());
        let holders: Vec<NodeId> = plan.into_iter().flat_map(|plan| &plan.holders).map(|(node, _)| *node).collect();
        self.leave_with(word, holders, |left| left.as_last_word, 1, EVERYBODY).await
    }

    /// Leave the word that the deployment of an image is done with so many of those who have shares of its key that too few are left who
    /// would give theirs to this deployment once more.
    ///
    /// # Errors
    /// If too few keep it, or the image's key is with the controller alone.
    pub async fn leave_for_good(&self, image: &ImageName, word: &LeftReport) -> Result<(), CallError> {
        let plan = self.directory().heads.get(image).and_then(|head| head.offline.as_ref());
        let plan =
            plan.ok_or_else(|| CallError::Unreachable(format!("any stash with a share of the key of {image}")))?;
        let enough = plan.holders.len() + 1 - usize::from(plan.threshold);
        let holders = plan.holders.iter().map(|(node, _)| *node).collect();
        self.leave_with(word, holders, |left| left.as_last_word, enough, EVERYBODY).await
    }

    async fn leave_with(
        &self,
        word: &LeftReport,
        with: Vec<NodeId>,
        is_kept: fn(&Left) -> bool,
        enough: usize,
        stop_at: usize,
    ) -> Result<(), CallError> {
        let bytes = wire::encode(word);
        let statement = Statement::sign(&self.member, REPORT_PURPOSE, bytes).map_err(|_| CallError::Malformed)?;
        let mut asks = JoinSet::new();
        for node in with {
            let (pool, leave) = (self.pool.clone(), LeaveReport { statement: statement.clone() });
            asks.spawn(async move {
                let left = async { rpc::call(&pool.get(node).await?, leave, &[]).await.map(|(left, _)| left) };
                let silent = |_| Err(CallError::Unreachable(node.to_string()));
                tokio::time::timeout(FOUND_AND_ANSWERED_WITHIN, left).await.unwrap_or_else(silent)
            });
        }
        let (mut kept, mut last) = (0, CallError::Unreachable("any stash".into()));
        while let Some(answer) = asks.join_next().await {
            match answer {
                Ok(Ok(left)) => kept += usize::from(is_kept(&left)),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
            if kept >= stop_at {
                break;
            }
        }
        if kept >= enough { Ok(()) } else { Err(last) }
    }

    /// What an earlier installer of this one's deployment left; nothing that another said.
    fn left_before(&self, statement: &Statement) -> Option<LeftReport> {
        let (authority, array) = (&self.member.authority, self.member.identity.array);
        let (said_by, left) = words::read(statement, authority, array)?;
        let own = tls::bearer_of(&self.member.certificate, array)?;
        let is_of_this = own.deployment.is_some() && (said_by.host, said_by.deployment) == (own.host, own.deployment);
        is_of_this.then_some(left)
    }

    /// The key of an image's manifest, from shares of as many stashes as it takes; and an order of this installer's deployment, opened with
    /// what they give for it.
    ///
    /// # Errors
    /// If too few release one, with what each said; [`AlreadyDone`].
    pub async fn key(&self, image: &ImageName, head: &Head, order: Option<&Order>) -> anyhow::Result<Released> {
        let plan = head.offline.as_ref();
        let plan = plan
            .with_context(|| format!("{image} was published with --offline deny: only the controller has its key"))?;
        let mut asks = JoinSet::new();
        for (place, (node, digest)) in plan.holders.iter().copied().enumerate() {
            let ask = GetShare { image: image.clone(), manifest: head.manifest, order: order.map(|order| order.tag) };
            let pool = self.pool.clone();
            asks.spawn(async move {
                let asked = async { rpc::call(&pool.get(node).await?, ask, &[]).await };
                let silent = |_| Err(CallError::Unreachable(node.to_string()));
                let answer = tokio::time::timeout(FOUND_AND_ANSWERED_WITHIN, asked).await.unwrap_or_else(silent);
                (place, node, digest, answer.map(|(given, _)| given))
            });
        }
        let (mut shares, mut tokens, mut left) = (Vec::<KeyShare>::new(), Vec::new(), Vec::new());
        let (mut refused, mut is_done) = (Vec::new(), false);
        while let Some(answer) = asks.join_next().await {
            let (place, node, digest, given) = answer.context("ask for a share")?;
            let why = match given {
                Ok(TheShare::Given { share, token, left: said }) => {
                    let token = token.filter(|token| order.is_some_and(|order| order.is_token(place, token)));
                    if share.digest() == digest && (order.is_none() || token.is_some()) {
                        shares.push(share);
                        tokens.extend(token.map(|token| (place, token)));
                        left.extend(said.and_then(|statement| self.left_before(&statement)));
                        None
                    } else {
                        Some("its share is wrong".to_string())
                    }
                }
                Ok(TheShare::Done(statement)) => {
                    is_done |= self.left_before(&statement).is_some_and(|left| left.is_success());
                    Some("the deployment is done".into())
                }
                Err(error) => Some(error.to_string()),
            };
            refused.extend(why.map(|why| format!("{}: {why}", node.short())));
            if shares.len() == usize::from(plan.threshold) {
                let key = shares::combine(&shares).context("combine the shares of the key")?;
                let order = order.map(|order| order.open(&tokens)).transpose().context("open the order")?;
                return Ok(Released { key, order, left });
            }
        }
        if is_done {
            return Err(AlreadyDone.into());
        }
        bail!(
            "the key of {image} needs the shares of {} stashes, {} gave theirs; {}",
            plan.threshold,
            shares.len(),
            refused.join("; ")
        )
    }
}
