//! Writes to a stash file until it is killed: `stash_writer FILE SEED`, or `stash_writer --kill TIMES FILE` to be killed by itself.
//! `stash_writer --golden plain|holes FILE` makes a golden file of a new format version; those of earlier ones never change.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [kill, times, file] if kill == "--kill" => {
            let file = PathBuf::from(file);
            let acknowledged = tests::killed::kill(&std::env::current_exe()?, &file, times.parse()?)?;
            println!("killed {times} times, {acknowledged} puts and deletions acknowledged, none lost");
            Ok(())
        }
        [golden, of, file] if golden == "--golden" => {
            let disk = match of.as_str() {
                "plain" => tests::fuzz::small_stash(),
                "holes" => tests::fuzz::stash_with_holes(),
                _ => anyhow::bail!("plain or holes"),
            };
            let mut new = std::fs::File::create_new(file).context("a golden file never changes")?;
            Ok(new.write_all(&tests::fuzz::patches_of(&disk))?)
        }
        [file, seed] => tests::killed::write(&PathBuf::from(file), seed.parse()?),
        _ => Err(anyhow::anyhow!("nothing given")).context("stash_writer FILE SEED"),
    }
}
