//! The array's certificate authority: its keys at rest, and the certificates it issues.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use images::keys::OwnerKey;
use images::manifest::ArrayKey;
use images::{ArrayId, NodeId};
use protocol::identity::{CONTROLLER_NAME, Identity, Role, STASH_NAME, server_name};
use protocol::io::credentials::{Credentials, array_id};
use protocol::io::tls;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use serde::{Deserialize, Serialize};

/// Clocks differ: a certificate is good from this long before it was made.
const BACKDATE: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LASTS: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// How long a role's certificate lasts.
fn lifetime(role: Role) -> Duration {
    match role {
        // Renewed by its service every month. Without a controller for half a year, clients could not be reached to build a new one.
        Role::Stash => DAY * 210,
        Role::Controller => DAY * 30,
        // A person renews by hand, with a ticket.
        Role::Admin => DAY * 365,
        // Renewed by its service, and its host may be switched off for a while.
        Role::Boot => DAY * 90,
        Role::Installer => DAY,
        // Lies in a drawer, behind a phrase, for as long as the authority itself.
        Role::Recovery => AUTHORITY_LASTS,
    }
}

/// The authority's secrets as they lie on the controller's disk, mode 0600.
#[derive(Serialize, Deserialize)]
pub struct Secrets {
    /// Authority's certificate, DER in base64.
    certificate: String,
    /// Authority's key, PKCS #8 DER in base64.
    key: String,
    /// Seed of the array's signing key, base64.
    array_seed: String,
    /// Owner key of the array's images, base64.
    owner_key: String,
}

/// Secrets that are damaged, or a certificate that cannot be issued.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The secrets cannot be used.
    #[error("the authority's secrets are damaged: restore authority.json from a backup")]
    Secrets,
    /// The request is not one, or its proof of possession is wrong.
    #[error("the certificate request is not valid")]
    Request(#[source] rcgen::Error),
    /// Signing failed.
    #[error("issue a certificate")]
    Issue(#[from] rcgen::Error),
}

/// The authority at work.
pub struct Authority {
    array: ArrayId,
    certificate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    /// Signs manifests and directories.
    pub array_key: ArrayKey,
    /// Seals segments of the array's images.
    pub owner_key: OwnerKey,
}

impl Secrets {
    /// Make an authority. `random` is 64 bytes from the system's generator.
    ///
    /// # Errors
    /// [`AuthorityError::Issue`].
    pub fn create(name: &str, random: &[u8; 64]) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        // The key's name goes along: two authorities of one name would be mistaken for each other until a signature fails.
        let tag = NodeId::of_public_key(&key.subject_public_key_info()).short();
        params.distinguished_name.push(DnType::CommonName, format!("COE array {name} {tag}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        params.not_before = (now - DAY).into();
        params.not_after = (now + AUTHORITY_LASTS).into();
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: BASE64.encode(certificate.der()),
            key: BASE64.encode(&key.serialize_der()),
            array_seed: BASE64.encode(&random[..32]),
            owner_key: BASE64.encode(&random[32..]),
        })
    }

    /// Put the authority to work.
    ///
    /// # Errors
    /// [`AuthorityError::Secrets`].
    pub fn open(&self) -> Result<Authority, AuthorityError> {
        let bytes = |text: &str| BASE64.decode(text.as_bytes()).map_err(|_| AuthorityError::Secrets);
        let certificate = bytes(&self.certificate)?;
        let key = KeyPair::try_from(bytes(&self.key)?).map_err(|_| AuthorityError::Secrets)?;
        let issuer = Issuer::from_ca_cert_der(&certificate.as_slice().into(), key);
        let owner_key = bytes(&self.owner_key)?.try_into().map_err(|_| AuthorityError::Secrets)?;
        Ok(Authority {
            array: array_id(&certificate),
            issuer: issuer.map_err(|_| AuthorityError::Secrets)?,
            certificate,
            array_key: ArrayKey::from_seed(&bytes(&self.array_seed)?).map_err(|_| AuthorityError::Secrets)?,
            owner_key: OwnerKey(owner_key),
        })
    }
}

