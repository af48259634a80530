//! TFTP for loaders that know nothing better: read only, with block size, size, timeout and window options (RFC 1350, 2347,
//! 2348, 2349, 7440).

use std::ops::Range;
use std::time::Duration;

const BLOCK_DEFAULT: u64 = 512;
/// Blocks that fit an Ethernet frame: firmware does not put fragments together.
const BLOCK_MAX: u64 = 1468;
const WINDOW_MAX: u64 = 64;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
/// Timeouts without progress before a client counts as gone.
const TRIES: u32 = 8;
/// The longest request that is read: RFC 2347 limits it to one block.
const REQUEST_MAX: usize = 512;

const RRQ: u16 = 1;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;

/// A request to read.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// The path, as it was asked for.
    pub path: String,
    options: Vec<(String, String)>,
}

/// Error codes (RFC 1350, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// There is no such file.
    NotFound = 1,
    /// Not allowed.
    Denied = 2,
    /// Not TFTP, or not reading.
    Illegal = 4,
}

/// An error packet.
#[must_use]
pub fn error(code: ErrorCode, text: &str) -> Vec<u8> {
    [&ERROR.to_be_bytes()[..], &(code as u16).to_be_bytes(), text.as_bytes(), &[0]].concat()
}

fn opcode(packet: &[u8]) -> Option<(u16, &[u8])> {
    let (code, rest) = packet.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*code), rest))
}

impl Request {
    /// Understand a packet that starts a transfer.
    ///
    /// # Errors
    /// What to answer: nothing to noise, an error to a client that wants to write.
    pub fn parse(packet: &[u8]) -> Result<Self, Option<Vec<u8>>> {
        if packet.len() > REQUEST_MAX {
            return Err(None);
        }
        let (code, rest) = opcode(packet).ok_or(None)?;
        if code == 2 {
            return Err(Some(error(ErrorCode::Denied, "read only")));
        }
        let text = (code == RRQ).then(|| rest.strip_suffix(&[0])).flatten().ok_or(None)?;
        let fields: Vec<&str> =
            text.split(|b| *b == 0).map(std::str::from_utf8).collect::<Result<_, _>>().map_err(|_| None)?;
        let [path, mode, options @ ..] = fields.as_slice() else { return Err(None) };
        if !mode.eq_ignore_ascii_case("octet") {
            return Err(Some(error(ErrorCode::Illegal, "octet mode only")));
        }
        let pairs = options.chunks_exact(2).map(|pair| (pair[0].to_ascii_lowercase(), pair[1].to_string()));
        Ok(Self { path: (*path).to_string(), options: pairs.collect() })
    }
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this packet.
    Packet(Vec<u8>),
    /// Send these blocks: number, and the bytes of the file.
    Blocks(Vec<(u16, Range<u64>)>),
    /// Wait.
    Wait,
    /// All was received.
    Done,
    /// The client is gone.
    GiveUp,
}

/// A transfer.
pub struct Transfer {
    len: u64,
    block: u64,
    window: u64,
    /// Blocks that the client has, counted from 1; 0 when it has none.
    acked: u64,
    options: Option<Vec<u8>>,
    /// The place from which blocks were sent once more.
    resent: Option<u64>,
    tries: u32,
    /// How long to wait for the client.
    pub timeout: Duration,
}

impl Transfer {
    /// Answer a request for a file of `len` bytes.
    #[must_use]
    pub fn new(request: &Request, len: u64) -> Self {
        let mut transfer = Self {
            len,
            block: BLOCK_DEFAULT,
            window: 1,
            acked: 0,
            options: None,
            resent: None,
            tries: 0,
            timeout: TIMEOUT_DEFAULT,
        };
        let mut granted: Vec<(&str, u64)> = Vec::new();
        for (name, value) in &request.options {
            let Ok(value) = value.parse::<u64>() else { continue };
            match name.as_str() {
                "blksize" if value >= 8 && !granted.iter().any(|g| g.0 == "blksize") => {
                    transfer.block = value.min(BLOCK_MAX);
                    granted.push(("blksize", transfer.block));
                }
                "windowsize" if value >= 1 && !granted.iter().any(|g| g.0 == "windowsize") => {
                    transfer.window = value.min(WINDOW_MAX);
                    granted.push(("windowsize", transfer.window));
                }
                "timeout" if (1..=10).contains(&value) && !granted.iter().any(|g| g.0 == "timeout") => {
                    transfer.timeout = Duration::from_secs(value);
                    granted.push(("timeout", value));
                }
                "tsize" if !granted.iter().any(|g| g.0 == "tsize") => granted.push(("tsize", len)),
                _ => {}
            }
        }
        // A timeout must be granted as it was asked for, or not at all.
        if !granted.is_empty() {
            let mut packet = OACK.to_be_bytes().to_vec();
            for (name, value) in granted {
                packet.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
            }
            transfer.options = Some(packet);
        }
        transfer
    }

    /// Blocks of the file; the last is shorter than the others, and may be empty.
    fn last(&self) -> u64 {
        self.len / self.block + 1
    }

    fn blocks(&self) -> Next {
        let end = self.last().min(self.acked + self.window);
        let range = |n: u64| (n - 1) * self.block..(n * self.block).min(self.len);
        Next::Blocks((self.acked + 1..=end).map(|n| (n as u16, range(n))).collect())
    }

    /// The first packets.
    #[must_use]
    pub fn start(&self) -> Next {
        self.options.clone().map_or_else(|| self.blocks(), Next::Packet)
    }

