//! The recovery kit: with it, and from clients alone, a lost controller can be built again.
//!
//! The authority's secrets are sealed (age, X25519) to a key that is made with the array and then forgotten by the controller. What is
//! sealed travels in the directory to every client. The key itself is in the kit, a file that a phrase opens (age, scrypt), together with
//! a certificate that lets its owner ask clients for the directory. So a stolen client has nothing, a stolen kit has nothing without the
//! phrase, and the phrase alone has nothing either.

use anyhow::Context as _;
use data_encoding::BASE32_NOPAD;
use protocol::identity::Role;
use protocol::io::credentials::Credentials;
use serde::{Deserialize, Serialize};

use super::authority::{Authority, Secrets};

/// scrypt with N = 2^15. The phrase is random and has 100 bits: stretching it makes it no safer.
const WORK_FACTOR: u8 = 15;
/// Characters of a phrase, five bits each.
const PHRASE_LEN: usize = 20;

/// What is in a kit.
#[derive(Serialize, Deserialize)]
pub struct Kit {
    /// Asks clients for the directory.
    pub member: Credentials,
    /// Opens the authority's secrets: `AGE-SECRET-KEY-1…`.
    identity: String,
}

/// What a new array gets.
pub struct NewKit {
    /// The kit's file, text.
    pub file: String,
    /// Opens it. Printed once, kept nowhere.
    pub phrase: String,
    /// The authority's secrets, sealed to the kit.
    pub sealed_authority: Vec<u8>,
}

fn new_phrase() -> anyhow::Result<String> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    let letters = BASE32_NOPAD.encode(&random).to_ascii_lowercase();
    let groups: Vec<&str> = (0..PHRASE_LEN).step_by(4).map(|at| &letters[at..at + 4]).collect();
    Ok(groups.join("-"))
}

/// As it was printed: lower case, groups of four. People write capitals, spaces, and no hyphens.
fn normal(phrase: &str) -> String {
    let letters: String = phrase.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let groups: Vec<&str> = letters.as_bytes().chunks(4).map(|g| std::str::from_utf8(g).unwrap_or_default()).collect();
    groups.join("-")
}

/// A kit for a new authority.
///
/// # Errors
/// If the system gives no random bytes, or a certificate cannot be made.
pub fn create(secrets: &Secrets, authority: &Authority) -> anyhow::Result<NewKit> {
    let identity = age::x25519::Identity::generate();
    let sealed_authority =
        age::encrypt(&identity.to_public(), &serde_json::to_vec(secrets)?).context("seal the secrets")?;
    let member = authority.credentials(Role::Recovery, Vec::new())?;
    let kit = Kit { member, identity: age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).into() };
    let phrase = new_phrase()?;
    let mut recipient = age::scrypt::Recipient::new(phrase.clone().into());
    recipient.set_work_factor(WORK_FACTOR);
    let file = age::encrypt_and_armor(&recipient, &serde_json::to_vec(&kit)?).context("seal the kit")?;
    Ok(NewKit { file, phrase, sealed_authority })
}

impl Kit {
    /// Open a kit.
    ///
    /// # Errors
    /// If it is not one, or the phrase is another.
    pub fn open(file: &[u8], phrase: &str) -> anyhow::Result<Self> {
        let identity = age::scrypt::Identity::new(normal(phrase).into());
        let opened = age::decrypt(&identity, file);
        let bytes = opened.context("open the recovery kit: is it the whole file, and is this its phrase?")?;
        serde_json::from_slice(&bytes).context("understand the recovery kit")
    }

    /// The authority's secrets, from what clients keep.
    ///
    /// # Errors
    /// If they were sealed to another kit.
    pub fn authority(&self, sealed: &[u8]) -> anyhow::Result<Secrets> {
        let identity: age::x25519::Identity =
            self.identity.parse().map_err(|e: &str| anyhow::anyhow!("the kit's key is damaged: {e}"))?;
        let bytes =
            age::decrypt(&identity, sealed).context("open the authority's secrets: is this the array's newest kit?")?;
        serde_json::from_slice(&bytes).context("understand the authority's secrets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kit_opens_with_its_phrase_only() {
        let secrets = Secrets::create("test", &[7; 64]).unwrap();
        let authority = secrets.open().unwrap();
        let new = create(&secrets, &authority).unwrap();
        assert_eq!(new.phrase.len(), 24);
        let kit = Kit::open(new.file.as_bytes(), &new.phrase).unwrap();
        let typed = new.phrase.to_uppercase().replace('-', " ");
        assert!(Kit::open(new.file.as_bytes(), &typed).is_ok(), "as people type it");
        assert_eq!(kit.member.identity.array, authority.array());
        let again = kit.authority(&new.sealed_authority).unwrap().open().unwrap();
        assert_eq!(again.array(), authority.array());
        assert_eq!(again.array_key.public(), authority.array_key.public());

        assert!(Kit::open(new.file.as_bytes(), "aaaa-bbbb-cccc-dddd-eeee").is_err());
        assert!(Kit::open(&new.file.as_bytes()[..300], &new.phrase).is_err());
        let other = create(&secrets, &authority).unwrap();
        assert!(kit.authority(&other.sealed_authority).is_err(), "sealed to another kit");
        assert!(!new.file.contains("PRIVATE") && !new.file.contains("AGE-SECRET"));
    }
}
