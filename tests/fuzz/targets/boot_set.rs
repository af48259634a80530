//! libFuzzer on `tests::fuzz::boot_set`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::boot_set(bytes));
