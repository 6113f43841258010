//! Events as a client may submit them: one object, an array, or an object of events.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streamgauge_producer::event::{EventLimits, Shape, decode};

fuzz_target!(|bytes: &[u8]| {
    let limits = EventLimits::default();
    for shape in [Shape::EVENT, Shape::ACTIVITY] {
        let mut events = 0;
        let decoded = decode::decode(bytes, decode::Format::Json, shape, &limits, |event| {
            events += 1;
            if let Ok(draft) = event {
                // What is said to be checked has to be so.
                let properties = draft.properties.unwrap_or("{}");
                assert!(properties.len() <= limits.properties_bytes_max);
                assert!(draft.value.is_none_or(f64::is_finite));
            }
        });
        assert!(events <= limits.batch_events_max);
        assert!(decoded.is_err() || events > 0);
    }
});
