//! A member's place in an array, as it lies on its disk: certificate, key, authority.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::BASE64;
use images::manifest::ArrayPublicKey;
use images::{ArrayId, NodeId};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::directory::Update;
use crate::identity::{CONTROLLER_NAME, Identity, Role, server_name};
use crate::message::enroll;
use crate::ticket::Ticket;

use super::nearby::Nearby;
use super::{endpoint, rpc, tls};

/// All that a member needs to be recognised and to recognise others. Saved as JSON, mode 0600.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// Who this is.
    pub identity: Identity,
    /// The authority's certificate, DER.
    #[serde(with = "base64")]
    pub authority: Vec<u8>,
    /// Own certificate, DER.
    #[serde(with = "base64")]
    pub certificate: Vec<u8>,
    /// Certificates between it and the authority's, DER; none, unless a boot server issued it while the controller was away.
    #[serde(with = "base64_list", default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<Vec<u8>>,
    /// Own private key, PKCS #8 DER.
    #[serde(with = "base64")]
    pub key: Vec<u8>,
    /// Verifies what the array signs.
    pub array_key: ArrayPublicKey,
    /// Where the controller listens, `host:port`.
    pub controller: Vec<String>,
}

/// DER in JSON.
mod base64 {
    use super::BASE64;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

/// A list of the same.
mod base64_list {
    use super::BASE64;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(list: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
        list.iter().map(|bytes| BASE64.encode(bytes)).collect::<Vec<_>>().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let list = Vec::<String>::deserialize(from)?;
        list.iter().map(|text| BASE64.decode(text.as_bytes()).map_err(D::Error::custom)).collect()
    }
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// No such file, or one that cannot be read or written.
    #[error("access {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not credentials.
    #[error("{path} does not hold credentials")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// Making a key or a request failed.
    #[error("make a key")]
    Key(#[from] rcgen::Error),
    /// TLS could not be set up with them.
    #[error("set up TLS")]
    Tls(#[from] tls::TlsError),
    /// The local socket failed.
    #[error("open a UDP socket")]
    Socket(#[source] std::io::Error),
    /// What was given to it is not what the ticket promised.
    #[error(
        "the certificate that was given is not this array's, or is not good now: check this machine's clock, then the ticket"
    )]
    Admitted,
    /// The controller did not admit this machine.
    #[error("join the array")]
    Join(#[from] rpc::CallError),
}

/// SHA-256 of the authority's certificate: the array's name, and what a ticket pins.
#[must_use]
pub fn array_id(authority: &[u8]) -> ArrayId {
    ArrayId(Sha256::digest(authority).into())
}

/// A fresh secret, for a ticket.
///
/// # Panics
/// If the system gives no random bytes, which it does not outlive.
#[must_use]
pub fn fresh_secret() -> [u8; 16] {
    let mut secret = [0; 16];
    aws_lc_rs::rand::fill(&mut secret).expect("the system gives random bytes");
    secret
}

/// Create a folder that only its owner enters.
///
/// # Errors
/// The file system's.
pub fn create_private_dir(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Write a file that only its owner reads, so that a crash leaves the old one or the new one.
///
/// # Errors
/// The file system's.
pub fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// A fresh key, and the request for a certificate over it.
///
/// # Errors
/// [`CredentialsError::Key`].
pub fn request_certificate(key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    Ok(CertificateParams::new(Vec::new())?.serialize_request(key)?.der().to_vec())
}

impl Credentials {
    /// Read from a file.
    ///
    /// # Errors
    /// [`CredentialsError::File`] or [`CredentialsError::Format`].
    pub fn load(path: &Path) -> Result<Self, CredentialsError> {
        let file = |source| CredentialsError::File { path: path.into(), source };
        let bytes = fs::read(path).map_err(file)?;
        serde_json::from_slice(&bytes).map_err(|source| CredentialsError::Format { path: path.into(), source })
    }

    /// Write to a file; its folder is made if it is missing.
    ///
    /// # Errors
    /// [`CredentialsError::File`].
    pub fn save(&self, path: &Path) -> Result<(), CredentialsError> {
        let file = |source| CredentialsError::File { path: path.into(), source };
        let text = serde_json::to_vec_pretty(self).expect("plain data serialises");
        create_private_dir(path.parent().unwrap_or(Path::new("."))).map_err(file)?;
        write_private(path, &text).map_err(file)
    }

    /// Trade a ticket for credentials.
    ///
    /// # Errors
    /// [`CredentialsError`]; the ticket is used up only if this machine was admitted.
    pub async fn join(ticket: &Ticket) -> Result<Self, CredentialsError> {
        Ok(Self::join_and_learn(ticket).await?.0)
    }

    /// The same, and the directory, which an installer gets along.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub async fn join_and_learn(ticket: &Ticket) -> Result<(Self, Option<Update>), CredentialsError> {
        let key = KeyPair::generate()?;
        let csr = request_certificate(&key)?;
        let (config, authority) = tls::enroll_client(ticket.array)?;
        let endpoint = endpoint::client(config).map_err(CredentialsError::Socket)?;
        let name = ticket.issuer.map_or(CONTROLLER_NAME.into(), |boot| server_name(Role::Boot, boot));
        let connection = match rpc::connect_any(&endpoint, &ticket.addresses, &name).await {
            // The controller may be another one by now, elsewhere.
            Err(error @ (rpc::CallError::Unreachable(_) | rpc::CallError::Resolve(_))) if ticket.issuer.is_none() => {
                let found = Nearby::new(ticket.array).look_for_controller().await;
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                rpc::connect_any(&endpoint, &found, &name).await.map_err(|_| error)?
            }
            tried => tried?,
        };
        let request = enroll::Enroll { secret: ticket.secret, csr };
        let enrolled = rpc::call(&connection, request, &[]).await?.0;
        connection.close(0u32.into(), b"joined");
        endpoint.wait_idle().await;
        let authority = authority.seen().ok_or(rpc::CallError::Malformed)?;
        let identity = Identity { array: ticket.array, role: ticket.role, node: enrolled.node };
        // Whoever admits says who this is; the certificate must say the same, and lead to the authority that the ticket names.
        // A clock that is slow does not matter to others, and the ticket is used up by now.
        let chain = [&enrolled.certificate].into_iter().chain(&enrolled.chain);
        let began = UnixTime::since_unix_epoch(Duration::from_secs(tls::began_unix_s(chain).unwrap_or(0) + 1));
        let then = UnixTime::now().max(began);
        let bearer = tls::bearer_at(&authority, ticket.array, &enrolled.certificate, &enrolled.chain, then);
        let own_node = NodeId::of_public_key(&key.subject_public_key_info());
        if bearer.map(|bearer| bearer.identity) != Some(identity) || own_node != enrolled.node {
            return Err(CredentialsError::Admitted);
        }
        let member = Self {
            identity,
            array_key: tls::array_key_of(&authority).ok_or(CredentialsError::Admitted)?,
            authority,
            certificate: enrolled.certificate,
            chain: enrolled.chain,
            key: key.serialize_der(),
            controller: enrolled.controller,
        };
        Ok((member, enrolled.directory))
    }

    /// The key pair.
    ///
    /// # Errors
    /// If the saved key is damaged.
    pub fn key_pair(&self) -> Result<KeyPair, rcgen::Error> {
        KeyPair::try_from(self.key.as_slice())
    }

    /// The public key, DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// If the saved key is damaged.
    pub fn public_key(&self) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key_pair()?.subject_public_key_info())
    }
}

/// Where a person's credentials lie unless told otherwise: `$COE_HOME`, or `~/.config/coe`.
#[must_use]
pub fn default_home() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    std::env::var_os("COE_HOME").map_or_else(|| home().join(".config/coe"), PathBuf::from)
}

/// File of a role's credentials in a folder.
#[must_use]
pub fn file_of(folder: &Path, role: Role) -> PathBuf {
    folder.join(format!("{role}.json"))
}
