//! Events as a client may submit them: one object, an array, or an object of events.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streamgauge_producer::event::decode::Format;

fuzz_target!(|bytes: &[u8]| streamgauge_fuzz::submitted(bytes, Format::Json));