impl Authority {
    /// The authority's certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The array's name.
    #[must_use]
    pub fn array(&self) -> ArrayId {
        self.array
    }

    fn params(&self, role: Role, node: NodeId, host: Option<u32>) -> Result<CertificateParams, rcgen::Error> {
        let mut names = vec![server_name(role, node)];
        match role {
            Role::Controller => names.push(CONTROLLER_NAME.into()),
            Role::Stash => names.push(STASH_NAME.into()),
            _ => {}
        }
        let mut params = CertificateParams::new(names)?;
        let id = Identity { array: self.array, role, node }.to_string();
        params.subject_alt_names.push(SanType::URI(id.try_into()?));
        if let Some(host) = host {
            params.subject_alt_names.push(SanType::URI(tls::host_uri(host).try_into()?));
        }
        params.distinguished_name.push(DnType::CommonName, format!("{role} {node}"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let now = SystemTime::now();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + lifetime(role)).into();
        Ok(params)
    }

    /// Who a request would be, by its key.
    ///
    /// # Errors
    /// [`AuthorityError::Request`].
    pub fn node_of(&self, csr: &[u8]) -> Result<NodeId, AuthorityError> {
        let request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(AuthorityError::Request)?;
        Ok(NodeId::of_public_key(&request.public_key.subject_public_key_info()))
    }

    /// A certificate over the key of a request. Of the request only the key counts; the names are ours. `host`: the machine that an
    /// installer may install.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(&self, role: Role, csr: &[u8], host: Option<u32>) -> Result<(NodeId, Vec<u8>), AuthorityError> {
        let mut request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(AuthorityError::Request)?;
        let node = NodeId::of_public_key(&request.public_key.subject_public_key_info());
        request.params = self.params(role, node, host)?;
        Ok((node, request.signed_by(&self.issuer)?.der().to_vec()))
    }

    /// Credentials with a fresh key, for the controller itself and for the first admin.
    ///
    /// # Errors
    /// [`AuthorityError::Issue`].
    pub fn credentials(&self, role: Role, controller: Vec<String>) -> Result<Credentials, AuthorityError> {
        let key = KeyPair::generate()?;
        let node = NodeId::of_public_key(&key.subject_public_key_info());
        let certificate = self.params(role, node, None)?.signed_by(&key, &self.issuer)?;
        Ok(Credentials {
            identity: Identity { array: self.array, role, node },
            authority: self.certificate.clone(),
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
            array_key: self.array_key.public(),
            controller,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::io::credentials::request_certificate;

    #[test]
    fn issues_what_the_role_says_and_nothing_the_request_says() {
        let secrets = Secrets::create("test", &[7; 64]).unwrap();
        let authority = secrets.open().unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = request_certificate(&key).unwrap();
        let (node, certificate) = authority.issue(Role::Stash, &csr, None).unwrap();
        let identity = tls::identity_of(&certificate, authority.array()).unwrap();
        assert_eq!(identity, Identity { array: authority.array(), role: Role::Stash, node });
        assert_eq!(node, authority.node_of(&csr).unwrap());
        assert_eq!(tls::identity_of(&certificate, ArrayId([0; 32])), None);
        assert_eq!(tls::host_of(&certificate), None);
        let (_, installer) = authority.issue(Role::Installer, &csr, Some(7)).unwrap();
        assert_eq!(tls::host_of(&installer), Some(7));

        let mut broken = csr.clone();
        *broken.last_mut().unwrap() ^= 1;
        assert!(matches!(authority.issue(Role::Stash, &broken, None), Err(AuthorityError::Request(_))));
        assert!(authority.issue(Role::Stash, b"noise", None).is_err());
    }
}
