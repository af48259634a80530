//! The array's certificate authority: its keys at rest, and the certificates it issues.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use images::keys::OwnerKey;
use images::manifest::ArrayKey;
use images::{ArrayId, NodeId};
use protocol::identity::{Identity, Role};
use protocol::io::credentials::{Credentials, array_id};
use protocol::io::issue::{self, Admitted};
use protocol::io::tls;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use serde::{Deserialize, Serialize};

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
        Role::Installer => issue::INSTALLER_LASTS,
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
        let array_key = ArrayKey::from_seed(&random[..32]).map_err(|_| AuthorityError::Secrets)?;
        params.subject_alt_names.push(SanType::URI(tls::array_key_uri(&array_key.public()).try_into()?));
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

    /// Who a request would be, by its key.
    ///
    /// # Errors
    /// [`AuthorityError::Request`].
    pub fn node_of(&self, csr: &[u8]) -> Result<NodeId, AuthorityError> {
        Ok(issue::request(csr).map_err(AuthorityError::Request)?.0)
    }

    /// A certificate over the key of a request. Of the request only the key counts; the names are ours.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(&self, role: Role, csr: &[u8], admitted: Admitted) -> Result<(NodeId, Vec<u8>), AuthorityError> {
        let (node, mut request) = issue::request(csr).map_err(AuthorityError::Request)?;
        let who = Identity { array: self.array, role, node };
        request.params = issue::member_params(who, admitted, None, SystemTime::now(), lifetime(role))?;
        Ok((node, request.signed_by(&self.issuer)?.der().to_vec()))
    }

    /// The certificate of a boot server that may admit installers in this time, over the key of a request.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn delegate(
        &self,
        boot_server: NodeId,
        csr: &[u8],
        from: SystemTime,
        until: SystemTime,
    ) -> Result<Vec<u8>, AuthorityError> {
        let (_, mut request) = issue::request(csr).map_err(AuthorityError::Request)?;
        request.params = issue::delegation_params(boot_server, from, until)?;
        Ok(request.signed_by(&self.issuer)?.der().to_vec())
    }

    /// Credentials with a fresh key, for the controller itself and for the first admin.
    ///
    /// # Errors
    /// [`AuthorityError::Issue`].
    pub fn credentials(&self, role: Role, controller: Vec<String>) -> Result<Credentials, AuthorityError> {
        let key = KeyPair::generate()?;
        let node = NodeId::of_public_key(&key.subject_public_key_info());
        let identity = Identity { array: self.array, role, node };
        let params = issue::member_params(identity, Admitted::default(), None, SystemTime::now(), lifetime(role))?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Credentials {
            identity,
            authority: self.certificate.clone(),
            certificate: certificate.der().to_vec(),
            chain: Vec::new(),
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
    use protocol::io::tls::Bearer;

    #[test]
    fn issues_what_the_role_says_and_nothing_the_request_says() {
        let secrets = Secrets::create("test", &[7; 64]).unwrap();
        let authority = secrets.open().unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = request_certificate(&key).unwrap();
        let nothing = Admitted::default();
        let (node, certificate) = authority.issue(Role::Stash, &csr, nothing).unwrap();
        let bearer = tls::bearer_of(&certificate, authority.array()).unwrap();
        let identity = Identity { array: authority.array(), role: Role::Stash, node };
        assert_eq!(bearer, Bearer { identity, host: None, deployment: None, issuer: None });
        assert_eq!(node, authority.node_of(&csr).unwrap());
        assert_eq!(tls::bearer_of(&certificate, ArrayId([0; 32])), None);
        let (_, installer) =
            authority.issue(Role::Installer, &csr, Admitted { host: Some(7), deployment: Some(3) }).unwrap();
        let bearer = tls::bearer_of(&installer, authority.array()).unwrap();
        assert_eq!((bearer.host, bearer.deployment, bearer.issuer), (Some(7), Some(3), None));

        let mut broken = csr.clone();
        *broken.last_mut().unwrap() ^= 1;
        assert!(matches!(authority.issue(Role::Stash, &broken, nothing), Err(AuthorityError::Request(_))));
        assert!(authority.issue(Role::Stash, b"noise", nothing).is_err());
    }
}
