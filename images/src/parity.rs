//! k + m Reed-Solomon over GF(2^8): any k of n pieces give the bytes back.
//!
//! `reed-solomon-erasure` defines the code (Vandermonde matrix made systematic, polynomial 0x11d) and runs everywhere.
//! Where the CPU has vector kernels, found at run time, `rusty_erasure` computes the same bytes faster; a test holds the
//! two against each other for every geometry.

use bytes::Bytes;
use reed_solomon_erasure::galois_8::ReedSolomon;
use serde::{Deserialize, Serialize};

use crate::limits::{DATA_PIECES_MAX, PARITY_PIECES_MAX};

/// How many pieces: any `data` of `data + parity` suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u8, u8)", into = "(u8, u8)")]
pub struct Geometry {
    data: u8,
    parity: u8,
}

/// A number of pieces that this system does not make.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} data + {1} parity pieces: data must be 1 to {DATA_PIECES_MAX}, parity 0 to {PARITY_PIECES_MAX}")]
pub struct GeometryError(u8, u8);

impl Geometry {
    /// A geometry of `data` (k) and `parity` (m) pieces.
    ///
    /// # Errors
    /// If it is outside the limits.
    pub fn new(data: u8, parity: u8) -> Result<Self, GeometryError> {
        let fits = (1..=DATA_PIECES_MAX).contains(&data.into()) && usize::from(parity) <= PARITY_PIECES_MAX;
        if fits { Ok(Self { data, parity }) } else { Err(GeometryError(data, parity)) }
    }

    /// As many losses survived by copies alone: k = 1, and the same m. Every piece is the whole.
    #[must_use]
    pub fn redundant(self) -> Self {
        Self { data: 1, ..self }
    }

    /// k: pieces that are needed.
    #[must_use]
    pub fn data(self) -> usize {
        self.data.into()
    }

    /// m: pieces that may be lost.
    #[must_use]
    pub fn parity(self) -> usize {
        self.parity.into()
    }

    /// n = k + m.
    #[must_use]
    pub fn pieces(self) -> usize {
        self.data() + self.parity()
    }

    /// Payload bytes of each piece of `sealed_len` bytes.
    #[must_use]
    pub fn piece_len(self, sealed_len: usize) -> usize {
        sealed_len.div_ceil(self.data())
    }
}

impl std::fmt::Display for Geometry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl TryFrom<(u8, u8)> for Geometry {
    type Error = GeometryError;
    fn try_from((data, parity): (u8, u8)) -> Result<Self, GeometryError> {
        Self::new(data, parity)
    }
}

impl From<Geometry> for (u8, u8) {
    fn from(g: Geometry) -> Self {
        (g.data, g.parity)
    }
}

/// Fewer pieces than needed, or pieces of a wrong length.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReconstructError {
    /// Not enough pieces.
    #[error("{have} pieces of {need} needed")]
    TooFew {
        /// Pieces given.
        have: usize,
        /// k.
        need: usize,
    },
    /// A piece whose length does not follow from the segment's.
    #[error("piece {0} has a wrong length or number")]
    Piece(usize),
}

enum Engine {
    /// No parity: nothing to compute.
    Copy,
    Portable(Box<ReedSolomon>),
    Vector(Box<rusty_erasure::Coder>),
}

/// Encodes and reconstructs for one geometry. Build it once: it holds tables.
pub struct Codec {
    geometry: Geometry,
    engine: Engine,
}

