//! libFuzzer on `tests::fuzz::tftp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::tftp(bytes));
