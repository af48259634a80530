//! Certificates of members: what stands in them, and how a boot server issues one for an installer while the controller is away.

use std::time::{Duration, SystemTime};

use images::{ArrayId, NodeId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData as _, SanType,
};

use super::credentials::{Credentials, request_certificate};
use super::tls;
use crate::identity::{CONTROLLER_NAME, Identity, Role, STASH_NAME, delegate_domain, delegated_name, server_name};

/// Clocks differ: a certificate is good from this long before it was made.
pub const BACKDATE: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What an installer was admitted for, by numbers in the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The machine.
    pub host: Option<u32>,
    /// The deployment that started it.
    pub deployment: Option<u32>,
}

/// How long an installer's certificate lasts.
pub const INSTALLER_LASTS: Duration = DAY;

/// How long a boot server may admit installers without hearing from the controller. Longer than a holiday week, and not for ever:
/// a boot server that was stolen is of no use for longer.
pub const DELEGATION_LASTS: Duration = Duration::from_secs(14 * 24 * 3600);

/// A request whose proof of possession was checked.
///
/// # Errors
/// If it is none, or the proof is wrong.
pub fn request(csr: &[u8]) -> Result<(NodeId, CertificateSigningRequestParams), rcgen::Error> {
    let request = CertificateSigningRequestParams::from_der(&csr.into())?;
    Ok((NodeId::of_public_key(&request.public_key.subject_public_key_info()), request))
}

fn valid(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    params.not_before = from.into();
    params.not_after = until.into();
}

/// What stands in a member's certificate, from a time on. `issuer`: the boot server that issues it.
///
/// # Errors
/// Never in practice: the names are ours.
pub fn member_params(
    who: Identity,
    admitted: Admitted,
    issuer: Option<NodeId>,
    now: SystemTime,
    lasts: Duration,
) -> Result<CertificateParams, rcgen::Error> {
    let mut names = vec![match issuer {
        Some(boot) => delegated_name(who.node, boot),
        None => server_name(who.role, who.node),
    }];
    match who.role {
        Role::Controller => names.push(CONTROLLER_NAME.into()),
        Role::Stash => names.push(STASH_NAME.into()),
        _ => {}
    }
    let mut params = CertificateParams::new(names)?;
    let uris = [Some(who.to_string()), admitted.host.map(tls::host_uri), admitted.deployment.map(tls::deployment_uri)];
    for uri in uris.into_iter().flatten() {
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    params.distinguished_name.push(DnType::CommonName, format!("{} {}", who.role, who.node));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    valid(&mut params, now - BACKDATE, now + lasts);
    Ok(params)
}

/// What stands in the certificate of a boot server that may admit installers: it can issue under a name of its own only, and nobody below
/// it can issue anything.
///
/// # Errors
/// Never in practice: the names are ours.
pub fn delegation_params(
    boot_server: NodeId,
    from: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, format!("COE boot server {boot_server}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(delegate_domain(boot_server))],
        excluded_subtrees: Vec::new(),
    });
    valid(&mut params, from, until);
    Ok(params)
}

/// A boot server's right to admit installers.
pub struct Delegate {
    array: ArrayId,
    boot_server: NodeId,
    certificate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Delegate {
    /// A fresh key (PKCS #8 DER) that is for nothing else, and a request for the right over it.
    ///
    /// # Errors
    /// Never in practice.
    pub fn request() -> Result<(Vec<u8>, Vec<u8>), rcgen::Error> {
        let key = KeyPair::generate()?;
        let csr = request_certificate(&key)?;
        Ok((key.serialize_der(), csr))
    }

    /// With the certificate that the controller gave, and its key (PKCS #8 DER).
    ///
    /// # Errors
    /// If either is damaged.
    pub fn new(boot_server: &Credentials, certificate: Vec<u8>, key: &[u8]) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_der(&certificate.as_slice().into(), KeyPair::try_from(key)?)?;
        let Identity { array, node, .. } = boot_server.identity;
        Ok(Self { array, boot_server: node, certificate, issuer })
    }

    /// Until when it is good, seconds since 1970.
    #[must_use]
    pub fn expires_unix_s(&self) -> i64 {
        tls::expires_unix_s(&self.certificate).unwrap_or(0)
    }

    /// Admit an installer at a time: its name, its certificate, and the one that goes between it and the authority's.
    ///
    /// # Errors
    /// If the request is none, or its proof of possession is wrong.
    pub fn admit(
        &self,
        csr: &[u8],
        admitted: Admitted,
        now: SystemTime,
    ) -> Result<(NodeId, Vec<u8>, Vec<u8>), rcgen::Error> {
        let (node, mut request) = request(csr)?;
        let who = Identity { array: self.array, role: Role::Installer, node };
        request.params = member_params(who, admitted, Some(self.boot_server), now, INSTALLER_LASTS)?;
        Ok((node, request.signed_by(&self.issuer)?.der().to_vec(), self.certificate.clone()))
    }
}
