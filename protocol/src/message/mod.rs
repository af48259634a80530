//! What is said, one file an edge, and who may say it.
//!
//! A message is a struct; [`Request`] closes them over; [`Call`] ties each to its answer. Enums grow at their end only:
//! postcard numbers variants by position, and an older member must still read what it knows.

pub mod boot;
pub mod enroll;
pub mod fetch;
pub mod image;
pub mod member;
pub mod publish;
pub mod store;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::identity::Role;
use crate::limits::BODY_MAX;

/// A message that has an answer.
pub trait Call: Serialize {
    /// Its answer.
    type Reply: Serialize + DeserializeOwned;

    /// As it travels.
    fn into_request(self) -> Request;
}

macro_rules! requests {
    ($($(#[$doc:meta])* $variant:ident($module:ident::$message:ident) -> $reply:ty, body $body:expr, roles $roles:expr;)*) => {
        /// Everything that can be asked of a member.
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub enum Request {
            $($(#[$doc])* $variant($module::$message),)*
        }

        $(impl Call for $module::$message {
            type Reply = $reply;
            fn into_request(self) -> Request {
                Request::$variant(self)
            }
        })*

        impl Request {
            /// Constant name, for logs.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($variant),)*
                }
            }

            /// Most bulk bytes that may follow.
            #[must_use]
            pub fn body_max(&self) -> usize {
                match self {
                    $(Self::$variant(_) => $body,)*
                }
            }

            /// Whether somebody in this role may ask it.
            #[must_use]
            pub fn allowed_for(&self, role: Role) -> bool {
                match self {
                    $(Self::$variant(_) => $roles.contains(&role),)*
                }
            }
        }
    };
}

use Role::{Admin, Boot, Controller, Installer, Recovery, Stash};

requests! {
    /// A stranger with a ticket asks for a certificate.
    Enroll(enroll::Enroll) -> enroll::Enrolled, body 0, roles [] as [Role; 0];
    /// A stash says that it is there.
    Heartbeat(member::Heartbeat) -> member::HeartbeatAck, body 0, roles [Stash];
    /// A member asks for a fresh certificate.
    Renew(member::Renew) -> member::Renewed, body 0, roles [Stash, Admin, Boot];
    /// A publication starts or goes on.
    Begin(publish::Begin) -> publish::Begun, body 0, roles [Admin];
    /// Which of these chunks are there already?
    Have(publish::Have) -> publish::Known, body 0, roles [Admin];
    /// A new segment; answered when it is durable and spread.
    PutSegment(publish::PutSegment) -> publish::SegmentStored, body BODY_MAX, roles [Admin];
    /// Part of the draft: where segments' bytes go on the disk.
    PutRuns(publish::PutRuns) -> publish::Accepted, body 0, roles [Admin];
    /// Part of the draft: read-back digests.
    PutSpans(publish::PutSpans) -> publish::Accepted, body 0, roles [Admin];
    /// The draft is complete: sign and publish it.
    Finish(publish::Finish) -> publish::Published, body 0, roles [Admin];
    /// What is needed to install an image.
    GetImage(image::GetImage) -> image::ImageGrant, body 0, roles [Installer, Admin, Boot];
    /// A page of a manifest.
    GetPage(image::GetPage) -> image::Page, body 0, roles [Installer, Admin, Boot];
    /// How an installation ended.
    Report(image::LeftReport) -> image::Reported, body 0, roles [Installer, Admin, Boot];
    /// Keep a fragment; answered when it is durable.
    PutFragment(store::PutFragment) -> store::Stored, body BODY_MAX, roles [Controller];
    /// Forget fragments.
    DeleteFragments(store::DeleteFragments) -> store::Deleted, body 0, roles [Controller];
    /// Prove that a fragment is held.
    Prove(store::Prove) -> store::Proof, body 0, roles [Controller, Admin];
    /// Hand out a fragment.
    GetFragment(fetch::GetFragment) -> fetch::Fragment, body 0, roles [Controller, Stash, Installer, Admin, Boot];
    /// A machine asks to boot from the network.
    AskBoot(boot::AskBoot) -> boot::BootOrder, body 0, roles [Boot];
    /// It loads the installer.
    TakeBoot(boot::TakeBoot) -> boot::BootTicket, body 0, roles [Boot];
    /// What shall this machine become?
    GetDeployment(boot::GetDeployment) -> boot::Deployment, body 0, roles [Installer];
    /// How far an installation is.
    Progress(boot::Progress) -> boot::Told, body 0, roles [Installer];
    /// Keep a share of an image's key; answered when it is durable.
    PutShare(store::PutShare) -> store::Stored, body 0, roles [Controller];
    /// A share, for an installer of an approved host; of boot files, for a boot server.
    GetShare(store::GetShare) -> store::TheShare, body 0, roles [Installer, Boot];
    /// A report for a controller that is away.
    LeaveReport(image::LeaveReport) -> image::Left, body 0, roles [Installer, Admin, Boot];
    /// Reports that were left with a stash.
    PassReports(image::PassReports) -> image::Passed, body 0, roles [Stash];
    /// What is newer in a member's directory.
    GetDirectory(member::GetDirectory) -> member::TheDirectory, body 0, roles [Controller, Stash, Installer, Admin, Boot, Recovery];
    /// A directory that is newer than a member's.
    OfferDirectory(member::OfferDirectory) -> member::HaveDirectory, body 0, roles [Controller, Stash, Installer, Admin, Boot];
    /// The right to admit installers while the controller is away.
    GetDelegation(boot::GetDelegation) -> boot::Delegation, body 0, roles [Boot];
    /// What became of a deployment.
    GetWord(store::GetWord) -> store::TheWord, body 0, roles [Controller, Boot];
    /// Fragments to copy, or to make anew; answered when they are durable.
    Rebuild(store::Rebuild) -> store::Outcomes, body 0, roles [Controller];
    /// What a stash has, some of it at a time.
    ListFragments(store::ListFragments) -> store::Fragments, body 0, roles [Controller];
}

/// Why a request was not carried out. The text is for people; nothing may be decided on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The asker's role may not ask this.
    #[error("a certificate of role {0} does not permit this request")]
    NotAllowed(Role),
    /// No certificate, or a ticket that is unknown, used or expired.
    #[error("not admitted: {0}")]
    NotAdmitted(String),
    /// There is no such thing here.
    #[error("{0} not found")]
    NotFound(String),
    /// The name is taken for ever.
    #[error("{0} is already published, and a published version never changes")]
    Exists(String),
    /// No room.
    #[error("the store is full")]
    Full,
    /// The request contradicts itself, a limit, or what was said before.
    #[error("{0}")]
    Invalid(String),
    /// It could be carried out later, or elsewhere.
    #[error("{0}")]
    Unavailable(String),
    /// The member failed; its own log says more.
    #[error("the other side failed: {0}")]
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::wire;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = wire::decode::<Request>(&bytes);
            let _ = wire::decode::<Result<fetch::Fragment, Refusal>>(&bytes);
            let _ = wire::decode::<Result<member::HeartbeatAck, Refusal>>(&bytes);
            let _ = wire::decode::<crate::directory::Directory>(&bytes);
        }
    }

    #[test]
    fn a_length_that_lies_allocates_nothing() {
        // Variant 4 is Have: a session, then a vector that claims 2^60 chunks.
        let bytes = [4, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
        assert!(wire::decode::<Request>(&bytes).is_err());
    }

    #[test]
    fn nobody_without_a_role_may_ask_anything() {
        let renew = Request::Renew(member::Renew { csr: Vec::new() });
        assert!(renew.allowed_for(Stash) && !renew.allowed_for(Installer));
        let enroll = Request::Enroll(enroll::Enroll { secret: [0; 16], csr: Vec::new() });
        assert!([Controller, Stash, Installer, Admin].iter().all(|r| !enroll.allowed_for(*r)));
    }
}
