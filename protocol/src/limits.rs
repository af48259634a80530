//! Every limit of the wire, and what must hold between them.

use std::time::Duration;

use images::limits::{FRAGMENT_HEADER_LEN, PAGE_LEN_MAX, SEALED_MAX};

/// One message, encoded. The largest is a directory of some ten thousand members.
pub const FRAME_MAX: usize = 8 * 1024 * 1024;
/// A message of somebody who has no certificate yet.
pub const ENROLL_FRAME_MAX: usize = 16 * 1024;
/// One message of a member that does not stay: an installer, or a boot server.
pub const GUEST_FRAME_MAX: usize = 2 * 1024 * 1024;
/// Bulk bytes behind a message: a segment, a fragment or a page.
pub const BODY_MAX: usize = 4 * 1024 * 1024;
/// Requests that one connection may have under way.
pub const STREAMS_PER_CONNECTION: u32 = 64;
/// Chunks asked about in one message.
pub const HAVE_MAX: usize = 16 * 1024;
/// Segments in one draft page.
pub const DRAFT_PAGE_SEGMENTS_MAX: usize = images::limits::PAGE_SEGMENTS_MAX;
/// Reports that a stash passes on in one message, and the bytes of one.
pub const REPORTS_TOGETHER: usize = 16;
/// See [`REPORTS_TOGETHER`].
pub const REPORT_LEN_MAX: usize = 64 * 1024;
/// Bytes that a stash offers at least, and at most: both sides refuse others, the one before a machine is installed with it.
pub const STASH_LEN_MIN: u64 = 256 * 1024 * 1024;
/// See [`STASH_LEN_MIN`].
pub const STASH_LEN_MAX: u64 = 16 * 1024 * 1024 * 1024 * 1024;
/// Fragments in one answer about what a stash has.
pub const LIST_MAX: usize = 65_536;
/// Members that a directory may list.
pub const MEMBERS_MAX: usize = 20_000;
/// A directory, encoded: it travels in a frame with something around it.
pub const DIRECTORY_LEN_MAX: usize = FRAME_MAX - 64 * 1024;
/// Orders of planned deployments in a directory, sealed, in bytes. What is beyond waits for the controller.
pub const ORDERS_LEN_MAX: usize = 2 * 1024 * 1024;
/// What a controller notes in a directory for another one, sealed, in bytes.
pub const NOTES_LEN_MAX: usize = 2 * 1024 * 1024;
/// Groups, and images, that a directory may list, those that were removed of late included.
pub const DIRECTORY_ROWS_MAX: usize = 50_000;
/// Stashes among which an image's key may be split: a share's number is a byte, and nobody needs more than this.
pub const SHARES_MAX: usize = 48;
/// Addresses of one member.
pub const ADDRESSES_MAX: usize = 8;

/// Largest UDP payload. quinn sends at most ten segments in one call, and 10 x 6500 stays below the 64 KiB that a call may
/// have; with more, path-MTU discovery on jumbo networks falls back to 1200 bytes.
pub const UDP_PAYLOAD_MAX: u16 = 6500;
/// Segments in one request to rebuild.
pub const REBUILD_TOGETHER: usize = 8;

/// Unread bytes of one connection. Twice this must fit the socket's buffer, or bursts are lost in the kernel.
pub const RECEIVE_WINDOW: u32 = 2 * 1024 * 1024;
/// Socket buffer in bytes, each way.
pub const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// A connection that says nothing for this long is gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Keeps connections of slow requests alive.
pub const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// How long a member may take to answer a handshake.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

const _: () = {
    assert!(SEALED_MAX <= BODY_MAX && PAGE_LEN_MAX <= BODY_MAX);
    assert!(FRAGMENT_HEADER_LEN < ENROLL_FRAME_MAX);
    assert!(ENROLL_FRAME_MAX < GUEST_FRAME_MAX && GUEST_FRAME_MAX < FRAME_MAX);
    assert!(LIST_MAX * 40 <= FRAME_MAX);
    assert!(HAVE_MAX * 48 <= FRAME_MAX, "the answer to the largest question fits a frame");
    assert!(REPORTS_TOGETHER * (REPORT_LEN_MAX + 4096) <= FRAME_MAX);
    assert!(RECEIVE_WINDOW as usize * 2 <= SOCKET_BUFFER);
    assert!((UDP_PAYLOAD_MAX as usize) * 10 < 65_536);
    assert!(CONNECT_TIMEOUT.as_secs() < IDLE_TIMEOUT.as_secs());
};
