//! What a produce request may hold for a partition of the embedded log.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| streamgauge_broker::fuzzing::produced(bytes));
