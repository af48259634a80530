//! What an installer is given, and what it reports.

use std::sync::PoisonError;

use bytes::Bytes;
use images::manifest::ImageName;
use protocol::identity::{Identity, Role};
use protocol::io::tls::Bearer;
use protocol::io::words;
use protocol::limits::REPORTS_TOGETHER;
use protocol::message::Refusal;
use protocol::message::image::{
    GetImage, GetPage, ImageGrant, LeftReport, Page, PassReports, Passed, Report, Reported, Word,
};

use super::controller::{Controller, catalog_refusal};
use crate::catalog::ImageRecord;

/// How a word came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Its installer says it on a connection of its own.
    Itself,
    /// A stash kept it; it looked at the right of whoever admitted the installer when it took it.
    Stash,
}

impl Controller {
    /// An image by its name; without a tag the newest.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn find_image(&self, name: &str, tag: Option<&str>) -> Result<(ImageName, ImageRecord), Refusal> {
        let images = self.catalog.images().map_err(catalog_refusal)?;
        let mut of_name = images.into_iter().filter(|(n, _)| n.name() == name);
        let found = match tag {
            Some(tag) => of_name.find(|(n, _)| n.tag() == tag),
            None => of_name.max_by_key(|(_, record)| record.number),
        };
        let wanted = || Refusal::NotFound(format!("image {name}:{}", tag.unwrap_or("(any)")));
        found.ok_or_else(wanted)
    }

    /// All that is needed to install an image, but for its pages and bytes.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn grant(&self, who: &Bearer, get: &GetImage) -> Result<ImageGrant, Refusal> {
        let (image, record) = self.find_image(&get.name, get.tag.as_deref())?;
        self.check_grant(who, &image)?;
        if let Some(host) = who.host {
            // Its certificate lasts a day; the word that it rests on may be taken back before.
            let hosts = self.catalog.hosts().map_err(catalog_refusal)?;
            if !hosts.iter().any(|(id, record)| *id == host && record.approved) {
                return Err(Refusal::NotAdmitted("the machine is not approved: `coe-ctl host approve`".into()));
            }
        }
        let directory = self.directory().map_err(catalog_refusal)?.whole();
        tracing::info!(%image, role = %who.identity.role, node = %who.identity.node, "image granted");
        Ok(ImageGrant { manifest: record.signed, key: record.key, directory })
    }

    /// A page of a manifest.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn page(&self, get: &GetPage) -> Result<(Page, Bytes), Refusal> {
        let page = self.catalog.page(&get.digest).map_err(catalog_refusal)?;
        page.map(|bytes| (Page, bytes.into())).ok_or_else(|| Refusal::NotFound("manifest page".into()))
    }

    /// Reports that waited with a stash. Several stashes may have the same; it counts once.
    ///
    /// # Errors
    /// If they were not noted; the stash passes them on again.
    pub async fn passed(&self, from: Identity, pass: &PassReports) -> Result<Passed, Refusal> {
        let mut words = Vec::new();
        for statement in pass.statements.iter().take(REPORTS_TOGETHER) {
            let word = words::read(statement, self.authority.certificate(), self.array());
            let may_report = |who: &Bearer| matches!(who.identity.role, Role::Installer | Role::Admin | Role::Boot);
            let Some((who, left)) = word.filter(|(who, _)| may_report(who)) else {
                // A stash checks before it keeps: this one lies, or its disk did. It may forget it.
                tracing::warn!(stash = %from.node, "a stash passes on what no member reported");
                continue;
            };
            words.push((who, left));
        }
        words.sort_by_key(|(_, left)| left.at_unix_ms);
        for (who, left) in words {
            self.hear(&who, left, Via::Stash).await?;
        }
        Ok(Passed)
    }

    /// What an installer says, itself or by way of stashes. However often it comes, it counts once.
    ///
    /// # Errors
    /// If it was not noted.
    pub async fn hear(&self, who: &Bearer, left: LeftReport, via: Via) -> Result<Reported, Refusal> {
        // Two stashes that pass the same on at the same time must not both find it new.
        let _one_at_a_time = self.passing.lock().await;
        let id = left.id(who.identity.node);
        if self.catalog.knows_report(id).map_err(catalog_refusal)? {
            return Ok(Reported);
        }
        let said_s = left.at_unix_ms / 1000;
        match left.word {
            Word::Ended(report) => self.report(who, &report, said_s, via).await?,
            // Of an earlier try: only which disk it was about to make bootable still matters.
            Word::Progress(progress) if self.is_overtaken(who, said_s) && progress.finishing.is_none() => {
                tracing::debug!(by = %who.identity.node, stage = ?progress.stage, "progress of an earlier try");
            }
            Word::Progress(progress) => match self.progress(who, progress, via).await {
                Err(error @ Refusal::Failed(_)) => return Err(error),
                // Since then it was cancelled, or forgotten, or went on.
                Err(error) => tracing::debug!(by = %who.identity.node, %error, "progress came too late"),
                Ok(_) => {}
            },
        }
        let now = super::unix_s();
        let noted = self.committer.change(move |change| change.note_report(id, now));
        noted.await.map_err(catalog_refusal)?;
        Ok(Reported)
    }

    async fn report(&self, who: &Bearer, report: &Report, said_s: u64, via: Via) -> Result<(), Refusal> {
        for (node, what) in &report.lied {
            tracing::warn!(%node, what, "stash returned wrong data");
            self.liars.lock().unwrap_or_else(PoisonError::into_inner).insert(*node, what.clone());
        }
        match &report.error {
            None => tracing::info!(image = %report.image, by = %who.identity.node, written = report.written,
                took_ms = report.took_ms, "installed"),
            Some(error) => {
                tracing::warn!(image = %report.image, by = %who.identity.node, error, "installation failed")
            }
        }
        if who.identity.role == Role::Installer {
            self.installation_ended(who, report.error.as_deref(), said_s, via).await?;
        }
        Ok(())
    }
}
