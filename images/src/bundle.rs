//! Some files as one image: how boot files lie in the array.

use serde::{Deserialize, Serialize};

use crate::wire;

/// Starts every bundle, so that it is told from a disk.
const MAGIC: [u8; 8] = *b"COEFILES";
/// Files in one bundle.
const FILES_MAX: usize = 256;

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFile {
    /// Its name: no folders.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Bundle {
    magic: [u8; 8],
    files: Vec<BundleFile>,
}

/// Bytes that are not a bundle, or a file that cannot be in one.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Not a bundle.
    #[error("this is not a bundle of boot files")]
    Damaged,
    /// Its name is a path, hidden, or not plain.
    #[error("{0:?} cannot be the name of a boot file")]
    Name(String),
    /// Too many.
    #[error("more than {FILES_MAX} files")]
    Many,
}

/// Whether a name is only a name: nothing that a file system could understand as a way elsewhere.
#[must_use]
pub fn is_plain_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
}

fn check(files: &[BundleFile]) -> Result<(), BundleError> {
    if files.len() > FILES_MAX {
        return Err(BundleError::Many);
    }
    match files.iter().find(|f| !is_plain_name(&f.name)) {
        Some(file) => Err(BundleError::Name(file.name.chars().take(128).collect())),
        None => Ok(()),
    }
}

/// Files as one.
///
/// # Errors
/// If a name is not plain, or they are too many.
pub fn pack(files: Vec<BundleFile>) -> Result<Vec<u8>, BundleError> {
    check(&files)?;
    Ok(wire::encode(&Bundle { magic: MAGIC, files }))
}

/// The files again.
///
/// # Errors
/// If these bytes are not a bundle.
pub fn unpack(bytes: &[u8]) -> Result<Vec<BundleFile>, BundleError> {
    let bundle: Bundle = wire::decode(bytes).map_err(|_| BundleError::Damaged)?;
    if bundle.magic != MAGIC {
        return Err(BundleError::Damaged);
    }
    check(&bundle.files)?;
    Ok(bundle.files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: &[u8]) -> BundleFile {
        BundleFile { name: name.into(), bytes: bytes.into() }
    }

    #[test]
    fn files_come_back_and_paths_do_not() {
        let files = vec![file("vmlinuz", b"kernel"), file("initrd.img", &[0; 5000])];
        let bytes = pack(files.clone()).unwrap();
        assert_eq!(unpack(&bytes).unwrap(), files);
        assert!(unpack(&bytes[..bytes.len() - 1]).is_err());
        assert!(unpack(&[0; 4096]).is_err());
        for name in ["", "../x", "a/b", ".hidden", "a\\b", "a\0b"] {
            assert!(pack(vec![file(name, b"")]).is_err(), "{name:?}");
        }
        let hostile = wire::encode(&Bundle { magic: MAGIC, files: vec![file("../../etc/passwd", b"x")] });
        assert!(matches!(unpack(&hostile), Err(BundleError::Name(_))));
    }
}