impl Codec {
    /// The fastest engine that this CPU runs.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        let vector = has_vector_kernels().then(|| vector_engine(geometry)).flatten();
        vector.map_or_else(|| Self::portable(geometry), |engine| Self { geometry, engine })
    }

    /// The engine without vector kernels, for CPUs that have none and for tests.
    ///
    /// # Panics
    /// Never for a valid [`Geometry`].
    #[must_use]
    pub fn portable(geometry: Geometry) -> Self {
        let engine = match geometry.parity() {
            0 => Engine::Copy,
            parity => {
                let rs = ReedSolomon::new(geometry.data(), parity).expect("a valid geometry");
                Engine::Portable(Box::new(rs))
            }
        };
        Self { geometry, engine }
    }

    /// The geometry it was built for.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// All n payloads of sealed bytes, data pieces first. Data pieces share the input's memory where they can.
    ///
    /// # Panics
    /// Never: lengths are computed here.
    #[must_use]
    pub fn encode(&self, sealed: &Bytes) -> Vec<Bytes> {
        let (data, piece_len) = (self.geometry.data(), self.geometry.piece_len(sealed.len()));
        let mut pieces: Vec<Bytes> = (0..data)
            .map(|i| {
                let from = (i * piece_len).min(sealed.len());
                let piece = sealed.slice(from..(from + piece_len).min(sealed.len()));
                if piece.len() == piece_len {
                    return piece;
                }
                let mut padded = piece.to_vec();
                padded.resize(piece_len, 0);
                padded.into()
            })
            .collect();
        let mut parity = vec![vec![0u8; piece_len]; self.geometry.parity()];
        match &self.engine {
            Engine::Copy => {}
            _ if piece_len == 0 => {}
            Engine::Portable(rs) => rs.encode_sep(&pieces, &mut parity).expect("equal lengths"),
            Engine::Vector(coder) => {
                let sources: Vec<&[u8]> = pieces.iter().map(AsRef::as_ref).collect();
                let mut targets: Vec<&mut [u8]> = parity.iter_mut().map(AsMut::as_mut).collect();
                coder.encode(&sources, &mut targets).expect("equal lengths");
            }
        }
        pieces.extend(parity.into_iter().map(Bytes::from));
        pieces
    }

    /// The sealed bytes from any k payloads, given as (piece number, payload). More than k are ignored.
    ///
    /// # Errors
    /// [`ReconstructError`]. Wrong bytes of the right length are not noticed here: verify digests first.
    pub fn reconstruct(&self, given: &[(usize, Bytes)], sealed_len: usize) -> Result<Vec<u8>, ReconstructError> {
        let (data, piece_len) = (self.geometry.data(), self.geometry.piece_len(sealed_len));
        let mut pieces: Vec<Option<&[u8]>> = vec![None; self.geometry.pieces()];
        for (index, payload) in given {
            let slot = pieces.get_mut(*index).filter(|_| payload.len() == piece_len);
            *slot.ok_or(ReconstructError::Piece(*index))? = Some(payload);
        }
        let have = pieces.iter().flatten().count();
        if have < data {
            return Err(ReconstructError::TooFew { have, need: data });
        }
        let missing: Vec<usize> = (0..data).filter(|&i| pieces[i].is_none()).collect();
        let mut sealed = vec![0u8; piece_len * data];
        for (slot, piece) in sealed.chunks_mut(piece_len.max(1)).zip(&pieces) {
            if let Some(piece) = piece {
                slot.copy_from_slice(piece);
            }
        }
        if !missing.is_empty() && piece_len > 0 {
            let rebuilt = self.rebuild(&pieces, &missing, piece_len);
            for (index, bytes) in missing.iter().zip(rebuilt) {
                sealed[index * piece_len..][..piece_len].copy_from_slice(&bytes);
            }
        }
        sealed.truncate(sealed_len);
        Ok(sealed)
    }

    fn rebuild(&self, pieces: &[Option<&[u8]>], missing: &[usize], piece_len: usize) -> Vec<Vec<u8>> {
        match &self.engine {
            Engine::Copy => unreachable!("without parity nothing can be missing here"),
            Engine::Portable(rs) => {
                let mut all: Vec<Option<Vec<u8>>> = pieces.iter().map(|p| p.map(<[u8]>::to_vec)).collect();
                rs.reconstruct_data(&mut all).expect("k pieces of equal length");
                missing.iter().map(|&i| all[i].take().expect("reconstructed")).collect()
            }
            Engine::Vector(coder) => {
                let mut out = vec![vec![0u8; piece_len]; missing.len()];
                let mut targets: Vec<&mut [u8]> = out.iter_mut().map(AsMut::as_mut).collect();
                coder.recover(pieces, missing, &mut targets).expect("k pieces of equal length");
                out
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_vector_kernels() -> bool {
    std::arch::is_x86_feature_detected!("ssse3")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_vector_kernels() -> bool {
    cfg!(target_arch = "aarch64")
}

fn vector_engine(geometry: Geometry) -> Option<Engine> {
    let matrix = rusty_erasure::compat::reed_solomon_erasure_matrix(geometry.data(), geometry.parity()).ok()?;
    Some(Engine::Vector(Box::new(rusty_erasure::coder(matrix).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Bytes {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&len.to_le_bytes()).finalize_xof().fill(&mut out);
        out.into()
    }

    #[test]
    fn both_engines_make_the_same_parity_for_every_geometry() {
        for data in 1..=DATA_PIECES_MAX as u8 {
            for parity in 0..=PARITY_PIECES_MAX as u8 {
                let geometry = Geometry::new(data, parity).unwrap();
                let sealed = noise(1000 + usize::from(data) * 7);
                let pieces = Codec::portable(geometry).encode(&sealed);
                assert_eq!(pieces, Codec::new(geometry).encode(&sealed), "{geometry}");
            }
        }
    }

    #[test]
    fn any_k_pieces_suffice_and_fewer_do_not() {
        let geometry = Geometry::new(4, 3).unwrap();
        for len in [0, 1, 3, 4, 4097] {
            let sealed = noise(len);
            for codec in [Codec::new(geometry), Codec::portable(geometry)] {
                let pieces: Vec<(usize, Bytes)> = codec.encode(&sealed).into_iter().enumerate().collect();
                for mask in 0u32..1 << 7 {
                    let given: Vec<_> = pieces.iter().filter(|(i, _)| mask >> i & 1 == 1).cloned().collect();
                    let result = codec.reconstruct(&given, len);
                    if given.len() >= 4 {
                        assert_eq!(result.as_deref(), Ok(&sealed[..]), "length {len}, mask {mask:b}");
                    } else {
                        assert_eq!(result, Err(ReconstructError::TooFew { have: given.len(), need: 4 }));
                    }
                }
            }
        }
    }

    #[test]
    fn a_piece_of_wrong_length_or_number_is_refused() {
        let codec = Codec::new(Geometry::new(2, 1).unwrap());
        for piece in [(0, noise(4)), (3, noise(5))] {
            let index = piece.0;
            assert_eq!(codec.reconstruct(&[piece], 10), Err(ReconstructError::Piece(index)));
        }
    }
}