    /// The client said something.
    pub fn on_packet(&mut self, packet: &[u8]) -> Next {
        let Some((code, rest)) = opcode(packet) else { return Next::Wait };
        let block = match (code, rest.first_chunk::<2>()) {
            (ERROR, _) => return Next::GiveUp,
            (ACK, Some(block)) => u16::from_be_bytes(*block),
            _ => return Next::Wait,
        };
        if self.options.is_some() {
            if block != 0 {
                return Next::Wait;
            }
            self.options = None;
            self.tries = 0;
            return self.blocks();
        }
        // Sixteen bits count in circles; a window is far smaller than one.
        let ahead = u64::from(block.wrapping_sub(self.acked as u16));
        if ahead > self.window || self.acked + ahead > self.last() {
            return Next::Wait;
        }
        if ahead == 0 {
            // The same again: with a window the client asks for what it missed. Without one it is an echo, and answering echoes
            // doubles them for ever.
            // Once for each place: a client that repeats itself for every block that came out of turn would be sent ever more.
            let again = self.window > 1 && self.resent != Some(self.acked);
            self.resent = Some(self.acked);
            return if again { self.blocks() } else { Next::Wait };
        }
        self.acked += ahead;
        self.tries = 0;
        if self.acked == self.last() { Next::Done } else { self.blocks() }
    }

    /// The client said nothing for [`Transfer::timeout`].
    pub fn on_timeout(&mut self) -> Next {
        self.tries += 1;
        if self.tries > TRIES { Next::GiveUp } else { self.start() }
    }
}

/// A block's packet, without its bytes.
#[must_use]
pub fn data_header(block: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (DATA.to_be_bytes(), block.to_be_bytes());
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(options: &[(&str, &str)]) -> Request {
        let mut packet = b"\0\x01file\0octet\0".to_vec();
        for (name, value) in options {
            packet.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        }
        Request::parse(&packet).unwrap()
    }

    fn ack(block: u16) -> Vec<u8> {
        [ACK.to_be_bytes(), block.to_be_bytes()].concat()
    }

    /// Receive a file from a transfer, losing every `lose`th block; the answer is how many bytes came.
    fn receive(mut transfer: Transfer, lose: u64) -> u64 {
        let (mut got, mut expected, mut sent) = (0, 1u64, 0u64);
        let mut next = transfer.start();
        loop {
            next = match next {
                Next::Packet(_) => transfer.on_packet(&ack(0)),
                Next::Blocks(blocks) => {
                    for (number, range) in blocks {
                        sent += 1;
                        if sent % lose != 0 && number == expected as u16 {
                            got += range.end - range.start;
                            expected += 1;
                        }
                    }
                    if sent % 3 == 0 { transfer.on_timeout() } else { transfer.on_packet(&ack((expected - 1) as u16)) }
                }
                Next::Wait => transfer.on_timeout(),
                Next::Done => return got,
                Next::GiveUp => panic!("gave up at {got}"),
            };
        }
    }

    #[test]
    fn files_arrive_whole() {
        for (len, options) in [
            (0, &[][..]),
            (511, &[]),
            (512, &[]),
            (100_000, &[("blksize", "1024"), ("tsize", "0")]),
            // More than 65,535 blocks: the number goes round.
            (40_000_000, &[("windowsize", "16")]),
            (3_000_000, &[("blksize", "65464"), ("windowsize", "9999")]),
        ] {
            for lose in [u64::MAX, 7] {
                assert_eq!(receive(Transfer::new(&request(options), len), lose), len, "{len} {options:?}");
            }
        }
    }

    #[test]
    fn options_are_granted_within_limits() {
        let transfer =
            Transfer::new(&request(&[("blksize", "9000"), ("TSIZE", "0"), ("windowsize", "16"), ("x", "1")]), 77);
        assert_eq!(transfer.start(), Next::Packet(b"\0\x06blksize\x001468\0tsize\x0077\0windowsize\x0016\0".to_vec()));
        assert!(matches!(Transfer::new(&request(&[("blksize", "0")]), 77).start(), Next::Blocks(_)));
    }

    #[test]
    fn noise_and_writers_get_nothing() {
        assert_eq!(Request::parse(b""), Err(None));
        assert_eq!(Request::parse(b"\0\x01file"), Err(None));
        assert_eq!(Request::parse(b"\0\x01\xff\xff\0octet\0"), Err(None));
        assert_eq!(Request::parse(&[0; 600]), Err(None));
        assert!(matches!(Request::parse(b"\0\x02file\0octet\0"), Err(Some(_))));
        let mut transfer = Transfer::new(&request(&[]), 5000);
        let _ = transfer.start();
        assert_eq!(transfer.on_packet(&ack(0)), Next::Wait, "an echo");
        assert_eq!(transfer.on_packet(&ack(2)), Next::Wait, "from the future");
        assert_eq!(transfer.on_packet(b"\0"), Next::Wait);
        assert!((0..=TRIES).map(|_| transfer.on_timeout()).any(|n| n == Next::GiveUp));
    }

    proptest::proptest! {
        #[test]
        fn noise_is_survived(
            first in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600),
            later in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 0..8), 0..50),
            len in 0u64..100_000,
        ) {
            let _ = Request::parse(&first);
            let mut transfer = Transfer::new(&request(&[("windowsize", "16")]), len);
            for packet in later {
                if let Next::Blocks(blocks) = transfer.on_packet(&packet) {
                    proptest::prop_assert!(blocks.iter().all(|(_, range)| range.end <= len));
                }
            }
        }
    }
}
