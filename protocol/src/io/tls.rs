//! TLS 1.3 with both sides authenticated by the array's authority.
//!
//! Chains, names and dates are checked by webpki through rustls' own verifiers. The one verifier of ours is for a stranger
//! with a ticket, who knows the authority only by its fingerprint: it finds that certificate in the chain, and lets webpki
//! check the rest against it.

use std::sync::{Arc, OnceLock};

use data_encoding::HEXLOWER;
use images::manifest::ArrayPublicKey;
use images::{ArrayId, NodeId};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::credentials::{Credentials, array_id};
use crate::identity::{Identity, Role, delegate_domain, server_name};

/// Members among themselves. The number counts incompatible versions of the messages.
pub const ALPN_MEMBER: &[u8] = b"coe/1";
/// Strangers with a ticket.
pub const ALPN_ENROLL: &[u8] = b"coe-enroll/1";

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or a key is damaged.
    #[error("use the certificate and key")]
    Rustls(#[from] Error),
    /// The verifier refused the authority.
    #[error("use the authority's certificate")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

pub(super) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(super) fn roots(authority: &[u8]) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.to_vec()))?;
    Ok(Arc::new(roots))
}

fn own(credentials: &Credentials) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    // The authority goes along, so that a stranger with its fingerprint finds it.
    let chain = [&credentials.certificate].into_iter().chain(&credentials.chain).chain([&credentials.authority]);
    let chain = chain.map(|certificate| certificate.clone().into()).collect();
    (chain, PrivatePkcs8KeyDer::from(credentials.key.clone()).into())
}

/// A member that asks.
///
/// # Errors
/// [`TlsError`] for damaged credentials.
pub fn client(credentials: &Credentials, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
    let (chain, key) = own(credentials);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&credentials.authority)?)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// Who may connect to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Members only.
    Members,
    /// Strangers too: the server itself must look for a certificate before it does anything for them.
    Strangers,
}

/// A member that answers.
///
/// # Errors
/// [`TlsError`] for damaged credentials.
pub fn server(credentials: &Credentials, admit: Admit, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let (chain, key) = own(credentials);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&credentials.authority)?, provider());
    let verifier = match admit {
        Admit::Members => verifier.build()?,
        Admit::Strangers => verifier.allow_unauthenticated().build()?,
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}

/// Whom a certificate was given to, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// Who it is.
    pub identity: Identity,
    /// The machine that an installer was admitted for, by its number in the directory.
    pub host: Option<u32>,
    /// The deployment that started an installer.
    pub deployment: Option<u32>,
    /// The boot server that issued it while the controller was away; `None`: the authority itself did.
    pub issuer: Option<NodeId>,
}

const ARRAY_KEY_URI: &str = "coe-array-key:";
const HOST_URI: &str = "coe-host:";
const DEPLOYMENT_URI: &str = "coe-deployment:";

/// As a name in the authority's certificate: the key that verifies what the array signs. Whoever pins that certificate has both.
#[must_use]
pub fn array_key_uri(key: &ArrayPublicKey) -> String {
    format!("{ARRAY_KEY_URI}{}", HEXLOWER.encode(&key.0))
}

/// The key that verifies what the array signs, from the authority's certificate.
#[must_use]
pub fn array_key_of(authority: &[u8]) -> Option<ArrayPublicKey> {
    let (_, certificate) = X509Certificate::from_der(authority).ok()?;
    let names = &certificate.subject_alternative_name().ok()??.value.general_names;
    let key = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(ARRAY_KEY_URI),
        _ => None,
    })?;
    HEXLOWER.decode(key.as_bytes()).ok()?.try_into().ok().map(ArrayPublicKey)
}

/// As a name in an installer's certificate: the machine that it was given for.
#[must_use]
pub fn host_uri(host: u32) -> String {
    format!("{HOST_URI}{host}")
}

/// As a name in an installer's certificate: the deployment that started it.
#[must_use]
pub fn deployment_uri(deployment: u32) -> String {
    format!("{DEPLOYMENT_URI}{deployment}")
}

/// Whom a certificate was given to. The chain was verified before. A DNS name must say the same: a boot server may issue under a name
/// of its own only, and is held to that by a constraint on DNS names, which every verifier checks (RFC 5280, 4.2.1.10). So the
/// name also tells who issued it.
#[must_use]
pub fn bearer_of(certificate: &[u8], array: ArrayId) -> Option<Bearer> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = &certificate.subject_alternative_name().ok()??.value.general_names;
    let uris = || {
        names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
    };
    let identity = uris().find_map(|uri| uri.parse::<Identity>().ok()).filter(|id| id.array == array)?;
    let number = |prefix| uris().find_map(|uri| uri.strip_prefix(prefix)?.parse().ok());
    let issued_by = |dns: &str| match dns == server_name(identity.role, identity.node) {
        true => Some(None),
        false if identity.role == Role::Installer => {
            let (node, rest) = dns.split_once('.')?;
            let issuer = rest.split_once('.')?.0.parse().ok()?;
            (node == identity.node.to_string() && rest == delegate_domain(issuer)).then_some(Some(issuer))
        }
        false => None,
    };
    let issuer = names.iter().find_map(|name| match name {
        GeneralName::DNSName(dns) => issued_by(dns),
        _ => None,
    })?;
    Some(Bearer { identity, host: number(HOST_URI), deployment: number(DEPLOYMENT_URI), issuer })
}

/// Whom a certificate was given to, if its chain leads to the authority, and all of it was good at a time.
#[must_use]
pub fn bearer_at(
    authority: &[u8],
    array: ArrayId,
    certificate: &[u8],
    chain: &[Vec<u8>],
    at: UnixTime,
) -> Option<Bearer> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority).ok()?, provider()).build().ok()?;
    let chain: Vec<_> = chain.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
    verifier.verify_client_cert(&CertificateDer::from(certificate), &chain, at).ok()?;
    bearer_of(certificate, array)
}

/// When the last of some certificates began, seconds since 1970.
#[must_use]
pub fn began_unix_s<'a>(certificates: impl Iterator<Item = &'a Vec<u8>>) -> Option<u64> {
    let begins = |der: &Vec<u8>| Some(X509Certificate::from_der(der).ok()?.1.validity().not_before.timestamp());
    let latest = certificates.map(begins).collect::<Option<Vec<i64>>>()?.into_iter().max()?;
    u64::try_from(latest).ok()
}

/// When a certificate ends, seconds since 1970.
#[must_use]
pub fn expires_unix_s(certificate: &[u8]) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// The authority's certificate, once a server has shown it.
#[derive(Clone, Debug)]
pub struct PinnedAuthority {
    array: ArrayId,
    seen: Arc<OnceLock<Vec<u8>>>,
}

impl PinnedAuthority {
    /// The certificate, after the handshake.
    #[must_use]
    pub fn seen(&self) -> Option<Vec<u8>> {
        self.seen.get().cloned()
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|c| array_id(c) == self.array)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        WebPkiServerVerifier::builder_with_provider(roots(authority)?, provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        self.seen.get_or_init(|| authority.to_vec());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A stranger that knows the authority's fingerprint.
///
/// # Errors
/// [`TlsError`], never in practice.
pub fn enroll_client(array: ArrayId) -> Result<(ClientConfig, PinnedAuthority), TlsError> {
    let pinned = PinnedAuthority { array, seen: Arc::default() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned.clone()))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ENROLL.to_vec()];
    Ok((config, pinned))
}
