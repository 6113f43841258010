//! What may lie on the source topic: events as protobuf, and anything else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streamgauge_consumer::core::validate::{self, Limits};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        event_bytes_max: 256 * 1024,
        future_us_max: 60_000_000,
    };
    for key in [None, Some(&b"u1"[..])] {
        let _ = validate::event(key, Some(bytes), 1_700_000_000_000_000, &limits);
    }
});
