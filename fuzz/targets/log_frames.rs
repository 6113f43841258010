//! What a connection to the embedded log may send: frames, envelopes, headers, bodies.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| streamgauge_broker::fuzzing::frames(bytes));
