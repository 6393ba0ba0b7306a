//! The scripts that libFuzzer finds by watching which code they reach. Run by `rust/scripts/fuzz.sh guided`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    das_fuzz::run(bytes);
});
