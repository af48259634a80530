//! libFuzzer on `tests::fuzz::partition_table`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::partition_table(bytes));
