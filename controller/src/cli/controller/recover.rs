//! `coe-controller recover`

use std::fs;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use protocol::directory::{SignedDirectory, Verdict};
use protocol::identity::Role;
use protocol::io::array::Array;
use protocol::io::credentials::{Credentials, create_private_dir, default_home, file_of};
use protocol::io::directory::DirectoryKeeper;
use protocol::io::{endpoint, tls};
use redb::Database;

use super::{Which, init};
use crate::catalog::Catalog;
use crate::cli::table;
use crate::io::folder::Settings;
use crate::io::kit::Kit;
use crate::io::mass_storage::MassStorage;
use crate::io::recover::{Progress, Recovered, Recovery};

/// Build a lost controller again, from its clients alone
///
/// Identity, directory, catalog and chunk index come back; with --mass-storage every segment, too. If it is interrupted, run it again: it
/// goes on where it was. The old controller must not come back beside the new one.
#[derive(Args)]
#[command(
    after_help = "Example:\n  coe-controller recover --kit recovery-kit.age --from lab-03.school.example:7401 --mass-storage\n  coe-controller serve"
)]
pub struct Recover {
    /// The recovery kit that `coe-controller init` wrote
    #[arg(long, value_name = "FILE")]
    kit: PathBuf,
    /// File with the kit's phrase [default: asked for, or read from standard input]
    #[arg(long, value_name = "FILE")]
    phrase_file: Option<PathBuf>,
    /// A stash that is up, host:port (`coe-stash status` on it shows the port); may be given several times
    #[arg(long, value_name = "ADDRESS", required = true)]
    from: Vec<String>,
    /// Fetch every segment onto this folder, too [folder if none is named: mass-storage]
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "mass-storage")]
    mass_storage: Option<PathBuf>,
    /// Leave out images whose manifest cannot be had, and notes that cannot be read, for ever
    #[arg(long)]
    give_up: bool,
    /// Where to listen: UDP for members, TCP for people
    #[arg(long, default_value = "0.0.0.0:7400", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where others find it, host:port; may be given several times [default: this machine's address]
    #[arg(long, value_name = "HOST:PORT")]
    address: Vec<String>,
    /// Folder of the admin's credentials
    #[arg(long, env = "COE_HOME", default_value_os_t = default_home(), value_name = "DIR")]
    home: PathBuf,
    /// How often stashes report, milliseconds
    #[arg(long, default_value_t = 5000, value_name = "MS")]
    heartbeat_ms: u32,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

fn ask_phrase() -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        eprint!("Phrase of the recovery kit: ");
        std::io::stderr().flush()?;
    }
    let mut phrase = String::new();
    std::io::stdin().lock().read_line(&mut phrase).context("read the phrase")?;
    if phrase.trim().is_empty() {
        bail!("no phrase was given: type it, or name a file with --phrase-file");
    }
    Ok(phrase)
}

impl Recover {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let start = Instant::now();
        let file = fs::read(&self.kit).with_context(|| format!("read {}", self.kit.display()))?;
        let phrase = match &self.phrase_file {
            Some(file) => fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?,
            None => ask_phrase()?,
        };
        let kit = Kit::open(&file, &phrase)?;
        let folder = self.which.folder();
        create_private_dir(folder.path()).with_context(|| format!("create {}", folder.path().display()))?;
        let socket = endpoint::client(tls::client(&kit.member, tls::ALPN_MEMBER)?)?;
        let keeper = DirectoryKeeper::in_home(folder.path(), &kit.member);
        let array = Array::reach_all(socket, &kit.member, &keeper, &self.from).await?;
        let sealed = array.directory().common().sealed_authority;
        let secrets = kit.authority(&sealed)?;
        let authority = secrets.open()?;
        if authority.array() != kit.member.identity.array {
            bail!("the authority that clients keep is another array's");
        }
        if folder.holds_an_array() {
            if folder.authority()?.array() != authority.array() {
                bail!("{} holds another array; choose another --dir", folder.path().display());
            }
        } else {
            let settings = Settings {
                listen: self.listen,
                addresses: init::addresses(self.listen, &self.address),
                mass_storage: self.mass_storage.clone().unwrap_or_else(|| "mass-storage".into()),
                heartbeat_ms: self.heartbeat_ms.clamp(100, 60_000),
                keep_unfinished_s: 24 * 3600,
                gone_after_s: 14 * 24 * 3600,
                restripe_after_s: 7 * 24 * 3600,
            };
            folder.write(&secrets, &sealed, &settings)?;
        }
        let settings = folder.settings()?;
        let admin_file = file_of(&self.home, Role::Admin);
        if Credentials::load(&admin_file).is_ok_and(|admin| admin.identity.array != authority.array()) {
            bail!("{} holds an admin's credentials of another array; choose another --home", admin_file.display());
        }
        authority.credentials(Role::Admin, settings.addresses.clone())?.save(&admin_file)?;

