//! libFuzzer on `tests::fuzz::stash_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::stash_file(bytes));
