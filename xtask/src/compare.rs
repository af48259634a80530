//! Whether an installed disk is the image: judged from outside, with `sfdisk` and plain reads.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::setup::tool;
use crate::shell;

/// `sfdisk` takes a file for a disk of these sectors.
const SECTOR: u64 = 512;

/// A partition table as `sfdisk --json` tells it; `None` where there is none.
fn table(disk: &Path) -> Option<Value> {
    let text = shell::output(tool("sfdisk").arg("--json").arg(disk)).ok()?;
    serde_json::from_str::<Value>(&text).ok()?.get("partitiontable").cloned()
}

fn same_bytes(a: &File, b: &File, from: u64, len: u64, what: &str) -> anyhow::Result<()> {
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < len {
        let n = (len - at).min(x.len() as u64) as usize;
        a.read_exact_at(&mut x[..n], from + at)?;
        b.read_exact_at(&mut y[..n], from + at)?;
        if x[..n] != y[..n] {
            let i = x[..n].iter().zip(&y[..n]).position(|(p, q)| p != q).unwrap_or(0) as u64;
            bail!("{what}: byte {} differs", from + at + i);
        }
        at += n as u64;
    }
    Ok(())
}

/// What a table means, apart from where it lies: type, identity, and each partition in full.
fn meaning(table: &Value) -> Value {
    let strip = |p: &Value| {
        let mut p = p.clone();
        if let Some(fields) = p.as_object_mut() {
            fields.remove("node");
        }
        p
    };
    let partitions: Vec<Value> = table["partitions"].as_array().into_iter().flatten().map(strip).collect();
    serde_json::json!({ "label": table["label"], "id": table["id"], "unit": table["unit"],
        "sectorsize": table["sectorsize"], "partitions": partitions })
}

/// Check that `installed` is `image`: every byte where there is no GPT; with one, every byte between the tables, and the meaning of
/// both copies of the table.
///
/// # Errors
/// Says what differs.
pub fn installed(image: &Path, installed: &Path) -> anyhow::Result<String> {
    let (a, b) = (File::open(image)?, File::open(installed)?);
    let (image_len, disk_len) = (a.metadata()?.len(), b.metadata()?.len());
    let before = table(image);
    let is_gpt = before.as_ref().is_some_and(|t| t["label"] == "gpt");
    if !is_gpt || image_len == disk_len {
        same_bytes(&a, &b, 0, image_len, "the image")?;
        return Ok(format!("all {image_len} bytes are identical"));
    }
    let before = before.context("a table")?;
    let after = table(installed).context("the installed disk has no readable table")?;
    if meaning(&before) != meaning(&after) {
        bail!("the tables differ:\n{before}\n{after}");
    }
    let verify = shell::output(tool("sfdisk").arg("--verify").arg(installed))?;
    if !verify.contains("No errors detected") {
        bail!("sfdisk --verify: {verify}");
    }
    // The backup alone must tell the same: hide the primary from a copy of both ends.
    backup_alone(&b, disk_len, &meaning(&after))?;
    let number = |v: &Value| v.as_u64().unwrap_or(0) * SECTOR;
    let partitions = before["partitions"].as_array().cloned().unwrap_or_default();
    for p in &partitions {
        same_bytes(&a, &b, number(&p["start"]), number(&p["size"]), p["node"].as_str().unwrap_or("partition"))?;
    }
    let first = number(&before["firstlba"]);
    same_bytes(&a, &b, first, number(&before["lastlba"]) + SECTOR - first, "between the tables")?;
    Ok(format!(
        "{} partitions are identical byte for byte; both tables mean the same and are at the ends of the disk",
        partitions.len()
    ))
}

fn backup_alone(disk: &File, disk_len: u64, expected: &Value) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk");
    let copy = File::create(&path)?;
    copy.set_len(disk_len)?;
    let mut end = vec![0; (1 << 20).min(disk_len as usize)];
    let from = disk_len - end.len() as u64;
    disk.read_exact_at(&mut end, from)?;
    copy.write_all_at(&end, from)?;
    // The protective MBR stays: without it no tool looks for a GPT.
    let mut mbr = vec![0; 512];
    disk.read_exact_at(&mut mbr, 0)?;
    copy.write_all_at(&mbr, 0)?;
    let text = shell::output(tool("sfdisk").arg("--json").arg(&path)).context("read the backup table alone")?;
    let found: Value = serde_json::from_str(&text)?;
    let found = meaning(&found["partitiontable"]);
    if found != *expected {
        bail!("the backup table differs:\n{expected}\n{found}");
    }
    Ok(())
}