        // From here on as the controller: only that may fetch everything.
        let member = authority.credentials(Role::Controller, settings.addresses.clone())?;
        let socket = endpoint::client(tls::client(&member, tls::ALPN_MEMBER)?)?;
        let array = Array::new(socket, &member, array.signed_directory());
        let database =
            Database::create(folder.catalog_file()).context("open the catalog: does a controller use it?")?;
        let mass_storage = match &self.mass_storage {
            Some(_) => {
                let opened =
                    MassStorage::folder(&folder.path().join(&settings.mass_storage)).context("open mass storage")?;
                opened.mark().context("mark mass storage")?;
                Some(opened)
            }
            None => None,
        };
        let recovery = Recovery { array, authority, catalog: Catalog::new(database)?, mass_storage };
        let mut recovered = Recovered::default();
        let (newest, kept) = (recovery.array.signed_directory(), recovery.catalog.directory()?);
        let kept =
            kept.map(|bytes| SignedDirectory::open(&bytes, member.identity.array, &member.array_key)).transpose()?;
        if let Some(kept) = &kept
            && matches!(kept.directory().compare(kept.mark(), newest.mark()), Verdict::Newer | Verdict::Fork)
        {
            bail!(
                "the catalog in {} does not know what the clients know: recover into an empty folder (--dir)",
                folder.path().display()
            );
        }
        if kept.is_none() {
            eprintln!("directory of epoch {}: reading manifests", recovery.array.directory().epoch);
            recovery.fill_catalog(self.give_up, &mut recovered).await?;
        }
        let progress = Arc::new(Progress::default());
        let bar = table::bar(1, "recover");
        let ticker = tokio::spawn(show(progress.clone(), bar.clone()));
        let fetched = recovery.fetch_segments(&progress, &mut recovered).await;
        ticker.abort();
        bar.finish_and_clear();
        fetched?;
        self.print(&recovered, start.elapsed())
    }

    fn print(&self, r: &Recovered, took: Duration) -> anyhow::Result<()> {
        let took_s = took.as_secs_f64();
        if self.json {
            let mut value = serde_json::to_value(r)?;
            value["took_s"] = took_s.into();
            println!("{value}");
        } else {
            println!("recovered {} images, {} stashes, {} machines", r.images, r.stashes, r.hosts);
            println!("  segments  {}, {} fetched in {took_s:.1} s", r.segments, table::size(r.fetched));
            for (image, why) in &r.lost_images {
                println!("  LOST      {image}: {why}");
            }
            if r.lost_notes > 0 {
                println!("  LOST      policies, labels or devices: say them again");
            }
            for (image, segments) in &r.unreadable {
                println!("  MISSING   {image}: {} segments cannot be had now", segments.len());
            }
            println!("\nNext:\n  {}\n  coe-ctl verify", self.which.serve());
        }
        if r.unreadable.is_empty() {
            Ok(())
        } else {
            bail!("some segments cannot be had now: start the stashes that hold them and run this again")
        }
    }
}

async fn show(progress: Arc<Progress>, bar: indicatif::ProgressBar) {
    loop {
        bar.set_length(progress.total.load(Relaxed).max(1));
        bar.set_position(progress.done.load(Relaxed));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
